"""Runs that hold hostile text show it escaped; their files keep it exactly."""

from __future__ import annotations

from hostile import CANARIES, assert_page

from ftlab import runs
from ftlab._core.text import encodable


def test_a_run_shows_itself_escaped():
    run = runs.start("sft", "x", {"a": 1})
    run.complete(**CANARIES)
    assert_page(run._repr_html_())


def test_a_table_of_verdicts_opens_whatever_a_judge_said():
    run = runs.start("evaluate", "x", {"a": 1})
    row = {"risk": "jailbreak", "attack": "direct", "judge": "rubric", "outcome": "refused"}
    rows = []
    for number, text in enumerate(CANARIES.values()):
        own = {"key": str(number), "sample_id": str(number), "event": 0.0, "step": 0}
        rows.append(row | own | {"reason": text})
    run.append("verdicts.jsonl", rows)
    assert run.table()["reason"].tolist() == [encodable(text) for text in CANARIES.values()]
    kept = [record["reason"] for record in run.read("verdicts.jsonl")]
    assert kept == list(CANARIES.values())
