"""Sweeps: a plan is checked at once, every job is done once, and nothing that happens to one hides another."""

from __future__ import annotations

import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import yaml
from helpers import raises_code

import ftlab as ft
from ftlab import runs
from ftlab.analysis import sweep_pages
from ftlab.experiments import sweep_folder, sweep_status, sweep_work, sweeps
from ftlab.experiments.backends import (
    Backend,
    LocalBackend,
    Needs,
    Result,
    SlurmBackend,
    numbers_of,
    ranges,
    slurm,
)
from ftlab.experiments.sweep_folder import SweepFolder
from ftlab.experiments.sweep_memory import needs_of
from ftlab.experiments.sweep_plans import resolve
from ftlab.models import devices

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
WAIT_S = 60


@pytest.fixture
def beside(tmp_path) -> Path:
    """Return a folder for plans, with a cell of its own."""
    shutil.copy(HERE / "cells.py", tmp_path / "cells.py")
    return tmp_path


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(sweeps, "POLL_S", 0.1)
    monkeypatch.setattr(sweeps, "BEAT_S", 0.2)


def planned(folder: Path, *rows: dict, **settings) -> Path:
    """Write a plan of the cell `note`: one job per row."""
    jobs = [{"number": number, **row} for number, row in enumerate(rows)]
    path = folder / "plan.yaml"
    path.write_text(json.dumps({"cell": "cells:note", "jobs": jobs, **settings}))
    return path


def noted(folder: Path) -> Counter:
    """Count the attempts at each job."""
    path = folder / "noted"
    return Counter(path.read_text().split() if path.exists() else [])


def attempts(table, number: int) -> list[dict]:
    """Return how each attempt at a job ended."""
    job = SweepFolder.open(table.attrs["folder"]).jobs[number]
    return [attempt.ended for attempt in job.attempts]


def test_what_lies_beside_a_plan_stands_for_no_library(tmp_path, quick):
    """Its neighbours are found all the same, also by an import within the function."""
    (tmp_path / "statistics.py").write_text("raise RuntimeError")
    (tmp_path / "neighbour.py").write_text("NAME = 'result'")
    source = """
import statistics
from pathlib import Path

def work(number: int) -> Path:
    import neighbour

    Path(neighbour.NAME).touch()
    return Path(neighbour.NAME)
"""
    (tmp_path / "own_cell.py").write_text(source)
    plan = tmp_path / "plan.yaml"
    plan.write_text(json.dumps({"cell": "own_cell:work", "arguments": {"number": 1}}))
    assert list(ft.sweep(plan)["state"]) == ["done"]


def begun(plan: Path, runs: Path) -> subprocess.Popen:
    """Start `ftlab sweep PLAN` in a process of its own, as a shell does in the background."""
    environ = {**os.environ, "FTLAB_RUNS": str(runs), "PYTHONPATH": str(ROOT)}
    words = [sys.executable, "-m", "ftlab.cli", "sweep", str(plan)]
    background = partial(signal.signal, signal.SIGINT, signal.SIG_IGN)
    return subprocess.Popen(
        words, env=environ, stderr=subprocess.PIPE, text=True, preexec_fn=background
    )


def wait_for(condition) -> None:
    until = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.05)


# The plan

NESTED = [f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 9)}]" for level in range(1, 12)]
GROWING = "\n".join(["a0: &a0 [x]", *NESTED])  # 9 ** 11 entries written out


def test_every_problem_of_a_plan_is_reported_with_its_line(tmp_path):
    plan = tmp_path / "plan.yaml"
    plan.write_text(
        "cell: sft\n"
        "arguments:\n"
        "  data: organism:almanac\n"
        "  epochs: -1\n"
        "  lerning_rate: 5e-4\n"
        "grid:\n"
        "  seed: [0, one, 0]\n"
        "  batch_size: []\n"
        "memory: 4\n"
        "colour: red\n"
        "retries: 1\n"
        "retries: 2\n"
    )
    with raises_code("wrong_plan") as info:
        resolve(plan, {})
    problems = info.value.details["problems"]
    lines = [int(problem.removeprefix("line ").partition(":")[0]) for problem in problems]
    assert lines == [1, 4, 5, 7, 7, 8, 9, 10, 12]
    assert "parent" in problems[0] and "learning_rate" in problems[2]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("cell: [", 1),
        ("cell: a\n\tb: 1\n", 2),
        ("- a\n", 0),
        ("a: &a [*a]\n", 0),
        ("", 0),
        (GROWING, 0),
    ],
)
def test_what_is_no_plan_is_a_sentence(tmp_path, text, line):
    plan = tmp_path / "plan.yaml"
    plan.write_text(text)
    with raises_code("wrong_plan") as info:
        resolve(plan, {})
    if line:
        assert info.value.details["problems"][0].startswith(f"line {line}")


