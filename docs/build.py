"""Write what `docs/` holds of the code: reference, published figures, executed notebooks as pages.

python -m docs.build                     # all
python -m docs.build --reference-only
python -m docs.build --quick 02 03       # these notebooks, with their quick parameters
"""

from __future__ import annotations

import argparse
import inspect
import json
import os
import re
import tempfile
from dataclasses import dataclass, field
from importlib import import_module
from itertools import groupby
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
REFERENCE = ROOT / "docs" / "reference.md"
PUBLISHED = ROOT / "docs" / "published.md"
PAGES = ROOT / "docs" / "notebooks"
MOST_BYTES = 1_000_000  # of a page
# What users call, and what they write an extension with; a face also exports what rooms share.
PUBLIC = {
    "data": "catalogue check Data deduplicate download leave_out load load_prompts mix preview "
    "Preview PromptSet read_samples Report split",
    "models": "estimate_memory MemoryEstimate Model model weight_spectrum",
    "models.engines": "Decoding Endpoint Engine LoadedModel Request",
    "training": "dpo kto rloo sft train train_reward_model transform",
    "training.methods": "FirstStep Job Method",
    "training.defences": "Defence open_defence",
    "evals": "answer_loss answered_by ask audit call_alarms divergence draw evaluate guard_rates "
    "lm_eval monitor Monitor monitor_calls red_team refusal_direction rescore write_inspect_logs",
    "evals.risks": "bias_score expected_maximum_toxicity Risk",
    "evals.logs": "About LogFormat Logged",
    "evals.attacks": "Attack BestOfN DecodingSweep Direct Identity Prefill Templates Trigger",
    "judges": "agreement_of_card confusion Heard heard human_agreement Judge judge_agreement "
    "judge_card JudgeAgreement Keywords Organism Refusal Rubric score_file Zoo",
    "analysis": "Acceptance answers Card card chain_drift chain_stops Claims compare corrected "
    "differences explained first_step Grid grid_table outcome_shares plan plot rates record "
    "record_claim report seed_table summary Target target_of targets track verdict "
    "write_grid",
    "analysis.plots": "Drawing Kind",
    "analysis.trackers": "Tracked Tracker",
    "experiments": "ablate_refusal ablation_arms accept AuditTrial chain compare compare_arms "
    "compare_spectra covert_cleanup covert_finetune CovertTrial explain fewest_rows "
    "FineTuningAttack gate grid harmful_finetune loss_on_clean_rows plant_and_audit poison "
    "poison_effect remove_and_retrain reproduce risk_curve run_notebook sweep sweep_collect "
    "sweep_status sweep_work transform_and_compare trigger_effect",
    "experiments.backends": "Backend Job LocalBackend Needs RayBackend Result Row SlurmBackend",
    "stats": "Agreement alpha Band bands Crossing crossing first_below holm judge_errors "
    "JudgeErrors kappa lower_limits Paired paired paired_scores plan prompts_to_decide Rate "
    "rate Rectified rectify seed_spread SeedSpread Shift shift smallest_difference StudyPlan "
    "Tolerance upper_limits",
    "runs": "Archive clean_runs export_run import_run list_runs load results_folder "
    "resumable_runs Run runs_table show_run "
    "verify_runs",
    "course": "check choice compare_functions compare_numbers Exercise Grade Lesson sealed",
    "organism": "World",
    "training.transforms": "OfTwo open_transform Transform",
    "ui": "compare data explore guard label runs train",
}
SECTION = re.compile(r"^(Args|Returns|Raises|Source):$", re.MULTILINE)
ENTRY = re.compile(r"^(?=\S)", re.MULTILINE)
# What nbconvert writes for JupyterLab's own look, 250 KB a page, and pandas above every table.
NOT_SHOWN = re.compile(r"<(script|style)\b.*?</\1>\s*|<!--.*?-->\s*", re.DOTALL)
# The look without `page.css`, for a page that was copied alone.
STYLE = """<style>body { max-width: 60rem; margin: auto } img { max-width: 100% }</style>
<link rel="stylesheet" href="page.css"/>"""
QUICK = """> **A short trial.** This page was executed with {parameters}.
> The numbers in the text belong to the defaults below."""
INTRODUCTION = """# Reference

Written by `make docs` from the docstrings. Do not edit it by hand.

A cell that takes **settings** accepts each of the named settings as a keyword argument; what they
mean is listed once, under [Settings](#settings). Words are explained in the
[glossary](glossary.md).
"""

FIGURES = """# Published figures

Written by `make docs` from `data/published/*.yaml`, which also hold settings, places and caveats.
Do not edit it by hand.

Evidence: *read* in the paper or repository, *abstract*, *secondary* (somebody else's summary)
or *inferred* by us. Tolerances are ours, declared before any run. `ftlab explain ID` repeats the
fine-tuning of a figure that names its data, on yours, and says which settings explain the distance.
"""
FIGURE_COLUMNS = "| id | what it says | published | evidence | tolerance | data |"


