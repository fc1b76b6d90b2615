"""Published figures as data (`data/published/*.yaml`), what was measured, and the verdict.

Rates are shares from 0 to 1, ratios are child / parent. Nothing is estimated here.
"""

from __future__ import annotations

import csv
import difflib
import io
import math
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal

import pandas as pd
from pydantic import Field, model_validator

from ftlab._core.config import Config
from ftlab._core.errors import DataError, UsageError
from ftlab._core.files import digest, resource, write_atomic
from ftlab._core.text import for_csv, safe
from ftlab.analysis import tables, verdicts
from ftlab.runs import Run
from ftlab.stats import FEWEST_SEEDS

NUMBERS = ("measured", "low", "high", "null", "worst_low", "worst_high")
COUNTS = ("n_prompts", "n_seeds", "unscored")
RECORD = (
    *("experiment", "claim", "target", *NUMBERS, "p", *COUNTS),
    *("model", "differs", "note", "verdict", "judge", "measurement", "before", "after", "runs"),
    "risk",
)
REPRODUCED = "reproduced"
DIRECTION = "direction only"
SEEN = "seen in these runs"
NOT = "not reproduced"
VERDICTS = (REPRODUCED, DIRECTION, SEEN, NOT)
INSIDE = "inside"
LEVEL = 0.05  # of p, adjusted for the measurements of a page
UNMATCHED = "judge, prompts, attack and training settings were not matched to the paper's"
DECISIVE = ("measured", "low", "high", "null", "p", "n_seeds", "model", "differs")
POINTS = "difference {points:+.0f} points [{points_low:+.0f}, {points_high:+.0f}] (95 %){apart}"
APART = (
    "; refusals lost {:.0f} points [{:+.0f}, {:+.0f}]; incoherent "
    "{incoherent_parent:.1%} to {incoherent_child:.1%}"
)
# Of a comparison's row, what a claim in some unit says: measured, low, high, null; and its note.
SOURCES = {
    "ratio": (
        ("ratio", "ratio_low", "ratio_high", "one"),
        "after {step} steps: {parent:.1%} to {child:.1%}, " + POINTS,
    ),
    "rate": (
        ("child", "child_low", "child_high", "parent"),
        "after {step} steps; parent {parent:.1%}; " + POINTS,
    ),
}


class Target(Config):
    """A published figure. `before` and `value` are shares (rate) or child / parent (ratio)."""

    id: str = Field(pattern=r"^[a-z0-9_]+$")
    paper: str
    source: str  # arXiv:NUMBER, or where else it was published
    table: str = ""  # where in the source
    settings: str
    models: tuple[str, ...] = ()  # names of the paper's own models; none: not recorded
    unit: Literal["ratio", "rate", "score", "steps", "tokens"]  # ftlab measures the first two
    value: float = Field(ge=0, allow_inf_nan=False)
    before: float | None = Field(None, ge=0)  # where published: of the parent, or as `text` says
    text: str  # the claim in words
    direction: Literal["up", "down", "none"]  # the side of no effect on which the claim lies
    tolerance: float = Field(ge=0, allow_inf_nan=False)  # this project's, not the paper's
    # Around the value; or of the direction alone; or around no change, which is then the claim.
    tolerance_kind: Literal["within", "direction", "equivalence"] = "within"
    evidence: Literal["read", "abstract", "secondary", "inferred"]  # how the figure is known
    risk: str = "jailbreak"  # what ftlab would measure of it; "": nothing
    trained_on: Literal["", "benign", "harmful"] = ""  # rows of the training that it is of, if one
    universal: bool = False  # "every": one answer without the event refutes it
    examples: int | None = None  # of harmful fine-tuning, asked directly
    caveat: str = ""

    @model_validator(mode="after")
    def _possible(self) -> Target:
        most = max(self.value, self.before or 0)
        if self.unit == "rate" and most > 1:
            raise ValueError(f"a rate is a share from 0 to 1, not {most}")
        allowed = {"direction": ("up", "down"), "equivalence": ("none",)}
        if self.direction not in allowed.get(self.tolerance_kind, (self.direction,)):
            what = f"{self.tolerance_kind} does not go with the direction {self.direction}"
            raise ValueError(f"tolerance_kind {what}")
        return self

    def shown(self) -> str:
        """Return the figure in words, with the rate before where it is published."""
        value = self.value_shown()
        if self.before is None:
            return value
        return f"{number(self.before, self.unit)} → {value}"

    def value_shown(self) -> str:
        """Return the figure alone, in words."""
        return number(self.value, self.unit)

    def cited(self) -> str:
        """Return the figure with its source, settings and evidence."""
        place = ", ".join(part for part in (self.paper, self.source, self.table) if part)
        known = f"Evidence: {self.evidence}. Tolerance: {self.tolerated()}. {self.caveat}"
        return f"{self.id}: {self.text} {self.shown()} ({place}). {self.settings} {known}".strip()

    def tolerated(self) -> str:
        """Return in words how near a measurement must come to reproduce the figure."""
        if self.tolerance_kind == "direction":
            return "its direction only"
        within = f"±{self.tolerance:g}"
        if self.unit == "rate":
            within = f"±{100 * self.tolerance:g} points"
        if self.tolerance_kind == "equivalence":
            return f"{within} of no change"
        return within


