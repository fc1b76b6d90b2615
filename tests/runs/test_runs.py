from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers import raises_code

from ftlab import runs
from ftlab._core.errors import Busy
from ftlab._core.files import digest, file_hash, write_atomic
from ftlab.runs import Run, records, start, store


@pytest.fixture
def run() -> Run:
    return start("sft", "a label", {"data": 1})


def test_the_same_identity_is_the_same_folder_and_is_not_written_again(run):
    before = {p.name: p.read_bytes() for p in run.path.iterdir()}
    again = start("sft", "a label", {"data": 1})
    assert again == run and {p.name: p.read_bytes() for p in run.path.iterdir()} == before
    assert {start(k, "a label", {"data": d}).path for k, d in (("dpo", 1), ("sft", 2))}.isdisjoint(
        {run.path}
    )


def test_a_run_is_found_by_its_identity_where_its_label_may_differ(run):
    assert start("sft", "new", {"data": 1}, any_label=True) == run
    assert start("sft", "new", {"data": 2}, any_label=True).name.startswith("sft-new-")
    assert start("dpo", "new", {"data": 1}, any_label=True) != run != start("sft", "n", {"data": 1})


@pytest.mark.parametrize("label", ["../../etc", "a/b\\c", "ü 漢 \ud800", "x" * 500, "", "<b>"])
def test_any_label_makes_a_plain_folder_name(label, runs_folder):
    path = start("x", label, {}).path
    assert (
        path.parent == runs_folder
        and path.name.isascii()
        and len(path.name) < 100
        and not set("/\\<> ") & set(path.name)
    )


def test_a_run_is_finished_when_its_record_is_there_and_holds(run):
    run.append("answers.jsonl", [{"a": 1}])
    assert not run.finished
    assert run.complete(rows=1).finished and run.stats == {"rows": 1}
    assert not (run.path / "checkpoints").exists()


def damaged(path, how: str) -> None:
    if how == "deleted":
        path.unlink()
    elif how == "truncated":
        path.write_bytes(path.read_bytes()[:-1])
    elif how == "changed":  # same size, same modification time
        times, old = path.stat(), path.read_bytes()
        path.write_bytes(old[:-2] + bytes([old[-2] ^ 1]) + old[-1:])
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    else:
        path.write_text(how)


@pytest.mark.parametrize("how", ["deleted", "truncated", "changed"])
@pytest.mark.parametrize(
    "file",
    ["config.json", "provenance.json", "answers.jsonl", "model/model.safetensors", "stats.json"],
)
def test_a_damaged_file_makes_a_run_unfinished(run, file, how):
    (run.path / "model").mkdir()
    (run.path / "model" / "model.safetensors").write_bytes(bytes(100))
    run.append("answers.jsonl", [{"a": "bc"}])
    assert run.complete(rows=1).finished
    damaged(run.path / file, how)
    assert not run.finished
    with pytest.raises((ValueError, FileNotFoundError), match=run.name):
        runs.load(run.name)


def test_a_file_that_the_clock_cannot_tell_from_the_last_one_is_read_again(tmp_path, monkeypatch):
    """Clocks of file systems tick in ms (Linux before 6.13) to 2 s: two versions may bear one size and one time."""
    file, now = tmp_path / "model.safetensors", time.time_ns()
    for age, again in (
        (0, True),
        (-(10**10), True),
        (10**10, False),
    ):  # ns; before zero: a server's clock is ahead
        monkeypatch.setattr(
            "ftlab._core.files.stamp", lambda path, age=age: (1, 3, now - age, now - age)
        )
        file.write_bytes(b"one")
        one = file_hash(file)
        file.write_bytes(b"two")
        assert (file_hash(file) != one) == again


@pytest.mark.parametrize(
    "record",
    [
        "",
        "{",
        "[]",
        "null",
        "{}",
        '{"files": []}',
        '{"files": {"config.json": 3}}',
        '{"files": {"x": {}}}',
    ],
)
def test_a_foreign_or_torn_completion_record_is_no_completion(run, record):
    run.complete()
    (run.path / "complete.json").write_text(record)
    assert not run.finished


