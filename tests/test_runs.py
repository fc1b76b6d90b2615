from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ftlab import runs
from ftlab.config import Evaluation, Training
from ftlab.runs import Run, start

OTHER = {  # another value of every field
    "method": "dpo", "lora": True, "lora_rank": 8, "epochs": 1.0, "steps": 5, "learning_rate": 1e-3, "warmup_steps": 1,
    "schedule": "cosine", "batch_size": 32, "accumulation": 2, "beta": 0.2, "max_length": 64, "on_too_long": "cut", "seed": 1,
    "at_steps": (0, 1), "stop_when_broken": True, "risks": ("bias",), "attacks": ("direct",), "n_prompts": 5,
    "split": "valid", "judges": ("keywords",), "samples": 2, "prompt_seed": 1, "toxicity_model": "x", "decoding": {"temperature": 1}, "max_new_tokens": 5, "prompts": "ab", "system": "Be brief.",
    "dora": True, "qlora": True, "num_generations": 4, "max_completion_length": 8, "valid": 0.1, "eval_every": 2, "patience": 2,
    "stop_above": {"jailbreak": 0.1},
}  # fmt: skip


@pytest.fixture
def run() -> Run:
    return start("sft", "a label", {"data": 1})


@pytest.mark.parametrize("config", [Training, Evaluation])
def test_every_field_is_part_of_the_identity(config):
    assert set(config.model_fields) <= set(OTHER)
    specs = [config()] + [config.make(**{name: OTHER[name]}) for name in config.model_fields]
    names = [start("x", "label", {"config": s.model_dump(mode="json")}).name for s in specs]
    assert len(set(names)) == len(specs)
    assert names == [start("x", "label", {"config": s.model_dump(mode="json")}).name for s in specs]


def test_the_same_identity_is_the_same_folder_and_is_not_written_again(run):
    before = {p.name: p.read_bytes() for p in run.path.iterdir()}
    again = start("sft", "a label", {"data": 1})
    assert again == run and {p.name: p.read_bytes() for p in run.path.iterdir()} == before
    assert {start(k, "a label", {"data": d}).path for k, d in (("dpo", 1), ("sft", 2))}.isdisjoint({run.path})


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
    "file", ["config.json", "provenance.json", "answers.jsonl", "model/model.safetensors", "stats.json"]
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
    for age, again in ((0, True), (-(10**10), True), (10**10, False)):  # ns; before zero: a server's clock is ahead
        monkeypatch.setattr(runs, "_stamp", lambda path, age=age: (1, 3, now - age, now - age))
        file.write_bytes(b"one")
        one = runs.file_hash(file)
        file.write_bytes(b"two")
        assert (runs.file_hash(file) != one) == again


@pytest.mark.parametrize(
    "record", ["", "{", "[]", "null", "{}", '{"files": []}', '{"files": {"config.json": 3}}', '{"files": {"x": {}}}']
)
def test_a_foreign_or_torn_completion_record_is_no_completion(run, record):
    run.complete()
    (run.path / "complete.json").write_text(record)
    assert not run.finished


def test_a_torn_last_line_is_reported_left_out_and_swallows_nothing(run, capsys):
    run.append("answers.jsonl", [{"n": 1}, {"n": 2}])
    path = run.path / "answers.jsonl"
    whole = path.read_bytes()
    for cut in range(len(whole) - 8, len(whole) - 1):  # anywhere within the second record
        path.write_bytes(whole[:cut])
        assert run.read("answers.jsonl") == [{"n": 1}]
        assert f"{path}:2" in capsys.readouterr().err
        run.append("answers.jsonl", [{"n": 3}])
        assert run.read("answers.jsonl") == [{"n": 1}, {"n": 3}]
    path.write_bytes(whole[:-1])  # only the line break is lost: nothing is
    run.append("answers.jsonl", [{"n": 3}])
    assert [r["n"] for r in run.read("answers.jsonl")] == [1, 2, 3]


