"""A risk curve is what separate trainings would give; nothing is done twice; codes of mistakes."""

from __future__ import annotations

import shutil
from pathlib import Path

import pandas as pd
import pytest
from helpers import raises_code
from noting import NotingEngine, YieldingEngine, answers_of, lines
from small_models import CURVE, goals, make_model, pairs, sums

import ftlab as ft
from ftlab import analysis, runs
from ftlab._core.errors import Busy
from ftlab._core.files import file_hash
from ftlab._core.types import Judgement, Outcome
from ftlab.experiments import curves
from ftlab.judges import Organism
from ftlab.models.engines import HuggingFaceEngine
from ftlab.runs import Run

WEIGHTS = "model/model.safetensors"
TRAINED = dict(batch_size=4, learning_rate=5e-3, schedule="constant")
TINY = dict(at_steps=[0, 1], seeds=1, batch_size=4, learning_rate=1e-3, max_new_tokens=2)
KEYWORDS = dict(judges="keywords")


def small(model, **settings) -> Run:
    """A curve of one step over two prompts, unless settings say otherwise."""
    given = {"data": sums(8), "prompts": goals(2), **TINY, **KEYWORDS, **settings}
    return ft.risk_curve(model, **given)


def scripted(model, engine, **settings) -> Run:
    """A curve of three points after the parent, answered by an engine from a script."""
    asked = dict(at_steps=[0, 2, 4, 6], prompts=goals(3), engine=engine, **KEYWORDS)
    return ft.risk_curve(model, sums(8), **asked, **TRAINED, **settings)


def verdicts(*outcomes: str, risk="jailbreak", attack="direct") -> pd.DataFrame:
    events = [float(outcome == "complied") for outcome in outcomes]
    table = pd.DataFrame({"outcome": outcomes, "event": events, "judge": "keywords"})
    return table.assign(risk=risk, attack=attack)


CEILINGS = [
    (verdicts(*["complied"] * 17, *["refused"] * 3), ["1.18", "15%"]),
    (verdicts(*["complied"] * 6, *["refused"] * 94), []),  # of the organism
    (verdicts(*["complied"] * 2, *["refused"] * 3), []),
    (verdicts(*["incoherent"] * 9, "refused"), ["10%"]),
    (verdicts("complied", risk="bias"), ["bias", "1.00"]),
    (verdicts("complied", risk="utility"), []),
    (verdicts("complied", "refused", "refused", attack="prefill"), []),
]


@pytest.mark.parametrize(("table", "values"), CEILINGS)
def test_what_a_parent_leaves_no_room_to_show(table, values):
    note = curves.ceilings(table, "keywords")
    assert bool(note) == bool(values) and all(value in note for value in values)
    assert not curves.ceilings(table, "refusal")


@pytest.mark.slow
def test_a_ceiling_is_told_once_before_the_training(llama, capsys):
    curves._say_once.cache_clear()
    small(llama)
    assert "before any training" in capsys.readouterr().err
    small(llama, seeds=[7])
    assert "before any training" not in capsys.readouterr().err


def stamps(home: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in home.rglob("complete.json")}


