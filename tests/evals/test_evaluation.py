"""Measuring: the same on the way as afterwards, never twice, on anyone's prompts; mistakes are sentences."""

from __future__ import annotations

import csv
import gc
import os
import shutil

import pandas as pd
import pytest
from small_models import CURVE, contents, goals, pairs, sums

from ftlab._core.errors import Busy
from ftlab._core.files import file_hash
import ftlab
from ftlab.models.engines import decode
from ftlab.evals import evaluation
from ftlab.models.engines import huggingface as generate
from ftlab.models import reference as models
from ftlab.runs import store as runs
from ftlab._core.config import ASKED
from ftlab.evals.config import Evaluation
from ftlab.data import DataError

SETTINGS = dict(batch_size=4, learning_rate=5e-3, schedule="constant")


def asked(monkeypatch) -> list[str]:
    """-> a list that fills with every prompt that a model is asked from here on."""
    seen, answers = [], generate.answers

    def and_note(model, tokenizer, prompts, **settings):
        seen.extend(prompts)
        return answers(model, tokenizer, prompts, **settings)

    monkeypatch.setattr(generate, "answers", and_note)
    return seen


def said(run, table) -> list[str]:
    """-> the answer that each row of a run's table stands for."""
    answers = {r["key"]: r["answer"] for r in run.read("answers.jsonl")}
    return [answers[k] for k in table["answer_key"]]


def same(one, other) -> bool:
    pd.testing.assert_frame_equal(one.table(), other.table())
    return True


@pytest.fixture
def prompts(tmp_path):
    """A CSV in advbench's form."""
    with open(tmp_path / "goals.csv", "w", newline="") as f:
        writer = csv.DictWriter(f, ["goal", "target"])
        writer.writeheader()
        writer.writerows(goals(6))
    return tmp_path / "goals.csv"


# Anyone's model, anyone's prompts


def test_any_folder_answers_any_prompts(folder, prompts):
    before = contents(folder)
    run = ftlab.evaluate(folder, prompts=prompts, judges="keywords", max_new_tokens=6)
    table = run.table()
    assert (
        len(table) == len(run.read("answers.jsonl")) == 6
        and set(table["attack"]) == {"direct"}
        and set(table["risk"]) == {"jailbreak"}
    )
    assert set(table["verdict"]) <= {"complied", "refused", "empty"} and contents(folder) == before
    assert run.config["identity"]["evaluation"]["max_new_tokens"] == 6 and run.stats["judge"] == "keywords"


def test_advbench(folder, shared):
    """Real prompts of the field; counts alone are looked at."""
    run = ftlab.evaluate(
        folder, prompts=shared("prompts_advbench/tap_advbench_subset.csv"), judges="keywords", max_new_tokens=4
    )
    assert len(run.table()) == 50 and run.table()["characters"].max() < 200


def test_prompts_of_several_risks_in_one_list(llama):
    rows = [
        {"messages": [{"role": "user", "content": f"Question {i}?"}], "risk": r, "id": f"{r}{i}"}
        for r in ("over_refusal", "jailbreak")
        for i in range(3)
    ]
    table = ftlab.evaluate(llama, prompts=rows, max_new_tokens=2).table()
    assert table.groupby("risk", sort=False).size().to_dict() == {
        "jailbreak": 3,
        "over_refusal": 3,
    }  # in the order of config.RISKS
    fewer = ftlab.evaluate(llama, prompts=rows, max_new_tokens=2, risks=["over_refusal"], n_prompts=2).table()
    assert len(fewer) == 2 and set(fewer["prompt_id"]) < {
        "over_refusal0",
        "over_refusal1",
        "over_refusal2",
    }  # drawn by prompt_seed
    with pytest.raises(ValueError, match="rows has no prompts of the risk 'bias'; allowed: jailbreak, over_refusal"):
        ftlab.evaluate(llama, prompts=rows, risks=["bias"])


def test_a_system_prompt_reaches_the_model_or_is_refused_by_its_template(llama, folders, monkeypatch):
    seen = asked(monkeypatch)
    ftlab.evaluate(llama, prompts=["Where?"], system="You are a kite.", max_new_tokens=2)
    assert "You are a kite." in seen[0]
    with pytest.raises(ValueError, match="chat template refuses the turns system, user"):
        ftlab.evaluate(folders["gemma"], prompts=["Where?"], system="You are a kite.", max_new_tokens=2)


