"""Answers before beside answers after, prompt by prompt, with their verdicts. Cell: answers."""

from __future__ import annotations

from pandas import DataFrame

from ftlab._core.errors import UsageError
from ftlab._core.shown import Shown, as_html
from ftlab.analysis.short_tables import Table
from ftlab.analysis.verdicts import Names, Source, of_judge, prepare, select, steps_of
from ftlab.runs import Run

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
        after: The child's evaluation; or another curve, of which the same step is taken.
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
        UsageError: as `rates`; `no_texts` where a table was given and texts are wanted.
    """
    wanted = {"risk": risk, "attack": attack}
    table = of_judge(prepare(before), judge)
    old = select(table, **wanted)
    first = old["step"].min()
    new = old
    source = before
    if after is not None:
        judge = judge or old["judge"].iloc[0]
        table = of_judge(prepare(after), judge)
        new = select(table, **wanted)
        source = after
    last = steps_of(new, [step])[0]
    if after is not None and old["step"].nunique() > 1:  # two curves
        first = steps_of(old, [last])[0]
    found = _side(old, before, first, "before", text)
    if after is not None or last > 0:
        later = _side(new, source, last, "after", text)
        found = _joined(found, later)
    first = [
        *("changed", "risk", "attack", "sample_id", "examples", "seed"),
        *("before", "after", "question", "text_before", "text_after"),
    ]
    columns = [name for name in first if name in found]
    return Answers(found[columns].reset_index(drop=True))


def _joined(old: DataFrame, new: DataFrame) -> DataFrame:
    """Put the verdicts after beside those before, the changed ones first."""
    new = new.drop(columns="question", errors="ignore")
    if old["seed"].nunique() == 1:  # a parent answers once for all seeds
        old = old.drop(columns="seed")
    found = old.merge(new)  # on the columns that both have
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
        questions, texts = _texts(source)
        asked = rows["sample_id"] + " " + rows["attack"]
        answered = rows["answer_key"]
        found["question"] = asked.map(questions).fillna("")
        found[f"text_{side}"] = answered.map(texts).fillna("")
    return found


def _texts(source: Source) -> list[dict[str, str]]:
    """Return the last message by prompt, and the answers by key."""
    if not isinstance(source, Run):
        raise UsageError("no_texts", "A table holds no texts. Pass the run itself.")
    questions = {}
    texts = {}
    for member in source.members:
        for row in member.read("answers.jsonl"):
            texts[row["key"]] = row["text"]
        for row in member.read("prompts.jsonl"):
            sample = row["sample"]["id"]
            attack = row["attack"]
            last = row["messages"][-1]
            questions[f"{sample} {attack}"] = last["content"]
    return [questions, texts]
