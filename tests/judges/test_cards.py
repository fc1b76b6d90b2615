"""Cards of judges and the agreement they report."""

from __future__ import annotations

import pandas as pd
import pytest
from helpers import raises_code

from ftlab._core.files import resource
from ftlab.judges import agreement_of_card, gold_agreement, judge_card, keywords

CARDS = resource("data") / "judge"


@pytest.mark.parametrize("name", ["refusal", "kinds", "keywords", "zoo", "rubric", "organism"])
def test_every_judge_has_a_card(name):
    spec = {"zoo": "zoo:harmbench@folder", "rubric": "rubric:m@http://127.0.0.1:1/v1"}
    if name == "zoo":
        pytest.importorskip("judgezoo")
    assert judge_card(spec.get(name, name)).startswith("# ")


@pytest.mark.parametrize("name", ["refusal", "keywords"])
def test_a_card_and_its_table_hold_the_same_numbers(name):
    card = judge_card(name)
    table = agreement_of_card(name)
    assert {"set", "model", "refusal", "judge", "n", "kappa"} <= set(table)
    digits = "{:.2f} [{:.2f}" if name == "keywords" else "{:.3f} ({:.3f}"
    rows = table if name == "keywords" else table[table["set"] == "XSTest"]
    for row in rows[rows["model"] == "all models"].to_dict("records"):
        assert digits.format(row["kappa"], row["kappa_low"]) in card


def test_a_card_without_a_measurement_says_so():
    with raises_code("judge_not_measured"):
        agreement_of_card("organism")
    with raises_code("gold_not_found"):
        judge_card("keywords", gold_folder=CARDS)


def test_one_list_of_the_table():
    table = agreement_of_card("keywords:xstest-strmatch")
    assert set(table["judge"]) == {"keywords:xstest-strmatch"}
    assert len(agreement_of_card("keywords")) == len(keywords.lists()) * len(table)


@pytest.mark.needs_data
@pytest.mark.slow
def test_the_card_of_the_lists_is_what_the_command_makes(shared, tmp_path):
    card = CARDS / "keywords.md"
    out = tmp_path / "card.md"
    made = judge_card("keywords", gold_folder=shared("keyword_lists").parent, out=out)
    assert made == card.read_text(encoding="utf-8")
    assert out.with_suffix(".csv").read_text() == card.with_suffix(".csv").read_text()


@pytest.mark.slow
@pytest.mark.needs_data
def test_kappa_of_a_list_by_statsmodels_and_pandas_alone(shared):
    from statsmodels.stats.inter_rater import cohens_kappa

    found = gold_agreement(["keywords:xstest-strmatch"], shared("keyword_lists").parent)
    phrases = tuple(keywords.lists()["xstest-strmatch"]["phrases"])
    for model in ("gpt4", "llama2new", "llama2orig"):
        rows = pd.read_csv(shared(f"human_xstest/xstest_v2_completions_{model}.csv"))
        refused = rows["completion"].str.lower().str.strip().str.startswith(phrases)
        counts = pd.crosstab(rows["final_label"] == "2_full_refusal", refused)
        golden = cohens_kappa(counts.to_numpy()).kappa
        at = found[(found["model"] == model) & (found["refusal"] == "full refusal")]
        assert at["kappa"].tolist() == pytest.approx([golden])
    file = shared("human_do_not_answer/annotated_response_vicuna-7b.csv")
    refusing = pd.read_csv(file)["action"].isin([0, 1, 4])
    at = found[(found["model"] == "vicuna-7b") & (found["refusal"] == "action 0, 1, 4")]
    assert at["human_asr"].tolist() == pytest.approx([1 - refusing.mean()])


def test_a_card_is_written_where_it_is_asked_for(tmp_path):
    out = tmp_path / "new" / "card.md"
    assert judge_card("refusal", out=out) == out.read_text(encoding="utf-8")
    for name in ("card.csv", "card"):  # its own table would be written over it
        with raises_code("wrong_ending"):
            judge_card("refusal", out=tmp_path / name)
    with raises_code("output_not_writable"):
        judge_card("refusal", out=out / "below.md")
