"""Files: whole or not there, one clear error for a full disk, nothing lost and nothing twice.

The processes here are forked from one that has imported everything. What they asked a model, and
what they wrote on stderr, they leave in files.
"""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pandas as pd
import pytest
from helpers import raises_code
from noting import NotingEngine
from small_models import (  # noqa: F401  for the calls in FULL, KILLS and CURVE_KILLS
    CURVE,
    CURVE_KILLS,
    KILLS,
    SFT,
    goals,
    pairs,
    sums,
    write,
)

import ftlab
from ftlab import runs
from ftlab._core import files
from ftlab._core.errors import StorageFull, UsageError
from ftlab._core.files import (
    check_page,
    claim,
    digest,
    file_hash,
    stamp,
    storage,
    write_atomic,
    write_page,
)
from ftlab.runs import Run, store

TESTS = Path(__file__).parents[1]
ASK = dict(max_new_tokens=6, judges=["keywords"])
EVALUATE = "ftlab.evaluate(PATH, prompts=goals(6), **ASK)"
TRAIN = "ftlab.sft(PATH, sums(20), **SFT)"
WEIGHTS = "model/model.safetensors"
# What the disk has no room for: the call, the file of the run that is being added to, how often
# before the disk gets full, and the bytes that a file may then have.
FULL = {
    "answers": (EVALUATE, "answers.jsonl", 0, 300),
    "verdicts": (EVALUATE, "verdicts.jsonl", 0, 700),
    "weights of a checkpoint": (TRAIN, "train.jsonl", 5, 50_000),
    "optimiser of a checkpoint": (TRAIN, "train.jsonl", 5, 250_000),
    "model": (TRAIN, "train.jsonl", 9, 50_000),
}
NUMBER_OF_CALLERS = 4
CHILDREN = """
import os, resource, signal, sys, time
import datasets, peft, trl, ftlab
from transformers import AutoModelForCausalLM
from trl import SFTTrainer
from pathlib import Path
from ftlab.models.engines import HuggingFaceEngine
from ftlab.runs import Run
from test_files import *

PATH, ROOT = Path(sys.argv[1]), Path(sys.argv[2])
append, answer, children = Run.append, HuggingFaceEngine.answer, {}
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

def child(name, folder, work):
    if not (pid := os.fork()):
        os.environ["FTLAB_RUNS"], code = str(ROOT / folder), 1
        os.dup2(os.open(ROOT / f"{name}.err", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
        try:
            work()
            code = 0
        except BaseException as error:
            print(f"code={getattr(error, 'code', '')} {error}", file=sys.stderr, flush=True)
        os._exit(code)
    children[name] = pid

def full(name, call, file, before, most):
    def work():
        left = [before]
        def limited(self, written, records):
            if written == file:
                if not left[0]:
                    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
                    resource.setrlimit(resource.RLIMIT_FSIZE, (most, hard))
                left[0] -= 1
            append(self, written, records)
        os.environ["FTLAB_CHECKPOINT_SECONDS"] = "0" if "checkpoint" in name else "1000"
        Run.append = limited
        eval(call)
    return work

def together(dies):
    def work():
        def noted(self, model, requests, on_answer=None):
            with open(ROOT / f"{'killed' if dies else 'all'}.asked", "a") as file:
                file.write(f"{os.getpid()} {len(requests)}\\n")
            return answer(self, model, requests, on_answer)
        def slowly(self, file, records):
            if dies and file == "answers.jsonl" and not (ROOT / "dead").exists():
                (ROOT / "dead").write_text(str(os.getpid()))
                append(self, file, records[:2])
                time.sleep(2)
                os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(2 if file == "answers.jsonl" and not dies else 0)  # so that others wait
            append(self, file, records)
        Run.append, HuggingFaceEngine.answer = slowly, noted
        ftlab.evaluate(PATH, prompts=goals(6), **ASK)
    return work

for name, case in FULL.items():
    child(name, name, full(name, *case))
for n in range(NUMBER_OF_CALLERS):
    child(f"all {n}", "all", together(False))
    child(f"killed {n}", "killed", together(True))
for name, pid in children.items():
    print(name, os.waitpid(pid, 0)[1], sep="=", flush=True)
"""


