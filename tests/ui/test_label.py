"""Labelling: every key is on disk, undo takes it back, and the rate is that of the whole sheet."""

from __future__ import annotations

import pandas as pd
import pytest
from helpers import raises_code
from ui.screens import html_of, named, said, send

import ftlab as ft
from ftlab import ui
from ftlab.evals import draw
from ftlab.runs import read_labels
from ftlab.ui.panels.label import KEYS, MOVES, UNDO


def sheet_of(panel) -> pd.DataFrame:
    return pd.read_csv(panel.path, dtype=str, keep_default_na=False, encoding="utf-8-sig")


def truths(curve, panel) -> list[str]:
    """What the exact judge says of each drawn answer, in the order of the sheet."""
    table = curve.table().query("judge == 'organism'").drop_duplicates("answer_key")
    names = table["risk"] + " " + table["answer_key"]
    outcomes = dict(zip(names, table["outcome"], strict=True))
    return [outcomes[key] for key in panel._population.keys.values()]


def fill(panel, outcomes) -> None:
    keys = {str(outcome): key for key, outcome in KEYS.items()}
    for outcome in outcomes:
        panel.press(keys[outcome])


@pytest.fixture
def panel(curve):
    return ui.label(curve, 6, labeller="AB", risk="jailbreak")


def test_each_key_is_on_disk_at_once(panel):
    for count, key in enumerate("rcpwie", 1):
        assert panel.press(key)
        sheet = sheet_of(panel)
        assert (sheet["label"] != "").sum() == count
        assert sheet["label"][count - 1] == str(KEYS[key])
        assert sheet["labeller"][count - 1] == "AB"
    assert not panel.press("x")


def test_the_sheet_is_the_one_that_draw_writes(curve, panel, tmp_path):
    wanted = draw(curve, 6, out=tmp_path / "by_hand.csv", risk="jailbreak")
    panel.press("r")
    found = sheet_of(panel)
    assert found["answer_id"].tolist() == wanted["answer_id"].tolist()
    by_hand = pd.read_csv(tmp_path / "by_hand.csv", dtype=str, encoding="utf-8-sig")
    assert found["answer"].tolist() == by_hand["answer"].tolist()


def test_undo_takes_the_last_labels_back_in_their_order(panel):
    before = [sheet_of(panel) if panel.path.exists() else None]
    for key in "rcp":
        panel.press(key)
        before.append(sheet_of(panel))
    panel.press("ArrowLeft")
    for content in (before[2], before[1]):
        assert panel.press("u")
        assert sheet_of(panel)["label"].tolist() == content["label"].tolist()
    assert panel.mine.at == 1
    panel.press("Backspace")
    assert panel.n_done == 0 and not panel.undo()


def test_a_label_can_be_changed_and_changed_back(panel):
    panel.press("r")
    panel.press("ArrowLeft")
    panel.press("c")
    assert panel.mine.labels[0] == "complied" and panel.n_done == 1 and panel.mine.at == 1
    panel.press("u")
    assert panel.mine.labels[0] == "refused"


def test_moving_stays_inside_and_labels_nothing(panel):
    for key in [*["ArrowLeft"] * 3, *["ArrowRight"] * 99]:
        panel.press(key)
    assert panel.mine.at == len(panel.rows) - 1 and not panel.path.exists()


def test_the_same_call_goes_on_where_it_was_left(curve, panel):
    fill(panel, ["refused", "complied"])
    again = ui.label(curve, 6, labeller="AB", risk="jailbreak")
    assert again.mine.labels == panel.mine.labels and again.mine.at == 2


def test_nobody_labels_without_a_name(curve):
    panel = ui.label(curve, 6)
    with raises_code("wrong_labeller"):
        panel.press("r")
    for name in ("", "a/b", "=1", "x" * 41, ".."):
        with raises_code("wrong_labeller"):
            panel.become(name)
    assert panel.n_done == 0


