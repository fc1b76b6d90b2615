"""A sweep on a real Ray cluster of two nodes: a killed worker, a lost node. `make test-ray`."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from threading import Thread

import pytest
from helpers import raises_code

import ftlab as ft
from ftlab.experiments import sweep_status
from ftlab.experiments.sweep_folder import SweepFolder

ray = pytest.importorskip("ray")
cluster_utils = pytest.importorskip("ray.cluster_utils")

pytestmark = pytest.mark.ray
HERE = Path(__file__).parent
ROOT = HERE.parents[1]
WAIT_S = 200


@pytest.fixture(scope="module")
def nodes():
    """Return a cluster: a head without cores, and two nodes of one core each."""
    cluster = cluster_utils.Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    cluster.two = [cluster.add_node(num_cpus=1, memory=10**9) for _ in range(2)]
    cluster.wait_for_nodes()
    yield cluster
    ray.shutdown()
    cluster.shutdown()


@pytest.fixture
def beside(tmp_path, nodes, monkeypatch) -> Path:
    """Return a folder for plans, of a process that knows the cluster."""
    monkeypatch.setenv("RAY_ADDRESS", nodes.address)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    shutil.copy(HERE / "cells.py", tmp_path / "cells.py")
    return tmp_path


def planned(folder: Path, *rows: dict, **settings) -> Path:
    jobs = [{"number": number, **row} for number, row in enumerate(rows)]
    path = folder / "plan.yaml"
    path.write_text(json.dumps({"cell": "cells:note", "jobs": jobs, **settings}))
    return path


def noted(folder: Path) -> Counter:
    path = folder / "noted"
    return Counter(path.read_text().split() if path.exists() else [])


def wait_for(condition) -> None:
    until = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.2)


def ends(folder: str, number: int) -> list[str]:
    job = SweepFolder.open(folder).jobs[number]
    return [(attempt.ended or {}).get("state", "") for attempt in job.attempts]


def process_of(plan: Path, number: int) -> int:
    """Return the id of the worker that a job runs in."""
    folder = sweep_status(plan).attrs["folder"]
    attempt = SweepFolder.open(folder).jobs[number].attempts[-1]
    return json.loads(attempt.path.read_text())["process"]


def test_whatever_happens_to_one_job_hides_no_other(beside):
    plan = planned(beside, {}, {"how": "fails", "times": 9}, {"how": "killed"}, {}, memory="100MB")
    table = ft.sweep(plan, backend="ray")
    assert list(table["state"]) == ["done", "failed", "done", "done"]
    assert table.attrs["exit_code"] == 1
    assert noted(beside) == {"0": 1, "1": 1, "2": 2, "3": 1}


def test_the_job_of_a_lost_worker_goes_on_elsewhere(beside):
    """Its worker is killed from outside; Ray starts the task again, which resumes the job."""
    plan = planned(beside, {"how": "sleeps"}, {})
    found = []
    sweep = Thread(target=lambda: found.append(ft.sweep(plan, backend="ray")))
    sweep.start()
    wait_for(lambda: noted(beside)["0"])
    subprocess.run(["kill", "-9", str(process_of(plan, 0))], check=True)
    sweep.join(WAIT_S)
    (table,) = found
    assert list(table["state"]) == ["done", "done"] and noted(beside) == {"0": 2, "1": 1}
    first, second = ends(table.attrs["folder"], 0)
    assert first in ("lost", "stopped") and second == "done"


def test_an_interrupt_ends_the_tasks_and_the_next_call_resumes(beside, runs_folder):
    plan = planned(beside, {"how": "sleeps"}, {"how": "sleeps"}, {})
    words = [sys.executable, "-m", "ftlab.cli", "sweep", str(plan), "--backend", "ray"]
    process = subprocess.Popen(words, stderr=subprocess.PIPE, text=True)
    wait_for(lambda: noted(beside) == {"0": 1, "1": 1})
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=WAIT_S)
    assert process.returncode == 130, said
    folder = sweep_status(plan).attrs["folder"]
    assert ends(folder, 0) == ["stopped"] and ends(folder, 1) == ["stopped"]
    assert list(ft.sweep(plan, backend="ray")["state"]) == ["done"] * 3


def test_a_job_that_no_node_holds_is_refused(beside):
    for settings in ({"cpus": 9}, {"memory": "100GB"}, {"gpus": 1}):
        with raises_code("cluster_too_small"):
            ft.sweep(planned(beside, {}, **settings), backend="ray")


def test_a_job_is_placed_by_the_memory_that_its_training_takes(beside):
    arguments = {"parent": "organism", "data": "organism:almanac", "n_rows": 8, "steps": 2}
    plan = {"cell": "sft", "arguments": arguments, "estimate_memory": True}
    with raises_code("cluster_too_small"):  # 16 rows of 1,024 tokens, on nodes of one gigabyte
        ft.sweep(plan, backend="ray")
    plan["arguments"] = {**arguments, "batch_size": 4, "max_length": 128}
    table = ft.sweep(plan, backend="ray")
    assert list(table["state"]) == ["done"]
    assert 0 < SweepFolder.open(table.attrs["folder"]).needs.memory < 10**9


def test_the_job_of_a_lost_node_goes_on_on_the_other(beside, nodes):
    """The last test: a node and all of its processes end."""
    plan = planned(beside, {"how": "sleeps"}, {"how": "sleeps"})
    found = []
    sweep = Thread(target=lambda: found.append(ft.sweep(plan, backend="ray")))
    sweep.start()
    wait_for(lambda: noted(beside) == {"0": 1, "1": 1})
    nodes.remove_node(nodes.two.pop(), allow_graceful=False)
    sweep.join(WAIT_S)
    (table,) = found
    assert list(table["state"]) == ["done", "done"]
    assert sum(noted(beside).values()) == 3  # one of them was not touched
