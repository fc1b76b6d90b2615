"""Runs that are there: list, verify, clean. Cell: runs."""

from __future__ import annotations

from typing import Any

import pandas as pd

from ftlab import runs as store
from ftlab._core.config import takes
from ftlab._core.errors import UsageError
from ftlab._core.shown import as_html
from ftlab.ui.panels.base import Frame, Panel, call_of, check_box, escaped

ALL = "all finished runs"
LISTED = ["name", "kind", "state", "started", "mb", "results"]


@takes()
def runs(*, verify: str = "", removable: bool = False, abandoned: bool = False) -> RunsPanel:
    """Show the runs that are there, verify them, and remove what nobody will need.

    Nothing is removed before it was listed, and then only what was listed.

    Args:
        verify: Verify this run at once, or "all finished runs".
        removable: List at once what could be removed.
        abandoned: Whether interrupted runs count as removable.

    Returns:
        The panel.

    Raises:
        NotFoundError: `no_such_run`.
    """
    found = RunsPanel()
    if verify:
        found.verify(verify)
    if removable:
        found.list_removable(abandoned)
    return found


class RunsPanel(Panel):
    """The runs of the folder of all runs.

    Attributes:
        table: What `ftlab.runs.list_runs` lists.
        verified: What was verified last, and the problems found; None before that.
        removable: What could be removed, as it was listed; None before that.
        abandoned: Whether interrupted runs count as removable.
    """

    name = "runs"
    title = "Runs"

    def __init__(self):
        self.verified: tuple[str, pd.DataFrame] | None = None
        self.removable: pd.DataFrame | None = None
        self.abandoned = False
        self.cleaned = False
        self.refresh()

    def refresh(self) -> None:
        """List the runs again."""
        self.table = store.list_runs()

    def verify(self, name: str = ALL) -> pd.DataFrame:
        """Read every byte of a run, or of all finished ones, and return what is wrong.

        Raises:
            NotFoundError: `no_such_run`.
        """
        names = [] if name == ALL else [name]
        found = store.verify_runs(*names)
        self.verified = (name, found)
        return found

    def list_removable(self, abandoned: bool = False) -> pd.DataFrame:
        """List what could be removed, and remove nothing."""
        self.abandoned = abandoned
        self.cleaned = False
        self.removable = store.clean_runs(abandoned=abandoned)
        return self.removable

    def clean(self) -> pd.DataFrame:
        """Remove what was listed.

        Raises:
            UsageError: `not_listed` where nothing was listed, or where it is no longer the same.
        """
        before = self.removable
        if before is None:
            raise UsageError("not_listed", "List what could be removed first.")
        now = store.clean_runs(abandoned=self.abandoned)
        columns = ["name", "what"]
        if not now[columns].equals(before[columns]):
            self.removable = now
            message = "Other runs could be removed now than were listed. Look at the list again."
            raise UsageError("not_listed", message)
        removed = store.clean_runs(yes=True, abandoned=self.abandoned)
        self.removable = None
        self.cleaned = True
        self.refresh()
        return removed

    def call(self) -> str:
        """Return the calls of the cells. None of them removes: what it would may be other runs."""
        lines = ["ft.runs.list_runs()"]
        if self.verified:
            name, _ = self.verified
            lines.append(call_of("ft.runs.verify_runs", *([] if name == ALL else [name])))
        if self.removable is not None or self.cleaned:
            lines.append(call_of("ft.runs.clean_runs", abandoned=self.abandoned or None))
        return "\n".join(lines)

    def parameters(self) -> dict[str, Any]:
        """Return the notebook's parameters; it removes nothing."""
        return self.choices()

    def choices(self) -> dict[str, Any]:
        """Return the arguments of the cell."""
        name, _ = self.verified or ("", None)
        return {
            "verify": name,
            "removable": self.removable is not None or self.cleaned,
            "abandoned": self.abandoned,
        }

    def listed(self) -> pd.DataFrame:
        """Return the list as it is shown."""
        shown = self.table[LISTED].copy()
        shown["mb"] = shown["mb"].map("{:,.1f}".format)
        return shown

    def found(self) -> list[Any]:
        """Return what was verified and what could be removed: words, and tables with rows."""
        parts: list[Any] = []
        if self.verified:
            name, problems = self.verified
            told = "nothing wrong" if problems.empty else f"{len(problems)} problems"
            parts += [f"{name}: {told}", problems]
        if self.removable is not None:
            told = "Nothing to remove" if self.removable.empty else "Could be removed:"
            parts += [told, self.removable]
        return [part for part in parts if isinstance(part, str) or len(part)]

    def plain(self) -> list[Any]:
        """Return the list, and what was found."""
        return [self.listed(), *self.found()]

    def widget(self) -> Any:
        """Return the widgets."""
        return _Widgets(self).box


class _Widgets:
    """The panel on the screen."""

    def __init__(self, state: RunsPanel):
        from ipywidgets import HTML, Button, Dropdown, HBox

        self.state = state
        self.frame = Frame(state)
        react = self.frame.reacting
        self.table = HTML()
        self.which = Dropdown(description="Run")
        self.found = HTML()
        told = "also interrupted runs, which could be resumed"
        self.abandoned = check_box(told, state.abandoned)
        self.sure = Button(description="Remove what is listed", button_style="danger")
        buttons = {
            "Refresh": lambda _: self.draw(refresh=True),
            "Verify": lambda _: self._verify(),
            "List what could be removed": lambda _: self._list(),
        }
        made = {}
        for name, action in buttons.items():
            made[name] = Button(description=name)
            made[name].on_click(react(action))
            made[name].layout.width = "auto"
        self.sure.layout.width = "auto"
        self.sure.on_click(react(lambda _: self._clean()))
        refresh, verify, listing = made.values()
        self.draw()
        self.draw_found()
        self.box = self.frame.show(
            refresh,
            self.table,
            HBox([self.which, verify]),
            HBox([listing, self.abandoned, self.sure]),
            self.found,
        )

    def draw(self, refresh: bool = False) -> None:
        if refresh:
            self.state.refresh()
        table = self.state.listed()
        self.table.value = as_html(table, filtered=True)
        self.which.options = [ALL, *table["name"]]
        self.which.value = ALL

    def draw_found(self) -> None:
        shown = ""
        for part in self.state.found():
            shown += f"<p>{escaped(part)}</p>" if isinstance(part, str) else as_html(part)
        self.found.value = shown
        removable = self.state.removable
        self.sure.disabled = removable is None or removable.empty

    def _verify(self) -> None:
        self.state.verify(self.which.value)
        self.draw_found()

    def _list(self) -> None:
        self.state.list_removable(self.abandoned.value)
        self.draw_found()

    def _clean(self) -> None:
        self.sure.disabled = True
        removed = self.state.clean()
        self.found.value = f"<p>Removed:</p>{as_html(removed)}"
        self.draw()
