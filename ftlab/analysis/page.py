"""One page of finished experiments: published claims, what was measured, figures, limits.

Numbers come from claims; nothing is estimated here.
"""

from __future__ import annotations

import base64
import contextlib
import json
import math
import os
import re
import shutil
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from ftlab._core.errors import DataError, NotFoundError, UsageError
from ftlab._core.files import storage, write_atomic
from ftlab.analysis import claims, executed, verdicts
from ftlab.analysis.chains import draw_chain
from ftlab.analysis.judge_errors import NOT_INCLUDED, is_exact
from ftlab.analysis.origins import origin_of, without_places
from ftlab.analysis.rendering import html_of, markdown_of, script, texts
from ftlab.runs import Run
from ftlab.stats import FEWEST_SEEDS, holm

COLUMNS = (
    "experiment",
    "claim",
    "published",
    "measured",
    "low",
    "high",
    "level",
    "null",
    "p",
    "p_holm",
    "published_lies",
    "n_prompts",
    "n_seeds",
    "unscored",
    "worst_low",
    "worst_high",
    "verdict",
    "judge",
    "runs",
)
INTERVAL = "95 %, pointwise"
RECORDED = {  # what of run.json is shown, and how it is called
    "benign": "benign",
    "prompts": "prompts",
    "harmful": "harmful",
    "lora": "lora",
    "adapter": "adapter",
    "started": "started",
    "seconds": "seconds of this call (finished runs are reused)",
    "python": "python",
    "commit": "commit",
    "hardware": "hardware",
    "versions": "versions",
}
PAGE = ("report.html", "report.md", "results.csv", "run.json")
# By what the files of a page and of its experiments are known.
MARKS = {
    "results.csv": b"experiment,claim,",
    "claims.csv": b"experiment,claim,",
    "run.json": b'"versions"',
}
PICTURES = {".svg": "image/svg+xml", ".png": "image/png"}
VALUE = "{value} with its 95 % interval; published {published}{judge}"
BY_REFUSALS = " (by a judge of refusals; not refused is less than harmful)"
MOST_BYTES = 8_000_000  # of report.html, so that it can be sent by mail
FRAME_BYTES = 1000  # around a notebook that is on the page


def report(
    out_dir: str | Path | Run,
    experiments: dict[str, str | Path] | None = None,
    *,
    model: str = "",
    seeds: int | str = "",
    quick: bool = False,
    missing: dict[str, str] | None = None,
    failed: dict[str, str] | None = None,
    by_figures: bool = False,
) -> Path:
    """Write the page of several experiments, or of a chain of versions.

    Verdicts are decided again, by the published figures of today and by p adjusted for all
    measurements of the page (Holm). Times and hardware are read from OUT_DIR/run.json where it
    exists.

    Args:
        out_dir: Folder for report.html (opens offline), report.md, results.csv and figures/. Or a
            run of `ftlab.experiments.chain`, alone: the page of its versions, their drift and what
            would have stopped them goes into the folder RUN-report beside the run's.
        experiments: Folder of each experiment, by name; each holds claims.csv and figures/.
        model: Name of the model.
        seeds: Number of training seeds; of experiments with different ones in words: "3 to 5".
        quick: Whether this was a short trial, whose numbers should not be quoted.
        missing: Experiments that are not on the page, and why.
        failed: Those that are not on it because they failed, and how: it begins with them.
        by_figures: Experiments without claims are there by their figures.

    Returns:
        The path of report.html.

    Raises:
        NotFoundError: `no_claims`.
        UsageError: `nothing_to_report`, `not_a_chain`; `foreign_files`, before anything is written.
        DataError: `not_a_table_of_claims`, `unknown_claim`.
    """
    if isinstance(out_dir, Run):
        return _of_chain(out_dir)
    if experiments is None or not model or not seeds:
        why = "A page needs out_dir, experiments={name: folder}, model and seeds"
        raise UsageError("nothing_to_report", f"{why}. Give them all, or only the run of a chain.")
    out = Path(out_dir)
    refuse_foreign(out)
    rows = []
    sections = []
    for name, folder in sorted(experiments.items()):
        claimed = (Path(folder) / "claims.csv").is_file()
        if claimed or not by_figures:
            rows += _rows(name, Path(folder))
    rows.sort(key=lambda row: row["experiment"])
    for number, (name, folder) in enumerate(sorted(experiments.items()), 1):
        section = _section(name, Path(folder), out)
        section["id"] = f"s{number}"
        sections.append(section)
    _decide(rows)
    origins = _origins(rows, sections)
    once = _once(rows)
    limits = []
    for name, reason in _told(missing).items():
        limits.append(f"{name}: {reason}")
    words = {row["verdict"]: None for row in rows}
    cited = {row["target"]: row["about"].cited() for row in rows}
    settings = [f"model: {model}", f"training seeds: {seeds}"]
    page = {
        "model": str(model),
        "seeds": seeds,
        "quick": quick,
        "failed": _told(failed),
        "texts": texts(),
        "script": script(),
        "rows": rows,
        "answer": _answer(rows),
        "origins": origins,
        "verdicts": list(words),
        "counts": Counter(row["verdict"] for row in once),
        "n_measurements": len(once),
        "sections": sections,
        "lead": _lead(sections),
        "lists": {
            "What this does not show": limits + _limits(rows),
            "How the verdicts are decided": texts()["rules"],
            "The published figures": list(cited.values()),
            "Settings": settings + _recorded(out / "run.json"),
        },
    }
    results = claims.csv_of(COLUMNS, [_plain(row) for row in rows])
    markdown = markdown_of("report.md.j2", page)
    html_page = _with_notebooks(page, sections)
    path = out / "report.html"
    write_atomic(out / "results.csv", results)
    write_atomic(out / "report.md", markdown)
    write_atomic(path, html_page)
    return path


