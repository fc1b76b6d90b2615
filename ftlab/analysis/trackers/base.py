"""What a tracker of experiments is given.

A tracker is one file that defines a subclass of `Tracker` and ends in `TRACKER = Subclass()`.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, field

from ftlab._core.errors import UsageError


@dataclass(frozen=True)
class Tracked:
    """A finished run as trackers show it; no text of a prompt or an answer is in it.

    Args:
        name: The run's, by which a tracker finds it again.
        group: The run that this is a member of, such as a curve, or its own name.
        settings: Everything that could change the result, by dotted names.
        metrics: Numbers by name, at each step.
        notes: Where it came from: folder, commit, versions.
    """

    name: str
    group: str
    settings: dict[str, str | int | float] = field(default_factory=dict)
    metrics: dict[int, dict[str, float]] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)


class Tracker:
    """A tracker, through its own client.

    Attributes:
        name: Name of the file.
    """

    name = ""

    def write(self, runs: list[Tracked], project: str, at: str) -> str:
        """Write runs that the tracker does not hold yet.

        Args:
            runs: What to write.
            project: Name of the project, or experiment, that holds them.
            at: A server; "" for a store on this machine, without any network.

        Returns:
            How to look at them.

        Raises:
            UsageError: `tracker_missing`, `tracker_failed`, `tracker_is_local`.
        """
        raise NotImplementedError


@contextmanager
def needs(package: str):
    """Turn a missing package into a sentence."""
    try:
        yield
    except ImportError:
        raise UsageError(
            "tracker_missing",
            f"{package} is not installed. Install it: pip install 'ftlab[track]'.",
        ) from None