@pytest.fixture(scope="module")
def family(dropping, tmp_path_factory) -> tuple[Path, dict[str, int]]:
    """Return the folder with the runs and errors of the processes, and how each of them ended."""
    root = tmp_path_factory.mktemp("family")
    folders = (TESTS, TESTS.parent, TESTS / "core", TESTS / "evals")
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, folders))}
    command = [sys.executable, "-c", CHILDREN, str(dropping), str(root)]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    ended = dict(line.split("=") for line in done.stdout.splitlines())
    return root, {name: int(how) for name, how in ended.items()}


def the_run(folder: Path) -> Run:
    (made,) = (path.parent for path in folder.glob("*/config.json"))
    return Run(made)


def recorded(record: dict) -> dict:
    return {name: value for name, value in record.items() if name != "num_tokens"}


def called_in(folder: Path, call: str, model: Path, monkeypatch) -> Run:
    monkeypatch.setenv("FTLAB_RUNS", str(folder))
    return eval(call, {**globals(), "PATH": model})


# A full disk


@pytest.mark.slow
@pytest.mark.parametrize("case", FULL)
def test_after_a_full_disk_the_same_call_resumes(case, family, dropping, tmp_path, monkeypatch):
    root, ended = family
    reported = (root / f"{case}.err").read_text()
    assert ended[case] == 1 << 8 and "code=storage_full " in reported, reported
    run = the_run(root / case)
    files = ("answers.jsonl", "verdicts.jsonl", "train.jsonl")
    logs = [run.path / file for file in files if (run.path / file).exists()]
    kept = {log.name: [recorded(row) for row in run.read(log.name)] for log in logs}
    assert not run.finished
    assert all(log.read_bytes()[-1:] in (b"", b"\n") for log in logs)  # no half record
    monkeypatch.setenv("FTLAB_CHECKPOINT_SECONDS", "1000")
    call = FULL[case][0]
    again = called_in(root / case, call, dropping, monkeypatch)
    undisturbed = called_in(tmp_path / "undisturbed", call, dropping, monkeypatch)
    assert again == run
    for file, rows in kept.items():
        assert [recorded(row) for row in run.read(file)][: len(rows)] == rows
    if call == EVALUATE:
        assert again.table().equals(undisturbed.table())
        assert again.read("answers.jsonl") == undisturbed.read("answers.jsonl")
    else:
        assert file_hash(again.path / WEIGHTS) == file_hash(undisturbed.path / WEIGHTS)
    assert not list((root / case).rglob("*.tmp")) and runs.load(again.path)


@pytest.mark.slow
def test_several_processes_with_the_same_cell_do_its_work_once(family):
    root, ended = family
    names = [f"all {number}" for number in range(NUMBER_OF_CALLERS)]
    assert [ended[name] for name in names] == [0] * len(names)
    owner, count = (root / "all.asked").read_text().split()  # one process asked everything once
    assert count == "6"
    run = the_run(root / "all")
    reports = [(root / f"{name}.err").read_text() for name in names]
    waited = [text for text in reports if f"process {owner} on " in text]
    assert len(waited) == len(names) - 1 and all(str(run.path) in text for text in waited)
    assert run.finished and not (run.path / ".owner").exists()
    for file in ("answers.jsonl", "verdicts.jsonl"):
        keys = Counter(row["key"] for row in run.read(file))
        assert set(keys.values()) == {1} and len(keys) == 6


@pytest.mark.slow
def test_after_a_killed_owner_only_what_is_missing_is_asked(family):
    root, ended = family
    names = [f"killed {number}" for number in range(NUMBER_OF_CALLERS)]
    ends = sorted(ended[name] for name in names)
    assert ends == [0] * (len(names) - 1) + [int(signal.SIGKILL)]
    dead = (root / "dead").read_text()
    asked = [line.split() for line in (root / "killed.asked").read_text().splitlines()]
    assert [count for _, count in asked] == ["6", "4"]
    assert asked[0][0] == dead != asked[1][0]
    run = the_run(root / "killed")
    keys = Counter(row["key"] for row in run.read("answers.jsonl"))
    assert run.finished and set(keys.values()) == {1}
    reports = "".join((root / f"{name}.err").read_text() for name in names)
    assert f"process {dead} on " in reports
    assert run.table().equals(the_run(root / "all").table())