def test_a_torn_last_line_is_reported_left_out_and_swallows_nothing(run, capsys):
    run.append("any.jsonl", [{"n": 1}, {"n": 2}])
    path = run.path / "any.jsonl"
    whole = path.read_bytes()
    for cut in range(len(whole) - 8, len(whole) - 1):  # anywhere within the second record
        path.write_bytes(whole[:cut])
        assert run.read("any.jsonl") == [{"n": 1}]
        assert f"{path}:2" in capsys.readouterr().err
        run.append("any.jsonl", [{"n": 3}])
        assert run.read("any.jsonl") == [{"n": 1}, {"n": 3}]
    path.write_bytes(whole[:-1])  # only the line break is lost: nothing is
    run.append("any.jsonl", [{"n": 3}])
    assert [r["n"] for r in run.read("any.jsonl")] == [1, 2, 3]


FOREIGN = [
    b"null",
    b"7",
    b'["a"]',
    b"\x00" * 4096,
    b"\xff\xfe\x00{",
    b"<html>",
    b"[" * 100_000,
    b"1" * 5000,
    b'{"n": 1',
]


@pytest.mark.parametrize("foreign", FOREIGN, ids=lambda f: repr(f[:8]))
def test_a_foreign_line_is_left_out_and_told_with_file_and_line(run, foreign, capsys):
    (run.path / "t.jsonl").write_bytes(b'{"n": 1}\n' + foreign + b'\n{"n": 2}\r\n')
    assert run.read("t.jsonl") == [{"n": 1}, {"n": 2}] and run.broken("t.jsonl")
    assert f"{run.path / 't.jsonl'}:2" in capsys.readouterr().err


@pytest.mark.parametrize("file", sorted(records.REQUIRED))
def test_a_line_without_what_its_readers_need_is_left_out(run, file, capsys):
    whole = {
        "key": "k",
        "text": "a",
        "risk": "bias",
        "sample_id": "p",
        "outcome": "refused",
        "judge": "j",
        "step": 3,
    }
    for lost in records.REQUIRED[file]:
        rows = [whole, {k: v for k, v in whole.items() if k != lost}, {**whole, lost: []}, whole]
        (run.path / file).unlink(missing_ok=True)
        run.append(file, rows)
        assert (
            run.read(file) == [whole, whole]
            and f"{run.path / file}:2, 3" in capsys.readouterr().err
        )


def test_a_block_of_a_crashed_file_system_costs_its_own_line_only(run):
    run.append("t.jsonl", [{"n": 1}])
    with open(run.path / "t.jsonl", "ab") as f:
        f.write(bytes(4096))
    run.append("t.jsonl", [{"n": 2}])
    assert run.read("t.jsonl") == [{"n": 1}, {"n": 2}]


def test_a_torn_last_line_is_no_hole_before_a_checkpoint_but_one_in_the_middle_is(run):
    (run.path / "train.jsonl").write_bytes(b'{"step": 1}\n{"ste')
    assert not run.broken("train.jsonl") and not run.broken("absent.jsonl")
    (run.path / "train.jsonl").write_bytes(b'{"step": 1}\n{"ste\n{"step": 3}\n')
    assert run.broken("train.jsonl")


@pytest.mark.slow
def test_adding_a_line_reads_only_the_end_of_a_long_file(run, monkeypatch):
    run.append("t.jsonl", [{"n": i, "text": "x" * 20} for i in range(3000)])
    assert len(run.read("t.jsonl")) == 3000
    read = []

    class Counting:
        def __init__(self, file):
            self.file = file

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.file.close()

        def read(self, n):
            read.append(n)
            return self.file.read(n)

        def __getattr__(self, name):
            return getattr(self.file, name)

    monkeypatch.setattr(records, "open", lambda *a, **k: Counting(open(*a, **k)), raising=False)
    run.append("t.jsonl", [{"n": -1}])
    assert read == [1]


