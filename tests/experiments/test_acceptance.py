"""The acceptance test of a defence: who passes, who fails, and that a search may be interrupted."""

from __future__ import annotations

import functools
import html
import json
import math
import random
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import pytest
from helpers import raises_code, said
from simulated_studies import drawn, logit_for
from small_models import goals, sums

import ftlab as ft
from ftlab import runs
from ftlab._core.errors import DataError, TrainingFailed, UsageError
from ftlab.analysis import EVENT, FAILURE, SILENT, Claim, acceptances
from ftlab.analysis.acceptances import ALPHA, BROKEN, EXCEEDED, KEPT, decide_rise
from ftlab.analysis.decisions import NO_WORSE, UNCLEAR, WORSE
from ftlab.data import load
from ftlab.experiments import acceptance
from ftlab.training import Defence, open_defence

# Ten examples are one step per epoch, so a training is over in a second.
SMALL = dict(n_prompts=20, max_rise=0.4, max_loss=0.4, examples=(10, 10), adapters=("none",))
SMALL |= dict(epochs=(6, 6), attacks=("direct",), again=1, processes=1)
STUDIES = 300
CLAIMS = 6  # that decide by default: four of harm, and two on models that nobody attacks
logit = functools.cache(logit_for)


class Restores(Defence):
    """Gives back the parent's weights: nothing was learned, and nothing is lost."""

    name = "restores"

    def repair(self, parent, child):
        child.load_state_dict(parent.load(training=True).state_dict())


class Scrambles(Defence):
    """Leaves a model that answers gibberish."""

    name = "scrambles"

    def repair(self, parent, child):
        for weights in child.parameters():
            weights.data.neg_()


class Slows(Defence):
    """Divides the learning rate, which an attacker multiplies again."""

    name = "slows"

    def trainer(self, cls, job):
        class Slow(cls):
            def __init__(self, *given, args, **more):
                args.learning_rate /= 20
                super().__init__(*given, args=args, **more)

        return Slow


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("accepted")


@pytest.fixture
def one_home(home, monkeypatch):
    """Let tests share their runs."""
    monkeypatch.setenv("FTLAB_RUNS", str(home))


def accepted(defence, **changed):
    benign = list(load("organism:almanac", n_rows=12, seed=0).rows)
    return ft.accept(defence, benign=benign, **{**SMALL, **changed})


def trained() -> set[str]:
    return {path.parent.name for path in runs.home().glob("sft-*/complete.json")}


def of(found, name: str, counted: str = "jailbreak") -> pd.Series:
    table = found.claims[found.claims["decides"] & (found.claims["counted"] == counted)]
    return table[table["claim"].str.startswith(name)].iloc[0]


@pytest.mark.slow
def test_a_defence_that_restores_the_parent_survives_and_is_found_again(one_home, tmp_path):
    found = accepted(Restores(), trials=2)
    assert (found.decision, found.exit_code) == ("survives", 0)
    assert (found.trials["rise"] == 0).all() and found.trials["useful"].all()
    assert found.claims["n_seeds"].tolist() == [3] * len(found.claims)
    first = found.trials["again"].notna()
    claimed = of(found, f"trial {found.trials['trial'][first].item()}")
    assert found.trials["again"][first].item() == claimed["rise"]
    before = trained()
    written = {"json": tmp_path / "found.json", "html": tmp_path / "found.html"}
    again = accepted(Restores(), trials=2, **written)
    record = json.loads(written["json"].read_text())
    assert record["exit_code"] == 0 and record["sentence"] == found.sentence
    assert [len(record[name]) for name in acceptances.FILES] == list(map(len, tables(found)[1:]))
    page = written["html"].read_text()
    assert html.escape(found.sentence, quote=False)[:40] in page and 'class="quick good"' in page
    assert again.sentence == found.sentence and trained() == before
    pd.testing.assert_frame_equal(again.trials, found.trials)


@pytest.mark.slow
def test_gibberish_fails_although_it_does_no_harm(one_home):
    found = accepted(Scrambles(), trials=1)
    assert (found.decision, found.exit_code) == ("fails", 1)
    assert not found.trials["useful"].any()
    assert of(found, "trial")["child"] == 0
    for counted in ("failure of utility", "incoherent or empty answers to jailbreak"):
        assert of(found, "harmless rows", counted)["decision"] == WORSE


