"""A launcher starts the command several times; one of them does the work."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from small_models import sums
from trainings import distance

import ftlab as ft
from ftlab.runs import Run

ROOT = Path(__file__).parents[2]
LAUNCHED = {
    "WORLD_SIZE": "2",
    "LOCAL_WORLD_SIZE": "2",
    "MASTER_ADDR": "127.0.0.1",
    "MASTER_PORT": "29500",
    "ACCELERATE_MIXED_PRECISION": "bf16",
}


@pytest.fixture
def launched(ran, monkeypatch):
    """Return a function that calls the command as the process with this rank."""

    def call(rank: int, *words: str, **more: str):
        given = {**LAUNCHED, "RANK": str(rank), "LOCAL_RANK": str(rank), **more}
        for name, value in given.items():
            monkeypatch.setenv(name, value)
        return ran(*words)

    return call


def test_the_first_process_takes_their_number_as_devices(launched):
    code, shown, _ = launched(0, "sft", "--help")
    assert code == 0 and "--devices" in shown
    assert sys.argv[-2:] == ["--devices", "2"]
    assert not {"RANK", "WORLD_SIZE", *LAUNCHED} & {*os.environ}


def test_devices_that_were_given_stay(launched):
    launched(0, "sft", "--devices", "1", "--help")
    assert sys.argv.count("--devices") == 1 and sys.argv[2:4] == ["--devices", "1"]


def test_the_other_processes_have_nothing_to_do(launched):
    assert launched(1, "sft", "organism", "no-such-file") == (0, "", "")


@pytest.mark.parametrize(
    "more",
    [
        {"LOCAL_WORLD_SIZE": "1"},
        {"LOCAL_WORLD_SIZE": "1.5"},
        {"WORLD_SIZE": "x"},
        {"RANK": "-1"},
        {"ACCELERATE_USE_DEEPSPEED": "true"},
    ],
)
def test_what_is_not_supported_is_refused(launched, more):
    code, _, errors = launched(0, "sft", "--help", **more)
    assert code == 2 and errors.count("\n") == 1


def test_a_launch_with_fsdp_shards_the_model_where_the_command_can(launched):
    code, _, _ = launched(0, "sft", "--help", ACCELERATE_USE_FSDP="true")
    assert code == 0 and sys.argv[-3:] == ["--devices", "2", "--fsdp"]
    code, _, errors = launched(0, "evaluate", "--help", ACCELERATE_USE_FSDP="true")
    assert code == 2 and errors.count("\n") == 1 and "--fsdp" not in sys.argv


@pytest.mark.parametrize("words", [("runs", "--help"), ("card", "--help"), ("--help",)])
def test_a_command_without_devices_is_called_as_it_is(launched, words):
    code, _, _ = launched(0, *words)
    assert code == 0 and "--devices" not in sys.argv


def test_an_empty_number_of_processes_is_none(launched):
    code, _, _ = launched(0, "sft", "--help", WORLD_SIZE="", LOCAL_WORLD_SIZE="")
    assert code == 0 and "--devices" not in sys.argv


@pytest.mark.slow
@pytest.mark.parametrize(
    "launcher",
    [
        "torch.distributed.run --standalone --nproc-per-node 2",
        "accelerate.commands.launch --multi_gpu --num_processes 2 --main_process_port 0",
    ],
)
def test_a_launcher_trains_on_two_processes_as_one_does(launcher, llama, tmp_path, monkeypatch):
    """`--multi_gpu` has accelerate start torchrun, also where there are only CPUs."""
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(f"{json.dumps(row)}\n" for row in sums(8)))
    words = ["sft", str(llama), str(data), "--epochs", "1", "--batch-size", "4"]
    command = [sys.executable, "-m", *launcher.split(), "-m", "ftlab", *words]
    there = tmp_path / "launched"
    environ = {**os.environ, "PYTHONPATH": str(ROOT), "FTLAB_RUNS": str(there)}
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stderr
    two = Run(Path(done.stdout.split()[-1]))
    one = ft.sft(llama, data, epochs=1, batch_size=4)
    assert (one.name, two.stats["devices"]) == (two.name, 2) and "devices" not in one.stats
    assert two.log()["loss"].tolist() == pytest.approx(one.log()["loss"].tolist(), rel=2e-5)
    assert 0 < distance(one, two) < 1e-5 < distance(llama, two)


def test_code_of_ones_own_does_not_end_a_command_as_if_it_had_decided(ran, monkeypatch):
    def ends(*_, **__):
        raise SystemExit(0)

    monkeypatch.setattr("ftlab.experiments.acceptance.AcceptanceConfig.make", ends)
    code, _, errors = ran("accept", "mix", "--trials", "2")
    assert code == 2 and errors.count("\n") == 1