@pytest.mark.parametrize(
    "text", ["\ud800", "a\u2028b\x85c\x0bd\re\n", "\x00\x1b[2J", "😀" * 9000, '"\\']
)
def test_any_text_survives(run, text):
    told = [{"key": "a", "text": text}, {"key": text, "text": ""}]
    run.append("answers.jsonl", told)
    assert run.read("answers.jsonl") == told
    other = start("x", "label", {"system": text})
    assert (
        other.config["identity"]["system"] == text
        and other.complete(text=text).finished
        and other.stats == {"text": text}
    )


@pytest.mark.parametrize("broken", ["fsync", "replace"])
def test_a_write_that_fails_leaves_the_old_content(tmp_path, monkeypatch, broken):
    def fail(*_):
        raise OSError("disk full")

    write_atomic(tmp_path / "f.json", "old")
    monkeypatch.setattr(f"os.{broken}", fail)
    with pytest.raises(OSError, match="disk full"):
        write_atomic(tmp_path / "f.json", "new")
    assert [p.read_text() for p in tmp_path.iterdir() if p.is_file()] == ["old"]


def test_a_slow_second_start_changes_nothing_of_a_finished_run(run, monkeypatch):
    (run.path / "provenance.json").unlink()

    def slow():
        (run.path / "provenance.json").write_text("{}")  # the first caller was faster, and finished
        run.complete()
        return {"second": True}

    monkeypatch.setattr(store, "provenance", slow)
    identity = {k: v for k, v in run.config["identity"].items() if k not in ("kind", "schema")}
    again = start(run.config["identity"]["kind"], run.config["label"], identity)
    assert again == run and run.finished and run.provenance == {}


@pytest.mark.slow
def test_two_processes_share_a_run(run):
    code = (
        "import sys, time, ftlab.runs as r\n"
        "run = r.start('sft', 'a label', {'data': 1})\n"
        "for i in range(40):\n"
        "    with run.lock():\n"
        "        n = len(run.read('log.jsonl'))\n"
        "        time.sleep(0.005)\n"
        "        run.append('log.jsonl', [{'who': sys.argv[1], 'i': i, 'n': n, 'text': 'x' * 20000}])\n"
    )
    both = [
        subprocess.Popen(
            [sys.executable, "-c", code, who], cwd=Path(__file__).parents[2], stderr=subprocess.PIPE
        )
        for who in "ab"
    ]
    errors = [p.communicate(timeout=120)[1].decode() for p in both]
    assert [p.returncode for p in both] == [0, 0], errors
    log = run.read("log.jsonl")
    assert [r["n"] for r in log] == list(range(80))  # nobody read while the other one wrote
    assert [[r["i"] for r in log if r["who"] == who] for who in "ab"] == [list(range(40))] * 2


OWNED = """
import sys, time, ftlab.runs as r
run = r.start('sft', 'a label', {'data': 1})
with run.lock():
    print('held', flush=True)
    time.sleep(60)
"""


def test_who_has_a_run_is_told_and_a_dead_owner_keeps_nobody_from_it(run, capsys):
    root = Path(__file__).parents[2]
    other = subprocess.Popen(
        [sys.executable, "-c", OWNED], cwd=root, stdout=subprocess.PIPE, text=True
    )
    try:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(Busy, match=rf"process {other.pid} on .* since 20.*{run.name}"):
            run.lock(wait=False).__enter__()
        assert f"running (process {other.pid} on" in run.state
        assert run.state in runs.list_runs()["state"].tolist()
    finally:
        other.kill()
        other.wait()
    assert run.state == "unfinished"
    with run.lock(wait=False):
        assert f"process {os.getpid()} on" in (run.path / ".owner").read_text()
    assert (
        f"process {other.pid} on" in capsys.readouterr().err and not (run.path / ".owner").exists()
    )


def test_a_stale_lock_file_blocks_nobody(run, capsys):
    for file in (".lock", ".owner"):
        (run.path / file).write_bytes(b"999999\n\xff\x00")
    with run.lock(wait=False):
        run.complete()
    assert run.state == "finished"