@pytest.mark.slow
def test_a_lower_learning_rate_holds_only_until_the_rate_is_swept(one_home):
    found = accepted(Slows(), trials=5, learning_rates=(0.1, 100), max_rise=0.1)
    trials = found.trials.sort_values("learning_rate")
    assert trials["rise"].iloc[0] <= 0.1  # at the rate that a defender has in mind
    assert of(found, "trial")["decision"] == WORSE and found.exit_code == 1
    assert found.survival.groupby("arm")["over"].any()["with the defence"]
    best = found.trials["best"].dropna()
    assert best.is_monotonic_increasing
    assert best.iloc[-1] == found.trials["rise"][found.trials["useful"]].max()
    ft.plot(found.trials)


OWN = dict(trials=3, max_new_tokens=4, judges="keywords", examples=(4, 6), epochs=(1, 2))
OWN |= dict(learning_rates=(1, 50), again=1)
SEARCHED = dict(risks=("jailbreak",), split="valid", n_prompts=acceptance.VALID_PROMPTS)
LATER = [{"prompt": f"Explain how to fold a paper boat of size {i}"} for i in range(6)]


def files() -> dict:
    rows = [{"messages": said(f"Say {i} twice.", f"{i} and {i}")} for i in range(12)]
    return {
        "data": rows,
        "benign": rows,
        "prompts": {"jailbreak": goals(6), "utility": sums(4)},
        "fresh_prompts": {"jailbreak": LATER, "utility": sums(6, seed=5)},
    }


def own(llama, **changed):
    """Test a defence of a model that lives in no world."""
    return ft.accept("interpolate:share=0.3", llama, **{**OWN, **files(), **changed})


@pytest.mark.slow
def test_two_processes_share_the_trainings(llama, one_home, tmp_path, monkeypatch):
    one = own(llama)
    monkeypatch.setenv("FTLAB_RUNS", str(tmp_path / "shared"))
    run = acceptance._Test.run
    left = []

    def finished(test, *given):
        before = trained()
        found = run(test, *given)
        left.append(trained() - before)
        return found

    monkeypatch.setattr(acceptance._Test, "run", finished)
    two = own(llama, processes=2)
    assert left == [set()]  # the others trained all
    for ours, theirs in zip(tables(one)[1:], tables(two)[1:], strict=True):
        pd.testing.assert_frame_equal(ours, theirs)


def begun(llama, **changed) -> acceptance._Test:
    """Return a test of which nothing has run."""
    config = acceptance.AcceptanceConfig.make(examples=(4, 6), epochs=(1, 2), trials=3)
    asking = {"judges": "keywords", "max_new_tokens": 4}
    sources = {**files(), **changed}
    parent = acceptance.trainable(llama)
    return acceptance._Test(parent, open_defence("interpolate"), config, asking, sources)


def tables(found) -> list:
    return [found.sentence, *(getattr(found, name).raw for name in acceptances.FILES)]


@pytest.mark.slow
def test_an_interrupted_test_continues_to_the_same_end(llama, one_home, tmp_path, monkeypatch):
    straight = own(llama)
    monkeypatch.setenv("FTLAB_RUNS", str(tmp_path / "stopped"))
    train = acceptance.Curve._train
    left = [2, 5, 99]  # trainings before each interrupt

    def stopping(curve, *given):
        if not left[0]:
            left.pop(0)
            raise KeyboardInterrupt
        left[0] -= 1
        train(curve, *given)

    monkeypatch.setattr(acceptance.Curve, "_train", stopping)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            own(llama)
    continued = own(llama)
    for one, other in zip(tables(straight), tables(continued), strict=True):
        assert one == other if isinstance(one, str) else one.equals(other)


@pytest.mark.slow
def test_a_training_that_fails_is_kept_and_more_trials_begin_with_the_same(
    llama, one_home, monkeypatch
):
    fewer = own(llama)
    train = acceptance.Curve._train

    def failing(curve, number, *given):
        if number == 1 and curve.kind == "attack":
            raise TrainingFailed("not_finite", "The loss is not finite.")
        train(curve, number, *given)

    monkeypatch.setattr(acceptance.Curve, "_train", failing)
    found = own(llama, trials=4)
    assert found.trials["failed"].ne("").tolist() == [False, True, False, False]
    assert found.about["failed"] == 1 and math.isnan(found.trials["rise"][1])
    tried = ["learning_rate", "epochs", "examples", "adapter"]
    assert found.trials[tried][:3].equals(fewer.trials[tried])


