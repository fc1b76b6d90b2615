"""Look at training rows: format, problems with their lines, loss mask, suspicious rows. Cell."""

from __future__ import annotations

import copy
from numbers import Integral
from pathlib import Path
from typing import Any

import pandas as pd

from ftlab import evals
from ftlab._core.config import takes
from ftlab._core.errors import FtlabError, UsageError
from ftlab.data import Preview, Report, check, preview
from ftlab.ui.panels.base import Frame, Panel, call_of, check_box, escaped, html_table, name_of

SHOWN = 20  # rows of an audit that are shown, the most suspicious ones
MOST_ROWS = 20  # rows of the loss mask


@takes()
def data(
    file: Any,
    model: Any = None,
    *,
    prompts: Any = None,
    kind: str | None = None,
    n_rows: int = 3,
    audit_by: str | None = None,
) -> DataPanel:
    """Look at a file of training rows before anything is trained on it.

    Args:
        file: As in `ftlab.data.check`.
        model: Whose tokenizer shows what carries loss, and who is asked by an audit: anything that
            `ftlab.model` takes.
        prompts: As in `ftlab.data.check`: evaluation prompts that must not be among the rows.
        kind: As in `ftlab.data.check`.
        n_rows: Rows whose loss mask is shown, up to 20.
        audit_by: Rank the rows at once: see `by` of `ftlab.evals.audit`.

    Returns:
        The panel.

    Raises:
        NotFoundError: There is no such file, folder or hub id.
        UsageError: Those of `ftlab.data.check` and `ftlab.evals.audit`.
    """
    found = DataPanel(file, model, prompts, kind)
    found.show_rows(n_rows)
    if audit_by:
        found.audit(audit_by)
    return found


class DataPanel(Panel):
    """What is known of a file.

    Args:
        file, model, prompts, kind: As in `data`.

    Attributes:
        report: What `ftlab.data.check` found.
        n_rows: Rows whose loss mask is shown.
        by: By what the rows were ranked; "" before that.
        scores: The ranked rows, or None.
        texts: Whether the ranked rows are shown in words.
    """

    name = "data"
    title = "Training rows"

    def __init__(self, file: Any, model: Any, prompts: Any, kind: str | None):
        self.file = file
        self.model = model
        self.prompts = prompts
        self.kind = kind
        self.report: Report = check(
            file,
            kind=kind,
            model=model,
            prompts=prompts,
        )
        self.n_rows = 3
        self.by = ""
        self.scores: pd.DataFrame | None = None
        self.texts = False
        self._most: Preview | None = None  # of as many rows as can be chosen

    def show_rows(self, n_rows: int) -> None:
        """Show the loss mask of so many rows.

        Raises:
            UsageError: `wrong_n_rows`.
        """
        if not isinstance(n_rows, Integral) or not 1 <= n_rows <= MOST_ROWS:
            message = f"n_rows={n_rows!r:.40} is not allowed. Give 1 to {MOST_ROWS}."
            raise UsageError("wrong_n_rows", message)
        self.n_rows = n_rows

    def mask(self) -> Preview | None:
        """Return the first rows with what carries loss; None where they cannot be shown."""
        kind = self._mask_kind()
        if not kind:
            return None
        if self._most is None:
            self._most = self._preview(MOST_ROWS, kind)
        if self._most is None:  # the first ones may be fine
            return self._preview(self.n_rows, kind)
        shown = copy.copy(self._most)
        chats_a_row = 2 if kind == "pairs" else 1
        shown.rows = shown.rows[: self.n_rows * chats_a_row]
        return shown

    def _preview(self, n_rows: int, kind: str) -> Preview | None:
        """Read the whole file and open the model's tokenizer; return the first rows."""
        try:
            return preview(self.file, self.model, n_rows=n_rows, kind=kind)
        except FtlabError:  # rows that only another method trains
            return None

    def _mask_kind(self) -> str:
        """Return as what the rows are shown; "" where they cannot be."""
        kind = self.report.format.rpartition(" ")[2].strip("()")
        if self.model is None or not self.report.usable or kind == "prompts":
            return ""
        return kind if kind in ("pairs", "kto") else "chats"

    def audit(self, by: str) -> None:
        """Rank the rows, the most suspicious first.

        Raises:
            UsageError: `model_needed`, and those of `ftlab.evals.audit`.
        """
        if self.model is None:
            raise UsageError("model_needed", "An audit asks a model. Give model=.")
        self.scores = evals.audit(
            self.file,
            self.model,
            by=by,
            texts=True,
        )
        self.by = by

    def suspicious(self) -> list[dict[str, Any]]:
        """Return the most suspicious rows; with their words on the tick only."""
        if self.scores is None:
            return []
        names = ["rank", "row", "score"]
        if self.texts:
            names += ["question", "answer"]
        rows = self.scores[names].head(SHOWN).to_dict("records")
        for row in rows:
            row["score"] = f"{row['score']:.4g}"
        return rows

    def problems(self) -> list[dict[str, str]]:
        """Return every problem with its code; its place is in its words."""
        pairs = zip(self.report.codes, self.report.problems, strict=True)
        return [{"code": code, "problem": problem} for code, problem in pairs]

    def call(self) -> str:
        """Return the calls of the cells."""
        given = {
            "kind": self.kind,
            "model": self.model,
            "prompts": self.prompts,
        }
        lines = [call_of("ft.data.check", self.file, **given)]
        mask = self._mask_kind()
        if mask:
            rows = {"n_rows": self.n_rows, "kind": mask}
            lines.append(call_of("ft.data.preview", self.file, self.model, **rows))
        if self.by:
            ranked = {"by": self.by, "texts": self.texts or None}
            lines.append(call_of("ft.evals.audit", self.file, self.model, **ranked))
        return "\n".join(lines)

    def parameters(self) -> dict[str, Any]:
        """Return the notebook's parameters."""
        chosen = {
            "kind": self.kind or "",
            "rows_shown": self.n_rows,
            "with_model": self.model is not None,
            "audit_by": self.by,
        }
        for name, value in {"data": self.file, "model": self.model}.items():
            if isinstance(name_of(value), str):  # and no rows
                chosen[name] = name_of(value)
        chosen["prompts"] = str(self.prompts) if isinstance(self.prompts, (str, Path)) else ""
        return chosen

    def choices(self) -> dict[str, Any]:
        """Return the arguments of the cell, and what it has no argument for."""
        return {
            "file": self.file,
            "model": self.model,
            "prompts": self.prompts,
            "kind": self.kind,
            "n_rows": self.n_rows,
            "audit_by": self.by,
            "texts": self.texts or None,
        }

    def plain(self) -> list[Any]:
        """Return the report, the loss mask and the ranked rows, without their words."""
        parts: list[Any] = [str(self.report)]
        mask = self.mask()
        if mask is not None:
            parts.append(mask)
        if self.scores is not None:
            parts.append(self.scores[["rank", "row", "score", "tokens"]].head(SHOWN))
        return parts

    def widget(self) -> Any:
        """Return the widgets."""
        return _Widgets(self).box


