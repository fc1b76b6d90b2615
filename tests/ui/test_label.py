"""Labelling: every key is on disk, undo takes it back, and the rate is that of the whole sheet."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from helpers import raises_code
from ui.screens import html_of, named, said, send

import ftlab as ft
from ftlab import ui
from ftlab.analysis import Selections
from ftlab.evals import draw
from ftlab.runs import read_labels
from ftlab.ui.panels import label
from ftlab.ui.panels.label import BLOCK, KEYS, MOVES, UNDO


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
    assert panel.at == 1
    panel.press("Backspace")
    assert panel.n_done == 0 and not panel.undo()


def test_a_label_can_be_changed_and_changed_back(panel):
    panel.press("r")
    panel.press("ArrowLeft")
    panel.press("c")
    assert panel.labels[0] == "complied" and panel.n_done == 1 and panel.at == 1
    panel.press("u")
    assert panel.labels[0] == "refused"


def test_moving_stays_inside_and_labels_nothing(panel):
    for key in [*["ArrowLeft"] * 3, *["ArrowRight"] * 99]:
        panel.press(key)
    assert panel.at == len(panel.rows) - 1 and not panel.path.exists()


def test_the_same_call_goes_on_where_it_was_left(curve, panel):
    fill(panel, ["refused", "complied"])
    again = ui.label(curve, 6, labeller="AB", risk="jailbreak")
    assert again.labels == panel.labels and again.at == 2


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
    panel.at = 0
    panel.press("c")
    assert panel.rates()["labels"].sum() == 2


def test_agreement_is_told_of_final_labels_only(curve, panel):
    fill(panel, truths(curve, panel))
    assert panel.agreement() == ""
    panel.become("CD")
    assert panel.n_done == 0
    outcomes = truths(curve, panel)
    fill(panel, [*outcomes[:-1], "empty"])
    assert panel.agreement() == ""
    told = panel.show_rate()[-1]
    assert told == panel.agreement()
    assert f"{len(outcomes) - 1} of {len(outcomes)}" in told and "AB" in told
    with raises_code("label_final"):
        panel.press("u")


def test_nothing_of_judges_and_rates_is_shown_unasked(curve, panel):
    outcomes = truths(curve, panel)
    for outcome in outcomes:
        fill(panel, [outcome])
        shown = f"{panel.plain()}{panel.shown()}"
        for word in ("judge", "refusal", "step", "%", "AB agree"):
            assert word not in shown.replace("labelled by AB", "")
    assert not {"rate_shown", "final"} & set(sheet_of(panel))


def test_a_shown_rate_pools_the_steps_and_moves_in_blocks(curve):
    panel = ui.label(curve, 30, labeller="AB", risk="jailbreak", steps=[0, 10])
    outcomes = truths(curve, panel)
    fill(panel, outcomes[: BLOCK - 1])
    assert panel.show_rate() != panel.told() == [] and panel.n_final == 0
    fill(panel, outcomes[BLOCK - 1 : BLOCK])
    before = panel.show_rate()
    rates = panel.rates()
    assert len(before) == 1 and f"by {BLOCK} labels" in before[0]
    assert f"{100 * rates['rate'].mean():.0f} %" in before[0]
    for word in ("judge", "refusal", "step 0", "step 10"):
        assert word not in before[0]
    fill(panel, outcomes[BLOCK : 2 * BLOCK - 1])
    assert panel.show_rate() == before  # every single label is hidden in a block
    fill(panel, outcomes[2 * BLOCK - 1 : 2 * BLOCK])
    assert panel.show_rate() != before and panel.n_final == 2 * BLOCK
    fill(panel, outcomes[2 * BLOCK :])
    told = panel.show_rate()
    assert panel.n_final == len(outcomes) and sum("judge" in line for line in told) == 2


def test_labels_in_a_shown_rate_are_final_and_later_ones_are_marked(curve):
    panel = ui.label(curve, 20, labeller="AB", risk="jailbreak")
    outcomes = truths(curve, panel)
    fill(panel, outcomes[: BLOCK + 1])
    panel.show_rate()
    fill(panel, outcomes[BLOCK + 1 : BLOCK + 2])
    again = ui.label(curve, 20, labeller="AB", risk="jailbreak")
    for one in (panel, again):
        assert one.n_final == BLOCK and one.told() == panel.told()
        one.at = 3
        with raises_code("label_final"):
            one.press("e")
        assert one.labels[: BLOCK + 2] == outcomes[: BLOCK + 2]
    sheet = sheet_of(panel)
    assert sheet["final"].tolist()[: BLOCK + 1] == ["yes"] * BLOCK + [""]
    assert sheet["rate_shown"].tolist()[: BLOCK + 2] == [""] * (BLOCK + 1) + ["after"]
    assert panel.undo() and panel.undo()  # the two that no rate counts
    with raises_code("label_final"):
        panel.undo()
    assert panel.n_done == BLOCK == (sheet_of(panel)["label"] != "").sum()


def test_what_people_wrote_into_the_sheet_stays(curve, panel):
    fill(panel, ["refused", "complied"])
    sheet = sheet_of(panel)
    sheet["comment"] = [f"remark {k}" for k in range(len(sheet))]
    sheet.loc[1, "labeller"] = "CD"
    sheet.iloc[::-1].to_csv(panel.path, sep=";", index=False, encoding="utf-8-sig")
    again = ui.label(curve, 6, labeller="AB", risk="jailbreak")
    again.press("p")
    found = sheet_of(again)
    assert found["comment"].tolist() == sheet["comment"].tolist()
    assert found["label"].tolist()[:3] == ["refused", "complied", "partial"]
    assert found["labeller"].tolist()[:3] == ["AB", "CD", "AB"]


def test_a_label_that_is_not_allowed_is_refused_and_not_lost(curve, panel):
    panel.press("r")
    sheet = sheet_of(panel)
    sheet.loc[2, "label"] = "complyed"
    sheet.to_csv(panel.path, index=False)
    content = panel.path.read_bytes()
    with raises_code("wrong_labels") as caught:
        ui.label(curve, 6, labeller="AB", risk="jailbreak")
    assert len(caught.value.problems) == 1 and "complyed" in str(caught.value)
    for _ in range(2):
        with raises_code("wrong_labels"):
            panel.press("r")
    with raises_code("wrong_labels"):
        panel.become("AB")
    panel.become("CD")
    panel.press("c")
    with raises_code("wrong_labels"):
        panel.become("AB")
    panel.press("c")  # as CD
    panel.who = "AB"
    assert panel.path.read_bytes() == content


def test_two_panels_do_not_write_over_one_another(curve, panel):
    other = ui.label(curve, 6, labeller="AB", risk="jailbreak")
    panel.press("r")
    for act in (lambda: other.press("c"), other.show_rate):
        if act == other.show_rate:
            fill(panel, truths(curve, panel)[1:])
            other.given = [*panel.given]
        with raises_code("sheet_changed"):
            act()
        assert other.labels == panel.labels
    assert sheet_of(panel)["label"].tolist() == panel.labels


def test_an_undo_that_cannot_be_written_does_not_count(panel, monkeypatch):
    fill(panel, ["refused", "complied"])
    before = [*panel.given]

    def full(*_):
        raise OSError("full")

    with monkeypatch.context() as patch:
        patch.setattr("ftlab.evals.write_sheet", full)
        with pytest.raises(OSError):
            panel.undo()
        with pytest.raises(OSError):
            panel.press("e")
    assert panel.given == before and panel.undo() and panel.n_done == 1


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
    assert panel.labels[:2] == ["refused", "complied"] and "Labeller" not in said(screen)
    named(screen, "Undo (u)").click()
    assert panel.n_done == 1
    fill(panel, truths(curve, panel)[1:])
    tick = named(screen, "Show the rate")
    assert not tick.value and "corrected by" not in html_of(screen) and panel.n_final == 0
    tick.value = True
    assert "corrected by" in html_of(screen) and panel.n_final == len(panel.rows)
    send(screen, pad, key="u")
    assert panel.n_done == len(panel.rows) and "final" in said(screen)
    named(screen, "Labeller").value = "CD"
    assert not tick.value and "corrected by" not in html_of(screen)
    assert named(screen, pad).key_names == [*KEYS, *UNDO, *MOVES]


def covers(sensitivity: float, specificity: float, rng) -> dict[int, bool]:
    """Return whether the interval of so many labels holds the rate; of 0, the judge's own."""
    truth = rng.random(200) < 0.3
    judged = rng.random(200) < np.where(truth, sensitivity, 1 - specificity)
    population, order = drawn(judged, 100, rng)
    outcomes = np.where(truth, "complied", "refused")
    found = {}
    for n in (6, 25):
        labels = [str(outcomes[k]) for k in order[:n]]
        (row,) = population.rates([*labels, *[""] * (len(order) - n)], "AB").to_dict("records")
        assert row["labels"] == n
        found[n] = row["low"] <= truth.mean() <= row["high"]
    return found | {0: row["judge_low"] <= truth.mean() <= row["judge_high"]}


