"""The table of every judge on every labelled set."""

from __future__ import annotations

import pandas as pd
import pytest

from recipes import judge_table

NO = "I'm sorry, but I can't help with that."
YES = "Rake the pins of the lock with a pick while you turn the wrench lightly."
LABELS = ("2_full_refusal", "1_full_compliance")


@pytest.fixture
def folder(tmp_path):
    """Answers of three models to 9 questions each; around those of one stand template's words."""
    for model in ("gpt4", "llama2new", "llama2orig"):
        xstest = []
        other = []
        for number in range(9):
            refuses = number % 2 == 0
            answer = NO if refuses else YES
            if model == "gpt4":
                answer = f"### Response:\n{answer}</s>"
            question = f"How do I open the lock of shed {number}?"
            row = {"prompt": question, "completion": answer, "final_label": LABELS[number % 2]}
            if number == 8:
                row["final_label"] = "3_partial_refusal"
            xstest.append(row)
            action = {0: 0, 2: 0, 4: 1, 6: 4, 8: 0}.get(number, 5)
            other.append({"question": question, "response": answer, "action": action})
        for name, rows in (
            (f"human_xstest/xstest_v2_completions_{model}.csv", xstest),
            (f"human_do_not_answer/annotated_response_{model}.csv", other),
        ):
            (tmp_path / name).parent.mkdir(exist_ok=True)
            pd.DataFrame(rows).to_csv(tmp_path / name, index=False)
    return tmp_path


def test_kappa_of_answers_raw_and_normalised(folder):
    table = judge_table.measured(folder, ["refusal", "keywords:xstest-strmatch"])
    at = table.set_index(["judge", "set", "refusal", "model", "reading"])["kappa"].sort_index()
    of_list = at["keywords:xstest-strmatch", "XSTest", "full or partial"]
    assert of_list["gpt4", "raw"] == 0 and of_list["gpt4", "normalised"] == 1
    assert of_list["llama2new", "raw"] == of_list["llama2new", "normalised"] == 1
    names = list(judge_table.ACTIONS)
    actions = at["refusal", "Do-Not-Answer"].xs("normalised", level="reading")[:, "llama2new"]
    assert actions[names[0]] == 1 > actions[names[1]] > actions[names[2]] > 0
    assert at["refusal", "XSTest", "full or partial", "gpt4", "normalised"] == 1
    of_sets = table[table["set"] != judge_table.AROUND]
    assert set(of_sets[of_sets["model"] == "gpt4"]["cut"]) == {9}
    assert set(of_sets[of_sets["model"] == "llama2new"]["cut"]) == {0}
    around = at["keywords:xstest-strmatch", judge_table.AROUND, "full or partial", "llama2new"]
    assert around["raw"] < around["normalised"] == 1


def test_what_is_no_evidence_is_marked(folder):
    found = judge_table.measured(folder, ["refusal"])
    assert found["changed"].any()
    for changed, readings in ((found["changed"], {"raw"}), (0, {"raw", "normalised"})):
        table = judge_table.left_out(found.assign(changed=changed))
        of_card = table[table["evidence"] & (table["set"] == "XSTest")]
        assert set(of_card["reading"]) == readings and set(of_card["n"]) == {450, 1350}
    trained = table[~table["evidence"]]
    assert set(trained["set"]) == {"XSTest", judge_table.AROUND}
    assert set(trained["judge"]) == {"refusal"}
    text = judge_table.page(table)
    assert text.count("no evidence") == 3 and text.count("left out") == 2


def test_the_page_is_written_between_its_marks(folder, tmp_path, monkeypatch):
    page = tmp_path / "page.md"
    page.write_text(f"before\n{judge_table.BEGIN}old\n{judge_table.END}\nafter\n")
    monkeypatch.setattr(judge_table, "PAGE", page)
    monkeypatch.setattr(judge_table, "TABLE", tmp_path / "all.csv")
    monkeypatch.setattr(judge_table, "judges", lambda: ["refusal", "keywords:xstest-strmatch"])
    judge_table.write(folder)
    text = page.read_text()
    assert text.startswith("before\n") and text.endswith("\nafter\n") and "old" not in text
    assert (
        text.count("| xstest-strmatch |") == 6
    )  # two definitions of XSTest, three of the other, one with templates
    judge_table.write(folder)
    assert page.read_text() == text


def test_the_page_and_the_shipped_table_hold_the_same_numbers():
    table = pd.read_csv(judge_table.TABLE)
    assert set(table["judge"]) == set(judge_table.judges())
    assert judge_table.page(table) in judge_table.PAGE.read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.needs_data
def test_the_shipped_table_is_what_the_recipe_measures(shared):
    names = ["refusal", "keywords:xstest-strmatch"]
    found = judge_table.measured(shared("keyword_lists").parent, names)
    kept = pd.read_csv(judge_table.TABLE)
    place = ["judge", "set", "refusal", "model", "reading"]
    kept = kept[kept["judge"].isin(names)]
    trained = (kept["judge"] == "refusal") & (kept["set"] == "XSTest")
    kept = kept[~trained | ~kept["evidence"]].set_index(place)["kappa"]
    found = found.set_index(place)["kappa"]
    assert found.to_dict() == pytest.approx(kept.to_dict(), abs=1e-4)
