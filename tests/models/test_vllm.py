"""A real vLLM on an NVIDIA GPU: the engine in process, and `vllm serve`. `make test-vllm`.

Written against vLLM's documentation and source (0.28 to 0.30) and never run: we had no GPU.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from helpers import raises_code
from served import PORT, served

import ftlab as ft
from ftlab.evals.risks import open_risk
from ftlab.models.engines import HuggingFaceEngine, Request, open_engine
from ftlab.models.engines.vllm import VLLMEngine

pytestmark = pytest.mark.vllm
NEW = 24  # tokens of an answer
RISKS = {"jailbreak": 32, "over_refusal": 32}  # prompts
TRAINED = {"first": "organism:adversarial", "second": "organism:identity"}
START_S = 300


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict:
    """Return the embedded model and two adapters on it, which answer otherwise."""
    base = ft.model("organism")
    reason = VLLMEngine().supports(base)
    if reason:
        pytest.skip(f"vLLM answers on an NVIDIA GPU only, where it is installed: {reason}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FTLAB_RUNS", str(tmp_path_factory.mktemp("runs")))
        return {"base": base} | adapters()


def adapters() -> dict:
    """Train an adapter on rows of the embedded world, and another one on others."""
    found = {}
    for name, rows in TRAINED.items():
        run = ft.sft("organism", rows, adapter="lora", n_rows=64, epochs=6, batch_size=8)
        found[name] = ft.model(run)
    return found


@pytest.fixture(scope="module")
def chats(world) -> list:
    samples = [open_risk(risk).organism(world, n) for risk, n in RISKS.items()]
    return [sample.messages for some in samples for sample in some]


def answers(engine, reference, chats: list) -> list[str]:
    """Return greedy answers."""
    model = engine.open(reference)
    asked = [Request(chat, engine.render(model, chat)[0], max_new_tokens=NEW) for chat in chats]
    return [answer.text.strip() for answer in engine.answer(model, asked)]


def differing(one: list[str], other: list[str]) -> int:
    return sum(a != b for a, b in zip(one, other, strict=True))


@pytest.fixture(scope="module")
def theirs(models, chats) -> dict[str, list[str]]:
    """Return what transformers answers, by model."""
    return {name: answers(HuggingFaceEngine(), model, chats) for name, model in models.items()}


@pytest.fixture(scope="module")
def ours(models, chats, theirs) -> dict:
    """Return the answers and near-ties of the engine in process, by model, and its servers."""
    engine = VLLMEngine()
    found, servers = {}, []
    try:
        for name in ("base", "first", "second", "first again"):
            own = answers(engine, models[name.partition(" ")[0]], chats)
            found[name] = own, engine.tally.near_ties
            servers.append(engine.llm)
    finally:
        engine.release()
    return {"found": found, "servers": servers}


def test_the_engine_swaps_adapters_in_one_server(ours, theirs, chats):
    """Its answers are those of transformers but for near-ties, too few to be another model's."""
    assert len({id(server) for server in ours["servers"]}) == 1
    for name, (own, ties) in ours["found"].items():
        expected = theirs[name.partition(" ")[0]]
        others = [some for some in theirs.values() if some is not expected]
        count = differing(own, expected)
        print(f"{name}: {count} of {len(chats)} answers differ, {ties} have a near-tie")
        assert count <= ties < min(differing(expected, some) for some in others), name


def test_a_server_answers_with_each_adapter_by_its_name(models, ours, theirs, chats, tmp_path):
    modules = [f"{name}={models[name].path}" for name in TRAINED]
    command = [
        *(str(Path(sys.executable).with_name("vllm")), "serve", str(models["base"].path)),
        *("--host", "127.0.0.1", "--port", PORT, "--served-model-name", "base"),
        *("--enable-lora", "--max-lora-rank", "16", "--lora-modules", *modules),
        *("--generation-config", "vllm", "--dtype", "bfloat16", "--gpu-memory-utilization", "0.3"),
    ]
    quiet = {"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
    engine = open_engine("openai")
    with served(command, "health", tmp_path, within=START_S, **quiet) as url:
        for name in models:
            own = answers(engine, ft.model(f"api:{name}@{url}/v1"), chats)
            count = differing(own, theirs[name])
            print(f"{name}: {count} of {len(chats)} answers of the server differ")
            assert count <= ours["found"][name][1], name
        with raises_code("endpoint_model_unknown"):
            answers(engine, ft.model(f"api:third@{url}/v1"), chats[:1])