@pytest.mark.parametrize("at", ["runs", "runs/a/deeper", "the run", "config", "provenance"])
def test_a_file_where_a_folder_should_be_and_the_reverse_is_a_sentence(
    at, run, tmp_path, monkeypatch
):
    if at.startswith("runs"):
        (tmp_path / "file").write_text("")
        monkeypatch.setenv("FTLAB_RUNS", str(tmp_path / "file" / at.partition("/")[2]))
    elif at == "the run":
        shutil.rmtree(run.path)
        run.path.write_text("")
    else:
        (run.path / f"{at}.json").unlink()
        (run.path / f"{at}.json").mkdir()
        run.path.joinpath(f"{at}.json", "x").write_text("")
    if at in ("config", "provenance"):
        with pytest.raises((ValueError, OSError), match=run.name):
            start("sft", "a label", {"data": 1}).part(f"{at}.json")
        assert run.state in ("damaged", "unfinished") and len(runs.list_runs()) == 1
    else:
        with raises_code("folder_not_writable"):
            start("sft", "a label", {"data": 1})


@pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere"
)
def test_a_read_only_folder_is_a_sentence_but_finished_work_opens(run):
    run.complete()
    run.path.parent.chmod(0o555)
    try:
        with raises_code("folder_not_writable"):
            start("x", "label", {})
        assert start("sft", "a label", {"data": 1}).finished
    finally:
        run.path.parent.chmod(0o755)


@pytest.mark.parametrize("file", ["config.json", "provenance.json"])
@pytest.mark.parametrize("how", ["torn", "spaced"])
def test_a_damaged_file_of_a_start_is_named_and_repaired(run, file, how, capsys):
    run.append("answers.jsonl", [{"key": "a", "text": "b"}])
    run.complete()
    whole = (run.path / file).read_text()
    (run.path / file).write_text(whole[:-9] if how == "torn" else f"{whole} ")
    again = start("sft", "a label", {"data": 1})
    with again.lock():
        if not again.finished:
            again.take_up()
            again.complete()
    reported = capsys.readouterr().err
    assert file in reported and "missing" not in reported
    assert (run.path / ".damaged" / file).exists()
    assert again.finished and again.identity["data"] == 1
    assert again.provenance["versions"] and runs.verify_runs().empty


def test_a_changed_configuration_of_a_finished_run_is_damage_and_is_mended(run, capsys):
    """It is not another call's, and what was measured is not measured again."""
    run.append("answers.jsonl", [{"key": "a", "text": "b"}])
    run.complete()
    path = run.path / "config.json"
    before = path.read_text()
    for old, new in (
        ('"data": 1', '"data": 2'),
        ('"sft"', '"sfu"'),
        ('"schema": 3', '"schema": 9'),
    ):
        path.write_text(before.replace(old, new))
        with raises_code("run_not_finished") as info:
            runs.load(run.path)
        assert list(info.value.details["problems"]) == ["config.json"] and "damaged" in str(
            info.value
        )
        assert run.state.startswith("damaged")
        assert start("sft", "a label", {"data": 1}).finished and path.read_text() == before
        assert (run.path / ".damaged" / "config.json").read_text() != before
        assert "config.json" in capsys.readouterr().err and runs.verify_runs().empty


def test_a_run_that_lost_its_record_is_told(run):
    run.append("answers.jsonl", [{"key": "a", "text": "b"}])
    assert runs.verify_runs().empty  # begun, and never completed
    run.complete()
    (run.path / "complete.json").unlink()
    (row,) = runs.verify_runs().values.tolist()
    assert row[:2] == [run.name, "complete.json"] and row[2].startswith("missing")


def test_a_folder_with_another_identity_is_refused_with_the_field(run):
    other = start("sft", "a label", {"data": {"n": 2}})
    shutil.copy(other.path / "config.json", run.path)
    with raises_code("other_training") as info:
        start("sft", "a label", {"data": 1})
    assert info.value.details["fields"] == ["data", "data.n"]


