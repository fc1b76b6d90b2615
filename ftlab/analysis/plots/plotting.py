"""Draw a run or a table: recognise what it is, check it, draw it, save it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ftlab._core.config import takes
from ftlab._core.errors import DataError, UsageError
from ftlab.analysis import tables, verdicts
from ftlab.analysis.claims import Target, target_of
from ftlab.analysis.judge_errors import NOT_INCLUDED, is_exact
from ftlab.analysis.plots import bars, explanation, grid, loss, matrix, outcomes, ratio, search
from ftlab.analysis.plots import lines as line_plots
from ftlab.analysis.plots._axes import (
    STEPS,
    clean,
    counted,
    grow,
    is_narrow,
    letters,
    narrow,
    plain,
)
from ftlab.analysis.plots._drawing import Drawing, style
from ftlab.analysis.plots._kinds import Columns, Kind
from ftlab.runs import Run

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame

ALL = (
    grid.KIND,
    grid.HEAT,
    line_plots.DOSE,
    line_plots.CURVE,
    ratio.KIND,
    outcomes.KIND,
    bars.KIND,
    explanation.KIND,
    search.KIND,
    matrix.KIND,
    line_plots.JUDGES,
    loss.KIND,
)
KINDS = {kind.name: kind for kind in ALL}  # a table gets the first whose columns it has
POSITIONS = ("step", "examples", "epoch")
BESIDE_OUTCOMES = ("over_refusal", "utility")  # is the model still of use?
SHARES = ("rate", "low", "high", "share")
SIGNED = (*explanation.VALUES, *matrix.VALUES, *search.VALUES)  # may be negative


@takes()
def plot(  # noqa: PLR0913
    source: verdicts.Source,
    name: str | None = None,
    out: str | Path | None = None,
    *,
    kind: str | Kind | None = None,
    title: str = "",
    caption: str | None = None,
    seeds: DataFrame | None = None,
    lines: DataFrame | None = None,
    target: float | str | dict[Any, str] | None = None,
    attack: str | None = None,
) -> Drawing:
    """Draw a run, or a table of rates, comparisons, outcomes or judges.

    By default a curve is drawn as its rates with the single seeds, and harmful fine-tuning as its
    jailbreaks by dose. Of a curve, `kind` may also be "ratio" (as of `compare`) or "outcomes"
    (what became of the jailbreak prompts, with over-refusal and utility below), and of a training
    "loss". Rates and shares are fractions from 0 to 1, shown in percent.

    Args:
        source: A run, a table, or several runs by name, such as {"mine": curve, "theirs": other}.
        name: Name of the files; by default the kind.
        out: Folder for NAME.svg, .png, .csv (the table as given), .txt (the caption), and
            narrow/NAME.svg, the same for a narrow screen.
        kind: curve, ratio, outcomes, dose, bars, explanation, matrix, grid, heat, search, judges,
            loss, or your own `Kind`; by default what the table's columns fit.
        title: Title above the figure.
        caption: Description; by default title, kind and note.
        seeds: For a curve: step, risk, seed, rate, as of `rates(per_seed=True)`.
        lines: For outcomes: step, risk, rate, low, high, in a panel below.
        target: A published figure to draw: its name, or a number (a ratio for ratios, else a
            share). For a curve of several risks {risk: name}; otherwise it is of jailbreaks. For
            doses {examples: name}; a name alone is drawn at the dose that it is about.
        attack: Of a run: only answers under this attack.

    Returns:
        A `Drawing`, which shows itself in Jupyter.

    Raises:
        UsageError: `not_a_table`, `unknown_kind`, `kind_not_recognised`, `wrong_file_name`,
            `extra_not_drawn`, `missing_columns`, `wrong_outcomes`, `figure_too_tall`.
        DataError: `cannot_be_drawn`, with every problem.
    """
    if isinstance(source, (Run, Mapping)):
        source, extras = _tables_of(source, kind, attack)
        seeds = extras.get("seeds", seeds)
        lines = extras.get("lines", lines)
    elif attack is not None:
        raise UsageError("extra_not_drawn", "attack= goes with a run. Select the table's rows.")
    chosen = _kind_of(source, kind)
    name = name or chosen.name
    if Path(name).name != name or name.startswith("."):
        raise UsageError(
            "wrong_file_name",
            f"{name!r} is not a file name. Use out= for a folder.",
        )
    table = source
    if chosen.prepare:
        table = chosen.prepare(source)
    checked = _checked(table, chosen.keys, chosen.values, chosen.defaults)
    saved = {name: source}
    drawn: dict[str, Any] = {}
    for key, extra in _extras(chosen, {"seeds": seeds, "lines": lines}).items():
        saved[f"{name}_{key}"] = extra
        drawn[key] = _checked(extra, *chosen.extras[key], {})
    if target is not None and "target" in chosen.extras:
        drawn["target"] = _targets(target, chosen, checked)
    note = _note(table, lines) + _published(drawn.get("target", {}))
    if seeds is not None:
        note += ", thin lines: single seeds"
    if caption is None:
        about = source.attrs.get("about", chosen.about)
        about = about.replace(STEPS, source.attrs.get("steps", STEPS))
        sentences = [text.rstrip(".") for text in (title, about, note) if text]
        caption = ". ".join(sentences) + "."
    wide = _figure(chosen, checked, drawn, title, note)
    drawing = Drawing(wide, clean(caption, 2000))
    if out is None:
        return drawing
    with narrow():
        slim = _figure(chosen, checked, drawn, title, note)
    return drawing.save(name, out, saved, slim)


def _figure(
    kind: Kind,
    table: DataFrame,
    drawn: dict[str, Any],
    title: str,
    note: str,
) -> Figure:
    """Draw a checked table, with the title above and the note below."""
    with style():
        figure = kind.draw(table, **drawn)
        place = {"x": 0.012, "ha": "left"}
        above = plain(title, 240, width=letters(78))
        below = plain(note, 300, width=letters(118))
        figure.suptitle(above, **place)
        figure.supxlabel(below, color="#666666", **place)
        if is_narrow():
            grow(figure, 0.2 * above.count("\n") + 0.15 * below.count("\n"))
    return figure


def _extras(kind: Kind, given: dict[str, DataFrame | None]) -> dict[str, DataFrame]:
    """Return the tables that were given besides, and that this kind of figure draws."""
    found = {}
    for key, table in given.items():
        if table is None:
            continue
        if key not in kind.extras:
            raise UsageError(
                "extra_not_drawn",
                f"A {kind.name} figure does not take {key}=.",
            )
        if len(table):
            found[key] = table
    return found


def _targets(given: Any, kind: Kind, table: DataFrame) -> dict[str, Target]:
    """Return published figures by the risk, or the number of examples, that they are of."""
    unit = "ratio" if kind is ratio.KIND else "rate"
    if not isinstance(given, dict):
        given = {"jailbreak": given}
    found = {}
    for key, target in given.items():
        if isinstance(target, str):
            target = target_of(target)
        else:
            target = Target.model_construct(unit=unit, value=target)
        if kind is line_plots.DOSE:
            dose = _dose(key, target)
            claimed = table["attack"].isin(line_plots.CLAIMED)
            if not table["examples"][claimed].eq(dose).any():
                continue
            key = f"{dose:,g} examples"
        found[key] = target
    return found


def _dose(given: Any, target: Target) -> float:
    """Return the number of examples that a published figure is of."""
    examples = target.examples if isinstance(given, str) else given
    if examples is None:
        raise UsageError(
            "target_without_dose",
            "This published figure is of no number of examples. Give {100: target}.",
        )
    return examples


def _published(targets: dict[str, Target]) -> str:
    """Return published figures in words."""
    values = [f"{target.value_shown()} ({key})" for key, target in targets.items()]
    return f", dashed: published {', '.join(values)}" if values else ""


def _tables_of(
    run: Run | Mapping[str, Run],
    kind: Any,
    attack: str | None,
) -> tuple[DataFrame, dict[str, DataFrame]]:
    """Return what is drawn of a run, or of several by name, and its extra tables by name."""
    if isinstance(run, Mapping):
        table = tables.rates(run, attack=attack)
        if table["step"].nunique() == 1:  # no curves
            table = bars.prepare(table).drop(columns="step")
        return table, {}
    if kind == "loss":
        log = run.log()
        return log[log["loss"].notna()], {}
    table = verdicts.select(verdicts.prepare(run), attack=attack)
    if kind == "ratio":
        return tables.compare(table), {}
    if kind == "outcomes":
        others = table[table["risk"].isin(BESIDE_OUTCOMES)]
        lines = tables.rates(verdicts.of_judge(others))
        return tables.outcome_shares(table), {"lines": lines}
    if "examples" in table:
        jailbreaks = table[table["risk"] == "jailbreak"]
        return tables.rates(jailbreaks, by=["examples", "attack"]), {}
    if kind not in (None, "curve"):
        return tables.rates(table), {}
    seeds = tables.rates(verdicts.of_judge(table), per_seed=True)
    return tables.rates(table), {"seeds": seeds}


def _kind_of(table: Any, kind: str | Kind | None) -> Kind:
    """Return the kind that was asked for, else the first that draws this table's columns."""
    allowed = ", ".join(KINDS)
    if not hasattr(table, "columns"):
        raise UsageError(
            "not_a_table",
            f"plot() draws a run or a DataFrame; the source has the type {type(table).__name__}.",
        )
    if isinstance(kind, Kind):
        return kind
    if kind in KINDS:
        return KINDS[kind]
    if kind is not None:
        raise UsageError("unknown_kind", f"Unknown kind {kind!r}. Allowed: {allowed}.")
    for candidate in KINDS.values():
        if candidate.fits(table):
            return candidate
    raise UsageError(
        "kind_not_recognised",
        f"No kind of figure draws these columns: {', '.join(map(str, table.columns))}. "
        f"Name one: {allowed}.",
    )


