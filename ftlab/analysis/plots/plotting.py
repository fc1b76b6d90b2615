"""Draw a run or a table: recognise what it is, check it, draw it, save it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ftlab._core.errors import DataError, UsageError
from ftlab.analysis.plots import bars, outcomes, ratio
from ftlab.analysis.plots import lines as line_plots
from ftlab.analysis.plots._axes import clean, plain
from ftlab.analysis.plots._drawing import Drawing, style
from ftlab.analysis.plots._kinds import Columns, Kind
from ftlab.runs import Run

if TYPE_CHECKING:
    from pandas import DataFrame

ALL = (
    line_plots.DOSE,
    line_plots.CURVE,
    ratio.KIND,
    outcomes.KIND,
    bars.KIND,
    line_plots.JUDGES,
)
KINDS = {kind.name: kind for kind in ALL}  # a table gets the first whose columns it has
POSITIONS = ("step", "examples", "epoch")
BESIDE_OUTCOMES = ("over_refusal", "utility")  # is the model still of use?
SHARES = ("rate", "low", "high", "share")


def plot(  # noqa: PLR0913
    source: Run | DataFrame,
    name: str | None = None,
    out: str | Path | None = None,
    *,
    kind: str | Kind | None = None,
    title: str = "",
    caption: str | None = None,
    seeds: DataFrame | None = None,
    lines: DataFrame | None = None,
    target: float | str | None = None,
) -> Drawing:
    """Draw a run, or a table of rates, comparisons, outcomes or judges.

    By default a curve is drawn as its rates with the single seeds, and harmful fine-tuning as its
    jailbreaks by dose. Of a curve, `kind` may also be "ratio" (as of `compare`) or "outcomes"
    (what became of the jailbreak prompts, with over-refusal and utility below). Rates and shares
    are fractions from 0 to 1, shown in percent.

    Args:
        source: A run, or a table.
        name: Name of the files; by default the kind.
        out: Folder for NAME.svg, .png, .csv (the table as given) and .txt (the caption).
        kind: curve, ratio, outcomes, dose, bars, judges, or your own `Kind`; by default what the
            table's columns fit.
        title: Title above the figure.
        caption: Description; by default title, kind and note.
        seeds: For a curve: step, risk, seed, rate, as of `rates(per_seed=True)`.
        lines: For outcomes: step, risk, rate, low, high, in a panel below.
        target: For ratios: a published ratio, or the name of a published figure.

    Returns:
        A `Drawing`, which shows itself in Jupyter.

    Raises:
        UsageError: `not_a_table`, `unknown_kind`, `kind_not_recognised`, `wrong_file_name`,
            `extra_not_drawn`, `missing_columns`, `wrong_outcomes`, `figure_too_tall`.
        DataError: `cannot_be_drawn`, with every problem.
    """
    if isinstance(source, Run):
        source, found = _tables_of(source, kind)
        seeds = found.get("seeds", seeds)
        lines = found.get("lines", lines)
    look = _kind_of(source, kind)
    name = name or look.name
    if Path(name).name != name or name.startswith("."):
        raise UsageError("wrong_file_name", f"{name!r} is not a file name. Use out= for a folder.")
    table = look.prepare(source) if look.prepare else source
    drawn = {look.name: _checked(table, look.keys, look.values, look.defaults)}
    saved = {name: source}
    extras: dict[str, Any] = {"seeds": seeds, "lines": lines}
    for key, extra in extras.items():
        if extra is None or extra.empty:
            continue
        if key not in look.extras:
            raise UsageError("extra_not_drawn", f"A {look.name} figure does not take {key}=.")
        saved[f"{name}_{key}"] = extra
        drawn[key] = _checked(extra, *look.extras[key], {})
    if target is not None and "target" in look.extras:
        drawn["target"] = _value_of(target)
    note = _note(table, "seeds" in drawn)
    if caption is None:
        sentences = [text.rstrip(".") for text in (title, look.about, note) if text]
        caption = " ".join(f"{text[:1].upper()}{text[1:]}." for text in sentences)
    with style():
        figure = look.draw(drawn.pop(look.name), **drawn)
        figure.suptitle(plain(title, 240, width=78), x=0.012, ha="left")
        figure.supxlabel(plain(note, 300, width=118), x=0.012, ha="left", color="#666666")
    drawing = Drawing(figure, clean(caption, 2000))
    return drawing if out is None else drawing.save(name, out, saved)


def _value_of(target: float | str) -> float:
    if isinstance(target, str):
        from ftlab.analysis.claims import target_of

        return target_of(target).value
    return target


def _tables_of(run: Run, kind: Any) -> tuple[DataFrame, dict[str, DataFrame]]:
    """Return what is drawn of a run, and its extra tables by name."""
    from ftlab.analysis import tables, verdicts

    table = verdicts.prepare(run)
    if kind == "ratio":
        return tables.compare(table), {}
    if kind == "outcomes":
        others = table[table["risk"].isin(BESIDE_OUTCOMES)]
        lines = tables.rates(verdicts.of_judge(others))
        return tables.outcome_shares(table), {"lines": lines}
    if "examples" in table:
        jailbreaks = table[table["risk"] == "jailbreak"]
        return tables.rates(jailbreaks, by=["examples", "attack"]), {}
    seeds = tables.rates(verdicts.of_judge(table), per_seed=True)
    return tables.rates(table), {"seeds": seeds}


def _kind_of(table: Any, kind: str | Kind | None) -> Kind:
    """Return the kind that was asked for, else the first that draws this table's columns."""
    if not hasattr(table, "columns"):
        wrong = type(table).__name__
        raise UsageError("not_a_table", f"plot() takes a run or a DataFrame, not a {wrong}.")
    if isinstance(kind, Kind):
        return kind
    if kind is not None and kind not in KINDS:
        raise UsageError("unknown_kind", f"Unknown kind {kind!r}. Allowed: {', '.join(KINDS)}.")
    if kind is not None:
        return KINDS[kind]
    for candidate in KINDS.values():
        if candidate.fits(table):
            return candidate
    found = ", ".join(map(str, table.columns))
    raise UsageError(
        "kind_not_recognised",
        f"No kind of figure draws the columns {found}. Name one: {', '.join(KINDS)}.",
    )


