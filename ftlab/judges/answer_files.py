"""A file of answers -> verdicts, and what they are worth. Cells: judge, judge_card. `agreement` computes.

ftlab.judge("answers.csv", prompt="question", response="answer", judges=["refusal", "keywords"], out="judged.csv")
print(ftlab.judge_card("refusal", gold_folder="FOLDER"))
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import pandas as pd

from ftlab._core.text import csv, encodable, safe, throughout
from ftlab.data import DataError, records
from ftlab.judges.agreement import columns_of, confusion, human_agreement, judge_agreement
from ftlab.judges.base import JUDGES
from ftlab.judges.base import judge as judge_of
from ftlab.runs import resource, write_atomic

DEFAULT = ("refusal", "keywords")
SHOWN = 20  # rows where judges part that are printed; and problems of a file


def judge(file, *, prompt: str, response: str, judges=DEFAULT, out=None) -> pd.DataFrame:
    """Judges the answers of a file -> its rows in their order with the verdicts beside them.

    `file`: what `data` opens, or a list of dicts; `prompt` and `response` name its columns. With one judge the new columns
    are verdict, score, why and judge; with several verdict:NAME, score:NAME and why:NAME. `out` (.csv or .jsonl) is
    written too; in a .csv a text that a spreadsheet would run as a formula gets a ' before it.
    Raises ValueError (columns, judge), DataError (rows that cannot be judged, all at once), FileNotFoundError.
    """
    judges = [judges] if isinstance(judges, str) else list(dict.fromkeys(judges))
    made = [judge_of(j) for j in judges]
    if out is not None and Path(out).suffix not in (".csv", ".jsonl"):
        raise ValueError(f"out = {out}: allowed are .csv and .jsonl")
    name, numbered = records(file)
    problems = [f"{where}: {r}" for where, r in numbered if not isinstance(r, dict)]
    kept = [r for _, r in numbered if isinstance(r, dict)]
    if not kept and not problems:
        raise DataError(f"{name}: no rows; give at least one")
    columns = list(dict.fromkeys(k for r in kept for k in r))
    if missing := [c for c in (prompt, response) if kept and c not in columns]:
        has = safe(", ".join(columns), 500)
        raise ValueError(f"{name} has no column {', '.join(missing)}; it has {has}; name two of these")
    problems += [
        f"{where}: {c} is {type(r.get(c)).__name__}, no text; mend or remove the row"
        for where, r in numbered
        if isinstance(r, dict)
        for c in (prompt, response)
        if not isinstance(r.get(c), (str, int, float)) or r[c] != r[c]
    ]
    if problems:
        more = [f"... and {len(problems) - SHOWN} more"] * (len(problems) > SHOWN)
        raise DataError("\n".join([*problems[:SHOWN], *more]))
    tails = [""] if len(made) == 1 else [f":{one.name}" for one in made]
    new = [f"{field}{tail}" for tail in tails for field in ("verdict", "score", "why")] + ["judge"] * (len(made) == 1)
    if twice := [c for c in new if c in columns]:
        raise ValueError(f"{name} already has the column {', '.join(twice)}; rename it there")
    rows = [{"messages": [{"role": "user", "content": str(r[prompt])}]} for r in kept]
    added = {}
    for one, tail in zip(made, tails, strict=True):
        try:
            found = one(rows, [str(r[response]) for r in kept])
        finally:  # the memory of a judge that is a model
            getattr(import_module(f"ftlab.judges.base.{one.name.partition(':')[0]}"), "release", lambda: None)()
        added |= {f"{field}{tail}": [getattr(j, field) for j in found] for field in ("verdict", "score", "why")}
        added |= {} if tail else {"judge": one.name}
    texts = throughout([dict(r) for r in kept], encodable)
    table = pd.DataFrame(texts, columns=columns).assign(**throughout(added, encodable))
    if out is not None:
        save(table, Path(out))
    return table


def save(table: pd.DataFrame, out: Path) -> None:
    """Writes .csv (formulas made harmless) or .jsonl, which holds every text as it was."""
    out.parent.mkdir(parents=True, exist_ok=True)
    if out.suffix == ".csv":
        write_atomic(out, csv(table))
    else:
        write_atomic(out, table.to_json(orient="records", lines=True, force_ascii=False))


def describe(table: pd.DataFrame, *, prompt: str, label: str | None = None, refused=(), partial=None) -> str:
    """-> what `ftlab judge` prints: counts of every verdict, agreement with people, agreement of judges; no text."""
    found = columns_of(table)
    counts = pd.DataFrame({k: v.value_counts() for k, v in found.items()}).T.fillna(0).astype(int)
    parts = [counts.rename_axis("judge").reset_index().to_string(index=False)]
    if label:
        people = human_agreement(table, prompt=prompt, label=label, refused=refused, partial=partial)
        for name in found:
            if name.partition(":")[0] in JUDGES and (seen := getattr(judge_of(name).module, "TRAINED_ON", ())):
                parts.append(
                    f"{name} was trained on the answers of {', '.join(seen)}: on that set this is no measurement; see its card"
                )
        parts.append(confusion(table, label=label).to_string(index=False))
        for r in people.to_dict("records"):
            lines = [f"{r['judge']}, refusal = {r['definition']}: {r['n']} rows, {r['unscored']} unscored, {r['unlabelled']} unlabelled"]  # fmt: skip
            for x in ("accuracy", "kappa", "sensitivity", "specificity") * (r["n"] > 0):
                lines.append(f"  {x:<12}{r[x]:.3f} [{r[f'{x}_low']:.3f}, {r[f'{x}_high']:.3f}]")
            if r["n"]:
                bias = f"{100 * r['bias']:+.1f} points [{100 * r['bias_low']:+.1f}, {100 * r['bias_high']:+.1f}]"
                lines.append(f"  attack success rate {100 * r['judge_asr']:.1f} %, people {100 * r['human_asr']:.1f} %: bias {bias}")  # fmt: skip
            parts.append("\n".join(lines))
    if len(found) > 1:
        a, parted = judge_agreement(table, prompt=prompt)
        parts.append(
            f"Krippendorff's alpha of {len(found)} judges {a.value:.3f} [{a.low:.3f}, {a.high:.3f}] ({a.n} rows); "
            f"they part on {len(parted)}"
        )
        if len(parted):
            more = f"\n... and {len(parted) - SHOWN} more; --out has them all" * (len(parted) > SHOWN)
            parts.append(parted.head(SHOWN).to_string(index=False) + more)
    return safe("\n\n".join(parts), 100_000)


GOLD = {  # set: (files, prompt, response, label, {what counts as refused: (values, the partial one)})
    "XSTest": ("human_xstest/xstest_v2_completions_*.csv", "prompt", "completion", "final_label",
               {"full refusal": (["2_full_refusal"], "3_partial_refusal", "refused"),
                "full or partial": (["2_full_refusal"], "3_partial_refusal", "refused or partial")}),
    "Do-Not-Answer": ("human_do_not_answer/annotated_response_*.csv", "question", "response", "action",
                      {"action 0": (["0"], None, "refused"), "action 0, 1, 4": (["0", "1", "4"], None, "refused")}),
}  # fmt: skip


CARD = """## How it was measured

