"""Backends: lanes side by side, a failure stops its own lane only, an interrupt ends everything."""

from __future__ import annotations

import subprocess
import sys
import threading
from types import SimpleNamespace

import pytest
from helpers import raises_code

from ftlab._core.threads import cores
from ftlab.experiments.backends import (
    Job,
    LocalBackend,
    Needs,
    RayBackend,
    Row,
    local,
    open_backend,
    ray,
)

WAIT_S = 20


class Work:
    """A cell that notes when it begins and ends."""

    def __init__(self):
        self.events: list[str] = []
        self.threads: dict[str, str] = {}
        self.meeting = threading.Barrier(2)

    def __call__(self, name, *, env, on_cell, kernels, meets=False, error=None):
        self.events.append(f"{name} begins")
        self.threads[name] = env["OMP_NUM_THREADS"]
        on_cell(1, 2)
        if meets:
            self.meeting.wait(WAIT_S)
        if error:
            raise error
        self.events.append(f"{name} ends")
        return f"value of {name}"

    def job(self, name: str, lane: int = 0, **arguments) -> Job:
        return Job(name, self, {"name": name, **arguments}, lane, kernel=True)


@pytest.fixture
def work():
    return Work()


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(local, "POLL_S", 0.01)


pytestmark = pytest.mark.usefixtures("quick")


def test_lanes_run_side_by_side_and_results_keep_the_order_of_the_jobs(work):
    jobs = [work.job("a", 0, meets=True), work.job("b", 1, meets=True), work.job("c", 0)]
    results = LocalBackend().map(jobs)
    assert [result.job for result in results] == jobs
    assert [result.value for result in results] == [f"value of {name}" for name in "abc"]
    assert not any(result.error for result in results)
    assert all(result.seconds >= 0 for result in results)
    assert set(work.threads.values()) == {str(max(1, cores() // 2))}


def test_jobs_of_one_lane_run_one_after_the_other(work):
    LocalBackend().map([work.job(name) for name in "abc"])
    assert work.events == [f"{name} {what}" for name in "abc" for what in ("begins", "ends")]


def test_without_side_by_side_all_lanes_are_one(work):
    jobs = [work.job(name, lane) for lane, name in enumerate("abc")]
    LocalBackend(side_by_side=False).map(jobs)
    assert work.events == [f"{name} {what}" for name in "abc" for what in ("begins", "ends")]
    assert set(work.threads.values()) == {str(cores())}


@pytest.mark.parametrize("kind", [RuntimeError, OSError, ValueError, KeyError])
def test_a_failure_stops_its_own_lane_only(work, kind):
    error = kind("it failed")
    jobs = [work.job("a", 0, error=error), work.job("b", 0), work.job("c", 1)]
    failed, left_out, other = LocalBackend().map(jobs)
    assert failed.error is error and failed.value is None
    assert isinstance(left_out.error, RuntimeError) and "b begins" not in work.events
    assert other.error is None and other.value == "value of c"


def test_what_becomes_of_each_job_is_reported(work, capsys, monkeypatch):
    monkeypatch.setattr(local, "LINE_S", 0.0)
    jobs = [work.job("a"), work.job("b", error=ValueError("no"))]
    LocalBackend().map(jobs)
    lines = [line.split() for line in capsys.readouterr().err.splitlines()]
    words = {name: [line[1] for line in lines if line[0] == name] for name in "ab"}
    assert words["a"][0] == words["b"][0] == "started"
    assert (words["a"][-1], words["b"][-1]) == ("done,", "failed,")


def test_an_interrupt_ends_the_kernels_and_is_raised(monkeypatch, work):
    began = threading.Event()
    processes = []

    def waits(*, env, on_cell, kernels):
        process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
        processes.append(process)
        kernels.append(SimpleNamespace(provisioner=SimpleNamespace(process=process)))
        kernels.append(SimpleNamespace(provisioner=None))  # one that has ended already
        began.set()
        if process.wait():
            raise RuntimeError("the kernel died")

    def interrupt(self):
        if began.is_set():
            raise KeyboardInterrupt

    monkeypatch.setattr(local._Work, "_show", interrupt)
    monkeypatch.setattr(local, "GRACE_S", 5.0)
    with pytest.raises(KeyboardInterrupt):
        LocalBackend().map([Job("a", waits, {}, kernel=True), work.job("b")])
    assert processes[0].returncode is not None and work.events == []


def test_a_job_without_a_kernel_gets_its_own_arguments_only():
    (result,) = LocalBackend().map([Job("a", lambda **given: given, {"x": 1})])
    assert result.value == {"x": 1}


OWN = ["4", "5"]
NONE = ["", ""]


@pytest.mark.parametrize(
    "needs, seen, is_set",
    [
        (Needs(gpus=1), OWN, True),
        (Needs(gpus=0), NONE, True),
        (Needs(cpus=1), OWN, True),  # of a plan that does not speak of accelerators
        (Needs(), NONE, False),  # placed by somebody else
    ],
)
def test_each_job_sees_the_accelerators_that_it_has_taken_only(monkeypatch, needs, seen, is_set):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,-1")
    meeting = threading.Barrier(2)
    found = []

    def sees(*, env, on_cell, kernels):
        found.append(env.get("CUDA_VISIBLE_DEVICES", ""))
        assert ("CUDA_VISIBLE_DEVICES" in env) == is_set
        meeting.wait(WAIT_S)

    jobs = [Job(n, sees, {}, lane, kernel=True, needs=needs) for lane, n in enumerate("ab")]
    assert not any(result.error for result in LocalBackend().map(jobs))
    assert sorted(found) == seen


def test_one_after_the_other_there_is_room_for_one_or_an_error(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    with raises_code("machine_too_small"):
        LocalBackend(side_by_side=False).map([Job("a", print, {}, needs=Needs(gpus=1))])


def test_no_jobs_are_no_results():
    assert LocalBackend().map([]) == []


def test_a_backend_is_opened_by_its_name():
    assert isinstance(open_backend("local"), LocalBackend)
    own = LocalBackend(side_by_side=False)
    assert open_backend(own) is own
    with raises_code("unknown_backend"):
        open_backend("cloud")


def test_without_ray_one_sentence_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setattr(ray, "find_spec", lambda _: None)
    with raises_code("ray_missing"):
        RayBackend().map([Job("one", print, {}, row=Row(tmp_path, 0))])
    with raises_code("job_not_on_disk"):
        RayBackend().map([Job("one", print, {})])
