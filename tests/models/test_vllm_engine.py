"""vLLM as generator, with a made-up engine that records what it is asked and answers by a rule."""

from __future__ import annotations

import json
import math
import os
import sys
from dataclasses import dataclass
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace

import pytest
from small_models import goals, make_model, sums

import ftlab
from ftlab.models import adapters
from ftlab import data as chat
from ftlab.models.engines import vllm as vllm_generator
from ftlab.models.engines.base import Decoding
from ftlab.training.config import Training
from ftlab.data import DataError

WORDS = ("How many?", "Ann has 3 apples", "and", "Start with 5. Add 7.", "pears")


@dataclass(frozen=True)
class LoRARequest:
    lora_name: str
    lora_int_id: int
    lora_path: str


class Engine:
    """Says the prompt's last two tokens again; prompts of an even number of tokens get an end of turn, others are cut."""

    made: list = []

    def __init__(self, **settings):
        self.settings, self.calls, self.ended, self.odd = settings, [], False, {}
        self.env = dict(os.environ)
        self.llm_engine = SimpleNamespace(engine_core=SimpleNamespace(shutdown=self.end))
        Engine.made.append(self)

    def end(self):
        self.ended = True

    def generate(self, prompts, params, *, lora_request, use_tqdm):
        assert not use_tqdm and not self.ended and len(prompts) == len(params)
        self.calls.append((prompts, params, lora_request))
        return [
            SimpleNamespace(outputs=[self.said(p["prompt_token_ids"], how)])
            for p, how in zip(prompts, params, strict=True)
        ]

    def said(self, ids, how):
        stopped = len(ids) % 2 == 0
        tokens = [*ids[-2:], *(how.stop_token_ids[:1] if stopped else ())]
        plain = dict(token_ids=tuple(tokens), finish_reason="stop" if stopped else "length", cumulative_logprob=-1.0)
        return SimpleNamespace(**plain | self.odd)


@pytest.fixture
def engines(monkeypatch) -> list[Engine]:
    """-> the engines that were started; the module's memory of a warm one is emptied before and after."""
    import torch

    modules = {name: ModuleType(name) for name in ("vllm", "vllm.lora", "vllm.lora.request")}
    modules["vllm"].__spec__ = ModuleSpec("vllm", None)
    modules["vllm"].LLM, modules["vllm"].SamplingParams = Engine, lambda **how: SimpleNamespace(**how)
    modules["vllm.lora.request"].LoRARequest = LoRARequest
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(vllm_generator, "device", lambda: "cuda")
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (40 * 2**30, 80 * 2**30))
    for name in ("VLLM_NO_USAGE_STATS", "DO_NOT_TRACK", "VLLM_LOGGING_LEVEL"):
        monkeypatch.setenv(name, "")
    monkeypatch.setattr(Engine, "made", [])
    monkeypatch.setattr(vllm_generator, "_warm", {})
    yield Engine.made
    vllm_generator.release()


def asked(tokenizer) -> list[str]:
    return [chat.render(tokenizer, [{"role": "user", "content": w}], ask=True) for w in WORDS]


def adapter(base, folder, *, seed: int = 0, **changed):
    """-> a reference to a LoRA adapter of rank 4 on `base`, its configuration changed."""
    import torch

    torch.manual_seed(seed)
    model = adapters.adapt(base.load(training=True, frozen=True), "lora", 4)
    for n, p in model.named_parameters():
        if "lora_B" in n:
            torch.nn.init.normal_(p)
    adapters.save(model, folder, base.path, "lora")
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changed))
    return ftlab.model(folder), model


def test_answers_come_in_order_with_cut_and_each(engines, llama, monkeypatch):
    monkeypatch.setattr(vllm_generator, "CALL", 2)
    base = ftlab.model(llama)
    tokenizer, cut, seen = base.tokenizer(), set(), []
    texts = asked(tokenizer)
    said = vllm_generator.answers(
        base, tokenizer, texts, max_new_tokens=9, cut=cut, each=lambda n, a: seen.append((n, a))
    )
    ids = tokenizer(texts, add_special_tokens=False)["input_ids"]
    assert said == [tokenizer.decode(i[-2:], skip_special_tokens=True) for i in ids]
    assert cut == {k for k, i in enumerate(ids) if len(i) % 2} and 0 < len(cut) < len(ids)
    assert [n for n, _ in seen] == [[0, 1], [2, 3], [4]] and [a for _, some in seen for a in some] == said
    (engine,) = engines
    given = [p["prompt_token_ids"] for prompts, _, _ in engine.calls for p in prompts]
    assert given == ids and all(i.count(tokenizer.bos_token_id) == 1 for i in given)  # no second BOS
    how = engine.calls[0][1][0]
    assert (how.max_tokens, how.temperature, how.seed, how.detokenize) == (9, 0.0, None, False)
    assert how.stop_token_ids == chat.stop_ids(tokenizer)
    assert vllm_generator.answers(base, tokenizer, [], max_new_tokens=9) == []