def test_a_sheet_of_another_draw_is_not_written_over(curve, panel):
    fill(panel, ["refused"] * len(panel.rows))
    content = panel.path.read_bytes()
    with raises_code("file_exists"):
        ui.label(curve, 2, labeller="AB", risk="jailbreak")
    with raises_code("file_exists"):
        ui.label(curve, 6, labeller="AB", risk="bias")
    assert panel.path.read_bytes() == content


def test_a_full_sheet_gives_the_rates_of_the_sheet(curve, panel):
    fill(panel, truths(curve, panel))
    found = panel.rates()
    wanted = ft.rates(curve, labels=panel.path)
    for name in ("step", "rate", "low", "high", "labels"):
        assert found[name].tolist() == pytest.approx(wanted[name].tolist()), name
    judged = ft.rates(curve, judge="refusal", risk="jailbreak")
    assert found["judge_rate"].tolist() == pytest.approx(judged["rate"].tolist())
    assert read_labels(panel.path).labellers == ("AB",)


def test_the_rate_moves_and_stays_an_estimate_of_the_truth(curve):
    panel = ui.label(curve, 20, labeller="AB", risk="jailbreak", steps=[0, 10])
    seen = []
    for outcome in truths(curve, panel):
        fill(panel, [outcome])
        rows = panel.rates()
        seen.append(rows["labels"].sum())
        known = rows[rows["labels"] > 0]
        assert known["rate"].between(0, 1).all() and (known["low"] <= known["high"]).all()
    assert sorted(set(seen)) == list(range(1, len(panel.rows) + 1))  # every label counts once
    truth = ft.rates(curve, judge="organism", risk="jailbreak", steps=[0, 10])["rate"]
    assert ((rows["low"] <= truth) & (truth <= rows["high"])).all()
    widths = rows["high"] - rows["low"]
    assert (widths > 0).all()


def test_labels_behind_a_gap_do_not_count_yet(curve):
    panel = ui.label(curve, 6, labeller="AB", risk="jailbreak", steps=[0, 10])
    panel.press("ArrowRight")
    panel.press("c")
    assert panel.n_done == 1 and panel.rates()["labels"].sum() == 0
    panel.press("ArrowLeft")
    panel.mine.at = 0
    panel.press("c")
    assert panel.rates()["labels"].sum() == 2


def test_agreement_is_told_at_the_end_only(curve, panel):
    fill(panel, truths(curve, panel))
    assert panel.agreement() == ""
    panel.become("CD")
    assert panel.n_done == 0
    outcomes = truths(curve, panel)
    fill(panel, outcomes[:-1])
    assert panel.agreement() == ""
    fill(panel, ["empty"])
    told = panel.agreement()
    assert f"{len(outcomes) - 1} of {len(outcomes)}" in told and "AB" in told


def test_what_is_shown_tells_neither_judge_nor_side(curve, panel):
    pytest.importorskip("anywidget")
    for _ in range(len(panel.rows)):
        page = panel.shown()
        for row in curve.table()[["judge", "seed"]].drop_duplicates().to_dict("records"):
            assert f">{row['judge']}" not in page
        assert "step" not in page and "parent" not in page and "verdict" not in page
        panel.press("ArrowRight")


def test_the_screen_labels_by_key_and_by_button(curve):
    pytest.importorskip("anywidget")
    panel = ui.label(curve, 6, risk="jailbreak")
    screen = panel.widget()
    pad = "The answer to label"
    send(screen, pad, key="r")
    assert panel.n_done == 0 and "Labeller" in said(screen)
    named(screen, "Labeller").value = "AB"
    send(screen, pad, key="r")
    named(screen, "complied (c)").click()
    assert panel.mine.labels[:2] == ["refused", "complied"] and "Labeller" not in said(screen)
    assert "corrected by" in html_of(screen)
    named(screen, "Show the rate").value = False
    assert "corrected by" not in html_of(screen)
    named(screen, "Undo (u)").click()
    assert panel.n_done == 1
    assert named(screen, pad).key_names == [*KEYS, *UNDO, *MOVES]