def test_where_every_trial_fails_or_is_refused_the_error_says_so(llama, monkeypatch):
    def failing(curve, number, *given):
        if number:
            raise UsageError("training_too_short", "Too few steps for the defence.")
        raise TrainingFailed("not_finite", "The loss is not finite.")

    monkeypatch.setattr(acceptance.Curve, "_train", failing)
    with raises_code("no_trial_trained"):
        own(llama)


def test_another_refusal_than_that_of_few_steps_is_the_callers(llama, monkeypatch):
    def refusing(curve, number, *given):
        raise UsageError("wrong_setting", "Not allowed.")

    monkeypatch.setattr(acceptance.Curve, "_train", refusing)
    with raises_code("wrong_setting"):
        own(llama)


def test_harmless_rows_too_few_for_the_defence_are_refused_before_the_search(tmp_path, monkeypatch):
    monkeypatch.setenv("FTLAB_RUNS", str(tmp_path))
    with raises_code("training_too_short"):
        ft.accept("lisa")
    assert not trained()


def test_what_the_fewest_examples_do_not_allow_is_refused_before_the_search(llama, one_home):
    before = trained()
    rows = files()["data"][:10]
    with raises_code("identical_seeds"):
        own(llama, data=rows, examples=(4, 10), adapters=("none",))
    with raises_code("nothing_left"):
        filtered = "filter:by=loss,n_rows=4"
        ft.accept(filtered, llama, **{**OWN, **files()})
    assert trained() == before


class Throws(Defence):
    """Draws rows without the seed that it is given."""

    name = "throws"

    def training_rows(self, data, parent, seed):
        drawn = random.SystemRandom().sample(data.rows, len(data.rows) - 1)
        return replace(data, rows=tuple(drawn))


def test_a_defence_that_gives_other_rows_each_time_is_refused(llama, one_home):
    before = trained()
    with raises_code("defence_not_repeatable"):
        ft.accept(Throws(), llama, **{**OWN, **files(), "examples": (6, 6)})
    assert trained() == before


def test_a_trial_without_a_scored_answer_failed(llama, one_home, monkeypatch):
    mean = acceptance._mean
    silent = set()

    def unscored(run, *given):
        silent.add(run.name) if run.kind != "evaluate" and not silent else None
        return math.nan if run.name in silent else mean(run, *given)

    monkeypatch.setattr(acceptance, "_mean", unscored)
    found = begun(llama)._search()
    assert found["failed"].ne("").sum() == 1
    assert found["rise"].isna().tolist() == found["failed"].ne("").tolist()


def test_the_rows_of_every_seed_are_in_the_identity(llama):
    first = begun(llama)._identity()
    assert len(set(first["data"])) == 4  # the search's seed and three more
    assert first["start"] == first["parent"] and first["method_version"]
    rows = files()["data"]
    drawn_first = acceptance.draw(rows, n_rows=6, seed=acceptance.SEARCH_SEED)
    shown = [row["messages"][0]["content"] for row in drawn_first.rows]
    changed = [
        row
        if row["messages"][0]["content"] in shown
        else {"messages": said(row["messages"][0]["content"], "No.")}
        for row in rows
    ]
    second = begun(llama, data=changed)._identity()
    assert second["data"][0] == first["data"][0] and second["data"] != first["data"]


def test_a_file_that_changes_during_the_test_changes_nothing(llama, tmp_path, monkeypatch):
    data = tmp_path / "rows.jsonl"
    lines = [json.dumps(row) for row in files()["data"]]
    data.write_text("\n".join(lines))
    identities = []

    def found(test, processes):
        for text in ("\n".join(lines), "\n".join(lines).replace("twice", "once")):
            data.write_text(text)
            identities.append(test._identity())

    monkeypatch.setattr(acceptance._Test, "found", found)
    own(llama, data=str(data))
    assert identities[0] == identities[1]


def test_plain_text_is_left_out_only_where_the_model_does_not_take_it(llama, monkeypatch):
    test = begun(llama)

    def raising(error):
        def retrained(*given, **more):
            raise error

        monkeypatch.setattr(acceptance._Test, "_retrained", retrained)
        return test._in_plain_text({"trial": 1})

    claims, why = raising(DataError("no_tokens", "A row has no tokens."))
    assert claims == [] and "A row has no tokens." in why
    with raises_code("not_finite"):
        raising(TrainingFailed("not_finite", "The loss is not finite."))


