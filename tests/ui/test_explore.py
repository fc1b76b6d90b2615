"""Exploring: the numbers are those of the calls that are shown, and texts come on a tick only."""

from __future__ import annotations

import pytest
from helpers import raises_code
from hostile import assert_page
from ui.screens import html_of, named, said, send
from ui_runs import MARKUP

import ftlab as ft
from ftlab import ui

CHART = "Risk curve; Tab to a point and Enter to choose it"


def run_calls(panel) -> list:
    """Run the shown calls and return what their lines give."""
    names = {"ft": ft}
    values = []
    for line in panel.call().splitlines():
        if line.startswith("table"):
            exec(line, names)
        else:
            values.append(eval(line, names))
    return values


def assert_same(found, wanted) -> None:
    merged = found.merge(wanted, on=["risk", "step"], suffixes=("", "_wanted"))
    assert len(merged) == len(found) == len(wanted)
    for name in ("rate", "low", "high"):
        assert merged[name].tolist() == pytest.approx(merged[f"{name}_wanted"].tolist())


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"risks": ["bias"]},
        {"attacks": ["direct"], "steps": [0, 10]},
        {"seeds": [0, 1]},
        {"seeds": [1], "attacks": ["templates"], "risks": ["jailbreak"]},
        {"judge": "organism"},
    ],
    ids=str,
)
def test_the_call_gives_the_numbers_on_the_screen(curve, options):
    panel = ui.explore(curve.name, **options)
    (wanted,) = run_calls(panel)
    assert_same(panel.rates(), wanted)


def test_the_answers_are_those_of_the_call_changes_first(curve):
    panel = ui.explore(curve, attacks=["direct"])
    panel.pick("jailbreak", 10)
    panel.pages.show(True)
    _, wanted = run_calls(panel)
    found = panel.answers()
    changed = [row["changed"] for row in found]
    assert changed == sorted(changed, reverse=True) and any(changed) and not all(changed)
    key = ["sample_id", "seed", "before", "after"]
    assert {tuple(row[name] for name in key) for row in found} == {
        tuple(row) for row in wanted[key].itertuples(index=False)
    }
    assert len(found) == len(wanted)


def test_counts_are_those_of_the_table(curve):
    panel = ui.explore(curve)
    for step, seeds in ((10, 3), (30, 2), (0, 1)):
        panel.pick("jailbreak", step)
        table = curve.table().query(
            f"judge == 'refusal' and risk == 'jailbreak' and step == {step}"
        )
        if step == 0:
            table = table.query("seed == 0")
        assert panel.counts() == table["outcome"].value_counts().to_dict()
        assert sum(panel.counts().values()) == 60 * seeds


def test_what_was_not_measured_cannot_be_chosen(curve):
    panel = ui.explore(curve)
    for wrong in (
        lambda: panel.choose("risks", ["toxicity"]),
        lambda: panel.choose("seeds", []),
        lambda: panel.limit(11, 29),
        lambda: panel.pick("jailbreak", 11),
        lambda: ui.explore(curve, attacks=["prefill"]),
        lambda: ui.explore(curve, steps=["a"]),
        lambda: ui.explore(curve, steps=31),
    ):
        with raises_code("nothing_selected"):
            wrong()
    with raises_code("judge_not_in_table"):
        ui.explore(curve, judge="nobody")
    one = ui.explore(curve, risks="bias", seeds=0, steps=10)
    assert (one.chosen["risks"], one.chosen["seeds"], one.limits) == (["bias"], [0], (10, 10))
    assert panel.limits == (0, 30)


def test_no_text_of_a_model_is_shown_before_the_tick(curve):
    pytest.importorskip("anywidget")
    panel = ui.explore(curve)
    screen = panel.widget()
    send(screen, CHART, pick="jailbreak 10")
    assert panel.picked == ("jailbreak", 10)
    assert "alert(2)" not in html_of(screen) and "complied" in html_of(screen)
    named(screen, "Show the answers (the models' own words)").value = True
    page = html_of(screen)
    assert "alert(2)" in page and MARKUP not in page
    assert_page(page)