@pytest.fixture
def small(tmp_path):
    """Return a function from mount options to a small file system; skips where it is refused."""
    place = tmp_path / "small"
    place.mkdir()

    def mount(options: str) -> Path:
        command = ["mount", "-t", "tmpfs", "-o", options, "none", place]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"no file system can be mounted: {done.stderr}")
        return place

    yield mount
    subprocess.run(["umount", "-l", place], capture_output=True)


def test_on_a_disk_that_is_really_full_no_record_is_cut_and_none_is_lost(small, monkeypatch):
    place = small("size=64k")
    monkeypatch.setenv("FTLAB_RUNS", str(place))
    run = runs.start("x", "full", {})
    number = 0
    with raises_code("storage_full"):
        for number in range(100):
            run.append("answers.jsonl", [{"key": str(number), "text": "x" * 3000}])
    assert 5 < number < 25
    assert [row["key"] for row in run.read("answers.jsonl")] == [str(n) for n in range(number)]
    assert (run.path / "answers.jsonl").read_bytes().endswith(b'"}\n')  # no half record
    (place / "other").write_bytes(b"0" * 4096 * os.statvfs(place).f_bavail)
    before = (run.path / "config.json").read_bytes()
    with raises_code("storage_full"):
        write_atomic(run.path / "config.json", "y" * 5000)
    assert (run.path / "config.json").read_bytes() == before
    assert not list(run.path.glob(".*.tmp"))
    with run.lock():  # who works on it cannot be noted, which keeps nobody from working
        pass
    with raises_code("storage_full"):
        runs.start("x", "another", {"data": "z" * 5000})
    subprocess.run(["mount", "-o", "remount,size=1m", place], check=True)  # somebody made room
    run.append("answers.jsonl", [{"key": str(number), "text": ""}])
    assert len(run.read("answers.jsonl")) == number + 1 and run.complete().finished


def test_a_disk_without_inodes_is_full(small, monkeypatch):
    place = small("size=1m,nr_inodes=4")
    monkeypatch.setenv("FTLAB_RUNS", str(place / "runs"))
    with raises_code("storage_full"):
        for number in range(4):
            runs.start("x", "y", {"n": number})


def test_on_a_read_only_disk_finished_work_opens(small, monkeypatch):
    place = small("size=1m")
    monkeypatch.setenv("FTLAB_RUNS", str(place))
    done = runs.start("x", "done", {}).complete(n=1)
    begun = runs.start("x", "begun", {})
    subprocess.run(["mount", "-o", "remount,ro", place], check=True)
    assert runs.start("x", "done", {}).finished and runs.load(done.name).stats == {"n": 1}
    assert set(runs.list_runs()["state"]) == {"finished", "unfinished"}
    assert runs.clean_runs()["name"].tolist() == [begun.name]
    with raises_code("folder_not_writable"):
        runs.start("x", "new", {})
    with raises_code("folder_not_writable"), begun.lock():
        pass


@pytest.mark.parametrize(
    ("number", "code"),
    [
        (errno.ENOSPC, "storage_full"),
        (errno.EDQUOT, "storage_full"),
        (errno.EFBIG, "storage_full"),
        (errno.EROFS, "folder_not_writable"),
        (errno.EIO, "folder_not_writable"),
    ],
)
def test_what_root_cannot_provoke_has_its_code_too(number, code, monkeypatch, runs_folder):
    def refused(*_, **__):
        raise OSError(number, os.strerror(number))

    run = runs.start("x", "y", {})
    with monkeypatch.context() as patch:
        patch.setattr(store.os, "mkdir", refused)
        with raises_code(code) as info:
            runs.start("x", "z", {})
    assert str(runs_folder) in str(info.value)
    with monkeypatch.context() as patch:
        patch.setattr(store.os, "open", refused)
        with raises_code(code), run.lock():
            pass