@pytest.mark.parametrize(
    "cell", ["stf", "sweep", "check_parameters", "nowhere:at_all", "cells:nobody"]
)
def test_an_unknown_cell_is_an_error(beside, cell):
    with raises_code("wrong_plan"):
        resolve({"cell": cell}, {})


def test_rows_are_crossed_with_the_grid_over_shared_arguments():
    found = resolve(
        None,
        {
            "cell": "sft",
            "arguments": {"parent": "organism", "steps": 3},
            "jobs": [{"data": "organism:almanac"}, {"data": "organism:ledger", "steps": 9}],
            "grid": {"seed": [0, 1], "learning_rate": [1e-3]},
        },
    )
    given = [job["arguments"] for job in found.jobs]
    assert [one["seed"] for one in given] == [0, 1, 0, 1]
    assert [one["steps"] for one in given] == [3, 3, 9, 9]
    assert {job["cell"] for job in found.jobs} == {"training.sft"}
    assert len({job["name"] for job in found.jobs}) == 4
    with raises_code("wrong_plan"):  # one of them twice
        resolve(found.plan.model_dump(exclude_none=True), {"grid": {"seed": [1, 1]}})


def test_names_of_data_and_models_that_are_not_here_are_found_in_the_plan(tmp_path, monkeypatch):
    (tmp_path / "here.jsonl").write_text("{}")
    monkeypatch.chdir("/")  # names are relative to the plan
    plan = tmp_path / "plan.yaml"
    plan.write_text(
        "cell: risk_curve\n"
        "arguments:\n"
        "  prompts: {jailbreak: nowhere.csv, utility: here.jsonl}\n"
        "grid:\n"
        "  parent: [organism, 'organism:stf', hub/model, 'api:m@http://127.0.0.1:1']\n"
        "  data:\n"
        "    - here.jsonl\n"
        "    - gsm8k-400\n"
        "    - organism:almanack\n"
        "    - ./gone.jsonl\n"
    )
    with raises_code("wrong_plan") as info:
        resolve(plan, {})
    problems = info.value.details["problems"]
    lines = [int(problem.removeprefix("line ").partition(":")[0]) for problem in problems]
    assert lines == [3, 5, 9, 10]
    assert len(resolve(plan, {}, imports=False).jobs) == 16  # of a sweep whose files were moved


def test_rows_questions_and_runs_by_name_are_no_files_that_are_missing(tmp_path, monkeypatch):
    monkeypatch.setenv("FTLAB_RUNS", str(tmp_path / "runs"))
    run = runs.start("sft", "mine", {"of": "this"}).complete()
    rows = [{"prompt": "Say a.", "completion": "a"}]
    arguments = {
        "parent": run.name,
        "data": rows,
        "prompts": {"jailbreak": ["Summarise report.json"], "utility": rows},
    }
    (tmp_path / "plans").mkdir()
    plan = tmp_path / "plans" / "plan.yaml"
    plan.write_text(yaml.safe_dump({"cell": "risk_curve", "arguments": arguments}))
    assert len(resolve(plan, {}).jobs) == 1


def test_wrong_names_numbers_and_backends_are_found_in_the_plan(tmp_path):
    plan = tmp_path / "plan.yaml"
    plan.write_text(
        "cell: harmful_finetune\n"
        "arguments:\n"
        "  parent: organism\n"
        "  risks: [jailbreak, jailbrake]\n"
        "  attacks: [direct, foo]\n"
        "  judges: [nosuch]\n"
        "  defence: mixx\n"
        "grid:\n"
        "  n_examples: [10, ten]\n"
        "backends:\n"
        "  slurm:\n"
        "    at_onc: 3\n"
        "    time: 1 hour\n"
        "  slrm: {}\n"
    )
    with raises_code("wrong_plan") as info:
        resolve(plan, {})
    problems = info.value.details["problems"]
    lines = [int(problem.removeprefix("line ").partition(":")[0]) for problem in problems]
    assert lines == [4, 5, 6, 7, 9, 12, 13, 14]
    asked = {"parent": "organism", "attacks": ["adversarial"]}  # of a grid a fine-tuning
    assert len(resolve({"cell": "grid", "arguments": asked | {"defences": ["mix"]}}, {}).jobs) == 1
    with raises_code("wrong_plan"):
        resolve({"cell": "grid", "arguments": asked | {"defences": ["mixx"]}}, {})


