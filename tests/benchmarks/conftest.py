"""A tiny size of the benchmarks, and work prepared in it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from benchmarks import _work

TINY = replace(
    _work.SIZES["organism"],
    points=(0, 2, 4),
    batch_size=4,
    n_prompts=6,
    pilot=4,
    repeat=1,
    share={
        "reference": (1, 2),
        "batched": (1, 4),
        "ftlab": (3, 6),
        "ftlab without drafts": (3, 4),
        "floor": (2, 6),
    },
)


@pytest.fixture(scope="session")
def tiny() -> _work.Size:
    """Return a size whose curve takes seconds."""
    return TINY


@pytest.fixture
def work(tmp_path) -> _work.Work:
    """Return prepared work of the tiny size with the embedded model."""
    folder = tmp_path / "work"
    folder.mkdir()
    return _work.prepare(TINY, "organism", folder)
