"""Answers before beside answers after, prompt by prompt, with their verdicts. Cell: answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pandas import DataFrame

from ftlab._core.config import takes
from ftlab._core.errors import UsageError
from ftlab._core.shown import Shown, as_html
from ftlab._core.text import encodable
from ftlab.analysis.short_tables import Table
from ftlab.analysis.verdicts import Names, Source, of_judge, prepare, select, steps_of
from ftlab.runs import Run, load

SIDES = ("before", "after")
# What tells the answers of a run apart, beside the step.
PLACE = ("risk", "attack", "sample_id", "examples", "seed", "repeat")


class Answers(Shown):
    """Verdicts on the same prompts before and after; in Jupyter in colour, with a filter."""

    def _repr_html_(self) -> str:
        shown = self.copy()
        if "changed" in shown:
            words = {True: "changed", False: "same"}
            shown["changed"] = shown["changed"].map(words)
        return as_html(shown, SIDES, filtered=True)


class Comparison(Table):
    """A table of `compare`, which knows what was compared."""

    _metadata = ("_sides",)

    def answers(self, **options) -> Answers:
        """Return the answers behind the comparison: see `ftlab.analysis.answers`."""
        before, after = self._sides
        return answers(before, after, **options)


@takes()
def answers(  # noqa: PLR0913
    before: Source,
    after: Source | None = None,
    *,
    step: int = -1,
    risk: Names | None = None,
    attack: Names | None = None,
    judge: str | None = None,
    text: bool = False,
) -> Answers:
    """Show the verdict on every prompt before and after, the changed ones first.

    Args:
        before: A curve, whose step 0 is compared with a later one, or an evaluation.
        after: The child's evaluation; or another curve, of which the same step is taken, over
            the training seeds that both have.
        step: Step of a curve that is taken as after; -1 is the last.
        risk: Only this risk, or these.
        attack: Only this attack, or these.
        judge: Whose verdicts count; by default the first judge's.
        text: Also show the questions and answers. They are the model's words, escaped.

    Returns:
        One row per prompt and training seed: changed, risk, attack, sample_id, seed, before and
        after (outcomes); with `text` also question, text_before and text_after. Of a single
        evaluation `changed` and `after` are left out.

    Raises:
        UsageError: as `rates`; `prompts_differ`; `no_texts` where a table was given and texts are
            wanted.
    """
    wanted = {"risk": risk, "attack": attack}
    table = of_judge(prepare(before), judge)
    old = select(table, **wanted)
    first = old["step"].min()
    new = old
    source = before
    two_curves = False
    if after is not None:
        judge = judge or old["judge"].iloc[0]
        table = of_judge(prepare(after), judge)
        new = select(table, **wanted)
        source = after
        refuse_other_texts((before, after), (old, new))
        two_curves = old["step"].nunique() > 1 < new["step"].nunique()
        same = ["item"]
        if two_curves or first > 0:
            same.append("seed")
        old, new = shared(old, new, same)
    last = _step(new, step)
    if two_curves:
        first = _step(old, last)
    found = _side(old, before, first, "before", text)
    if after is not None or last > 0:
        later = _side(new, source, last, "after", text)
        if first == 0 and not two_curves:
            found = _once(found)
        found = _joined(found, later)
    first = [
        *("changed", "risk", "attack", "sample_id", "examples", "seed"),
        *("before", "after", "question", "text_before", "text_after"),
    ]
    columns = [name for name in first if name in found]
    return Answers(found[columns].reset_index(drop=True))


def shared(one: DataFrame, other: DataFrame, columns: Sequence[str]) -> list[DataFrame]:
    """Return the rows of two tables about the prompts (item) and training seeds that both have."""
    for column in columns:
        in_other = one[column].isin(other[column])
        one = one[in_other]
        in_one = other[column].isin(one[column])
        other = other[in_one]
    if one.empty:
        raise UsageError(
            "prompts_differ",
            "The two share no prompt and training seed. Make both with the same settings.",
        )
    return [one, other]


def refuse_other_texts(sources: Sequence[Any], tables: Sequence[DataFrame]) -> None:
    """Raise `prompts_differ` where two runs asked other questions under the ids of the tables."""
    if not all(isinstance(source, Run) for source in sources):
        return
    one, other = map(_asked, sources)
    differing = set()
    for name in tables[0]["sample_id"].unique():
        if name in one and name in other and one[name] != other[name]:
            differing.add(name)
    differing = sorted(differing.intersection(tables[1]["sample_id"]))
    if differing:
        raise UsageError(
            "prompts_differ",
            f"The two were asked other questions under the same names: {len(differing)}, such as "
            f"{differing[0]}. Evaluate both with the same prompts.",
            ids=differing,
        )


def _asked(run: Run) -> dict[str, Any]:
    """Return the questions of a run by id, as they stood before any attack."""
    found = {}
    for member in run.members:
        for row in member.read("prompts.jsonl"):
            sample = row.get("sample", row)
            if "question" not in sample:  # with which older layouts mark what an attack changed
                name = sample.get("id")
                choices = sample.get("choices") or []
                found[name] = (sample.get("messages"), choices)
    return found


def _step(table: DataFrame, step: int) -> int:
    """Return a step that every seed of a table reached; -1 for the last."""
    found = steps_of(table, [step])
    if not found:
        raise UsageError("step_not_measured", f"Not every training seed reached step {step}.")
    return found[0]


def _once(parent: DataFrame) -> DataFrame:
    """Return the answers of a parent, who answers once for all training seeds."""
    seed = parent["seed"].min()
    parent = parent[parent["seed"] == seed]
    return parent.drop(columns="seed")


def _joined(old: DataFrame, new: DataFrame) -> DataFrame:
    """Put the verdicts after beside those before, the changed ones first."""
    new = new.drop(columns="question", errors="ignore")
    found = new.merge(old)  # on the columns that both have
    found["changed"] = found["before"] != found["after"]
    return found.sort_values("changed", ascending=False, kind="stable")


def _side(
    table: DataFrame,
    source: Source,
    step: int,
    side: str,
    text: bool,
) -> DataFrame:
    """Return the verdicts at a step, the outcome in a column named after the side."""
    rows = table[table["step"] == step].rename(columns={"outcome": side})
    columns = [name for name in PLACE if name in rows]
    columns.append(side)
    found = rows[columns].copy()
    if text:
        questions, texts = texts_of(source)
        asked = rows["sample_id"] + " " + rows["attack"]
        answered = rows["answer_key"]
        found["question"] = asked.map(questions).fillna("")
        found[f"text_{side}"] = answered.map(texts).fillna("")
    return found


def texts_of(source: Source) -> tuple[dict[str, str], dict[str, str]]:
    """Return the last message by "sample_id attack", and the answers by key.

    Args:
        source: A run, or its name.

    Raises:
        UsageError: `no_texts` where it is a table.
    """
    if isinstance(source, str):
        source = load(source)
    if not isinstance(source, Run):
        raise UsageError("no_texts", "A table holds no texts. Pass the run itself.")
    questions = {}
    texts = {}
    for member in source.members:
        for row in member.read("answers.jsonl"):
            texts[row["key"]] = encodable(row["text"])
        for row in member.read("prompts.jsonl"):
            sample = row["sample"]["id"]
            attack = row["attack"]
            last = row["messages"][-1]
            questions[f"{sample} {attack}"] = encodable(last["content"])
    return questions, texts
