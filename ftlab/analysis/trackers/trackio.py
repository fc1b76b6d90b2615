"""Trackio's store on this machine, `TRACKIO_DIR`.

Source: Hugging Face, github.com/gradio-app/trackio. Its storage is written directly: `trackio.init`
asks the hub for the user's name, follows `TRACKIO_SPACE_ID` and logs the machine's load.
"""

from __future__ import annotations

import contextlib
import shlex
import sys
from typing import Any

from ftlab._core.errors import UsageError
from ftlab.analysis.trackers.base import Tracked, Tracker, needs


class TrackioTracker(Tracker):
    """Each run is a run of a project, found again by its name."""

    name = "trackio"

    def write(self, runs: list[Tracked], project: str, at: str) -> str:
        if at:
            raise UsageError(
                "tracker_is_local",
                "Trackio is written on this machine only. Leave at= out; "
                "`trackio sync --project PROJECT --space-id USER/NAME` copies it to a Space.",
            )
        with needs("Trackio"), contextlib.redirect_stdout(sys.stderr):
            from trackio.sqlite_storage import SQLiteStorage as storage
        storage.validate_project_name(project)
        known = {record["name"] for record in storage.get_run_records(project)}
        for run in runs:
            if run.name not in known:
                _write(storage, project, run)
        return f"trackio show --project {shlex.quote(project)}"


def _write(storage: Any, project: str, run: Tracked) -> None:
    """Write a run in one transaction, so that none is there by half."""
    metrics = run.metrics or {0: {}}
    storage.bulk_log(
        project,
        run.name,
        list(metrics.values()),
        steps=list(metrics),
        config={**run.settings, **run.notes, "_Group": run.group},
    )


TRACKER = TrackioTracker()