OTHER = [
    ValueError("PytorchStreamReader failed"),
    RuntimeError("CUDA out of memory"),
    OSError("no number"),
    UsageError("a_code", "A usage error."),
]


@pytest.mark.parametrize("error", OTHER, ids=lambda error: type(error).__name__)
def test_an_error_that_is_not_of_the_disk_stays_as_it_is(error):
    with pytest.raises(type(error)) as info, storage(Path("x")):
        raise error
    assert info.value is error


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("PytorchStreamWriter failed writing file"),
        Exception("I/O error: No space left on device (os error 28)"),
        OSError(errno.ENOSPC, "No space left on device"),
        StorageFull("storage_full", "already so"),
    ],
)
def test_a_full_disk_is_recognised_whatever_library_reports_it(error, tmp_path):
    with raises_code("storage_full"), storage(tmp_path / "x"):
        raise error


# Hashes


def test_a_digest_ignores_the_order_of_keys_and_nothing_else():
    assert digest({"a": 1, "b": [1, 2]}) == digest({"b": [1, 2], "a": 1})
    values = ({"a": 1}, {"a": "1"}, {"a": [1]}, {"a": None}, {"b": 1}, {}, "\ud800", "é")
    assert len({digest(value) for value in values}) == len(values)
    assert len(digest({})) == 16


def test_the_stamp_and_the_hash_change_with_the_file(tmp_path):
    file = tmp_path / "x"
    assert stamp(file) == ()
    file.write_text("a")
    first = (stamp(file), file_hash(file))
    write_atomic(file, "b")
    assert stamp(file) != first[0] and file_hash(file) != first[1]
    write_atomic(file, "c", new=True)
    assert file.read_text() == "b" and not list(tmp_path.glob(".*"))


# Damaged lines


@pytest.mark.slow
@pytest.mark.parametrize(
    "text", [b"", b"\x00" * 500, b'{"key": "lost"}', b'{"step": 1, "key"', b"\xff\xfe"]
)
def test_damaged_lines_of_an_unfinished_evaluation_are_computed_again(text, llama, capsys):
    engine = NotingEngine()
    run = ftlab.evaluate(llama, prompts=goals(6), engine=engine, **ASK)
    table = run.table()
    before = {file: run.read(file) for file in ("answers.jsonl", "verdicts.jsonl")}
    (run.path / "complete.json").unlink()
    for file in before:
        lines = (run.path / file).read_bytes().splitlines()
        damaged = b"\n".join([lines[0], text, *lines[2:5], lines[5][:-9]])
        (run.path / file).write_bytes(damaged)
    again = ftlab.evaluate(llama, prompts=goals(6), engine=engine, **ASK)
    assert again == run and run.finished and len(engine.asked) == 6 + 2
    reported = capsys.readouterr().err
    for file, rows in before.items():
        assert f"{run.path / file}:2, 6:" in reported
        assert sorted(run.read(file), key=str) == sorted(rows, key=str)
    assert sorted(run.table()["sample_id"]) == sorted(table["sample_id"])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "file"),
    [("full", "train.jsonl"), ("curve", "verdicts.jsonl"), ("curve", "answers.jsonl")],
)
def test_a_damaged_line_before_the_checkpoint_of_a_training_is_computed_again(
    name, file, dropping, killed, killed_curves, tmp_path, monkeypatch, capsys
):
    root, calls = (killed_curves, CURVE_KILLS) if name == "curve" else (killed, KILLS)
    shutil.copytree(root / name, tmp_path / name)
    run = next(Run(path.parent) for path in tmp_path.glob(f"{name}/*/checkpoints"))
    lines = (run.path / file).read_bytes().splitlines(keepends=True)
    damaged = b"".join([*lines[:2], lines[2][:-5] + b"\n", *lines[3:]])
    (run.path / file).write_bytes(damaged)
    call = calls[name][0]
    again = called_in(tmp_path / name, call, dropping, monkeypatch)
    undisturbed = called_in(tmp_path / "undisturbed", call, dropping, monkeypatch)
    assert f"{run.path / file}:3:" in capsys.readouterr().err
    assert again.finished
    for mine, theirs in zip(again.members, undisturbed.members, strict=True):
        assert mine.finished
        for log in ("train.jsonl", "verdicts.jsonl", "answers.jsonl"):
            found, expected = (
                sorted(str(recorded(row)) for row in member.read(log)) for member in (mine, theirs)
            )
            assert found == expected