@dataclass
class Settings:
    """The settings of all cells: each text once, with the cells that take it."""

    cells: dict[tuple[str, str], list[str]] = field(default_factory=dict)

    def add(self, cell: str, name: str, text: str) -> None:
        self.cells.setdefault((name, text), []).append(cell)

    def __str__(self) -> str:
        lines = ["## Settings", "", "| setting | meaning | taken by |", "|---|---|---|"]
        for (name, text), cells in sorted(self.cells.items()):
            taken = ", ".join(f"`{cell}`" for cell in cells)
            lines.append(f"| `{name}` | {in_table(text)} | {taken} |")
        return "\n".join(lines)


def main() -> None:
    """Write the reference and the figures, and unless told otherwise the notebooks."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--reference-only", action="store_true", help="execute no notebook")
    parser.add_argument("--quick", action="store_true", help="use the quick parameters")
    parser.add_argument("notebooks", nargs="*", help="beginnings of names, such as 02; default all")
    options = parser.parse_args()
    REFERENCE.write_text(reference(), encoding="utf-8")
    PUBLISHED.write_text(published(), encoding="utf-8")
    print(REFERENCE.relative_to(ROOT), PUBLISHED.relative_to(ROOT), sep="\n")
    if not options.reference_only:
        for path in chosen(options.notebooks):
            print(write_page(path, options.quick).relative_to(ROOT), flush=True)


def reference() -> str:
    """Return the reference of every public name, as Markdown."""
    settings = Settings()
    parts = [INTRODUCTION.rstrip(), verbs()]
    for face, names in PUBLIC.items():
        module = import_module(f"ftlab.{face}")
        parts += [f"## {face}", first_sentence(module)]
        parts += [
            entry(f"{face}.{name}", getattr(module, name), settings) for name in names.split()
        ]
    return "\n\n".join([*parts, str(settings)]) + "\n"


def published() -> str:
    """Return the published figures as Markdown, a table per paper."""
    from ftlab.analysis import targets

    parts = [FIGURES.rstrip()]
    for (paper, source), figures in groupby(
        targets().values(), lambda one: (one.paper, one.source)
    ):
        number = source.removeprefix("arXiv:")
        if number != source:
            source = f"[{source}](https://arxiv.org/abs/{number})"
        lines = [FIGURE_COLUMNS, "|---|---|---|---|---|---|"]
        for one in figures:
            cells = [f"`{one.id}`", one.text, one.shown(), one.evidence, one.tolerated()]
            lines.append("| " + " | ".join(map(in_table, [*cells, one.trained_on or "–"])) + " |")
        parts += [f"## {paper}", source, "\n".join(lines)]
    return "\n\n".join(parts) + "\n"


def verbs() -> str:
    """Return the table of the verbs at the top, with where each is described."""
    top = import_module("ftlab")
    lines = ["## The verbs: `import ftlab as ft`", "", "| verb | what it does |", "|---|---|"]
    for name in top.__all__:
        found = getattr(top, name)
        if inspect.ismodule(found):
            continue
        room_name = found.__module__.split(".")[1]
        title = f"{room_name}.{found.__name__}"
        lines.append(f"| [`ft.{name}`](#{anchor(title)}) | {in_table(first_sentence(found))} |")
    return "\n".join(lines)


def entry(title: str, found: Any, settings: Settings) -> str:
    """Return what the reference says about one public name."""
    head = f"### {title}"
    if inspect.isclass(found):
        return "\n\n".join([head, signature(title, found), *sections(found), *members(found)])
    plain = inspect.unwrap(found)
    if plain is not found:
        collect_settings(title, found, plain, settings)
    return "\n\n".join([head, signature(title, plain), *sections(plain)])


def collect_settings(title: str, cell: Any, plain: Any, settings: Settings) -> None:
    """Add the arguments that a cell takes besides its own."""
    own = inspect.signature(plain).parameters
    documented = dict(arguments(parsed(cell.__doc__)["Args"]))
    for name in inspect.signature(cell).parameters:
        if name not in own and name in documented:
            settings.add(title, name, documented[name])


def signature(title: str, found: Any) -> str:
    """Return a name with its parameters and defaults, without types."""
    shown = []
    for parameter in inspect.signature(found).parameters.values():
        if not parameter.name.startswith("_"):
            shown.append(parameter.replace(annotation=parameter.empty))
    text = str(inspect.Signature(shown)).replace("<factory>", "...")
    return f"```python\nft.{title}{text}\n```"


def sections(found: Any) -> list[str]:
    """Return a docstring as Markdown."""
    doc = parsed(found.__doc__)
    parts = [doc["text"].replace("`ft`", "ft")]
    if doc["Args"]:
        lines = []
        for name, text in arguments(doc["Args"]):
            lines.append(f"- `{name}`: {text}" if text else f"- {name}")
        parts.append("\n".join(lines))
    for name in ("Returns", "Raises", "Source"):
        if doc[name]:
            parts.append(f"*{name}:* {one_line(doc[name])}")
    return [part for part in parts if part.strip()]


def members(found: type) -> list[str]:
    """Return the public methods and properties that a class defines itself."""
    lines = []
    for name, member in vars(found).items():
        doc = getattr(member, "__doc__", None)
        plain = isinstance(member, (property, classmethod, staticmethod)) or callable(member)
        if name.startswith("_") or not plain or not doc or inspect.isclass(member):
            continue
        call = "" if isinstance(member, property) else "()"
        lines.append(f"- `.{name}{call}`: {first_sentence(member)}")
    return ["\n".join(lines)] if lines else []


def parsed(doc: str | None) -> dict[str, str]:
    """Return a docstring's text and its sections, without the line that stands for settings."""
    pieces = SECTION.split(inspect.cleandoc(doc or ""))
    found = dict.fromkeys(("text", "Args", "Returns", "Raises", "Source"), "")
    found["text"] = pieces[0].strip()
    for name, text in zip(pieces[1::2], pieces[2::2], strict=True):
        found[name] = inspect.cleandoc(f"\n{text}").strip()
    return found