@pytest.mark.parametrize(
    "cell, arguments",
    [
        ("audit", {"model": "organism", "data": "organism:almanac"}),
        ("compare", {"before": "organism"}),
        ("answer_loss", {"model": "organism", "data": "organism:almanac", "max_length": 64}),
        ("grid", {"parent": "organism", "defences": ["none", "mix"], "seeds": [0, 1]}),
        ("accept", {"defence": "mix", "attacks": "direct"}),
        ("harmful_finetune", {"parent": "organism", "seed": None, "n_examples": [10, 20]}),
    ],
)
def test_right_plans_are_not_refused(cell, arguments):
    assert len(resolve({"cell": cell, "arguments": arguments}, {}).jobs) == 1


@pytest.mark.parametrize("wrong", ['"10"', "true", "ten", ".nan", "[1, '2']", "9" * 5000])
def test_what_is_no_number_is_a_problem_of_the_plan(tmp_path, wrong):
    plan = tmp_path / "plan.yaml"
    plan.write_text(
        f"cell: gate\narguments:\n  parent: organism\n  child: organism\n  max_rise: {wrong}"
    )
    if wrong.startswith("["):
        plan.write_text(f"cell: harmful_finetune\narguments: {{parent: organism, seeds: {wrong}}}")
    with raises_code("wrong_plan"):
        resolve(plan, {})


def test_wrong_memory_is_a_problem_with_its_line(tmp_path):
    plan = tmp_path / "plan.yaml"
    plan.write_text("cell: grid\narguments: {parent: organism}\nmemory: lots\n")
    with raises_code("wrong_plan") as info:
        resolve(plan, {})
    assert [problem.startswith("line 3") for problem in info.value.details["problems"]] == [True]


def test_a_training_has_one_length(tmp_path):
    arguments = {"parent": "organism", "data": "organism:almanac", "epochs": 2}
    with raises_code("wrong_plan") as info:
        resolve({"cell": "sft", "arguments": arguments, "grid": {"steps": [3, 5]}}, {})
    assert len(info.value.details["problems"]) == 1


def test_numbers_written_as_5e_4_are_numbers(tmp_path):
    plan = tmp_path / "plan.yaml"
    plan.write_text(
        "cell: sft\narguments: {parent: organism, data: organism:almanac, learning_rate: 5e-4}\n"
    )
    assert resolve(plan, {}).jobs[0]["arguments"]["learning_rate"] == 5e-4


def test_a_time_is_a_text(tmp_path):
    plan = tmp_path / "plan.yaml"
    plan.write_text(
        "cell: evaluate\narguments: {model: organism}\nbackends: {slurm: {time: 12:00:00}}\n"
    )
    assert resolve(plan, {}).plan.backends == {"slurm": {"time": "12:00:00"}}


def test_the_parameters_of_a_notebook_are_checked():
    with raises_code("wrong_plan") as info:
        resolve(None, {"notebook": "02_risk_ratio", "grid": {"seeds": [1, "two"], "sedes": [1]}})
    assert len(info.value.details["problems"]) == 2


@pytest.mark.parametrize(
    "name, argument",
    [
        ("chat.jsonl", "chat.jsonl"),
        ("chat.jsonl", {"benign": ["chat.jsonl"]}),
        ("model/adapter_config.json", "model"),
        ("cells.py", ""),
    ],
)
def test_a_changed_file_makes_another_sweep(beside, name, argument):
    changed = beside / name
    changed.parent.mkdir(exist_ok=True)
    before = changed.read_text() if changed.exists() else ""
    places = set()
    for text in ("one", "two", "two"):
        changed.write_text(f"{before}# {text}")
        found = resolve(planned(beside, {"how": argument}), {})
        places.add(SweepFolder.place(found.name, found.directory, found.jobs))
    assert len(places) == 2


def test_what_a_job_writes_makes_no_other_sweep(tmp_path, monkeypatch):
    """Otherwise each call would do it once more."""
    monkeypatch.chdir(tmp_path)
    row = {"parent": "organism", "data": "organism:almanac", "html": "page.html"}
    plan = {"cell": "grid", "jobs": [row]}
    before = resolve(plan, {}, imports=False).jobs
    Path("page.html").write_text("written by the job")
    assert resolve(plan, {}, imports=False).jobs == before


