"""vLLM as an engine, with a made-up server that records what it is asked and answers by a rule."""

from __future__ import annotations

import json
import math
import os
import sys
from dataclasses import dataclass, replace
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace

import pytest
from helpers import raises_code
from small_models import make_model

import ftlab
from ftlab.models import adapters, render, stop_ids
from ftlab.models.engines import Decoding, LoadedModel, Request, vllm
from ftlab.models.engines.vllm import VLLMEngine

WORDS = ("How many?", "Ann has 3 apples", "and", "Start with 5. Add 7.", "pears")


@dataclass(frozen=True)
class LoRARequest:
    lora_name: str
    lora_int_id: int
    lora_path: str


class Server:
    """Repeats the prompt's last two tokens; prompts of an odd number of tokens are cut."""

    made: list = []

    def __init__(self, **settings):
        self.settings = settings
        self.calls = []
        self.ended = False
        self.lead = 1.0  # of the likeliest token over the second
        self.odd = {}
        self.env = dict(os.environ)
        self.llm_engine = SimpleNamespace(engine_core=SimpleNamespace(shutdown=self.end))
        Server.made.append(self)

    def end(self):
        self.ended = True

    def generate(self, prompts, params, *, lora_request, use_tqdm):
        assert not use_tqdm and not self.ended
        self.calls.append((prompts, params, lora_request))
        outputs = []
        for prompt, how in zip(prompts, params, strict=True):
            ids = prompt["prompt_token_ids"]
            outputs.append(SimpleNamespace(outputs=[self.output(ids, how)]))
        return outputs

    def output(self, ids, how):
        made = {"token_ids": ids[-2:], "finish_reason": "length", "cumulative_logprob": -1.0}
        if len(ids) % 2 == 0:
            made |= {"token_ids": [*ids[-2:], how.stop_token_ids[0]], "finish_reason": "stop"}
        likeliest = {token: SimpleNamespace(logprob=-self.lead * token) for token in range(2)}
        made["logprobs"] = [dict(list(likeliest.items())[: how.logprobs])] * len(made["token_ids"])
        return SimpleNamespace(**made | self.odd)


@pytest.fixture
def servers(monkeypatch) -> list[Server]:
    """Return the servers that were started."""
    import torch

    modules = {name: ModuleType(name) for name in ("vllm", "vllm.lora", "vllm.lora.request")}
    modules["vllm"].__spec__ = ModuleSpec("vllm", None)
    modules["vllm"].LLM = Server
    modules["vllm"].SamplingParams = SimpleNamespace
    modules["vllm.lora.request"].LoRARequest = LoRARequest
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(vllm, "device", lambda: "cuda")
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (40 * 2**30, 80 * 2**30))
    for name in ("VLLM_NO_USAGE_STATS", "DO_NOT_TRACK", "VLLM_LOGGING_LEVEL"):
        monkeypatch.setenv(name, "")
    monkeypatch.setattr(Server, "made", [])
    return Server.made


@pytest.fixture
def engine(servers):
    engine = VLLMEngine()
    yield engine
    engine.release()


@pytest.fixture
def base(llama):
    return ftlab.model(llama)


def requests(tokenizer, words=WORDS, **settings) -> list[Request]:
    chats = [[{"role": "user", "content": word}] for word in words]
    return [Request(chat, render(tokenizer, chat, ask=True), **settings) for chat in chats]


def ask(engine, reference, words=WORDS, **settings):
    model = engine.open(reference)
    return engine.answer(model, requests(model.tokenizer, words, **settings))


def adapter(base, folder, *, seed: int = 0, **changed):
    """Return a reference to a LoRA adapter of rank 4 on `base`, and the model with it."""
    import torch

    torch.manual_seed(seed)
    model = adapters.adapt(base.load(training=True, frozen=True), "lora", 4)
    for name, weights in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weights)
    adapters.save_adapter(model, folder, base.path, "lora")
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changed))
    return ftlab.model(folder), model


