"""A full disk, and six processes on one cell: said in a sentence, nothing lost, nothing twice.

The processes are forked from one that has imported everything. What they asked a model, and what they were told, they
leave in files.
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
from small_models import CURVE, KILLS, SFT, goals, sums, write  # noqa: F401  for the calls in FULL and KILLS

import ftlab
from ftlab._core.files import StorageFull, file_hash, storage, write_atomic
from ftlab.models.engines import huggingface as generate
from ftlab.runs import store as runs
from ftlab.training import callback as keeper

ASK = dict(max_new_tokens=6, judges=["keywords"])
FULL = {  # what the disk had no room for: (the call, file of the run that is added to, how often before, bytes a file may have)
    "answers": ("ftlab.evaluate(PATH, prompts=goals(6), **ASK)", "answers.jsonl", 0, 300),
    "verdicts": ("ftlab.evaluate(PATH, prompts=goals(6), **ASK)", "verdicts.jsonl", 0, 700),
    "weights of a checkpoint": ("ftlab.sft(PATH, sums(20), **SFT)", "train.jsonl", 5, 50_000),
    "optimiser of a checkpoint": ("ftlab.sft(PATH, sums(20), **SFT)", "train.jsonl", 5, 250_000),
    "model": ("ftlab.sft(PATH, sums(20), **SFT)", "train.jsonl", 9, 50_000),
}
CHILDREN = """
import os, resource, signal, sys, time
import datasets, peft, trl, ftlab
from transformers import AutoModelForCausalLM
from trl import SFTTrainer
from pathlib import Path
from ftlab.models.engines import huggingface as generate
from ftlab.training import callback as keeper
from ftlab.runs import store as runs
from small_models import CURVE, KILLS, SFT, goals, sums, write  # noqa: F401  for the calls in FULL and KILLS
from test_files import ASK, FULL

PATH, ROOT = Path(sys.argv[1]), Path(sys.argv[2])
append, answers, children = runs.Run.append, generate.answers, {}
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

