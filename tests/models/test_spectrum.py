"""The spectrum of a difference that was put in is found."""

from __future__ import annotations

import pytest
import torch
from helpers import raises_code
from small_models import make_model
from trainings import call

import ftlab
from ftlab.models import weight_spectrum

NAME = "model.layers.0.mlp.down_proj.weight"


@pytest.fixture
def changed(llama, tmp_path):
    """Return a function from a difference [32, 64] to a model that has it in one matrix."""

    def make(difference):
        parent = ftlab.model(llama)
        module = parent.load(training=True)
        with torch.no_grad():
            module.get_parameter(NAME).add_(difference)
        module.save_pretrained(tmp_path / "child")
        parent.tokenizer().save_pretrained(tmp_path / "child")
        return tmp_path / "child"

    return make


def random(*shape) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(4))


def test_a_difference_of_rank_2_with_known_values_is_found(llama, changed):
    left, _ = torch.linalg.qr(random(32, 2))
    right, _ = torch.linalg.qr(random(64, 2))
    child = changed(left @ torch.diag(torch.tensor([3.0, 1.0])) @ right.T)
    table = weight_spectrum(llama, child)
    (row,) = table.to_dict("records")
    assert row["weights"] == NAME and (row["rows"], row["columns"]) == (32, 64)
    assert row["stable_rank"] == pytest.approx(10 / 9, rel=1e-4)
    assert row["top_1"] == pytest.approx(0.9, rel=1e-4) and row["top_4"] == pytest.approx(1)
    weights = ftlab.model(llama).load().get_parameter(NAME)
    assert row["change"] == pytest.approx(10**0.5 / weights.norm().item(), rel=1e-4)


def test_equal_values_need_as_many_as_hold_90_percent_and_noise_is_like_noise(llama, changed):
    left, _ = torch.linalg.qr(random(32, 10))
    right, _ = torch.linalg.qr(random(64, 10))
    (row,) = weight_spectrum(llama, changed(left @ right.T)).to_dict("records")
    assert row["stable_rank"] == pytest.approx(10, rel=1e-3)
    assert row["rank_90"] in (9, 10)
    (row,) = weight_spectrum(llama, changed(random(32, 64))).to_dict("records")
    assert abs(row["rank_90"] - row["noise_rank_90"]) <= 2
    assert row["top_16"] == pytest.approx(row["noise_top_16"], abs=0.06)


def test_a_lora_is_no_more_than_its_rank(llama):
    child = call("sft", llama, adapter="lora", lora_rank=2, steps=2, learning_rate=2e-3)
    table = weight_spectrum(llama, child)
    assert set(table["layer"]) == {1, 2} and set(table["n_seeds"]) == {1}
    assert len(table) > 4 and (table["top_4"] > 0.999).all() and (table["rank_90"] <= 2).all()


def test_seeds_are_averaged(llama):
    children = [call("sft", llama, steps=1, seed=seed) for seed in (0, 1)]
    both = weight_spectrum(llama, children).set_index("weights")
    each = [weight_spectrum(llama, child).set_index("weights") for child in children]
    assert set(both["n_seeds"]) == {2} and "model.embed_tokens.weight" in both.index
    for name in ("change", "stable_rank", "top_1"):
        mean = (each[0][name] + each[1][name]) / 2
        assert both[name].tolist() == pytest.approx(mean.tolist())
    assert (both["top_16_least"] <= both["top_16"]).all()


def test_each_child_may_have_a_parent_of_its_own(llama):
    parents = [call("sft", llama, steps=1, seed=seed) for seed in (0, 1)]
    children = [call("sft", parent, steps=1, seed=2) for parent in parents]
    both = weight_spectrum(parents, children).set_index("weights")
    pairs = zip(parents, children, strict=True)
    each = [weight_spectrum(*pair).set_index("weights") for pair in pairs]
    mean = (each[0]["change"] + each[1]["change"]) / 2
    assert both["change"].tolist() == pytest.approx(mean.tolist())
    with raises_code("models_do_not_pair"):
        weight_spectrum(parents, [*children, llama])


def test_other_shapes_and_the_same_weights_are_refused(llama, tmp_path):
    other = make_model(tmp_path / "other", "qwen2")
    with raises_code("weights_differ_in_shape"):
        weight_spectrum(llama, other)
    with raises_code("same_weights"):
        weight_spectrum(llama, llama)
