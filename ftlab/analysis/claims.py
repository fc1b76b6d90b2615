"""Published figures as data (`data/published/*.yaml`), what was measured beside them, and the verdict.

    claim("02_risk_ratio", "jailbreak, 150 steps", published="enkrypt_ratio_1_5", measured=2.1, low=1.4,
          high=3.2, n_prompts=200, n_seeds=5, null=1.0, model="organism", out=out)  # a row of out/claims.csv

Rates are shares in [0, 1], ratios are child / parent. Nothing is estimated here.
"""

from __future__ import annotations

import csv
import difflib
import html
import io
import math
from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from ftlab._core.config import Config
from ftlab._core.text import for_csv, safe
from ftlab.runs import resource, write_atomic

NUMBERS = ("measured", "low", "high", "null")


COUNTS = ("n_prompts", "n_seeds")


RECORD = ("experiment", "claim", "target", *NUMBERS, *COUNTS, "model", "differs", "note", "verdict")


REPRODUCED, DIRECTION, NOT = VERDICTS = ("reproduced", "direction only", "not reproduced")


UNMATCHED = "judge, prompts, attack and training settings were not matched to the paper's"


class Target(Config):
    """A published figure. `before` and `value` are shares in [0, 1] (rate) or child / parent (ratio)."""

    id: str = Field(pattern=r"^[a-z0-9_]+$")
    paper: str
    source: str  # arXiv:NUMBER, or where else it was published
    table: str = ""  # where in the source
    settings: str
    models: tuple[str, ...] = ()  # names under which a model is the paper's own; none: not recorded
    unit: Literal["ratio", "rate"]
    value: float = Field(ge=0, allow_inf_nan=False)
    before: float | None = Field(None, ge=0, le=1)  # the parent's rate, where published
    text: str  # the claim in words
    direction: Literal["up", "down"]  # the side of no effect on which the claim lies
    tolerance: float = Field(ge=0, allow_inf_nan=False)  # in the unit of `value`; ours, not the paper's
    evidence: Literal["read", "abstract", "secondary", "inferred"]  # how this project knows the figure
    universal: bool = False  # "every": one answer without the event refutes it
    caveat: str = ""

    @model_validator(mode="after")
    def _share(self):
        if self.unit == "rate" and self.value > 1:
            raise ValueError(f"value is {self.value}; a rate is a share from 0 to 1")
        return self

    def shown(self) -> str:
        before = "" if self.before is None else f"{_number(self.before, self.unit)} → "
        return before + _number(self.value, self.unit)

    def cited(self) -> str:
        place = ", ".join(x for x in (self.paper, self.source, self.table) if x)
        within = f"{100 * self.tolerance:g} points" if self.unit == "rate" else f"{self.tolerance:g}"
        return (
            f"{self.id}: {self.text} {self.shown()} ({place}). {self.settings} Evidence: {self.evidence}."
            f" Tolerance: ±{within}. {self.caveat}"
        ).strip()


def targets() -> dict[str, Target]:
    """-> id -> published figure, of all data/published/*.yaml (`common:` keys hold for all its `claims:`).

    Raises ValueError with every problem, each with file and entry; FileNotFoundError if there are no files.
    """
    import yaml

    targets, problems, folder = {}, [], resource("data") / "published"
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times as fast where PyYAML has it
    for path in sorted(folder.glob("*.yaml")):
        try:
            content = yaml.load(path.read_text(encoding="utf-8"), loader)
            entries = [{**content.get("common", {}), **entry} for entry in content["claims"]]
        except (yaml.YAMLError, UnicodeDecodeError, AttributeError, KeyError, TypeError) as e:
            problems.append(f"{path.name}: not a mapping with a list `claims:` ({' '.join(str(e).split())})")
            continue
        for number, entry in enumerate(entries, 1):
            try:
                target = Target.make(**{str(k): v for k, v in entry.items()})
                if target.id in targets:
                    raise ValueError("another entry has this id")
                targets[target.id] = target
            except ValueError as e:
                problems.append(f"{path.name}, entry {number} ({entry.get('id', 'no id')}): {e}")
    if problems:
        raise ValueError("published figures cannot be used:\n" + "\n".join(problems))
    if not targets:
        raise FileNotFoundError(f"{folder}: no published figures (*.yaml) there; install ftlab with its data")
    return targets