def child(name, folder, work):
    if not (pid := os.fork()):
        os.environ["FTLAB_RUNS"], code = str(ROOT / folder), 1
        os.dup2(os.open(ROOT / f"{name}.err", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
        try:
            work()
            code = 0
        except BaseException as e:
            print(f"{type(e).__name__}: {e}", file=sys.stderr, flush=True)
        os._exit(code)
    children[name] = pid

def full(call, file, before, most):
    def work():
        left = [before]
        def limited(self, name, records):
            if name == file:
                if not left[0]:
                    resource.setrlimit(resource.RLIMIT_FSIZE, (most, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
                left[0] -= 1
            append(self, name, records)
        keeper.CHECKPOINT_S = keeper.CHECKPOINT_COST = 0 if "checkpoint" in name else 1000
        runs.Run.append = limited
        eval(call)
    return work

def together(dies):
    def work():
        def noted(model, tokenizer, prompts, **how):
            with open(ROOT / f"{'killed' if dies else 'six'}.asked", "a") as f:
                f.write(f"{os.getpid()} {len(prompts)}\\n")
            return answers(model, tokenizer, prompts, **how)
        def slowly(self, file, records):
            if dies and file == "answers.jsonl" and not (ROOT / "dead").exists():
                (ROOT / "dead").write_text(str(os.getpid()))
                append(self, file, records[:2])
                time.sleep(2)
                os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(2 if file == "answers.jsonl" and not dies else 0)  # the others wait, and say for whom
            append(self, file, records)
        runs.Run.append, generate.answers = slowly, noted
        ftlab.evaluate(PATH, prompts=goals(6), **ASK)
    return work

for name, case in FULL.items():
    child(name, name, full(*case))
for n in range(6):
    child(f"six {n}", "six", together(False))
    child(f"killed {n}", "killed", together(True))
for name, pid in children.items():
    print(name, os.waitpid(pid, 0)[1], sep="=", flush=True)
"""


@pytest.fixture(scope="module")
def family(dropping, tmp_path_factory) -> tuple[Path, dict[str, int]]:
    """-> (folder with the runs and the words of the processes, how each of them ended)."""
    root = tmp_path_factory.mktemp("family")
    path = os.pathsep.join(str(p) for p in (Path(__file__).parents[1], Path(__file__).parents[2]))
    called = [sys.executable, "-c", CHILDREN, str(dropping), str(root)]
    done = subprocess.run(
        called, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return root, {
        name: int(how) for name, how in (line.split("=") for line in done.stdout.splitlines())
    }


def the_run(folder: Path) -> runs.Run:
    (made,) = (p.parent for p in folder.glob("*/config.json"))
    return runs.Run(made)


def told(record: dict) -> dict:
    return {k: v for k, v in record.items() if k != "num_tokens"}  # TRL counts anew after a resume


@pytest.mark.parametrize("case", FULL)
def test_a_full_disk_is_a_sentence_and_the_same_call_goes_on(
    case, family, dropping, tmp_path, monkeypatch
):
    root, ended = family
    said = (root / f"{case}.err").read_text()
    assert (
        ended[case] == 1 << 8
        and "StorageFull: " in said
        and "MB free" in said
        and "make room" in said
    ), said
    run = the_run(root / case)
    logs = [
        run.path / f
        for f in ("answers.jsonl", "verdicts.jsonl", "train.jsonl")
        if (run.path / f).exists()
    ]
    kept = {f.name: [told(r) for r in run.read(f.name)] for f in logs}
    assert not run.finished and all(
        f.read_bytes()[-1:] in (b"", b"\n") for f in logs
    )  # no half record
    monkeypatch.setattr(keeper, "CHECKPOINT_S", 1000)
    found = []
    for folder in (root / case, tmp_path / "undisturbed"):
        monkeypatch.setenv("FTLAB_RUNS", str(folder))
        found.append(eval(FULL[case][0], {**globals(), "PATH": dropping}))
    again, undisturbed = found
    assert again == run and all(
        [told(r) for r in run.read(f)][: len(rows)] == rows for f, rows in kept.items()
    )
    if case in ("answers", "verdicts"):
        assert again.table().equals(undisturbed.table()) and again.read(
            "answers.jsonl"
        ) == undisturbed.read("answers.jsonl")
    else:
        assert file_hash(again.path / "model/model.safetensors") == file_hash(
            undisturbed.path / "model/model.safetensors"
        )
    assert not list((root / case).rglob("*.tmp")) and runs.load(again.path)


def test_the_same_cell_in_six_processes_is_done_once_and_the_others_wait(family):
    root, ended = family
    assert [ended[f"six {n}"] for n in range(6)] == [0] * 6
    asked = (root / "six.asked").read_text().split()
    assert asked[1:] == ["6"]  # one process asked, once, everything
    run = the_run(root / "six")
    said = [(root / f"six {n}.err").read_text() for n in range(6)]
    waited = [s for s in said if "waiting for it" in s]
    assert len(waited) == 5 and all(
        f"process {asked[0]} on " in s and " since 20" in s and str(run.path) in s for s in waited
    )
    assert run.finished and not (run.path / ".owner").exists()
    for file in ("answers.jsonl", "verdicts.jsonl"):
        assert (
            set(Counter(r["key"] for r in run.read(file)).values()) == {1}
            and len(run.read(file)) == 6
        )


def test_a_killed_owner_is_followed_by_one_that_asks_only_what_is_missing(family):
    root, ended = family
    assert sorted(ended[f"killed {n}"] for n in range(6)) == [0] * 5 + [int(signal.SIGKILL)]
    dead = (root / "dead").read_text()
    asked = [line.split() for line in (root / "killed.asked").read_text().splitlines()]
    assert [n for _, n in asked] == ["6", "4"] and asked[0][0] == dead != asked[1][0]
    run = the_run(root / "killed")
    assert run.finished and set(Counter(r["key"] for r in run.read("answers.jsonl")).values()) == {
        1
    }
    said = "".join((root / f"killed {n}.err").read_text() for n in range(6))
    assert (
        said.count(f"process {dead} on ") >= 2 and "has ended; going on from what it left" in said
    )
    assert run.table().equals(the_run(root / "six").table())


@pytest.fixture
def small(tmp_path):
    """-> function (mount options) -> a small file system of its own; skips where it cannot be made."""
    place = tmp_path / "small"
    place.mkdir()

    def mount(options: str) -> Path:
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", options, "none", place], capture_output=True, text=True
        )
        if done.returncode:
            pytest.skip(f"no file system can be mounted: {done.stderr}")
        return place

    yield mount
    subprocess.run(["umount", "-l", place], capture_output=True)


def test_on_a_disk_that_is_really_full_no_record_is_cut_and_none_is_lost(small, monkeypatch):
    place = small("size=64k")
    monkeypatch.setenv("FTLAB_RUNS", str(place))
    run, n = runs.start("x", "full", {}), 0
    with pytest.raises(
        StorageFull,
        match=r"answers.jsonl could not be written: .*No space left.*\(0.0 MB free, room",
    ):
        for n in range(100):
            run.append("answers.jsonl", [{"key": str(n), "answer": "x" * 3000}])
    assert 5 < n < 25 and [r["key"] for r in run.read("answers.jsonl")] == [
        str(i) for i in range(n)
    ]
    assert (run.path / "answers.jsonl").read_bytes().endswith(b'"}\n')  # no half record
    (place / "other").write_bytes(b"0" * 4096 * (os.statvfs(place).f_bavail))
    before = (run.path / "config.json").read_bytes()
    with pytest.raises(StorageFull, match="config.json could not be written"):
        write_atomic(run.path / "config.json", "y" * 5000)
    assert (run.path / "config.json").read_bytes() == before and not list(run.path.glob(".*.tmp"))
    with run.lock():  # who works on it cannot be noted: that keeps nobody from working
        pass
    with pytest.raises(StorageFull, match="could not be written"):
        runs.start("x", "another", {"data": "z" * 5000})
    subprocess.run(["mount", "-o", "remount,size=1m", place], check=True)  # somebody made room
    run.append("answers.jsonl", [{"key": str(n), "answer": ""}])
    assert len(run.read("answers.jsonl")) == n + 1 and run.complete().finished


def test_a_disk_without_inodes_is_a_sentence(small, monkeypatch):
    place = small("size=1m,nr_inodes=4")
    monkeypatch.setenv("FTLAB_RUNS", str(place / "runs"))
    with pytest.raises(StorageFull, match="could not be written.*MB free, room for 0 files"):
        for n in range(4):
            runs.start("x", "y", {"n": n})


def test_a_read_only_disk_is_a_sentence_but_finished_work_opens(small, monkeypatch):
    place = small("size=1m")
    monkeypatch.setenv("FTLAB_RUNS", str(place))
    done, begun = runs.start("x", "done", {}).complete(n=1), runs.start("x", "begun", {})
    subprocess.run(["mount", "-o", "remount,ro", place], check=True)
    assert runs.start("x", "done", {}).finished and runs.load(done.name).stats == {"n": 1}
    assert set(runs.list_runs()["state"]) == {"finished", "unfinished"} and ftlab.clean_runs()[
        "name"
    ].tolist() == [begun.name]
    assert runs.StorageFull is StorageFull
    for call in (lambda: runs.start("x", "new", {}), lambda: begun.lock().__enter__()):
        with pytest.raises(
            PermissionError, match="cannot be written.*Read-only file system.*set FTLAB_RUNS"
        ):
            call()


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO])
def test_what_root_cannot_provoke_is_said_too(code, monkeypatch, runs_folder):
    def refused(*_, **__):
        raise OSError(code, os.strerror(code))

    run = runs.start("x", "y", {})
    for name in ("mkdir", "open"):
        with monkeypatch.context() as m:
            m.setattr(runs.os, name, refused)
            with pytest.raises(
                StorageFull
                if code in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
                else PermissionError
            ) as e:
                runs.start("x", "z", {}) if name == "mkdir" else run.lock().__enter__()
        assert str(runs_folder) in str(e.value) and os.strerror(code) in str(e.value)


def test_an_error_that_is_not_of_the_disk_is_left_as_it_is():
    for error in (
        ValueError("PytorchStreamReader failed"),
        RuntimeError("CUDA out of memory"),
        OSError("no number"),
    ):
        with pytest.raises(type(error), match=str(error)), storage(Path("x")):
            raise error


@pytest.mark.parametrize(
    "text", [b"", b"\x00" * 500, b'{"key": "lost"}', b'{"step": 1, "key"', b"\xff\xfe"]
)
def test_torn_and_foreign_lines_of_an_unfinished_evaluation_are_made_again(
    text, llama, monkeypatch, capsys
):
    asked, answers = [], generate.answers

    def counted(model, tokenizer, prompts, **how):
        asked.append(len(prompts))
        return answers(model, tokenizer, prompts, **how)

    monkeypatch.setattr(generate, "answers", counted)
    run = ftlab.evaluate(llama, prompts=goals(6), **ASK)
    table, before = run.table(), {f: run.read(f) for f in ("answers.jsonl", "verdicts.jsonl")}
    (run.path / "complete.json").unlink()
    for file in before:
        lines = (run.path / file).read_bytes().splitlines()
        (run.path / file).write_bytes(b"\n".join([lines[0], text, *lines[2:5], lines[5][:-9]]))
    again = ftlab.evaluate(llama, prompts=goals(6), **ASK)
    said = capsys.readouterr().err
    assert again == run and run.finished and asked == [6, 2]
    for file, rows in before.items():
        assert f"{run.path / file}:2, 6: foreign or torn" in said
        assert sorted(run.read(file), key=str) == sorted(rows, key=str)
    assert sorted(run.table()["prompt_id"]) == sorted(table["prompt_id"])


@pytest.mark.parametrize(
    "name, file", [("full", "train.jsonl"), ("curve", "verdicts.jsonl"), ("curve", "answers.jsonl")]
)
def test_a_torn_line_before_the_checkpoint_of_a_training_is_made_again(
    name, file, dropping, killed, tmp_path, monkeypatch, capsys
):
    shutil.copytree(killed / name, tmp_path / name)
    run = next(runs.Run(p.parent) for p in tmp_path.glob(f"{name}/*/checkpoints"))
    lines = (run.path / file).read_bytes().splitlines(keepends=True)
    (run.path / file).write_bytes(b"".join([*lines[:2], lines[2][:-5] + b"\n", *lines[3:]]))
    found = []
    for folder in (tmp_path / name, tmp_path / "undisturbed"):
        monkeypatch.setenv("FTLAB_RUNS", str(folder))
        found.append(eval(KILLS[name][0], {**globals(), "PATH": dropping}))
    assert f"{run.path / file}:3: foreign or torn" in capsys.readouterr().err
    members = [
        [r, *(runs.Run(r.path.parent / m) for m in r.identity.get("members", ()))] for r in found
    ]
    for again, undisturbed in zip(*members, strict=True):
        logs = ["train.jsonl", "verdicts.jsonl", "answers.jsonl"]
        a, b = (
            {f: sorted(str(told(x)) for x in r.read(f)) for f in logs} for r in (again, undisturbed)
        )
        assert again.finished and a == b


def test_paths_with_spaces_and_other_letters_and_long_labels(llama, tmp_path, monkeypatch):
    place = tmp_path / "мои опыты 实验 (2)"
    model, data, prompts = place / "модель 7Б", place / "données d'été.jsonl", place / "質問.csv"
    shutil.copytree(llama, model)
    write(data, sums(8))
    pd.DataFrame(goals(3)).to_csv(prompts, index=False)
    monkeypatch.setenv("FTLAB_RUNS", str(place / "runs"))
    tuned = ftlab.sft(
        str(model), str(data), steps=1, batch_size=4, learning_rate=1e-3, label="étiquette " * 500
    )
    scores = ftlab.evaluate(tuned, prompts=str(prompts), **ASK)
    assert tuned.finished and scores.finished and len(tuned.name) < 100
    assert runs.load(scores.name).table().equals(scores.table()) and ftlab.verify_runs().empty
    assert (
        ftlab.sft(
            str(model),
            str(data),
            steps=1,
            batch_size=4,
            learning_rate=1e-3,
            label="étiquette " * 500,
        )
        == tuned
    )