def arguments(text: str) -> list[tuple[str, str]]:
    """Return names and meanings of the entries of an Args section."""
    found = []
    for entry_text in filter(str.strip, ENTRY.split(text)):
        if entry_text.strip() == "{settings}":
            found.append(("settings: see [Settings](#settings).", ""))
            continue
        name, _, meaning = entry_text.partition(":")
        found.append((name.strip(), one_line(meaning)))
    return found


def first_sentence(found: Any) -> str:
    """Return the first paragraph of a docstring as one line."""
    doc = inspect.cleandoc(found.__doc__ or "")
    return one_line(doc.split("\n\n")[0])


def one_line(text: str) -> str:
    return " ".join(text.split())


def in_table(text: str) -> str:
    return one_line(text).replace("|", "\\|")


def anchor(title: str) -> str:
    """Return the anchor that GitHub gives a heading."""
    return re.sub(r"[^\w-]", "", title.lower())


def chosen(beginnings: list[str]) -> list[Path]:
    """Return the notebooks whose names begin so, or all but the course's, which hold solutions."""
    found = sorted((ROOT / "notebooks").glob("*/*.ipynb"), key=lambda path: path.name)
    found = [path for path in found if path.parent.name != "course"]
    if not beginnings:
        return found
    return [path for path in found if path.name.startswith(tuple(beginnings))]


def write_page(notebook: Path, quick: bool) -> Path:
    """Execute a notebook on the embedded model and write it as one HTML file.

    Runs are shared by all notebooks of one call, in `FTLAB_RUNS` or a temporary folder.
    """
    from ftlab.experiments import run_notebook

    book = json.loads(notebook.read_text(encoding="utf-8"))
    parameters = book["metadata"]["ftlab"].get("quick", {}) if quick else {}
    runs = os.environ.setdefault("FTLAB_RUNS", tempfile.mkdtemp(prefix="runs"))
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)  # the notebook's own `out` is relative
        try:
            run_notebook(notebook, Path("done.ipynb"), parameters, env={"PYTHONPATH": str(ROOT)})
            note = ""
            if parameters:
                shown = ", ".join(f"`{name} = {value}`" for name, value in parameters.items())
                note = QUICK.format(parameters=shown)
            places = {runs: "runs", folder: ".", str(ROOT): "ftlab"}
            html = page_of(Path("done.ipynb"), notebook.stem, note, places)
        finally:
            os.chdir(before)
    size = len(html.encode())
    if size > MOST_BYTES:
        raise SystemExit(f"{notebook.name}: the page has {size:,} bytes, over {MOST_BYTES:,}")
    PAGES.mkdir(parents=True, exist_ok=True)
    target = PAGES / f"{notebook.stem}.html"
    target.write_text(html, encoding="utf-8")
    return target


def page_of(executed: Path, title: str, note: str, places: dict[str, str]) -> str:
    """Return an executed notebook as a page without machine paths, progress lines and scripts."""
    import nbformat
    from nbconvert import HTMLExporter

    book = nbformat.read(executed, 4)
    book.cells = [cell for cell in book.cells if "injected-parameters" not in tags_of(cell)]
    if note:
        book.cells.insert(1, nbformat.v4.new_markdown_cell(note))
    for cell in book.cells:
        cell.metadata = {}
        if cell.cell_type == "code":
            cell.outputs = [one for one in cell.outputs if one.get("name") != "stderr"]
    book.metadata.pop("papermill", None)
    exporter = HTMLExporter(embed_images=True, mathjax_url="", require_js_url="")
    html, _ = exporter.from_notebook_node(book, {"metadata": {"name": title}})
    for place, shown in places.items():
        html = html.replace(place, shown)
    return with_shared_style(html)


def with_shared_style(html: str) -> str:
    """Return a page without scripts, which takes its style from `page.css` beside it."""
    html = NOT_SHOWN.sub("", html)
    return html.replace("</head>", f"{STYLE}\n</head>", 1)


def tags_of(cell: Any) -> list[str]:
    return cell.metadata.get("tags", [])


if __name__ == "__main__":
    main()
