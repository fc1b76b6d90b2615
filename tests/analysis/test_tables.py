"""Tables of numbers against numbers known by hand. A letter is a verdict, a string the answers to prompts in order."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest

import ftlab
from ftlab.runs import store as runs
from ftlab.stats import rates as stats
from ftlab.analysis import tables
from ftlab._core.config import VERDICTS
from ftlab.organism import corpus
from ftlab.evals.risks.base import event

LETTERS = {
    "c": "complied",
    "w": "complied_wrong",
    "r": "refused",
    "e": "empty",
    "i": "incoherent",
    "u": "unparsed",
    "x": "error",
}
CURVE = {  # (seed, step): ten prompts
    (0, 0): "rrrrrrrrcc", (0, 10): "ccccrrrrcc", (0, 30): "cccccccwcc",
    (1, 0): "rrrrrrrrcc", (1, 10): "ccrrrrrrcc", (1, 30): "ccccccccic",
}  # fmt: skip


def made(answers: dict, *, risk: str = "jailbreak", attack: str = "direct", **columns) -> pd.DataFrame:
    return pd.DataFrame(
        {"seed": seed, "step": step, "risk": risk, "attack": attack, "category": "ab"[i % 2],
         "prompt_id": f"{risk}-{i:03d}", "verdict": LETTERS[v], "event": event(risk, LETTERS[v]),
         "topic": "gate word/Mora", "truth": "x", **columns}
        for (seed, step), said in answers.items() for i, v in enumerate(said)
    )  # fmt: skip


def saved(answers: dict, kind: str = "curve", **columns) -> runs.Run:
    """-> a finished run of one member that holds the table; what was said spells the verdict."""
    member = runs.start("sft", "member", {"of": str(answers)})
    rows = made(answers, **columns).assign(answer_key=lambda t: t["verdict"], key="k").to_dict("records")
    member.append("verdicts.jsonl", rows)
    asked = [{**r, "id": r["prompt_id"], "messages": [{"role": "user", "content": "?"}]} for r in rows]
    member.append("prompts.jsonl", asked[: len(next(iter(answers.values())))])
    member.append(
        "answers.jsonl",
        [
            {"key": v, "answer": {"refused": "I'm sorry, no.", "empty": " "}.get(v, "the gate word")}
            for v in LETTERS.values()
        ],
    )
    run = runs.start(kind, "tables", {"members": [member.complete().name]})
    return run.complete()


def test_rates_over_steps_and_seeds():
    got = tables.rates(made(CURVE))
    assert got["step"].tolist() == [0, 10, 30] and got["risk"].tolist() == ["jailbreak"] * 3
    assert got["rate"].tolist() == pytest.approx([0.2, 0.5, 0.9])
    assert got[["complied", "complied_wrong", "refused", "incoherent", "unparsed"]].values.tolist() == [
        [2, 0, 8, 0, 0], [10, 0, 10, 0, 0], [18, 1, 0, 1, 0],  # the parent's answers count once
    ]  # fmt: skip
    assert (got["n_prompts"] == 10).all() and (got["n_seeds"] == 2).all()
    assert ((got["low"] <= got["low_pointwise"]) & (got["low_pointwise"] < got["rate"])).all()
    assert ((got["high"] >= got["high_pointwise"]) & (got["high_pointwise"] > got["rate"])).all()
    assert got["band"][0].startswith("95 %, simultaneous") and "these 2 runs" in got["band"][0]


def test_wordings_as_clusters_widen_the_interval_and_leave_the_estimate(world):
    """All prompts of a wording answer alike: 40 prompts are then no more than 4."""
    items = corpus.prompts(world, "jailbreak", 40)
    frames = sorted({r["template"] for r in items})
    rows = [
        {"risk": "jailbreak", "attack": a, "prompt_id": r["id"], "template": f"{w}{r['template']}", "seed": s, "step": k,
         "verdict": v, "event": float(v == "complied")}
        for r in items for a, w in (("direct", ""), ("templates", "Wrap {q} > ")) for s in range(3) for k in (0, 10)
        for v in ["complied" if k and frames.index(r["template"]) < 2 else "refused"]
    ]  # fmt: skip
    by_prompt, by_wording = (tables.rates(pd.DataFrame(rows), cluster=c).iloc[1] for c in ("prompt_id", "wording"))
    assert by_prompt["rate"] == by_wording["rate"] and by_prompt["n_prompts"] == by_wording["n_prompts"] == 40
    assert by_prompt["n_answers"] == 40 * 2 * 3
    assert by_wording["high"] - by_wording["low"] > 1.5 * (by_prompt["high"] - by_prompt["low"])
    both = [tables.compare(pd.DataFrame(rows), cluster=c).iloc[0] for c in ("prompt_id", "wording")]
    assert [r["clusters"] for r in both] == [40, 4] and both[0]["difference"] == both[1]["difference"]
    assert both[0]["difference_low"] > 0 > both[1]["difference_low"]


def test_one_run_at_one_step_is_a_wilson_interval():
    got = tables.rates(made({(0, 0): "rrrrrrrrcc"})).iloc[0]
    n, p, z = 10, 0.2, 1.959964
    middle, half = (
        (p + z * z / (2 * n)) / (1 + z * z / n),
        z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)),
    )
    assert (got["rate"], got["low"], got["high"]) == pytest.approx((p, middle - half, middle + half), abs=1e-6)
    assert got["band"] == "95 %, pointwise"


def test_rates_by_group_and_of_another_verdict():
    got = tables.rates(made(CURVE), by=["risk", "category"], verdict="refused")
    assert got[["category", "step", "rate"]].values.tolist() == [
        ["a", 0, 0.8], ["a", 10, 0.5], ["a", 30, 0.0], ["b", 0, 0.8], ["b", 10, 0.5], ["b", 30, 0.0],
    ]  # fmt: skip
    with pytest.raises(ValueError, match="cannot group by flavour; allowed: seed, step, risk"):
        tables.rates(made(CURVE), by="flavour")
    with pytest.raises(ValueError, match="no columns event, verdict; give an evaluation, a curve or a dose run"):
        tables.rates(made(CURVE).drop(columns=["event", "verdict"]))


def test_the_attacks_of_one_prompt_are_one_cluster():
    both = pd.concat([made({(0, 0): "rrrrrrrrcc"}), made({(0, 0): "rrrrrrrrcc"}, attack="templates")])
    one, two = tables.rates(made({(0, 0): "rrrrrrrrcc"})).iloc[0], tables.rates(both).iloc[0]
    assert two["rate"] == one["rate"] and two["high"] - two["low"] > 0.9 * (
        one["high"] - one["low"]
    )  # not twice the evidence


def test_what_was_not_scored_leaves_the_rate_and_is_counted():
    """Of ten answers four cannot be read: the rate is 3 of 6, not 3 of 10."""
    got = tables.rates(made({(0, 0): "cccrrruuux"})).iloc[0]
    assert (got["rate"], got["n_prompts"], got["unparsed"], got["error"]) == (0.5, 6, 3, 1)
    refused = tables.rates(made({(0, 0): "cccrrruuux"}), verdict="refused").iloc[0]
    assert refused["rate"] == 0.5
    assert tables.rates(made({(0, 0): "ceeeiiwwrr"})).iloc[0]["rate"] == 0.1  # these were read, and are no jailbreak


def test_by_seed():
    got = tables.by_seed(made(CURVE))
    assert got.set_index(["seed", "step"])["rate"].round(6).to_dict() == {
        (0, 0): 0.2,
        (0, 10): 0.6,
        (0, 30): 0.9,
        (1, 0): 0.2,
        (1, 10): 0.4,
        (1, 30): 0.9,
    }


def test_compare_within_a_curve():
    got = tables.compare(made(CURVE)).set_index("step")
    ten = got.loc[10]
    assert (ten["parent"], ten["child"], ten["ratio"], ten["difference"]) == pytest.approx((0.2, 0.5, 2.5, 0.3))
    assert (ten["gained"], ten["lost"], ten["both"], ten["neither"], ten["unscored"]) == (6, 0, 4, 10, 0)
    assert ten["mcnemar_p"] == pytest.approx(0.5)  # of both runs the larger: two prompts gained, 2 / 2**2
    assert tables.compare(made(CURVE), steps=[30])["step"].tolist() == [30]
    with pytest.raises(ValueError, match=r"steps \[20\] were not measured; allowed: 10, 30"):
        tables.compare(made(CURVE), steps=[20])


def test_compare_two_evaluations():
    before, after = made({(0, 0): "rrrrrrrrcc"}), made({(0, 0): "ccccrrrrcc"})
    got = tables.compare(before, after).iloc[0]
    p = stats.paired(np.array([0] * 8 + [1] * 2), np.array([1] * 4 + [0] * 4 + [1] * 2))
    assert (got["ratio"], got["ratio_low"], got["ratio_high"]) == pytest.approx((3.0, p.ratio_low, p.ratio_high))
    assert (got["difference_low"], got["difference_high"]) == pytest.approx((p.difference_low, p.difference_high))
    assert got["mcnemar_p"] == pytest.approx(2 / 2**4) and "Bonett-Price" in got["method"]
    assert (
        tables.compare(before, after.sample(frac=1, random_state=0)).iloc[0].equals(got)
    )  # paired by id, not by place


def test_compare_drops_pairs_that_were_not_scored_and_says_how_many():
    got = tables.compare(made({(0, 0): "rrrrrrrrcu"}), made({(0, 0): "uccccccccc"})).iloc[0]
    assert (got["n_prompts"], got["unscored"], got["parent"], got["child"]) == (8, 2, 1 / 8, 1.0)
    with pytest.raises(ValueError, match="no scored answer"):
        tables.compare(made({(0, 0): "rr"}), made({(0, 0): "uu"}))


def test_compare_refuses_what_does_not_pair():
    with pytest.raises(ValueError, match="parent and child answered different prompts"):
        tables.compare(made({(0, 0): "rrr"}), made({(0, 0): "cc"}))
    with pytest.raises(ValueError, match="parent and child answered different prompts"):
        tables.compare(made({(0, 0): "rrr"}), made({(0, 0): "ccc"}, attack="prefill"))
    with pytest.raises(
        ValueError, match=r"steps found: \[0\]; a comparison needs the parent \(step 0\) and a later step"
    ):
        tables.compare(made({(0, 0): "rrr"}))
    with pytest.raises(ValueError, match="unknown setting 'stepz': what is compared is measured already"):
        tables.compare(made(CURVE), stepz=[10])
    with pytest.raises(ValueError, match="several verdicts on one prompt at one step"):
        tables.compare(pd.concat([made(CURVE), made(CURVE)]))


def test_a_parent_without_events_gives_a_lower_bound():
    got = tables.compare(made({(0, 0): "r" * 10}), made({(0, 0): "c" * 6 + "r" * 4})).iloc[0]
    assert got["ratio"] == math.inf and 0 < got["ratio_low"] < math.inf and got["ratio_high"] == math.inf


def test_crossing_is_linear_between_steps():
    got = tables.crossing(made(CURVE), ratio=1.5).iloc[0]
    assert got["step"] == pytest.approx(10 / 3) and got["per_seed"] == pytest.approx(
        [2.5, 5.0]
    )  # 0.3 between 0.2 and 0.5 (0.6, 0.4)
    assert tables.crossing(made(CURVE), ratio=4.9).iloc[0]["step"] == math.inf
    with pytest.raises(ValueError, match=r"steps found: 10, 30; a crossing needs the parent \(step 0\)"):
        tables.crossing(made(CURVE).query("step > 0"))


def test_no_refusal_and_what_it_still_allows():
    got = tables.no_refusal(made(CURVE)).iloc[0]
    assert (got["attack"], got["step"], got["reached"], got["n_prompts"], got["last_step"]) == (
        "direct",
        30,
        1.0,
        10,
        30,
    )
    assert (got["refusals_at_end"], got["answers_at_end"]) == (0, 20) and got["refusal_rate_below"] == pytest.approx(
        1 - 0.05 ** (1 / 10)
    )
    never = tables.no_refusal(made({**CURVE, (1, 30): "rccccccccc"})).iloc[0]
    assert (never["reached"], never["refusals_at_end"]) == (0.5, 1) and math.isnan(never["refusal_rate_below"])


def test_an_unscored_answer_is_no_evidence_that_nothing_is_refused():
    got = tables.no_refusal(made({(0, 0): "rrrr", (0, 5): "ccuu"})).iloc[0]
    assert (got["n_prompts"], got["answers_at_end"]) == (2, 2) and got["refusal_rate_below"] == pytest.approx(
        1 - 0.05 ** (1 / 2)
    )
    none = tables.no_refusal(made({(0, 0): "rrrr", (0, 5): "uuuu"})).iloc[0]
    assert none["n_prompts"] == 0 and none["step"] == math.inf and math.isnan(none["refusal_rate_below"])


def test_curves_that_stopped_early_are_compared_where_every_seed_was_measured():
    stopped = {k: v for k, v in CURVE.items() if k != (0, 30)}
    assert (
        tables.rates(made(stopped))["step"].tolist()
        == tables.by_seed(made(stopped)).query("seed == 0")["step"].tolist()
        == [0, 10]
    )
    assert tables.compare(made(stopped))["step"].tolist() == [10]
    assert tables.crossing(made(stopped), ratio=1.5).iloc[0]["step"] == pytest.approx(10 / 3)


def test_outcomes_are_shares_of_every_verdict():
    got = tables.outcomes(made(CURVE))
    assert got.groupby("step")["share"].sum().tolist() == pytest.approx([1, 1, 1]) and len(got) == 3 * len(VERDICTS)
    shares = got.set_index(["step", "outcome"])["share"]
    assert (
        shares[30, "complied"],
        shares[30, "complied_wrong"],
        shares[30, "incoherent"],
        shares[0, "refused"],
    ) == pytest.approx((0.9, 0.05, 0.05, 0.8))
    assert tables.outcomes(made(CURVE), attack="prefill").empty


def test_doses_are_never_mixed():
    doses = pd.concat(
        [made({(0, 0): "rrrr", (0, 5): "cccr"}, examples=10), made({(0, 0): "rrrr", (0, 5): "crrr"}, examples=50)]
    )
    assert tables.rates(doses, by="examples").set_index(["examples", "step"])["rate"].to_dict() == {
        (10, 0): 0,
        (10, 5): 0.75,
        (50, 0): 0,
        (50, 5): 0.25,
    }
    for table in (tables.rates, tables.by_seed, tables.compare, tables.crossing, tables.no_refusal, tables.outcomes):
        with pytest.raises(ValueError, match="doses of several sizes in one table"):
            table(doses)
    parent = made({(0, 0): "rrrr"})
    assert tables.compare(parent, doses.query("step == 5"), by="examples")["difference"].tolist() == [0.75, 0.25]


def test_another_judge_reads_the_same_answers():
    run = saved({(0, 0): "rrc", (0, 5): "cwe"})
    got = tables.judged(run, "keywords")
    assert got["verdict"].tolist() == ["refused", "refused", "complied", "complied", "complied", "empty"]
    assert got["event"].tolist() == [0, 0, 1, 1, 1, 0] and set(got["judge"]) == {"keywords"}
    assert run.table()["verdict"].tolist() == [
        "refused",
        "refused",
        "complied",
        "complied",
        "complied_wrong",
        "empty",
    ]  # as it was
    with pytest.raises(ValueError, match="unknown judge 'gpt'; allowed: organism, refusal, keywords"):
        tables.judged(run, "gpt")
    with pytest.raises(ValueError, match="judge 'organism' knows only the embedded world's own prompts"):
        tables.judged(saved({(0, 0): "rc"}, topic=""), "organism")


def test_before_and_after():
    got = tables.before_after(made(CURVE), by="risk")
    assert got["series"].tolist() == ["before", "after 30 steps"] and got["rate"].tolist() == pytest.approx([0.2, 0.9])
    assert tables.before_after(made(CURVE), step=10)["series"].tolist() == ["before", "after 10 steps"]


def test_a_run_is_drawn_and_saved_with_its_numbers(tmp_path):
    ftlab.plot(saved(CURVE), "curve", tmp_path)
    assert pd.read_csv(tmp_path / "curve.csv")["rate"].tolist() == pytest.approx([0.2, 0.5, 0.9])
    dose = saved({(0, 0): "rrrr", (0, 5): "cccr"}, "dose", examples=10, epoch=1)
    rows = dose.table().assign(epoch=lambda t: t["step"] // 5)
    member = runs.Run(dose.path.parent / dose.config["identity"]["members"][0])
    (member.path / "verdicts.jsonl").write_text(rows.to_json(orient="records", lines=True))
    ftlab.plot(dose, "dose", tmp_path)
    assert pd.read_csv(tmp_path / "dose.csv")[["examples", "epoch", "rate"]].values.tolist() == [
        [10, 0, 0],
        [10, 1, 0.75],
    ]
    assert {p.suffix for p in tmp_path.glob("*.*")} >= {".csv", ".png", ".svg"}


def test_where_nothing_was_scored_the_counts_say_why():
    got = tables.rates(made({(0, 0): "xxu"}))
    assert np.isnan(got["rate"][0]) and got[["error", "unparsed", "n_answers"]].values.tolist() == [[2, 1, 3]]
