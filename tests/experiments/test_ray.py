"""A sweep on a real Ray of two nodes: nodes lost and joined, what a job needs. `make test-ray`."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from importlib.util import find_spec
from pathlib import Path

import pytest
from helpers import raises_code
from ray_cluster import HEAD, NODE, Cluster, kill, working

import ftlab as ft
from ftlab.experiments import sweep_status
from ftlab.experiments.backends import Job, RayBackend, Row
from ftlab.experiments.sweep_folder import SweepFolder

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
WAIT_S = 180
LARGE = 256  # rows of 512 tokens, whose training takes more memory than the head has

pytestmark = [
    pytest.mark.ray,
    pytest.mark.skipif(not find_spec("ray"), reason="Ray is not here; `make test-ray` installs it"),
]


@pytest.fixture(scope="module")
def cluster():
    """Return a cluster whose head has 1 core."""
    made = Cluster()
    yield made
    made.stop()


@pytest.fixture
def only_head(cluster):
    """Return the cluster, of which only the head is left afterwards."""
    yield cluster
    cluster.lose(cluster.nodes[1:])
    wait_for(lambda: cluster.alive() == 1)


@pytest.fixture
def node(only_head):
    """Return a second node, of 2 cores and a GPU, which a test may kill."""
    return only_head.join()


@pytest.fixture
def beside(tmp_path) -> Path:
    """Return a folder for plans, with a cell of its own."""
    shutil.copy(HERE / "cells.py", tmp_path / "cells.py")
    return tmp_path


def planned(folder: Path, cluster, *rows: dict, grows: bool = False, **settings) -> Path:
    """Write a plan of the cell `note`: one job per row."""
    jobs = [{"number": number, **row} for number, row in enumerate(rows)]
    backends = {"ray": {"address": cluster.address, "grows": grows}}
    plan = folder / "plan.yaml"
    plan.write_text(
        json.dumps({"cell": "cells:note", "jobs": jobs, "backends": backends, **settings})
    )
    return plan


def begun(plan: Path, runs: Path) -> subprocess.Popen:
    """Start `ftlab sweep PLAN --backend ray` in a process of its own."""
    environ = {**os.environ, "FTLAB_RUNS": str(runs), "PYTHONPATH": str(ROOT)}
    words = [sys.executable, "-m", "ftlab.cli", "sweep", str(plan), "--backend", "ray"]
    return subprocess.Popen(words, env=environ, stderr=subprocess.PIPE, text=True)


def noted(folder: Path) -> Counter:
    """Count the attempts at each job."""
    path = folder / "noted"
    return Counter(path.read_text().split() if path.exists() else [])


def seen(folder: Path, number: int) -> dict:
    """Return what a job of the cell `look` saw."""
    return json.loads((folder / f"seen-{number}").read_text())


def ends(table, number: int) -> list[str]:
    """Return how each attempt at a job ended."""
    job = SweepFolder.open(table.attrs["folder"]).jobs[number]
    return [(attempt.ended or {}).get("state", "") for attempt in job.attempts]


def wait_for(condition) -> None:
    until = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.2)


def test_the_jobs_of_a_lost_node_go_on_elsewhere_and_back_on_it(beside, runs_folder, cluster, node):
    """The node is killed while it does two jobs, is joined again, and takes others."""
    plan = planned(beside, cluster, *[{"seconds": 8}] * 9)
    process = begun(plan, runs_folder)
    wait_for(lambda: len(working(node)) == 2 and len(noted(beside)) == 3)
    lost = set(working(node))
    kill(node)
    back = cluster.join()
    wait_for(lambda: working(back))
    assert process.poll() is None
    _, said = process.communicate(timeout=WAIT_S)
    assert process.returncode == 0, said + cluster.said()
    table = sweep_status(plan)
    for number in range(9):
        expected = ["lost", "done"] if number in lost else ["done"]
        assert ends(table, number) == expected
        assert noted(beside)[str(number)] == len(expected)


def test_a_node_that_joins_is_waited_for_and_used(beside, runs_folder, cluster, only_head):
    """A job of two cores has no place on the head; the node that joins does it."""
    with raises_code("machine_too_small"):
        ft.sweep(planned(beside, cluster, {}, cpus=2), backend="ray")
    assert not noted(beside)
    plan = planned(beside, cluster, {"seconds": 4}, {}, grows=True, cpus=2)
    process = begun(plan, runs_folder)
    time.sleep(5)
    assert not noted(beside)
    joined = cluster.join()
    wait_for(lambda: 0 in working(joined))
    _, said = process.communicate(timeout=WAIT_S)
    assert process.returncode == 0, said + cluster.said()
    assert noted(beside) == {"0": 1, "1": 1}


def test_a_job_gets_the_accelerator_of_a_node_for_itself(beside, runs_folder, cluster, node):
    """The node has cores for both jobs at a time, and one accelerator."""
    plan = planned(beside, cluster, {"seconds": 3}, {"seconds": 3}, cell="cells:look", gpus=1)
    assert ft.sweep(plan, backend="ray").attrs["exit_code"] == 0
    one, two = sorted((seen(beside, 0), seen(beside, 1)), key=lambda found: found["begun"])
    assert node.pid in one["above"] and node.pid in two["above"]
    assert one["accelerators"] == two["accelerators"] == "0"
    assert one["ended"] < two["begun"]
    for number, settings in ((2, {}), (3, {"gpus": 0})):
        row = {"number": number}
        ft.sweep(planned(beside, cluster, row, cell="cells:look", **settings), backend="ray")
        assert seen(beside, number)["accelerators"] == ""


def test_a_job_goes_where_its_memory_is(beside, runs_folder, cluster, node):
    """Ray gives jobs without an accelerator to the head, if nothing speaks against it."""
    for number, memory, place in ((0, HEAD["memory"], cluster.nodes[0]), (1, NODE["memory"], node)):
        row = {"number": number}
        plan = planned(beside, cluster, row, cell="cells:look", memory=memory)
        assert ft.sweep(plan, backend="ray").attrs["exit_code"] == 0
        assert place.pid in seen(beside, number)["above"]


def test_the_memory_that_is_estimated_decides_where_a_job_runs(
    beside, runs_folder, cluster, only_head
):
    """Only the batch differs; the larger one has no place until the larger node joins."""
    settings = {"cell": "cells:look", "estimate_memory": True}
    small = {"number": 0, "model": "organism", "batch_size": 1}
    large = {"number": 1, "model": "organism", "batch_size": LARGE}
    plan = planned(beside, cluster, small, **settings)
    assert ft.sweep(plan, backend="ray").attrs["exit_code"] == 0
    plan = planned(beside, cluster, large, **settings)
    with raises_code("machine_too_small"):
        ft.sweep(plan, backend="ray")
    node = cluster.join()
    assert ft.sweep(plan, backend="ray").attrs["exit_code"] == 0
    assert cluster.nodes[0].pid in seen(beside, 0)["above"]
    assert node.pid in seen(beside, 1)["above"]


def test_a_job_whose_worker_is_killed_ends_and_goes_on_in_another(beside, runs_folder, cluster):
    """Only the process of Ray is killed, not that of the job, which must not stay behind."""
    plan = planned(beside, cluster, {"how": "sleeps"}, retries=0)
    process = begun(plan, runs_folder)
    wait_for(lambda: noted(beside)["0"] == 1)
    (job,) = working(cluster.nodes[0]).values()
    job.parent().kill()
    _, said = process.communicate(timeout=WAIT_S)
    assert process.returncode == 0, said
    assert ends(sweep_status(plan), 0) == ["stopped", "done"] and not job.is_running()


def test_an_interrupted_sweep_ends_its_jobs_and_the_next_call_resumes(beside, runs_folder, cluster):
    plan = planned(beside, cluster, {"how": "sleeps"}, {}, retries=0)
    process = begun(plan, runs_folder)
    wait_for(lambda: noted(beside)["0"] == 1)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=WAIT_S)
    assert process.returncode == 130, said
    assert list(sweep_status(plan)["state"]) == ["stopped", "waiting"]
    assert not working(cluster.nodes[0])
    again = begun(plan, runs_folder)
    again.communicate(timeout=WAIT_S)
    assert again.returncode == 0 and noted(beside) == {"0": 2, "1": 1}


def test_what_ends_badly_is_told_and_hides_no_other_job(beside, runs_folder, cluster):
    plan = planned(beside, cluster, {"how": "fails", "times": 9}, {"how": "killed"}, {}, retries=1)
    table = ft.sweep(plan, backend="ray")
    assert list(table["state"]) == ["failed", "done", "done"]
    assert noted(beside) == {"0": 1, "1": 2, "2": 1} and table.attrs["exit_code"] == 1
    assert "ZeroDivisionError" in (Path(table.attrs["folder"]) / "ray" / "0.log").read_text()


def test_a_node_that_cannot_start_jobs_is_an_error(tmp_path, cluster, monkeypatch):
    monkeypatch.setattr(Row, "command", ["/nowhere/python"])
    job = Job("one", print, {}, row=Row(tmp_path, 0))
    with raises_code("ray_task_failed"):
        RayBackend(address=cluster.address).map([job])