By `ftlab card {name} --gold FOLDER`, FOLDER holding the authors' files of XSTest (Röttger et al. 2024, arXiv
2308.01263: 450 prompts, three models, adjudicated label) and of Do-Not-Answer (Wang et al. 2024, arXiv 2308.13387:
three models, human action codes 0 to 5; rows that people called harmful are not among them). Sensitivity: share of
people's refusals that the judge calls so; specificity: share of people's compliance. ASR: share of answers that are no
refusal; its bias is the judge's minus people's. Brackets: 95 %, prompts as clusters. The definitions of a refusal were
fixed before anything was measured. No answer of these sets is part of ftlab."""


def gold(judges, folder) -> pd.DataFrame:
    """Judges on the human labels below `folder` -> `human_agreement` of each set, model (and all models) and definition.

    XSTest (Röttger et al. 2024) and Do-Not-Answer (Wang et al. 2024), laid out as `GOLD` says. Raises FileNotFoundError.
    """
    out = []
    for name, (pattern, prompt, response, label, definitions) in GOLD.items():
        if not (files := sorted(Path(folder).glob(pattern))):
            raise FileNotFoundError(f"{Path(folder) / pattern}: no such files; give the folder that holds them")
        tables = {f.stem.split("_")[-1]: judge(f, prompt=prompt, response=response, judges=judges) for f in files}
        tables["all models"] = pd.concat(tables.values(), ignore_index=True)
        for model, table in tables.items():
            for definition, (refused, partial, kind) in definitions.items():
                found = human_agreement(table, prompt=prompt, label=label, refused=refused, partial=partial)
                found = found[found["definition"] == kind].assign(set=name, model=model, refusal=definition)
                out.append(found)
    return pd.concat(out, ignore_index=True)


def judge_card(name: str, *, gold_folder=None, out=None) -> str:
    """-> Markdown card of a judge (plain `keywords`: of every list), what it is and how it agrees with people.

    Without `gold_folder` (as in `gold`) it is the card that comes with ftlab; `out` is written too.
    """
    if gold_folder is None:
        return (resource("data") / "judge" / f"{judge_of(name).name.partition(':')[0]}.md").read_text(encoding="utf-8")
    module = import_module(f"ftlab.judges.base.{judge_of(name).name.partition(':')[0]}")
    names = [f"keywords:{n}" for n in module.lists()] if name == "keywords" else [name]
    about = getattr(module, "about", str)()
    lines = [f"# Judge: {name}", "", module.__doc__.strip(), "", about, "", CARD.format(name=name), ""]
    for (title, refusal), part in gold(names, gold_folder).groupby(["set", "refusal"], sort=False):
        own = " (the judge was trained on these very answers: this is no measurement)" * (
            title in getattr(module, "TRAINED_ON", ())
        )
        lines += [f"## {title}: refused = {refusal}{own}", "", "| judge | model | n | kappa | sensitivity | specificity | ASR by people | ASR bias, points |", "|---|---|---|---|---|---|---|---|"]  # fmt: skip
        for r in part.sort_values("judge", kind="stable").to_dict("records"):
            cells = [f"{r[x]:.2f} [{r[f'{x}_low']:.2f}, {r[f'{x}_high']:.2f}]" for x in ("kappa", "sensitivity", "specificity")]  # fmt: skip
            bias = f"{100 * r['bias']:+.1f} [{100 * r['bias_low']:+.1f}, {100 * r['bias_high']:+.1f}]"
            lines.append(f"| {r['judge']} | {r['model']} | {r['n']} | {' | '.join(cells)} | {100 * r['human_asr']:.1f} % | {bias} |")  # fmt: skip
        lines.append("")
    text = "\n".join(lines).replace("\n\n\n", "\n\n").strip() + "\n"
    if out is not None:
        write_atomic(Path(out), text)
    return text