@cache
def targets() -> dict[str, Target]:
    """Return all published figures by id; `common:` in a file holds for all its `claims:`.

    Raises:
        DataError: `wrong_published_figures`, with every problem and its place.
    """
    import yaml

    found: dict[str, Target] = {}
    problems = []
    for path in sorted((resource("data") / "published").glob("*.yaml")):
        try:
            content = yaml.safe_load(path.read_text(encoding="utf-8"))
            entries = [{**content.get("common", {}), **entry} for entry in content["claims"]]
        except (yaml.YAMLError, UnicodeDecodeError, AttributeError, KeyError, TypeError) as error:
            problems.append(f"{path.name}: no list `claims:` ({' '.join(str(error).split())})")
            continue
        for number, entry in enumerate(entries, 1):
            name = entry.get("id")
            try:
                target = Target.make(**entry)
            except (UsageError, TypeError) as error:
                problems.append(f"{path.name}, entry {number} ({name}): {error}")
                continue
            if name in found:
                problems.append(f"{path.name}, entry {number} ({name}): another has this id")
            found[name] = target
    if problems:
        message = "Published figures cannot be used:\n" + "\n".join(problems)
        raise DataError("wrong_published_figures", message, problems)
    return found


def target_of(name: str) -> Target:
    """Return one published figure.

    Raises:
        UsageError: `unknown_published_figure`.
    """
    known = targets()
    if name not in known:
        near = ", ".join(difflib.get_close_matches(str(name), known, 3, 0.3)) or "none"
        raise UsageError(
            "unknown_published_figure",
            f"Unknown published figure {safe(name, 80)!r}. The nearest: {near}; docs/published.md "
            "lists all.",
        )
    return known[name]


def verdict(
    target: Target,
    *,
    measured: float,
    low: float,
    high: float,
    null: float,
    p: float,
    n_seeds: int,
    model: str,
    differs: str = "",
) -> str:
    """Decide whether a published figure was reproduced.

    Reproduced: the model is one of the paper's own (by name), nothing else differs, and the
    whole interval lies within the tolerance. Direction only: otherwise, if p is below 5 % and the
    estimate and its interval lie on the side of `null` that is claimed; for a claim about every
    prompt only if the interval also reaches the value. The tolerance of a claim of no change lies
    around `null`, and an interval within it is direction only on another model. Under three
    training seeds the word is "seen in these runs" instead: what other runs would give is not
    known. NaN is never more than not reproduced.

    Args:
        target: The published figure.
        measured: The estimate, in the target's unit.
        low: Lower end of its interval.
        high: Upper end of its interval.
        null: The value without an effect.
        p: Probability of at least this change without an effect; on a page adjusted (Holm).
        n_seeds: Training seeds.
        model: Name of the model.
        differs: What besides the model differed from the paper.

    Returns:
        "reproduced", "direction only", "seen in these runs" or "not reproduced".
    """
    if any(math.isnan(value) for value in (measured, low, high, p)):
        return NOT
    several = n_seeds >= FEWEST_SEEDS
    own = model.lower() in (name.lower() for name in target.models) and not differs
    no_change = target.tolerance_kind == "equivalence"
    centre = null if no_change else target.value
    furthest = max(abs(low - centre), abs(high - centre))
    close = furthest <= target.tolerance + 1e-12
    if several and own and close and target.tolerance_kind != "direction":
        return REPRODUCED
    beyond = min(measured, low) > null
    if target.direction == "down":
        beyond = max(measured, high) < null
    if target.direction == "none":  # a value by itself has no direction
        beyond = False
    if target.universal:
        beyond &= lies(target.value, low, high) == INSIDE
    shown = beyond and p < LEVEL
    if no_change:
        shown = close
    if not shown:
        return NOT
    if not several:
        return SEEN
    return DIRECTION