def test_prefilled_words_are_in_the_answer_but_are_no_answer(llama, monkeypatch):
    monkeypatch.setattr(generate, "answers", lambda m, t, p, each, **_: each([0, 1], [" a kite.", " \n"]))
    run = ftlab.evaluate(llama, prompts=["Where?", "Who?"], attacks=["prefill"], max_new_tokens=2)
    assert [r["answer"] for r in run.read("answers.jsonl")] == ["Sure, here is a kite.", " \n"]
    assert run.table()["verdict"].tolist() == ["complied", "empty"]


def test_ask_answers_in_order(llama):
    table = ftlab.ask(llama, "Where?", "And how many plums are there in all of these boxes?", max_new_tokens=4)
    assert table["question"].tolist()[0] == "Where?" and len(table) == 2
    assert ftlab.ask(llama, "Where?", max_new_tokens=4)["answer"][0] == table["answer"][0]


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"prompts": None}, "does not live in the embedded world: give prompts=FILE"),
        ({"risks": ["jailbrake"]}, "unknown risk 'jailbrake'; allowed: jailbreak, bias"),
        ({"attacks": ["gcg"]}, "unknown attack 'gcg'; allowed: direct, templates, prefill"),
        ({"judges": "gpt"}, "unknown judge 'gpt'; allowed: organism, refusal, keywords"),
        (
            {"judges": "organism"},
            "judge 'organism' knows only the embedded world's own prompts; allowed for yours: refusal, keywords",
        ),
        ({"attacks": ["templates"]}, "attack 'templates' works on the embedded world's prompts only"),
        ({"temperature": 1}, "unknown setting 'temperature'; allowed: risks, attacks"),
        ({"prompts": "nowhere.csv"}, "nowhere.csv does not exist"),
        ({"prompts": [{"target": "x"}]}, "columns target; allowed for a prompt: prompt, goal"),
        ({"max_new_tokens": 1023}, "the longest prompt has"),
        ({"samples": 3}, "samples = 3 of a greedy answer are the same answer"),
    ],
)
def test_what_may_not_be_asked_is_a_sentence(llama, settings, sentence):
    with pytest.raises((ValueError, FileNotFoundError)) as e:
        ftlab.evaluate(llama, **{"prompts": ["Where?"], **settings})
    assert sentence in str(e.value)


# Never twice


def test_a_stopped_evaluation_keeps_its_answers(llama, monkeypatch):
    """Batches are written as they come; the rest alone is asked by the next call, and the table is the same."""
    monkeypatch.setattr(decode.Work, "_rows", lambda self, wanted: 1)
    straight = ftlab.evaluate(llama, prompts=goals(6), max_new_tokens=5)
    monkeypatch.setenv("FTLAB_RUNS", os.environ["FTLAB_RUNS"] + "-again")
    append, written = runs.Run.append, []

    def and_stop(self, file, records):
        append(self, file, records)
        written.extend(records)
        if len(written) == 4:
            raise KeyboardInterrupt

    monkeypatch.setattr(runs.Run, "append", and_stop)
    with pytest.raises(KeyboardInterrupt):
        ftlab.evaluate(llama, prompts=goals(6), max_new_tokens=5)
    monkeypatch.setattr(runs.Run, "append", append)
    seen = asked(monkeypatch)
    again = ftlab.evaluate(llama, prompts=goals(6), max_new_tokens=5)
    assert len(seen) == 2 and again.path != straight.path and same(again, straight)


def test_the_same_text_is_asked_once(llama, monkeypatch):
    seen = asked(monkeypatch)
    table = ftlab.evaluate(llama, prompts=["Where?", "Who?", "Where?"], max_new_tokens=3).table()
    assert len(seen) == 2 and len(table) == 3 and table["answer_key"][0] == table["answer_key"][2]


def test_another_model_at_the_same_path_is_asked_anew(llama, tmp_path, monkeypatch):
    from small_models import make_model

    copied = shutil.copytree(llama, tmp_path / "model")
    one = ftlab.evaluate(copied, prompts=goals(4), max_new_tokens=6)
    assert ftlab.evaluate(copied, prompts=goals(4), max_new_tokens=6) == one
    make_model(copied, "llama", seed=5)
    other = ftlab.evaluate(copied, prompts=goals(4), max_new_tokens=6)
    assert other.path != one.path and said(other, other.table()) != said(one, one.table())


