"""Cards of judges: what a judge is, and how far it agrees with people."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from ftlab._core.errors import NotFoundError, UsageError
from ftlab._core.files import check_page, resource, write_page
from ftlab.data import records
from ftlab.judges.agreement import human_agreement
from ftlab.judges.answer_files import score_file
from ftlab.judges.base import Judge, judge_class, open_judge
from ftlab.judges.keywords import lists

CARDS = resource("data") / "judge"
ALL = "all models"


@dataclass(frozen=True)
class GoldSet:
    """A data set of answers with human labels.

    Args:
        name: Its name.
        files: Pattern of its files, one per model.
        prompt: Column of the questions.
        response: Column of the answers.
        label: Column of the labels.
        refusals: Name of each definition of a refusal: labels that mean one, the label of a
            partial one, and the definition of `human_agreement`.
    """

    name: str
    files: str
    prompt: str
    response: str
    label: str
    refusals: dict[str, tuple[tuple[str, ...], str | None, str]]


GOLD = (
    GoldSet(
        "XSTest",
        "human_xstest/xstest_v2_completions_*.csv",
        "prompt",
        "completion",
        "final_label",
        {
            "full refusal": (("2_full_refusal",), "3_partial_refusal", "refused"),
            "full or partial": (("2_full_refusal",), "3_partial_refusal", "refused or partial"),
        },
    ),
    GoldSet(
        "Do-Not-Answer",
        "human_do_not_answer/annotated_response_*.csv",
        "question",
        "response",
        "action",
        {
            "action 0": (("0",), None, "refused"),
            "action 0, 1, 4": (("0", "1", "4"), None, "refused"),
        },
    ),
)
HOW = """## How it was measured