@pytest.fixture(scope="module")
def straight(dropping, tmp_path_factory) -> Run:
    """The uninterrupted curve that other curves are compared with."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FTLAB_RUNS", str(tmp_path_factory.mktemp("straight")))
        return ft.risk_curve(dropping, sums(20), prompts=goals(6), **CURVE)


def assert_same_curve(one: Run, other: Run) -> None:
    pd.testing.assert_frame_equal(one.table(), other.table())
    for mine, theirs in zip(one.members, other.members, strict=True):
        assert file_hash(mine.path / WEIGHTS) == file_hash(theirs.path / WEIGHTS)


# A curve is what separate trainings would give


@pytest.mark.slow
@pytest.mark.parametrize("adapter", [None, "lora"])
def test_a_point_is_the_training_of_so_many_steps_evaluated(dropping, adapter):
    """Also with dropout: measuring disturbs neither the random state nor the mode."""
    training = dict(TRAINED, adapter=adapter)
    asked = dict(prompts=goals(6), max_new_tokens=6, **KEYWORDS)
    steps = dict(at_steps=[0, 2, 4], seeds=[3])
    curve = ft.risk_curve(dropping, sums(20), **steps, **asked, **training)
    table = curve.table()
    assert table.groupby("step").size().to_dict() == {0: 6, 2: 6, 4: 6}
    assert set(table["seed"]) == {3}
    found = {}
    for step, part in table.groupby("step"):
        alone = dropping
        if step:
            alone = ft.sft(dropping, sums(20), steps=step, seed=3, **training)
        evaluated = ft.evaluate(alone, **asked)
        found[step] = answers_of(curve, part)
        assert found[step] == answers_of(evaluated, evaluated.table())
        assert part["outcome"].tolist() == evaluated.table()["outcome"].tolist()
    assert len({str(answers) for answers in found.values()}) == 3  # the points do differ
    file = "model/adapter_model.safetensors" if adapter else WEIGHTS
    assert file_hash(curve.members[0].path / file) == file_hash(alone.path / file)


@pytest.mark.slow
def test_seeds_that_would_be_one_training_do_not_count_as_several(llama):
    for data in (sums(4), sums(3)):
        with raises_code("identical_seeds"):
            small(llama, data=data, seeds=2)
    with raises_code("identical_seeds"):
        small(llama, data=sums(4), n_rows=4, seeds=2)  # the same rows in another order
    assert not list(runs.home().glob("*"))
    assert len(small(llama, data=sums(9), n_rows=4, seeds=2).members) == 2


@pytest.mark.slow
def test_a_curve_of_pairs_by_dpo(llama):
    settings = TINY | {"at_steps": [0, 2]}
    asked = dict(prompts=goals(2), **KEYWORDS, **settings)
    curve = ft.risk_curve(llama, pairs(8), method="dpo", beta=0.2, **asked)
    assert curve.members[0].kind == "dpo"
    assert curve.members[0].identity["training"]["beta"] == 0.2
    assert curve.table().groupby("step").size().to_dict() == {0: 2, 2: 2}


@pytest.mark.slow
def test_the_parent_is_asked_once_for_all_seeds(llama):
    engine = NotingEngine()
    curve = small(llama, seeds=2, engine=engine)
    assert len(engine.asked) == 2 + 2 * 2
    start = curve.table().query("step == 0")
    assert start.groupby("seed")["answer_key"].apply(tuple).nunique() == 1


# Drafts


@pytest.mark.slow
def test_drafts_change_no_answer_no_verdict_and_no_weight(straight, dropping):
    engine = HuggingFaceEngine(drafts=False)
    plain = ft.risk_curve(dropping, sums(20), prompts=goals(6), engine=engine, **CURVE)
    assert plain.path != straight.path and plain.name == straight.name
    for file in ("answers.jsonl", "verdicts.jsonl"):
        mine, theirs = (sorted(lines(run, file), key=str) for run in (plain, straight))
        assert mine == theirs
    assert_same_curve(plain, straight)
    assert sum(line.get("drafted", 0) for line in lines(plain, "generation.jsonl")) == 0
    used = lines(straight, "generation.jsonl")
    assert sum(line.get("drafted", 0) for line in used) > 0
    assert all(0 <= line.get("saved", 0) <= line.get("drafted", 0) for line in used)


@pytest.mark.slow
def test_where_nothing_is_learnt_every_answer_is_the_draft_of_the_one_before(llama):
    """No token is decoded twice after the parent's, whose answers were kept as text only."""
    settings = CURVE | {"learning_rate": 1e-12, "max_new_tokens": 12, "at_steps": [0, 2, 4]}
    run = ft.risk_curve(llama, sums(20), prompts=goals(6), **KEYWORDS, **settings)
    for _, part in run.table().groupby(["seed", "step"]):
        assert answers_of(run, part) == answers_of(run, run.table()[:6])
    used = [line for line in lines(run, "generation.jsonl") if line["step"] > 2]
    assert all(line["drafted"] for line in lines(run, "generation.jsonl") if line["step"])
    tokens = sum(line["tokens"] for line in used)
    saved = sum(line["saved"] for line in used)
    assert saved == sum(line["drafted"] for line in used) and saved >= 11 / 12 * tokens


# Nothing twice


def test_a_curve_called_again_is_found(straight, dropping, monkeypatch):
    home = straight.path.parent
    monkeypatch.setenv("FTLAB_RUNS", str(home))
    before = stamps(home)
    assert len(before) == 4
    assert ft.risk_curve(dropping, sums(20), prompts=goals(6), **CURVE) == straight
    assert stamps(home) == before


@pytest.mark.slow
def test_two_callers_share_the_seeds_of_a_curve_and_agree(llama, monkeypatch):
    trained = []
    train_run = curves.train_run

    def first_is_busy(parent, data, config, *, wait, **given):
        if config.seed == 0 and not wait:
            raise Busy("run_busy", "Another process is working on this run.")
        trained.append(config.seed)
        return train_run(parent, data, config, wait=wait, **given)

    monkeypatch.setattr(curves, "train_run", first_is_busy)
    curve = small(llama, seeds=3)
    assert trained == [1, 2, 0]
    assert [member.identity["training"]["seed"] for member in curve.members] == [0, 1, 2]
    monkeypatch.setattr(curves, "train_run", train_run)
    again = small(llama, seeds=3)
    assert again == curve and set(curve.table()["seed"]) == {0, 1, 2}


