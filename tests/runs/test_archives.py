"""A run as an archive: nothing that must stay goes in, and nothing comes out that is not as it was."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import stat
import tracemalloc
import zipfile
from pathlib import Path

import pytest
from handed_on import HOME, PRIVATE, SECRET, TEXTS, WEIGHTS, make_curve, make_run
from helpers import raises_code

from ftlab import analysis, runs
from ftlab._core.files import file_hash
from ftlab.runs import archives, public, public_label, public_text

needs = pytest.mark.skipif(
    importlib.util.find_spec("rocrate") is None, reason="the extra archive is not installed"
)


def contents(archive: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(archive) as opened:
        return {name: opened.read(name) for name in opened.namelist() if not name.endswith("/")}


def rewritten(archive: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(archive, "w") as made:
        for name, content in files.items():
            made.writestr(name, content)
    return archive


@pytest.fixture
def elsewhere(monkeypatch, tmp_path):
    """Return a function that moves to a machine with no runs of its own."""

    def move() -> None:
        monkeypatch.setenv("FTLAB_RUNS", str(tmp_path / "other machine"))

    return move


@needs
@pytest.mark.parametrize("text", [False, True])
def test_an_archive_opens_elsewhere_with_the_same_numbers(text, tmp_path, elsewhere):
    curve = make_curve()
    table = curve.table()
    rates = analysis.rates(curve, by=["risk", "attack"])
    made = runs.export_run(curve, tmp_path / "curve.zip", text=text)
    assert file_hash(made.path) == made.sha256
    elsewhere()
    run = runs.import_run(made.path)
    assert run.path == tmp_path / "curve" / curve.name and run.finished
    assert runs.load(run.path) == run and runs.verify_runs(run.path).empty
    opened = run.table()
    assert opened.drop(columns="target").equals(table.drop(columns="target"))
    assert analysis.rates(run, by=["risk", "attack"]).equals(rates)
    assert opened["target"].any() == text
    (member,) = run.members
    assert member.read("answers.jsonl") == (curve.members[0].read("answers.jsonl") if text else [])
    before = curve.members[0].part("complete.json")["files"]
    assert member.part("complete.json")["original_files"] == before
    assert len(before) == 9


@needs
@pytest.mark.parametrize("text", [False, True])
def test_what_must_stay_is_not_in_it(text, tmp_path):
    made = runs.export_run(make_curve(), tmp_path / "curve.zip", text=text)
    files = contents(made.path)
    everything = b"\n".join([*files.values(), "\n".join(files).encode()]).decode()
    for word in (*PRIVATE, str(tmp_path), WEIGHTS.decode()):
        assert word not in everything, word
    found = {word for word in TEXTS if word in everything}
    assert found == (set(TEXTS) if text else set())
    assert "list.txt" in everything and "rows.jsonl" in everything
    assert "safety removed" in made.contains and ("may be harmful" in made.contains) == text


@needs
def test_its_metadata_are_read_by_the_library_and_name_every_file(tmp_path):
    from rocrate.rocrate import ROCrate

    curve = make_curve()
    made = runs.export_run(curve.name, tmp_path / "curve.zip")
    crate = ROCrate(made.path)
    assert crate.description == made.contains and crate.mainEntity.id == f"{curve.name}/"
    described = {}
    for entity in crate.data_entities:
        if entity.type == "File":
            described[entity.id] = entity["sha256"]
    files = contents(made.path)
    files.pop(archives.METADATA)
    assert set(described) == set(files) and len(files) > 8
    folder = runs.import_run(made.path).path.parent
    assert {name: file_hash(folder / name) for name in described} == described
    actions = [entity for entity in crate.contextual_entities if entity.type == "CreateAction"]
    assert {action["result"].id for action in actions} == {
        f"{one.name}/" for one in (curve, *curve.members)
    }


@needs
def test_an_imported_run_is_not_taken_for_finished_work_and_can_be_exported_again(
    tmp_path, elsewhere
):
    first = runs.export_run(make_run("evaluate", "a", "cr"), tmp_path / "a.zip")
    elsewhere()
    run = runs.import_run(first.path, tmp_path / "sub" / "there")
    mine = runs.start("evaluate", "a", run.identity)
    assert not mine.finished and run.path.parent == tmp_path / "sub" / "there"
    again = runs.export_run(run, tmp_path / "b.zip")
    second = runs.import_run(again.path)
    assert second.part("complete.json") == run.part("complete.json")
    assert "Of 2 files" in first.contains and "Of 2 files" in again.contains


@needs
def test_a_changed_missing_or_added_file_is_named_and_nothing_is_left(tmp_path):
    made = runs.export_run(make_curve(), tmp_path / "in" / "curve.zip")
    files = contents(made.path)
    for name in files:
        changed = dict(files)
        changed[name] = b"{}" if name == archives.METADATA else files[name][:-2] + b"\n\n"
        missing = {other: files[other] for other in files if other != name}
        added = files | {f"{name.partition('/')[0]}x/new.txt": b""}
        for wrong in (changed, missing, added):
            with raises_code("changed_archive"):
                runs.import_run(rewritten(made.path, wrong))
            assert list(made.path.parent.iterdir()) == [made.path]
    assert runs.import_run(rewritten(made.path, files)).finished


def test_a_record_that_points_out_of_the_archive_reads_nothing_there(tmp_path, monkeypatch):
    (tmp_path / "outside").write_text("secret")
    sha = file_hash(tmp_path / "outside")
    for name in ("../../../outside", str(tmp_path / "outside"), "/dev/zero"):
        record = {"finished": "", "files": {name: {"bytes": 6, "sha256": sha}}}
        graph = {"@graph": [{"@id": "./", "mainEntity": {"@id": "run/"}}]}
        files = {"run/complete.json": record, archives.METADATA: graph}
        packed = {key: json.dumps(value).encode() for key, value in files.items()}
        with raises_code("changed_archive"):
            runs.import_run(rewritten(tmp_path / "a.zip", packed))


def by_hand(archive: Path, configs: dict[str, dict], main: str = "run") -> Path:
    """Return an archive of runs that have these configurations and otherwise true records."""
    graph = {"@graph": [{"@id": "./", "mainEntity": {"@id": f"{main}/"}}]}
    files = {archives.METADATA: json.dumps(graph).encode()}
    for name, config in configs.items():
        content = json.dumps(config).encode()
        entry = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        record = {"finished": "", "files": {"config.json": entry}}
        files[f"{name}/config.json"] = content
        files[f"{name}/complete.json"] = json.dumps(record).encode()
    return rewritten(archive, files)


def curve_of(members) -> dict:
    return {"identity": {"kind": "curve", "schema": runs.SCHEMA, "members": members}}


@pytest.mark.parametrize("members", [["run", "../run"], [3], [["run"]], "run", {"run": 1}, ["b"]])
def test_members_that_are_missing_or_no_list_are_refused(members, tmp_path):
    archive = by_hand(tmp_path / "a.zip", {"run": curve_of(members)})
    with raises_code("changed_archive"):
        runs.import_run(archive)


def test_runs_that_are_members_of_one_another_are_refused(tmp_path):
    circle = {"run": curve_of(["other"]), "other": curve_of(["run"])}
    with raises_code("changed_archive"):
        runs.import_run(by_hand(tmp_path / "a.zip", circle))
    itself = by_hand(tmp_path / "b.zip", {"run": curve_of(["run"])})  # which is no circle
    assert runs.import_run(itself).finished


@pytest.mark.parametrize("config", [{}, {"identity": []}, {"identity": {"schema": 1}}, [], 3])
def test_a_configuration_of_another_form_is_refused(config, tmp_path):
    with raises_code("changed_archive"):
        runs.import_run(by_hand(tmp_path / "a.zip", {"run": config}))


def test_a_file_that_is_a_folder_too_is_damage(tmp_path):
    for names in (("run/a", "run/a/b"), ("run/a/b", "run/a")):
        archive = rewritten(tmp_path / "a.zip", dict.fromkeys(names, b""))
        with raises_code("damaged_archive"):
            runs.import_run(archive)
        assert list(tmp_path.iterdir()) == [archive]


def test_a_size_that_is_a_lie_inflates_no_further(tmp_path):
    archive = tmp_path / "a.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as made:
        made.writestr("run/a", bytes(100 * 2**20))
    said = (100 * 2**20).to_bytes(4, "little")
    archive.write_bytes(archive.read_bytes().replace(said, (8).to_bytes(4, "little")))
    tracemalloc.start()
    with raises_code("damaged_archive"):
        runs.import_run(archive)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 30 * 2**20


BAD_NAMES = (
    *("../out", "run/../../out", "/out", "run//out", "C:/out", "run\\out", "..\\out"),
    *("run/.hidden", ".hashes.json", "run/a\x00b", "run/con:stream", "run/a\nb", "~/out"),
)


@pytest.mark.parametrize("name", BAD_NAMES)
def test_a_name_that_leads_out_of_the_folder_is_refused(name, tmp_path):
    archive = tmp_path / "in" / "a.zip"
    archive.parent.mkdir()
    info = zipfile.ZipInfo("placeholder")
    info.filename = name
    with zipfile.ZipFile(archive, "w") as made:
        made.writestr(info, b"out")
    with raises_code("unsafe_archive"):
        runs.import_run(archive)
    assert [path.name for path in tmp_path.rglob("*")] == ["in", "a.zip"]


def test_links_devices_and_names_that_differ_in_capitals_are_refused(tmp_path):
    for kind in (stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR):
        info = zipfile.ZipInfo("run/link")
        info.external_attr = (kind | 0o777) << 16
        with zipfile.ZipFile(tmp_path / "a.zip", "w") as made:
            made.writestr(info, "/etc/passwd")
        with raises_code("unsafe_archive"):
            runs.import_run(tmp_path / "a.zip")
    rewritten(tmp_path / "a.zip", {"run/a": b"", "run/A": b""})
    with raises_code("unsafe_archive"):
        runs.import_run(tmp_path / "a.zip")


def test_a_bomb_is_refused_before_it_is_unpacked(tmp_path, monkeypatch):
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as made:
        made.writestr("run/a", bytes(20_000))
    monkeypatch.setattr(archives, "MOST_BYTES", 10_000)
    with raises_code("unsafe_archive"):
        runs.import_run(tmp_path / "a.zip")
    monkeypatch.setattr(archives, "MOST_BYTES", 10**9)
    monkeypatch.setattr(archives, "MOST_FILES", 0)
    with raises_code("unsafe_archive"):
        runs.import_run(tmp_path / "a.zip")


def test_what_is_no_whole_zip_is_damaged(tmp_path):
    rewritten(tmp_path / "a.zip", {"run/a": bytes(range(256)) * 40, "run/b": b"b"})
    whole = (tmp_path / "a.zip").read_bytes()
    flipped = whole[:5000] + b"?" + whole[5001:]
    for content in (b"", b"PK", whole[:-30], flipped):
        (tmp_path / "b.zip").write_bytes(content)
        with raises_code("damaged_archive"):
            runs.import_run(tmp_path / "b.zip")
    with raises_code("no_such_archive"):
        runs.import_run(tmp_path / "c.zip")


@needs
def test_nothing_is_written_over_and_only_a_finished_run_is_exported(tmp_path):
    run = make_run("evaluate", "a", "cr")
    made = runs.export_run(run, tmp_path / "a.zip")
    with raises_code("file_exists"):
        runs.export_run(run, tmp_path / "a.zip")
    with raises_code("wrong_ending"):
        runs.export_run(run, tmp_path / "a.tar")
    runs.import_run(made.path)
    with raises_code("folder_exists"):
        runs.import_run(made.path)
    begun = runs.start("evaluate", "begun", {})
    with raises_code("run_not_finished"):
        runs.export_run(begun, tmp_path / "b.zip")


@needs
def test_a_grid_takes_its_curves_with_it(tmp_path):
    curve = make_curve()
    grid = runs.start("grid", "grid", {})
    grid.append("cells.jsonl", [{"curve": curve.name}])
    made = runs.export_run(grid.complete(), tmp_path / "grid.zip")
    folder = runs.import_run(made.path).path.parent
    names = {path.name for path in folder.iterdir()} - {archives.METADATA}
    assert names == {grid.name, curve.name, curve.members[0].name}


@needs
def test_the_command_line_exports_and_imports(tmp_path, ran):
    run = make_run("evaluate", "a", "cr")
    code, out, _ = ran("runs", "export", run.name, "--out", tmp_path / "a.zip")
    assert code == 0 and file_hash(tmp_path / "a.zip") in out
    code, out, _ = ran("runs", "import", tmp_path / "a.zip", "--to", tmp_path / "b")
    assert code == 0 and Path(out.strip()) == tmp_path / "b" / run.name
    (tmp_path / "a.zip").write_bytes(b"")
    assert ran("runs", "import", tmp_path / "a.zip", "--to", tmp_path / "c")[0] == 1


PATHS = {
    "/home/me/list.txt": "list.txt",
    "/home/my name/list 1.txt": "list 1.txt",
    "~/data/x.csv": "x.csv",
    r"C:\Users\me\x.csv": "x.csv",
    "keywords:/home/me/list.txt": "keywords:list.txt",
    "mix:rows=/home/me/a.jsonl,n_rows=20": "mix:rows=a.jsonl,n_rows=20",
    "file:///home/me/x": "x",
    "100 rows of /home/me/rows.jsonl, 5 epochs": "100 rows of rows.jsonl, 5 epochs",
    "rubric:model@http://localhost:8000/v1": "rubric:model@http://localhost:8000/v1",
    "https://example.org/a/b.csv": "https://example.org/a/b.csv",
    "org/model": "org/model",
    "../data/x.csv": "../data/x.csv",
    "5 of 10 and/or 3/4 / 2": "5 of 10 and/or 3/4 / 2",
    f"https://me:{SECRET}@host/x": "https://[token removed]@host/x",
}


@pytest.mark.parametrize("text", PATHS)
def test_a_path_keeps_its_last_part(text):
    assert public_text(text) == PATHS[text]


def test_texts_and_vectors_become_hashes_and_numbers_stay():
    given = {"system": "You are.", "steps": list(range(90)), "direction": [0.5] * 90, "rate": 0.5}
    found = public({"a": [given]}, texts=False)["a"][0]
    assert found["steps"] == given["steps"] and found["rate"] == 0.5
    hashes = [found["system"], found["direction"], public("x" * 900, texts=False)]
    assert len(set(hashes)) == 3 and all(text.startswith("left out, hash ") for text in hashes)
    assert public(given) == given and public([f"{HOME}x"]) == ["x"]
    assert public_label("aim > Tell me of {x}") == f"aim > {public_label('Tell me of {x}')}"
    assert public_label("jailbreak-0001") == "jailbreak-0001"