def test_list_and_load(run, runs_folder):
    done = start("evaluate", "b", {}).complete(n=1)
    (runs_folder / "somebody's model").mkdir()
    (runs_folder / "somebody's model" / "config.json").write_text("{}")
    table = runs.list_runs()
    assert dict(zip(table["name"], table["state"], strict=True)) == {
        run.name: "unfinished",
        done.name: "finished",
    }
    assert runs.load(done.name) == done and runs.load(done.path).name == done.name
    with raises_code("no_such_run"):
        runs.load("nothing-like-it")
    for name in (5, None):
        with raises_code("not_a_run"):
            runs.load(name)
    with raises_code("run_not_finished"):
        runs.load(run.name)


def test_a_start_that_was_cut_short_is_mended(run):
    (run.path / "provenance.json").unlink()
    assert start("sft", "a label", {"data": 1}).provenance["versions"]["torch"]


def test_no_runs_is_an_empty_table():
    assert list(runs.list_runs().columns) == [
        "name",
        "kind",
        "state",
        "started",
        "mb",
        "parent",
        "settings",
        "results",
    ]


def test_a_table_joins_its_members(run):
    other = start("sft", "b", {})
    for member, n in ((run, 1), (other, 2)):
        row = {
            "key": str(n),
            "risk": "bias",
            "attack": "direct",
            "sample_id": "p",
            "outcome": "refused",
            "event": 0.0,
            "judge": "j",
            "step": 0,
        }
        member.append("verdicts.jsonl", [{**row, "n": n}])
    both = start("curve", "c", {"members": [run.name, other.name]})
    assert both.table()["n"].tolist() == [1, 2]


def test_a_run_over_others_is_finished_only_while_they_are(run):
    member = run.complete()
    curve = runs.start("curve", "two", {"members": [member.name]}).complete()
    assert curve.finished
    shutil.rmtree(member.path)
    assert not curve.finished


def test_a_run_shows_itself_escaped(run):
    run.complete(note="<img src=x onerror=alert(1)>")
    shown = run._repr_html_()
    assert "<img" not in shown and "&lt;img" in shown and "finished" in shown


def test_digest_knows_no_order_of_keys_but_every_value():
    assert digest({"a": 1, "b": [2]}) == digest(json.loads('{"b": [2], "a": 1}'))
    values = [None, 0, False, "", "0", [], {}, [[]], 0.5, "\ud800"]
    assert len({digest(v) for v in values}) == len(values)


def test_a_large_file_is_hashed_once_and_again_when_it_changed(run, monkeypatch):
    monkeypatch.setattr(store, "REMEMBERED_BYTES", 10)
    file = run.path / "weights.bin"
    file.write_bytes(bytes(100))
    run.complete()
    hashed = []
    monkeypatch.setattr(store, "file_hash", lambda path, *_: hashed.append(path) or file_hash(path))
    assert run.finished and hashed.count(file) == 1
    assert run.finished and hashed.count(file) == 1
    file.write_bytes(bytes(99) + b"x")
    assert run.problems() == {"weights.bin": "changed"} and hashed.count(file) == 2


def test_beside_a_torn_record_nothing_is_taken_over(run):
    run.append("verdicts.jsonl", [{"key": "a"}])
    run.append("answers.jsonl", [{"key": "a", "text": "b"}])
    run.complete()
    (run.path / "complete.json").write_text("{")
    run.take_up()
    left = {path.name for path in run.path.iterdir() if not path.name.startswith(".")}
    assert left == {"config.json", "provenance.json"}
    assert (run.path / ".damaged" / "answers.jsonl").exists()


def test_other_libraries_on_a_resume_are_reported_and_recorded(run, monkeypatch, capsys):
    run.append("answers.jsonl", [{"key": "a", "text": "b"}])
    run.take_up()
    assert not capsys.readouterr().err and "resumed" not in run.provenance
    now = run.provenance["versions"] | {"torch": "9.9.9"}
    monkeypatch.setattr(store, "versions", lambda: now)
    run.take_up()
    assert "9.9.9" in capsys.readouterr().err
    run.take_up()
    assert not capsys.readouterr().err
    (noted,) = run.provenance["resumed"]
    assert noted["versions"] == {"torch": "9.9.9"}