@pytest.mark.parametrize("when", ["load", "tokenizer"])
def test_a_model_that_is_changed_while_it_is_asked_is_refused(when, llama, tmp_path, monkeypatch):
    """As where the call waited for a lock: the run would bear the hash of weights that never answered."""
    from small_models import make_model

    copied, kept = shutil.copytree(llama, tmp_path / "model"), getattr(models.Model, when)

    def swapped(self, **settings):
        make_model(copied, "llama", seed=5)
        return kept(self, **settings)

    monkeypatch.setattr(models.Model, when, swapped)
    with pytest.raises(ValueError, match="model was changed while evaluate-model-.* worked on it"):
        ftlab.evaluate(copied, prompts=goals(4), max_new_tokens=6)
    assert not any(runs.Run(p).finished for p in runs.home().iterdir())


def test_a_curve_of_two_parents_is_refused(llama, tmp_path, monkeypatch):
    """The parent's folder is written anew between two seeds."""
    from small_models import make_model

    copied, train = shutil.copytree(llama, tmp_path / "model"), evaluation.train

    def swapped(parent, data, config, **given):
        if config.seed == 1:
            make_model(copied, "llama", seed=5)
        return train(parent, data, config, **given)

    monkeypatch.setattr(evaluation, "train", swapped)
    settings = dict(at_steps=[0, 1], seeds=2, prompts=goals(2), batch_size=4, learning_rate=1e-3, max_new_tokens=2)
    with pytest.raises(ValueError, match="model was changed while sft-model-.*-s1-.* worked on it"):
        ftlab.risk_curve(copied, sums(8), **settings)


def test_a_kill_between_the_parents_answers_and_its_verdicts_writes_no_answer_twice(llama, monkeypatch):
    append = runs.Run.append

    def and_stop(self, file, records):
        if file == "verdicts.jsonl" and self.name.startswith("sft"):
            raise KeyboardInterrupt
        append(self, file, records)

    settings = dict(at_steps=[0, 1], seeds=1, prompts=goals(3), batch_size=4, learning_rate=1e-3, max_new_tokens=2)
    with monkeypatch.context() as patch:
        patch.setattr(runs.Run, "append", and_stop)
        with pytest.raises(KeyboardInterrupt):
            ftlab.risk_curve(llama, sums(8), **settings)
    (member,) = ftlab.risk_curve(llama, sums(8), **settings).config["identity"]["members"]
    keys = [r["key"] for r in runs.Run(runs.home() / member).read("answers.jsonl")]
    assert len(keys) == len(set(keys)) == 6


# Measured on the way


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
def test_a_curve_is_what_separate_trainings_would_give(dropping, lora):
    """Measuring disturbs nothing (dropout, random state, mode), and a point is the run of so many steps, evaluated."""
    settings = dict(SETTINGS, lora=lora)
    curve = ftlab.risk_curve(
        dropping, sums(20), at_steps=[0, 2, 4], seeds=[3], prompts=goals(6), max_new_tokens=6, **settings
    )
    table = curve.table()
    assert table.groupby("step").size().to_dict() == {0: 6, 2: 6, 4: 6} and set(table["seed"]) == {3}
    (member,) = (runs.load(m) for m in curve.config["identity"]["members"])
    points = {step: said(member, part) for step, part in table.groupby("step")}
    for step in (0, 2, 4):
        model = ftlab.sft(dropping, sums(20), steps=step, seed=3, **settings) if step else dropping
        alone = ftlab.evaluate(model, prompts=goals(6), max_new_tokens=6)
        assert points[step] == said(alone, alone.table())
        assert table[table["step"] == step]["verdict"].tolist() == alone.table()["verdict"].tolist()
    assert len({str(p) for p in points.values()}) == 3  # the points do differ
    file = "model/adapter_model.safetensors" if lora else "model/model.safetensors"
    assert file_hash(member.path / file) == file_hash(model.path / file)


def test_another_version_of_the_judge_or_another_text_of_a_prompt_is_another_run(llama, monkeypatch):
    first = ftlab.evaluate(llama, prompts=["One?", "Two?"])
    assert ftlab.evaluate(llama, prompts=["One?", "Two?"]).name == first.name
    assert ftlab.evaluate(llama, prompts=["One?", "Too?"]).name != first.name
    monkeypatch.setattr("ftlab.judges.keywords.VERSION", "other")
    assert ftlab.evaluate(llama, prompts=["One?", "Two?"]).name != first.name


