"""One page of finished experiments: published claims, what was measured, figures, limits.

Numbers come from claims; nothing is estimated here.
"""

from __future__ import annotations

import base64
import html
import json
import math
import os
import re
import shutil
from decimal import Decimal
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import quote

from ftlab._core.config import FEWEST_SEEDS
from ftlab._core.errors import DataError, NotFoundError
from ftlab._core.files import write_atomic
from ftlab._core.text import redacted, safe
from ftlab.analysis import claims

COLUMNS = (
    *("experiment", "claim", "published", "measured", "low", "high"),
    *("n_prompts", "n_seeds", "verdict"),
)
RECORDED = (
    *("benign", "prompts", "harmful", "lora", "started", "seconds"),
    *("python", "commit", "hardware", "versions"),
)
TEMPLATES = Path(__file__).parent / "templates"


def write_report(
    out_dir: str | Path,
    experiments: dict[str, str | Path],
    *,
    model: str,
    seeds: int,
    quick: bool = False,
    missing: dict[str, str] | None = None,
) -> Path:
    """Write the page of several experiments.

    Verdicts are decided again, by the published figures of today. Times and hardware are read
    from OUT_DIR/run.json where it exists.

    Args:
        out_dir: Folder for report.html (opens offline), report.md, results.csv and figures/.
        experiments: Folder of each experiment, by name; each holds claims.csv and figures/.
        model: Name of the model.
        seeds: Number of training seeds.
        quick: Whether this was a short trial, whose numbers should not be quoted.
        missing: Experiments that are not on the page, and why.

    Returns:
        The path of report.html.

    Raises:
        NotFoundError: `no_claims`.
        DataError: `not_a_table_of_claims`, `unknown_claim`.
    """
    out = Path(out_dir)
    rows = []
    for name, folder in sorted(experiments.items()):
        rows += _rows(name, Path(folder))
    rows.sort(key=lambda row: row["experiment"])
    page = _page(rows, str(model), seeds, out / "run.json")
    reasons = [f"{name}: {reason}." for name, reason in (missing or {}).items()]
    page["lists"]["What this does not show"][:0] = reasons
    page["quick"] = quick
    page["sections"] = [
        {
            "name": name,
            "notebook": _notebook(Path(folder), out),
            "figures": _figures(name, Path(folder), out / "figures"),
        }
        for name, folder in sorted(experiments.items())
    ]
    plain = []
    for row in rows:
        values = {key: significant(row[key]) for key in claims.NUMBERS}
        plain.append({**row, **values, "published": significant(row["about"].value)})
    write_atomic(out / "results.csv", claims.csv_of(COLUMNS, plain))
    write_atomic(out / "report.md", _rendered("report.md.j2", page, _markdown))
    write_atomic(out / "report.html", _rendered("report.html.j2", page, _shown, autoescape=True))
    return out / "report.html"


def _rows(name: str, folder: Path) -> list[dict]:
    """Return an experiment's claims, each with its published figure and today's verdict."""
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
        given = {key: row[key] for key in (*claims.NUMBERS, "model", "differs")}
        row["about"] = target
        row["verdict"] = claims.verdict(target, **given)
        row["published"] = target.shown()
        row["shown"] = claims.in_words(row, target.unit)
    return rows


def _page(rows: list[dict], model: str, seeds: int, run: Path) -> dict[str, Any]:
    """Return what the page says, as plain text, except for the figures."""
    verdicts = [row["verdict"] for row in rows]
    counts = [f"{verdicts.count(word)} as {word}" for word in claims.VERDICTS]
    first = {row["experiment"]: row for row in reversed(rows)}
    heads = [
        f"{row['claim']}: {row['shown']}, published {row['published']}"
        for _, row in sorted(first.items())
    ]
    summary = (
        f"The model “{model}” was fine-tuned with {seeds} training seed{'s' * (seeds != 1)} and "
        f"asked the same prompts before and after. Of {len(rows)} comparisons with published "
        f"figures, {counts[0]}, {counts[1]} and {counts[2]} came out. "
        f"The first of each experiment: {'; '.join(heads)}."
    )
    lists = {
        "What this does not show": _limits(rows),
        "How the verdicts are decided": _texts()["rules"],
        "The published figures": list(
            {row["target"]: row["about"].cited() for row in rows}.values()
        ),
        "Settings": [f"model: {model}", f"training seeds: {seeds}", *_recorded(run)],
    }
    title = f"What fine-tuning did to the safety of “{model}”"
    return {"title": title, "summary": summary, "rows": rows, "lists": lists}