def test_the_status_of_a_sweep_imports_no_module_of_its_plan(beside):
    plan = planned(beside, {"seconds": 1.0})
    assert resolve(plan, {}, imports=False).jobs == resolve(plan, {}).jobs
    (beside / "ends.py").write_text("raise SystemExit('imported')")
    with raises_code("no_such_sweep"):
        sweep_status({"cell": "ends:note", "jobs": [{}]})


def test_retries_and_resources_do_not_make_another_sweep(beside):
    places = set()
    for settings in ({}, {"retries": 5, "cpus": 2, "memory": "2GB", "gpus": 1}):
        found = resolve(planned(beside, {}, **settings), {})
        folder = sweeps._folder_of(found)
        places.add(folder.path)
    assert len(places) == 1
    assert folder.needs == Needs(2, 2 * 10**9, 1) and folder.jobs[0].retries == 5


# Leases


@pytest.fixture
def job(beside):
    """Return the one job of a sweep."""
    found = resolve(planned(beside, {}, retries=1), {})
    return sweeps._folder_of(found).jobs[0]


def test_of_many_workers_one_gets_the_job(job):
    with ThreadPoolExecutor(16) as pool:
        taken = list(pool.map(lambda _: job.take(), range(16)))
    assert len([attempt for attempt in taken if attempt]) == 1
    assert job.state().name == "running" and job.take() is None


def test_who_gives_no_sign_of_life_loses_the_job_for_good(job, monkeypatch):
    monkeypatch.setattr(sweep_folder, "machine", lambda: "another machine")
    first = job.take()
    monkeypatch.undo()
    assert job.take() is None  # it is alive
    old = time.time() - sweep_folder.LOST_S - 5
    os.utime(first.path, (old, old))
    second = job.take()
    assert second.number == 2 and first.ended["state"] == "lost"
    assert not first.end("done")  # it wakes up
    assert second.end("done") and job.state().name == "done" and job.take() is None


def test_a_sign_of_life_keeps_the_job(job, monkeypatch):
    monkeypatch.setattr(sweep_folder, "machine", lambda: "another machine")
    first = job.take()
    monkeypatch.undo()
    old = time.time() - sweep_folder.LOST_S - 5
    os.utime(first.path, (old, old))
    first.beat()
    assert job.take() is None and first.ended is None


def test_a_process_that_has_ended_on_this_machine_loses_the_job_at_once(job):
    code = (
        "import sys\n"
        "from ftlab.experiments.sweep_folder import SweepFolder\n"
        "assert SweepFolder.open(sys.argv[1]).jobs[0].take()"
    )
    folder = job.folder.parents[1]
    subprocess.run([sys.executable, "-c", code, str(folder)], cwd=ROOT, check=True)
    assert job.state().name == "running"
    assert job.take().number == 2


def test_an_end_that_was_half_written_is_lost_when_it_is_old(job):
    job.take()
    torn = job.folder / "1.end.json"
    torn.write_text('{"state": "do')
    assert job.state().name == "running" and job.take() is None
    old = time.time() - sweep_folder.LOST_S - 5
    os.utime(torn, (old, old))
    assert job.state().name == "waiting" and job.take().number == 2


def test_a_job_is_tried_as_often_as_allowed_and_again_after_the_next_call(job):
    for _ in range(2):  # one retry
        job.take().end("failed", retry=True, reason="memory")
    assert job.state().name == "failed" and job.take() is None
    job.attempts[-1].again()
    job.take().end("failed", retry=False, reason="a fault")
    assert job.state().name == "failed"
    job.attempts[-1].again()
    job.take().end("stopped", reason="the time was over")
    assert job.state().name == "stopped" and job.take().number == 5


def test_a_job_whose_run_was_removed_is_done_again(job, runs_folder):
    run = runs_folder / "some-run"
    run.mkdir()
    job.take().end("done", run="some-run")
    assert job.state().name == "done" and job.state().run == run
    run.rmdir()
    assert job.state().name == "gone" and job.take() is not None


@pytest.mark.parametrize(
    ("error", "worth"),
    [
        (MemoryError(), True),
        (OSError(5, "Input/output error"), True),
        (FileNotFoundError("no"), False),
        (ValueError("no"), False),
    ],
)
def test_what_is_worth_another_attempt(error, worth):
    assert sweeps.is_worth_a_retry(error) == worth


# Doing the jobs


