"""Tables of numbers against numbers known by hand, and against those of version 0.3."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from analysis.verdict_tables import CURVE, LETTERS, event, made, rows, saved
from helpers import raises_code

from ftlab import analysis, stats
from ftlab._core.errors import UsageError
from ftlab._core.types import Outcome
from ftlab.analysis import answers, compare, first_step, outcome_shares, rates, summary
from ftlab.runs import start, table_of

GOLDEN = Path(__file__).parents[1] / "fixtures" / "tables_0_3.json"


@pytest.fixture(scope="module")
def golden() -> tuple[pd.DataFrame, dict]:
    """A verdict table, and what version 0.3 computed of the same verdicts."""
    content = json.loads(GOLDEN.read_text())
    records = []
    for key, letters in content["answers"].items():
        seed, step, risk, attack = key.split("|")
        wrapped = "Wrap {q} > " if attack == "templates" else ""
        for k, letter in enumerate(letters):
            row = {"seed": int(seed), "step": int(step), "risk": risk, "attack": attack}
            row |= {"sample_id": f"{risk}-{k:02d}", "category": "ab"[k % 2], "judge": "keywords"}
            row |= {"wording": f"{wrapped}wording {k % 4}", "outcome": LETTERS[letter]}
            if risk == "bias":  # version 0.3 had this in the judge's column
                row["decided_by"] = "rule of bias"
            records.append(row | {"event": event(letter)})
    return table_of(records), content["expected"]


INTERVALS = {"ratio_low", "ratio_high", "difference_low", "difference_high"}
MENDED = {  # columns that version 0.3 computed otherwise: CHANGELOG of 0.4
    "compare": {*INTERVALS, "mcnemar_holm"},
    "compare over wordings": {*INTERVALS, "mcnemar_holm"},
    "crossing": {"low", "high"},
    "no refusal": {"step", "low", "high", "reached", "n_prompts", "refusal_rate_below"},
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "computed"),
    [
        ("rates", lambda t: rates(t)),
        (
            "rates by category over wordings",
            lambda t: rates(t, by=["risk", "category"], cluster="wording"),
        ),
        ("refused", lambda t: rates(t, by=["risk", "attack"], outcome="refused")),
        ("by seed", lambda t: rates(t, per_seed=True)),
        ("compare", lambda t: compare(t)),
        (
            "compare over wordings",
            lambda t: compare(t, by=["risk", "category"], cluster="wording"),
        ),
        ("crossing", lambda t: first_step(t, "ratio >= 1.5")),
        ("no refusal", lambda t: first_step(t, "no refusal")),
        ("outcomes", lambda t: outcome_shares(t)),
    ],
)
def test_numbers_are_those_of_version_0_3(golden, name, computed):
    table, expected = golden
    found = computed(table)
    old = pd.DataFrame(expected[name]).replace({"nan": math.nan, "inf": math.inf})
    if name == "outcomes":  # in another order
        keys = ["step", "outcome"]
        old = old.sort_values(keys, ignore_index=True)
        found = found.sort_values(keys, ignore_index=True)
    for column in old.columns.difference(MENDED.get(name, ())):
        if column in ("step", "low", "high") or old[column].dtype.kind in "fi":
            np.testing.assert_allclose(
                found[column].astype(float), old[column].astype(float), rtol=1e-12, atol=1e-15
            )
        else:
            assert found[column].astype(str).tolist() == old[column].astype(str).tolist(), column


def test_rates_over_steps_and_seeds():
    found = rates(made(CURVE))
    assert found["step"].tolist() == [0, 10, 30]
    assert found["rate"].tolist() == pytest.approx([0.2, 0.5, 0.9])
    counts = found[["complied", "complied_wrong", "refused", "incoherent", "unparsed"]]
    # The parent's answers count once.
    assert counts.values.tolist() == [[2, 0, 8, 0, 0], [10, 0, 10, 0, 0], [18, 1, 0, 1, 0]]
    assert (found["n_prompts"] == 10).all() and (found["n_seeds"] == 2).all()
    assert ((found["low"] <= found["low_pointwise"]) & (found["high"] > found["rate"])).all()


def test_a_rate_of_one_run_at_one_step_is_a_wilson_interval():
    found = rates(made({(0, 0): "rrrrrrrrcc"})).iloc[0]
    n, p, z = 10, 0.2, 1.959964
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    ends = (middle - half, middle + half)
    assert (found["rate"], found["low"], found["high"]) == pytest.approx((p, *ends), abs=1e-6)


def test_attacks_on_one_prompt_are_one_cluster():
    one = made({(0, 0): "rrrrrrrrcc"})
    two = pd.concat([one, one.assign(attack="templates")])
    single, double = (rates(table).iloc[0] for table in (one, two))
    assert double["rate"] == single["rate"]
    assert double["high"] - double["low"] > 0.9 * (single["high"] - single["low"])


@pytest.mark.slow
def test_wordings_as_clusters_widen_the_interval_and_keep_the_estimate():
    # All prompts of a wording answer alike, so 40 prompts are no more than 4.
    answers = {0: "rrrr" * 10, 5: "ccrr" * 10}
    table = made({(seed, step): answers[step] for seed in range(3) for step in answers})
    clusters = ("sample_id", "wording")
    by_prompt, by_wording = (rates(table, cluster=name).iloc[1] for name in clusters)
    assert by_prompt["rate"] == by_wording["rate"] == 0.5
    width = by_prompt["high"] - by_prompt["low"]
    assert by_wording["high"] - by_wording["low"] > 1.5 * width
    counts = [compare(table, cluster=name)["clusters"].iloc[0] for name in clusters]
    assert counts == [40, 4]


def test_unscored_answers_leave_the_rate_and_are_counted():
    found = rates(made({(0, 0): "cccrrruuux"})).iloc[0]
    assert (found["rate"], found["n_prompts"]) == (0.5, 6)
    assert (found["unparsed"], found["error"]) == (3, 1)
    nothing = rates(made({(0, 0): "xxu"})).iloc[0]
    assert math.isnan(nothing["rate"]) and nothing["n_answers"] == 3


def test_rates_of_chosen_steps():
    assert rates(made(CURVE), steps=[0, -1])["step"].tolist() == [0, 30]
    assert rates(made(CURVE), steps=[10])["step"].tolist() == [10]
    with raises_code("step_not_measured"):
        rates(made(CURVE), steps=[20])


@pytest.mark.slow
def test_each_judge_has_its_own_rows_the_first_one_first():
    first = made(CURVE, judge="refusal")
    second = made({key: letters.replace("w", "c") for key, letters in CURVE.items()}, judge="api")
    both = pd.concat([first, second], ignore_index=True)
    found = rates(both)
    assert found["judge"].tolist() == ["refusal"] * 3 + ["api"] * 3
    columns = ["step", "rate", "low", "high"]
    assert found[columns][:3].equals(rates(first)[columns])
    alone = rates(both, judge="api")
    assert alone[columns].equals(found[3:].reset_index(drop=True)[columns])
    assert compare(both)["judge"].tolist() == ["refusal"] * 2
    assert compare(both, judge="api")["child"].tolist() == [0.5, 0.95]
    with raises_code("judge_not_in_table"):
        compare(both, judge="keywords")


def test_a_rule_that_decided_is_named():
    found = rates(made(CURVE, risk="bias", decided_by="rule of bias"))
    assert set(found["judged_by"]) == {"rule of bias"} and set(found["judge"]) == {"keywords"}


def test_compare_within_a_curve():
    found = compare(made(CURVE)).set_index("step").loc[10]
    values = (found["parent"], found["child"], found["ratio"], found["difference"])
    assert values == pytest.approx((0.2, 0.5, 2.5, 0.3))
    counts = found[["gained", "lost", "both", "neither", "unscored"]].tolist()
    assert counts == [6, 0, 4, 10, 0]
    assert found["mcnemar_p"] == pytest.approx(0.5)  # the larger of both runs: 2 / 2**2
    assert compare(made(CURVE), steps=[30])["step"].tolist() == [30]
    assert compare(made(CURVE), steps=[-1])["step"].tolist() == [30]


def test_compare_two_evaluations():
    before, after = made({(0, 0): "rrrrrrrrcc"}), made({(0, 0): "ccccrrrrcc"})
    found = compare(before, after).iloc[0]
    old = np.array([0] * 8 + [1] * 2)
    known = stats.paired(old, np.array([1] * 4 + [0] * 4 + [1] * 2))
    for name in ("ratio", "ratio_low", "difference_low", "difference_high"):
        assert found[name] == pytest.approx(getattr(known, name))
    assert found["mcnemar_p"] == pytest.approx(2 / 2**4)
    shuffled = after.sample(frac=1, random_state=0)
    assert compare(before, shuffled).iloc[0].equals(found)  # paired by id, not by place


def test_compare_drops_unscored_pairs_and_counts_them():
    found = compare(made({(0, 0): "rrrrrrrrcu"}), made({(0, 0): "uccccccccc"})).iloc[0]
    assert (found["n_prompts"], found["unscored"]) == (8, 2)
    assert (found["parent"], found["child"]) == (1 / 8, 1.0)


def test_compare_refuses_what_does_not_pair():
    with raises_code("prompts_differ"):
        compare(made({(0, 0): "rrr"}), made({(0, 0): "cc"}))
    with raises_code("prompts_differ"):
        compare(made({(0, 0): "rrr"}), made({(0, 0): "ccc"}, attack="prefill"))
    with raises_code("nothing_to_compare"):
        compare(made({(0, 0): "rrr"}))
    with raises_code("judge_not_in_table"):
        compare(made({(0, 0): "rrr"}), made({(0, 0): "ccc"}, judge="other"))
    with raises_code("verdicts_repeated"):
        compare(pd.concat([made(CURVE), made(CURVE)]))


def test_compare_refuses_evaluations_with_other_settings():
    runs = []
    for system in ("", "Be kind."):
        run = start("evaluate", "x", {"evaluation": {"system": system, "n_prompts": len(system)}})
        run.append("verdicts.jsonl", [row | {"key": "k"} for row in rows({(0, 0): "rc"})])
        run.complete(model="organism")
        runs.append(run)
    with raises_code("evaluations_differ") as error:
        compare(*runs)
    assert error.value.details["fields"] == ["system"]
    assert compare(runs[0], runs[0])["difference"].tolist() == [0.0]


def test_a_parent_without_events_gives_a_lower_bound():
    found = compare(made({(0, 0): "r" * 10}), made({(0, 0): "c" * 6 + "r" * 4})).iloc[0]
    assert found["ratio"] == found["ratio_high"] == math.inf
    assert 0 < found["ratio_low"] < math.inf


def test_a_ratio_is_reached_between_steps():
    found = first_step(made(CURVE), "ratio >= 1.5").iloc[0]
    assert found["step"] == pytest.approx(10 / 3)  # 0.3 between 0.2 and 0.5
    assert found["per_seed"] == pytest.approx([2.5, 5.0])
    assert (found["low"], found["high"]) == (0, 30)
    assert first_step(made(CURVE), "ratio > 4.9").iloc[0]["step"] == math.inf
    with raises_code("no_parent"):
        first_step(made(CURVE).query("step > 0"))
    with raises_code("unknown_condition"):
        first_step(made(CURVE), "harmless")


def test_no_refusal_and_what_it_still_allows():
    found = first_step(made(CURVE), "no refusal").iloc[0]
    assert found["attack"] == "direct" and found["step"] == found["last_step"] == 30
    assert (found["reached"], found["n_prompts"], found["answers_at_end"]) == (1.0, 10, 20)
    assert (found["low"], found["high"]) == (10, math.inf)  # ten prompts leave 5 % open
    other_wordings = stats.rate(np.zeros(4), confidence=0.9).high  # one-sided 95 %
    assert found["refusal_rate_below"] == pytest.approx(other_wordings)
    never = first_step(made({**CURVE, (1, 30): "rccccccccc"}), "no refusal").iloc[0]
    assert (never["reached"], never["refusals_at_end"]) == (0.5, 1)
    assert 0.05 < never["refusal_rate_below"] < 1
    assert first_step(made(CURVE), "refused < 60 %").iloc[0]["per_seed"] == [10, 30]


def test_the_step_of_few_refusals_does_not_depend_on_the_number_of_prompts():
    for n in (100, 400):
        answers = {
            (0, step): "r" * int(n * share) + "c" * (n - int(n * share))
            for step, share in ((0, 0.9), (10, 0.3), (30, 0.02))
        }
        found = first_step(made(answers, wording=""), "refused < 5 %").iloc[0]
        assert (found["step"], found["low"]) == (30, 10)


def test_an_unscored_answer_is_no_evidence_that_nothing_is_refused():
    found = first_step(made({(0, 0): "rrrr", (0, 5): "ccuu"}), "no refusal").iloc[0]
    assert (found["n_prompts"], found["answers_at_end"]) == (2, 2)
    two = stats.rate(np.zeros(2), confidence=0.9).high
    assert found["refusal_rate_below"] == pytest.approx(two)
    none = first_step(made({(0, 0): "rrrr", (0, 5): "uuuu"}), "no refusal").iloc[0]
    assert none["n_prompts"] == 0 and none["step"] == math.inf
    assert math.isnan(none["refusal_rate_below"])


def test_the_parents_unscored_answers_count_once():
    answers = {(seed, step): "rrru" for seed in range(3) for step in (0, 5)}
    assert first_step(made(answers), "no refusal").iloc[0]["unscored"] == 1 + 3


def test_curves_that_stopped_early_count_where_every_seed_was_measured():
    stopped = made({key: letters for key, letters in CURVE.items() if key != (0, 30)})
    assert rates(stopped)["step"].tolist() == [0, 10]
    assert compare(stopped)["step"].tolist() == [10]
    assert first_step(stopped).iloc[0]["step"] == pytest.approx(10 / 3)


def test_outcome_shares_add_up():
    found = outcome_shares(made(CURVE))
    assert found.groupby("step")["share"].sum().tolist() == pytest.approx([1, 1, 1])
    assert len(found) == 3 * len(Outcome)
    shares = found.set_index(["step", "outcome"])["share"]
    assert shares[30, "complied"] == 0.9 and shares[30, "incoherent"] == 0.05
    assert shares[0, "refused"] == 0.8
    assert outcome_shares(made(CURVE), attack="prefill").empty


def test_doses_are_never_mixed():
    ten = made({(0, 0): "rrrr", (0, 5): "cccr"}, examples=10)
    fifty = made({(0, 0): "rrrr", (0, 5): "crrr"}, examples=50)
    doses = pd.concat([ten, fifty], ignore_index=True)
    found = rates(doses, by="examples").set_index(["examples", "step"])["rate"]
    assert found.to_dict() == {(10, 0): 0, (10, 5): 0.75, (50, 0): 0, (50, 5): 0.25}
    for function in (rates, compare, first_step, outcome_shares):
        with raises_code("several_doses"):
            function(doses)
    parent = made({(0, 0): "rrrr"})
    found = compare(parent, doses.query("step == 5"), by="examples")
    assert found["difference"].tolist() == [0.75, 0.25]


def test_wrong_tables_and_columns():
    for source in (made(CURVE).drop(columns=["event", "outcome"]), 5, "organism", {}, None):
        with raises_code("not_a_verdict_table"):
            rates(source)
    with raises_code("not_a_verdict_table") as error:
        answers(start("sft", "only-trained", {"n": 1}).complete())
    assert "only-trained" in str(error.value) and "columns" not in str(error.value)
    with raises_code("unknown_group"):
        rates(made(CURVE), by="flavour")
    with raises_code("unknown_cluster"):
        rates(made(CURVE), cluster="flavour")


def test_a_run_is_read_and_names_its_model():
    found = rates(saved(CURVE))
    assert found["rate"].tolist() == pytest.approx([0.2, 0.5, 0.9])
    assert found.attrs["model"] == "organism"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("table", "cells"),
    [
        (lambda: rates(made({(0, 0): "rrrrrrrrcc"})), {"step": 0, "rate": "20 % [6, 51]"}),
        (lambda: compare(made(CURVE), steps=[10]), {"p (Holm)": "0.051", "prompts": "10"}),
        (
            lambda: compare(made({(0, 0): "r" * 10}), made({(0, 0): "c" * 6 + "r" * 4})),
            {"p (Holm)": "0.031"},
        ),
        (
            lambda: pd.DataFrame(
                [{"step": math.inf, "low": math.inf, "high": math.inf, "reached": 0.0}]
            ),
            {"step": "never", "reached": "0 %"},
        ),
        (
            lambda: pd.DataFrame(
                [{"judge": "a", "n": 9, "kappa": 0.5, "kappa_low": 0.25, "kappa_high": math.inf}]
            ),
            {"kappa": "0.50 [0.25, no bound]", "n": "9"},
        ),
        (lambda: rates(made({(0, 0): "xxu"})), {"rate": "–"}),
    ],
)
def test_a_summary_is_short_and_has_no_empty_numbers(table, cells):
    short = summary(table())
    found = short.iloc[0].to_dict()
    assert {name: found[name] for name in cells} == cells
    assert len(found) <= 9
    assert not any(word in str(short.to_dict()) for word in ("nan", "inf"))


def test_a_summary_of_something_else_is_refused():
    with raises_code("nothing_to_summarise"):
        summary(pd.DataFrame({"step": [1]}))


def test_old_names_still_work():
    table = made(CURVE)
    assert analysis.by_seed(table, verdict="refused")["rate"].tolist()[:2] == [0.8, 0.4]
    assert analysis.crossing(table, ratio=2)["step"].tolist() == pytest.approx([20 / 3])
    assert analysis.no_refusal(table)["step"].tolist() == [30]
    found = analysis.before_after(table, by="risk")
    assert found["series"].tolist() == ["before", "after 30 steps"]
    assert found["rate"].tolist() == pytest.approx([0.2, 0.9])


# Two curves, answers, and how tables look


def test_two_curves_are_paired_step_by_step_over_shared_prompts_and_seeds():
    other = {place: letters[:8] for place, letters in CURVE.items()}
    other[0, 10] = "rrrrrrrr"
    other[2, 10] = other[2, 30] = other[2, 0] = "c" * 8
    found = compare(made(CURVE), made(other))
    assert found["step"].tolist() == [10, 30]
    assert found["n_prompts"].tolist() == [8, 8] and found["n_seeds"].tolist() == [2, 2]
    assert found["parent"].tolist() == pytest.approx([6 / 16, 15 / 16])
    assert found["child"].tolist() == pytest.approx([2 / 16, 15 / 16])
    assert "step" in summary(found)
    with raises_code("prompts_differ"):
        compare(made(CURVE), made(CURVE, risk="jailbreak", attack="prefill"))


def test_answers_before_stand_beside_answers_after_changed_first():
    found = answers(made(CURVE))
    assert found["changed"].tolist() == [True] * 17 + [False] * 3
    assert set(found["before"]) == {"refused", "complied"} and len(found) == 20
    first = found.iloc[0]
    assert (first["before"], first["after"], first["seed"]) == ("refused", "complied", 0)
    html = found._repr_html_()
    assert "<input" in html and Outcome.REFUSED.colour in html
    assert answers(made(CURVE), step=0).columns.tolist()[-1] == "before"
    pair = compare(made({(0, 0): "rr"}), made({(0, 0): "rc"}))
    assert pair.answers()["changed"].tolist() == [True, False]
    assert answers(made(CURVE), made(CURVE), step=10)["changed"].sum() == 0


def test_texts_are_shown_on_request_and_escaped():
    run = saved(CURVE, answer_key="a")
    member = run.members[0]
    member.append("answers.jsonl", [{"key": "a", "text": "<b>no"}])
    prompt = {"sample": {"id": "jailbreak-000"}, "attack": "direct"}
    member.append("prompts.jsonl", [prompt | {"messages": [{"role": "user", "content": "Why?"}]}])
    found = answers(run, text=True)
    assert "Why?" in set(found["question"]) and set(found["text_after"]) == {"<b>no"}
    assert "&lt;b&gt;no" in found._repr_html_() and "<b>" not in found._repr_html_()
    assert "text_after" not in answers(run)
    with raises_code("no_texts"):
        answers(made(CURVE), text=True)


def test_tables_look_like_their_summary_and_keep_their_numbers():
    nothing = {(0, 0): "rrrr", (0, 5): "ccrr", (1, 0): "rrrr", (1, 5): "crrr"}
    for found in (compare(made(nothing)), rates(made(nothing)), summary(compare(made(nothing)))):
        html = found._repr_html_()
        assert " % [" in html
        assert not any(f">{word}<" in html for word in ("nan", "NaN", "inf"))
        assert (
            type(found.raw) is pd.DataFrame and found.raw.filter(like="low").dtypes.eq(float).all()
        )
    assert "50 %" in rates(made(nothing), per_seed=True)._repr_html_()


@pytest.mark.parametrize("wrong", [5, None, "x", [1], {}, object()])
def test_what_is_no_table_is_a_sentence(wrong):
    for call in (rates, compare, answers, analysis.plot, summary):
        with pytest.raises(UsageError):
            call(wrong)
    if not isinstance(wrong, list) and wrong not in (None, {}):
        for options in ({"by": wrong}, {"steps": wrong}):
            with pytest.raises(UsageError):
                compare(made(CURVE), **options)


def test_other_questions_under_the_same_names_are_not_paired():
    asked = []
    for question, letters in (("Why?", "rc"), ("How?", "rr")):
        run = saved({(0, 0): letters}, "evaluate", answer_key="a")
        sample = {"id": "jailbreak-001", "messages": [{"role": "user", "content": question}]}
        run.members[0].append("prompts.jsonl", [{"sample": sample, "attack": "direct"}])
        asked.append(run)
    for call in (compare, answers):
        with raises_code("prompts_differ") as error:
            call(*asked)
        assert error.value.details["ids"] == ["jailbreak-001"]
    assert answers(asked[0], asked[0])["changed"].tolist() == [False] * 2


def test_curves_pair_over_shared_seeds_and_an_evaluation_with_every_seed():
    seeds = [made({place: CURVE[place] for place in CURVE if place[0] == seed}) for seed in (0, 1)]
    for call in (compare, answers):
        with raises_code("prompts_differ"):
            call(*seeds)
    assert set(answers(seeds[1], made(CURVE))["seed"]) == {1}
    assert len(answers(made({(0, 0): "rrrrrrrrcc"}), made(CURVE))) == 20
    late = made(CURVE).query("step == 30")
    assert compare(late, late)["lost"].tolist() == [0]
    with raises_code("prompts_differ"):
        compare(late.query("seed == 0"), late.query("seed == 1"))


def test_the_step_0_of_a_curve_is_no_later_step_of_an_evaluation():
    evaluation = made({(0, 0): "rrrrrrrrcc"})
    found = compare(evaluation, made(CURVE))
    assert found["step"].tolist() == summary(found)["step"].tolist() == [10, 30]
    assert found["child"].tolist() == compare(made(CURVE))["child"].tolist()
    assert "step" not in summary(compare(evaluation, evaluation))


def test_unscored_answers_are_seen_in_the_summary_only_where_there_are_any():
    parts = made({(0, 0): "rrrr", (0, 5): "ccuu"})
    for table, number in ((rates(parts), "2"), (compare(parts), "2"), (first_step(parts), "2")):
        assert summary(table)["unscored"].iloc[-1] == number
    for table in (rates(made(CURVE)), compare(made(CURVE)), first_step(made(CURVE))):
        assert "unscored" not in summary(table)


def test_truncated_answers_are_counted_and_seen_in_the_summary_only_where_there_are_any():
    # The parent's two copies are one answer.
    table = made({(0, 0): "rrrc", (1, 0): "rrrc", (0, 5): "ccrr", (1, 5): "cccc"})
    cut = table.assign(cut=table["outcome"] == "complied")
    assert rates(cut)["cut"].tolist() == [1, 6]
    assert compare(cut)["cut"].tolist() == [1 + 6]
    assert compare(cut, cut)["cut"].tolist() == [6 + 6]
    evaluation = cut.query("seed == 0 and step == 0")
    assert compare(evaluation, cut)["cut"].tolist() == [1 + 6]
    for found, numbers in ((rates(cut), ["1", "6"]), (compare(cut), ["7"])):
        assert summary(found)["truncated"].tolist() == numbers
    for found in (rates(table), compare(table)):
        assert not found["cut"].any() and "truncated" not in summary(found)


@pytest.mark.parametrize(
    ("letters", "share"),
    [
        ("c" * 299 + "r", "> 99 %"),
        ("r" * 299 + "c", "< 1 %"),
        ("c" * 300, "100 %"),
        ("r" * 300, "0 %"),
    ],
)
def test_all_and_none_are_said_only_where_they_are_exactly_so(letters, share):
    assert summary(rates(made({(0, 0): letters})))["rate"][0].startswith(f"{share} [")


def test_neither_of_two_curves_is_called_the_one_before():
    columns = summary(compare(made(CURVE), made(CURVE))).columns
    assert {"first", "second"} < set(columns) and not {"before", "after"} & set(columns)


def test_refusals_lost_and_harm_gained_are_two_numbers():
    parts = made({(0, 0): "rrrrrrpccc", (0, 5): "cciiirrccc"})
    found = compare(parts).iloc[0]
    values = found[["parent", "child", "difference", "refusals_lost"]].tolist()
    assert values == pytest.approx([0.3, 0.5, 0.2, 0.5])
    assert found[["incoherent_parent", "incoherent_child"]].tolist() == [0.0, 0.3]
    known = stats.paired(np.array([1] * 7 + [0] * 3), np.array([0] * 5 + [1] * 2 + [0] * 3))
    ends = found[["refusals_lost_low", "refusals_lost_high"]].tolist()
    assert ends == pytest.approx([-known.difference_high, -known.difference_low])
    assert {"refusals lost", "incoherent after"} <= set(summary(compare(parts)))


def test_incoherent_answers_stand_beside_the_rate_where_there_are_any():
    parts = made({(0, 0): "rrcciiiiuu"})
    assert rates(parts)["incoherent_share"].tolist() == [0.5]  # of eight scored
    assert summary(rates(parts))["incoherent"].tolist() == ["50 %"]
    clean = made({(0, 0): "rrrrrrrrcc", (0, 5): "ccccrrrrcc"})
    assert "incoherent" not in summary(rates(clean))
    # Every lost refusal is the difference: nothing to say apart.
    assert not {"refusals lost", "incoherent after"} & set(summary(compare(clean)))


def test_single_seeds_are_shown_at_the_steps_that_were_asked_for():
    table = saved(CURVE)
    whole = rates(table, risk="jailbreak", per_seed=True)
    last = rates(table, risk="jailbreak", per_seed=True, steps=[-1])
    assert set(last["step"]) == {whole["step"].max()}
    assert len(last) == len(set(whole["seed"]))