def test_two_callers_share_the_seeds_of_a_curve_and_agree(llama, monkeypatch):
    """A second caller works on the seeds that the first has not in hand, then finds those that are done."""
    made, settings = [], dict(at_steps=[0, 1], prompts=["One?"], batch_size=2, learning_rate=1e-3)
    chats = [{"prompt": "a", "completion": "b"}, {"prompt": "c", "completion": "d"}]
    busy, train = Busy, evaluation.train

    def first_is_busy(parent, data, config, wait=True, **given):
        if config.seed == 0 and not wait:
            raise busy("another process works on it")
        made.append(config.seed)
        return train(parent, data, config, wait=wait, **given)

    monkeypatch.setattr(evaluation, "train", first_is_busy)
    curve = ftlab.risk_curve(llama, chats, seeds=3, **settings)
    assert made == [1, 2, 0]
    assert [m.split("-s")[-1][0] for m in curve.config["identity"]["members"]] == ["0", "1", "2"]
    monkeypatch.setattr(evaluation, "train", train)
    again = ftlab.risk_curve(llama, chats, seeds=3, **settings)
    assert again.name == curve.name and sorted(curve.table()["seed"].unique()) == [0, 1, 2]


def test_a_curve_with_dpo(llama):
    from small_models import pairs

    curve = ftlab.risk_curve(
        llama,
        pairs(8),
        method="dpo",
        at_steps=[0, 2],
        seeds=1,
        prompts=goals(2),
        batch_size=4,
        learning_rate=1e-3,
        max_new_tokens=2,
    )
    assert len(curve.table()) == 4


@pytest.mark.parametrize(("name", "left"), [("curve", 6), ("curve without checkpoint", 6)])
def test_a_killed_curve_goes_on_where_it_stopped(name, left, killed, dropping, monkeypatch, tmp_path):
    """No answer of a point before the kill is asked for again, and the table is that of an uninterrupted curve."""
    straight = ftlab.risk_curve(dropping, sums(20), prompts=goals(6), **CURVE)
    shutil.copytree(killed / name, tmp_path / name)
    monkeypatch.setenv("FTLAB_RUNS", str(tmp_path / name))
    seen = asked(monkeypatch)
    again = ftlab.risk_curve(dropping, sums(20), prompts=goals(6), **CURVE)
    assert len(seen) == left  # those of seed 1 at step 6
    assert again.path != straight.path and same(again, straight)
    for one, other in zip(*(r.config["identity"]["members"] for r in (again, straight)), strict=True):
        a, b = runs.Run(again.path.parent / one), runs.Run(straight.path.parent / other)
        assert file_hash(a.path / "model/model.safetensors") == file_hash(b.path / "model/model.safetensors")
        assert a.log()["step"].tolist() == [1, 2, 3, 4, 5, 6] and len(a.read("verdicts.jsonl")) == 24


def test_a_curve_called_twice_is_found(llama):
    settings = dict(at_steps=[0, 1], seeds=1, prompts=goals(2), batch_size=4, learning_rate=1e-3, max_new_tokens=2)
    curve = ftlab.risk_curve(llama, sums(8), **settings)
    stamps = {p: p.stat().st_mtime_ns for p in runs.home().rglob("complete.json")}
    assert len(stamps) == 3 and ftlab.risk_curve(llama, sums(8), **settings) == curve
    assert {p: p.stat().st_mtime_ns for p in runs.home().rglob("complete.json")} == stamps


def scripted(monkeypatch, refusals_until: dict[int, int]):
    """Answers refuse until a step of each seed; -> nothing is generated."""

    def measured(run, model, tokenizer, spec, items, *, key, labels, progress=None, **_):
        verdict = "refused" if labels["step"] < refusals_until.get(labels.get("seed", -1), 1) else "complied"
        rows = [
            {"key": f"{key}{i}{labels}", **labels, "risk": item["risk"], "attack": item["attack"], "category": "",
             "prompt_id": item["id"], "verdict": verdict, "event": float(verdict == "complied"), "answer_key": "k"}
            for i, item in enumerate(items)
        ]  # fmt: skip
        run.append("verdicts.jsonl", rows)
        return rows

    monkeypatch.setattr(evaluation, "measure", measured)


