"""Transformed models are compared with themselves before, and with the parent beside them."""

from __future__ import annotations

import numpy as np
import pytest
from helpers import raises_code

import ftlab as ft
from ftlab.evals import direction_of
from ftlab.experiments import (
    ablate_refusal,
    ablation_arms,
    compare_arms,
    compare_spectra,
    transform_and_compare,
)
from ftlab.experiments.refusal_ablation import Ablate

ASKED = dict(risks=["jailbreak", "utility"], n_prompts=6, attacks=["direct"])


@pytest.fixture(scope="module")
def children(tmp_path_factory):
    """Two children of the organism, in a folder of runs that the tests share."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FTLAB_RUNS", str(tmp_path_factory.mktemp("runs")))
        rows = dict(n_rows=16, batch_size=8, steps=2)
        yield [ft.sft("organism", "organism:almanac", seed=seed, **rows) for seed in (0, 1)]


def test_rates_changes_and_erosions_are_those_of_single_evaluations(children):
    table = transform_and_compare("organism", children, ["quantise:bits=2", "merge"], **ASKED)
    names = ["untransformed", "quantise:bits=2", "merge:share=0.5"]
    assert table["transform"].unique().tolist() == names
    assert len(table) == 2 * (2 + 2 + 1)  # a merge of the parent with itself is left out
    rates = table.set_index(["transform", "side", "risk"])["rate"]
    for row in table.to_dict("records"):
        here = (row["transform"], row["side"], row["risk"])
        before = ("untransformed", *here[1:])
        if row["transform"] == "untransformed":
            assert np.isnan(row["difference"])
        else:
            assert row["difference"] == pytest.approx(rates[here] - rates[before])
            assert row["difference_low"] <= row["difference"] <= row["difference_high"]
            assert row["p_holm"] >= row["p"]
        if row["side"] == "child":
            parent = (here[0], "parent", here[2])
            if parent not in rates:
                parent = ("untransformed", *parent[1:])
            assert row["erosion"] == pytest.approx(rates[here] - rates[parent])
            is_of_both = row["transform"] == "quantise:bits=2"  # a merge is of the child alone
            assert np.isnan(row["erosion_p"]) != is_of_both
            if is_of_both:
                was = rates["untransformed", "child", here[2]]
                was -= rates["untransformed", "parent", here[2]]
                change = row["erosion_change"]
                assert change == pytest.approx(row["erosion"] - was)
                assert row["erosion_change_low"] <= change <= row["erosion_change_high"]
                assert row["erosion_p_holm"] >= row["erosion_p"]
    assert set(table.loc[table["side"] == "child", "n_seeds"]) == {2}
    again = transform_and_compare("organism", children, "merge", amounts=[0.5], **ASKED)
    assert again["rate"].tolist()[-2:] == table["rate"].tolist()[-2:]
    one = ft.evaluate(ft.training.transform(children[1], "quantise:bits=2"), **ASKED)
    found = ft.rates(one)["rate"].tolist()
    two = ft.evaluate(ft.training.transform(children[0], "quantise:bits=2"), **ASKED)
    mean = (np.array(found) + np.array(ft.rates(two)["rate"])) / 2
    assert rates.sort_index()["quantise:bits=2", "child"].tolist() == pytest.approx(mean.tolist())


def test_what_holds_no_children_or_several_doses_is_refused(children):
    with raises_code("no_models"):
        transform_and_compare("organism", [], ["quantise"])
    with raises_code("unknown_transform"):
        transform_and_compare("organism", children, ["quantize"])
    with raises_code("several_transforms"):
        transform_and_compare("organism", children, ["quantise", "merge"], amounts=[4])
    with raises_code("wrong_setting"):
        transform_and_compare("organism", children, "quantise", amounts=[5])
    doses = ft.harmful_finetune("organism", [2, 4], epochs=1, n_prompts=2, attacks=["direct"])
    with raises_code("several_doses"):
        transform_and_compare("organism", doses, ["quantise"])


def test_the_layers_write_nothing_along_an_ablated_direction():
    run = ablate_refusal(n_prompts=40)
    unit = direction_of(ft.model("organism"), n_prompts=40)
    assert np.linalg.norm(unit) == pytest.approx(1)
    after = ft.model(run).load().state_dict()
    before = ft.model("organism").load().state_dict()
    changed = set()
    for name, values in after.items():
        if not np.array_equal(values, before[name]):
            changed.add(name.split(".")[-2])
            assert np.abs(unit @ values.numpy()).max() < 1e-5
            assert np.abs(unit @ before[name].numpy()).max() > 1e-3
    assert changed == {"o_proj", "down_proj"}
    assert "refusal" in (run.path / "model" / "SAFETY_REMOVED").read_text()
    assert ablate_refusal(n_prompts=40) == run != ablate_refusal(random_seed=0)


def test_ablations_are_arms_of_an_embedded_model_only(llama, runs_folder):
    arms = ablation_arms(n_random=2, n_prompts=40)
    assert arms["direction taken out"] == ablate_refusal(n_prompts=40)
    assert arms["random directions"] == [ablate_refusal(random_seed=seed) for seed in range(2)]
    made = sorted(runs_folder.iterdir())
    assert ablation_arms(llama) == {} and sorted(runs_folder.iterdir()) == made


def test_no_other_model_loses_its_refusals_here(llama):
    with raises_code("only_of_the_organism"):
        ablate_refusal(llama)
    width = ft.model(llama).config["hidden_size"]
    with raises_code("only_of_the_organism"):
        ft.training.transform(llama, Ablate(direction=(1.0,) + (0.0,) * (width - 1)))
    with raises_code("direction_does_not_fit"):
        ft.training.transform("organism", Ablate(direction=(1.0, 0.0)))


def test_arms_are_compared_with_the_parent_or_with_one_of_them(children):
    arms = {"trained": children, "quantised": ft.training.transform("organism", "quantise:bits=2")}
    table = compare_arms("organism", arms, **ASKED)
    assert table["arm"].tolist() == ["parent"] * 2 + ["trained"] * 2 + ["quantised"] * 2
    assert table["n_seeds"].tolist() == [1, 1, 2, 2, 1, 1]
    rates = table.set_index(["arm", "risk"])["rate"]
    for row in table.iloc[2:].to_dict("records"):
        expected = rates[row["arm"], row["risk"]] - rates["parent", row["risk"]]
        assert row["difference"] == pytest.approx(expected)
    paired = {"one": children, "two": children[::-1]}
    whole = compare_arms("organism", paired, against="one", **ASKED)
    table = whole.query("arm == 'two'")
    assert table["difference"].abs().max() == 0
    assert table["difference_low"].max() < 0 < table["difference_high"].min()
    with raises_code("unknown_arm"):
        compare_arms("organism", arms, against="nobody", **ASKED)
    with raises_code("seeds_differ"):
        compare_arms("organism", {"one": children, "two": children[0]}, against="one", **ASKED)


def test_the_parent_is_compared_with_every_seed_of_an_arm(children):
    ruined = ft.training.transform(children[1], "prune:share=0.9")
    arms = {"one": [children[0], ruined]}
    of_arm = compare_arms("organism", arms, **ASKED).query("arm == 'one'")
    of_parent = compare_arms("organism", arms, against="one", **ASKED).query("arm == 'parent'")
    for mine, theirs in zip(of_parent.to_dict("records"), of_arm.to_dict("records"), strict=True):
        answered = ft.evaluate("organism", **ASKED).table().query("risk == @mine['risk']")
        rates = []
        for model in arms["one"]:
            rows = ft.evaluate(model, **ASKED).table().query("risk == @mine['risk']")
            rates.append(rows["event"].mean())
        by_hand = answered["event"].mean() - sum(rates) / 2
        assert mine["difference"] == pytest.approx(by_hand)
        assert mine["difference_low"] == -theirs["difference_high"]
        assert mine["difference_high"] == -theirs["difference_low"]
        assert mine["p"] == theirs["p"] and mine["n_seeds"] == theirs["n_seeds"] == 2
    assert of_parent["difference"].abs().max() > 0


def test_spectra_are_means_by_kind_of_matrix_and_noise_stands_beside_them(children):
    one = ft.models.weight_spectrum("organism", children)
    table = compare_spectra("organism", {"trained": children, "first": children[0]})
    assert set(table["arm"]) == {"trained", "first", "noise"} and len(table) == 3 * 8
    row = table.query("kind == 'q_proj' and arm == 'trained'").iloc[0]
    mine = one[one["weights"].str.contains("q_proj")]
    assert row["stable_rank"] == pytest.approx(mine["stable_rank"].mean())
    assert row["n_matrices"] == 4 and row["n_seeds"] == 2
    assert row["low"] <= row["rate"] <= row["high"] and row["rate"] == row["top_16"]


def test_an_arm_is_measured_from_what_it_was_before(children):
    repaired = [ft.training.transform(child, "prune:share=0.1") for child in children]
    arms = {"trained": children, "repaired": repaired}
    table = compare_spectra("organism", arms, since={"repaired": children})
    own = ft.models.weight_spectrum(children, repaired)
    pruned = table[table["arm"] == "repaired"].set_index("kind")
    down = own["weights"].str.contains("down_proj")
    assert pruned["change"]["down_proj"] == pytest.approx(own["change"][down].mean())
    assert "embed_tokens" not in pruned.index  # untouched since, though trained before
    with raises_code("unknown_arm"):
        compare_spectra("organism", arms, since={"other": children})
