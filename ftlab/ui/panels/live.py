"""The live figure of a training: its loss, and the risks measured so far."""

from __future__ import annotations

from typing import Any

from ftlab import analysis


class LivePanel:
    """Draws what a training has reported so far."""

    name = "live"

    def draw(
        self, title: str, points: list[dict[str, Any]], losses: list[tuple[int, float]]
    ) -> Any:
        """Return a picture that Jupyter displays.

        Args:
            title: Name of the run.
            points: Measured rates, each with step, metric and rate (0 to 1).
            losses: Pairs of optimiser step and training loss.
        """
        return analysis.live_chart(title, points, losses)


PANEL = LivePanel()