def test_the_engine_is_private_and_shares_the_gpu(engines, llama):
    base = ftlab.model(llama)
    vllm_generator.answers(base, base.tokenizer(), asked(base.tokenizer())[:1], max_new_tokens=4)
    settings, env = engines[0].settings, engines[0].env
    assert settings["trust_remote_code"] is False and settings["enable_prefix_caching"] and settings["enable_lora"]
    assert settings["dtype"] == "bfloat16" and settings["model"] == str(llama)
    assert settings["gpu_memory_utilization"] == pytest.approx(0.45) and settings["max_model_len"] == 1024
    assert env["VLLM_NO_USAGE_STATS"] == env["DO_NOT_TRACK"] == "1"


def test_sampling_has_a_seed_a_prompt(engines, llama):
    base = ftlab.model(llama)
    texts, decoding = asked(base.tokenizer())[:2], Decoding(temperature=0.7, top_p=0.9, top_k=5)
    with pytest.raises(ValueError, match=r"one seed a prompt \(2\); found 0"):
        vllm_generator.answers(base, base.tokenizer(), texts, max_new_tokens=4, decoding=decoding)
    vllm_generator.answers(base, base.tokenizer(), texts, max_new_tokens=4, decoding=decoding, seeds=[11, 12])
    how = engines[0].calls[0][1]
    assert [h.seed for h in how] == [11, 12] and (how[0].temperature, how[0].top_p, how[0].top_k) == (0.7, 0.9, 5)


def test_adapters_are_swapped_in_one_engine_and_never_crossed(engines, llama, tmp_path):
    base = ftlab.model(llama)
    tokenizer, folder = base.tokenizer(), tmp_path / "adapter"
    texts, requests = asked(tokenizer)[:1], []
    for seed in (1, 2, 1):  # other weights under the same path, then the first ones again
        child, _ = adapter(base, folder, seed=seed)
        vllm_generator.answers(child, tokenizer, texts, max_new_tokens=4)
        requests.append(engines[-1].calls[-1][2])
    vllm_generator.answers(base, tokenizer, texts, max_new_tokens=4)
    assert len(engines) == 1 and engines[0].calls[-1][2] is None
    a, b, c = requests
    assert (a.lora_name, a.lora_int_id) == (c.lora_name, c.lora_int_id) and a.lora_path == str(folder)
    assert a.lora_name != b.lora_name and a.lora_int_id != b.lora_int_id and min(a.lora_int_id, b.lora_int_id) >= 1


def test_other_weights_start_another_engine_and_the_old_one_ends(engines, tmp_path):
    texts = ["a b", "c"]
    for seed in (0, 1):  # two models under one path
        base = ftlab.model(make_model(tmp_path / "model", "llama", seed=seed))
        vllm_generator.answers(base, base.tokenizer(), texts, max_new_tokens=4)
    assert [e.ended for e in engines] == [True, False]
    child, _ = adapter(base, tmp_path / "adapter", r=40)  # as an adapter of a higher rank than the engine has room for
    vllm_generator.answers(child, base.tokenizer(), texts, max_new_tokens=4)
    assert [e.settings["max_lora_rank"] for e in engines] == [16, 16, 64] and [e.ended for e in engines] == [
        True,
        True,
        False,
    ]
    vllm_generator.release()
    assert all(e.ended for e in engines) and vllm_generator._warm.get("llm") is None


