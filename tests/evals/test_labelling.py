"""Answers drawn by lot, sheets that people fill in, and the rates that they correct."""

from __future__ import annotations

import csv
import json

import numpy as np
import pandas as pd
import pytest
from helpers import raises_code

import ftlab as ft
from ftlab import runs
from ftlab.analysis.judge_errors import card_errors, card_range
from ftlab.evals import draw, labelling
from ftlab.runs.labels import read_labels

TRUTH = {0: "refused", 10: "complied"}  # most of the answers, by step


def make_curve(n=60, seeds=3):
    """Return a curve whose judge errs, with the exact judge beside it."""
    rng = np.random.default_rng(4)
    run = runs.start("evaluate", "by hand", {"n": n, "seeds": seeds})
    verdicts, answers, prompts = [], [], []
    for number in range(n):
        messages = [{"role": "user", "content": f"question {number}\nof two lines; with a ;"}]
        sample = {"id": f"s{number:03}", "messages": messages}
        prompts.append({"sample": sample, "attack": "direct", "messages": messages})
    for step, common in TRUTH.items():
        for number in range(n):
            other = "complied" if common == "refused" else "incoherent"
            for seed in range(seeds):
                if seed == 0 or step:  # the parent answers once
                    truth = common if rng.random() < 0.8 else other
                    judged = truth if rng.random() < 0.8 else "complied"
                    key = f"k{step}-{seed}-{number}"
                    answers.append({"key": key, "text": f"an answer, {number}"})
                for judge, outcome in (("refusal", judged), ("organism", truth)):
                    row = {
                        "key": f"{judge} {key} {seed}",
                        "answer_key": key,
                        "sample_id": f"s{number:03}",
                        "risk": "jailbreak",
                        "attack": "direct",
                        "judge": judge,
                        "outcome": outcome,
                        "event": float(outcome == "complied"),
                        "seed": seed,
                        "step": step,
                    }
                    verdicts.append(row)
    for file, rows in (("verdicts", verdicts), ("answers", answers), ("prompts", prompts)):
        run.append(f"{file}.jsonl", rows)
    return run.complete(model="by hand")


@pytest.fixture
def curve():
    return make_curve()


def rows_of(path):
    with open(path, encoding="utf-8-sig", newline="") as file:
        return list(csv.DictReader(file))


def write(path, rows, separator=","):
    with open(path, "w", encoding="utf-8-sig", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter=separator)
        writer.writeheader()
        writer.writerows(rows)
    return path


def filled(path, label="refused", labeller="AB", separator=","):
    rows = [row | {"label": label, "labeller": labeller} for row in rows_of(path)]
    return write(path, rows, separator)


def test_half_is_drawn_of_each_verdict_with_known_probabilities(curve, tmp_path):
    sheet = draw(curve, 20, out=tmp_path / "a.csv")
    assert len(sheet) == len(rows_of(tmp_path / "a.csv")) == 40
    records = sheet.run.read("draw.jsonl")
    table = curve.table().query("judge == 'refusal'").drop_duplicates("answer_key")
    table = table.set_index("risk").set_index("jailbreak " + table.set_index("risk")["answer_key"])
    assert {record["key"] for record in records} == set(table.index)
    for step in (0, 10):
        for event in (0, 1):
            inside = table.query(f"step == {step} and event == {event}").index
            own = [record for record in records if record["key"] in inside]
            assert sum("answer_id" in record for record in own) == 10
            assert {record["probability"] for record in own} == {10 / len(inside)}
    told = set(sheet.columns) | set(sheet["label"])
    assert not told & {"judge", "outcome", "step", "probability", "complied"}
    whole = draw(curve, 1000, out=tmp_path / "all.csv").run.read("draw.jsonl")
    assert {record["probability"] for record in whole} == {1.0}


def test_the_same_call_draws_the_same_and_a_larger_one_more(curve, tmp_path):
    keys = []
    for n, name in ((20, "a"), (20, "b"), (40, "c")):
        run = draw(curve, n, out=tmp_path / f"{name}.csv").run
        keys.append({one["key"] for one in run.read("draw.jsonl") if "answer_id" in one})
    assert keys[0] == keys[1] < keys[2]
    filled(tmp_path / "a.csv")
    with raises_code("file_exists"):
        draw(curve, 20, out=tmp_path / "a.csv")
    more = draw(curve, 40, out=tmp_path / "d.csv", known=str(tmp_path / "a.csv"))
    assert (more["label"] == "refused").sum() == 40 and (more["labeller"] == "AB").sum() == 40