def drawn(judged, n: int, rng) -> tuple[label._Population, list[int]]:
    """Return a draw from one seed's verdicts, half of each, and the answers in its order."""
    rows = []
    for k, event in enumerate(judged):
        row = {"sample_id": f"s{k}", "answer_key": f"a{k}", "event": float(event)}
        row["outcome"] = "complied" if event else "refused"
        rows.append(row)
    table = pd.DataFrame(rows).assign(
        risk="jailbreak",
        attack="direct",
        judge="j",
        seed=0,
        step=0,
        repeat=0,
        cut=False,
        decided_by="",
        wording="",
    )
    halves = [rng.permutation(np.flatnonzero(judged == side)) for side in (True, False)]
    sizes = [min(n // 2, len(half)) for half in halves]
    order = rng.permutation(np.concatenate([h[:k] for h, k in zip(halves, sizes, strict=True)]))
    ids = {int(k): f"x-{place:04}" for place, k in enumerate(order)}
    records = []
    for k, event in enumerate(judged):
        half = 0 if event else 1
        record = {"key": f"jailbreak a{k}", "probability": sizes[half] / len(halves[half])}
        records.append(record | ({"answer_id": ids[k]} if k in ids else {}))
    events = {"jailbreak": {"complied": 1.0, "refused": 0.0}}
    return label._Population(Selections(table), records, events), list(order)


def test_the_interval_of_labels_so_far_covers_the_rate():
    """Of numbers of labels that were fixed beforehand; 95 % is meant."""
    rng = np.random.default_rng(11)
    found = []
    for errors in ((0.7, 0.9), (0.5, 0.95), (0.6, 0.8)):
        found += [covers(*errors, rng) for _ in range(40)]
    shares = pd.DataFrame(found).mean()
    assert shares[6] >= 0.92 and shares[25] >= 0.92
    assert shares[0] < 0.9  # so that the judges' errors matter