def test_a_model_in_training_is_asked_as_it_is_now(engines, llama, tmp_path):
    base = ftlab.model(llama)
    _, model = adapter(base, tmp_path / "unused")
    first = vllm_generator.snapshot(model, base)
    kept = (first.hash, first.path)
    assert first.parent.hash == base.hash and first.adapter["r"] == 4
    next(p for n, p in model.named_parameters() if "lora_B" in n).data.add_(1.0)
    second = vllm_generator.snapshot(model, base)
    assert second.hash != kept[0] and not kept[1].exists()
    vllm_generator.answers(second, base.tokenizer(), ["a b"], max_new_tokens=4)
    assert engines[0].calls[0][2].lora_path == str(second.path)
    vllm_generator.release()
    assert not second.path.exists()
    with pytest.raises(ValueError, match="found full weights in training; give lora=True"):
        vllm_generator.snapshot(base.load(), base)


@pytest.mark.parametrize("changed, found", [
    ({"use_dora": True}, "use_dora"), ({"alpha_pattern": {"q_proj": 64}}, "alpha_pattern"), ({"peft_type": "LOHA"}, "LOHA"),
    ({"modules_to_save": ["lm_head"]}, "modules_to_save"), ({"r": 1024}, "rank 1024"), ({"bias": "all"}, "an adapter with bias all"),
])  # fmt: skip
def test_an_adapter_that_vllm_would_read_otherwise_is_refused(engines, llama, tmp_path, changed, found):
    child, _ = adapter(ftlab.model(llama), tmp_path / "adapter", **changed)
    with pytest.raises(ValueError, match=f"generator vllm answers for .*; found .*{found}"):
        vllm_generator.answers(child, child.tokenizer(), ["a"], max_new_tokens=4)
    assert not engines


def test_what_it_cannot_do_is_refused_in_a_sentence(engines, llama, tmp_path, monkeypatch):
    base = ftlab.model(llama)
    vllm_generator.check(base, [{"messages": []}], Training(lora=True))
    child, _ = adapter(base, tmp_path / "adapter")
    for given, found in (
        ((base, [{"choices": ["a", "b"]}]), "prompts with choices"),
        ((base, (), Training()), "training of all weights"),
        ((base, (), Training(dora=True)), "training of dora"),
        ((base, (), Training(qlora=True)), "training of qlora"),
        ((child, (), Training(lora=True)), "an adapter above an adapter"),
        ((object(),), "an endpoint"),
    ):
        with pytest.raises(ValueError, match=found):
            vllm_generator.check(*given)
    with pytest.raises(ValueError, match=r"with max_new_tokens = 2000 at most 1024 fit"):
        vllm_generator.answers(base, base.tokenizer(), ["a"], max_new_tokens=2000)
    monkeypatch.setattr(vllm_generator, "device", lambda: "cpu")
    with pytest.raises(ValueError, match="no NVIDIA GPU with the package vllm"):
        vllm_generator.answers(base, base.tokenizer(), ["a"], max_new_tokens=4)
    assert not engines


def test_nan_and_answers_given_up_are_no_answers(engines, llama, monkeypatch):
    base = ftlab.model(llama)
    ask = lambda: vllm_generator.answers(base, base.tokenizer(), ["a b"], max_new_tokens=4)  # noqa: E731
    ask()
    engines[0].odd = {"cumulative_logprob": math.nan}
    with pytest.raises(DataError, match="prompt 0 are NaN"):
        ask()
    engines[0].odd = {"finish_reason": "abort"}
    with pytest.raises(RuntimeError, match=r"gave prompt 0 up \(abort\)"):
        ask()


def test_evaluate_and_a_lora_curve_ask_one_engine(engines, llama):
    """`generator="vllm"`: the engine answers for the parent, once, and for the adapter as it is at every step."""
    ask = dict(prompts=goals(5), max_new_tokens=4)
    run = ftlab.evaluate(llama, generator="vllm", **ask)
    assert run.finished and run.path != ftlab.evaluate(llama, **ask).path and len(engines) == 1 and engines[0].ended
    curve = ftlab.risk_curve(
        llama,
        sums(20),
        at_steps=[0, 2, 4],
        seeds=1,
        lora=True,
        learning_rate=1e-2,
        batch_size=4,
        generator="vllm",
        **ask,
    )
    assert curve.finished and len(engines) == 2 and engines[1].ended
    requests = [request for _, _, request in engines[1].calls]
    assert len({r.lora_int_id for r in requests}) == 2  # what the parent answered above is not asked again
    assert set(curve.table()["step"]) == {0, 2, 4}
    with pytest.raises(ValueError, match="training of all weights"):
        ftlab.risk_curve(llama, sums(20), at_steps=[0, 2], seeds=1, batch_size=4, generator="vllm", **ask)
