"""Runs that are only read are made once a session."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """-> function (cell, ...) -> the run of that call, made once per session. Only to be read."""
    home = tmp_path_factory.mktemp("trained")

    def train(cell, *given, **settings):
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("FTLAB_RUNS", str(home))
            return cell(*given, **settings)

    return train


@pytest.fixture
def often(monkeypatch):
    """A checkpoint after every step."""
    monkeypatch.setenv("FTLAB_CHECKPOINT_SECONDS", "0")
