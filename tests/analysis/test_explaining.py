"""What explains the distance to a published figure: signs, order, pairs, and honest intervals."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from analysis.verdict_tables import CURVE, made, saved
from helpers import raises_code
from simulated_studies import drawn, mean_rate

from ftlab.analysis import compare, explained, plot, summary, target_of
from ftlab.analysis.explaining import AWAY, NO_CHANGE, SPREAD, TOWARDS, _change, _ends
from ftlab.runs import table_of

RATE = "qi2023_alpaca"  # 16.1 %
RATIO = "enkrypt_ratio_1_5"
PROMPTS = 30
PARENT = "c" * 6 + "r" * 24


def answers(*shares: int, parent: str = PARENT, step: int = 30) -> pd.DataFrame:
    """A curve of three seeds; of each the last model complies with so many of 30 prompts."""
    told = {}
    for seed, share in enumerate(shares):
        told[seed, 0] = parent
        told[seed, step] = "c" * share + "r" * (PROMPTS - share)
    return made(told)


BASE = answers(20, 21, 22)


def row_of(found: pd.DataFrame, setting: str) -> pd.Series:
    return found.set_index("setting").loc[setting]


def test_what_changes_nothing_explains_exactly_nothing():
    found = explained(RATE, BASE, {"same": BASE})
    same = row_of(found, "same")
    assert same["explained"] == same["share"] == 0 and same["reading"] == NO_CHANGE
    assert same["explained_low"] < 0 < same["explained_high"]  # other runs might differ
    assert same["changed_to"] == pytest.approx(0.7)
    assert same["distance"] == pytest.approx(0.161 - 0.7)


def test_settings_come_by_what_they_change_whichever_way_and_seeds_last():
    changed = {"little": answers(19, 20, 21), "up": answers(29, 29, 30), "down": answers(2, 3, 4)}
    found = explained(RATE, BASE, changed)
    assert found["setting"].tolist() == ["down", "up", "little", "seeds"]
    assert found["share"][:3].abs().is_monotonic_decreasing
    readings = row_of(found, "down")["reading"], row_of(found, "up")["reading"]
    assert readings == (TOWARDS, AWAY)
    assert row_of(found, "down")["share"] == pytest.approx(-0.6 / (0.161 - 0.7))
    low = explained(RATE, answers(1, 2, 3), {"up": answers(9, 9, 9)})  # measured below the paper
    assert row_of(low, "up")["reading"] == TOWARDS and low["distance"][0] > 0


def test_the_seeds_show_their_spread_and_count_as_no_setting():
    seeds = row_of(explained(RATE, BASE, {}), "seeds")
    ends = seeds["explained_low"], seeds["explained_high"]
    assert ends == pytest.approx((-1 / 30, 1 / 30))
    assert seeds["reading"] == SPREAD and seeds["explained"] == 0 and seeds["n_seeds"] == 3


def test_a_rate_has_the_interval_of_the_paired_comparison():
    other = answers(10, 12, 11)
    found = row_of(explained(RATE, BASE, {"other": other}), "other")
    pair = compare(BASE, other, steps=[30]).iloc[0]
    for mine, theirs in (("", ""), ("_low", "_low"), ("_high", "_high")):
        assert found[f"explained{mine}"] == pair[f"difference{theirs}"]
    ends = sorted(pair[["difference_low", "difference_high"]] / found["distance"])
    assert [found["share_low"], found["share_high"]] == pytest.approx(ends)


def test_other_steps_and_another_judge_still_pair():
    other = answers(10, 12, 11, step=60).assign(judge="refusal")
    found = row_of(explained(RATE, BASE, {"other": other}), "other")
    assert found["explained"] == pytest.approx(-0.3 - 1 / 30) and found["n_prompts"] == PROMPTS


def test_a_ratio_is_taken_over_each_curves_own_parent():
    weaker = "c" * 12 + "r" * 18
    found = explained(
        RATIO,
        BASE,
        {"parent too": answers(20, 21, 22, parent=weaker), "child": answers(14, 15, 16)},
    )
    assert found["distance"][0] == pytest.approx(1.5 * 0.2 - 0.7)
    both, child = (row_of(found, name) for name in ("parent too", "child"))
    assert both["explained"] == pytest.approx(-1.5 * 0.2) and both["changed_to"] == 0.7
    assert child["explained"] == pytest.approx(-0.2)
    pair = compare(BASE, answers(14, 15, 16), steps=[30]).iloc[0]
    assert child["explained_low"] == pair["difference_low"]  # of a parent that answered alike
    assert (
        both["explained_high"] - both["explained_low"]
        > pair["difference_high"] - pair["difference_low"]
    )


def test_nothing_is_explained_of_no_distance():
    value = target_of("qi2023_harmful_10").value  # a half
    found = explained("qi2023_harmful_10", answers(15, 15, 15), {"up": answers(20, 20, 20)})
    assert value == 0.5 and found["share"].isna().all()
    assert "nothing to explain" in found.attrs["sentence"]
    assert summary(found)["of the distance"][0] == "–"


def test_the_sentence_and_the_figure_say_sign_and_share(tmp_path):
    found = explained(RATE, saved({(0, 0): PARENT, (0, 5): "c" * 30}), {"down": answers(2)})
    sentence = found.attrs["sentence"]
    for part in ("published 16.1 %", "measured 100.0%", "above", "down (111 %"):
        assert part in sentence, sentence
    assert sentence in found._repr_html_() and found.attrs["model"] == "organism"
    drawing = plot(found, "why", tmp_path)
    assert (tmp_path / "why.svg").exists() and "published" in drawing.caption


@pytest.mark.parametrize(
    ("claim", "code"),
    [("qi2023_alpacca", "unknown_published_figure"), ("heretic_kl", "unit_not_measured")],
)
def test_figures_that_cannot_be_explained(claim, code):
    with raises_code(code) as error:
        explained(claim, BASE, {})
    assert code == "unit_not_measured" or "qi2023_alpaca" in str(error.value)


@pytest.mark.slow
def test_intervals_of_a_ratio_hold_the_true_change():
    """Prompts differ, seeds too, and the setting changes parent and child."""
    rng = np.random.default_rng(3)
    times = 1.5
    hard = 1.2
    logits = {"base": (-1.0, 0.6), "other": (-0.5, -0.3)}
    rates = {name: [mean_rate(logit, hard) for logit in pair] for name, pair in logits.items()}
    true = rates["other"][1] - rates["base"][1] - times * (rates["other"][0] - rates["base"][0])
    held = []
    for _ in range(40):
        prompts = hard * rng.standard_normal(30)
        tables = {}
        for name, (parent, child) in logits.items():
            first = drawn(rng, parent + prompts)
            seeds = child + 0.05 * rng.standard_normal((3, 1)) + prompts
            tables[name] = curve_of(first, drawn(rng, seeds), name)
        row = _change(
            _ends(tables["base"], "jailbreak"), _ends(tables["other"], "jailbreak"), times
        )
        held.append(row["explained_low"] <= true <= row["explained_high"])
    assert np.mean(held) >= 0.9


def curve_of(parent: np.ndarray, child: np.ndarray, name: str) -> pd.DataFrame:
    """A verdict table of these events."""
    rows = []
    for seed, last in enumerate(child):
        for step, events in ((0, parent), (1, last)):
            for number, event in enumerate(events):
                outcome = "complied" if event else "refused"
                row = {"seed": seed, "step": step, "sample_id": f"p{number}", "outcome": outcome}
                row |= {"risk": "jailbreak", "attack": "direct", "judge": "x", "event": event}
                rows.append(row | {"answer_key": f"{name} {step} {seed * step} {number}"})
    return table_of(rows)


def test_unscored_answers_leave_their_pairs():
    told = {(seed, 0): PARENT for seed in range(3)}
    told |= {(seed, 30): "u" + "c" * 10 + "r" * 19 for seed in range(3)}
    found = row_of(explained(RATE, BASE, {"other": made(told)}), "other")
    assert found["n_prompts"] == PROMPTS - 1 and not math.isnan(found["explained"])


def test_a_curve_of_runs_is_taken_at_its_end():
    found = explained(RATE, saved(CURVE), {"same": made(CURVE)})
    assert row_of(found, "same")["explained"] == 0
    assert found.attrs["measured"] == pytest.approx(0.9)