def test_answers_come_in_order_with_their_finish(engine, servers, base, monkeypatch):
    monkeypatch.setattr(vllm, "CALL", 2)
    model = engine.open(base)
    asked = requests(model.tokenizer, max_new_tokens=9)
    seen = []
    answers = engine.answer(model, asked, lambda numbers, new: seen.append((numbers, new)))
    texts = [request.text for request in asked]
    ids = model.tokenizer(texts, add_special_tokens=False)["input_ids"]
    decode = model.tokenizer.decode
    assert [a.text for a in answers] == [decode(i[-2:], skip_special_tokens=True) for i in ids]
    finishes = ["length" if len(i) % 2 else "stop" for i in ids]
    assert [answer.finish for answer in answers] == finishes and len(set(finishes)) == 2
    assert [numbers for numbers, _ in seen] == [[0, 1], [2, 3], [4]]
    assert [answer for _, some in seen for answer in some] == answers
    [server] = servers
    given = [prompt["prompt_token_ids"] for prompts, *_ in server.calls for prompt in prompts]
    assert given == ids and all(i.count(model.tokenizer.bos_token_id) == 1 for i in given)
    how = server.calls[0][1][0]
    assert (how.max_tokens, how.temperature, how.seed, how.detokenize) == (9, 0.0, None, False)
    assert how.stop_token_ids == stop_ids(model.tokenizer)


def test_the_server_is_private_and_shares_the_gpu(engine, servers, base):
    ask(engine, base)
    settings, env = servers[0].settings, servers[0].env
    assert settings["trust_remote_code"] is False and settings["enable_prefix_caching"]
    assert settings["dtype"] == "bfloat16" and settings["model"] == str(base.path)
    assert settings["gpu_memory_utilization"] == pytest.approx(0.45)
    assert settings["max_model_len"] == 1024 and settings["enable_lora"]
    assert env["VLLM_NO_USAGE_STATS"] == env["DO_NOT_TRACK"] == "1"


def test_sampling_sends_each_requests_seed(engine, servers, base):
    decoding = Decoding(temperature=0.7, top_p=0.9, top_k=5)
    with raises_code("seed_missing"):
        ask(engine, base, decoding=decoding)
    ask(engine, base, decoding=decoding, seed=11)
    how = servers[0].calls[0][1][0]
    assert (how.seed, how.temperature, how.top_p, how.top_k) == (11, 0.7, 0.9, 5)


@pytest.mark.parametrize("lead, near", [(0.0, len(WORDS)), (0.1, len(WORDS)), (0.2, 0)])
def test_greedy_answers_that_rounding_may_turn_are_counted(engine, servers, base, lead, near):
    ask(engine, base)
    servers[0].lead = lead
    ask(engine, base)
    assert engine.tally.near_ties == engine.tally.as_dict()["near_ties"] == near
    ask(engine, base, decoding=Decoding(temperature=1.0), seed=1)
    assert engine.tally.near_ties == 0


@pytest.mark.slow
def test_adapters_are_swapped_in_one_server_and_never_crossed(engine, servers, base, tmp_path):
    folder = tmp_path / "adapter"
    sent = []
    for seed in (1, 2, 1):  # other weights under the same path, then the first ones again
        child, _ = adapter(base, folder, seed=seed)
        ask(engine, child)
        sent.append(servers[-1].calls[-1][2])
    ask(engine, base)
    assert len(servers) == 1 and servers[0].calls[-1][2] is None
    first, second, third = sent
    assert first == third and first.lora_path == str(folder)
    assert first.lora_name != second.lora_name and first.lora_int_id != second.lora_int_id
    assert 1 <= first.lora_int_id < second.lora_int_id