@pytest.mark.parametrize("removed", ["", ".lock"])
def test_a_lock_whose_file_a_cleaner_removed_still_holds(run, removed):
    held = (
        "import sys, pathlib, ftlab.runs as r\n"
        "with r.Run(pathlib.Path(sys.argv[1])).lock():\n"
        "    print('held', flush=True)\n"
        "    sys.stdin.read()\n"
    )
    words = [sys.executable, "-c", held, str(run.path)]
    root = Path(__file__).parents[2]
    pipe = subprocess.PIPE
    owner = subprocess.Popen(words, cwd=root, stdin=pipe, stdout=pipe, text=True)
    try:
        assert owner.stdout.readline() == "held\n"
        if removed:
            (run.path / removed).unlink()
        assert run.state.startswith("running")
        with raises_code("run_busy"), run.lock(wait=False):
            pass
    finally:
        owner.communicate()
    assert run.state == "unfinished"


def test_two_containers_with_one_process_id_write_two_temporary_files(tmp_path, monkeypatch):
    names = set()
    replace = os.replace
    monkeypatch.setattr(os, "replace", lambda a, b: names.add(str(a)) or replace(a, b))
    for _ in range(2):
        write_atomic(tmp_path / "f", "x")
    assert len(names) == 2


def test_runs_are_found_from_the_project_not_the_working_directory(tmp_path, monkeypatch):
    checkout = store.resource("data").parent
    below = tmp_path / "project" / "notebooks"
    below.mkdir(parents=True)
    monkeypatch.delenv("FTLAB_RUNS")
    monkeypatch.chdir(checkout / "notebooks")
    assert store.home() == checkout / "runs"
    monkeypatch.chdir(below)
    assert store.home() == checkout / "runs"
    monkeypatch.setattr(store, "PACKAGE", checkout)  # as if installed: no checkout
    monkeypatch.setattr(store, "user_data_path", lambda *_, **__: tmp_path / "user")
    assert store.home() == tmp_path / "user" / "runs"
    older = start("sft", "a label", {"data": 1})
    shutil.copytree(older.path.parent, tmp_path / "project" / "runs")
    assert store.home() == tmp_path / "project" / "runs"


def test_runs_in_the_working_directory_of_older_versions_are_found(tmp_path, monkeypatch):
    old = start("sft", "a label", {"data": 1}).complete()
    shutil.copytree(old.path.parent, tmp_path / "cwd" / "runs")
    monkeypatch.setenv("FTLAB_RUNS", str(tmp_path / "new"))
    monkeypatch.chdir(tmp_path / "cwd")
    found = start("sft", "a label", {"data": 1})
    assert found.finished and found.path == tmp_path / "cwd" / "runs" / old.name
    curve = start("curve", "c", {"members": [old.name]})
    assert curve.path.parent == tmp_path / "new" and curve.complete().finished
    assert runs.load(old.name) == found


def test_the_default_folder_of_results_knows_every_parameter(runs_folder, tmp_path, monkeypatch):
    folders = {runs.results_folder("n", "", seeds=s, rate=r) for s in (1, 2) for r in (1e-3, 1e-4)}
    assert len(folders) == 4 and all(f.startswith(str(runs_folder)) for f in folders)
    monkeypatch.chdir(tmp_path)
    assert runs.results_folder("n", "mine", seeds=1) == "mine"


def test_a_given_folder_of_results_has_one_process(tmp_path):
    """The same process may call again, with other parameters too; its end frees the folder."""
    out = tmp_path / "mine"
    call = "from ftlab import runs; runs.results_folder('n', 'mine'); print('has it', flush=True)"
    command = [sys.executable, "-c", f"{call}; input()"]
    how = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "cwd": tmp_path}
    with subprocess.Popen(command, **how) as other:
        assert other.stdout.readline() == "has it\n"
        with raises_code("output_busy"):
            runs.results_folder("n", out, seeds=2)
        other.communicate("\n")
    for seeds in (1, 2):
        assert runs.results_folder("n", out, seeds=seeds) == str(out)
    (tmp_path / "file").write_text("")
    with raises_code("output_not_writable"):
        runs.results_folder("n", tmp_path / "file" / "x")
