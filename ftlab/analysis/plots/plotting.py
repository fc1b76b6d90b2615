"""Draw a run or a table: recognise what it is, check it, draw it, save it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ftlab._core.errors import DataError, UsageError
from ftlab.analysis.plots._axes import clean, plain
from ftlab.analysis.plots._drawing import Drawing, style
from ftlab.analysis.plots._kinds import Columns, Kind, kinds
from ftlab.runs import Run

if TYPE_CHECKING:
    from pandas import DataFrame

POSITIONS = ("step", "examples", "epoch")
SHARES = ("rate", "low", "high", "share")


def plot(  # noqa: PLR0913
    source: Run | DataFrame,
    name: str | None = None,
    out: str | Path | None = None,
    *,
    kind: str | Kind | None = None,
    title: str | None = None,
    caption: str | None = None,
    seeds: DataFrame | None = None,
    lines: DataFrame | None = None,
    target: float | str | None = None,
) -> Drawing:
    """Draw a run, or a table of rates, comparisons, outcomes or judges.

    A curve is drawn as its rates with the single seeds, harmful fine-tuning as its jailbreaks by
    dose. Rates and shares are fractions from 0 to 1, shown in percent.

    Args:
        source: A run, or a table.
        name: Name of the files; by default the kind.
        out: Folder for NAME.svg, .png, .csv (the table as given) and .txt (the caption).
        kind: curve, ratio, outcomes, dose, bars, judges, or an own `Kind`; by default what the
            table is.
        title: Title above the figure.
        caption: Description; by default title, kind and note.
        seeds: For a curve: step, risk, seed, rate, as of `rates(per_seed=True)`.
        lines: For outcomes: step, label, rate, low, high, in a panel below.
        target: For ratios: a published ratio, or the name of a published figure.

    Returns:
        A `Drawing`, which shows itself in Jupyter.

    Raises:
        UsageError: `not_a_table`, `unknown_kind`, `kind_not_recognised`, `wrong_file_name`,
            `extra_not_drawn`, `missing_columns`, `figure_too_tall`.
        DataError: `cannot_be_drawn`, with every problem.
    """
    extras: dict[str, Any] = {"seeds": seeds, "lines": lines, "target": _target(target)}
    if isinstance(source, Run):
        source, extras["seeds"] = _tables_of(source, seeds)
    found = _kind_of(source, kind)
    given = {key: extra for key, extra in extras.items() if extra is not None and len_of(extra)}
    unwanted = [key for key in given if key not in found.extras]
    if unwanted:
        raise UsageError(
            "extra_not_drawn", f"A {found.name} figure does not take {', '.join(unwanted)}."
        )
    name = name or found.name
    if Path(name).name != name or name.startswith("."):
        raise UsageError("wrong_file_name", f"{name!r} is not a file name. Use out= for a folder.")
    table = found.prepare(source)
    tables = {name: source}
    drawn = {}
    for key, extra in given.items():
        columns = found.extras[key]
        drawn[key] = extra
        if columns is not None:
            tables[f"{name}_{key}"] = extra
            drawn[key] = _checked(extra, f"{key}=", *columns)
    checked = _checked(table, f"{found.name} figure", found.keys, found.values, found.optional)
    note = _note(table, "seeds" in given)
    parts = [part.rstrip(".") for part in (title, found.about, note) if part]
    if caption is None:
        caption = " ".join(f"{part[:1].upper()}{part[1:]}." for part in parts)
    with style():
        figure = found.draw(checked, **drawn)
        figure.suptitle(plain(title or "", 240, width=78), x=0.012, ha="left")
        figure.supxlabel(plain(note, 300, width=118), x=0.012, ha="left", color="#666666")
    drawing = Drawing(figure, clean(caption, 2000))
    return drawing if out is None else drawing.save(name, out, tables)


def len_of(extra: Any) -> int:
    """Return the number of rows of a table; 1 for anything else."""
    return len(extra) if hasattr(extra, "columns") else 1


def _target(target: float | str | None) -> float | None:
    if isinstance(target, str):
        from ftlab.analysis.claims import target_of

        return target_of(target).value
    return target


def _tables_of(run: Run, seeds: DataFrame | None) -> tuple[DataFrame, DataFrame | None]:
    """Return what is drawn of a run, and the rates of its single seeds."""
    from ftlab.analysis.tables import rates
    from ftlab.analysis.verdicts import model_of

    table = run.table()
    table.attrs["model"] = model_of(run)
    if "examples" in table:
        jailbreaks = table[table["risk"] == "jailbreak"]
        return rates(jailbreaks, by=["examples", "attack"]), seeds
    if seeds is None:
        seeds = rates(table, per_seed=True, judge=table["judge"].iloc[0])
    return rates(table), seeds


def _kind_of(table: Any, kind: str | Kind | None) -> Kind:
    """Return the kind that was asked for, else the first that draws this table's columns."""
    if not hasattr(table, "columns"):
        raise UsageError(
            "not_a_table", f"plot() takes a run or a DataFrame, not a {type(table).__name__}."
        )
    if isinstance(kind, Kind):
        return kind
    known = kinds()
    if kind is not None:
        if kind not in known:
            raise UsageError("unknown_kind", f"Unknown kind {kind!r}. Allowed: {', '.join(known)}.")
        return known[kind]
    for candidate in known.values():
        if set(candidate.needed) <= set(table.columns):
            return candidate
    wanted = "; ".join(f"{name}: {', '.join(known[name].needed)}" for name in known)
    raise UsageError(
        "kind_not_recognised",
        f"No kind of figure draws the columns {', '.join(map(str, table.columns))}. "
        f"Needed are, for {wanted}.",
    )


