"""`ftlab runs list|show|verify|clean`, and runs of other layouts: what is there is told, what was finished is never touched."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import raises_code
from small_models import contents, sums

import ftlab
from ftlab import runs
from ftlab._core import files
from ftlab._core.errors import UsageError
from ftlab.runs import SCHEMA, store

LAYOUTS = (
    Path(__file__).parents[1] / "fixtures"
)  # layout_1: an evaluation and a curve with its member, made by ftlab 0.1.0
DAMAGE = {"missing": Path.unlink, "changed": lambda p: p.write_bytes(p.read_bytes()[:-2] + b"\n\n")}


@pytest.fixture
def shelf(runs_folder) -> dict[str, runs.Run]:
    """A finished run, one that is not, a curve of a member, folders that are no runs."""
    made = {
        name: runs.start("evaluate", name, {"n": n})
        for n, name in enumerate(("done", "begun", "member"))
    }
    for name, run in made.items():
        run.append("answers.jsonl", [{"key": name, "text": "yes"}])
        (run.path / "model").mkdir()
        (run.path / "model" / "model.safetensors").write_bytes(bytes(100))
    made["done"].complete(n=1), made["member"].complete()
    made["curve"] = runs.start("curve", "curve", {"members": [made["member"].name]}).complete()
    (runs_folder / "somebody's model").mkdir()
    (runs_folder / "somebody's model" / "config.json").write_text("{}")
    (runs_folder / "reproduce").mkdir()
    (runs_folder / "reproduce" / "report.html").write_text("<p>")
    (runs_folder / "evaluate-renamed").mkdir()
    shutil.copy(made["begun"].path / "config.json", runs_folder / "evaluate-renamed")
    return made


def states() -> dict[str, str]:
    table = runs.list_runs()
    return dict(zip(table["name"], table["state"], strict=True))


@pytest.mark.slow
@pytest.mark.parametrize(
    "text",
    [b"", b"{", b"[]", b"null", b'{"identity": 3}', b'{"identity": {}}', b"\xff\x00", b"[" * 99999],
)
def test_a_damaged_run_never_breaks_the_listing_of_the_others(text, shelf, ran):  # noqa: F811
    for file in ("config.json", "provenance.json", "complete.json", "stats.json"):
        copied = runs.Run(
            shutil.copytree(shelf["done"].path, shelf["done"].path.with_name(f"evaluate-{file}"))
        )
        (copied.path / file).write_bytes(text)
        assert copied.state == "damaged"
    (shelf["begun"].path / "config.json").write_bytes(text)
    found = states()
    assert [found[shelf[n].name] for n in ("done", "member", "curve")] == ["finished"] * 3
    assert list(found.values()).count("damaged") == 5
    code, out, err = ran("runs")
    assert (
        (code, err) == (0, "")
        and ran("runs", "list")[1] == out
        and all(name in out for name in found)
    )
    assert runs.clean_runs(yes=True).empty and set(states()) == set(found)


def test_show_tells_everything(shelf, ran):  # noqa: F811
    code, out, _ = ran("runs", "show", shelf["done"].name)
    said = json.loads(out)
    assert (
        code == 0
        and said["state"] == "finished"
        and said["config"]["identity"]["kind"] == "evaluate"
    )
    assert (
        said["stats"] == {"n": 1}
        and said["provenance"]["versions"]["torch"]
        and "answers.jsonl" in said["complete"]["files"]
    )
    assert json.loads(ran("runs", "show", shelf["begun"].path)[1])["state"] == "unfinished"
    code, _, err = ran("runs", "show", "nothing")
    assert code == 2 and shelf["done"].name in err
    hostile = runs.start("x", "y", {"system": "\x1b[2J\x9b<script>\ud800"})
    assert not {"\x1b", "\x9b", "\ud800"} & set(ran("runs", "show", hostile.name)[1])


@pytest.mark.slow
@pytest.mark.parametrize("how", DAMAGE)
@pytest.mark.parametrize(
    "file",
    ["answers.jsonl", "model/model.safetensors", "stats.json", "provenance.json", "config.json"],
)
def test_verify_names_each_file_that_is_not_as_it_was(file, how, shelf, monkeypatch, ran):  # noqa: F811
    assert ran("runs", "verify")[0] == 0
    path, large = shelf["done"].path / file, file.startswith("model")
    monkeypatch.setattr(store, "REMEMBERED_BYTES", 10 if large else store.REMEMBERED_BYTES)
    times = path.stat()
    DAMAGE[how](path)
    if path.exists():
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    (shelf["done"].path / "model" / "new.txt").write_text("")
    assert not shelf["done"].finished
    table = runs.verify_runs()
    assert sorted(map(tuple, table.values)) == sorted(
        [(shelf["done"].name, file, how), (shelf["done"].name, "model/new.txt", "extra")]
    )
    code, out, _ = ran("runs", "verify", shelf["done"].name)
    assert code == 1 and file in out and how in out and "model/new.txt" in out
    assert ran("runs", "verify", shelf["member"].name, shelf["curve"].name)[0] == 0


def test_verify_reads_the_disk_and_remembers_nothing(shelf, monkeypatch):
    monkeypatch.setattr(
        files, "stamp", lambda path: ()
    )  # as a disk that rots: no time, no size says so
    assert runs.verify_runs().empty and shelf["done"].finished
    (shelf["done"].path / "model" / "model.safetensors").write_bytes(b"1" * 100)
    assert runs.verify_runs()["file"].tolist() == ["model/model.safetensors"]


def test_verify_tells_a_member_that_is_gone(shelf):
    shutil.rmtree(shelf["member"].path)
    assert runs.verify_runs().values.tolist() == [
        [shelf["curve"].name, shelf["member"].name, "member, not finished"]
    ]


def test_clean_removes_what_nobody_will_finish_and_nothing_else(shelf, runs_folder, ran):  # noqa: F811
    run = shelf["done"].path
    (run / ".stats.json.99.tmp").write_text("x" * 10)
    (run / "checkpoints" / "torn-checkpoint-7").mkdir(parents=True)
    (run / "checkpoints" / "torn-checkpoint-7" / "optimizer.pt").write_bytes(bytes(1000))
    (shelf["member"].path / "complete.json").unlink()  # damaged or not: a finished run lists it
    link = f"linked-{shelf['begun'].name[-10:]}"
    (runs_folder / link).symlink_to(shelf["begun"].path)
    begun = shelf["begun"].name
    assert runs.clean_runs()["what"].tolist() == [".stats.json.99.tmp", "checkpoints"]
    assert runs.resumable_runs().values.tolist() == [[begun, "evaluate", 0, 1]]
    empty = runs.start("evaluate", "empty", {"n": 9}).path
    assert "unfinished" in runs.clean_runs()["what"].tolist()
    shutil.rmtree(empty)
    before = contents(runs_folder)
    code, out, _ = ran("runs", "clean")
    assert "--abandoned" in out and begun in out
    code, out, _ = ran("runs", "clean", "--abandoned")
    assert code == 0 and "--yes" in out and contents(runs_folder) == before
    assert sorted(runs.clean_runs(abandoned=True)["what"]) == [
        ".stats.json.99.tmp",
        "checkpoints",
        "unfinished",
    ]
    code, out, _ = ran("runs", "clean", "--yes", "--abandoned")
    gone = before.keys() - contents(runs_folder).keys()
    assert gone == {
        n
        for n in before
        if n.startswith((f"{begun}/", f"{link}/")) or ".tmp" in n or "/checkpoints/" in n
    }
    assert (
        code == 0
        and begun in out
        and "removed" in out
        and not shelf["begun"].path.exists()
        and shelf["done"].finished
    )
    assert runs.clean_runs(yes=True).empty


def test_clean_leaves_a_finished_run_that_recorded_its_checkpoints(shelf):
    old = shelf["begun"]
    (old.path / "checkpoints").mkdir()
    (old.path / "checkpoints" / "torn-1").write_text("x")
    old.complete()
    (old.path / "checkpoints").mkdir(exist_ok=True)
    (old.path / "checkpoints" / "torn-1").write_text("x")
    record = json.loads((old.path / "complete.json").read_bytes())
    record["files"]["checkpoints/torn-1"] = {
        "bytes": 1,
        "sha256": files.file_hash(old.path / "checkpoints" / "torn-1"),
    }
    (old.path / "complete.json").write_text(json.dumps(record))
    assert old.finished and runs.clean_runs(yes=True).empty and old.finished


HELD = """
import sys, pathlib, ftlab.runs as r
with r.Run(pathlib.Path(sys.argv[1])).lock():
    print('held', flush=True)
    sys.stdin.read()
