"""Cores within a container's quota, and waiting threads that leave them to others."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from ftlab._core import threads


@pytest.mark.parametrize(
    ("written", "cores"),
    [
        ("100000 100000", 1),
        ("150000 100000", 2),
        ("50000 100000", 1),
        ("max 100000", None),
        ("", None),
    ],
)
def test_a_container_has_the_cores_of_its_quota(tmp_path, monkeypatch, written, cores):
    own = len(os.sched_getaffinity(0))
    quota = tmp_path / "cpu.max"
    quota.write_text(written)
    monkeypatch.setattr(threads, "QUOTA", quota)
    assert threads.cores() == min(own, cores or own)


def test_without_a_quota_all_cores_are_used(tmp_path, monkeypatch):
    monkeypatch.setattr(threads, "QUOTA", tmp_path / "none")
    assert threads.cores() == len(os.sched_getaffinity(0))


@pytest.mark.parametrize(
    ("given", "wait", "number"),
    [
        ({}, "passive", str(threads.cores())),
        ({"OMP_WAIT_POLICY": "active", "OMP_NUM_THREADS": "1"}, "active", "1"),
    ],
)
def test_importing_settles_how_threads_wait_and_leaves_what_the_user_set(given, wait, number):
    env = {name: value for name, value in os.environ.items() if not name.startswith("OMP_")}
    code = "import ftlab, os; print(os.environ['OMP_WAIT_POLICY'], os.environ['OMP_NUM_THREADS'])"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=env | given, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [wait, number]