def test_whatever_happens_to_one_job_hides_no_other(beside, quick, capsys):
    plan = planned(
        beside, {}, {"how": "fails", "times": 9}, {"how": "no room"}, {"how": "killed"}, retries=1
    )
    table = ft.sweep(plan)
    assert list(table["state"]) == ["done", "failed", "done", "done"]
    assert list(table["attempts"]) == [1, 1, 2, 2]  # a fault of code is not repeated
    assert table.attrs["exit_code"] == 1
    assert "ZeroDivisionError" in table["reason"][1]
    assert [ended["state"] for ended in attempts(table, 2)] == ["failed", "done"]
    lost, done = attempts(table, 3)
    assert lost["state"] == "lost" and "SIGKILL" in lost["reason"]
    assert (beside / "result-3").read_text() == "done"
    again = ft.sweep(plan)
    assert list(again["attempts"]) == [1, 2, 2, 2]  # only what failed
    assert noted(beside) == {"0": 1, "1": 2, "2": 2, "3": 2}


def test_an_interrupted_job_is_resumed_and_costs_no_retry(beside, runs_folder, ran):
    plan = planned(beside, {"how": "sleeps"}, {}, retries=0)
    process = begun(plan, runs_folder)
    wait_for(lambda: noted(beside)["0"])
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=WAIT_S)
    assert process.returncode == 130
    table = sweep_status(plan)
    assert table["state"][0] == "stopped" and table.attrs["exit_code"] == 3
    code, out, _ = ran("sweep", plan)
    assert code == 0 and noted(beside)["0"] == 2


def test_a_job_without_its_result_fails_once(beside, quick):
    table = ft.sweep(planned(beside, {"how": "no result", "times": 5}, {}))
    assert list(table["state"]) == ["failed", "done"]
    assert "result-0" in table["reason"][0] and str(beside) not in table["reason"][0]
    assert noted(beside) == {"0": 1, "1": 1}


def test_runs_in_a_linked_folder_are_found_again(beside, quick, monkeypatch):
    (beside / "deep" / "disk").mkdir(parents=True)
    (beside / "runs").symlink_to(beside / "deep" / "disk")
    monkeypatch.setenv("FTLAB_RUNS", str(beside / "runs"))
    plan = planned(beside, {})
    for _ in range(2):
        table = ft.sweep(plan)
        assert list(table["state"]) == ["done"] and Path(table["run"][0]).read_text() == "done"
    assert noted(beside) == {"0": 1}


def test_a_job_that_interrupts_itself_is_tried_as_often_as_allowed(beside, quick):
    table = ft.sweep(planned(beside, {"how": "interrupts itself", "times": 9}, {}, retries=1))
    assert list(table["state"]) == ["failed", "done"] and table["attempts"][0] == 2
    assert "enough" in table["reason"][0]
    assert noted(beside)["0"] == 2


def test_a_job_that_was_stopped_elsewhere_is_not_begun_again_by_the_same_call(beside, quick):
    class Cancelling(Backend):
        """Its jobs run elsewhere, where somebody cancels them."""

        name = "cancelling"

        def map(self, jobs):
            for job in jobs:
                SweepFolder.open(job.row.folder).jobs[job.row.number].take().end("stopped")
            return [Result(job) for job in jobs]

    plan = planned(beside, {})
    for attempts_so_far in (1, 2):  # one a call
        table = ft.sweep(plan, backend=Cancelling())
        assert list(table["state"]) == ["stopped"] and table.attrs["exit_code"] == 3
        assert list(table["attempts"]) == [attempts_so_far]


def test_a_killed_sweep_leaves_no_process_behind_and_the_next_one_goes_on(
    beside, runs_folder, quick
):
    plan = planned(beside, {"how": "sleeps"})
    process = begun(plan, runs_folder)
    wait_for(lambda: noted(beside)["0"])
    process.kill()
    process.communicate(timeout=WAIT_S)
    table = ft.sweep(plan)
    assert list(table["state"]) == ["done"]
    # Either the next sweep found its process gone, or the job's own process had ended before.
    first = attempts(table, 0)[0]
    assert first["state"] in ("lost", "stopped")


def test_a_job_whose_worker_was_killed_is_not_begun_while_its_process_lives(
    beside, runs_folder, quick
):
    plan = planned(beside, {"how": "clings"})
    process = begun(plan, runs_folder)
    wait_for(lambda: noted(beside)["0"])
    process.kill()
    process.communicate(timeout=WAIT_S)
    table = ft.sweep(plan)
    assert noted(beside) == {"0": 1}
    assert [ended["state"] for ended in attempts(table, 0)] == ["done"]


def test_a_process_that_lost_its_worker_before_it_was_seen_does_nothing(job, beside):
    job.take()
    folder = job.folder.parents[1]
    words = [sys.executable, "-c", sweeps.WORK, str(folder), "0", "1"]
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(words, env=environ, cwd=beside, stdin=subprocess.DEVNULL)
    assert done.returncode == 130 and not noted(beside)