def _limits(rows: list[dict]) -> list[str]:
    texts = _texts()
    limits = []
    if any("organism" in re.split(r"[-:]", row["model"]) for row in rows):
        limits.append(texts["organism"])
    for differs in dict.fromkeys(row["differs"] for row in rows if row["differs"]):
        names = [row["claim"] for row in rows if row["differs"] == differs]
        which = "; ".join(names)
        if len(names) > 2:
            which = f"{len(names)} claims, “{names[0]}” and others"
        limits.append(f"Other than in the paper ({which}): {differs}.")
    limits.append(texts["wordings"])
    if any(row["n_seeds"] < FEWEST_SEEDS for row in rows):
        limits.append(texts["few_seeds"])
    return [*limits, texts["evidence"]]


@cache
def _texts() -> dict[str, Any]:
    """Return the sentences of the page that are always the same."""
    import yaml

    return yaml.safe_load((TEMPLATES / "texts.yaml").read_text(encoding="utf-8"))


def _recorded(run: Path) -> list[str]:
    """Return the settings and hardware that the run recorded."""
    if not run.is_file():
        return []
    record = json.loads(run.read_text(encoding="utf-8"))
    lines = []
    for key in RECORDED:
        value = record.get(key)
        if not value:
            continue
        if isinstance(value, dict):
            value = ", ".join(f"{name} {one}" for name, one in value.items())
        name = key
        if key == "seconds":
            name = "seconds of this call (finished runs are reused)"
        lines.append(f"{name}: {value}")
    return lines


def _notebook(folder: Path, out: Path) -> str:
    """Return a link to an experiment's executed notebook, or ""."""
    books = [path for path in sorted(folder.glob("[!.]*.ipynb")) if ".failed" not in path.name]
    return quote(Path(os.path.relpath(books[0], out)).as_posix()) if books else ""


def _figures(experiment: str, folder: Path, copies: Path) -> list[dict]:
    """Copy an experiment's figures; return caption, links and picture of each."""
    copies.mkdir(parents=True, exist_ok=True)
    for old in copies.glob(f"{experiment}-*"):
        old.unlink()
    found: dict[str, dict] = {}
    for suffix in (".png", ".svg", ".csv"):  # the vector drawing replaces the other
        paths = (folder / "figures").glob(f"*{suffix}")
        for path in sorted(paths, key=lambda path: (path.stat().st_mtime_ns, path.name)):
            name = f"{experiment}-{path.name}"
            shutil.copyfile(path, copies / name)
            owner = path.stem
            whole = path.stem.rpartition("_")[0]  # risk_seeds.csv belongs to risk.svg
            if suffix == ".csv" and owner not in found and whole in found:
                owner = whole
            figure = found.setdefault(owner, {"caption": _caption(path), "links": {}})
            figure["links"][path.name] = quote(f"figures/{name}")
            if suffix != ".csv":
                kind = {".png": "png", ".svg": "svg+xml"}[suffix]
                data = base64.b64encode(path.read_bytes()).decode()
                figure["picture"] = quote(f"figures/{name}")
                figure["data"] = f"data:image/{kind};base64,{data}"
    return list(found.values())


def _caption(path: Path) -> str:
    text = path.with_suffix(".txt")
    return text.read_text(encoding="utf-8").strip() if text.is_file() else path.stem


def significant(value: float) -> str:
    """Return four significant digits, never as a power of ten: 0.01235, 12350."""
    if not math.isfinite(value):
        return str(value)
    text = f"{Decimal(f'{value + 0:.4g}'):f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def _rendered(template: str, page: dict, finalize: Any, autoescape: bool = False) -> str:
    from jinja2 import Environment, FileSystemLoader

    options = {"trim_blocks": True, "lstrip_blocks": True, "autoescape": autoescape}
    pages = Environment(loader=FileSystemLoader(TEMPLATES), finalize=finalize, **options)
    return pages.get_template(template).render(page, texts=_texts()) + "\n"


def _shown(value: Any) -> Any:
    """Return a text of the page without control characters and secrets; pictures as they are."""
    if not isinstance(value, str) or value.startswith("data:image/"):
        return value
    return safe(redacted(value), 20_000)


def _markdown(value: Any) -> str:
    """Return a text as one line of Markdown that holds no markup of its own."""
    line = html.escape(_shown(" ".join(str(value).split())), quote=False)
    return re.sub(r"([\\`*\[\]|])", r"\\\1", line)
