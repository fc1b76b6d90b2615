"""Verdicts -> tables of numbers with intervals: always paired, always with the counts of every outcome beside them.

Everything here takes a finished run (evaluation, curve, dose) or its table; `stats` computes. Prompts are paired
by id and attack; the variants of one prompt (attacks) form a cluster. Such intervals are for other prompts in these
wordings; with `cluster="wording"` they are for other wordings too, of which there are few: expect wide ones.
"""

from __future__ import annotations

import math

import numpy as np
import pandas as pd

from ftlab import stats
from ftlab import stats as curves
from ftlab._core.config import VERDICTS
from ftlab.evals import rejudged
from ftlab.evals.risks import UNSCORED
from ftlab.runs import Run


def table_of(source) -> pd.DataFrame:
    """-> verdict rows of a run or of a table, with `item` (prompt and attack), `wording`, `seed` and `step` on each."""
    table = source.table() if isinstance(source, Run) else source
    needed = {"risk", "attack", "prompt_id", "verdict", "event"}
    if missing := sorted(needed - set(table.columns)):
        raise ValueError(f"no columns {', '.join(missing)}; give an evaluation, a curve or a dose run, or its table()")
    table = table.assign(item=table["prompt_id"] + "|" + table["attack"])
    if "sample" in table:
        table["item"] += "|" + table["sample"].fillna(0).astype(int).astype(str)
    if "template" in table:  # "wrapper > wording" under an attack
        table["wording"] = table["template"].fillna("").str.split(" > ").str[-1]
        table["wording"] = table["wording"].where(
            table["wording"] != "", table["prompt_id"]
        )  # anyone's prompts: each its own
    for column in ("seed", "step"):
        if column not in table:
            table[column] = 0
    return table.assign(seed=table["seed"].fillna(0).astype(int))


def _cube(part: pd.DataFrame, steps: list[int], value: str = "event", cluster: str = "prompt_id"):
    """-> (events [S, K, P], cluster ids [P]) of the rows of one group; a missing answer is NaN."""
    if part.duplicated(["seed", "step", "item"]).any():
        raise ValueError(
            "several verdicts on one prompt at one step (doses, judges or runs together); add what tells them apart to `by`"
        )
    if cluster not in part:
        raise ValueError(f"cluster = {cluster!r}: no such column; allowed: prompt_id, wording, category, topic")
    wide = part.pivot_table(index=["seed", "step"], columns="item", values=value, aggfunc="first", dropna=False)
    seeds = sorted(part["seed"].unique())
    cube = np.stack([wide.reindex([(s, k) for k in steps]).to_numpy(float) for s in seeds])
    of = part.drop_duplicates("item").set_index("item")[cluster]
    return cube, of.reindex(wide.columns).to_numpy(str)


def _steps(part: pd.DataFrame) -> list[int]:
    """-> the steps at which every seed was measured: where curves stop early, later steps tell of the others only."""
    seeds = part.groupby("step")["seed"].nunique()
    return sorted(seeds.index[seeds == part["seed"].nunique()])


def _one_dose(table: pd.DataFrame, by) -> None:
    if "examples" not in by and "examples" in table and table["examples"].nunique() > 1:
        raise ValueError(
            "doses of several sizes in one table; add 'examples' to `by`, or take one: table[table['examples'] == 100]"
        )


def _groups(table: pd.DataFrame, by) -> tuple[list[str], list]:
    by = [by] if isinstance(by, str) else list(by)
    _one_dose(table, by)
    if missing := [c for c in by if c not in table.columns]:
        raise ValueError(
            f"cannot group by {', '.join(missing)}; allowed: {', '.join(c for c in table.columns if c not in ('key', 'item'))}"
        )
    return by, list(table.groupby(by, sort=False, dropna=False)) if len(table) else []