def _checked(table: DataFrame, keys: Columns, values: Columns, defaults: dict) -> DataFrame:
    """Return a sorted copy with shares in percent; raise with every problem."""
    table = table.reset_index(drop=True)
    for column, value in defaults.items():
        if column not in table:
            table[column] = value
    missing = [column for column in keys + values if column not in table]
    if missing:
        wrong = ", ".join(missing)
        raise UsageError("missing_columns", f"The table lacks {wrong}. An index does not count.")
    problems = []
    for column in keys + values:
        if column in POSITIONS or column in values:
            problems += _make_numbers(table, column)
        else:
            text = table[column].astype(object)
            table[column] = text.where(text.notna(), "").astype(str)
    repeated = table[table.duplicated(list(keys))]
    if len(repeated):
        row = [f"{key} {clean(repeated[key].iloc[0])}" for key in keys]
        problems.append(f"two rows are for {', '.join(row)}: filter or average them first")
    if table.empty:
        problems.append("there are no rows")
    if problems:
        message = f"The table cannot be drawn: {'; '.join(problems)}."
        raise DataError("cannot_be_drawn", message, problems)
    along = [key for key in ("step", "epoch") if key in keys]
    return table.sort_values(along, kind="stable") if along else table


def _make_numbers(table: DataFrame, column: str) -> list[str]:
    """Turn a column into numbers, shares into percent; return what is wrong with it."""
    from pandas import to_numeric

    given = table[column]
    numbers = to_numeric(given, errors="coerce").astype(float)
    table[column] = numbers
    most = math.inf
    if column in SHARES:
        most = 1
        table[column] = 100 * numbers
    wrong = (numbers < 0) | (numbers > most)
    wrong |= numbers.isna() & given.notna()
    if column in POSITIONS:
        wrong |= ~numbers.between(0, 1e300)
    if not wrong.any():
        return []
    return [f"{column} is {clean(given[wrong].iloc[0])}, allowed is a number from 0 to {most}"]


def _note(table: DataFrame, with_seeds: bool) -> str:
    """Return model, judge, numbers of prompts and seeds, and level of the intervals."""
    parts = [table.attrs.get("model", "")]
    judges = table.get("judged_by", table.get("judge", []))
    if any(judges):
        parts.append(f"judge {', '.join(dict.fromkeys(judges))}")
    for word in ("prompts", "seeds"):
        counts = set(table.get(f"n_{word}", [table.attrs.get(f"n_{word}")])) - {None}
        if counts:
            ends = dict.fromkeys([min(counts), max(counts)])
            parts.append(f"{' to '.join(map(str, ends))} {word}")
    for band in dict.fromkeys(table.get("band", [])):
        parts.append(str(band).replace("%, ", "% "))
    if with_seeds:
        parts.append("thin lines: single seeds")
    return ", ".join(clean(part, 200) for part in parts if part)
