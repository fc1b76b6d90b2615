"""A finished run as one archive, a zip with RO-Crate metadata, that opens elsewhere.

An archive is made to be handed on. So weights never go in: ftlab publishes no model, and a
fine-tuning may have removed a model's safety whether or not a marker says so. Prompts and answers
go in only where they are asked for. Of what is left out the hash goes in.

Source: RO-Crate (w3id.org/ro/crate), profile Process Run Crate (w3id.org/ro/wfrun/process).
"""

from __future__ import annotations

import json
import re
import shutil
import stat
import zipfile
import zlib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from ftlab._core.errors import DataError, FtlabError, NotFoundError, UsageError
from ftlab._core.files import file_hash, json_lines, scratch, write_atomic
from ftlab._core.text import safe, throughout, without_secrets
from ftlab.runs.redaction import (
    SAFETY_REMOVED,
    public,
    public_label,
    public_text,
    safety_note,
)
from ftlab.runs.store import RECORD, Run, load, sums

MARKER = f"model/{SAFETY_REMOVED}"
NUMBERS = (  # files without a word for a model or from it
    "config.json",
    "provenance.json",
    "stats.json",
    "about.json",
    "results.json",
    "verdicts.jsonl",
    "generation.jsonl",
    "train.jsonl",
    "valid.jsonl",
    "cells.jsonl",
    "versions.jsonl",
    "trials.jsonl",
    "survival.jsonl",
    "claims.jsonl",
)
LABELS = {"sample_id", "wording"}  # that a prompt set may give as sentences
METADATA = "ro-crate-metadata.json"
PROFILE = "https://w3id.org/ro/wfrun/process/0.5"
TERMS = "https://w3id.org/ro/terms/workflow-run/context"  # defines sha256
LICENCE = "None is stated. Whoever made the run decides."
WITHOUT = "Prompts and answers are left out"
WITH = "Prompts and answers are in it as they were: text of models, which may be harmful"
# Of every part of a name; so none is hidden, absolute, of Windows, or leads out of the folder.
NAME = re.compile(r"[\w+][\w+.-]*(/[\w+][\w+.-]*)*")
MOST_BYTES = 2 * 2**30  # of an archive, unpacked
MOST_FILES = 50_000
COMPRESSIONS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
DAMAGES = (zipfile.BadZipFile, zlib.error, EOFError, ValueError, RuntimeError)
DAMAGES += (FileExistsError, IsADirectoryError, NotADirectoryError)  # file and folder at once
MALFORMED = (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError)
FORMATS = {".json": "application/json", ".jsonl": "application/jsonl"}
LISTED = 5  # problems in an error


@dataclass(frozen=True)
class Archive:
    """An archive of a run.

    Args:
        path: The file.
        sha256: Of the file. Hand it on by another way, so that others can tell that it is this one.
        contains: What is in it and what is left out, in words.
    """

    path: Path
    sha256: str
    contains: str

    def __str__(self) -> str:
        return f"{self.path}\n{self.contains}\nSHA-256 {self.sha256}"


def export_run(run: Any, out: str | Path | None = None, *, text: bool = False) -> Archive:
    """Pack a finished run, with its members, into one archive that opens elsewhere.

    It holds settings, versions, verdicts, training logs, and the hash of every file. Secrets and
    the folders of this machine are taken out. Weights are never in it.

    Args:
        run: A run, its name or folder.
        out: The archive, which ends in .zip; by default NAME.zip in the working folder.
        text: Also pack prompts and answers, which may be harmful, and system prompts.

    Raises:
        UsageError: `rocrate_missing`, `wrong_ending`, `file_exists`, `run_not_finished`,
            `older_layout`.
        NotFoundError: `no_such_run`.
    """
    run = load(getattr(run, "path", run))
    target = Path(out or f"{run.name}.zip").absolute()
    if target.suffix != ".zip":
        raise UsageError("wrong_ending", f"{target.name} does not end in .zip. Name one that does.")
    if target.exists():
        raise UsageError("file_exists", f"{target} is there already. Name another, or remove it.")
    make_crate = _library()
    members = _with_members(run)
    with scratch(target) as folder:
        left_out = 0
        for member in members:
            left_out += _pack(member, folder / "files" / member.name, text)
        contains = _sentence(folder / "files", len(members), left_out, text)
        crate = _described(make_crate(), run, members, folder / "files", contains)
        crate.write_zip(folder / "made.zip")
        (folder / "made.zip").replace(target)
    return Archive(target, file_hash(target), contains)


def import_run(archive: str | Path, to: str | Path | None = None) -> Run:
    """Unpack an archive of `export_run`, every file of which must have its hash.

    The hashes show damage, not who made the archive. So its runs are not put among your own,
    where a cell would take them for finished work: give the returned run, or its folder, to
    `ftlab.load`, `ftlab.rates` or `ftlab.compare`.

    Args:
        archive: The file.
        to: A new folder; by default beside the archive, with its name.

    Returns:
        The run that was exported; its members lie beside it.

    Raises:
        NotFoundError: `no_such_archive`.
        UsageError: `folder_exists`.
        DataError: `unsafe_archive`, `damaged_archive`, `changed_archive`.
    """
    source = Path(archive).absolute()
    if not source.is_file():
        raise NotFoundError("no_such_archive", f"{source} is no file. Give an archive of a run.")
    target = Path(to or source.with_suffix("")).absolute()
    if target.exists():
        raise UsageError("folder_exists", f"{target} is there already. Name another folder.")
    with scratch(target) as folder:
        made = folder / "files"
        names = _unpack(source, made)
        main = _verified(source, made, names)
        made.replace(target)
    return Run(target / main)