class _Widgets:
    """The panel on the screen."""

    def __init__(self, state: DataPanel):
        from ipywidgets import HTML, Button, Dropdown, HBox, IntSlider

        self.state = state
        self.frame = Frame(state)
        react = self.frame.reacting
        report = state.report
        verdict = "usable" if report.usable else f"{len(report.problems):,} problems"
        told = f"{report.name}: {report.format}, {report.ok:,} rows ok, {verdict}"
        notes = "".join(f"<li>{escaped(note)}</li>" for note in report.notes)
        problems = html_table(state.problems(), "Problems") if state.problems() else ""
        found = HTML(f"<p>{escaped(told)}</p><ul>{notes}</ul>{problems}")
        self.rows = IntSlider(state.n_rows, min=1, max=MOST_ROWS, description="Rows")
        self.rows.observe(react(lambda change: self._show_rows(change["new"])), "value")
        self.mask = HTML()
        self.by = Dropdown(
            options=list(evals.AUDITS),
            value=state.by or evals.AUDITS[0],
            description="Rank by",
        )
        rank = Button(description="Rank the rows", tooltip="ft.evals.audit; may take minutes")
        rank.on_click(react(lambda _: self._rank()))
        texts = check_box("Show the ranked rows in words", state.texts)
        texts.observe(react(self._show_texts), "value")
        self.scores = HTML()
        self.draw()
        parts = [found, self.rows, self.mask, HBox([self.by, rank, texts]), self.scores]
        self.box = self.frame.show(*parts)

    def draw(self) -> None:
        mask = self.state.mask()
        self.mask.value = "" if mask is None else mask._repr_html_()
        self.draw_scores()

    def draw_scores(self) -> None:
        rows = self.state.suspicious()
        self.scores.value = html_table(rows, f"Ranked by {self.state.by}") if rows else ""

    def _show_rows(self, n_rows: int) -> None:
        self.state.show_rows(n_rows)
        self.draw()

    def _rank(self) -> None:
        self.frame.tell("Ranking ...")
        self.state.audit(self.by.value)
        self.frame.tell("")
        self.draw_scores()

    def _show_texts(self, change: Any) -> None:
        self.state.texts = change["new"]
        self.draw_scores()
