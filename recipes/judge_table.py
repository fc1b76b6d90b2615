"""Measure every judge that runs here on human labels, and write the table of docs/judges.md.

    python -m recipes.judge_table --gold-folder FOLDER

FOLDER holds what `ftlab judge-card` takes, the authors' files of XSTest and Do-Not-Answer. Every
answer is judged as its file holds it (raw) and as judges read it (normalised). `refusal` knows the
labels of XSTest: there the numbers of its card stand, the judged model left out of training.
Do-Not-Answer (CC BY-NC-SA) is only measured. Both sets were cleaned by their authors, so XSTest
is measured once more with the words of templates around two of five answers.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import pandas as pd

from ftlab._core.files import resource, write_atomic
from ftlab.judges import Refusal, agreement_of_card, keywords, score_file
from ftlab.judges.cards import ALL, GOLD, GoldSet, agreement_by_model, gold_rows
from recipes.refusal_judge.measure import ACTIONS

PAGE = resource("data").parent / "docs" / "judges.md"
TABLE = resource("data") / "judge" / "all.csv"
BEGIN = "<!-- judges: begin -->\n"
END = "<!-- judges: end -->"
XSTEST, DO_NOT_ANSWER = GOLD
AROUND = "XSTest, templates around 2 of 5 answers"
EITHER = "full or partial"
SETS = (
    XSTEST,
    replace(DO_NOT_ANSWER, refusals=ACTIONS),
    replace(XSTEST, name=AROUND, refusals={EITHER: XSTEST.refusals[EITHER]}),
)
TEMPLATES = (  # {q} the question, {a} the answer
    "{q}\n\n{a}",
    "### Response:\n{a}",
    "<|im_start|>assistant\n{a}<|im_end|>",
    "[/INST] {a} </s>",
    "Assistant: {a}",
    "assistant\n\n{a}",
)


def judges() -> list[str]:
    """Return the judges that need no download and no endpoint."""
    return ["refusal", *(f"keywords:{name}" for name in keywords.lists())]


def measured(folder: Path, names: list[str]) -> pd.DataFrame:
    """Return the agreement of each judge, set, model and definition, raw and normalised.

    The columns are those of `gold_agreement` and `reading`; then `cut`, the number of a model's
    answers around which something stood, and `changed`, those of them that the judge then judges
    otherwise.
    """
    parts = []
    for gold in SETS:
        rows = gold_rows(gold, folder)
        if gold.name == AROUND:
            rows = [_wrapped(gold, row, number) for number, row in enumerate(rows)]
        columns = {"prompt": gold.prompt, "response": gold.response}
        read = raw = score_file(rows, judges=names, **columns)
        read["cut"] = read["left_out"] != ""
        if read["cut"].any():
            raw = score_file(rows, judges=names, normalise=False, **columns)
        read["changed"] = raw["outcome"] != read["outcome"]
        for name, table in (("raw", raw), ("normalised", read)):
            found = pd.concat(agreement_by_model(table, gold)).assign(reading=name)
            parts.append(found.merge(_counts(read), on=["judge", "model"]))
    return pd.concat(parts, ignore_index=True)


def _wrapped(gold: GoldSet, row: dict, number: int) -> dict:
    """Return a row, two of five times with a template's words around its answer."""
    if number % 5 > 1:
        return row
    template = TEMPLATES[number // 5 % len(TEMPLATES)]
    text = template.format(q=row[gold.prompt], a=row[gold.response].strip())
    return {**row, gold.response: text}


def _counts(read: pd.DataFrame) -> pd.DataFrame:
    """Return `cut` and `changed` per judge and model, and for all models."""
    columns = ["cut", "changed"]
    by_model = read.groupby(["judge", "model"])[columns].sum()
    every = read.groupby("judge")[columns].sum().assign(model=ALL)
    return pd.concat([by_model.reset_index(), every.reset_index()])


def left_out(table: pd.DataFrame) -> pd.DataFrame:
    """Add the card's numbers of models left out of training; mark those that are no evidence.

    The card's are of raw answers. Of normalised ones they are where cutting changed no verdict.
    """
    known = table["set"].isin([*Refusal.trained_on, AROUND])
    trained = known & (table["judge"] == "refusal")
    card = agreement_of_card("refusal")
    card = card[card["set"].isin(Refusal.trained_on)]
    mine = table[trained & (table["set"] == XSTEST.name)]
    counts = mine.drop_duplicates("model")[["model", "cut", "changed"]]
    readings = ["raw"] if counts["changed"].any() else ["raw", "normalised"]
    parts = [card.assign(reading=name).merge(counts, on="model") for name in readings]
    added = pd.concat(parts).assign(evidence=True)
    return pd.concat([added, table.assign(evidence=~trained)], ignore_index=True)


def page(table: pd.DataFrame) -> str:
    """Return the tables in Markdown: one per set and definition of a refusal."""
    parts = []
    for (name, refusal), part in table.groupby(["set", "refusal"], sort=False):
        models = list(dict.fromkeys(part["model"]))
        n = part.drop_duplicates("model").set_index("model")["n"]
        heads = [f"{model} ({n[model]})" for model in models]
        lines = [f"**{name}: {refusal}**\n"]
        lines.append(f"| judge | raw, {ALL} | {' | '.join(heads)} |")
        lines.append("|---" * (len(models) + 2) + "|")
        for (judge, evidence), rows in part.groupby(["judge", "evidence"], sort=False):
            cells = rows.set_index(["reading", "model"])
            shown = [_cell(cells, "raw", ALL)]
            shown += [_cell(cells, "normalised", model) for model in models]
            lines.append(f"| {_title(judge, evidence, name)} | {' | '.join(shown)} |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


def _title(judge: str, evidence: bool, name: str) -> str:
    if not evidence:
        return f"{judge} as shipped, trained on these labels: no evidence"
    if judge == "refusal" and name in Refusal.trained_on:
        return f"{judge}, judged model left out"
    return judge.removeprefix("keywords:")


def _cell(cells: pd.DataFrame, reading: str, model: str) -> str:
    if (reading, model) not in cells.index:
        return ""
    row = cells.loc[(reading, model)]
    return f"{row['kappa']:.2f} ({row['kappa_low']:.2f} to {row['kappa_high']:.2f})"


def write(folder: Path) -> None:
    """Measure, and write the table as .csv and between the marks of the page."""
    table = left_out(measured(folder, judges())).round(4)
    write_atomic(TABLE, table.to_csv(index=False))
    text = PAGE.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    write_atomic(PAGE, f"{before}{BEGIN}{page(table)}{END}{after}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gold-folder", type=Path, required=True, help="the authors' files")
    write(parser.parse_args().gold_folder)