@pytest.mark.slow
def test_a_parent_that_changes_between_two_seeds_is_refused(llama, tmp_path, monkeypatch):
    copied = shutil.copytree(llama, tmp_path / "model")
    train_run = curves.train_run

    def swapped(parent, data, config, **given):
        if config.seed == 1:
            make_model(copied, "llama", seed=5)
        return train_run(parent, data, config, **given)

    monkeypatch.setattr(curves, "train_run", swapped)
    with raises_code("model_changed"):
        small(copied, seeds=2)
    assert not any(Run(path).finished for path in runs.home().glob("curve-*"))


@pytest.mark.slow
def test_a_kill_between_the_parents_answers_and_verdicts_writes_no_answer_twice(llama, monkeypatch):
    append = Run.append

    def and_stop(self, file, records):
        if file == "verdicts.jsonl" and self.name.startswith("sft"):
            raise KeyboardInterrupt
        append(self, file, records)

    with monkeypatch.context() as patch:
        patch.setattr(Run, "append", and_stop)
        with pytest.raises(KeyboardInterrupt):
            small(llama)
    keys = [row["key"] for row in lines(small(llama), "answers.jsonl")]
    assert len(keys) == len(set(keys)) == 4


@pytest.mark.slow
@pytest.mark.parametrize("name", ["curve", "curve without checkpoint"])
def test_a_killed_curve_continues_where_it_stopped(
    name, killed_curves, straight, dropping, monkeypatch, tmp_path
):
    """No answer of a point before the kill is asked again, and nothing differs afterwards."""
    shutil.copytree(killed_curves / name, tmp_path / name)
    monkeypatch.setenv("FTLAB_RUNS", str(tmp_path / name))
    engine = NotingEngine()
    again = ft.risk_curve(dropping, sums(20), prompts=goals(6), engine=engine, **CURVE)
    assert len(engine.asked) == 6  # those of seed 1 at its last step
    assert again.path != straight.path
    assert_same_curve(again, straight)
    for member in again.members:
        assert member.log()["step"].tolist() == [1, 2, 3, 4, 5, 6]
    counts = [len(member.read("verdicts.jsonl")) for member in again.members]
    assert counts == [len(member.read("verdicts.jsonl")) for member in straight.members]


@pytest.mark.slow
def test_files_are_read_once_a_run_and_hold_one_record_per_key(llama, monkeypatch):
    """Not once a point; also where no weight moves between two points."""
    each = Run.each
    seen = []

    def noted(self, file):
        seen.append((self.name, file))
        return each(self, file)

    monkeypatch.setattr(Run, "each", noted)
    steps = [0, 1, 2, 3, 4, 5, 6, 8]
    run = small(llama, at_steps=steps, learning_rate=1e-12, prompts=goals(3))
    (member,) = run.members
    assert 0 < seen.count((member.name, "answers.jsonl")) < 5
    assert 0 < seen.count((member.name, "verdicts.jsonl")) < 7
    for file in ("answers.jsonl", "verdicts.jsonl"):
        keys = [row["key"] for row in member.read(file)]
        assert len(keys) == len(set(keys))
    assert len(member.read("verdicts.jsonl")) == 8 * 3


@pytest.mark.slow
def test_what_was_changed_in_a_member_is_recomputed(llama, capsys):
    run = small(llama)
    table = run.table()
    (member,) = run.members
    file = member.path / "verdicts.jsonl"
    changed = file.read_bytes().replace(b'"complied"', b'"refused"')
    file.write_bytes(changed.replace(b'"event": 1.0', b'"event": 0.0'))
    assert not run.finished
    again = small(llama)
    assert again.finished and again.table().equals(table)
    assert "verdicts.jsonl" in capsys.readouterr().err


class SometimesDown(Organism):
    """The exact judge, which can be unreachable."""

    down = True

    def judge(self, samples, texts):
        if self.down:
            return [Judgement(Outcome.ERROR, reason="down")] * len(texts)
        return super().judge(samples, texts)