def _library() -> Any:
    try:
        from rocrate.rocrate import ROCrate
    except ImportError:
        raise UsageError(
            "rocrate_missing",
            "An archive needs the package rocrate. Install it: pip install 'ftlab[archive]'.",
        ) from None
    return ROCrate


def _with_members(run: Run) -> list[Run]:
    """Return a run, and all finished runs whose rows it is made of."""
    found = {}
    waiting = [run]
    while waiting:
        one = waiting.pop()
        if one.name in found:
            continue
        found[one.name] = load(one.path)
        waiting += one.members
        for cell in one.read("cells.jsonl"):  # of a grid
            waiting.append(Run(one.path.parent / cell["curve"]))
    return list(found.values())


def _pack(run: Run, folder: Path, text: bool) -> int:
    """Write what leaves of a run into a folder; return how many of its files do not."""
    if run.state != "finished":
        raise UsageError("older_layout", f"{run.name} is {run.state}. Call its cell again.")
    record = run.part(RECORD)
    packed = 0
    for name in record["files"]:
        content = _content(run, name, text)
        if content is not None:
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(path, content)
            packed += 1
    original = record.get("original_files", record["files"])  # of a run that was imported
    record |= {"files": sums(folder), "original_files": original}
    write_atomic(folder / RECORD, json.dumps(record, indent=1))
    return len(original) - packed


def _content(run: Run, name: str, text: bool) -> str | None:
    """Return what leaves of a file, None if it stays."""
    if name == MARKER:
        return f"{safety_note(run)}\n"
    if name not in NUMBERS and not (text and name.endswith(".jsonl")):
        return None
    if name.endswith(".json"):
        found = run.part(name)
        kept = text or name == "provenance.json"  # which holds no texts
        return json.dumps(public(found, texts=kept), indent=1, ensure_ascii=False)
    rows = run.read(name)
    if name not in NUMBERS:
        return json_lines(throughout(rows, without_secrets))
    cleaned = lru_cache(4096)(public_text)  # most texts stand in many rows
    for row in rows:
        if not text:
            row.pop("target", None)  # may be a text of the prompt set
            for label in LABELS & row.keys():
                row[label] = public_label(row[label])
        throughout(row, cleaned)
    return json_lines(rows)


def _sentence(folder: Path, runs: int, left_out: int, text: bool) -> str:
    """Say what an archive holds."""
    runs_in_words = "1 run" if runs == 1 else f"{runs} runs"
    told = WITH if text else WITHOUT
    sentence = f"{runs_in_words} of ftlab: settings, verdicts, logs. {told}. Weights are left out."
    if left_out:
        sentence += f" Of {left_out} files only the hash is in it."
    marked = sum(1 for _ in folder.glob(f"*/{MARKER}"))
    if marked:
        sentence += f" {marked} of the models had their safety removed."
    return sentence


def _described(
    crate: Any,
    run: Run,
    members: list[Run],
    folder: Path,
    contains: str,
) -> Any:
    """Add the files of runs and what made them to a crate, and return it."""
    from rocrate.model.contextentity import ContextEntity

    crate.name = run.name
    crate.description = contains
    crate.license = LICENCE
    crate.metadata.extra_contexts.append(TERMS)
    about = {"@type": "CreativeWork", "name": "Process Run Crate", "version": "0.5"}
    profile = ContextEntity(crate, PROFILE, about)
    crate.root_dataset["conformsTo"] = crate.add(profile)
    for member in members:
        made = _dataset(crate, member, folder / member.name)
        if member == run:
            crate.mainEntity = made
        action = ContextEntity(crate, f"#made-{member.name}", _action(member))
        action["instrument"] = _tool(crate, member)
        action["result"] = made
        crate.root_dataset.append_to("mentions", crate.add(action))
    return crate


def _dataset(crate: Any, run: Run, folder: Path) -> Any:
    """Add the files of a run to a crate, and return the data set that they are."""
    files = []
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            name = path.relative_to(folder.parent).as_posix()
            size = path.stat().st_size
            about = {
                "contentSize": str(size),
                "sha256": file_hash(path),
                "encodingFormat": FORMATS.get(path.suffix, "text/plain"),
            }
            file = crate.add_file(path, name, properties=about)
            files.append(file)
    about = {"name": run.name, "description": f"A run of the kind {run.kind}."}
    made = crate.add_dataset(dest_path=f"{run.name}/", properties=about)
    made["hasPart"] = files
    return made