def lies(value: float, low: float, high: float) -> str:
    """Return where a published value lies: inside, above or below an interval."""
    if math.isnan(low) or math.isnan(high):
        return ""
    if value < low - 1e-12:
        return "below"
    if value > high + 1e-12:
        return "above"
    return INSIDE


class Claims(list):
    """Rows of claims.csv, with the keys in `RECORD`; they show themselves as a table."""

    def _repr_html_(self) -> str:
        return pd.DataFrame(self.shown()).to_html(index=False, escape=True)

    def __repr__(self) -> str:
        lines = [" | ".join(row.values()) for row in self.shown()]
        return "\n".join(lines)

    def shown(self) -> list[dict[str, str]]:
        """Return what is shown of each claim, as safe text."""
        rows = []
        for claim in self:
            target = target_of(claim["target"])
            row = {
                "claim": claim["claim"],
                "measured": in_words(claim, target.unit),
                "p (before Holm's correction)": p_in_words(claim["p"]),
                "verdict": claim["verdict"],
                "published": f"{target.shown()}: {target.text} ({target.paper})",
                "published value lies": lies(target.value, claim["low"], claim["high"]),
                "differs": claim["differs"],
                "note": claim["note"],
            }
            rows.append({key: safe(value) for key, value in row.items()})
        return rows


def record_claim(  # noqa: PLR0913
    experiment: str,
    claim: str,
    *,
    published: str,
    measured: float,
    low: float,
    high: float,
    n_prompts: int,
    n_seeds: int,
    null: float,
    p: float,
    model: str,
    out: str | Path,
    differs: str = UNMATCHED,
    note: str = "",
    judge: str = "",
    unscored: int = 0,
    worst: tuple[float, float] | None = None,
    measurement: str = "",
    sides: tuple[float, float] = (math.nan, math.nan),
    runs: Sequence[str] = (),
    risk: str = "",
) -> Claims:
    """Write a row of OUT/claims.csv, or replace that of the same experiment and claim.

    Args:
        experiment: Name of the experiment.
        claim: What is claimed, in words.
        published: Id of a published figure.
        measured: Share from 0 to 1 or ratio, as the figure's unit is; NaN and inf are allowed.
        low: Lower end of the 95 % interval.
        high: Upper end of the interval.
        n_prompts: Prompts that were scored.
        n_seeds: Training seeds.
        null: The value without an effect.
        p: Two-sided, of no effect, from 0 to 1; NaN where nothing was measured.
        model: Name of the model.
        out: Folder.
        differs: What besides the model differed from the paper; "" only where all was matched.
        note: Anything else worth knowing.
        judge: Name of the judge that decided.
        unscored: Answers without a score.
        worst: What `measured` could be, at least and at most, whatever these answers were.
        measurement: The same text for claims about one measurement, which count once.
        sides: Rate of the event before and after, from 0 to 1; NaN where there is none.
        runs: Names of the runs that were measured.
        risk: Name of the risk that was measured, which may be another than the figure's.

    Returns:
        The row, with its verdict, in a list that shows itself.

    Raises:
        UsageError: `unknown_published_figure`, `impossible_claim`.
    """
    target = target_of(published)
    row: dict[str, Any] = {"experiment": experiment, "claim": claim, "target": published}
    row |= {"measured": measured, "low": low, "high": high, "null": null}
    row |= {"n_prompts": n_prompts, "n_seeds": n_seeds}
    row |= {"unscored": unscored, "p": p}
    least, most = worst or (measured, measured)
    if unscored and worst is None:
        least = most = math.nan
    row |= {
        "worst_low": least,
        "worst_high": most,
        "model": str(model),
        "differs": differs,
        "note": note,
        "judge": judge,
        "measurement": measurement or digest([experiment, claim])[:12],
        "before": float(sides[0]),
        "after": float(sides[1]),
        "runs": " ".join(runs),
        "risk": risk,
    }
    _check(row, 1 if target.unit == "rate" else math.inf)
    row["verdict"] = verdict(target, **{key: row[key] for key in DECISIVE})
    path = Path(out) / "claims.csv"
    rows = {}
    if path.exists():
        rows = {(old["experiment"], old["claim"]): old for old in rows_of(path)}
    rows[for_csv(experiment), for_csv(claim)] = row
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, csv_of(RECORD, list(rows.values())))
    return Claims([row])