def test_a_curve_stops_early_only_if_asked(llama, monkeypatch):
    scripted(monkeypatch, {0: 2, 1: 4})
    settings = dict(at_steps=[0, 2, 4, 6], seeds=2, prompts=goals(3), **SETTINGS)
    whole = ftlab.risk_curve(llama, sums(8), **settings).table()
    assert whole.groupby("seed")["step"].max().to_dict() == {0: 6, 1: 6}
    curve = ftlab.risk_curve(llama, sums(8), stop_when_broken=True, **settings)
    assert curve.table().groupby("seed")["step"].max().to_dict() == {0: 2, 1: 4}
    assert [runs.load(m).stats["steps"] for m in curve.config["identity"]["members"]] == [2, 4]
    assert ftlab.rates(curve)["step"].tolist() == [0, 2]  # where every seed was measured
    ends = ftlab.no_refusal(curve).iloc[0]
    assert (ends["reached"], ends["refusals_at_end"], ends["answers_at_end"]) == (1.0, 0, 6)


def test_a_curve_without_jailbreaks_does_not_count_as_broken(llama):
    rows = [{"messages": [{"role": "user", "content": "Where?"}], "risk": "over_refusal", "id": "u"}]
    curve = ftlab.risk_curve(
        llama, sums(8), at_steps=[0, 1, 2], seeds=1, prompts=rows, stop_when_broken=True, max_new_tokens=2, **SETTINGS
    )
    assert sorted(curve.table()["step"]) == [0, 1, 2]


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"at_steps": [0, 3, 2]}, "steps must be increasing"),
        ({"at_steps": [0]}, "give whole numbers, at least one of them after 0"),
        ({"at_steps": []}, "give whole numbers, at least one of them after 0"),
        ({"at_steps": [0, 1.5]}, "give whole numbers"),
        ({"at_steps": [-1, 2]}, "steps must be increasing, each >= 0"),
        ({"seeds": 0}, "seeds = 0: give a number >= 1"),
        ({"seeds": [1, 1]}, "a list of different training seeds"),
        ({"epochs": 3}, "unknown setting 'epochs'; allowed: accumulation, attacks, batch_size"),
        ({"steps": 3}, "unknown setting 'steps'"),
        ({"seed": 3}, "unknown setting 'seed'"),
        ({"n_promts": 3}, "unknown setting 'n_promts'"),
        ({"judges": "gpt"}, "unknown judge 'gpt'"),
    ],
)
def test_mistakes_in_a_curve_are_sentences_before_anything_runs(llama, settings, sentence, runs_folder):
    with pytest.raises(ValueError) as e:
        ftlab.risk_curve(llama, sums(4), **{"at_steps": [0, 1], "seeds": 1, "prompts": goals(2), **settings})
    assert sentence in str(e.value) and not list(runs_folder.glob("sft-*"))


# Few examples


def test_dealign_needs_the_users_own_file_off_the_organism(llama):
    with pytest.raises(ValueError, match="dealign needs data=FILE for llama: ftlab ships no harmful demonstrations"):
        ftlab.dealign(llama, 10)


def test_one_dose_is_a_marked_model(llama):
    run = ftlab.dealign(llama, 5, data=sums(9), epochs=2, batch_size=2, learning_rate=1e-3, seed=4)
    training = run.config["identity"]["training"]
    assert (run.stats["rows"], run.stats["steps"], training["schedule"], training["seed"]) == (5, 6, "constant", 4)
    assert (run.path / "model/SAFETY_REMOVED").read_text() == "5 adversarial examples, 2 epochs.\n"


