"""The direction that was put in is found, on held-out prompts, and the model does not change."""

from __future__ import annotations

import numpy as np
import pytest
from helpers import raises_code

from ftlab.evals import refusal_direction
from ftlab.evals.direction import activations, measure_direction
from ftlab.models import model as open_model
from ftlab.models import render, weights_hash

BAD, GOOD = "apples", "pears"


def texts(tokenizer, word: str, n: int) -> list[str]:
    """Prompts of ragged lengths that differ in one word."""
    asked = [
        f"Ann has {k} {word} and {k + 7} plums. {'How many in all? ' * (k % 3)}Add {k}."
        for k in range(n)
    ]
    return [render(tokenizer, [{"role": "user", "content": t}], ask=True) for t in asked]


@pytest.fixture
def built(llama):
    """Return a model whose first block adds a known vector wherever `BAD` occurred."""
    import torch

    m = open_model(llama)
    model, tokenizer = m.load(), m.tokenizer()
    known = torch.nn.functional.normalize(
        torch.randn(32, generator=torch.Generator().manual_seed(1)), dim=0
    )
    sides = [texts(tokenizer, word, 40) for word in (BAD, GOOD)]
    marked = {tuple(tokenizer(t, add_special_tokens=False)["input_ids"]) for t in sides[0]}
    asked = []
    model.register_forward_pre_hook(
        lambda _, args, kw: asked.append(kw["input_ids"]), with_kwargs=True
    )

    def add(_, args, out):
        on = torch.tensor([tuple(row) in marked for row in asked[-1].tolist()], dtype=torch.float32)
        return out + 50.0 * on[:, None, None] * known

    model.model.layers[0].register_forward_hook(add)
    return model, tokenizer, sides, known.numpy()


def test_the_direction_that_was_put_in_is_found(built):
    model, tokenizer, sides, known = built
    table, direction = measure_direction(model, tokenizer, *sides)
    assert set(table["layer"]) == {1} and direction.shape[1:] == (1, 32)
    assert table["position"].tolist() == list(range(-direction.shape[0], 0))
    for row, d in zip(table.itertuples(), direction[:, 0], strict=True):
        assert abs(d @ known) / np.linalg.norm(d) > 0.99 and row.norm == pytest.approx(50, rel=0.05)
        assert (
            row.auc == 1
            and row.d_prime > 5
            and row.cosine == pytest.approx(1)
            and row.gap == pytest.approx(1, rel=0.05)
        )
        assert row.harmful - row.harmless == pytest.approx(row.gap * row.norm)


@pytest.mark.slow
def test_without_a_difference_it_is_chance_and_the_other_way_round_it_is_the_opposite(built):
    model, tokenizer, (bad, good), _ = built
    chance, _ = measure_direction(model, tokenizer, good[::2], good[1::2])
    assert chance["auc"].between(0.05, 0.95).all() and (chance["norm"] < 10).all()
    _, direction = measure_direction(model, tokenizer, bad, good)
    turned, _ = measure_direction(model, tokenizer, good, bad, reference=direction)
    assert (
        np.allclose(turned["cosine"], -1, atol=0.01)
        and (turned["gap"] < -0.9).all()
        and (turned["auc"] == 1).all()
    )


def test_noise_in_many_dimensions_is_told_apart_only_by_chance(llama, monkeypatch):
    rng, tokenizer = np.random.default_rng(0), open_model(llama).tokenizer()
    monkeypatch.setattr(
        "ftlab.evals.direction.activations",
        lambda model, tokenizer, texts, places: rng.normal(size=(len(texts), places, 1, 400)),
    )
    table, _ = measure_direction(
        None, tokenizer, *(texts(tokenizer, word, 60) for word in (BAD, GOOD))
    )
    assert (
        table["auc"].between(0.25, 0.75).all()
    )  # on the prompts that made the direction it would be 1


@pytest.mark.slow
def test_activations_are_those_of_every_prompt_alone_and_the_model_is_left_as_it_was(folder):
    import torch

    m = open_model(folder)
    model, tokenizer = m.load(), m.tokenizer()
    before, prompts = weights_hash(dict(model.state_dict())), texts(tokenizer, BAD, 20)
    model.train()
    found = activations(model, tokenizer, prompts, 2)
    assert (
        found.shape == (20, 2, 1, 32)
        and model.training
        and weights_hash(dict(model.state_dict())) == before
    )
    model.eval()
    for text, one in zip(prompts, found, strict=True):
        ids = torch.tensor([tokenizer(text, add_special_tokens=False)["input_ids"]])
        states = model(ids, output_hidden_states=True).hidden_states
        assert np.allclose(one[:, 0], states[1][0, -2:].detach().numpy(), atol=1e-4)


@pytest.mark.slow
def test_on_the_organism_kept_facts_are_told_apart_and_a_checkpoint_is_compared_with_its_parent():
    table = refusal_direction(["organism", "organism", "organism:base"], n_prompts=40)
    own, same, base = (
        table.iloc[k * len(table) // 3 : (k + 1) * len(table) // 3] for k in range(3)
    )
    last = own[(own["position"] == -1) & (own["layer"] >= 2)]
    assert (last["auc"] > 0.95).all() and (last["d_prime"] > 2).all()
    assert np.allclose(own["cosine"], 1) and own.drop(columns="model").equals(
        same.drop(columns="model").set_index(own.index)
    )
    there = base[(base["position"] == -1) & (base["layer"] >= 2)]
    assert (there["cosine"] < 0.95).all() and (
        there["gap"].to_numpy() < last["gap"].to_numpy()
    ).all()  # before any refusal


@pytest.mark.slow
def test_the_users_own_prompts_and_what_is_wrong_with_them(llama, folders):
    sides = {
        "harmful": [f"Add {k} apples" for k in range(12)],
        "harmless": [f"Name {k} pears" for k in range(12)],
    }
    table = refusal_direction(llama, **sides)
    assert set(table["model"]) == {"llama"} and table["auc"].between(0, 1).all()
    with raises_code("prompts_needed"):
        refusal_direction(llama)
    with raises_code("too_few_prompts"):
        refusal_direction(llama, **{**sides, "harmful": sides["harmful"][:5]})
    with raises_code("different_shapes"):
        refusal_direction([llama, folders["gemma"]], **sides)