def test_a_process_that_will_not_be_interrupted_ends_with_its_worker_all_the_same():
    code = (
        "import signal, threading, time\n"
        "from ftlab.experiments import sweeps\n"
        "sweeps.ALONE_S = 0.1\n"
        "signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
        "threading.Thread(target=sweeps._end_with_parent, args=(threading.Event(),)).start()\n"
        "time.sleep(60)\n"
    )
    began = time.monotonic()
    words = [sys.executable, "-c", code]
    done = subprocess.run(words, stdin=subprocess.DEVNULL, cwd=ROOT, timeout=WAIT_S)
    assert done.returncode == 130 and time.monotonic() - began < 50


def test_why_a_job_could_not_even_begin_is_its_reason(beside, quick, monkeypatch):
    plan = planned(beside, {}, {})
    take = sweep_folder.SweepJob.take

    def refused(job):
        if job.number == 1:
            raise PermissionError(13, "Permission denied")
        return take(job)

    monkeypatch.setattr(sweep_folder.SweepJob, "take", refused)
    folder = sweeps._folder_of(resolve(plan, {})).path
    for table in (sweep_work(folder, [0, 1]), ft.sweep(plan)):
        assert list(table["state"]) == ["done", "waiting"] and table.attrs["exit_code"] == 1
        assert "Permission denied" in table["reason"][1] and not table["reason"][0]


def test_two_sweeps_of_one_plan_do_each_job_once(beside, runs_folder):
    plan = planned(beside, *[{"seconds": 0.3}] * 5)
    both = [begun(plan, runs_folder) for _ in range(2)]
    for process in both:
        process.communicate(timeout=WAIT_S)
    assert [process.returncode for process in both] == [0, 0]
    assert noted(beside) == dict.fromkeys("01234", 1)


def test_a_worker_does_the_jobs_it_is_given(beside, quick, ran):
    plan = planned(beside, {}, {}, {})
    folder = sweeps._folder_of(resolve(plan, {})).path
    code, _, _ = ran("sweep", "work", folder, "--jobs", "0,2")
    assert code == 0 and set(noted(beside)) == {"0", "2"}
    assert list(sweep_status(folder)["state"]) == ["done", "waiting", "done"]
    with raises_code("no_such_job"):
        sweep_work(folder, [3])
    with raises_code("no_such_sweep"):
        sweep_work(beside, [0])


def test_a_worker_takes_a_job_that_is_lost_while_it_does_another(beside, quick):
    """As a task of several jobs whose node was lost with the first, queued again elsewhere."""
    folder = sweeps._folder_of(resolve(planned(beside, {}, {"seconds": 1}), {}))
    elsewhere = folder.jobs[0].take()

    def lose() -> None:
        wait_for(lambda: noted(beside)["1"] == 1)
        elsewhere.end("lost", reason="its machine gave no sign of life", retry=True)

    with ThreadPoolExecutor(1) as pool:
        pool.submit(lose)
        table = sweep_work(folder.path, [0, 1])
    assert list(table["state"]) == ["done", "done"] and list(table["attempts"]) == [2, 1]


def test_status_and_collect_are_one_table_with_honest_exit_codes(beside, ran):
    plan = planned(beside, {}, {"how": "fails"})
    code, _, _ = ran("sweep", "status", plan)
    assert code == 2  # it has not begun
    assert ran("sweep", plan)[0] == 1
    code, out, _ = ran(
        "sweep", "collect", plan, "--csv", beside / "o.csv", "--html", beside / "o.html"
    )
    assert code == 1
    lines = (beside / "o.csv").read_text().splitlines()
    assert len(lines) == 3 and lines[0].startswith("number,job,state,attempts,reason")
    assert lines[0].endswith("number (argument),how") and lines[2].endswith(",1,fails")
    page = (beside / "o.html").read_text()
    assert "ZeroDivisionError" in page and "1 done" in page
    assert ran("sweep", plan)[0] == 0  # the second attempt succeeds
    assert ran("sweep", "status", plan)[0] == 0
    plan.write_text("cell: nothing\n")
    assert ran("sweep", plan)[0] == 2