def _checked(
    table: DataFrame,
    keys: Columns,
    values: Columns,
    defaults: dict[str, Any],
) -> DataFrame:
    """Return a sorted copy with shares in percent; raise with every problem."""
    table = table.reset_index(drop=True)
    for column, value in defaults.items():
        if column not in table:
            table[column] = value
    missing = [column for column in keys + values if column not in table]
    if missing:
        raise UsageError(
            "missing_columns",
            f"The table lacks {', '.join(missing)}. An index does not count.",
        )
    problems = []
    for column in keys + values:
        if column in values or column in POSITIONS:
            problems += _make_numbers(table, column)
        else:
            table[column] = table[column].astype(object).fillna("").astype(str)
    repeated = table[list(keys)][table.duplicated(list(keys))]
    for row in repeated.head(1).to_dict("records"):
        problems.append(f"two rows are for {clean(row, 200)}; filter or average them first")
    if table.empty:
        problems.append("there are no rows")
    if problems:
        raise DataError(
            "cannot_be_drawn",
            f"The table cannot be drawn: {'; '.join(problems)}.",
            problems,
        )
    along = [key for key in ("step", "epoch") if key in keys]
    if along:
        table = table.sort_values(along, kind="stable")
    return table


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
    least = -math.inf if column in SIGNED else 0
    possible = numbers.between(least, most) | given.isna()
    if column in POSITIONS:
        possible = numbers.between(0, 1e300)
    wrong = given[~possible].map(clean)
    if wrong.empty:
        return []
    return [f"{column} is {wrong.iloc[0]}, allowed is a number from {least} to {most}"]