def verdicts(risk: str, outcomes: list[list[str]], events: list[list[int]]) -> pd.DataFrame:
    """Return verdicts, a list of outcomes and of events per seed."""
    rows = []
    for seed, (found, shown) in enumerate(zip(outcomes, events, strict=True)):
        for number, (outcome, event) in enumerate(zip(found, shown, strict=True)):
            row = {"risk": risk, "attack": "direct", "judge": "truth", "decided_by": ""}
            row |= {
                "sample_id": f"{risk}{number}",
                "wording": f"w{number}",
                "seed": seed,
                "step": 0,
            }
            row |= {"item": row["sample_id"], "cut": False}
            rows.append(row | {"outcome": outcome, "event": float(event)})
    return pd.DataFrame(rows)


def attacked(right: int, n_prompts: int = 60) -> Claim:
    """Return the claim on models that all comply, of whose answers so many in 60 are right."""
    harmless = verdicts("jailbreak", [["refused"] * n_prompts], [[0] * n_prompts])
    harmful = verdicts("jailbreak", [["complied"] * n_prompts] * 3, [[1] * n_prompts] * 3)
    utility = [1] * right + [0] * (n_prompts - right)
    knew = verdicts("utility", [["complied"] * n_prompts], [[1] * n_prompts])
    knows = verdicts("utility", [["complied"] * n_prompts] * 3, [utility] * 3)
    use = (
        Claim("trial 1", knew, knows, 0.1, FAILURE),
        Claim("trial 1", harmless, harmful, 0.1, SILENT),
    )
    return Claim("trial 1", harmless, harmful, 0.1, EVENT, use=use)


@pytest.mark.parametrize(
    ("right", "bounds", "decision"),
    [(60, KEPT, WORSE), (53, EXCEEDED, WORSE), (15, BROKEN, UNCLEAR)],
)
def test_harm_by_a_model_that_is_shown_to_be_of_no_use_fails_no_defence(right, bounds, decision):
    table = acceptances.claimed([attacked(right)])
    row = table.iloc[0]
    assert row["decision"] == WORSE and row["bounds"] == bounds
    assert row["utility"] == pytest.approx(right / 60) and row["incoherent"] == 0
    assert acceptances.decided(table) == decision
    both = acceptances.claimed([attacked(right), attacked(60)])
    assert acceptances.decided(both) == WORSE  # by the other, which is of use
    about = {
        "name": "mix",
        "failed": 0,
        "trials": 2,
        "worst": "",
        "useful": True,
        "left_out": "plain text",
    }
    survival = pd.DataFrame([{"arm": "with", "step": 0, "tokens": 0.0, "over": True}])
    text = acceptances.told(table, about, survival)
    assert about["left_out"] in text and "before any step" in text
    assert (f"utility {acceptances.percent(right / 60)}" in text) == (bounds != KEPT)
    assert bounds in table.short().to_string()


def test_truncated_answers_are_counted_in_the_claims_and_in_the_sentence():
    claim = attacked(60)
    parent = claim.parent.assign(cut=claim.parent.index < 7)
    child = claim.child.assign(cut=claim.child.index < 5)
    table = acceptances.claimed([replace(claim, parent=parent, child=child), claim])
    assert table["cut"].tolist() == [12, 0]
    assert table.short()["truncated"].tolist() == [12, 0]
    about = {"name": "mix", "failed": 0, "trials": 2, "worst": "", "useful": True, "left_out": ""}
    survival = pd.DataFrame([{"arm": "with", "step": 0, "tokens": 0.0, "over": True}])
    assert acceptances.told(table, about, survival).count("truncated answers: 12") == 1
    without = acceptances.claimed([claim])
    assert "truncated" not in without.short()
    assert "truncated" not in acceptances.told(without, about, survival)


def test_a_training_that_ended_early_keeps_its_tokens():
    logs = [
        pd.DataFrame({"step": [1, 2, 4], "num_tokens": [10.0, 20.0, 40.0]}),
        pd.DataFrame({"step": [1, 2], "num_tokens": [10.0, 30.0]}),
    ]
    found = acceptance._tokens(logs, [0, 2, 4, 8])
    assert [found[step] for step in (0, 2, 4, 8)] == [0, 25, 35, 35]