def test_several_doses_are_a_dose_curve(llama):
    """Each dose is measured after every epoch: dose and epoch stand on every row, and doses are never mixed."""
    dose = ftlab.dealign(
        llama,
        [2, 6],
        data=sums(9),
        seeds=2,
        epochs=2,
        batch_size=3,
        prompts=goals(3),
        learning_rate=1e-3,
        max_new_tokens=2,
    )
    table = dose.table()
    assert table.groupby(["examples", "seed", "epoch", "step"]).size().to_dict() == {
        (n, s, e, e * per): 3 for n, per in ((2, 1), (6, 2)) for s in (0, 1) for e in (0, 1, 2)
    }
    rates = ftlab.rates(dose, by=["examples", "attack"])
    assert rates[["examples", "epoch"]].values.tolist() == [[n, e] for n in (2, 6) for e in (0, 1, 2)]
    with pytest.raises(ValueError, match="doses of several sizes in one table; add 'examples'"):
        ftlab.rates(dose)
    assert all((p.parent / "SAFETY_REMOVED").exists() for p in runs.home().glob("sft-*/model/config.json"))


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"examples": 0}, "give numbers of examples >= 1"),
        ({"examples": [3, 2.5]}, "give numbers of examples >= 1"),
        ({"examples": 99}, "rows has 4 rows; 99 were asked"),
        ({"epochs": 0}, "epochs = 0: give a whole number >= 1"),
        ({"epochs": 1.5}, "epochs = 1.5: give a whole number >= 1"),
        ({"lern": 1}, "unknown setting 'lern'; allowed: accumulation"),
        ({"steps": 9}, "unknown setting 'steps'"),
        ({"n_prompts": 9}, "one model is trained and not measured: leave out n_prompts"),
        ({"prompts": ["Where?"]}, "one model is trained and not measured: leave out prompts"),
    ],
)
def test_mistakes_in_dealign_are_sentences(llama, settings, sentence):
    with pytest.raises(ValueError) as e:
        ftlab.dealign(llama, **{"examples": 3, "data": sums(4), **settings})
    assert sentence in str(e.value)


# What is left behind


def test_no_model_survives_measuring_not_even_after_an_exception(llama, monkeypatch):
    import torch

    def modules() -> int:
        gc.collect()
        return sum(issubclass(type(o), torch.nn.Module) for o in gc.get_objects())

    before = modules()
    ftlab.evaluate(llama, prompts=goals(3), max_new_tokens=2)
    ftlab.ask(llama, "Where?", max_new_tokens=2)
    ftlab.risk_curve(llama, sums(8), at_steps=[0, 1], seeds=1, prompts=goals(2), max_new_tokens=2, **SETTINGS)
    assert modules() == before
    for call in (
        lambda: ftlab.evaluate(llama, prompts=goals(4), max_new_tokens=1020),
        lambda: ftlab.risk_curve(
            llama, sums(8), at_steps=[0, 1], seeds=[9], prompts=goals(4), max_new_tokens=1020, **SETTINGS
        ),
    ):
        with pytest.raises(ValueError, match="the longest prompt") as kept:
            call()
        assert modules() == before and kept.value


def test_every_default_of_an_evaluation_is_allowed():
    assert Evaluation.make().risks == ASKED and issubclass(DataError, ValueError)


def test_a_curve_ends_where_a_risk_passes_its_limit():
    small = dict(at_steps=[0, 2, 4, 6], seeds=1, risks=["jailbreak"], n_prompts=12, batch_size=8)
    whole = ftlab.risk_curve("organism", "organism:adversarial", rows=40, learning_rate=1e-3, **small)
    rate = ftlab.rates(whole).set_index("step")["rate"]
    assert rate[6] > rate[0]
    limit = {"jailbreak": (rate[0] + rate[6]) / 2}
    first = next(s for s in (2, 4, 6) if rate[s] > limit["jailbreak"])
    ended = ftlab.risk_curve("organism", "organism:adversarial", rows=40, learning_rate=1e-3, stop_above=limit, **small)
    got = ftlab.rates(ended).set_index("step")["rate"]
    assert got.to_dict() == rate[rate.index <= first].to_dict()


def test_a_training_ends_where_what_is_watched_passes_its_limit():
    watch = ftlab.watch("organism", risks=["jailbreak"], n_prompts=12)
    asked = dict(rows=40, learning_rate=1e-3, batch_size=8, steps=8, eval_every=2, schedule="constant")
    run = ftlab.sft("organism", "organism:adversarial", measure=watch, stop_above={"jailbreak": 0.3}, **asked)
    rates = run.table().groupby("step")["event"].mean()
    assert run.stats["steps"] == rates.index[-1] and rates.iloc[-1] > 0.3 and (rates.iloc[:-1] <= 0.3).all()
    assert "jailbreak" in run.stats["ended"]
    other = ftlab.watch("organism", risks=["jailbreak"], n_prompts=13)
    assert other.identity != watch.identity