@pytest.mark.parametrize("foreign", [b"null", b"7", b'["a"]', b"\x00\x00\x00\x00", b"\xff\xfe", b"<html>"])
def test_a_foreign_line_is_left_out(run, foreign):
    (run.path / "t.jsonl").write_bytes(b'{"n": 1}\n' + foreign + b'\n{"n": 2}\n')
    assert run.read("t.jsonl") == [{"n": 1}, {"n": 2}]


@pytest.mark.parametrize("text", ["\ud800", "a\u2028b\x85c\x0bd\re\n", "\x00\x1b[2J", "😀" * 9000, '"\\'])
def test_any_text_survives(run, text):
    run.append("answers.jsonl", [{"answer": text}, {"answer": ""}])
    assert run.read("answers.jsonl") == [{"answer": text}, {"answer": ""}]
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

    runs.write_atomic(tmp_path / "f.json", "old")
    monkeypatch.setattr(runs.os, broken, fail)
    with pytest.raises(OSError, match="disk full"):
        runs.write_atomic(tmp_path / "f.json", "new")
    assert [p.read_text() for p in tmp_path.iterdir() if p.is_file()] == ["old"]


def test_a_slow_second_start_changes_nothing_of_a_finished_run(run, monkeypatch):
    (run.path / "provenance.json").unlink()

    def slow():
        (run.path / "provenance.json").write_text("{}")  # the first caller was faster, and finished
        run.complete()
        return {"second": True}

    monkeypatch.setattr(runs, "_provenance", slow)
    identity = {k: v for k, v in run.config["identity"].items() if k not in ("kind", "schema")}
    again = start(run.config["identity"]["kind"], run.config["label"], identity)
    assert again == run and run.finished and run.provenance == {}


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
            [sys.executable, "-c", code, who], cwd=Path(runs.__file__).parent.parent, stderr=subprocess.PIPE
        )
        for who in "ab"
    ]
    errors = [p.communicate(timeout=120)[1].decode() for p in both]
    assert [p.returncode for p in both] == [0, 0], errors
    log = run.read("log.jsonl")
    assert [r["n"] for r in log] == list(range(80))  # nobody read while the other one wrote
    assert [[r["i"] for r in log if r["who"] == who] for who in "ab"] == [list(range(40))] * 2


def test_a_folder_that_cannot_be_written_is_a_sentence(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("FTLAB_RUNS", str(tmp_path / "file" / "runs"))
    with pytest.raises(PermissionError, match="set FTLAB_RUNS"):
        start("x", "label", {})


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder_is_a_sentence_but_finished_work_opens(run):
    run.complete()
    run.path.parent.chmod(0o555)
    try:
        with pytest.raises(PermissionError, match="set FTLAB_RUNS"):
            start("x", "label", {})
        assert start("sft", "a label", {"data": 1}).finished
    finally:
        run.path.parent.chmod(0o755)


def test_list_and_load(run, runs_folder):
    done = start("evaluate", "b", {}).complete(n=1)
    (runs_folder / "somebody's model").mkdir()
    (runs_folder / "somebody's model" / "config.json").write_text("{}")
    table = runs.list_runs()
    assert dict(zip(table["name"], table["finished"], strict=True)) == {run.name: False, done.name: True}
    assert runs.load(done.name) == done and runs.load(done.path).name == done.name
    with pytest.raises(FileNotFoundError, match=run.name):
        runs.load("nothing-like-it")
    with pytest.raises(ValueError, match="not finished"):
        runs.load(run.name)


def test_a_start_that_was_cut_short_is_mended(run):
    (run.path / "provenance.json").unlink()
    assert start("sft", "a label", {"data": 1}).provenance["versions"]["torch"]


def test_no_runs_is_an_empty_table():
    assert list(runs.list_runs().columns) == ["name", "kind", "finished", "started"]


def test_a_table_joins_its_members(run):
    other = start("sft", "b", {})
    for member, n in ((run, 1), (other, 2)):
        member.append("verdicts.jsonl", [{"n": n}])
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
    assert runs.digest({"a": 1, "b": [2]}) == runs.digest(json.loads('{"b": [2], "a": 1}'))
    values = [None, 0, False, "", "0", [], {}, [[]], 0.5, "\ud800"]
    assert len({runs.digest(v) for v in values}) == len(values)
