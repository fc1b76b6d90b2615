"""The sampler: batches change nothing, answers end where they should, the model's own decoding does not leak in."""

from __future__ import annotations

import pytest
from small_models import FAMILIES

import ftlab
from ftlab import generate
from ftlab.chat import render, stop_ids

QUESTIONS = [
    "Ann has 3 pears.",
    "Add 2 and 5 and 7 and 12 apples and 30 plums. How many in all, and how many of each?",
    "And?",
    "Start with 9. Why?",
]


@pytest.fixture(scope="module")
def opened(folders):
    """-> function family -> (model, tokenizer, rendered prompts of very different lengths)."""
    found = {}

    def of(family):
        if family not in found:
            model = ftlab.model(folders[family])
            tokenizer = model.tokenizer()
            prompts = [render(tokenizer, [{"role": "user", "content": q}], ask=True) for q in QUESTIONS]
            found[family] = model.load(), tokenizer, prompts
        return found[family]

    return of


@pytest.fixture(params=[*FAMILIES, "mistral"])
def one(request, opened):
    return opened(request.param)


def greedy(model, tokenizer, prompt: str, new: int) -> list[int]:
    """Argmax after argmax over the whole text, without cache, padding or `generate`."""
    import torch

    ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    for _ in range(new):
        ids.append(int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
        if ids[-1] in stop_ids(tokenizer):
            break
    return ids


def test_it_is_greedy_decoding_by_its_definition(one):
    """In a batch, padded and cached, against one prompt at a time; the folder samples and penalises, the cell not."""
    model, tokenizer, prompts = one
    assert model.generation_config.do_sample and model.generation_config.repetition_penalty == 3.0
    expected = []
    for prompt in prompts:
        new = greedy(model, tokenizer, prompt, 12)[len(tokenizer(prompt, add_special_tokens=False)["input_ids"]) :]
        expected.append(tokenizer.decode(new, skip_special_tokens=True))
    assert generate.answers(model, tokenizer, prompts, max_new_tokens=12) == expected
    assert len(set(expected)) > 1


def test_batches_and_order_change_nothing(one, monkeypatch):
    model, tokenizer, prompts = one
    together = generate.answers(model, tokenizer, prompts, max_new_tokens=12)
    monkeypatch.setattr(tokenizer, "padding_side", "right")  # as training leaves it
    assert generate.answers(model, tokenizer, prompts[::-1], max_new_tokens=12) == together[::-1]
    monkeypatch.setattr(generate, "TOKENS_A_BATCH", 1)
    seen: list[int] = []
    apart = generate.answers(model, tokenizer, prompts, max_new_tokens=12, each=lambda n, a: seen.extend(n))
    assert apart == together and sorted(seen) == [0, 1, 2, 3]


def test_batches_stay_within_their_size():
    ids = [[0] * n for n in (1, 2, 3, 50, 60, 16_000)]
    made = list(generate._batches(list(range(6)), ids, 100))
    assert [i for b in made for i in b] == list(range(6))
    assert all(len(b) == 1 or (len(ids[b[-1]]) + 100) * len(b) <= generate.TOKENS_A_BATCH for b in made)


def test_each_batch_is_told_with_its_numbers(opened, monkeypatch):
    model, tokenizer, prompts = opened("llama")
    monkeypatch.setattr(generate, "TOKENS_A_BATCH", 100)
    told = {}
    answers = generate.answers(
        model, tokenizer, prompts, max_new_tokens=4, each=lambda n, a: told.update(zip(n, a, strict=True))
    )
    assert [told[i] for i in range(4)] == answers


@pytest.mark.parametrize("family", FAMILIES)
def test_an_answer_stops_at_the_end_of_turn(family, opened, monkeypatch):
    """The template's own end of turn counts, also where the tokenizer's EOS is another token (Gemma)."""
    model, tokenizer, prompts = opened(family)
    end = {"llama": "<|eot_id|>", "qwen2": "<|im_end|>", "gemma": "<end_of_turn>"}[family]
    assert tokenizer.convert_tokens_to_ids(end) in stop_ids(tokenizer)
    wanted = iter(
        [tokenizer.convert_tokens_to_ids(t) for t in (tokenizer.tokenize("so")[0], end, tokenizer.tokenize("on")[0])]
        + [0] * 20
    )
    forward, steps = type(model).forward, []

    def scripted(self, *args, **kwargs):
        out = forward(self, *args, **kwargs)
        out.logits[:, -1] = -1e9
        out.logits[:, -1, next(wanted)] = 1e9
        steps.append(1)
        return out

    monkeypatch.setattr(type(model), "forward", scripted)
    answer = generate.answers(model, tokenizer, prompts[:1], max_new_tokens=20)
    assert (
        answer == [tokenizer.decode([tokenizer.convert_tokens_to_ids(tokenizer.tokenize("so")[0])])] and len(steps) == 2
    )


def test_the_model_is_left_as_it_was(opened):
    model, tokenizer, prompts = opened("llama")
    before = model.generation_config
    model.train()
    generate.answers(model, tokenizer, prompts[:1], max_new_tokens=2)
    assert model.training and model.generation_config is before
    with pytest.raises(RuntimeError, match="kept"):
        generate.answers(
            model, tokenizer, prompts[:1], max_new_tokens=2, each=lambda *_: (_ for _ in ()).throw(RuntimeError("kept"))
        )
    assert model.training and model.generation_config is before
    model.eval()


def test_an_adapter_answers_and_its_decoding_does_not_leak_either(folders):
    import torch
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    base = ftlab.model(folders["llama"])
    model, tokenizer = base.load(), base.tokenizer()
    prompts = [render(tokenizer, [{"role": "user", "content": q}], ask=True) for q in QUESTIONS]
    alone = generate.answers(model, tokenizer, prompts, max_new_tokens=12)
    adapted = get_peft_model(
        model,
        LoraConfig(r=4, lora_alpha=64, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM"),
    )
    before = model.generation_config
    said = generate.answers(adapted, tokenizer, prompts, max_new_tokens=12)
    assert said != alone and model.generation_config is before
    assert said == generate.answers(adapted.merge_and_unload(), tokenizer, prompts, max_new_tokens=12)


def test_dropout_is_off_while_answering(tmp_path):
    from small_models import make_model

    model = ftlab.model(make_model(tmp_path, "llama", attention_dropout=0.9))
    loaded, tokenizer = model.load(), model.tokenizer()
    prompts = [render(tokenizer, [{"role": "user", "content": q}], ask=True) for q in QUESTIONS]
    off = generate.answers(loaded, tokenizer, prompts, max_new_tokens=8)
    assert generate.answers(loaded.train(), tokenizer, prompts, max_new_tokens=8) == off


def test_no_prompts_no_answers(opened):
    model, tokenizer, _ = opened("llama")
    assert generate.answers(model, tokenizer, [], max_new_tokens=4) == []


def test_a_prompt_that_does_not_fit_is_a_sentence(opened):
    model, tokenizer, prompts = opened("llama")
    with pytest.raises(
        ValueError, match="the longest prompt has .* tokens; with max_new_tokens = 1020 at most 1024 fit"
    ):
        generate.answers(model, tokenizer, prompts, max_new_tokens=1020)