def _check(row: dict[str, Any], most: float) -> None:
    """Turn a claim's numbers into numbers; raise where they are impossible."""
    problems = []
    for key in NUMBERS:
        row[key] = float(row[key])
        if row[key] < 0 or row[key] > most:
            problems.append(f"{key} is {row[key]}, allowed is 0 to {most}")
    for key in COUNTS:
        row[key] = int(row[key])
        least = 0 if key == "unscored" else 1
        if row[key] < least:
            problems.append(f"{key} is {row[key]}, allowed is {least} or more")
    row["p"] = float(row["p"])
    if row["p"] < 0 or row["p"] > 1:
        problems.append(f"p is {row['p']}, allowed is 0 to 1")
    if row["low"] > row["high"]:
        problems.append(f"low {row['low']} is above high {row['high']}")
    if problems:
        raise UsageError("impossible_claim", f"Claim {row['claim']!r}: {'; '.join(problems)}.")


def record(
    source: Run | pd.DataFrame,
    experiment: str,
    claim: str,
    *,
    published: str | dict[Any, str],
    out: str | Path,
    model: str | None = None,
    differs: str = UNMATCHED,
    note: str | None = None,
) -> Claims:
    """Record what a curve or a comparison says about published figures, at its last step.

    Parent and child are always paired. A ratio is tested against 1, a rate against the parent's.

    Args:
        source: A run of a curve, or a table of `compare`; the first judge's rows count.
        experiment: Name of the experiment.
        claim: The claim in words, with columns in braces: "{examples} examples, asked directly".
        published: Id of a published figure; or, for a table with several groups, a dictionary
            from a group (such as a risk) to an id. Groups that are not in it are left out.
        out: Folder of claims.csv.
        model: Name of the model; by default the table's.
        differs: What besides the model differed from the paper.
        note: With columns in braces, like `claim`; by default the numbers behind the figure.

    Returns:
        The claims, which show themselves, in the order of `published`. Ratios that are not
        defined are left out.

    Raises:
        UsageError: `no_model_name`, `not_a_comparison`; as `record_claim`.
    """
    table = tables.compare(source) if isinstance(source, Run) else source
    if "child" not in table:
        raise UsageError(
            "not_a_comparison",
            "A claim compares child and parent. Give a curve, or compare(curve, ...).",
        )
    table = verdicts.of_judge(table)
    model = model or table.attrs.get("model")
    if not model:
        raise UsageError("no_model_name", "The table does not name its model. Pass model=.")
    claims = Claims()
    for target, part in _claimed(table, published):
        row = _last_row(part)
        unit = target_of(target).unit
        if unit not in SOURCES:
            raise UsageError(
                "unit_not_measured",
                f"{target} is published in {unit}. A comparison measures rates and ratios only.",
            )
        columns, default = SOURCES[unit]
        names = ("measured", "low", "high", "null")
        values = [row[column] for column in columns]
        numbers = dict(zip(names, values, strict=True))
        if unit == "ratio" and math.isnan(row["ratio"]):
            continue
        claims += record_claim(
            experiment,
            claim.format_map(row),
            published=target,
            **numbers,
            p=row["p"],
            worst=_worst(row, unit),
            unscored=row["unscored"],
            measurement=row["measurement"],
            sides=(row["parent"], row["child"]),
            runs=table.attrs.get("runs", []),
            n_prompts=row["n_prompts"],
            n_seeds=row["n_seeds"],
            model=model,
            out=out,
            differs=differs,
            note=(note or default).format_map(row),
            judge=row["judge"],
            risk=row.get("risk", table.attrs.get("risk", "")),
        )
    return claims