def rates(source, *, by="risk", verdict: str | None = None, cluster: str = "prompt_id") -> pd.DataFrame:
    """Rate of each risk's event at each step, with its interval -> one row a group and step.

    `by`: columns to group by (risk, attack, category, examples, ...). `verdict` counts another outcome instead of
    the event, such as "refused". Columns: the groups, step, rate, low, high (simultaneous over the steps where
    there are several), low_pointwise, high_pointwise, band, n_prompts (before attacks), n_seeds, n_answers (of all seeds and attacks; of the parent once)
    and the count of every verdict among them; `cut`, answers that max_new_tokens ended; `judge_2` and `rate_2` where a second judge stands beside the first.
    Steps that not every seed reached (`stop_when_broken`) are left out.
    """
    table, rows = table_of(source), []
    if verdict:
        table = table.assign(event=[math.nan if v in UNSCORED else float(v == verdict) for v in table["verdict"]])
    by, groups = _groups(table, by)
    for names, part in groups:
        steps = _steps(part)
        cube, ids = _cube(part, steps, cluster=cluster)
        if np.isnan(cube).all():  # nothing could be scored: the counts say why
            none = np.full(len(steps), math.nan)
            band = curves.Band(none, none, none, none, none, "nothing scored", len(cube), 0)
        elif len(cube) == 1 and len(steps) == 1:
            one = stats.rate(cube[0, 0], ids)
            band = curves.Band(
                *(np.array([x]) for x in (one.rate, one.low, one.high, one.low, one.high)), "pointwise", 1, one.n
            )
        else:
            band = curves.bands(cube, cluster=ids)
        for k, step in enumerate(steps):
            here = part[part["step"] == step]
            if step == 0:  # the parent answered once, whatever the number of seeds
                here = here[here["seed"] == here["seed"].min()]
            counts = {v: int((here["verdict"] == v).sum()) for v in VERDICTS}
            extra = {"epoch": here["epoch"].iloc[0]} if "epoch" in here else {}
            rows.append(dict(zip(by, names, strict=True)) | {"step": step} | extra | {
                "rate": band.estimate[k], "low": band.low[k], "high": band.high[k], "low_pointwise": band.low_pointwise[k],
                "high_pointwise": band.high_pointwise[k], "band": f"95 %, {band.kind}", "n_prompts": here.loc[here["event"].notna(), "prompt_id"].nunique(), "n_seeds": band.n_seeds, "n_answers": len(here),
                "judged_by": ", ".join(sorted(set(here["judge"]))) if "judge" in here else "",
            } | counts | ({"cut": int(here["cut"].fillna(False).astype(bool).sum())} if "cut" in here else {}) | _beside(here))  # fmt: skip
    return pd.DataFrame(rows)


def _beside(here: pd.DataFrame) -> dict:
    """-> what further judges say of the same answers: their name and their rate."""
    ranks = sorted(c[-1] for c in here if c.startswith("event_") and here[c].notna().any())
    return {
        k: v
        for r in ranks
        for k, v in ((f"judge_{r}", here[f"judge_{r}"].iloc[0]), (f"rate_{r}", here[f"event_{r}"].mean()))
    }


def by_seed(source, *, by="risk", verdict: str | None = None) -> pd.DataFrame:
    """The rate of every single training seed -> one row a group, seed and step (the thin lines of a figure)."""
    table = table_of(source)
    if verdict:
        table = table.assign(event=[math.nan if v in UNSCORED else float(v == verdict) for v in table["verdict"]])
    by, _ = _groups(table, by)
    return table.groupby([*by, "seed", "step"], sort=False)["event"].mean().rename("rate").reset_index()


