"""Figures of tables and runs: one module per kind."""

from __future__ import annotations

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "_axes": ["counted", "look_of", "ordered", "percent", "risk_name"],
        "_drawing": ["Drawing"],
        "_kinds": ["Kind"],
        "live": ["live_chart"],
        "plotting": ["plot"],
    },
)
