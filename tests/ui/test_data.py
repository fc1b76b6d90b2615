"""Training rows: every problem with its line, the loss mask, and ranked rows without words."""

from __future__ import annotations

import pytest
from helpers import jsonl, raises_code
from hostile import assert_page
from ui.screens import html_of, named, said
from ui_runs import MARKUP

import ftlab as ft
from ftlab import ui
from ftlab._core.errors import UsageError
from ftlab.data import check


def rows(n: int) -> list[dict]:
    return [{"prompt": f"Name tree {k}.", "completion": f"It is {MARKUP} {k}."} for k in range(n)]


def test_problems_are_those_of_check_with_their_lines(tmp_path):
    file = jsonl(tmp_path / "a.jsonl", *rows(3), '{"prompt": 5}', "no json")
    panel = ui.data(file)
    found = panel.problems()
    report = check(file)
    assert [row["problem"] for row in found] == report.problems and len(found) == 2
    assert [row["code"] for row in found] == report.codes
    assert all(f"a.jsonl:{line}" in row["problem"] for line, row in zip((4, 5), found, strict=True))
    assert panel.mask() is None


def test_the_loss_mask_shows_so_many_rows(tmp_path):
    panel = ui.data(jsonl(tmp_path / "a.jsonl", *rows(5)), "organism", n_rows=2)
    assert len(panel.mask().rows) == 2
    for wrong in (0, 21, "3", None):
        with raises_code("wrong_n_rows"):
            panel.show_rows(wrong)


@pytest.mark.parametrize("kind", ["chats", "pairs"])
def test_any_number_of_rows_is_shown_as_by_preview_and_the_file_is_read_once(
    kind, tmp_path, monkeypatch
):
    pairs = [{"prompt": f"Tree {k}?", "chosen": "Yes.", "rejected": "No."} for k in range(6)]
    written = pairs if kind == "pairs" else rows(6)
    file = jsonl(tmp_path / "a.jsonl", *written)
    panel = ui.data(file, "organism", kind=kind)
    read = []

    def counted(*given, **settings):
        read.append(settings["n_rows"])
        return ft.data.preview(*given, **settings)

    monkeypatch.setattr("ftlab.ui.panels.data.preview", counted)
    for n_rows in (1, 6, 20, 3):
        panel.show_rows(n_rows)
        same = ft.data.preview(file, "organism", n_rows=n_rows, kind=kind)
        assert panel.mask()._repr_html_() == same._repr_html_()
    assert len(read) == 1


def test_a_later_row_that_cannot_be_shown_does_not_hide_the_first(tmp_path, monkeypatch):
    def only_some(*given, n_rows, kind):
        if n_rows > 3:
            raise UsageError("template", "The chat template refuses row 4.")
        return ft.data.preview(*given, n_rows=n_rows, kind=kind)

    monkeypatch.setattr("ftlab.ui.panels.data.preview", only_some)
    panel = ui.data(jsonl(tmp_path / "a.jsonl", *rows(5)), "organism")
    assert len(panel.mask().rows) == 3
    panel.show_rows(4)
    assert panel.mask() is None


def test_a_ranking_shows_no_words_before_the_tick(tmp_path):
    panel = ui.data(jsonl(tmp_path / "a.jsonl", *rows(5)), "organism", audit_by="refusal")
    assert [row["rank"] for row in panel.suspicious()] == [1, 2, 3, 4, 5]
    assert "answer" not in panel.suspicious()[0] and "onerror" not in str(panel.plain()[2])
    panel.texts = True
    assert "onerror" in panel.suspicious()[0]["answer"]
    assert "audit" in panel.call() and panel.parameters()["audit_by"] == "refusal"


def test_the_calls_give_what_is_shown(tmp_path):
    pairs = [{"prompt": f"Tree {k}?", "chosen": "Yes.", "rejected": "No."} for k in range(4)]
    panel = ui.data(jsonl(tmp_path / "a.jsonl", *pairs), "organism", kind="pairs")
    _, mask = [eval(line, {"ft": ft}) for line in panel.call().splitlines()]
    assert str(mask) == str(panel.mask()) and len(mask.rows) == 6


def test_rows_in_memory_stand_in_no_command():
    panel = ui.data(rows(2), "organism")
    assert "data" not in panel.parameters() and "Name tree" not in panel.papermill()
    assert "file" in panel.left_out()


def test_an_audit_needs_a_model(tmp_path):
    with raises_code("model_needed"):
        ui.data(jsonl(tmp_path / "a.jsonl", *rows(2)), audit_by="refusal")


def test_the_screen_ranks_and_escapes(tmp_path):
    pytest.importorskip("anywidget")
    panel = ui.data(jsonl(tmp_path / "a.jsonl", *rows(5)), "organism")
    screen = panel.widget()
    named(screen, "Rows").value = 4
    assert panel.n_rows == 4
    named(screen, "Rank by").value = "refusal"
    named(screen, "Rank the rows").click()
    assert panel.by == "refusal" and "Ranking" not in said(screen)
    named(screen, "Show the ranked rows in words").value = True
    page = html_of(screen)
    assert "onerror" in page and MARKUP not in page
    assert_page(page)
