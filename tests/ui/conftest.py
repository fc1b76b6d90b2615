"""What tests of panels share."""

from __future__ import annotations

import pytest
from ui_runs import make_curve


@pytest.fixture
def curve(tmp_path, monkeypatch):
    """A curve, and a working folder of its own for sheets."""
    monkeypatch.chdir(tmp_path)
    return make_curve()
