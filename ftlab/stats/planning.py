"""Plan a study before it is run: prompts, seeds, and the smallest ratio that would be seen."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf, nan, sqrt

import numpy as np
from numpy import ndarray

from ftlab._core.errors import UsageError
from ftlab.stats.comparison import paired
from ftlab.stats.rates import quantile, tail
from ftlab.stats.variance import FEWEST_SEEDS

POINTS = 40  # of Gauss and Hermite, in each direction
MOST_PROMPTS = 20_000
MOST_SEEDS = 20
STUDIES = (100, 400)  # simulated, at least and at most: the error of a power of .8 is .04, .02
ANSWERS = 4_000_000  # simulated, about; few studies where each is large


@dataclass(frozen=True)
class StudyPlan:
    """What a study would show, if its child's rate is `ratio` times the parent's."""

    parent_rate: float
    ratio: float
    prompts: int
    seeds: int
    seed_sd: float  # between training seeds, in logits
    prompt_sd: float  # between prompts, in logits
    correlation: float  # of the prompts' effects before and after
    power: float  # share of studies with p below .05
    studies: int  # simulated for the power; 0: by the formula
    half_width: float  # of the difference's 95 % interval, a share
    smallest_ratio: float  # seen in 80 of 100 studies, on the side of `ratio`; nan: none
    prompts_needed: float  # for 80 of 100 studies with these seeds; inf: more than 20,000
    seeds_needed: float  # fewest from three on, with 20,000 prompts; inf: more than 20


@dataclass(frozen=True)
class _World:
    """Variances of the change of a rate: between prompts, seeds, and single answers.

    `mean` and `square` are of the change of a prompt, and of its square, in studies of one or two
    runs: by the effects of their seeds.
    """

    difference: float
    of_prompts: float
    of_seeds: float
    of_answers: float
    mean: tuple[ndarray, ndarray]  # of one run [seed], of two runs [seed, seed]
    square: tuple[ndarray, ndarray]


def plan(
    parent_rate: float,
    ratio: float = 1.5,
    *,
    prompts: int = 100,
    seeds: int = 5,
    seed_sd: float = 0.3,
    prompt_sd: float = 1.5,
    correlation: float = 0.9,
    simulated: bool = True,
) -> StudyPlan:
    """Say what a paired study of so many prompts and seeds would show.

    `power` is simulated; the other numbers come from the formula of the variance, whose power was
    within .08 of simulated power from a parent at 20 %, and within .09 in four designs at 6 %.

    Args:
        parent_rate: Of the parent, between 0 and 1.
        ratio: Child / parent that is to be seen, above 0 and not 1.
        prompts: Per risk.
        seeds: Training seeds. Below three the study is about these runs only.
        seed_sd: Standard deviation between seeds in logits, as `seed_table` gives it. In the
            embedded world .04 to .6 was found.
        prompt_sd: Standard deviation between prompts in logits.
        correlation: Of the prompts' effects before and after, -1 to 1.
        simulated: Simulate the power, which takes a second or two; otherwise by the formula too.

    Raises:
        UsageError: `wrong_plan`, with every argument that is not allowed.

    Source: noncentral t with the degrees of freedom of Satterthwaite 1946; Card et al. 2020
    (arXiv 2010.06595) on power in this field.
    """
    _check(parent_rate, ratio, prompts, seeds, seed_sd, prompt_sd, correlation)
    sds = (seed_sd, prompt_sd, correlation)
    world = _world(parent_rate, ratio, *sds)
    variance, df = _variance(world, prompts, seeds)
    power = _power(world, prompts, seeds)
    studies = 0
    if simulated:
        fewest, most = STUDIES
        studies = max(fewest, min(most, ANSWERS // (prompts * seeds)))
        power = _simulated_power(parent_rate, ratio, prompts, seeds, *sds, studies)
    return StudyPlan(
        parent_rate=parent_rate,
        ratio=ratio,
        prompts=prompts,
        seeds=seeds,
        seed_sd=seed_sd,
        prompt_sd=prompt_sd,
        correlation=correlation,
        power=power,
        studies=studies,
        half_width=float(quantile(tail(0.95), df)) * sqrt(variance),
        smallest_ratio=_nearest_ratio(parent_rate, ratio > 1, prompts, seeds, sds),
        prompts_needed=_prompts_needed(world, seeds),
        seeds_needed=next(
            (
                k
                for k in range(FEWEST_SEEDS, MOST_SEEDS + 1)
                if _power(world, MOST_PROMPTS, k) >= 0.8
            ),
            inf,
        ),
    )


def logit_sd(
    rate: float,
    sd: float,
    prompt_sd: float = 1.5,
) -> float:
    """Return a standard deviation between seeds in logits, as `plan` takes it.

    Args:
        rate: Mean rate, 0 to 1.
        sd: Standard deviation of the seeds' rates, as `seed_spread` gives it.
        prompt_sd: Standard deviation between prompts in logits, which flattens the slope.

    Returns:
        inf where the rate is 0 or 1, nan where sd is.
    """
    if not 0 < rate < 1:
        return inf
    points, weights = _nodes()
    share = _logistic(_logit_of(rate, prompt_sd) + prompt_sd * points)
    slope = float((share * (1 - share)) @ weights)
    return sd / slope


def smallest_difference(low: float, high: float) -> float:
    """Return the difference that 80 of 100 comparisons as wide as this one would see at 5 %.

    Args:
        low: Lower limit of the difference's 95 % interval.
        high: Upper limit.

    Returns:
        The difference, in the unit of the limits; infinite where they are.

    Source: the normal approximation of power, (1.96 + 0.84) standard errors (Cohen 1988).
    """
    half_width = (high - low) / 2
    return half_width * (1 + float(quantile(0.2)) / float(quantile(tail(0.95))))


def _check(
    parent_rate: float,
    ratio: float,
    prompts: int,
    seeds: int,
    seed_sd: float,
    prompt_sd: float,
    correlation: float,
) -> None:
    problems = []
    if not 0 < parent_rate < 1:
        problems.append(f"parent_rate is {parent_rate}, allowed is between 0 and 1")
    elif not 0 < ratio * parent_rate < 1 or ratio == 1:
        problems.append(f"ratio is {ratio}, allowed is above 0, not 1, below {1 / parent_rate:.3g}")
    for name, value, least, most in (
        ("prompts", prompts, 2, MOST_PROMPTS),
        ("seeds", seeds, 1, MOST_SEEDS),
    ):
        whole = isinstance(value, (int, np.integer))
        if not whole or not least <= value <= most:
            problems.append(f"{name} is {value}, allowed is {least} to {most}, a whole number")
    for name, value in (("seed_sd", seed_sd), ("prompt_sd", prompt_sd)):
        if not 0 <= value <= 10:
            problems.append(f"{name} is {value}, allowed is 0 to 10 logits")
    if not -1 <= correlation <= 1:
        problems.append(f"correlation is {correlation}, allowed is -1 to 1")
    if problems:
        raise UsageError("wrong_plan", "; ".join(problems) + ".")


def _logistic(x: ndarray) -> ndarray:
    return 1 / (1 + np.exp(-x))


def _nodes() -> tuple[ndarray, ndarray]:
    """Return points of a standard normal and their weights."""
    points, weights = np.polynomial.hermite_e.hermegauss(POINTS)
    return points, weights / weights.sum()


def _logit_of(
    rate: float,
    sd: float,
) -> float:
    """Return the logit around which a normal population has this mean rate."""
    from scipy.optimize import brentq

    points, weights = _nodes()
    return brentq(lambda x: _logistic(x + sd * points) @ weights - rate, -60, 60)


def _world(
    parent_rate: float,
    ratio: float,
    seed_sd: float,
    prompt_sd: float,
    correlation: float,
) -> _World:
    points, weights = _nodes()
    child_rate = ratio * parent_rate
    before = _logistic(_logit_of(parent_rate, prompt_sd) + prompt_sd * points)
    rest = sqrt(1 - correlation**2)
    hard = correlation * points[:, None] + rest * points[None, :]  # given the parent's effect
    middle = _logit_of(child_rate, sqrt(prompt_sd**2 + seed_sd**2)) + prompt_sd * hard
    seeds = _logistic(middle[..., None] + seed_sd * points)  # [parent's, own, seed]
    after = seeds @ weights
    pairs = np.outer(weights, weights)
    covariance = (pairs * after * before[:, None]).sum() - child_rate * parent_rate
    of_prompts = (pairs * after**2).sum() - child_rate**2
    of_prompts += parent_rate * (1 - parent_rate) - 2 * covariance
    by_seed = np.einsum("ij,ijk->k", pairs, seeds)
    of_seeds = by_seed**2 @ weights - child_rate**2
    of_answers = child_rate - (pairs * after**2).sum() - of_seeds
    of_runs = _of_runs(pairs, before, seeds)
    return _World(
        child_rate - parent_rate,
        of_prompts,
        max(of_seeds, 0),
        max(of_answers, 0),
        *of_runs,
    )


def _of_runs(
    pairs: ndarray,
    before: ndarray,
    after: ndarray,
) -> tuple[tuple[ndarray, ndarray], tuple[ndarray, ndarray]]:
    """Return mean and mean square of a prompt's change, in one run and in two.

    Args:
        pairs: [40, 40] weights of the prompts' effects, before and after.
        before: [40] chance of the event in the parent.
        after: [40, 40, 40] chance in a run, the last axis by the effect of its seed.
    """
    chance = before[:, None]
    event = after.reshape(-1, POINTS)
    none = 1 - event
    every = pairs.reshape(-1, 1)
    safe = (pairs * (1 - chance)).reshape(-1, 1)  # prompts without the event in the parent
    unsafe = (pairs * chance).reshape(-1, 1)
    rate = (every * event).sum(axis=0)
    sums = rate[:, None] + rate
    unlike = sums - 2 * (every * event).T @ event  # only one of two runs has the event
    all_changed = (safe * event).T @ event + (unsafe * none).T @ none
    parent_rate = unsafe.sum()
    means = (rate - parent_rate, sums / 2 - parent_rate)
    changed = (safe * event + unsafe * none).sum(axis=0)
    squares = (changed, unlike / 4 + all_changed)
    return means, squares


def _variance(
    world: _World,
    prompts: int,
    seeds: int,
) -> tuple[float, float]:
    """Return the variance of the difference and its degrees of freedom."""
    of_answers = world.of_answers / (prompts * seeds)
    of_prompts = world.of_prompts / prompts + of_answers
    if seeds < FEWEST_SEEDS:  # conditional on the runs
        return of_prompts, prompts - 1
    of_seeds = world.of_seeds / seeds + of_answers
    variance = of_prompts + of_seeds - of_answers
    spread = of_seeds**2 / (seeds - 1) + of_prompts**2 / (prompts - 1)
    spread += of_answers**2 / ((seeds - 1) * (prompts - 1))
    return variance, variance**2 / spread


def _power(
    world: _World,
    prompts: int,
    seeds: int,
) -> float:
    from scipy.stats import nct

    if seeds < FEWEST_SEEDS:
        return _power_of_runs(world, prompts, seeds)
    variance, df = _variance(world, prompts, seeds)
    away = abs(world.difference) / sqrt(variance)
    critical = float(quantile(tail(0.95), df))
    return float(nct.sf(critical, df, away))


def _power_of_runs(
    world: _World,
    prompts: int,
    seeds: int,
) -> float:
    """Return the power below FEWEST_SEEDS seeds, where `paired` tests whether these runs changed.

    It is a mean over what runs there may be. One run is tested by McNemar's exact test, of which
    this is the approximation with a correction for continuity; two are tested by Student's t.

    Source: Connor 1987 (Biometrics 43:207), of one run whose shares are known.
    """
    from scipy.special import ndtr

    upward = np.sign(world.difference) * world.mean[seeds - 1]
    square = world.square[seeds - 1]
    error = np.sqrt((square - upward**2) / prompts)
    if seeds == 1:
        needed = 1 / prompts + float(quantile(tail(0.95))) * np.sqrt(square / prompts)
    else:
        needed = float(quantile(tail(0.95), prompts - 1)) * error
    seen = ndtr((upward - needed) / error)
    _, weights = _nodes()
    for _ in range(seeds):
        seen = seen @ weights
    return float(seen)


def _nearest_ratio(
    parent_rate: float,
    upward: bool,
    prompts: int,
    seeds: int,
    sds: tuple,
) -> float:
    """Return the ratio nearest to 1, on one side of it, that would be seen; nan if none."""
    ratios = np.arange(1.05, min(1 / parent_rate, 50), 0.05)
    if not upward:
        ratios = np.arange(0.95, 0.02, -0.05)
    for ratio in ratios:
        world = _world(parent_rate, float(ratio), *sds)
        if _power(world, prompts, seeds) >= 0.8:
            return round(float(ratio), 2)
    return nan


def _prompts_needed(world: _World, seeds: int) -> float:
    if _power(world, MOST_PROMPTS, seeds) < 0.8:
        return inf
    low, high = 2, MOST_PROMPTS
    while high - low > 1:
        middle = (low + high) // 2
        if _power(world, middle, seeds) >= 0.8:
            high = middle
        else:
            low = middle
    return high


def _simulated_power(  # noqa: PLR0913
    parent_rate: float,
    ratio: float,
    prompts: int,
    seeds: int,
    seed_sd: float,
    prompt_sd: float,
    correlation: float,
    studies: int,
) -> float:
    rng = np.random.default_rng(0)
    start = _logit_of(parent_rate, prompt_sd)
    end = _logit_of(ratio * parent_rate, sqrt(prompt_sd**2 + seed_sd**2))
    rest = sqrt(1 - correlation**2)
    seen = 0
    for _ in range(studies):
        own, other = prompt_sd * rng.standard_normal((2, prompts))
        of_seed = seed_sd * rng.standard_normal((seeds, 1))
        before = rng.random(prompts) < _logistic(start + own)
        chance = _logistic(end + correlation * own + rest * other + of_seed)
        after = rng.random(chance.shape) < chance
        found = paired(before, after)
        seen += found.p < 0.05 and (found.difference > 0) == (ratio > 1)
    return seen / studies
