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
def runs() -> RunsPanel:
    """Show the runs that are there, verify them, and remove what nobody will need.

    Nothing is removed before it was listed, and then only what was listed.

    Returns:
        The panel.
    """
    return RunsPanel()


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
        """Return the notebook's parameters: it lists the runs whatever they are."""
        return {}

    def choices(self) -> dict[str, Any]:
        """Return what the cell has no argument for."""
        return {
            "verified": self.verified[0] if self.verified else None,
            "removable": True if self.removable is not None or self.cleaned else None,
        }

    def plain(self) -> list[Any]:
        """Return the list."""
        shown = self.table[LISTED].copy()
        shown["mb"] = shown["mb"].map("{:,.1f}".format)
        return [shown]

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
        self.abandoned = check_box("also interrupted runs, which could be resumed", False)
        self.sure = Button(
            description="Remove what is listed", disabled=True, button_style="danger"
        )
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
        (table,) = self.state.plain()
        self.table.value = as_html(table, filtered=True)
        self.which.options = [ALL, *table["name"]]
        self.which.value = ALL

    def _verify(self) -> None:
        found = self.state.verify(self.which.value)
        told = f"{self.which.value}: nothing wrong"
        self.found.value = f"<p>{escaped(told)}</p>" if found.empty else as_html(found)

    def _list(self) -> None:
        found = self.state.list_removable(self.abandoned.value)
        self.found.value = "<p>Nothing to remove</p>" if found.empty else as_html(found)
        self.sure.disabled = found.empty

    def _clean(self) -> None:
        self.sure.disabled = True
        removed = self.state.clean()
        self.found.value = f"<p>Removed:</p>{as_html(removed)}"
        self.draw()