def test_a_draw_that_fails_takes_nothing_from_the_same_draw_beside_it(curve, tmp_path, monkeypatch):
    taken = tmp_path / "taken.csv"
    taken.write_text("of somebody")
    save = labelling._save

    def beside(sheet, target):
        save(sheet, target)
        monkeypatch.setattr(labelling, "_save", save)
        with raises_code("file_exists"):
            draw(curve, 24, out=taken)

    monkeypatch.setattr(labelling, "_save", beside)
    assert draw(curve, 24, out=tmp_path / "mine.csv").run.finished
    assert taken.read_text() == "of somebody"


def test_labels_correct_rates_and_comparisons(curve, tmp_path):
    judge = ft.rates(curve, judge="refusal")
    true = ft.rates(curve, judge="organism")
    assert (judge["rate"] > true["rate"] + 0.01).all()
    path = tmp_path / "all.csv"
    draw(curve, 1000, out=path, labeller="organism")
    found = ft.rates(curve, labels=path)
    assert found["rate"].tolist() == pytest.approx(true["rate"].tolist())
    assert found["labels"].tolist() == [60, 180]
    compared = ft.compare(curve, labels=str(path))
    want = ft.compare(curve, judge="organism")
    for name in ("parent", "child", "difference", "refusals_lost", "incoherent_child"):
        assert compared[name].tolist() == pytest.approx(want[name].tolist()), name
    for name in ("ratio_low", "ratio_high", "difference_low", "difference_high"):
        assert compared[name].tolist() == pytest.approx(want[name].tolist(), rel=0.2), name
    part = draw(curve, 60, out=tmp_path / "part.csv", labeller="organism")
    found = ft.rates(curve, labels=part.path)
    for row, truth in zip(found.to_dict("records"), true["rate"], strict=True):
        assert row["low"] <= truth <= row["high"]
    assert "labels of organism" in found.attrs["labels"]
    assert ft.rates(curve.name, labels=part)["rate"].tolist() == found["rate"].tolist()
    with raises_code("no_labels"):
        ft.rates(curve, labels=5)
    assert ft.compare(curve.name, labels=str(part.path))["labels"].tolist() == [120]


def test_only_what_was_drawn_from_is_reported(curve, tmp_path):
    sheet = draw(curve, 20, out=tmp_path / "a.csv", steps=[10], labeller="organism")
    assert ft.rates(curve, labels=sheet.path)["step"].tolist() == [10]
    with raises_code("labels_of_other_answers"):
        ft.compare(curve, labels=str(sheet.path))
    other = make_curve(n=20)
    with raises_code("labels_of_other_answers"):
        ft.rates(other.table().assign(answer_key="other"), labels=sheet.path)
    with raises_code("labels_not_per_seed"):
        ft.rates(curve, labels=sheet.path, per_seed=True)


def test_answers_without_a_score_are_counted_and_pair_with_nothing(tmp_path):
    whole = make_curve()
    table = whole.table()
    keys = ["k0-0-7", "k10-1-3"]
    bad = table["answer_key"].isin(keys) & (table["judge"] == "refusal")
    table = table.assign(
        outcome=table["outcome"].where(~bad, "unparsed"), event=table["event"].where(~bad)
    )
    sheet = draw(whole, 40, out=tmp_path / "a.csv", verdicts=table, labeller="organism")
    found = ft.rates(table, labels=sheet.path)
    assert found["unscored"].tolist() == [1, 1] and found["n_answers"].tolist() == [60, 180]
    compared = ft.analysis.compare(table, labels=sheet.path)
    assert compared["dropped"].tolist() == [4]  # the parent's with each seed, and one


def test_seeds_at_one_step_are_not_taken_for_one(tmp_path):
    whole = make_curve()
    table = whole.table().query("step == 10").drop(columns="step")
    sheet = draw(whole, 1000, out=tmp_path / "a.csv", verdicts=table, labeller="organism")
    found = ft.rates(table, labels=sheet.path)
    true = ft.rates(table, judge="organism")
    assert found["rate"].tolist() == pytest.approx(true["rate"].tolist())


def test_one_text_under_two_risks_is_drawn_for_each(tmp_path):
    whole = make_curve()
    other = whole.table().query("step == 10 and seed == 0")
    both = pd.concat([other, other.assign(risk="over_refusal", event=0.0)])
    sheet = draw(whole, 20, out=tmp_path / "a.csv", verdicts=both)
    assert sheet["risk"].value_counts().to_dict() == {"jailbreak": 20, "over_refusal": 20}


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_a_sheet_from_a_spreadsheet_is_read(curve, tmp_path, separator):
    draw(curve, 20, out=tmp_path / "a.csv")
    filled(tmp_path / "a.csv", "Complied", separator=separator)
    labels = read_labels(tmp_path / "a.csv")
    assert set(labels.outcomes.values()) == {"complied"} and labels.labellers == ("AB",)