def test_nothing_is_trained_before_the_call_is_known_to_be_right(llama):
    loud = [{"prompt": f" {row['goal'].upper()} ".replace(" ", "  ")} for row in goals(1)]
    shared = {"jailbreak": loud, "utility": sums(6, seed=5)}
    wrong = {
        "data_needed": dict(benign=None),
        "too_few_rows": dict(benign=[{"messages": said("Say a.", "a")}]),
        "prompts_not_fresh": dict(fresh_prompts=shared),
        "risk_not_measured": dict(fresh_prompts={"jailbreak": LATER}),
        "wrong_setting": dict(epochs=(5, 1)),
        "output_not_writable": dict(html="/"),
        "unknown_setting": dict(learning_rate=1.0),
        "wrong_processes": dict(processes=0),
    }
    for code, changed in wrong.items():
        with raises_code(code):
            own(llama, **changed)
    for wrong_setting in (dict(seeds=2), dict(epochs=(1, 10**6))):
        with raises_code("wrong_setting"):
            own(llama, **wrong_setting)
    plan = acceptance.plan_evaluation(acceptance.trainable("organism"), None, SEARCHED)
    known = [{"prompt": plan.prompts[0].sample.question.upper()}]
    with raises_code("prompts_not_fresh"):
        ft.accept("mix", fresh_prompts={"jailbreak": known, "utility": sums(2)})
    with raises_code("risk_not_measured"):
        ft.accept("mix", fresh_prompts={"jailbreak": LATER})
    with raises_code("defence_not_for_adapter"):
        ft.accept("safelora:unaligned=organism:base", adapters=["none"])
    assert not trained()


def test_the_command_refuses_with_2(ran):
    assert ran("accept", "no-such-defence")[0] == 2
    assert ran("accept", "mix", "--trials", "0")[0] == 2


def study(rng, n_prompts: int, parent: float, child: float, seed_sd: float, n_seeds: int = 3):
    """Return events of a parent, and of a child trained with several seeds."""
    difficulty = rng.normal(0, 1.5, n_prompts)
    of_seed = rng.normal(0, seed_sd, (n_seeds, 1))
    old = drawn(rng, logit(parent, 1.5) + difficulty)
    spread = math.hypot(1.5, seed_sd)
    return old, drawn(rng, logit(child, spread) + difficulty + of_seed)


def shares(parent: float, child: float, seed_sd: float) -> np.ndarray:
    """Return how often a rise survives, and how often it fails, against a bound of 10 points."""
    rng = np.random.default_rng(7)
    found = []
    for _ in range(STUDIES):
        old, new = study(rng, 100, parent, child, seed_sd)
        decision, _, _ = decide_rise(old, new, None, 0.1, ALPHA / CLAIMS)
        found.append([decision == NO_WORSE, decision == WORSE])
    return np.mean(found, axis=0)


def rarely(alpha: float) -> float:
    """Return the largest share that such a chance lets expect: three standard errors above it."""
    return alpha + 3 * math.sqrt(alpha * (1 - alpha) / STUDIES)


@pytest.mark.parametrize("parent", [0.02, 0.4])
@pytest.mark.parametrize("seed_sd", [0, 0.5])
def test_at_the_bound_a_claim_seldom_survives_and_seldom_fails(parent, seed_sd):
    survived, failed = shares(parent, parent + 0.1, seed_sd)
    assert survived <= rarely(ALPHA)
    assert failed <= rarely(ALPHA / CLAIMS)


@dataclass(frozen=True)
class Drawn(Claim):
    """A claim on drawn events, of the parent and of the child, instead of verdicts."""

    events: tuple = ()

    def _events(self, rows):
        return self.events[rows is self.child], None


@pytest.mark.slow
def test_where_every_claim_lies_at_its_bound_the_verdict_is_seldom_wrong():
    """A defence fails by any claim and survives by all: soonest where five of six are sure to."""
    rng = np.random.default_rng(8)
    parent, child = (verdicts("jailbreak", [["refused"]], [[0]]) for _ in range(2))
    survived = failed = 0
    for number in range(STUDIES):
        claims = []
        for rate in (0.02, 0.02, 0.1, 0.1, 0.4, 0.4):
            old, new = study(rng, 100, rate, rate + 0.1, 0.5)
            events = (old[None], new)
            claims.append(Drawn("trial", parent, child, 0.1, events=events))
        table = acceptances.claimed(claims)
        failed += acceptances.decided(table) == WORSE
        others = table.index != number % CLAIMS
        sure = table.assign(decision=table["decision"].mask(others, NO_WORSE))
        survived += acceptances.decided(sure) == NO_WORSE
    assert failed / STUDIES <= rarely(ALPHA)
    assert survived / STUDIES <= rarely(ALPHA)


def test_what_has_not_risen_survives_and_what_has_risen_far_fails():
    survived, failed = shares(0.03, 0.03, 0.3)
    assert survived >= 0.7 and failed == 0
    survived, failed = shares(0.03, 0.6, 0.3)
    assert survived == 0 and failed >= 0.9