def _claimed(
    table: pd.DataFrame, published: str | dict[Any, str]
) -> Iterator[tuple[str, pd.DataFrame]]:
    """Yield the published figure of each claimed group, and the group's rows."""
    groups = list(table.groupby(table.attrs["by"], sort=False))
    if isinstance(published, str):
        yield from ((published, part) for _, part in groups)
        return
    for group, target in published.items():
        for values, part in groups:
            if group in values:
                yield target, part


def _last_row(part: pd.DataFrame) -> dict[str, Any]:
    """Return a group's row at its last step, with the numbers that claims and notes need."""
    part = part.sort_values("step", kind="stable")
    row = part.iloc[-1].to_dict()
    row["one"] = 1.0  # a ratio without effect
    row["judge"] = verdicts.judge_name(row.get("judge", ""))
    for end in ("", "_low", "_high"):
        row[f"points{end}"] = 100 * row[f"difference{end}"]
    row["apart"] = ""
    lost = []
    for end in ("", "_low", "_high"):
        share = row.get(f"refusals_lost{end}", 0)
        lost.append(100 * share)
    if lost[0] or row.get("incoherent_child"):
        row["apart"] = APART.format(*lost, **row)
    return row


def _worst(row: dict[str, Any], unit: str) -> tuple[float, float]:
    """Return what a rate or ratio could be, at least and at most, whatever was not scored."""
    missing = row["dropped"]  # pairs
    if not missing:
        known = row["child" if unit == "rate" else "ratio"]
        return known, known
    child = row["both"] + row["gained"]
    parent = row["both"] + row["lost"]
    most = child + missing
    if unit == "rate":
        pairs = most + row["lost"] + row["neither"]
        return child / pairs, most / pairs
    least = child / (parent + missing)
    if not parent:
        return least, math.inf
    return least, most / parent


def in_words(row: dict, unit: str) -> str:
    """Return a measured value and its interval: `2.10x (1.40x to 3.20x)`."""
    if math.isnan(row["measured"]):
        return "not measurable"
    low, high = (number(row[key], unit) for key in ("low", "high"))
    if math.isinf(row["measured"]):
        return f"at least {low} (no event before)"
    return f"{number(row['measured'], unit)} ({low} to {high})"


def p_in_words(p: float) -> str:
    """Return p in words, "" where there is none."""
    if math.isnan(p):
        return ""
    return f"{p:.3f}" if p >= 0.001 else "< 0.001"


def number(value: float, unit: str) -> str:
    """Return a rate or ratio in words."""
    if math.isnan(value):
        return "unknown"
    if math.isinf(value):
        return "no bound"
    if unit == "rate":
        return f"{100 * value:.1f} %"
    if unit == "ratio":
        return f"{value:.2f}x"
    return f"{value:,g}" if unit == "score" else f"{value:,.0f} {unit}"


def rows_of(path: Path) -> list[dict]:
    """Return the rows of a claims.csv, numbers as numbers.

    Raises:
        DataError: `not_a_table_of_claims`.
    """
    types = dict.fromkeys((*NUMBERS, "p", "before", "after"), float) | dict.fromkeys(COUNTS, int)
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
        if tuple(table) == RECORD[:-1]:  # of ftlab 0.4.0, which did not note the risk
            table["risk"] = ""
        table = table.astype(types)
    except (KeyError, ValueError):
        table = pd.DataFrame()
    if table.empty or tuple(table) != RECORD:
        raise DataError(
            "not_a_table_of_claims",
            f"{path} is not a table of claims. Delete it and run its notebook again.",
        )
    return table.to_dict("records")


def csv_of(columns: tuple[str, ...], rows: list[dict]) -> str:
    """Return rows as CSV that no spreadsheet runs."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: for_csv(value) for key, value in row.items()} for row in rows)
    return text.getvalue()