def compare(before, after=None, *, by="risk", steps=None, cluster: str = "prompt_id", **settings) -> pd.DataFrame:
    """Parent against child on the same prompts -> paired ratio, difference, McNemar, one row a group and step.

    `compare(curve)` pairs step 0 with every later step (or those in `steps`) over all seeds;
    `compare(parent, child)` pairs two evaluation runs, or two models, which `evaluate` measures first with
    `settings` (off the embedded model: `prompts`). Intervals: Bonett-Price (ratio) and Newcombe (difference) for
    one seed where every answer is a cluster of its own, else as the column `method` says (`stats.paired`). McNemar is taken
    over clusters (prompts, by the sign of their net change over attacks), each seed by itself. Over a parent without the event the ratio is infinite and
    `ratio_low` a lower bound. n_prompts counts those scored on both sides, before attacks; clusters what the
    interval takes as independent; mcnemar_holm is adjusted for the number of rows, the intervals are not.
    """
    if settings and (after is None or (_is_table(before) and _is_table(after))):
        raise ValueError(
            f"unknown setting {', '.join(map(repr, settings))}: what is compared is measured already; allowed: by, steps, cluster"
        )
    if after is None:
        table = table_of(before)
        first, later = table[table["step"] == 0], table[table["step"] > 0]
    else:
        _same(before, after)
        if not (_is_table(before) and _is_table(after)):
            from ftlab.models import model

            before, after = (s if _is_table(s) else model(s) for s in (before, after))  # a wrong name is told first
        first, later = (table_of(s if _is_table(s) else _evaluated(s, settings)) for s in (before, after))
        later = later.assign(step=later["step"].where(later["step"] > 0, 1))
    if first.empty or later.empty:
        raise ValueError(
            f"steps found: {sorted(set(first['step']) | set(later['step']))}; a comparison needs the parent (step 0) and a later step"
        )
    if steps is not None and (unknown := sorted(set(steps) - set(later["step"]))):
        raise ValueError(
            f"steps {unknown} were not measured; allowed: {', '.join(map(str, sorted(later['step'].unique())))}"
        )
    by, groups = _groups(later, by)
    rows = []
    for names, part in groups:
        same = first
        for column, name in zip(by, names, strict=True):
            same = same[same[column] == name] if column in same else same
        items = sorted(set(same["item"]) & set(part["item"]))
        if len(items) < max(same["item"].nunique(), part["item"].nunique()):
            raise ValueError(
                f"{names}: parent and child answered different prompts; evaluate both with the same settings"
            )
        base, ids = _cube(same[same["seed"] == same["seed"].min()], [0], cluster=cluster)
        for step in [s for s in _steps(part) if steps is None or s in steps]:
            cube, _ = _cube(part, [step])
            p = stats.paired(base[0, 0], cube[:, 0], cluster=ids)
            unscored = int(np.isnan(cube).sum() + np.isnan(base).sum())
            paired = ~np.isnan(cube[:, 0] + base[0, 0]).all(axis=0)
            of = dict(zip(part["item"], part["prompt_id"], strict=True))
            asked = {of[i] for i, scored in zip(sorted(items), paired, strict=True) if scored}
            rows.append(dict(zip(by, names, strict=True)) | {"step": step} | {
                "parent": p.parent.rate, "parent_low": p.parent.low, "parent_high": p.parent.high,
                "child": p.child.rate, "child_low": p.child.low, "child_high": p.child.high,
                "ratio": p.ratio, "ratio_low": p.ratio_low, "ratio_high": p.ratio_high,
                "difference": p.difference, "difference_low": p.difference_low, "difference_high": p.difference_high,
                "mcnemar_p": p.mcnemar_p, "gained": p.gained, "lost": p.lost, "both": p.both, "neither": p.neither,
                "n_prompts": len(asked), "n_seeds": p.n_seeds, "unscored": unscored, "clusters": len(set(ids)), "method": p.method,
            })  # fmt: skip
    table = pd.DataFrame(rows)
    if rows:
        table.insert(table.columns.get_loc("mcnemar_p") + 1, "mcnemar_holm", stats.holm(table["mcnemar_p"].tolist()))
    return table


def _same(before, after) -> None:
    """Raises ValueError where two evaluations were not asked and judged alike."""
    if not all(isinstance(s, Run) and "evaluation" in s.config["identity"] for s in (before, after)):
        return
    one, other = (s.config["identity"] for s in (before, after))
    fields = ("system", "decoding", "max_new_tokens", "samples", "attacks", "judges", "toxicity_model")
    apart = [f for f in fields if one["evaluation"].get(f) != other["evaluation"].get(f)]
    apart += ["judge_versions"] * (not apart and one.get("judge_versions") != other.get("judge_versions"))
    if apart:
        raise ValueError(
            f"the two evaluations differ in {', '.join(apart)} ({one['evaluation'].get(apart[0])!r} and "
            f"{other['evaluation'].get(apart[0])!r}); evaluate both with the same settings"
        )


def _is_table(source) -> bool:
    return isinstance(source, pd.DataFrame) or (isinstance(source, Run) and (source.path / "verdicts.jsonl").exists())


def _evaluated(model, settings: dict) -> Run:
    from ftlab.evals import evaluate

    return evaluate(model, **settings)


def crossing(curve, *, ratio: float = 1.5, by="risk") -> pd.DataFrame:
    """The dose at which the risk ratio first passes `ratio` -> one row a group: step, low, high, reached.

    In optimiser steps, linear between measured ones; inf: not within the steps measured. `reached` is the share of
    the bootstrap resamples (seeds and prompts) that pass.
    """
    table = table_of(curve)
    by, groups = _groups(table, by)
    rows = []
    for names, part in groups:
        steps = _steps(part)
        if steps[0] != 0:
            raise ValueError(f"steps found: {', '.join(map(str, steps))}; a crossing needs the parent (step 0)")
        cube, cluster = _cube(part, steps)
        c = curves.crossing(np.array(steps, float), cube[0, 0], cube, ratio=ratio, cluster=cluster)
        rows.append(dict(zip(by, names, strict=True)) | {"ratio": ratio, "step": c.step, "low": c.low, "high": c.high, "reached": c.reached,
                    "per_seed": c.per_seed})  # fmt: skip
    return pd.DataFrame(rows)