`ftlab judge-card {judge} --gold-folder FOLDER` wrote this page, with FOLDER holding the authors'
files of XSTest (Röttger et al. 2024, arXiv 2308.01263: 450 prompts, three models, adjudicated
label) and of Do-Not-Answer (Wang et al. 2024, arXiv 2308.13387: three models, human action codes 0
to 5; answers labelled harmful are not among them). Sensitivity: share of human-labelled refusals
that the judge finds; specificity: the same for compliance. ASR: share of answers that are no
refusal; its bias is the judge's minus the human one. Brackets: 95 % intervals with prompts as
clusters. The definitions of a refusal were fixed before anything was measured. No answer of these
sets is part of ftlab."""
HEAD = """
| judge | model | n | kappa | sensitivity | specificity | ASR by people | ASR bias, points |
|---|---|---|---|---|---|---|---|"""


def judge_card(
    judge: str | Judge, *, gold_folder: str | Path | None = None, out: str | Path | None = None
) -> str:
    """Return the Markdown card of a judge.

    Args:
        judge: A judge or its public name; "keywords" stands for every keyword list.
        gold_folder: Folder with the files of XSTest and Do-Not-Answer, on which the judge is then
            measured. Without it, the card that comes with ftlab.
        out: File for the card, NAME.md. Of a judge that is measured the table of
            `agreement_of_card` is written beside it as NAME.csv.

    Raises:
        UsageError: `wrong_ending`, `output_not_writable`.
        NotFoundError: `gold_not_found`.
    """
    spec = open_judge(judge).spec
    kind = judge_class(spec)
    path = check_page(out)
    if path is not None and path.suffix != ".md":  # its table would be written over it
        raise UsageError("wrong_ending", f"A card is written as .md, and out is {path.name}.")
    if gold_folder is None:
        text = f"# Judge: {spec}\n\n{kind.about()}\n"
        shipped = CARDS / f"{kind.name}.md"
        if shipped.is_file():
            text = shipped.read_text(encoding="utf-8")
        if path is not None:
            write_page(path, text)
        return text
    judges = [f"keywords:{name}" for name in lists()] if spec == "keywords" else [judge]
    table = gold_agreement(judges, gold_folder)
    parts = [f"# Judge: {spec}", kind.about(), HOW.format(judge=spec)]
    for (name, refusal), part in table.groupby(["set", "refusal"], sort=False):
        title = f"## {name}: refused = {refusal}"
        if name in kind.trained_on:
            title += " (the judge was trained on these answers: this is no evidence)"
        ordered = part.sort_values("judge", kind="stable").to_dict("records")
        rows = map(_row, ordered)
        parts.append("\n".join([title, HEAD, *rows]))
    text = "\n\n".join(parts) + "\n"
    if path is not None:
        write_page(path, text)
        write_page(path.with_suffix(".csv"), table.round(6).to_csv(index=False))
    return text


def agreement_of_card(judge: str | Judge) -> pd.DataFrame:
    """Return the measured agreement behind the card that comes with ftlab.

    Args:
        judge: A judge or its public name; "keywords" stands for every keyword list.

    Returns:
        `human_agreement` per data set, model (and "all models") and definition of a refusal.

    Raises:
        NotFoundError: `judge_not_measured`.
    """
    spec = open_judge(judge).spec
    file = CARDS / f"{judge_class(spec).name}.csv"
    if not file.is_file():
        message = f"{spec} was not measured. Measure it with judge_card(gold_folder=...)."
        raise NotFoundError("judge_not_measured", message)
    table = pd.read_csv(file)
    chosen = table["judge"] == spec
    return table[chosen].reset_index(drop=True) if chosen.any() else table


def gold_agreement(judges: list[str | Judge], folder: str | Path) -> pd.DataFrame:
    """Compare judges with the human labels of XSTest and Do-Not-Answer.

    Args:
        judges: Judges or their public names.
        folder: Folder with `human_xstest` and `human_do_not_answer`.

    Returns:
        `human_agreement` per data set, model (and "all models") and definition of a refusal.

    Raises:
        NotFoundError: `gold_not_found`.
    """
    parts = []
    for gold in GOLD:
        rows = gold_rows(gold, folder)
        table = score_file(rows, prompt=gold.prompt, response=gold.response, judges=judges)
        parts += agreement_by_model(table, gold)
    return pd.concat(parts, ignore_index=True)


def gold_rows(gold: GoldSet, folder: str | Path) -> list[dict]:
    """Return the rows of a gold set's files, each with its `model`."""
    files = sorted(Path(folder).glob(gold.files))
    if not files:
        raise NotFoundError("gold_not_found", f"No files {Path(folder) / gold.files}.")
    rows = []
    for file in files:
        model = file.stem.split("_")[-1]
        rows += [{**row, "model": model} for _, row in records(file)[1]]
    return rows


def agreement_by_model(table: pd.DataFrame, gold: GoldSet) -> list[pd.DataFrame]:
    """Return `human_agreement` of a scored gold set per model and definition of a refusal."""
    parts = []
    for model in [*table["model"].unique(), ALL]:
        chosen = table if model == ALL else table[table["model"] == model]
        for refusal, (refused, partial, definition) in gold.refusals.items():
            found = human_agreement(
                chosen, label=gold.label, refused=refused, partial=partial, cluster=gold.prompt
            )
            alone = ~found["judge"].duplicated(keep=False)  # it knows no partial refusal
            found = found[alone | (found["definition"] == definition)]
            parts.append(found.assign(set=gold.name, model=model, refusal=refusal))
    return parts


def _row(row: dict) -> str:
    cells = [row["judge"], row["model"], row["n"]]
    for name in ("kappa", "sensitivity", "specificity"):
        low, high = row[f"{name}_low"], row[f"{name}_high"]
        cells.append(f"{row[name]:.2f} [{low:.2f}, {high:.2f}]")
    bias, low, high = (100 * row[name] for name in ("bias", "bias_low", "bias_high"))
    cells.append(f"{100 * row['human_asr']:.1f} %")
    cells.append(f"{bias:+.1f} [{low:+.1f}, {high:+.1f}]")
    return f"| {' | '.join(map(str, cells))} |"
