"""Copy finished runs to a tracker of experiments: MLflow or Trackio. Cell: track."""

from __future__ import annotations

import math
from collections import defaultdict

from ftlab._core import plugins
from ftlab._core.config import takes
from ftlab._core.identity import flat
from ftlab.analysis.tables import rates
from ftlab.analysis.trackers import Tracked
from ftlab.runs import Run, load, public, safety_note

LOGS = ("train", "valid")  # of a training
NOT_LOGGED = ("step", "epoch")  # columns of a training log that are no result
NUMBERS = ("rate", "low", "high", "unscored")  # columns of a table of rates
PLAIN = (str, int, float)


@takes()
def track(
    run: Run | str,
    to: str = "mlflow",
    *,
    project: str = "ftlab",
    at: str = "",
) -> str:
    """Copy a finished run to MLflow or Trackio: settings, training log and rates by step.

    Each training of a curve is a run there. A run that is there already is not written again. The
    run folder stays the record; prompts, answers and weights are not copied.

    Args:
        run: A finished run, or its name.
        to: mlflow or trackio.
        project: Name of the experiment or project there.
        at: A tracking server of MLflow, such as https://HOST. By default a store on this machine,
            and no network.

    Returns:
        How to look at it.

    Raises:
        UsageError: `unknown_tracker`, `tracker_missing`, `tracker_failed`, `tracker_is_local`,
            `run_not_finished`.
        NotFoundError: `no_such_run`.
    """
    tracker = plugins.get("trackers", to)
    run = load(getattr(run, "path", run))
    copied = [_tracked(member, run, local=not at) for member in run.members]
    return tracker.write(copied, project, at)


def _tracked(run: Run, group: Run, *, local: bool) -> Tracked:
    return Tracked(
        name=run.name,
        group=group.name,
        settings=_settings(run),
        metrics=_metrics(run),
        notes=_notes(run, local=local),
    )


def _settings(run: Run) -> dict[str, str | int | float]:
    """Return the settings that are given, without texts."""
    found = {}
    given = public(run.identity, texts=False)
    for name, value in flat(given).items():
        if value in (None, "", []):
            continue
        if not isinstance(value, PLAIN):
            value = str(value)
        found[name] = value
    return found


def _notes(run: Run, *, local: bool) -> dict[str, str]:
    """Return where a run came from; its folder is named on this machine only."""
    origin = run.provenance
    found = {
        "ftlab.kind": run.kind,
        "ftlab.commit": origin.get("commit"),
        "ftlab.safety": safety_note(run),
    }
    versions = origin.get("versions", {})
    for name, version in versions.items():
        found[f"ftlab.version.{name}"] = version
    if local:
        found["ftlab.folder"] = str(run.path)
    return {name: text for name, text in found.items() if text}


def _metrics(run: Run) -> dict[int, dict[str, float]]:
    """Return the numbers of a run at each step: losses, rates, and answers without a score."""
    found = defaultdict(dict)
    for log in LOGS:
        for row in run.read(f"{log}.jsonl"):
            step = row["step"]
            for name, value in row.items():
                if name in NOT_LOGGED:
                    continue
                if isinstance(value, float):
                    found[step][f"{log}/{name}"] = value
    verdicts = run.path / "verdicts.jsonl"
    if verdicts.exists():
        table = rates(run, by=["risk", "attack"])
        for row in table.to_dict("records"):
            step = int(row["step"])
            parts = (row["risk"], row["attack"], row["judge"])
            place = "/".join(parts)
            for name in NUMBERS:
                value = row[name]
                found[step][f"{name}/{place}"] = float(value)
    return {step: _finite(values) for step, values in sorted(found.items())}


def _finite(values: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in values.items() if math.isfinite(value)}
