"""Runs -> one page: published claims beside what was measured, the figures, and what they do not show.

    claim("02_risk_ratio", "jailbreak, 150 steps", published="enkrypt_ratio_1_5", measured=2.1, low=1.4,
          high=3.2, n_prompts=200, n_seeds=5, null=1.0, model="organism", out=out)  # a row of out/claims.csv
    write_report("runs/r", {"02_risk_ratio": "runs/r/02_risk_ratio"}, model="organism", seeds=5, quick=False)

Rates are shares in [0, 1], ratios are child / parent. Nothing is estimated here: numbers come from claims.
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
from pathlib import Path
from urllib.parse import quote

from ftlab._core.config import FEWEST_SEEDS
from ftlab._core.text import redacted, safe
from ftlab.analysis import claims
from ftlab.runs import write_atomic

COLUMNS = ("experiment", "claim", "published", "measured", "low", "high", "n_prompts", "n_seeds", "verdict")
QUICK = "A quick run, with fewer prompts and seeds: it shows that things work. Do not quote its numbers."
ORGANISM = (
    "The organism is a tiny model that this project trained in an invented world: it shows that an effect "
    "exists and how it comes about, but nothing about its size in the models that the papers measured, so "
    "“direction only” is the most that this page may say of it."
)
WORDINGS = (
    "The intervals are for other prompts and training seeds, in the wordings that were asked; with wordings as the unit "
    "they are far wider (02 shows both). In the table each holds for its claim alone; the bands of the figures are "
    "simultaneous, which is wider: they hold for all steps of a curve at once. Nothing is corrected for the number of claims."
)
RULE = (
    "“Reproduced”: the model is one that the paper measured, judge, prompts, attack and training settings are "
    "the paper's, and the whole interval lies within the tolerance, which this project declared, not the paper.",
    "“Direction only”: otherwise, if the whole interval lies beyond no effect, on the side that is claimed; "
    "for a claim about every prompt only if the interval also reaches every prompt.",
    "“Not reproduced”: everything else, also what could not be measured.",
)


def write_report(
    out_dir: str | Path,
    experiments: dict[str, str | Path],
    *,
    model: str,
    seeds: int,
    quick: bool = False,
    missing: dict[str, str] | None = None,
) -> Path:
    """Gathers claims and figures of experiments (name -> folder) -> their page, `out_dir/report.html`.

    Writes results.csv (COLUMNS; four significant digits, no times), figures/, report.md, and a report.html to
    open offline. Verdicts are decided anew, by the published figures of today; times and hardware are those
    of `out_dir/run.json`, if there. missing: experiment -> why it is not on the page. Raises FileNotFoundError or ValueError for a folder without good claims.
    """
    out, targets, rows, sections = Path(out_dir), claims.targets(), [], []
    for name, folder in sorted(experiments.items()):
        path = Path(folder) / "claims.csv"
        if not path.is_file():
            raise FileNotFoundError(f"{name}: no claims in {folder}; run its notebook, it writes claims.csv")
        rows += claims.rows_of(path)
        if lost := sorted({r["target"] for r in rows} - set(targets)):
            raise ValueError(f"{path}: unknown published figure {', '.join(lost)}; run its notebook again")
    rows.sort(key=lambda row: row["experiment"])
    for row in rows:
        target = row["about"] = targets[row["target"]]
        row["verdict"] = claims.verdict(target, **{k: row[k] for k in (*claims.NUMBERS, "model", "differs")})
        row |= {"published": target.shown(), "shown": claims.measured(row, target.unit)}
    for name, folder in sorted(experiments.items()):
        books = [p for p in sorted(Path(folder).glob("[!.]*.ipynb")) if ".failed" not in p.name]
        link = quote(Path(os.path.relpath(books[0], out)).as_posix()) if books else ""
        figures = _figures(name, Path(folder), out / "figures")
        sections.append({"name": name, "notebook": link, "figures": figures})
    page = _page(rows, str(model), seeds, out / "run.json")
    page["lists"]["What this does not show"][:0] = [f"{name}: {why}." for name, why in (missing or {}).items()]
    page |= {"sections": sections, "quick": QUICK if quick else ""}
    plain = [row | {k: _significant(row[k]) for k in claims.NUMBERS} for row in rows]
    plain = [row | {"published": _significant(row["about"].value)} for row in plain]
    write_atomic(out / "results.csv", claims.table_of(COLUMNS, plain))
    write_atomic(out / "report.md", _markdown(page))
    write_atomic(out / "report.html", _html(page))
    return out / "report.html"


def _page(rows: list[dict], model: str, seeds: int, run: Path) -> dict:
    """-> what the page says, as plain text, but for the figures."""
    reached = [sum(row["verdict"] == word for row in rows) for word in claims.VERDICTS]
    first = {row["experiment"]: row for row in reversed(rows)}
    heads = [f"{r['claim']}: {r['shown']}, published {r['published']}" for _, r in sorted(first.items())]
    summary = (
        f"The model “{model}” was fine-tuned with {seeds} training seed{'s' * (seeds != 1)} and asked the "
        f"same prompts before and after. Of {len(rows)} comparisons with published figures, {reached[0]} came"
        f" out as reproduced, {reached[1]} as direction only and {reached[2]} as not reproduced. "
        f"The first of each experiment: {'; '.join(heads)}."
    )
    limits = [ORGANISM] * any("organism" in re.split(r"[-:]", row["model"]) for row in rows)
    for differs in dict.fromkeys(row["differs"] for row in rows if row["differs"]):
        names = [row["claim"] for row in rows if row["differs"] == differs]
        which = "; ".join(names) if len(names) < 3 else f"{len(names)} claims, “{names[0]}” and others"
        limits.append(f"Other than in the paper ({which}): {differs}.")
    limits.append(WORDINGS)
    if any(row["n_seeds"] < FEWEST_SEEDS for row in rows):
        limits.append(f"With fewer than {FEWEST_SEEDS} training seeds an interval is conditional on these runs.")
    limits.append("The published figures are as well evidenced as the list below says, and no better.")
    record = json.loads(run.read_text(encoding="utf-8")) if run.is_file() else {}
    settings = [f"model: {model}", f"training seeds: {seeds}"]
    for key in (
        "benign",
        "prompts",
        "harmful",
        "lora",
        "started",
        "seconds",
        "python",
        "commit",
        "hardware",
        "versions",
    ):
        if value := record.get(key):
            parts = [f"{k} {v}" for k, v in value.items()] if isinstance(value, dict) else [str(value)]
            name = "seconds of this call (finished runs are found again)" if key == "seconds" else key
            settings.append(f"{name}: {', '.join(parts)}")
    targets = {row["target"]: row["about"].cited() for row in rows}
    lists = {
        "What this does not show": limits,
        "How the verdicts are decided": RULE,
        "The published figures": [*targets.values()],
        "Settings": settings,
    }
    title = f"What fine-tuning did to the safety of “{model}”"
    return {"title": title, "summary": summary, "rows": rows, "lists": lists}


def _figures(experiment: str, folder: Path, copies: Path) -> list[dict]:
    """Copies an experiment's figures -> caption, links, picture (the vector drawing where there is one)."""
    copies.mkdir(parents=True, exist_ok=True)
    for old in copies.glob(f"{experiment}-*"):
        old.unlink()
    found = {}
    for suffix in (".png", ".svg", ".csv"):  # in the order in which the notebook drew them
        for path in sorted((folder / "figures").glob(f"*{suffix}"), key=lambda p: (p.stat().st_mtime_ns, p.name)):
            shutil.copyfile(path, copies / f"{experiment}-{path.name}")
            link, text = quote(f"figures/{experiment}-{path.name}"), path.with_suffix(".txt")
            caption = text.read_text(encoding="utf-8").strip() if text.is_file() else path.stem
            whole = path.stem.rpartition("_")[0]  # risk_seeds.csv belongs to risk.svg
            owner = whole if suffix == ".csv" and path.stem not in found and whole in found else path.stem
            figure = found.setdefault(owner, {"caption": caption, "links": {}})
            figure["links"][path.name] = link
            if suffix != ".csv":
                kind = "image/svg+xml" if suffix == ".svg" else "image/png"
                data = base64.b64encode(path.read_bytes()).decode()
                figure |= {"picture": link, "data": f"data:{kind};base64,{data}"}
    return [*found.values()]