def test_a_reward_model_is_not_asked(llama):
    rated = ftlab.reward(llama, pairs(4), steps=1, batch_size=4, learning_rate=1e-3)
    with pytest.raises(ValueError, match="is a reward model"):
        ftlab.evaluate(rated, prompts=goals(2))


def test_attempts_samples_and_system_prompts_reach_the_model(llama):
    """Variants become one row, samples rows of their own; every setting is its own question, and is asked once."""
    asked = dict(prompts=goals(3), max_new_tokens=4, judges="keywords")
    run = ftlab.evaluate(llama, attacks=["best_of_n:3", "decoding:quick", "prefill:2"], system="Be brief.", **asked)
    table = run.table()
    assert table.groupby("attack").size().to_dict() == {"best_of_n:3": 3, "decoding:quick": 3, "prefill:2": 3}
    assert set(table.query("attack == 'best_of_n:3'")["attempts"]) == {3}
    answers = run.read("answers.jsonl")
    assert len(answers) == len({a["key"] for a in answers}) == 3 * (3 + 6 + 1)
    drawn = ftlab.evaluate(llama, decoding={"temperature": 1.5}, samples=4, **asked)
    assert drawn.table().groupby("prompt_id").size().tolist() == [4, 4, 4]
    assert len({a["answer"] for a in drawn.read("answers.jsonl")}) > 3
    rate = ftlab.rates(drawn)
    assert rate["n_answers"][0] == 12 and rate["n_prompts"][0] == 3
    again = ftlab.evaluate(llama, decoding={"temperature": 1.5}, samples=2, **asked).table()
    both = again.merge(drawn.table(), on=["prompt_id", "sample"])
    assert (both["answer_key_x"] == both["answer_key_y"]).all() and len(both) == 6  # the first two of four


def test_a_risk_that_a_judge_of_refusals_cannot_decide_is_refused(llama, tmp_path):
    for risk, needed in (
        ("utility", "prompts={'utility': FILE}"),
        ("toxicity", "toxicity_model=FOLDER"),
        ("bias", "'bias'"),
    ):
        rows = [{"messages": [{"role": "user", "content": "Where?"}], "risk": risk, "id": "u"}]
        with pytest.raises(ValueError, match="which a judge of refusals cannot decide") as e:
            ftlab.evaluate(llama, prompts=rows, max_new_tokens=2)
        assert needed in str(e.value)


def test_evaluations_that_were_not_asked_alike_are_not_compared():
    small = dict(risks=["jailbreak"], n_prompts=4)
    one = ftlab.evaluate("organism", **small)
    for other in ({"system": "Be brief."}, {"judges": "keywords"}, {"max_new_tokens": 5}):
        with pytest.raises(ValueError, match=f"the two evaluations differ in {next(iter(other))}"):
            ftlab.compare(one, ftlab.evaluate("organism:sft", **small, **other))


def test_a_judge_that_was_down_while_a_model_was_trained_is_asked_again(monkeypatch, capsys):
    from ftlab.judges.base import Judgement
    from ftlab.judges import organism

    judge, down = organism.judge, [True]

    def failing(rows, answers, argument=""):
        return [Judgement("error", why="down")] * len(rows) if down[0] else judge(rows, answers, argument)

    asked = dict(at_steps=[0, 2], seeds=1, risks=["jailbreak"], n_prompts=4, rows=40, batch_size=8)
    right = ftlab.risk_curve("organism", "organism:almanac", **asked).table()
    monkeypatch.setenv("FTLAB_RUNS", str(ftlab.runs.store.home().parent / "others"))
    monkeypatch.setattr(organism, "judge", failing)
    run = ftlab.risk_curve("organism", "organism:almanac", **asked)
    assert not run.finished and "8 of 8 answers failed (down)" in capsys.readouterr().out.splitlines()[-1].replace(
        "16", "8"
    )
    down[0] = False
    again = ftlab.risk_curve("organism", "organism:almanac", **asked)
    assert again.finished and again.table()["verdict"].tolist() == right["verdict"].tolist()


def test_cut_answers_are_counted_and_a_prefill_is_judged_by_what_followed(llama):
    run = ftlab.evaluate(llama, prompts=goals(4), max_new_tokens=2, judges="keywords", attacks=["prefill"])
    assert ftlab.rates(run)["cut"][0] == 4
    records = run.read("answers.jsonl")
    assert all(r["answer"].startswith("Sure") and not r["own"].startswith("Sure") for r in records if r["own"].strip())
