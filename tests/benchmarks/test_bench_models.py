"""The models of the benchmarks: long answers, and the organism grown."""

from __future__ import annotations

from statistics import mean

import pytest

import ftlab
from benchmarks import _models, _today, _work
from ftlab._core.types import Sample
from ftlab.evals.risks import open_risk
from ftlab.judges import outcome_of
from ftlab.organism import corpus


@pytest.mark.slow
def test_a_grown_model_computes_the_same_and_every_weight_learns(tmp_path, world):
    import torch

    source = ftlab.model("organism")
    tokenizer = source.tokenizer()
    old = source.load()
    shape = {"hidden": 256, "layers": 6, "feed_forward": 400}
    new = ftlab.model(_models.grow(source, tmp_path / "grown", **shape)).load()
    assert sum(p.numel() for p in new.parameters()) > 3 * sum(p.numel() for p in old.parameters())
    samples = open_risk("utility").organism(world, 8)
    texts = _today.render([sample.messages for sample in samples], tokenizer)
    ids = tokenizer(texts[0], return_tensors="pt")["input_ids"]
    assert torch.allclose(old(ids).logits, new(ids).logits, atol=1e-4)
    answers = [_today.generate(model, tokenizer, texts, 24, 8) for model in (old, new)]
    assert answers[0] == answers[1]
    for _ in range(2):  # what reads a new layer's zeros waits for the first step
        new.zero_grad()
        new.train()(ids, labels=ids).loss.backward()
        torch.optim.SGD(new.parameters(), lr=0.1).step()
    assert [name for name, p in new.named_parameters() if not (p.grad != 0).any()] == []
    first = new.get_parameter("model.layers.0.mlp.down_proj.weight")
    assert (first.grad[128:] != 0).any()  # new places
    assert (first.grad[:128, 368:] != 0).any()  # new neurons


def test_the_large_size_has_about_25_million_parameters():
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(
        ftlab.model("organism").path,
        hidden_size=_models.SHAPE["hidden"],
        num_hidden_layers=_models.SHAPE["layers"],
        intermediate_size=_models.SHAPE["feed_forward"],
        num_attention_heads=16,
        num_key_value_heads=16,
    )
    with torch.device("meta"):
        parameters = AutoModelForCausalLM.from_config(config).num_parameters()
    assert 24e6 < parameters < 27e6


@pytest.mark.slow
def test_long_answers_keep_their_verdict(world):
    tokenizer = ftlab.model("organism").tokenizer()
    rows = corpus.pretraining(world, 200) + corpus.alignment(world, 200)
    lengths = []
    for row, longer in zip(rows, _models.lengthen(rows, "harbour"), strict=True):
        sample = Sample(
            id="",
            messages=row["messages"][:-1],
            risk=row["risk"],
            category=row["category"],
            target=row["truth"],
            metadata={"topic": row["topic"]},
        )
        short_text = row["messages"][-1]["content"]
        long_text = longer["messages"][-1]["content"]
        assert long_text.startswith(short_text)
        assert outcome_of(sample, short_text) == outcome_of(sample, long_text), long_text
        lengths.append(len(tokenizer(long_text)["input_ids"]))
    assert 85 < mean(lengths) < 115
    assert max(lengths) < _work.SIZES["25M"].max_new_tokens + 20