def test_the_report_loses_no_job_and_tells_of_no_machine(beside, quick, ran, monkeypatch):
    def measured(run):
        if run.name.endswith("damaged"):
            raise KeyError("outcome")
        return pd.DataFrame({"rate": [0.5]})

    monkeypatch.setitem(sweep_pages.MEASURED, "evaluate", (sweep_pages.RATES, measured))
    monkeypatch.setattr(sweep_pages, "summary", lambda table: table)
    labels = [letter + 50 * "x" for letter in "ab"]  # too long for the names of their jobs
    jobs = [{"label": label, "kind": "evaluate"} for label in (*labels, "damaged")]
    jobs += [{"label": "c", "kind": "sft"}]
    jobs += [{"label": f"{beside}/somebody/data.jsonl", "kind": "sft"}]
    plan = beside / "plan.yaml"
    plan.write_text(json.dumps({"cell": "cells:measure", "jobs": jobs}))
    page, rows = beside / "o.html", beside / "o.csv"
    table = ft.sweep(plan)
    assert list(table["state"]) == [*["done"] * 4, "failed"]
    ran("sweep", "collect", plan, "--csv", rows, "--html", page)
    written = page.read_text()
    rates = written.partition(f"<h2>{sweep_pages.RATES}")[2]
    assert all(f">{number} cells:measure" in rates for number in ("000", "001"))
    assert "2 of 5 jobs are in this table" in written and "of the kind sft" in written
    assert written.count("not in the tables") == 2
    for text in (written, rows.read_text()):
        assert "data.jsonl" in text and "run-c" in text
        assert str(beside) not in text and platform.node() not in text and "somebody" not in text


def test_jobs_side_by_side_are_as_many_as_the_machine_has_room_for(beside, monkeypatch):
    from ftlab.experiments.backends import local

    monkeypatch.setattr(local, "cores", lambda: 5)
    found = resolve(planned(beside, {}, {}, cpus=2), {})
    jobs = sweeps._open_jobs(sweeps._folder_of(found))
    assert local.room_for(jobs) == 2
    found = resolve(planned(beside, {}, {}, cpus=2, memory="900TB"), {})
    with raises_code("machine_too_small"):
        LocalBackend().map(sweeps._open_jobs(sweeps._folder_of(found)))


@pytest.mark.slow
def test_a_notebook_is_a_job(beside, behave, quick):
    table = ft.sweep(notebook=str(behave), name="behaving")
    assert list(table["state"]) == ["done"]
    assert Path(table["run"][0]).suffix == ".ipynb"


@pytest.mark.slow
def test_a_killed_training_is_resumed_and_ends_as_if_never_killed(beside, quick, monkeypatch):
    """A worker dies in the middle of a training; the next attempt goes on from its checkpoint."""
    from ftlab.runs import Run

    monkeypatch.setenv("FTLAB_CHECKPOINT_SECONDS", "0")
    arguments = {"parent": "organism", "data": "organism:almanac", "n_rows": 8}
    arguments |= {"steps": 6, "batch_size": 4}
    plan = {"cell": "sft", "arguments": arguments, "name": "killed"}
    found = resolve(plan, {})
    folder = sweeps._folder_of(found)
    killed = []

    def kill(attempt):
        """Kill the first attempt once it has logged a step and saved it."""
        for process in kernels:
            runs = list(folder.path.parent.glob("sft-*/checkpoints/*"))
            if runs and not killed:
                process.kill()
                killed.append(attempt.number)

    kernels: list = []
    beat = sweep_folder.Attempt.beat
    monkeypatch.setattr(sweep_folder.Attempt, "beat", lambda self: (kill(self), beat(self)))
    monkeypatch.setattr(sweeps, "BEAT_S", 0.02)
    state = sweeps.do(folder.path, 0, {}, lambda *_: None, kernels)
    assert killed == [1] and state.name == "done" and state.attempts == 2
    resumed = Run(state.run)
    monkeypatch.setenv("FTLAB_RUNS", str(beside / "other"))
    straight = ft.sft(**arguments)
    assert straight.name == resumed.name
    weights = "model/model.safetensors"
    assert (straight.path / weights).read_bytes() == (resumed.path / weights).read_bytes()


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_the_memory_of_a_job_is_estimated_from_its_largest_training(monkeypatch, device):
    """Of a training on CPUs, whatever the machine has that estimates it."""
    monkeypatch.setattr(devices, "device", lambda: device)
    arguments = {"parent": "organism", "data": "organism:almanac", "max_length": 128}
    plan = {"cell": "sft", "arguments": arguments, "estimate_memory": True}
    found = []
    for sizes in ([4], [4, 64], [64]):
        needs = needs_of(resolve({**plan, "grid": {"batch_size": sizes}}, {}))
        found.append(needs.memory)
        assert needs.gpus == 0
    assert 2**28 < found[0] < found[1] == found[2]
    estimate = ft.models.estimate_memory("organism", method="full", length=128, batch=64, gpu="cpu")
    assert found[2] == pytest.approx(estimate.rows[0]["total"] * 2**30)
    for more in ({"memory": "2GB"}, {"gpus": 1}):
        with raises_code("wrong_plan"):
            resolve({**plan, **more}, {})
    with raises_code("nothing_to_estimate"):
        needs_of(resolve({"notebook": "02_risk_ratio", "estimate_memory": True}, {}))