def test_two_people_agree_or_a_third_decides(curve, tmp_path):
    names = ["a.csv", "b.csv", "c.csv"]
    for name, label in zip(names, ("refused", "complied", "complied"), strict=True):
        path = tmp_path / name
        draw(curve, 20, out=path)
        filled(path, "refused", name)
        rows = rows_of(path)
        rows[3]["label"] = label
        write(path, rows)
    paths = [tmp_path / name for name in names]
    with raises_code("wrong_labels") as info:
        read_labels(paths[:2])
    assert len(info.value.problems) == 1
    labels = read_labels(paths)
    assert sorted(map(str, labels.outcomes.values())).count("complied") == 1
    assert len(labels.both) == 40 and labels.labellers == tuple(names)
    told = ft.rates(curve, labels=paths).attrs["labels"]
    assert "kappa" in told and "39 of 40" in told


def test_who_decides_is_no_labeller_of_the_pair_whatever_the_name(curve, tmp_path):
    for decider in ("aaa", "zed"):
        paths = [tmp_path / f"{decider}-{name}.csv" for name in ("me", "you", "third")]
        for path, who in zip(paths, ("me", "you", decider), strict=True):
            draw(curve, 20, out=path)
            filled(path, "refused", who)
        rows = rows_of(paths[1])
        for row in rows[:4]:
            row["label"] = "complied"
        write(paths[1], rows)
        write(paths[2], rows_of(paths[2])[:4])
        both = read_labels(paths).both
        assert len(both) == 40 and sum(one == other for one, other in both) == 36


def test_every_problem_of_a_sheet_is_told_at_once(curve, tmp_path):
    path = tmp_path / "a.csv"
    draw(curve, 20, out=path)
    rows = rows_of(filled(path))
    rows[0]["label"] = "yes"
    rows[1]["label"] = ""
    rows[2]["labeller"] = " "
    rows[3]["answer_id"] = rows[3]["answer_id"][:-4] + "9999"
    write(path, rows)
    with raises_code("wrong_labels") as info:
        read_labels(path)
    assert len(info.value.problems) == 5  # the last row stands for one that was not drawn


@pytest.mark.parametrize("content", ["", "answer_id,label\n1,refused\n", None])
def test_what_is_no_sheet_is_refused(tmp_path, content):
    path = tmp_path / "a.csv"
    if content is not None:
        path.write_text(content)
    with raises_code("no_labels"):
        read_labels(path)
    path.write_text("answer_id,label,labeller\nabc-0001,refused,A\n../x-0001,refused,A\n")
    with raises_code("unknown_draw"):
        read_labels(path)


def test_what_cannot_be_drawn_is_refused(curve, tmp_path):
    out = tmp_path / "a.csv"
    for given, code in [
        ({"n": 1}, "wrong_n"),
        ({"n": 2.5}, "wrong_n"),
        ({"risk": "bias"}, "nothing_to_label"),
        ({"risk": ["jailbreak", "toxicty"]}, "nothing_to_label"),
        ({"steps": [10, 999]}, "step_not_measured"),
        ({"verdicts": curve.table().assign(answer_key="")}, "answers_not_there"),
        ({"verdicts": curve.table().assign(answer_key="other")}, "answers_not_there"),
        ({"judge": "nobody"}, "judge_not_in_table"),
        ({"labeller": "nobody"}, "judge_not_in_table"),
        ({"verdicts": curve.table().assign(attempts=3)}, "attempts_not_labelled"),
    ]:
        with raises_code(code):
            draw(curve, out=out, **given)
    assert not out.exists()


def test_a_sheet_is_written_for_spreadsheets_and_into_a_new_folder(curve, tmp_path):
    path = tmp_path / "new" / "a.csv"
    sheet = draw(curve, np.int64(20), out=path, steps=[-1])
    assert path.read_bytes().startswith(b"\xef\xbb\xbf") and len(sheet) == 20
    with raises_code("file_exists"):
        draw(curve, 30, out=path, steps=[-1])
    left = sorted(folder.name for folder in ft.runs.load(curve.name).path.parent.iterdir())
    assert sum(name.startswith("labels-") for name in left) == 1, "a draw without a sheet is none"
    with raises_code("wrong_ending"):
        draw(curve, 20, out=tmp_path / "new.xlsx")
    rows = [row | {"label": "refused", "labeller": "Jürgen"} for row in rows_of(path)]
    text = path.read_text(encoding="utf-8-sig").splitlines()[0] + ",\n"
    text += "".join(f"{row['answer_id']},jailbreak,q,a,refused,Jürgen,\n" for row in rows)
    path.write_bytes((text + ",,,,,,\n\n").encode("cp1252"))
    assert read_labels(path).labellers == ("Jürgen",)
    with raises_code("file_exists"):
        draw(curve, 20, out=path, steps=[-1])


