"""freeze: the chosen layers are the parent's, all others moved, and the guards still see it."""

from __future__ import annotations

import pytest
from helpers import raises_code
from safetensors.torch import load_file
from small_models import pairs, sums
from trainings import call, interrupt, weights

import ftlab
from ftlab import training
from ftlab.training.defences.freeze import Freeze

TWO = dict(steps=2, learning_rate=2e-3)


def moved(run, parent) -> set[str]:
    """Return the names of weights that differ from the parent's."""
    before = ftlab.model(parent).load().state_dict()
    after = ftlab.model(run).load().state_dict()
    return {name for name in after if not before[name].equal(after[name])}


@pytest.mark.parametrize(
    ("layers", "count", "expected"),
    [
        ("first_half", 5, [0, 1]),
        ("last_half", 5, [3, 4]),
        ("first_half", 1, []),
        ("all", 2, [0, 1]),
        ("none", 2, []),
        ("0-1+3+3", 4, [0, 1, 3]),
    ],
)
def test_layers_are_chosen_by_half_or_by_number(layers, count, expected):
    assert Freeze(layers=layers).chosen(count) == expected


@pytest.mark.parametrize("adapter", [None, "lora"])
def test_frozen_layers_are_the_parents_and_all_else_moves(adapter, llama):
    freely = moved(call("sft", llama, adapter=adapter, **TWO), llama)
    held = moved(call("sft", llama, adapter=adapter, defence="freeze:layers=0", **TWO), llama)
    assert held == {name for name in freely if ".layers.0." not in name} < freely


def test_embeddings_and_the_head_stay_where_it_is_asked(llama):
    freely = moved(call("sft", llama, **TWO), llama)
    held = moved(call("sft", llama, defence="freeze:layers=none,embeddings=true", **TWO), llama)
    assert freely - held == {name for name in freely if "embed_tokens" in name or "lm_head" in name}


@pytest.mark.parametrize("method", ["dpo", "kto", "reward_model"])
def test_other_methods_are_held_too(method, llama):
    run = call(method, llama, defence="freeze:layers=0", **TWO)
    state = load_file(run.path / "model" / "model.safetensors")
    before = ftlab.model(llama).load().state_dict()
    first = [name for name in state if ".layers.0." in name]
    assert first and all(before[name].equal(state[name]) for name in first)


def test_no_layer_is_plain_sft_bit_for_bit(dropping):
    plain = call("sft", dropping, **TWO)
    assert weights(call("sft", dropping, defence="freeze:layers=none", **TWO)) == weights(plain)


def test_a_training_that_moves_nothing_is_still_an_error(llama):
    with raises_code("no_weight_moved"):
        call("sft", llama, steps=2, learning_rate=1e-30, defence="freeze")


def test_a_resumed_training_is_held_as_one_never_stopped(llama, often, monkeypatch, trained):
    settings = dict(defence="freeze:layers=0", steps=4, learning_rate=2e-3)
    whole = trained(call, "sft", llama, n=16, **settings)
    interrupt(2, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        call("sft", llama, n=16, **settings)
    assert weights(call("sft", llama, n=16, **settings)) == weights(whole)


def test_mistakes_have_codes_before_anything_is_trained(llama, runs_folder):
    for text, code in {
        "freeze:layers=9": "unknown_layer",
        "freeze:layers=1-0": "unknown_layer",
        "freeze:layers=middle": "wrong_setting",
        "freeze:embeddings=perhaps": "wrong_setting",
    }.items():
        with raises_code(code):
            training.sft(llama, sums(4), defence=text)
    with raises_code("no_trainable_parameter"):
        training.dpo(llama, pairs(4), defence="freeze:layers=all", adapter="lora")
    assert not runs_folder.exists()