def test_the_screen_chooses_and_reports(curve):
    pytest.importorskip("anywidget")
    panel = ui.explore(curve)
    screen = panel.widget()
    named(screen, "bias").value = False
    assert panel.chosen["risks"] == ["jailbreak"]
    named(screen, "jailbreak").value = False
    assert "nothing" not in said(screen) and said(screen) != said(ui.explore(curve).widget())
    assert panel.chosen["risks"] == ["jailbreak"]  # as before
    named(screen, "Steps").value = (0, 10)
    assert panel.limits == (0, 10)
    named(screen, "2").value = False
    assert panel.chosen["seeds"] == [0, 1]
    named(screen, "Draw single seeds").value = False
    assert not panel.per_seed
    for odd in ("", "jailbreak", "jailbreak 999", "<b> 10"):
        send(screen, CHART, pick=odd)
    assert panel.picked is None


def test_pages_of_answers_hold_all_of_them_once(curve):
    pytest.importorskip("anywidget")
    panel = ui.explore(curve)
    panel.pages.show(True)
    panel.pick("jailbreak", 10)
    screen = panel.widget()
    pages = {panel.pages.page}
    for _ in range(12):
        named(screen, "Further answers").click()
        pages.add(panel.pages.page)
    assert len(pages) == -(-len(panel.answers()) // 20)
    named(screen, "Earlier answers").click()
    assert panel.pages.page == max(pages) - 1


def test_every_point_is_a_button_with_its_number(curve):
    panel = ui.explore(curve)
    chart = panel.chart()
    for row in panel.rates().to_dict("records"):
        assert f'data-pick="{row["risk"]} {row["step"]}"' in chart
    assert chart.count('role="button"') == len(panel.rates()) == chart.count("aria-pressed")


def test_an_evaluation_without_steps_is_shown_too(curve):
    table = curve.table()
    found = ui.explore(curve, steps=[0, 0])
    assert found.rates()["step"].tolist() == [0, 0]
    assert len(table) > 0


def test_the_answers_of_the_call_are_of_the_chosen_seeds(curve):
    for seeds, counts in (([1], (60, 60)), ([1, 2], (120, 60)), ([0, 1, 2], (180, 60))):
        panel = ui.explore(curve, seeds=seeds)
        for step, count in zip((10, 0), counts, strict=True):
            panel.pick("jailbreak", step)
            *_, wanted = run_calls(panel)
            assert len(wanted) == len(panel.answers()) == count
            assert set(wanted["seed"]) == set(seeds[: None if step else 1])


def test_where_nothing_was_scored_that_is_said(monkeypatch):
    rows = {"answers": [{"key": "a", "text": "x"}]}
    sample = {"id": "s", "messages": []}
    message = [{"role": "user", "content": "y"}]
    rows["prompts"] = [{"sample": sample, "attack": "direct", "messages": message}]
    verdict = {"key": "v", "answer_key": "a", "sample_id": "s", "attack": "direct", "step": 0}
    verdict |= {"judge": "j", "outcome": "unparsed", "event": None, "wording": "", "seed": 0}
    rows["verdicts"] = [verdict | {"risk": "jailbreak"}]
    run = ft.runs.start("evaluate", "unscored", {})
    for file, records in rows.items():
        run.append(f"{file}.jsonl", records)
    panel = ui.explore(run.complete(model="unscored"))
    panel.pick("jailbreak", 0)
    assert "jailbreak at step 0" in panel.plain()[-1] and "unparsed" in panel.plain()[-1]
    assert "rate" in panel.rates() and panel.chart()


def test_answers_that_are_gone_are_an_error_and_no_empty_rows(curve):
    panel = ui.explore(curve)
    panel.pick("jailbreak", 10)
    (curve.path / "answers.jsonl").write_text("")
    with raises_code("answers_not_there"):
        panel.pages.show(True)
    assert not panel.pages.texts and "complied" in panel.behind()