def verdict(
    target: Target, *, measured: float, low: float, high: float, null: float, model: str, differs: str = ""
) -> str:
    """-> `reproduced`, `direction only` or `not reproduced`.

    reproduced: `model` is one of the target's own (by name), nothing else `differs`, and the whole interval
    [low, high] lies within the target's tolerance. Otherwise direction only, if the interval excludes `null` on the
    side that the target claims; of a universal claim ("every prompt") only if it also reaches `value`. measured inf
    (a ratio over a parent without events) is judged by its lower bound; nan is never more than not reproduced.
    """
    if math.isnan(measured):
        return NOT
    own = model.lower() in (name.lower() for name in target.models) and not differs
    if own and max(abs(low - target.value), abs(high - target.value)) <= target.tolerance + 1e-12:
        return REPRODUCED
    beyond = low > null if target.direction == "up" else high < null
    if target.universal:
        beyond &= low - 1e-12 <= target.value <= high + 1e-12
    return DIRECTION if beyond else NOT


class Claim(dict):
    """One row of claims.csv (keys: RECORD); shows itself in Jupyter, escaped."""

    def lines(self) -> dict[str, str]:
        target = targets()[self["target"]]
        lines = {
            "claim": self["claim"],
            "measured": measured(self, target.unit),
            "verdict": self["verdict"],
            "published": f"{target.shown()}: {target.text} ({target.paper})",
        }
        return lines | {k: self[k] for k in ("differs", "note") if self[k]}

    def __repr__(self) -> str:
        return "\n".join(f"{k:<9} {safe(v)}" for k, v in self.lines().items())

    def _repr_html_(self) -> str:
        cells = (f"<tr><th>{k}</th><td>{html.escape(safe(v))}</td></tr>" for k, v in self.lines().items())
        return f"<table style='text-align:left'>{''.join(cells)}</table>"


def claim(
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
    model: str,
    out: str | Path,
    differs: str = UNMATCHED,
    note: str = "",
) -> Claim:
    """Writes (or replaces: key experiment and claim) a row of `out/claims.csv` -> the row, with its verdict.

    published: id of a published figure. measured, [low, high] and null (no effect) are in its unit: shares in
    [0, 1] or ratios; nan and inf are allowed. differs: what besides the model differed from the paper (judge, data,
    settings); only who matched them all may say "", and the verdict is else at most direction only. Raises ValueError: unknown id, impossible numbers.
    """
    known = targets()
    if published not in known:
        near = difflib.get_close_matches(published, known, 1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise ValueError(f"unknown published figure {published!r}{hint}; allowed: {', '.join(known)}")
    numbers = {k: float(v) for k, v in zip(NUMBERS, (measured, low, high, null), strict=True)}
    most = 1 if known[published].unit == "rate" else math.inf
    problems = [f"{k} is {v}, allowed is 0 to {most}" for k, v in numbers.items() if v < 0 or v > most]
    counts = {"n_prompts": int(n_prompts), "n_seeds": int(n_seeds)}
    problems += [f"{k} is {v}, allowed is 1 or more" for k, v in counts.items() if v < 1]
    if low > high:
        problems.append(f"low {low} is above high {high}")
    if problems:
        raise ValueError(f"claim {claim!r}: {'; '.join(problems)}")
    word = verdict(known[published], **numbers, model=str(model), differs=differs)
    row = Claim(
        experiment=experiment,
        claim=claim,
        target=published,
        **numbers,
        **counts,
        model=str(model),
        differs=differs,
        note=note,
        verdict=word,
    )
    path = Path(out) / "claims.csv"
    rows = {(r["experiment"], r["claim"]): r for r in (rows_of(path) if path.exists() else [])}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, table_of(RECORD, [*{**rows, (for_csv(experiment), for_csv(claim)): row}.values()]))
    return row


def measured(row: dict, unit: str) -> str:
    """-> measured value and interval in words: `2.10x (1.40x to 3.20x)`."""
    if math.isnan(row["measured"]):
        return "not measurable"
    low, high = (_number(row[k], unit) for k in ("low", "high"))
    if math.isinf(row["measured"]):
        return f"at least {low} (no event before)"
    return f"{_number(row['measured'], unit)} ({low} to {high})"


def _number(value: float, unit: str) -> str:
    if not math.isfinite(value):
        return "unknown" if math.isnan(value) else "no bound"
    return f"{100 * value:.1f} %" if unit == "rate" else f"{value:.2f}x"


def rows_of(path: Path) -> list[dict]:
    """-> rows of a claims.csv, numbers as numbers. Raises ValueError where it is none, or empty."""
    with open(path, encoding="utf-8", newline="") as f:
        reader = csv.DictReader(f)
        rows = list(reader)
    try:
        for row in rows:
            row |= {k: float(row[k]) for k in NUMBERS} | {k: int(row[k]) for k in COUNTS}
    except (KeyError, TypeError, ValueError):
        rows = []
    if not rows or tuple(reader.fieldnames) != RECORD:
        raise ValueError(f"{path}: not a table of claims; delete it and run its notebook again")
    return rows


def table_of(columns: tuple[str, ...], rows: list[dict]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows({k: for_csv(v) for k, v in row.items()} for row in rows)
    return text.getvalue()