def _checked(
    table: DataFrame, what: str, keys: Columns, values: Columns, optional: Columns = ()
) -> DataFrame:
    """Return a sorted copy with shares in percent; raise with every problem."""
    missing = [c for c in (*keys, *values) if c not in table and c not in optional]
    if missing:
        raise UsageError(
            "missing_columns",
            f"The table of a {what} lacks {', '.join(missing)}. An index does not count.",
        )
    table = table.reset_index(drop=True)
    problems = [] if len(table) else ["there are no rows"]
    for column in {**dict.fromkeys(keys), **dict.fromkeys(values), "low": None, "high": None}:
        if column in POSITIONS or column in values or column not in table:
            table[column], wrong = _numbers(table, column)
            problems += wrong
        else:
            table[column] = table[column].astype(object).where(table[column].notna(), "")
            table[column] = table[column].astype(str)
    twice = table[table.duplicated(list(keys))]
    if len(twice):
        row = ", ".join(f"{key} {clean(twice[key].iloc[0])}" for key in keys)
        problems.append(f"two rows are for {row}; filter or average them first")
    if problems:
        message = f"The table of a {what} cannot be drawn: {'; '.join(problems)}."
        raise DataError("cannot_be_drawn", message, problems)
    along = [key for key in ("step", "epoch") if key in keys]
    return table.sort_values(along, kind="stable") if along else table


def _numbers(table: DataFrame, column: str) -> tuple[Any, list[str]]:
    """Return a column as numbers, shares in percent, and what is wrong with it."""
    from pandas import to_numeric

    if column not in table:
        return (math.nan, []) if column in SHARES else ("", [])
    numbers = to_numeric(table[column], errors="coerce").astype(float)
    most = 1 if column in SHARES else math.inf
    wrong = numbers.isna() & table[column].notna() | (numbers < 0) | (numbers > most)
    if column in POSITIONS:
        wrong |= numbers.isna() | (numbers == math.inf)
    problems = []
    if wrong.any():
        allowed = "a fraction from 0 to 1" if column in SHARES else "a number from 0"
        found = clean(table[column][wrong].iloc[0])
        problems.append(f"{column} is {found}, allowed is {allowed}")
    return numbers * (100 if column in SHARES else 1), problems


def _note(table: DataFrame, with_seeds: bool) -> str:
    """Return model, judge, numbers of prompts and seeds, and level of the intervals."""
    parts = [clean(table.attrs.get("model", ""))]
    judges = table.get("judged_by", table.get("judge", ()))
    named = ", ".join(dict.fromkeys(clean(judge) for judge in judges if judge))
    parts.append(f"judge {named}" if named else "")
    for word, column in (("prompts", "n_prompts"), ("seeds", "n_seeds")):
        found = table.get(column, ())
        if len(found):
            low, high = min(found), max(found)
            parts.append(f"{low} {word}" if low == high else f"{low} to {high} {word}")
    parts += dict.fromkeys(clean(band, 200) for band in table.get("band", ()) if band)
    parts.append("thin lines: single seeds" if with_seeds else "")
    return ", ".join(part for part in parts if part)