def _significant(value: float) -> str:
    """-> four significant digits, never as a power of ten: 0.01235, 12350."""
    if not math.isfinite(value):
        return str(value)
    text = f"{Decimal(f'{value + 0:.4g}'):f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def _markdown(page: dict) -> str:
    def plain(value) -> str:
        line = html.escape(_shown(" ".join(str(value).split())), quote=False)
        return re.sub(r"([\\`*\[\]|])", r"\\\1", line)

    columns = ("experiment", "claim", "published", "shown", "n_prompts", "n_seeds", "verdict")
    lines = [f"# {plain(page['title'])}", "", *([f"**{page['quick']}**", ""] if page["quick"] else [])]
    head = " | ".join(columns).replace("shown", "measured (interval)")
    lines += [plain(page["summary"]), "", f"| {head} |", "|---" * len(columns) + "|"]
    for row in page["rows"]:
        noted = row | {"claim": f"{row['claim']} ({row['note']})" if row["note"] else row["claim"]}
        lines.append(f"| {' | '.join(plain(noted[k]) for k in columns)} |")
    for section in page["sections"]:
        book = f"[The executed notebook]({section['notebook']})" if section["notebook"] else ""
        lines += ["", f"## {plain(section['name'])}", "", book]
        for figure in section["figures"]:
            links = " ".join(f"[{plain(name)}]({link})" for name, link in figure["links"].items())
            picture = f"![{plain(figure['caption'])[:80]}]({figure['picture']})\n" if "picture" in figure else ""
            lines += ["", f"{picture}{plain(figure['caption'])} {links}"]
    for head, items in page["lists"].items():
        lines += ["", f"## {head}", "", *(f"- {plain(item)}" for item in items)]
    return "\n".join(lines) + "\n"