def _action(run: Run) -> dict[str, str]:
    """Return what the metadata say of how a run was made."""
    return {
        "@type": "CreateAction",
        "name": f"{run.kind} by ftlab",
        "startTime": run.provenance.get("started", ""),
        "endTime": run.part(RECORD)["finished"],
    }


def _tool(crate: Any, run: Run) -> Any:
    """Add the version of ftlab that made a run to a crate, and return it."""
    from rocrate.model.softwareapplication import SoftwareApplication

    version = run.provenance.get("versions", {}).get("ftlab", "")
    about = {"name": "ftlab", "softwareVersion": version}
    return crate.add(SoftwareApplication(crate, f"#ftlab-{version}", about))


def _unpack(source: Path, folder: Path) -> set[str]:
    """Write the files of an archive whose names and sizes are safe; return their names."""
    try:
        with zipfile.ZipFile(source) as archive:
            entries = [info for info in archive.infolist() if not info.is_dir()]
            _refuse_unsafe(source, entries)
            for info in entries:
                path = folder / info.filename
                path.parent.mkdir(parents=True, exist_ok=True)
                # By parts: an archive may claim a smaller size than what it inflates to.
                with archive.open(info) as content, path.open("wb") as file:
                    shutil.copyfileobj(content, file)
    except FtlabError:
        raise
    except DAMAGES as error:
        raise DataError(
            "damaged_archive", f"{source} cannot be unpacked ({error}). Copy it again."
        ) from None
    return {info.filename for info in entries}


def _refuse_unsafe(source: Path, entries: list[zipfile.ZipInfo]) -> None:
    """Raise where unpacking would write outside of the folder, or fill the disk."""
    problems = []
    if len(entries) > MOST_FILES:
        problems.append(f"{len(entries):,} files, allowed are {MOST_FILES:,}")
    size = sum(info.file_size for info in entries)
    if size > MOST_BYTES:
        problems.append(f"unpacks to {size:,} bytes, allowed are {MOST_BYTES:,}")
    seen = set()
    for info in entries:
        kind = stat.S_IFMT(info.external_attr >> 16)
        shown = safe(info.orig_filename, 80)
        if not NAME.fullmatch(info.orig_filename):
            problems.append(f"the name {shown!r}")
        elif kind not in (0, stat.S_IFREG) or info.flag_bits & 1:
            problems.append(f"{shown} is a link, a device or encrypted")
        elif info.compress_type not in COMPRESSIONS or info.filename.lower() in seen:
            problems.append(f"{shown} is there twice, or compressed in another way")
        seen.add(info.filename.lower())
    if problems:
        raise DataError("unsafe_archive", _listed(source, "is not unpacked", problems), problems)


def _verified(source: Path, folder: Path, names: set[str]) -> str:
    """Return the name of the run that was exported, or raise where a file is not as it was."""
    problems = []
    members = {name.partition("/")[0] for name in names if "/" in name}
    recorded = {METADATA}
    for member in sorted(members):
        found = _member_files(folder / member)
        recorded |= {f"{member}/{name}" for name in found}
    for name in sorted(names ^ recorded):
        problems.append(f"{name} is missing or extra")
    if not problems:
        for member in sorted(members):
            problems += _problems(Run(folder / member), members)
    main = _main(folder / METADATA)
    if main not in members:
        problems.append(f"{METADATA} names no run of the archive")
    if problems:
        raise DataError("changed_archive", _listed(source, "was changed", problems), problems)
    return main


def _member_files(folder: Path) -> list[str]:
    """Return the files that the record of an unpacked run lists, and the record itself."""
    try:
        files = list(Run(folder).part(RECORD)["files"])
    except MALFORMED:
        files = []
    return [*files, RECORD]


def _problems(run: Run, members: set[str]) -> list[str]:
    """Return what is wrong with an unpacked run."""
    try:
        wrong = {"config.json": "names runs that are missing, or have members themselves"}
        if _members_are_here(run, members):
            wrong = run.problems(deep=True)
    except MALFORMED as error:
        return [f"{run.name}: {safe(error, 200)}"]
    return [f"{run.name}/{name} {problem}" for name, problem in wrong.items()]


def _members_are_here(run: Run, names: set[str]) -> bool:
    """Return whether the members of a run are among these, without circles."""
    members = run.identity.get("members", [])
    if not isinstance(members, list) or not names.issuperset(members):
        return False
    others = [Run(run.path.parent / name) for name in members if name != run.name]
    return not any("members" in other.identity for other in others)


def _main(metadata: Path) -> str:
    """Return the name of the run that an archive is of; "" where its metadata do not tell."""
    try:
        graph = json.loads(metadata.read_bytes())["@graph"]
        (root,) = [entity for entity in graph if entity["@id"] == "./"]
        return str(root["mainEntity"]["@id"]).strip("/")
    except MALFORMED:
        return ""


def _listed(source: Path, what: str, problems: list[str]) -> str:
    shown = "; ".join(problems[:LISTED])
    if len(problems) > LISTED:
        shown += f"; {len(problems) - LISTED} more"
    return f"{source.name} {what}: {shown}. Ask for the archive and its SHA-256 again."
