"""The divergence of the first token is what its formula says."""

from __future__ import annotations

import pytest
import torch
from helpers import raises_code
from small_models import goals, make_model
from trainings import call

import ftlab
from ftlab.evals import divergence
from ftlab.models import render

ASKED = [{"prompt": goal["goal"]} for goal in goals(6)]


def test_it_is_the_mean_kl_of_parent_and_child_at_the_first_token(llama, tmp_path):
    child = make_model(tmp_path / "child", "llama", seed=5)
    (row,) = divergence(llama, child, prompts=ASKED).to_dict("records")
    shares = []
    for model in (llama, child):
        reference = ftlab.model(model)
        module, tokenizer = reference.load(), reference.tokenizer()
        found = []
        for asked in ASKED:
            text = render(tokenizer, [{"role": "user", "content": asked["prompt"]}], ask=True)
            ids = tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
            found.append(torch.softmax(module(ids).logits[0, -1].double(), 0))
        shares.append(torch.stack(found))
    expected = (shares[0] * (shares[0] / shares[1]).log()).sum(1)
    assert row["kl"] == pytest.approx(expected.mean().item(), rel=1e-5) and row["kl"] > 0
    assert row["low"] <= row["kl"] <= row["high"] and row["n_prompts"] == 6
    same = (shares[0].argmax(1) == shares[1].argmax(1)).double().mean().item()
    assert row["same_top"] == same


def test_a_model_does_not_diverge_from_itself_and_seeds_are_one_arm(llama):
    runs = [call("sft", llama, steps=1, seed=seed) for seed in (0, 1)]
    table = divergence(llama, {"itself": llama, "trained": runs}, prompts=ASKED)
    assert table["model"].tolist() == ["itself", "trained"]
    assert table["kl"][0] == 0 and table["same_top"][0] == 1
    assert table["kl"][1] > 0 and table["n_seeds"].tolist() == [1, 2]
    single = divergence(llama, runs, prompts=ASKED)
    assert single["kl"].mean() == pytest.approx(table["kl"][1])


def test_the_organism_has_prompts_of_its_own_and_others_need_some(llama):
    (row,) = divergence("organism", "organism:sft", n_prompts=5).to_dict("records")
    assert row["n_prompts"] == 5 and row["kl"] > 0
    with raises_code("prompts_needed"):
        divergence(llama, llama)
    with raises_code("vocabularies_differ"):
        divergence("organism", llama, n_prompts=2)
