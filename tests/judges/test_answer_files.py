"""Judging a file of answers."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from helpers import raises_code
from small_models import write

from ftlab._core.errors import DataError
from ftlab.judges import Keywords, human_agreement, judge_agreement, score_file

ANSWERS = [
    "I'm sorry, no.",
    "Two apples.",
    "I cannot do so.",
    "Yes, as asked. I cannot say more.",
    "",
    "No pears here.",
]
PEOPLE = ["no", "yes", "no", "half", "no", "yes"]
BOTH = ["keywords", "keywords:xstest-strmatch"]


@pytest.fixture
def file(tmp_path) -> Path:
    rows = []
    for number, (answer, label) in enumerate(zip(ANSWERS, PEOPLE, strict=True)):
        rows.append({"q": f"How many, {number}?", "a": answer, "human": label})
    return write(tmp_path / "answers.jsonl", rows)


def test_the_table_has_one_row_per_row_and_judge(file, tmp_path):
    out = tmp_path / "new" / "out.jsonl"
    table = score_file(file, prompt="q", response="a", judges="keywords", out=out)
    own = ["q", "a", "human"]
    verdict = ["judge", "outcome", "score", "reason", "left_out", "judged_text"]
    assert list(table) == ["sample_id", "repeat", *own, *verdict]
    outcomes = ["refused", "complied", "refused", "refused", "empty", "complied"]
    assert list(table["outcome"]) == outcomes
    assert list(table["sample_id"]) == [1, 2, 3, 4, 5, 6]
    assert list(table["a"]) == ANSWERS
    written = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["outcome"] for row in written] == outcomes
    both = score_file(file, prompt="q", response="a", judges=[*BOTH, Keywords()])
    assert list(both["judge"]) == [BOTH[0]] * 6 + [BOTH[1]] * 6
    assert list(both["outcome"][:6]) == outcomes
    assert judge_agreement(both).n == 6


def test_rows_with_the_same_question_share_a_sample():
    rows = [{"q": q, "a": "Sure."} for q in ("x", "y", "x", "z", "x")]
    table = score_file(rows, prompt="q", response="a", judges="keywords")
    assert list(table["sample_id"]) == [1, 2, 1, 4, 1]
    assert list(table["repeat"]) == [0, 0, 1, 0, 2]


@pytest.mark.parametrize(
    ("settings", "code"),
    [
        ({"prompt": "question"}, "unknown_column"),
        ({"label": "gold"}, "unknown_column"),
        ({"judges": ["gpt"]}, "unknown_judge"),
        ({"judges": 5}, "unknown_judge"),
        ({"judges": []}, "no_judge"),
        ({"file": 5}, "wrong_source"),
        ({"file": ""}, "wrong_source"),
        ({"out": "x.xlsx"}, "wrong_ending"),
    ],
)
def test_wrong_settings_are_reported(file, settings, code):
    with raises_code(code):
        score_file(**{"file": file, "prompt": "q", "response": "a", **settings})


def test_all_problems_of_a_file_are_reported_at_once(tmp_path):
    bad = tmp_path / "bad.jsonl"
    lines = ['{"q": "x", "a": "y"}', '{"q": 3, "a": null}', "{broken", '{"q": ["x"], "a": 4.5}']
    bad.write_text("\n".join([*lines, '{"a": "y"}']) + "\n")
    with raises_code("not_text") as info:
        score_file(bad, prompt="q", response="a")
    assert isinstance(info.value, DataError)
    places = [problem.split(":")[1].split(" ")[0] for problem in info.value.problems]
    assert places == ["2", "3", "4", "5"]
    with raises_code("column_exists"):
        score_file([{"q": "x", "a": "y", "outcome": "?"}], prompt="q", response="a")
    with raises_code("no_rows"):
        score_file([], prompt="q", response="a")


def test_a_spreadsheet_runs_nothing(tmp_path):
    hostile = ["=1+1", "+1", "-2.5", "- a list", "@x", "\t=1", " =1", "fine", "a=b"]
    hostile.append('say "=1", so\nand so')
    rows = [{"q": "x", "a": a, "n": -i, "=h": 1} for i, a in enumerate(hostile)]
    out = tmp_path / "o.csv"
    score_file(rows, prompt="q", response="a", judges="keywords", out=out)
    with open(out, newline="") as f:
        read = list(csv.DictReader(f))
    safe = ["'=1+1", "+1", "-2.5", "'- a list", "'@x", "'\t=1", "' =1", *hostile[7:]]
    assert [row["a"] for row in read] == safe
    assert read[3]["n"] == "-3" and "'=h" in read[0]


def test_agreement_with_people(file):
    table = score_file(file, prompt="q", response="a", judges="keywords", label="human")
    found = human_agreement(table, label="human", refused=["no"], partial="half")
    strict, wide = (row for _, row in found.iterrows())
    assert (strict["n"], strict["unscored"], strict["unlabelled"]) == (6, 0, 0)
    # Judge: r c r r e c. People: refusals 0, 2, 4 (and 3 where a partial one counts).
    names = ["accuracy", "sensitivity", "specificity", "human_asr", "judge_asr"]
    assert strict[names].tolist() == pytest.approx([5 / 6, 1, 2 / 3, 1 / 2, 1 / 3])
    assert wide[["accuracy", "kappa", "bias"]].tolist() == pytest.approx([1, 1, 0])


def test_a_file_is_not_written_over_by_its_own_verdicts(tmp_path):
    file = tmp_path / "a.csv"
    file.write_text("question,answer\nWhy?,Because.\n")
    before = file.read_bytes()
    with raises_code("file_exists"):
        score_file(file, prompt="question", response="answer", judges=["keywords"], out=file)
    assert file.read_bytes() == before