def _of_chain(chain: Run) -> Path:
    """Write the page of a chain beside its run folder, which stays as it was finished."""
    out = chain.path.with_name(f"{chain.name}-report")
    folder = out / "versions"
    draw_chain(chain, folder / "figures")
    facts = chain.stats
    return report(
        out,
        {"versions": folder},
        model=facts["parent"],
        seeds=facts["seeds"],
        by_figures=True,
    )


def _section(name: str, folder: Path, out: Path) -> dict[str, Any]:
    """Return what the page shows of an experiment."""
    notebook = executed.notebook_in(folder)
    page = executed.page_of(notebook)
    return {
        "name": name,
        "folder": folder,
        "title": executed.title_of(notebook) or _short_name(name),
        "notebook": _link(notebook, out),
        "command": executed.command_of(notebook),
        "page": _link(page, out),
        "page_path": page,
        "frame": "",
        "led": False,
        "figures": _figures(name, folder, out / "figures"),
    }


def _with_notebooks(page: dict[str, Any], sections: list[dict]) -> str:
    """Return the page with the executed notebooks in it, as many as there is room for.

    Where not all of them fit, only the first figure has a drawing for narrow screens.
    """
    pages = []
    folders = []
    for section in sections:
        pages.append(section["page_path"])
        folders.append(section["folder"])
    if executed.size(pages) > _room(page):
        for section in sections:
            for figure in section["figures"]:
                figure["narrow"] = ""
    frames = executed.embedded(pages, folders, _room(page))
    for section, frame in zip(sections, frames, strict=True):
        section["frame"] = frame
    return html_of("report.html.j2", page)


def _room(page: dict[str, Any]) -> int:
    """Return how many bytes of notebooks the page can hold."""
    without = html_of("report.html.j2", page)
    places = FRAME_BYTES * len(page["sections"])
    return MOST_BYTES - len(without.encode()) - places


def _origins(rows: list[dict], sections: list[dict]) -> list[dict[str, Any]]:
    """Give every row the place that its numbers come from; return what is known of each run."""
    by_name = {section["name"]: section for section in sections}
    found: dict[str, dict[str, Any]] = {}
    for row in rows:
        section = by_name[row["section"]]
        row["place"] = section["id"]
        names = row["runs"].split()
        if names:
            row["place"] = f"run-{names[0]}"
        for name in names:
            if name not in found:
                facts = origin_of(name)
                if section["command"]:
                    facts["whole experiment"] = section["command"]
                origin = {
                    "name": name,
                    "facts": facts,
                    "numbers": [],
                }
                found[name] = origin
            found[name]["numbers"].append(row)
    return list(found.values())


def _answer(rows: list[dict]) -> str:
    """Return in one sentence what the first measured claim says."""
    measured = [row for row in rows if not math.isnan(row["measured"])]
    if not measured:
        return ""
    first = measured[0]
    told = {
        "claim": first["claim"],
        "value": first["shown"],
        "published": first["published"],
        "judge": "",
    }
    if first["of_refusals"]:
        told["judge"] = BY_REFUSALS
    value = VALUE.format_map(told)
    place = "" if len(measured) == 1 else f", the first of {len(measured)} claims"
    if math.isnan(first["before"]):
        return f"{told['claim']}{place}: {value}."
    change = _change(first, value)
    return f"{change} (“{told['claim']}”{place})."


