"""The arms at tiny sizes: equal verdicts, stated shares, counted work; never a time."""

from __future__ import annotations

import gc
import json
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from benchmarks import _arms, _running, _today, curve

pytestmark = pytest.mark.slow


def run_here(arm: str, work, name: str) -> dict:
    """Run an arm, and the processes that it would start, in this process: imports are paid once."""

    def task_here(work, task: str, *arguments) -> dict:
        _today.main(task, work.folder, *map(str, arguments))
        return json.loads((Path(work.folder) / f"{task}.json").read_text())

    folder = Path(work.folder) / name
    folder.mkdir()
    replace(work, folder=str(folder)).save(folder / "work.json")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FTLAB_RUNS", str(folder / "runs"))
        patch.setattr(_arms, "in_process", task_here)
        _arms.main(arm, str(folder / "work.json"))
    gc.unfreeze()
    return json.loads((folder / "found.json").read_text())


@pytest.fixture(scope="module")
def measured(tmp_path_factory, tiny):
    """Return what a tiny curve benchmark wrote, and its folder; one arm has its own processes."""
    out = tmp_path_factory.mktemp("bench")
    real = _running.run_arm

    def run_arm(arm: str, *where) -> dict:
        run = real if arm == "reference" else run_here
        return run(arm, *where)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_running, "run_arm", run_arm)
        curve.measure({"organism": tiny}, file=out / "bench.json", out=out)
    return json.loads((out / "bench.json").read_text()), out


def test_all_arms_give_the_same_answers_and_verdicts(measured):
    found, _ = measured
    assert found["verdicts_equal"]
    assert found["compared"] == 2 + 4 + 3 * 4
    assert found["answers_differ"] == 0
    assert found["answers"] == 3 * 6
    assert list(found["outcomes"]) == ["0", "2", "4"]
    assert found["arms"]["ftlab without drafts"]["parts"]["drafted"] == 0
    assert found["arms"]["ftlab"]["parts"]["drafted"] > 0


def test_every_arm_states_its_share(measured, tiny):
    found, out = measured
    shares = {arm: numbers["measured_share"] for arm, numbers in found["arms"].items()}
    shares["floor"] = found["floor"]["measured_share"]
    assert shares == pytest.approx({arm: tiny.share_of(arm) for arm in curve.ARMS})
    table = pd.read_csv(out / "bench_curve.csv", keep_default_na=False).set_index("arm")
    assert table["note"]["ftlab"] == ""
    assert "scaled from 0.11" in table["note"]["reference"]
    assert found["floor"]["sampler"] in found["floor"]["tried_s"]


def test_rates_count_their_work(work):
    for way in ("ftlab", "defaults"):
        assert _arms.train_rate(work, way)["amount"] == 4
    own = _arms.generate_rate(work, "ftlab")
    batched = _arms.generate_rate(work, "64")
    assert own["amount"] == batched["amount"] == 6
    assert own["tokens"] == batched["tokens"] > 6
    assert _arms.judge_rate(work, "keywords")["amount"] == 6


def test_best_and_default_settings_train_the_same(work):
    losses = []
    for settings in ({}, {"padding_free": True, "activation_checkpointing": False}):
        made = _today.trainer(work, 2, logging_steps=1, **settings)
        made.train()
        losses.append([line["loss"] for line in made.state.log_history if "loss" in line])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
