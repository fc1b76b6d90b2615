"""Trackers of experiments that a finished run is copied to. One file a tracker."""

from __future__ import annotations

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={"base": ["Tracked", "Tracker"]},
)
