"""The loss on held-out answers is that of the model's own training, token by token."""

from __future__ import annotations

import math

import pytest
from helpers import raises_code
from small_models import sums

import ftlab as ft


def test_it_is_the_loss_that_training_validates(llama, tmp_path):
    rows = sums(6)
    trained = dict(steps=1, batch_size=4, learning_rate=1e-9, eval_every=1)
    valid = ft.data.load(rows).save(tmp_path / "valid.jsonl")
    run = ft.sft(llama, sums(8, seed=1), valid=valid, **trained)
    validated = run.read("valid.jsonl")[0]["loss"]
    (found,) = ft.evals.answer_loss(llama, rows).to_dict("records")
    assert found["rows"] == 6 and found["loss"] == pytest.approx(validated, rel=1e-3)
    assert found["perplexity"] == pytest.approx(math.exp(found["loss"]))
    alone = [ft.evals.answer_loss(llama, [row]).iloc[0] for row in rows]
    total = sum(one["loss"] * one["tokens"] for one in alone)
    assert total / found["tokens"] == pytest.approx(found["loss"], rel=1e-5)


def test_mistakes(llama):
    with raises_code("endpoint_without_weights"):
        ft.evals.answer_loss("api:m@http://127.0.0.1:9/v1", sums(1))
    with raises_code("bad_rows"):
        ft.evals.answer_loss(llama, sums(1), max_length=4)