def _shown(value):
    """-> a text of the page without controls and tokens; pictures as they are."""
    return safe(redacted(value), 20_000) if isinstance(value, str) and value[:11] != "data:image/" else value


def _html(page: dict) -> str:
    from jinja2 import Environment

    template = Environment(autoescape=True, finalize=_shown, trim_blocks=True, lstrip_blocks=True).from_string(_PAGE)
    return template.render(page) + "\n"


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{{ title }}</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<style>
:root { color-scheme: light }
body { max-width: 64rem; margin: 1.2rem auto; padding: 0 1rem; background: #fff; color: #222;
  font: 1rem/1.5 system-ui, sans-serif; overflow-wrap: anywhere }
h1 { font-size: 1.5rem; line-height: 1.2 } h2 { font-size: 1.2rem; margin-top: 2rem } a { color: #0b5394 }
.quick { background: #fff3cd; border: 1px solid #d9b44a; padding: .5rem .8rem; font-weight: 600 }
table { border-collapse: collapse; width: 100%; font-size: .92rem } thead { overflow-wrap: normal }
th, td { text-align: left; vertical-align: top; padding: .3rem .7rem .3rem 0; border-bottom: 1px solid #ddd }
b { padding: .05rem .4rem; border-radius: .2rem; white-space: nowrap } small { color: #555 }
.reproduced { background: #d7efdc } .direction { background: #fdebc8 } .not { background: #f6d5d2 }
figure { margin: 1.2rem 0; break-inside: avoid } img { max-width: 100%; height: auto }
figcaption { font-size: .9rem; color: #444 }
@media (max-width: 40rem) {
  thead { display: none } tr { display: block; padding: .5rem 0; border-bottom: 1px solid #ccc }
  td { display: block; border: 0; padding: 0 } td::before { content: attr(title) ": "; color: #666 } }
@media print { body { margin: 0; max-width: none } b { print-color-adjust: exact } }
</style></head><body>
<h1>{{ title }}</h1>
{% if quick %}
<p class="quick">{{ quick }}</p>
{% endif %}
<p>{{ summary }}</p>
<table><thead><tr><th>experiment</th><th>claim</th><th>published</th><th>measured (interval)</th>
<th>prompts</th><th>seeds</th><th>verdict</th></tr></thead><tbody>
{% for r in rows %}
<tr><td title="experiment">{{ r.experiment }}</td>
<td title="claim">{{ r.claim }}{% if r.note %}<br><small>{{ r.note }}</small>{% endif %}</td>
<td title="published">{{ r.published }}</td><td title="measured">{{ r.shown }}</td>
<td title="prompts">{{ r.n_prompts }}</td><td title="seeds">{{ r.n_seeds }}</td>
<td title="verdict"><b class="{{ r.verdict.split()[0] }}">{{ r.verdict }}</b></td></tr>
{% endfor %}
</tbody></table>
{% for s in sections %}
<h2>{{ s.name }}</h2>
{% if s.notebook %}
<p><a href="{{ s.notebook }}">The executed notebook</a></p>
{% endif %}
{% for f in s.figures %}
<figure>{% if f.data %}<img src="{{ f.data }}" alt="{{ f.caption }}">{% endif %}
<figcaption>{{ f.caption }}
{% for file, link in f.links.items() %} <a href="{{ link }}">{{ file }}</a>{% endfor %}</figcaption></figure>
{% endfor %}
{% endfor %}
{% for head, lines in lists.items() %}
<h2>{{ head }}</h2>
<ul>{% for line in lines %}<li>{{ line }}</li>{% endfor %}</ul>
{% endfor %}
</body></html>"""
