"""The benchmark of panels at a tiny size: every control is moved, and does something; never a time."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from benchmarks import _reacting, panels
from benchmarks._running import BenchmarkFailed
from ftlab import runs

pytest.importorskip("anywidget")


def run_here(folder: Path, n_prompts: int, repeat: int, only: Sequence[str]) -> None:
    """Run in this process, where imports are paid once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FTLAB_RUNS", str(folder / "runs"))
        patch.setattr(_reacting, "OTHER_RUNS", 2)
        patch.setattr(_reacting, "OPENED", 1)
        _reacting.main(str(folder), n_prompts, repeat, only)


@pytest.mark.slow
def test_every_move_is_measured_and_written(tmp_path, capsys):
    saved = panels.measure(
        prompts=6, repeat=2, file=tmp_path / "x.json", out=tmp_path, run=run_here
    )
    assert saved == json.loads((tmp_path / "x.json").read_text())
    assert saved["answers"] == 6 * _reacting.ANSWERS_A_PROMPT
    assert list(saved["panels"]) == list(_reacting.PANELS)
    for moves in saved["panels"].values():
        assert "opened" in moves and len(moves) > 1
        assert all(found["least"] <= found["median"] <= found["most"] for found in moves.values())
    assert (tmp_path / "bench_panels.csv").exists()


def test_the_made_up_run_has_the_answers_of_a_curve():
    run = _reacting.made_run(2)
    table = run.table()
    assert run.finished and run.stats["answers"] == 2 * _reacting.ANSWERS_A_PROMPT
    assert table["answer_key"].nunique() == run.stats["answers"]
    assert set(table["judge"]) == set(_reacting.JUDGES)
    assert not set(runs.load(run.name).table()["outcome"]) - set(_reacting.OUTCOMES)


def test_a_failure_in_the_kernel_is_told(tmp_path):
    with pytest.raises(BenchmarkFailed):
        panels.in_a_kernel(tmp_path, -1, 1)