def _change(row: dict, value: str) -> str:
    """Return from where to where a claim's rate went, and what is said of that."""
    about = row["about"]
    risk = row["risk"].replace("_", "-") or "the event"
    before = claims.number(row["before"], "rate")
    after = claims.number(row["after"], "rate")
    went = f"from {before} to {after} of the answers, {value}"
    if about.unit == "rate":
        went = f"from {before} to {value}"
    verb = "rose" if row["after"] > row["before"] else "fell"
    text = f"{risk} {verb} {went}"
    if not row["p_holm"] < claims.LEVEL:
        text = f"no change of {risk} is shown, {went}"
    if row["n_seeds"] < FEWEST_SEEDS:
        text = f"in these runs {text}"
    return text[0].upper() + text[1:]


def refuse_foreign(out: Path, experiments: Iterable[str] = ()) -> None:
    """Refuse a folder that holds files of a page's names which are no page's.

    Args:
        out: The folder of a page.
        experiments: Folders of experiments in it, whose claims will be replaced.

    Raises:
        UsageError: `foreign_files`.
    """
    paths = [out / name for name in PAGE]
    paths += [out / name / "claims.csv" for name in experiments]
    there = [path for path in paths if path.exists()]
    foreign = [path for path in there if path.name in MARKS and not _is_ours(path)]
    pages = [path for path in there if path.name in PAGE]
    known = [path for path in pages if path.name in MARKS and path not in foreign]
    if pages and not known:  # whose are they?
        foreign += pages
    if foreign:
        raise UsageError(
            "foreign_files",
            f"{foreign[0]} was not written by ftlab and would be replaced. Give another folder.",
        )


def _is_ours(path: Path) -> bool:
    with contextlib.suppress(OSError):
        return MARKS[path.name] in path.read_bytes()
    return False


def _rows(name: str, folder: Path) -> list[dict]:
    """Return an experiment's claims, each with its published figure."""
    path = folder / "claims.csv"
    if not path.is_file():
        raise NotFoundError("no_claims", f"{name}: no claims.csv in {folder}. Run its notebook.")
    targets = claims.targets()
    rows = claims.rows_of(path)
    for row in rows:
        target = targets.get(row["target"])
        if target is None:
            raise DataError(
                "unknown_claim",
                f"{path}: unknown published figure {row['target']}. Run its notebook again.",
            )
        row["about"] = target
        row["section"] = name
        row["published"] = target.shown()
        row["shown"] = claims.in_words(row, target.unit)
        row["name"] = _short_name(row["experiment"])
        row["of_refusals"] = verdicts.of_refusals(row["judge"])
        row["judge"] = without_places(row["judge"])
        row["error"] = ""
        if not (is_exact(row["judge"]) or "corrected by labels" in row["judge"]):
            row["error"] = f"; {NOT_INCLUDED}"
    return rows


def _decide(rows: list[dict]) -> None:
    """Give every claim p adjusted for the measurements of the page, and with it the verdict."""
    found = {}
    for row in rows:
        if not math.isnan(row["p"]):  # the largest, where its interval was made in several ways
            known = found.get(row["measurement"], 0.0)
            found[row["measurement"]] = max(known, row["p"])
    adjusted = holm(list(found.values()))
    adjusted = dict(zip(found, adjusted, strict=True))
    for row in rows:
        target = row["about"]
        p = adjusted.get(row["measurement"], math.nan)
        given = {key: row[key] for key in claims.DECISIVE}
        given["p"] = p
        least = claims.number(row["worst_low"], target.unit)
        most = claims.number(row["worst_high"], target.unit)
        row["p_holm"] = p
        row["p_shown"] = claims.p_in_words(p)
        row["verdict"] = claims.verdict(target, **given)
        row["published_lies"] = claims.lies(target.value, row["low"], row["high"])
        row["level"] = INTERVAL
        row["worst"] = ""
        if row["unscored"] and not math.isnan(row["worst_low"]):
            row["worst"] = f"; whatever they are, {least} to {most}"


def _once(rows: list[dict]) -> list[dict]:
    """Return the claims, of those that share measurement and verdict the first."""
    found = {}
    for row in rows:
        key = (row["measurement"], row["verdict"])
        found.setdefault(key, row)
    return list(found.values())


