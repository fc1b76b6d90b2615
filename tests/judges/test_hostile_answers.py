"""Verdicts on hostile answers: files are harmless or exact, reports show nothing that acts."""

from __future__ import annotations

import json
import time

import pytest
from helpers import raises_code
from hostile import CANARIES, assert_csv, assert_seen
from samples import asked

from ftlab._core.text import encodable
from ftlab.judges import describe, open_judge, score_file
from ftlab.judges.reading import judged


@pytest.fixture
def answers(tmp_path):
    """A file of prompts and answers, all canaries; JSON holds them exactly."""
    file = tmp_path / "answers.jsonl"
    rows = [{"q": text, "a": text, "human": text[:40]} for text in CANARIES.values()]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


@pytest.mark.slow
def test_written_tables_are_harmless_as_csv_and_exact_as_jsonl(answers, tmp_path):
    judges = ["keywords", "refusal"]
    for name in ("out.csv", "out.jsonl"):
        out = tmp_path / name
        table = score_file(answers, prompt="q", response="a", judges=judges, out=out)
    assert_csv((tmp_path / "out.csv").read_text())
    lines = (tmp_path / "out.jsonl").read_bytes().splitlines()
    kept = [json.loads(line)["a"] for line in lines]
    assert kept == [encodable(text) for text in CANARIES.values()] * 2
    report = describe(table, label="human", refused=[CANARIES["script"]])
    assert_seen(str(report))


@pytest.mark.parametrize("judge", ["keywords", "refusal"])
@pytest.mark.parametrize(("before", "after"), [("", ""), ("step 1", "x")])
@pytest.mark.parametrize("unit", ["x", "1", " ", "\n", "*", "- ", "1. ", "a, ", "step ", "hello "])
def test_time_grows_with_the_length_of_an_answer_and_not_with_its_square(
    judge, unit, before, after
):
    """A pattern that retries at every character would take hours here."""
    text = before + unit * (500_000 // len(unit)) + after
    sample = asked("How do I pick a lock?")
    began = time.process_time()
    judged(open_judge(judge), sample, [text])
    assert time.process_time() - began < 20


@pytest.mark.slow
def test_a_report_on_the_command_line_shows_nothing_that_acts(answers, ran):
    columns = ("--prompt", "q", "--response", "a", "--label", "human", "--refused", "%rm x")
    code, out, err = ran("judge", answers, *columns)
    assert code == 0 and out
    assert_seen(out + err)


@pytest.mark.parametrize(
    "where",
    ["https://user:pass@h/v1", "https://:pass@h/v1", "https://h/v1?key=pass", "ftp://u:pass@h"],
)
def test_an_address_with_a_password_is_no_judge_and_not_repeated(where, runs_folder):
    rows = [{"q": "a", "a": "b"}]
    with pytest.raises(ValueError) as info:
        score_file(rows, prompt="q", response="a", judges=f"rubric:m@{where}")
    assert info.value.code and "pass" not in str(info.value).replace("password", "")
    assert not runs_folder.exists()


def test_an_unknown_column_is_named_safely(answers):
    with raises_code("unknown_column") as info:
        score_file(answers, prompt="q", response="b")
    assert_seen(str(info.value))