"""


def test_clean_leaves_a_run_that_a_process_has_in_hand_until_that_is_dead(shelf):
    called = [sys.executable, "-c", HELD, str(shelf["begun"].path)]
    root = Path(__file__).parents[2]
    owner = subprocess.Popen(
        called, cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert owner.stdout.readline() == "held\n"
        assert (
            runs.clean_runs(abandoned=True).empty
            and runs.resumable_runs().empty
            and runs.clean_runs(yes=True, abandoned=True).empty
            and shelf["begun"].path.exists()
        )
    finally:
        owner.kill()
        owner.communicate()
    assert (
        runs.clean_runs(yes=True, abandoned=True)["name"].tolist() == [shelf["begun"].name]
        and not shelf["begun"].path.exists()
    )


@pytest.fixture(params=["layout_1", "layout_2"])
def old(request, runs_folder) -> dict[str, runs.Run]:
    """Runs that versions 0.1.0 (layout 1) and 0.3.0 (layout 2) made, by kind."""
    shutil.copytree(LAYOUTS / request.param, runs_folder)
    return {p.name.partition("-")[0]: runs.Run(p) for p in sorted(runs_folder.iterdir())}


@pytest.mark.slow
def test_runs_of_older_layouts_open_and_are_compared_and_are_models(old):
    layout = old["sft"].identity["schema"]
    assert set(states().values()) == {f"finished, layout {layout}"} and runs.verify_runs().empty
    for run in old.values():
        assert (
            runs.load(run.name) == run and run._repr_html_() and runs.show_run(run.name)["config"]
        )
    table = ftlab.compare(ftlab.load(old["curve"].name))
    assert set(table["risk"]) == {"jailbreak"} and table["n_prompts"].tolist() == [3]
    assert ftlab.rates(old["evaluate"])["n_prompts"].tolist()[0] == 3 and len(old["sft"].log()) == 1
    tuned = ftlab.sft(old["sft"], sums(4), steps=1, batch_size=4, learning_rate=1e-3)
    assert tuned.lineage[-1]["name"] == old["sft"].name
    with raises_code("older_layout"):
        ftlab.evals.rescore(old["evaluate"], "keywords")


def test_the_rates_of_a_run_of_version_0_3_are_those_that_it_printed(runs_folder):
    shutil.copytree(LAYOUTS / "layout_2", runs_folder)
    (run,) = [r for r in runs_folder.iterdir() if r.name.startswith("evaluate-small-6b7")]
    table = runs.Run(run).table()
    judged = table.groupby("judge", sort=False)["event"].mean().to_dict()
    assert judged == pytest.approx({"keywords": 1.0, "refusal": 5 / 6})
    assert table.groupby("judge").size().tolist() == [6, 6] and set(table["attempts"]) == {1, 2}


def test_the_table_of_runs_has_settings_parents_and_results(shelf, runs_folder, ran):  # noqa: F811
    training = {"seed": 0, "learning_rate": 1e-3, "valid": None, "stop_above": {"bias": 0.1}}
    notes = {"model": {"folder": "=parent"}, "data": {"name": "chats"}}
    run = runs.start("sft", "x", {"training": training}, **notes)
    rows = []
    for step, event in ((0, 0.0), (5, 1.0), (5, 0.0)):
        row = {"key": f"{len(rows)}", "risk": "bias", "attack": "direct", "sample_id": "p"}
        rows.append(row | {"outcome": "refused", "event": event, "judge": "j", "step": step})
    run.append("verdicts.jsonl", rows)
    run.complete(steps=5, parent="=parent")
    listed = runs.list_runs().set_index("name").loc[run.name]
    assert listed["parent"] == "=parent" and "seed=0" in listed["settings"]
    assert listed["results"] == "steps=5, parent==parent"
    row = runs.runs_table().set_index("name").loc[run.name]
    assert (row["seed"], row["data"], row["stop_above.bias"]) == (0, "chats", 0.1)
    assert (row["result.steps"], row["result.rate.bias"]) == (5, 0.5)
    code, out, _ = ran("runs", "table", "--out", runs_folder / "t.csv")
    text = (runs_folder / "t.csv").read_text()
    assert code == 0 and "'=parent" in text and text.startswith("name,kind,state,started")
    assert ran("runs", "table")[1] == text


def test_the_rate_of_a_run_is_that_of_all_seeds_and_of_one_dose(runs_folder):
    run = runs.start("sft", "x", {"training": {"seed": 0}})
    rows = []
    # The last step of one seed alone, and a smaller dose, do not enter.
    for dose, seed, step, event in (
        (10, 0, 5, 0.0),
        (10, 1, 5, 0.0),
        (100, 0, 5, 1.0),
        (100, 1, 5, 0.0),
        (100, 1, 9, 0.0),
    ):
        row = {"key": f"{len(rows)}", "risk": "bias", "attack": "direct", "sample_id": "p"}
        row |= {"outcome": "refused", "event": event, "judge": "j"}
        rows.append(row | {"step": step, "seed": seed, "examples": dose})
    run.append("verdicts.jsonl", rows)
    run.complete(parent="=parent")
    row = runs.runs_table().set_index("name").loc[run.name]
    assert row["result.rate.bias.100"] == 0.5 and "result.rate.bias" not in row


def test_a_newer_layout_is_refused_in_a_sentence(old, ran):  # noqa: F811
    config = old["sft"].config
    config["identity"]["schema"] = SCHEMA + 1
    path = old["sft"].path / "config.json"
    path.write_text(json.dumps(config))
    record = old["sft"].part("complete.json")
    sums_of = {"bytes": path.stat().st_size, "sha256": files.file_hash(path)}
    record["files"]["config.json"] = sums_of
    (old["sft"].path / "complete.json").write_text(json.dumps(record))
    for call in (runs.load, ftlab.model):
        with raises_code("newer_layout"):
            call(old["sft"].path)
    assert f"layout {SCHEMA + 1}" in states()[old["sft"].name] and ran("runs")[0] == 0
    assert runs.clean_runs(yes=True).empty


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{}",
        "[]",
        '{"model_type": "llama"}',
        '{"identity": {"kind": "sft"}}',
        '{"identity": {"kind": "x", "schema": "2"}}',
    ],
)
def test_a_configuration_that_is_no_runs_is_a_sentence(text, old):
    (old["sft"].path / "config.json").write_text(text)
    with pytest.raises(UsageError) as info:
        runs.load(old["sft"].name)
    assert info.value.code in ("not_a_run", "damaged_run_file")


def test_a_missing_provenance_is_named(old):
    (old["evaluate"].path / "provenance.json").unlink()
    with raises_code("run_not_finished"):
        runs.load(old["evaluate"].name)