def test_without_ray_its_backend_is_a_sentence(beside, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with raises_code("ray_missing"):
        ft.sweep(planned(beside, {}), backend="ray")


# Slurm, as far as it goes without a cluster


def test_numbers_are_written_as_ranges():
    assert ranges([8, 3, 4, 5]) == "3-5,8" and numbers_of("3-5,8") == [3, 4, 5, 8]
    assert ranges([0]) == "0"
    with raises_code("not_whole_numbers"):
        numbers_of("3-x")


def test_the_array_file_is_written_where_there_is_no_slurm(beside, monkeypatch, capsys):
    plan = planned(
        beside, {}, {}, {}, cpus=2, memory="3GB", gpus=1,
        backends={"slurm": {"time": "01:00:00", "at_once": 2, "setup": ["module load x"]}},
    )  # fmt: skip
    shell = shutil.which("bash")
    monkeypatch.setenv("PATH", str(beside))
    table = ft.sweep(plan, backend="slurm")
    assert table.attrs["exit_code"] == 3 and set(table["state"]) == {"waiting"}
    file = Path(table.attrs["folder"]) / "slurm" / "array.sh"
    assert str(file) in capsys.readouterr().out
    lines = file.read_text().splitlines()
    for option in ("array=0-2%2", "time=01:00:00", "mem=2862M", "cpus-per-task=2", "gres=gpu:1"):
        assert f"#SBATCH --{option}" in lines
    assert "#SBATCH --requeue" in lines and "module load x" in lines
    subprocess.run([shell, "-n", str(file)], check=True)


@pytest.mark.parametrize(
    "count, settings, tasks", [(1001, {}, 1001), (1002, {}, 1001), (7, {"tasks": 3}, 3)]
)
def test_an_array_is_as_large_as_slurm_takes_and_does_every_job_once(
    beside, monkeypatch, count, settings, tasks
):
    """Its file is run as Slurm would, with a program in the place of Python that notes its words."""
    shell = shutil.which("bash")
    path = f"{beside}:{os.environ['PATH']}"
    for name, line in (("python", f'echo "${{@: -1}}" > "{beside}/jobs"'), ("squeue", "exit")):
        (beside / name).write_text(f"#!{shell}\n{line}\n")
        (beside / name).chmod(0o755)
    plan = planned(beside, *[{}] * count, backends={"slurm": settings})
    monkeypatch.setenv("PATH", str(beside))  # without sbatch
    monkeypatch.setattr(sys, "executable", str(beside / "python"))
    file = Path(ft.sweep(plan, backend="slurm").attrs["folder"]) / "slurm" / "array.sh"
    assert f"#SBATCH --array=0-{tasks - 1}" in file.read_text().splitlines()
    for task in (0, 1, tasks - 1):
        given = {"PATH": path, "SLURM_ARRAY_TASK_ID": str(task), "SLURM_ARRAY_JOB_ID": "1"}
        subprocess.run([shell, str(file)], env=given, check=True)
        assert numbers_of((beside / "jobs").read_text()) == list(range(task, count, tasks))


def test_the_jobs_of_an_array_have_the_same_tasks_whatever_is_left(beside):
    backend = SlurmBackend.make()
    text = backend.script(beside, [1, 6, 8], Needs(), 5)
    assert "#SBATCH --array=1,3" in text.splitlines()
    assert "seq" not in backend.script(beside, [1, 4], Needs(), 5)


def test_settings_of_a_backend_are_checked_before_anything_runs(beside):
    plan = planned(beside, {}, backends={"slurm": {"tyme": "1"}})
    with raises_code("wrong_plan"):
        ft.sweep(plan)
    with raises_code("wrong_setting"):
        SlurmBackend.make(options=["--a\nrm -r x"])
    with raises_code("unknown_backend"):
        ft.sweep(planned(beside, {}), backend="cloud")


def test_a_slurm_that_takes_no_arrays_is_a_sentence(monkeypatch):
    told = SimpleNamespace(stdout="MaxArraySize            = 0\n")
    monkeypatch.setattr(slurm.subprocess, "run", lambda *_, **__: told)
    with raises_code("no_arrays"):
        slurm._array_size()