def _note(table: DataFrame, lines: DataFrame | None = None) -> str:
    """Return what was counted, model, judge, numbers of prompts and seeds, and the intervals."""
    by = table.get("judge", [])
    judges = table.get("judged_by", by)
    parts = [
        *_counted(table, [] if "labels" in table.attrs else by),
        table.attrs.get("asked", ""),
        table.attrs.get("model", ""),
        *_judges(judges),
    ]
    for word in ("prompts", "seeds"):
        counts = set(table.get(f"n_{word}", []))
        if counts:
            ends = {min(counts), max(counts)}
            numbers = " to ".join(map(str, sorted(ends)))
            if ends == {1}:
                word = word.removesuffix("s")
            parts.append(f"{numbers} {word}")
    parts += _intervals(table, lines)
    if "labels" in table.attrs:
        parts.append(f"corrected by {table.attrs['labels']}")
    elif not all(is_exact(judge) for judge in judges):
        parts.append(NOT_INCLUDED)
    if "labels" not in table.attrs and any(verdicts.of_refusals(judge) for judge in by):
        parts.append("not refused is less than harmful")
    return ", ".join(clean(part, 200) for part in parts if part)


def _counted(table: DataFrame, judges: Iterable[str]) -> list[str]:
    """Return what was counted, where the table is of one risk."""
    risk = table.attrs.get("risk", "")
    found = []
    for judge in judges:
        what = counted(risk, judge)
        if what and what not in found:
            found.append(what)
    if not found:
        return []
    return ["counted: " + " or ".join(found)]


def _judges(judges: Iterable[str]) -> list[str]:
    found: dict[str, None] = {}
    for judge in dict.fromkeys(judges):
        own, _, _ = judge.partition(": corrected")  # by whom is told elsewhere
        for name in own.split(", "):
            shown = verdicts.judge_name(name)
            found[shown] = None
    if not found:
        return []
    return ["judge " + ", ".join(found)]


def _intervals(table: DataFrame, lines: DataFrame | None) -> list[str]:
    """Return level and kind of the intervals."""
    bands = list(table.get("band", []))
    if lines is not None:
        bands += list(lines.get("band", []))
    if "ratio_low" in table:
        bands = ["95 %, pointwise"]
    kinds = []
    for band in dict.fromkeys(bands):
        kind = band.replace("%, ", "% ")
        kinds.append(kind)
    if not kinds:
        return []
    return ["intervals " + " and ".join(kinds)]