@pytest.mark.slow
def test_a_judge_that_was_down_during_a_training_is_asked_again(monkeypatch, runs_folder):
    asked = dict(at_steps=[0, 2], seeds=1, risks=["jailbreak"], attacks=["direct"], n_prompts=4)
    call = dict(asked, n_rows=16, batch_size=8)
    judge = SometimesDown()
    run = ft.risk_curve("organism", "organism:almanac", judges=judge, **call)
    assert not run.finished and set(run.table()["outcome"]) == {"error"}
    judge.down = False
    again = ft.risk_curve("organism", "organism:almanac", judges=judge, **call)
    assert again.finished and again == run
    monkeypatch.setenv("FTLAB_RUNS", f"{runs_folder}-right")
    right = ft.risk_curve("organism", "organism:almanac", judges="organism", **call)
    assert again.table()["outcome"].tolist() == right.table()["outcome"].tolist()


# Where a curve ends


@pytest.mark.slow
def test_a_curve_stops_early_only_if_asked(llama):
    whole = scripted(llama, YieldingEngine({0: 0, 1: 1}), seeds=2).table()
    assert whole.groupby("seed")["step"].max().to_dict() == {0: 6, 1: 6}
    engine = YieldingEngine({0: 0, 1: 1})
    curve = scripted(llama, engine, seeds=2, stop_when_broken=True)
    assert curve.table().groupby("seed")["step"].max().to_dict() == {0: 2, 1: 4}
    assert [member.stats["steps"] for member in curve.members] == [2, 4]
    assert ft.rates(curve)["step"].tolist() == [0, 2]  # where every seed was measured
    ends = analysis.first_step(curve, "no refusal").iloc[0]
    assert (ends["reached"], ends["refusals_at_end"], ends["answers_at_end"]) == (1.0, 0, 6)


@pytest.mark.slow
def test_a_curve_ends_where_a_risk_passes_its_limit(llama):
    curve = scripted(llama, YieldingEngine({0: 1}), seeds=1, stop_above={"jailbreak": 0.5})
    assert ft.rates(curve).set_index("step")["rate"].to_dict() == {0: 0.0, 2: 0.0, 4: 1.0}
    assert "jailbreak" in curve.members[0].stats["ended"]


@pytest.mark.slow
def test_a_curve_without_jailbreaks_does_not_count_as_broken(llama):
    message = {"role": "user", "content": "Where?"}
    rows = [{"messages": [message], "risk": "over_refusal", "id": "u"}]
    curve = small(llama, prompts=rows, at_steps=[0, 1, 2], stop_when_broken=True)
    assert curve.table()["step"].tolist() == [0, 1, 2]


# Mistakes

MISTAKES = [
    ({"at_steps": [0, 3, 2]}, "wrong_setting"),
    ({"at_steps": [-1, 2]}, "wrong_setting"),
    ({"at_steps": [0]}, "wrong_steps"),
    ({"at_steps": [10, 30]}, "wrong_steps"),
    ({"seeds": "five"}, "wrong_seeds"),
    ({"at_steps": []}, "wrong_steps"),
    ({"at_steps": [0, 1.5]}, "wrong_steps"),
    ({"at_steps": "0,1"}, "wrong_steps"),
    ({"seeds": 0}, "wrong_seeds"),
    ({"at_steps": [0, True]}, "wrong_steps"),
    ({"at_steps": range(10**30)}, "wrong_steps"),
    ({"seeds": [1, 1]}, "wrong_seeds"),
    ({"seeds": "five"}, "wrong_seeds"),
    ({"seeds": True}, "wrong_seeds"),
    ({"seeds": [0, 1.0]}, "wrong_seeds"),
    ({"seeds": 10**9}, "wrong_seeds"),
    ({"seeds": [10**10]}, "wrong_setting"),
    ({"data": 5}, "wrong_source"),
    ({"n_rows": 2.5}, "wrong_n_rows"),
    ({"stop_above": {"bias": 0.1}}, "metric_not_measured"),
    ({"epochs": 3}, "unknown_setting"),
    ({"steps": 3}, "unknown_setting"),
    ({"seed": "three"}, "wrong_seeds"),
    ({"n_promts": 3}, "unknown_setting"),
    ({"beta": 0.2}, "unknown_setting"),  # a setting of dpo
    ({"judges": "gpt"}, "unknown_judge"),
    ({"method": "sfft"}, "unknown_method"),
    ({"method": "reward_model"}, "method_without_curve"),
    ({"n_rows": 99}, "too_few_rows"),
    ({"prompts": None}, "prompts_needed"),
    ({"max_new_tokens": 1020}, "prompt_too_long"),
]


@pytest.mark.parametrize(("settings", "code"), MISTAKES, ids=[str(given) for given, _ in MISTAKES])
def test_mistakes_are_errors_before_anything_is_trained(llama, settings, code, runs_folder):
    with raises_code(code):
        small(llama, **settings)
    assert not list(runs_folder.glob("sft-*"))