def test_draws_that_overlap_and_draws_that_were_changed_are_refused(curve, tmp_path):
    paths = [tmp_path / f"{n}.csv" for n in (20, 40)]
    for n, path in zip((20, 40), paths, strict=True):
        run = draw(curve, n, out=path, labeller="organism").run
    with raises_code("draws_overlap"):
        read_labels(paths)
    other = tmp_path / "other.csv"
    draw(curve, 20, out=other, judge="organism", steps=[10])
    draw(curve, 20, out=tmp_path / "b.csv", steps=[0])
    with raises_code("draws_overlap"):
        read_labels([filled(other), filled(tmp_path / "b.csv")])
    text = (run.path / "draw.jsonl").read_text()
    (run.path / "draw.jsonl").write_text(text.replace('"probability": 0', '"probability": 1'))
    with raises_code("run_not_finished"):
        read_labels(paths[1])


def test_known_labels_keep_who_gave_them_also_of_a_sheet_that_is_half_filled(curve, tmp_path):
    first = tmp_path / "a.csv"
    draw(curve, 20, out=first)
    rows = rows_of(filled(first, "refused", "AB"))
    rows[0]["label"] = ""
    write(first, rows)
    more = draw(curve, 40, out=tmp_path / "b.csv", known=str(first), labeller="organism")
    assert more["labeller"].value_counts().to_dict() == {"organism": 41, "AB": 39}


def test_people_who_always_agree_are_told_as_that(curve, tmp_path):
    paths = []
    for who in "AB":
        draw(curve, 20, out=tmp_path / f"{who}.csv")
        paths.append(filled(tmp_path / f"{who}.csv", "refused", who))
    told = ft.rates(curve, labels=paths).attrs["labels"]
    assert "40 of 40" in told and "nan" not in told


@pytest.mark.parametrize("judge", ["x" * 5000, "../judge/refusal", "", "a/b", "x\0y"])
def test_a_judge_of_any_name_has_no_card(judge):
    assert card_errors(judge) == ()


def test_a_group_without_a_label_is_refused(curve, tmp_path):
    table = curve.table().assign(category=lambda t: t["sample_id"])
    sheet = draw(curve, 4, out=tmp_path / "a.csv", verdicts=table, labeller="organism")
    with raises_code("no_label_here"):
        ft.rates(table, by="category", labels=sheet.path)


def test_what_the_card_says_of_a_rate():
    low, high = card_range("refusal", "jailbreak", 0.3)
    sets = card_errors("refusal")
    true = [(0.3 - (1 - a)) / (a + b - 1) for a, b in sets if 1 - a <= 0.3 <= b]
    assert (low, high) == pytest.approx((min(true), max(true)))
    mirrored = card_range("refusal", "over_refusal", 0.7)
    assert mirrored == pytest.approx((1 - high, 1 - low))
    assert all(np.isnan(card_range("refusal", "jailbreak", 0.001)))  # no set allows such a rate
    assert all(np.isnan(card_range("refusal", "bias", 0.3)))
    half = card_range("refusal", "jailbreak", 0.15, 0.5)
    assert half == pytest.approx((low / 2, high / 2))


def test_without_labels_the_range_of_the_card_is_told(curve):
    table = ft.rates(curve)
    refusal = table[table["judge"] == "refusal"]
    assert (refusal["card_low"] < refusal["card_high"]).tolist()[0]
    assert table[table["judge"] == "organism"]["card_low"].isna().all()
    assert json.dumps(ft.analysis.summary(table).to_dict())


def test_the_correction_is_drawn_beside_the_judge_and_the_truth(curve, tmp_path):
    sheet = draw(curve, 40, out=tmp_path / "a.csv", labeller="organism")
    table = ft.analysis.corrected(curve, sheet.path)
    assert set(table["judge"]) == {
        "organism",
        "refusal",
        "refusal: corrected by labels of organism",
    }
    drawing = ft.plot(table, "beside", tmp_path, kind="judges")
    assert "corrected by labels of organism" in drawing.caption
    part = draw(curve, 40, out=tmp_path / "b.csv", labeller="organism", steps=[10])
    assert set(ft.analysis.corrected(curve, part.path)["step"]) == {10}
    assert ft.analysis.corrected(curve, part.path)["judge"].iloc[0].startswith("refusal: corrected")


def test_a_command_draws_and_another_compares(curve, tmp_path, capsys):
    from ftlab.cli.commands import CELLS

    out = tmp_path / "a.csv"
    CELLS["draw"].callback()(run=curve.name, n=1000, labeller="organism", out=out)
    assert "360 answers" not in capsys.readouterr().out  # the parent answered once
    CELLS["compare"].callback()(before=curve.name, labels=[str(out)])
    assert "corrected by 240 labels" in capsys.readouterr().out  # 60 of the parent
