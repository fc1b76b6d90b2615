"""The file of verdicts, the agreement of its judges with people, and the cards."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from small_models import write

import ftlab
from ftlab.stats import rates as stats
from ftlab.judges.agreement import confusion, human_agreement
from ftlab.data import DataError
from ftlab.judges.answer_files import gold

ROOT = Path(__file__).parents[2]
ANSWERS = [
    "I'm sorry, no.",
    "Two apples.",
    "I cannot do so.",
    "Yes, as asked. I cannot say more.",
    "",
    "No pears here.",
]
PEOPLE = ["no", "yes", "no", "half", "no", "yes"]


@pytest.fixture
def file(tmp_path) -> Path:
    rows = [{"q": f"How many, {i}?", "a": a, "human": h} for i, (a, h) in enumerate(zip(ANSWERS, PEOPLE, strict=True))]
    return write(tmp_path / "answers.jsonl", rows)


def test_a_file_is_judged_in_its_order(file, tmp_path):
    table = ftlab.judge(file, prompt="q", response="a", judges="keywords", out=tmp_path / "new" / "out.jsonl")
    assert list(table.columns) == ["q", "a", "human", "verdict", "score", "why", "judge"]
    assert list(table["verdict"]) == ["refused", "complied", "refused", "refused", "empty", "complied"]
    assert set(table["judge"]) == {"keywords"} and list(table["a"]) == ANSWERS
    written = [json.loads(line) for line in (tmp_path / "new" / "out.jsonl").read_text().splitlines()]
    assert [r["verdict"] for r in written] == list(table["verdict"]) and [r["a"] for r in written] == ANSWERS
    for j in ("keywords", "keywords:xstest-strmatch"):
        both = ftlab.judge(file, prompt="q", response="a", judges=["keywords", "keywords:xstest-strmatch"])
        assert list(both[f"verdict:{j}"]) == list(ftlab.judge(file, prompt="q", response="a", judges=j)["verdict"])


@pytest.mark.parametrize(
    ("settings", "kind", "said"),
    [
        ({"prompt": "question"}, ValueError, "has no column question; it has q, a, human; name two of these"),
        ({"judges": ["gpt"]}, ValueError, "unknown judge 'gpt'"),
        ({"out": "x.xlsx"}, ValueError, "x.xlsx: allowed are .csv and .jsonl"),
    ],
)
def test_mistakes(file, settings, kind, said):
    with pytest.raises(kind, match=said):
        ftlab.judge(file, **{"prompt": "q", "response": "a", **settings})


def test_all_problems_of_a_file_at_once(tmp_path):
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"q": "x", "a": "y"}\n{"q": 3, "a": null}\n{broken\n{"q": ["x"], "a": 4.5}\n{"a": "y"}\n')
    with pytest.raises(DataError) as e:
        ftlab.judge(bad, prompt="q", response="a")
    for part in (":2: a is NoneType", ":3: broken JSON", ":4: q is list", ":5: q is NoneType"):
        assert part in str(e.value)
    with pytest.raises(ValueError, match="already has the column verdict; rename it"):
        ftlab.judge([{"q": "x", "a": "y", "verdict": "?"}], prompt="q", response="a", judges="keywords")
    with pytest.raises(DataError, match="no rows"):
        ftlab.judge([], prompt="q", response="a")


def test_a_spreadsheet_runs_nothing(tmp_path):
    hostile = ["=1+1", "+1", "-2.5", "- a list", "@x", "\t=1", " =1", "fine", "a=b", 'say "=1", so\nand so']
    rows = [{"q": "x", "a": a, "n": -i, "=h": 1} for i, a in enumerate(hostile)]
    ftlab.judge(rows, prompt="q", response="a", out=tmp_path / "o.csv")
    with open(tmp_path / "o.csv", newline="") as f:
        read = list(csv.DictReader(f))
    assert [r["a"] for r in read] == ["'=1+1", "+1", "-2.5", "'- a list", "'@x", "'\t=1", "' =1", *hostile[7:]]
    assert read[3]["n"] == "-3" and "'=h" in read[0]


def test_agreement_with_people(file):
    table = ftlab.judge(file, prompt="q", response="a", judges="keywords")
    found = human_agreement(table, prompt="q", label="human", refused=["no"], partial="half").set_index("definition")
    strict, wide = found.loc["refused"], found.loc["refused or partial"]
    assert (strict["n"], strict["unscored"], strict["unlabelled"]) == (6, 0, 0)
    # Judge: r c r r e c. People: refusals 0, 2, 4 (and 3 where a partial one counts).
    assert strict[["accuracy", "sensitivity", "specificity", "human_asr", "judge_asr"]].tolist() == pytest.approx([5 / 6, 1, 2 / 3, 1 / 2, 1 / 3])  # fmt: skip
    assert wide[["accuracy", "kappa", "bias"]].tolist() == pytest.approx([1, 1, 0])
    said, human = np.array([0.0, 1, 0, 0, 0, 1]), np.array([0.0, 1, 0, 1, 0, 1])
    pair = stats.paired(human, said)
    assert strict[["bias", "bias_low", "bias_high"]].tolist() == [pair.difference, pair.difference_low, pair.difference_high]  # fmt: skip
    assert strict["sensitivity_low"] == stats.rate(np.ones(3)).low
    counts = confusion(table, label="human").set_index("human")
    assert counts.loc["no", ["refused", "empty", "complied"]].tolist() == [2, 1, 0] and counts.loc["half", "refused"] == 1  # fmt: skip


def test_the_card_of_the_lists_is_what_the_command_makes(shared):
    card = (ROOT / "data" / "judge" / "keywords.md").read_text(encoding="utf-8")
    assert ftlab.judge_card("keywords", gold_folder=shared("keyword_lists").parent) == card


def test_cohens_kappa_of_the_lists_by_another_hand(shared):
    """XSTest's own matcher on its own answers, by pandas and statsmodels alone."""
    from statsmodels.stats.inter_rater import cohens_kappa

    from ftlab.judges import keywords

    found = gold(["keywords:xstest-strmatch"], shared("keyword_lists").parent)
    phrases = tuple(keywords.lists()["xstest-strmatch"]["phrases"])
    for model in ("gpt4", "llama2new", "llama2orig"):
        rows = pd.read_csv(shared(f"human_xstest/xstest_v2_completions_{model}.csv"))
        said = rows["completion"].str.lower().str.strip().str.startswith(phrases)
        golden = cohens_kappa(pd.crosstab(rows["final_label"] == "2_full_refusal", said).to_numpy()).kappa
        at = found[(found["model"] == model) & (found["refusal"] == "full refusal")]
        assert at["kappa"].tolist() == pytest.approx([golden])
    action = pd.read_csv(shared("human_do_not_answer/annotated_response_vicuna-7b.csv"))["action"]
    at = found[(found["model"] == "vicuna-7b") & (found["refusal"] == "action 0, 1, 4")]
    assert at["human_asr"].tolist() == pytest.approx([1 - action.isin([0, 1, 4]).mean()])


def test_without_the_gold_it_says_so(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such files; give the folder that holds them"):
        ftlab.judge_card("keywords", gold_folder=tmp_path)