@pytest.mark.slow
def test_other_weights_start_another_server_and_the_old_one_ends(engine, servers, tmp_path):
    for seed in (0, 1):  # two models under one path
        base = ftlab.model(make_model(tmp_path / "model", "llama", seed=seed))
        ask(engine, base)
    assert [server.ended for server in servers] == [True, False]
    child, _ = adapter(base, tmp_path / "adapter", r=40)  # more than the server has room for
    ask(engine, child)
    assert [server.settings["max_lora_rank"] for server in servers] == [16, 16, 64]
    assert [server.ended for server in servers] == [True, True, False]
    engine.release()
    assert all(server.ended for server in servers)


def test_after_a_server_that_did_not_start_there_is_another(
    engine, servers, base, tmp_path, monkeypatch
):
    ask(engine, base)
    other = ftlab.model(make_model(tmp_path / "model", "llama", seed=1))
    with monkeypatch.context() as patch, pytest.raises(TypeError):
        patch.setattr(sys.modules["vllm"], "LLM", None)
        ask(engine, other)
    assert ask(engine, base)[0].text and len(servers) == 2


def test_a_model_in_training_answers_as_it_is_now(engine, servers, base, tmp_path):
    import torch

    _, module = adapter(base, tmp_path / "unused")
    model = LoadedModel(module, base.tokenizer(), base)
    asked = requests(model.tokenizer)
    sent = []
    for _ in range(2):
        engine.answer(model, asked)
        sent.append(servers[0].calls[-1][2])
        with torch.no_grad():
            for name, weights in module.named_parameters():
                if "lora_B" in name:
                    weights.add_(1.0)
    assert len(servers) == 1 and sent[0].lora_name != sent[1].lora_name
    assert not os.path.exists(sent[0].lora_path) and os.path.exists(sent[1].lora_path)
    engine.release()
    assert not os.path.exists(sent[1].lora_path)
    with raises_code("engine_unsupported"):
        engine.answer(replace(model, module=base.load()), asked)


@pytest.mark.slow
@pytest.mark.parametrize(
    "changed",
    [
        {"use_dora": True},
        {"alpha_pattern": {"q_proj": 64}},
        {"peft_type": "LOHA"},
        {"modules_to_save": ["lm_head"]},
        {"r": 1024},
        {"bias": "all"},
    ],
)
def test_an_adapter_that_vllm_would_read_otherwise_is_refused(
    engine, servers, base, tmp_path, changed
):
    child, _ = adapter(base, tmp_path / "adapter", **changed)
    assert engine.supports(child) and engine.supports(base) is None
    with raises_code("engine_unsupported"):
        ask(engine, child)
    assert not servers


def test_what_vllm_cannot_do_has_a_reason(engine, servers, base, tmp_path, monkeypatch):
    lora = SimpleNamespace(adapter="lora", lora_rank=8)
    assert engine.supports(base, openings=True, training=lora) is None
    child, _ = adapter(base, tmp_path / "adapter")
    assert engine.supports(child) is None and engine.supports(child, training=lora)
    assert engine.supports(base, choices=True) and engine.supports(base, screened=True)
    for kind in (None, "dora", "qlora"):
        assert engine.supports(base, training=SimpleNamespace(adapter=kind, lora_rank=8))
    assert engine.supports(base, training=SimpleNamespace(adapter="lora", lora_rank=1024))
    assert engine.supports(object())
    with raises_code("prompt_too_long"):
        ask(engine, base, max_new_tokens=2000)
    for settings in ({"choices": ("a", "b")}, {"stop_when": bool}):
        with raises_code("engine_unsupported"):
            ask(engine, base, **settings)
    monkeypatch.setattr(vllm, "device", lambda: "cpu")
    with raises_code("engine_unsupported"):
        ask(engine, base)
    assert not servers


@pytest.mark.parametrize("odd", [{"cumulative_logprob": math.nan}, {"finish_reason": "abort"}])
def test_broken_answers_are_errors(engine, servers, base, odd):
    assert ask(engine, base)[0].text
    servers[0].odd = odd
    for answer in ask(engine, base):
        assert answer.finish == "error" and answer.error and not answer.text