@pytest.mark.slow
def test_paths_with_spaces_and_other_letters_and_long_labels(llama, tmp_path, monkeypatch):
    place = tmp_path / "мои опыты 实验 (2)"
    model = place / "модель 7Б"
    data = place / "données d'été.jsonl"
    prompts = place / "質問.csv"
    shutil.copytree(llama, model)
    write(data, sums(8))
    pd.DataFrame(goals(3)).to_csv(prompts, index=False)
    monkeypatch.setenv("FTLAB_RUNS", str(place / "runs"))
    settings = dict(steps=1, batch_size=4, learning_rate=1e-3, label="étiquette " * 500)
    tuned = ftlab.sft(str(model), str(data), **settings)
    scores = ftlab.evaluate(tuned, prompts=str(prompts), **ASK)
    assert tuned.finished and scores.finished and len(tuned.name) < 100
    assert runs.load(scores.name).table().equals(scores.table()) and runs.verify_runs().empty
    assert ftlab.sft(str(model), str(data), **settings) == tuned


def test_what_is_shipped_is_as_it_was_shipped():
    for part in ("organism/aligned", "organism/sft", "organism/base", "judge/refusal"):
        assert files.check_shipped(part).is_dir()


@pytest.mark.parametrize("damage", ["changed", "missing"])
def test_a_damaged_copy_of_the_package_is_refused(damage, tmp_path, monkeypatch):
    file = "judge/refusal/model.json"
    copied = shutil.copytree(files.resource("data"), tmp_path / "data")
    monkeypatch.setattr(files, "resource", tmp_path.joinpath)
    assert files.check_shipped("judge/refusal") == copied / "judge/refusal"
    if damage == "missing":
        (copied / file).unlink()
    else:
        (copied / file).write_bytes((copied / file).read_bytes() + b" ")
    with raises_code("shipped_files_damaged"):
        files.check_shipped("judge/refusal")


@pytest.mark.parametrize("name", ["file/page.html", "folder", "a\0.html", "x" * 300 + ".html"])
def test_a_page_that_cannot_be_written_is_refused_before_the_work_and_after(name, tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    before = sorted(tmp_path.rglob("*"))
    with raises_code("output_not_writable"):
        check_page(tmp_path / name)
    with raises_code("output_not_writable"):
        write_page(tmp_path / name, "text")
    assert sorted(tmp_path.rglob("*")) == before


def test_a_page_is_tried_without_a_trace_and_a_name_is_a_text(tmp_path):
    page = tmp_path / "new" / "page.html"
    assert check_page(str(page)) == page and list(page.parent.iterdir()) == []
    write_page(page, "first")
    assert check_page(page).read_text() == "first"
    write_page(page, "second", new=True)
    assert page.read_text() == "first"
    with raises_code("output_not_writable"):
        check_page(5)
    assert check_page(None) is None


def _no_link(number: int):
    def link(*_):
        raise OSError(number, os.strerror(number))

    return link


def test_without_links_one_of_several_claims_is_first(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "link", _no_link(errno.EPERM))
    assert claim(tmp_path / "lease", "one") and not claim(tmp_path / "lease", "two")
    assert [path.read_text() for path in tmp_path.iterdir()] == ["one"]


def test_without_links_a_failed_write_leaves_no_half_of_a_file(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "link", _no_link(errno.ENOTSUP))
    synced = []

    def full_at_the_second(_):
        synced.append(1)
        if len(synced) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_at_the_second)
    with raises_code("storage_full"):
        claim(tmp_path / "lease", "one")
    assert not list(tmp_path.iterdir())
    assert claim(tmp_path / "lease", "two")


def test_another_error_of_linking_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "link", _no_link(errno.EIO))
    with pytest.raises(OSError, match="Input/output"):
        claim(tmp_path / "lease", "one")
    assert not list(tmp_path.iterdir())