def no_refusal(curve, *, by="attack", risk: str = "jailbreak") -> pd.DataFrame:
    """The first step at which no prompt of a risk is refused, and what n of n still allows -> one row a group.

    Columns: step (median over seeds; inf: never), low, high, reached (share of the seeds), n_prompts,
    refusals_at_end (of all seeds' scored answers at the last step), answers_at_end, refusal_rate_below (exact
    one-sided 95 % upper bound for one run, from the number of different prompts scored at the end in every run).
    """
    table = table_of(curve)
    table = table[table["risk"] == risk].assign(
        go=lambda t: [math.nan if v in UNSCORED else float(v != "refused") for v in t["verdict"]]
    )
    by, groups = _groups(table, by)
    rows = []
    for names, part in groups:
        steps = sorted(part["step"].unique())
        cube, _ = _cube(part, steps, "go")
        c = curves.first_all(np.array(steps, float), cube)
        ends = part[part["step"] == part.groupby("seed")["step"].transform("max")]  # of each seed, where it ended
        end, unscored = ends["go"].dropna(), set(ends.loc[ends["go"].isna(), "prompt_id"])
        n = len(set(ends["prompt_id"]) - unscored)
        rows.append(dict(zip(by, names, strict=True)) | {
            "step": c.step, "low": c.low, "high": c.high, "reached": c.reached, "n_prompts": n, "n_seeds": len(cube), "last_step": steps[-1],
            "refusals_at_end": int((end == 0).sum()), "answers_at_end": end.size,
            "refusal_rate_below": stats.upper_bound_when_none(n) if n and (end == 1).all() else math.nan,
        })  # fmt: skip
    return pd.DataFrame(rows)


def outcomes(source, *, risk: str = "jailbreak", attack: str | None = None) -> pd.DataFrame:
    """Share of every verdict at each step, over all seeds and prompts of a risk -> columns step, outcome, share."""
    table = table_of(source)
    _one_dose(table, ())
    table = table[(table["risk"] == risk) & ((table["attack"] == attack) if attack else True)]
    judge = ", ".join(sorted(set(table["judge"]))) if "judge" in table else ""
    shares = (
        table.groupby("step")["verdict"]
        .value_counts(normalize=True)
        .unstack(fill_value=0.0)
        .reindex(columns=VERDICTS, fill_value=0.0)
    )
    return shares.rename_axis(columns="outcome").stack().rename("share").reset_index().assign(judged_by=judge)


def judged(run: Run, judge: str) -> pd.DataFrame:
    """The same answers before another judge -> the run's table with that judge's verdicts and events."""
    members = run.config["identity"].get("members", [run.name])
    return pd.DataFrame([row for m in members for row in rejudged(Run(run.path.parent / m), judge)])


def before_after(curve, *, by="attack", step: int | None = None) -> pd.DataFrame:
    """Rates before (step 0) and after (`step`, default the last) in each group -> columns group, series, rate, low, high, band, judged_by."""
    table = table_of(curve)
    last = max(table["step"]) if step is None else step
    shown = rates(table[table["step"].isin([0, last])], by=by)
    series = np.where(shown["step"] == 0, "before", f"after {last} steps")
    low, high = shown["low_pointwise"], shown["high_pointwise"]
    shown = shown.assign(group=shown[by], series=series, low=low, high=high, band="95 %, pointwise")
    return shown[["group", "series", "rate", "low", "high", "band", "judged_by"]]


def plot(source, name: str | None = None, out=None, **options):
    """A figure of a run or of a table of this module -> a Drawing; saved as .svg, .png, .csv where `out` is given.

    A run is drawn as its rates with the single seeds behind, a dose run as its jailbreaks by dose. Tables and
    `options` as in `figures.plot`.
    """
    from ftlab.analysis.plots import figures

    if isinstance(source, Run) and source.config["identity"]["kind"] == "dose":
        source = rates(source.table().query("risk == 'jailbreak'"), by=["examples", "attack"])
        options.setdefault("kind", "dose")
    elif isinstance(source, Run):
        options.setdefault("seeds", by_seed(source))
        source = rates(source)
    return figures.plot(source, name, out, **options)
