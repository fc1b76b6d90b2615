"""A sweep on a real Slurm of two nodes: time limit, requeue, kill, cancel. `make test-slurm`."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections import Counter
from pathlib import Path

import pytest
from helpers import raises_code
from slurm_cluster import ARRAY_SIZE, Cluster, is_installed

import ftlab as ft
from ftlab.experiments import sweep_status
from ftlab.experiments.backends import slurm
from ftlab.experiments.sweep_folder import SweepFolder

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
WAIT_S = 400

pytestmark = [
    pytest.mark.slurm,
    pytest.mark.skipif(not is_installed(), reason="Slurm is not here; see the README beside this"),
]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    made = Cluster(tmp_path_factory.mktemp("slurm"))
    yield made
    made.stop()


@pytest.fixture
def beside(tmp_path, cluster, monkeypatch) -> Path:
    """Return a folder for plans, of a process that submits to the cluster."""
    for name, value in cluster.environ.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setattr(slurm, "POLL_S", 1.0)
    shutil.copy(HERE / "cells.py", tmp_path / "cells.py")
    return tmp_path


def plan(*rows: dict, **settings) -> dict:
    """Return a plan of the cell `note`: one job per row."""
    jobs = [{"number": number, **row} for number, row in enumerate(rows)]
    return {"cell": "cells:note", "jobs": jobs, "backends": {"slurm": settings}}


def noted(folder: Path) -> Counter:
    """Count the attempts at each job."""
    path = folder / "noted"
    return Counter(path.read_text().split() if path.exists() else [])


def wait_for(condition, cluster: Cluster) -> None:
    until = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < until, cluster.said()
        time.sleep(0.5)


def ends(table, number: int) -> list[str]:
    """Return how each attempt at a job ended."""
    job = SweepFolder.open(table.attrs["folder"]).jobs[number]
    return [(attempt.ended or {}).get("state", "") for attempt in job.attempts]


def test_every_job_is_done_once_over_time_limit_requeue_and_kill(beside, monkeypatch, cluster):
    """Job 1 outlives its time limit, is queued again by its task and resumes; job 2 is killed."""
    monkeypatch.chdir(beside)
    given = plan({}, {"how": "sleeps"}, {"how": "killed"}, {}, {}, time="1", grace=30, wait=True)
    table = ft.sweep(given, backend="slurm")
    assert list(table["state"]) == ["done"] * 5, cluster.said()
    assert table.attrs["exit_code"] == 0
    assert noted(beside) == {"0": 1, "1": 2, "2": 2, "3": 1, "4": 1}
    assert ends(table, 1) == ["stopped", "done"] and ends(table, 2) == ["lost", "done"]
    again = ft.sweep(given, backend="slurm")  # nothing is submitted
    assert noted(beside).total() == 7 and again.attrs["exit_code"] == 0


def test_the_last_task_of_an_array_is_queued_again_alone(beside, monkeypatch, cluster):
    """Its SLURM_JOB_ID is the whole array's, of which other tasks run or wait."""
    monkeypatch.chdir(beside)
    rows = [{"how": "sleeps"} for _ in range(3)]
    table = ft.sweep(plan(*rows, time="1", grace=30), backend="slurm")  # one array, and no other
    wait_for(lambda: sweep_status(table.attrs["folder"]).attrs["exit_code"] == 0, cluster)
    for number in range(3):
        assert ends(table, number) == ["stopped", "done"]


def test_a_task_that_slurm_queues_again_resumes(beside, monkeypatch, cluster):
    """As after a preemption: the task is ended, and begins once more without any call of ours."""
    monkeypatch.chdir(beside)
    given = plan({"how": "sleeps"}, time="5")
    table = ft.sweep(given, backend="slurm")
    wait_for(lambda: noted(beside)["0"], cluster)
    name = f"ftlab-{Path(table.attrs['folder']).name}"
    (task,) = cluster.ask("squeue", "--noheader", "--format=%A", "--name", name).split()
    cluster.ask("scontrol", "requeue", task)
    wait_for(lambda: sweep_status(table.attrs["folder"]).attrs["exit_code"] == 0, cluster)
    assert ends(table, 0) == ["stopped", "done"]


def test_more_jobs_than_slurm_takes_tasks_are_done_once_each(beside, monkeypatch, cluster):
    """Job 1 outlives the time of its task, which goes on with it, and then does its next job."""
    monkeypatch.chdir(beside)
    rows = [{"how": "sleeps"} if number == 1 else {} for number in range(ARRAY_SIZE + 3)]
    with raises_code("sbatch_refused"):
        ft.sweep(plan(*rows, tasks=ARRAY_SIZE + 1), backend="slurm")
    given = plan(*rows, time="1", grace=30, wait=True)
    table = ft.sweep(given, backend="slurm")
    assert list(table["state"]) == ["done"] * len(rows), cluster.said()
    assert noted(beside) == {str(number): 2 if number == 1 else 1 for number in range(len(rows))}
    assert ends(table, 1) == ["stopped", "done"] and ends(table, 1 + ARRAY_SIZE) == ["done"]
    logs = sorted(path.name for path in (Path(table.attrs["folder"]) / "slurm").glob("*.log"))
    assert logs == [f"{task}.log" for task in range(ARRAY_SIZE)]


def test_a_cancelled_task_stays_away_until_the_next_call(beside, monkeypatch, cluster):
    monkeypatch.chdir(beside)
    given = plan({"how": "sleeps"}, {}, time="5")
    table = ft.sweep(given, backend="slurm")
    assert table.attrs["exit_code"] == 3
    folder = Path(table.attrs["folder"])
    wait_for(lambda: noted(beside) == {"0": 1, "1": 1}, cluster)
    queued = slurm._queued(folder)
    assert 0 in queued
    ft.sweep(given, backend="slurm")  # it runs, and is not submitted again
    assert len(slurm._queued(folder)) <= len(queued)
    subprocess.run(["scancel", "--name", f"ftlab-{folder.name}"], check=True)
    wait_for(lambda: not slurm._queued(folder), cluster)
    wait_for(lambda: "running" not in set(sweep_status(folder)["state"]), cluster)
    table = sweep_status(folder)
    assert table["state"][1] == "done" and table["state"][0] in ("stopped", "waiting")
    given["backends"]["slurm"]["wait"] = True
    table = ft.sweep(given, backend="slurm")
    assert list(table["state"]) == ["done", "done"] and noted(beside)["0"] == 2