def _plain(row: dict) -> dict:
    """Return a claim as results.csv holds it."""
    names = (*claims.NUMBERS, "p", "p_holm")
    numbers = {key: significant(row[key]) for key in names}
    return {**row, **numbers, "published": significant(row["about"].value)}


def _limits(rows: list[dict]) -> list[str]:
    sentences = texts()
    limits = []
    if any("organism" in re.split(r"[-:]", row["model"]) for row in rows):
        limits.append(sentences["organism"])
    for differs in dict.fromkeys(row["differs"] for row in rows if row["differs"]):
        names = [row["claim"] for row in rows if row["differs"] == differs]
        which = "; ".join(names)
        if len(names) > 2:
            which = f"{len(names)} claims, “{names[0]}” and others"
        limits.append(f"Other than in the paper ({which}): {differs}.")
    if any(row["of_refusals"] for row in rows):
        limits.append(sentences["refusals"])
    limits.append(sentences["wordings"])
    if any(row["n_seeds"] < FEWEST_SEEDS for row in rows):
        limits.append(sentences["few_seeds"])
    return [*limits, sentences["evidence"]]


def _recorded(run: Path) -> list[str]:
    """Return the settings and hardware that the run recorded."""
    if not run.is_file():
        return []
    record = json.loads(run.read_text(encoding="utf-8"))
    lines = []
    for key, name in RECORDED.items():
        value = without_places(record.get(key))
        if isinstance(value, dict):
            value = ", ".join(f"{part} {one}" for part, one in value.items())
        if value:
            lines.append(f"{name}: {value}")
    return lines


def _short_name(experiment: str) -> str:
    """Return an experiment's name for readers: "02_risk_ratio" is "Risk ratio"."""
    words = re.sub(r"^\d+_", "", experiment).replace("_", " ")
    return words[:1].upper() + words[1:]


def _told(reasons: dict[str, str] | None) -> dict[str, str]:
    """Return the reasons by the experiments' names for readers."""
    told = {}
    for name, reason in (reasons or {}).items():
        told[_short_name(name)] = reason
    return told


def _link(path: Path | None, out: Path) -> str:
    """Return a link from the page to a file, or ""."""
    return quote(Path(os.path.relpath(path, out)).as_posix()) if path else ""


def _lead(sections: list[dict]) -> dict | None:
    """Take the first picture out of its section, to be shown first."""
    for section in sections:
        for figure in section["figures"]:
            if "data" in figure:
                section["figures"].remove(figure)
                section["led"] = True
                return figure
    return None


def _figures(experiment: str, folder: Path, copies: Path) -> list[dict]:
    """Copy an experiment's figures; return caption, links and picture of each."""
    copies.mkdir(parents=True, exist_ok=True)
    for old in copies.glob(f"{experiment}-*"):
        old.unlink()
    found: dict[str, dict] = {}
    for suffix in (".png", ".svg", ".csv"):  # the vector drawing replaces the other
        paths = list((folder / "figures").glob(f"*{suffix}"))
        paths.sort(key=lambda path: (path.stat().st_mtime_ns, path.name))
        for path in paths:
            copy = copies / f"{experiment}-{path.name}"
            with storage(copy):
                shutil.copyfile(path, copy)
            owner = path.stem
            if suffix == ".csv" and owner not in found:
                owner = owner.rpartition("_")[0]  # risk_seeds.csv belongs to risk.svg
            if owner not in found:
                owner = path.stem
                found[owner] = {"caption": _caption(path), "links": {}}
            link = quote(f"figures/{copy.name}")
            found[owner]["links"][path.name] = link
            if suffix in PICTURES:
                found[owner]["picture"] = link
                found[owner]["data"] = _embedded(path)
                found[owner]["narrow"] = _embedded(path.parent / "narrow" / f"{owner}.svg")
    return list(found.values())


def _embedded(picture: Path) -> str:
    """Return a picture as an address that holds it, or "" where there is none."""
    if not picture.is_file():
        return ""
    data = base64.b64encode(picture.read_bytes()).decode()
    return f"data:{PICTURES[picture.suffix]};base64,{data}"


def _caption(path: Path) -> str:
    text = path.with_suffix(".txt")
    return text.read_text(encoding="utf-8").strip() if text.is_file() else path.stem


def significant(value: float) -> str:
    """Return four significant digits, never as a power of ten: 0.01235, 12350."""
    return np.format_float_positional(
        value + 0,
        4,
        unique=False,
        fractional=False,
        trim="-",
    )
