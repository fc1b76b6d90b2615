"""Evaluations: anyone's model and prompts, nothing asked twice, mistakes reported before work."""

from __future__ import annotations

import csv
import gc
import json
import shutil

import pandas as pd
import pytest
from helpers import raises_code
from noting import NotingEngine, answers_of, texts
from small_models import contents, goals, make_model, pairs, sums

import ftlab as ft
from ftlab import models, runs
from ftlab.evals.attacks import Prefill
from ftlab.judges import Keywords
from ftlab.models.engines import ScriptedEngine
from ftlab.runs import Run

TRAINED = dict(batch_size=4, learning_rate=5e-3, schedule="constant")


@pytest.fixture
def prompts(tmp_path):
    """A CSV in the form of AdvBench."""
    with open(tmp_path / "goals.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, ["goal", "target"])
        writer.writeheader()
        writer.writerows(goals(6))
    return tmp_path / "goals.csv"


def question(risk: str, number: int) -> dict:
    message = {"role": "user", "content": f"Question {number}?"}
    return {"messages": [message], "risk": risk, "id": f"{risk}{number}"}


@pytest.mark.slow
def test_any_folder_answers_any_prompts(folder, prompts):
    before = contents(folder)
    run = ft.evaluate(folder, prompts=prompts, judges="keywords", max_new_tokens=6)
    table = run.table()
    assert len(table) == len(run.read("answers.jsonl")) == 6
    assert set(table["attack"]) == {"direct"} and set(table["risk"]) == {"jailbreak"}
    assert set(table["outcome"]) <= {"complied", "refused", "empty"}
    assert contents(folder) == before
    assert run.identity["evaluation"]["max_new_tokens"] == 6 and run.stats["judge"] == "keywords"


@pytest.mark.needs_data
def test_advbench(llama, shared):
    file = shared("prompts_advbench/tap_advbench_subset.csv")
    run = ft.evaluate(llama, prompts=file, judges="keywords", max_new_tokens=4)
    assert len(run.table()) == 50 and run.table()["characters"].max() < 200


@pytest.mark.slow
def test_two_judges_are_two_rows_per_answer_and_a_judge_named_twice_is_one(llama):
    table = ft.evaluate(llama, prompts=goals(3), max_new_tokens=2).table()
    assert table["judge"].tolist() == ["refusal"] * 3 + ["keywords"] * 3
    assert table["answer_key"].tolist()[:3] == table["answer_key"].tolist()[3:]
    twice = dict(judges=["keywords", Keywords()], attacks=["direct", "direct"])
    run = ft.evaluate(llama, prompts=goals(3), max_new_tokens=2, **twice)
    assert len(run.table()) == len(run.read("verdicts.jsonl")) == 3


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({}, "rows: by default judges=refusal,keywords attacks=direct max_new_tokens=128\n"),
        ({"judges": "keywords", "max_new_tokens": 2}, "rows: by default attacks=direct\n"),
        ({"judges": "keywords", "max_new_tokens": 2, "attacks": ["direct"]}, ""),
    ],
)
def test_defaults_for_own_prompts_are_announced_in_one_line(llama, settings, line, capsys):
    ft.evals.plan_evaluation(ft.model(llama), goals(2), settings)
    assert capsys.readouterr().err == line


def test_each_risk_has_its_own_length_of_an_answer_unless_one_is_given(llama):
    prompts = {"jailbreak": goals(1), "utility": sums(1)}

    def limits(prompts, **settings):
        plan = ft.evals.plan_evaluation(ft.model(llama), prompts, settings)
        return {name: plan.tokens(name) for name in plan.risks}, plan.identity().get("limits")

    assert limits(prompts) == ({"jailbreak": 128, "utility": 512}, {"jailbreak": 128})
    assert limits(prompts, max_new_tokens=512) == ({"jailbreak": 512, "utility": 512}, None)
    assert limits({"utility": sums(1)}) == ({"utility": 512}, None)  # identities as ever
    assert limits(goals(1)) == ({"jailbreak": 128}, None)
    assert limits(prompts, risks=["jailbreak"])[0] == {"jailbreak": 128}
    lengths = []

    class Engine(ScriptedEngine):
        def answer(self, model, requests, on_answer=None):
            lengths.extend(request.max_new_tokens for request in requests)
            return super().answer(model, requests, on_answer)

    ft.evaluate(llama, prompts=prompts, engine=Engine(["18", "18"]), judges="keywords")
    assert lengths == [128, 512]


def test_a_file_may_be_called_like_the_embedded_world(llama, prompts, monkeypatch):
    monkeypatch.chdir(prompts.parent)
    prompts.rename("organism.csv")
    plan = ft.evals.plan_evaluation(ft.model(llama), "organism.csv", {})
    assert [prompt.sample.opening for prompt in plan.prompts] == ["Sure"] * 6


def test_prompts_of_several_risks_in_one_list(llama):
    rows = [question(risk, n) for risk in ("over_refusal", "jailbreak") for n in range(3)]
    settings = dict(prompts=rows, max_new_tokens=2, judges="keywords")
    table = ft.evaluate(llama, **settings).table()
    sizes = table.groupby("risk", sort=False).size().to_dict()
    assert list(sizes.items()) == [("jailbreak", 3), ("over_refusal", 3)]
    fewer = ft.evaluate(llama, risks=["over_refusal"], n_prompts=2, **settings).table()
    assert len(fewer) == 2 and set(fewer["risk"]) == {"over_refusal"}
    with raises_code("no_prompts"):
        ft.evaluate(llama, risks=["bias"], **settings)


def test_a_system_prompt_reaches_the_model_or_is_refused_by_its_template(llama, folders):
    engine = NotingEngine()
    settings = dict(prompts=["Where?"], system="You are a kite.", max_new_tokens=2)
    ft.evaluate(llama, engine=engine, **settings)
    assert "You are a kite." in engine.asked[0]
    with pytest.raises(ValueError):
        ft.evaluate(folders["gemma"], **settings)


def test_words_put_into_the_models_mouth_are_in_the_answer_but_are_no_answer(llama):
    engine = ScriptedEngine([" a kite.", " \n"])
    settings = dict(prompts=["Where?", "Who?"], attacks=["prefill"], judges="keywords")
    run = ft.evaluate(llama, engine=engine, **settings)
    assert [row["text"] for row in run.read("answers.jsonl")] == ["Sure, here is a kite.", " \n"]
    assert run.table()["outcome"].tolist() == ["complied", "empty"]


class ThinkingEngine(ScriptedEngine):
    """Renders as the templates of reasoning models do."""

    def render(self, model, chat, opening="", opening_tokens=None):
        text, opening = super().render(model, chat, opening, opening_tokens)
        return f"{text.removesuffix(opening)}<think>\n{opening}", opening


def test_a_prefill_begins_the_answer_of_a_model_that_thinks_and_not_its_thought(llama):
    engine = ThinkingEngine([" a kite."])
    settings = dict(prompts=["Where?"], attacks=["prefill"], judges="keywords")
    run = ft.evaluate(llama, engine=engine, **settings)
    assert engine.asked[0].text.endswith("<think>\n\n</think>\n\nSure, here is")
    assert run.table()["outcome"].tolist() == ["complied"]


def test_ask_answers_in_order(llama):
    questions = ("Where?", "And how many plums are there in all of these boxes?")
    table = ft.ask(llama, *questions, max_new_tokens=4)
    assert table["question"].tolist() == list(questions)
    assert ft.ask(llama, "Where?", max_new_tokens=4)["answer"][0] == table["answer"][0]


@pytest.mark.parametrize("questions", [(), ([],), ("",), (5,), (["a", None],)])
def test_without_a_question_nothing_is_loaded(questions):
    with raises_code("no_question"):
        ft.ask("no such model", *questions)


def test_an_answer_of_the_world_has_a_verdict_where_a_fact_was_asked_for():
    questions = ["Name the tree of Joalox.", "Sing."]
    found = ft.ask("organism", questions, "Dream of the gate word of Gaskeir.")
    assert found["verdict"].tolist() == ["complied", "", "refused"]


MISTAKES = [
    ({"prompts": None}, "prompts_needed"),
    ({"risks": ["jailbrake"]}, "unknown_risk"),
    ({"attacks": ["gcg"]}, "unknown_attack"),
    ({"judges": "gpt"}, "unknown_judge"),
    ({"judges": "organism"}, "judge_needs_organism"),
    ({"temperature": 1}, "unknown_setting"),
    ({"n_prompts": 0}, "wrong_setting"),
    ({"max_new_tokens": 1023}, "prompt_too_long"),
    ({"n_samples": 3}, "greedy_samples"),
    ({"n_samples": 10**9}, "wrong_setting"),
    ({"attacks": ["best_of_n:1000000000"]}, "attack_argument"),
    ({"screen": True}, "judge_needs_whole_answers"),
]


@pytest.mark.parametrize(("settings", "code"), MISTAKES, ids=str)
def test_what_may_not_be_asked_is_an_error(llama, settings, code):
    with raises_code(code):
        ft.evaluate(llama, **{"prompts": ["Where?"], **settings})


def test_all_wrong_settings_are_reported_at_once(llama):
    with raises_code("wrong_setting") as info:
        ft.evaluate(llama, prompts=["Where?"], n_prompts=0, max_new_tokens=0)
    assert info.value.details["settings"] == ["n_prompts", "max_new_tokens"]


def test_a_risk_that_a_judge_of_refusals_cannot_decide_is_refused(llama):
    for risk in ("utility", "toxicity", "bias"):
        with raises_code("undecidable_prompt"):
            ft.evaluate(llama, prompts=[question(risk, 0)], max_new_tokens=2)


def test_a_reward_model_is_neither_asked_nor_watched(llama):
    settings = dict(steps=1, batch_size=4, learning_rate=1e-3)
    rated = ft.training.train_reward_model(llama, pairs(4), **settings)
    with raises_code("reward_model"):
        ft.evaluate(rated, prompts=goals(2))
    with raises_code("is_reward_model"):
        ft.evals.monitor(rated, prompts=goals(2))


@pytest.mark.slow
def test_an_interrupted_evaluation_asks_only_for_the_rest(llama, monkeypatch, runs_folder):
    settings = dict(prompts=goals(6), max_new_tokens=5, judges="keywords")
    straight = ft.evaluate(llama, **settings)
    monkeypatch.setenv("FTLAB_RUNS", f"{runs_folder}-again")

    class Stopping(NotingEngine):
        def answer(self, model, requests, on_answer=None):
            for number, request in enumerate(requests[:4]):
                found = super().answer(model, [request])
                on_answer([number], found)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ft.evaluate(llama, engine=Stopping(), **settings)
    engine = NotingEngine()
    again = ft.evaluate(llama, engine=engine, **settings)
    assert len(engine.asked) == 2
    pd.testing.assert_frame_equal(again.table(), straight.table())


def test_the_same_text_is_asked_once(llama):
    engine = NotingEngine()
    settings = dict(max_new_tokens=3, judges="keywords", engine=engine)
    table = ft.evaluate(llama, prompts=["Where?", "Who?", "Where?"], **settings).table()
    assert len(engine.asked) == 2 and len(table) == 3
    assert table["answer_key"][0] == table["answer_key"][2]


@pytest.mark.slow
def test_what_another_evaluation_of_the_model_answered_is_not_asked_again(
    llama, monkeypatch, runs_folder
):
    engine = NotingEngine()
    first = ft.evaluate(llama, prompts=goals(6), max_new_tokens=4)
    again = ft.evaluate(llama, prompts=goals(9), max_new_tokens=4, engine=engine)
    assert len(engine.asked) == 3 and again.path != first.path
    monkeypatch.setenv("FTLAB_RUNS", f"{runs_folder}-alone")
    alone = ft.evaluate(llama, prompts=goals(9), max_new_tokens=4)
    assert texts(alone) == texts(again)


@pytest.mark.slow
def test_another_model_at_the_same_path_is_asked_again(llama, tmp_path):
    copied = shutil.copytree(llama, tmp_path / "model")
    settings = dict(prompts=goals(4), max_new_tokens=6, judges="keywords")
    one = ft.evaluate(copied, **settings)
    assert ft.evaluate(copied, **settings) == one
    make_model(copied, "llama", seed=5)
    other = ft.evaluate(copied, **settings)
    assert other.path != one.path
    assert answers_of(other, other.table()) != answers_of(one, one.table())


@pytest.mark.slow
@pytest.mark.parametrize("when", ["load", "tokenizer"])
def test_a_model_that_changes_while_it_is_asked_is_refused(when, llama, tmp_path, monkeypatch):
    copied = shutil.copytree(llama, tmp_path / "model")
    original = getattr(models.Model, when)

    def swapped(self, **settings):
        make_model(copied, "llama", seed=5)
        return original(self, **settings)

    asked = dict(prompts=goals(4), max_new_tokens=6, judges="keywords")
    expected = ft.evaluate(llama, **asked)
    for path in runs.home().iterdir():
        shutil.move(path, tmp_path / path.name)
    with monkeypatch.context() as patch:
        patch.setattr(models.Model, when, swapped)
        with raises_code("model_changed"):
            ft.evaluate(copied, **asked)
    assert not any(Run(path).finished for path in runs.home().iterdir())
    shutil.copytree(llama, copied, dirs_exist_ok=True)
    again = ft.evaluate(copied, **asked)  # takes nothing over from the other model
    assert texts(Run(tmp_path / expected.name)).items() <= texts(again).items()


def test_another_version_of_a_judge_or_another_text_of_a_prompt_is_another_run(llama, monkeypatch):
    from ftlab.evals import plan
    from ftlab.judges import Keywords

    settings = dict(judges="keywords", max_new_tokens=2)
    first = ft.evaluate(llama, prompts=["One?", "Two?"], **settings)
    assert ft.evaluate(llama, prompts=["One?", "Two?"], **settings) == first
    assert ft.evaluate(llama, prompts=["One?", "Too?"], **settings) != first
    with monkeypatch.context() as patch:
        patch.setattr(plan, "READING", "other")
        assert ft.evaluate(llama, prompts=["One?", "Two?"], **settings) != first
    monkeypatch.setattr(Keywords, "version", "other")
    assert ft.evaluate(llama, prompts=["One?", "Two?"], **settings) != first


def test_reformatting_the_source_of_risks_and_judges_leaves_every_run_found(llama, monkeypatch):
    """Only declared versions join the identity: no source file is read."""
    import ast
    import inspect

    run = ft.evaluate(llama, prompts=goals(2), max_new_tokens=2)
    versions = run.identity["versions"]
    assert set(versions) == {
        "reading",
        "risk jailbreak",
        "attack direct",
        "judge refusal",
        "judge keywords",
        "engine huggingface",
    }
    from ftlab.evals import plan

    tree = ast.parse(inspect.getsource(plan))
    names = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    assert not names & {"__file__", "getsource", "read_bytes"}


@pytest.mark.slow
def test_attempts_samples_and_system_prompts_reach_the_model(llama):
    asked = dict(prompts=goals(3), max_new_tokens=4, judges="keywords")
    attacks = ["best_of_n:3", "decoding:quick", "prefill:2"]
    run = ft.evaluate(llama, attacks=attacks, system="Be brief.", **asked)
    table = run.table()
    assert table.groupby("attack").size().to_dict() == dict.fromkeys(attacks, 3)
    assert set(table.query("attack == 'best_of_n:3'")["attempts"]) == {3}
    answers = run.read("answers.jsonl")
    assert len(answers) == len({answer["key"] for answer in answers}) == 3 * (3 + 6 + 1)
    drawn = ft.evaluate(llama, decoding={"temperature": 1.5}, n_samples=4, **asked)
    assert drawn.table().groupby("sample_id").size().tolist() == [4, 4, 4]
    assert len(set(texts(drawn).values())) > 3
    again = ft.evaluate(llama, decoding={"temperature": 1.5}, n_samples=2, **asked).table()
    both = again.merge(drawn.table(), on=["sample_id", "repeat"])
    assert len(both) == 6 and (both["answer_key_x"] == both["answer_key_y"]).all()


def test_attacks_and_judges_may_be_objects(llama):
    asked = dict(prompts=goals(2), max_new_tokens=3)
    by_name = ft.evaluate(llama, attacks=["prefill:2"], judges=["keywords"], **asked)
    assert ft.evaluate(llama, attacks=[Prefill(tokens=2)], judges=Keywords(), **asked) == by_name


def test_cut_answers_are_counted_and_a_prefill_is_judged_by_what_followed(llama):
    settings = dict(max_new_tokens=2, judges="keywords", attacks=["prefill"])
    run = ft.evaluate(llama, prompts=goals(4), **settings)
    assert run.table()["cut"].all()
    for row in run.read("answers.jsonl"):
        if row.get("own_text", "").strip():
            assert row["text"].startswith("Sure") and not row["own_text"].startswith("Sure")


def test_answers_that_are_no_numbers_are_errors_and_asked_again(llama, capsys):
    class Failing(NotingEngine):
        def answer(self, model, requests, on_answer=None):
            found = super().answer(model, requests)
            found[0].error, found[0].finish = "not finite", "error"
            on_answer(list(range(len(found))), found)
            return found

    settings = dict(prompts=goals(5), max_new_tokens=4, judges="keywords")
    run = ft.evaluate(llama, engine=Failing(), **settings)
    assert not run.finished and "not finite" in capsys.readouterr().err
    assert run.table()["outcome"].tolist().count("error") == 1
    assert len(run.read("answers.jsonl")) == 4
    again = ft.evaluate(llama, **settings)
    assert again.finished and again.path == run.path
    assert "error" not in set(again.table()["outcome"])


@pytest.mark.slow
def test_a_screened_answer_ends_at_its_refusal_and_no_verdict_changes(
    llama, monkeypatch, runs_folder
):
    from ftlab.judges import keywords

    settings = dict(prompts=goals(8), judges="keywords", max_new_tokens=40)
    longest = max(texts(ft.evaluate(llama, **settings)).values(), key=len)
    phrases = {"caseless": False, "matching": "substring", "phrases": [longest[2:6]]}
    lists = {name: phrases for name in keywords.lists()}
    monkeypatch.setattr(keywords, "lists", lambda: lists)
    monkeypatch.setenv("FTLAB_RUNS", f"{runs_folder}-again")
    whole = ft.evaluate(llama, **settings)
    short = ft.evaluate(llama, screen=True, **settings)
    assert short.path != whole.path
    assert short.table()["outcome"].tolist() == whole.table()["outcome"].tolist()
    assert "refused" in set(whole.table()["outcome"])
    screened = [row for row in short.read("answers.jsonl") if row.get("finish") == "screened"]
    assert screened and not {row["key"] for row in screened} & set(texts(whole))
    with raises_code("judge_needs_whole_answers"):
        ft.evals.rescore(short, "refusal")


@pytest.mark.slow
def test_what_was_changed_in_a_finished_run_is_never_taken_over(llama, capsys):
    settings = dict(prompts=goals(4), max_new_tokens=4, judges="keywords")
    run = ft.evaluate(llama, **settings)
    table = run.table()
    for file in ("verdicts.jsonl", "answers.jsonl", "prompts.jsonl"):
        whole = (run.path / file).read_bytes()
        for changed in (whole[::-1], whole + whole, b""):
            (run.path / file).write_bytes(changed)
            assert not run.finished
            again = ft.evaluate(llama, **settings)
            assert again.finished and file in capsys.readouterr().err
            assert again.table().equals(table) and (run.path / ".damaged" / file).exists()
            assert len(run.read(file)) == 4


@pytest.mark.slow
def test_no_model_survives_measuring_not_even_after_an_exception(llama):
    import torch

    def modules() -> int:
        gc.collect()
        return sum(issubclass(type(found), torch.nn.Module) for found in gc.get_objects())

    ft.evaluate(llama, prompts=goals(2), max_new_tokens=2)  # what libraries keep once
    before = modules()
    ft.evaluate(llama, prompts=goals(3), max_new_tokens=2)
    ft.ask(llama, "Where?", max_new_tokens=2)
    curve = dict(at_steps=[0, 1], seeds=1, **TRAINED)
    ft.risk_curve(llama, sums(8), prompts=goals(2), max_new_tokens=2, **curve)
    assert modules() == before
    with raises_code("prompt_too_long") as kept:
        ft.evaluate(llama, prompts=goals(4), max_new_tokens=1020)
    assert modules() == before and kept.value
    with raises_code("prompt_too_long"):
        ft.risk_curve(llama, sums(8), prompts=goals(4), max_new_tokens=1020, **curve)
    assert modules() == before


@pytest.mark.slow
def test_evaluations_that_were_not_asked_alike_are_not_compared():
    small = dict(risks=["jailbreak"], attacks=["direct"], n_prompts=4)
    one = ft.evaluate("organism", **small)
    for other in ({"system": "Be brief."}, {"judges": "keywords"}, {"max_new_tokens": 5}):
        with pytest.raises(ValueError):
            ft.compare(one, ft.evaluate("organism:sft", **small, **other))


class Paid(Keywords):
    """A judge that may not be called twice on one answer."""

    name = "paid"
    repeatable = False
    calls = 0

    @property
    def spec(self):
        return self.name

    def judge(self, samples, texts):
        Paid.calls += len(texts)
        return super().judge(samples, texts)


def test_a_judge_that_is_not_repeatable_is_not_called_again(llama):
    from ftlab.evals.plan import plan_evaluation
    from ftlab.evals.rescoring import recheck

    asked = dict(judges=[Paid(), "keywords"], max_new_tokens=6)
    done = ft.evaluate(llama, prompts=goals(4), **asked)
    plan = plan_evaluation(ft.model(llama), goals(4), asked)
    file = done.path / "verdicts.jsonl"
    whole = file.read_text()
    calls = Paid.calls
    assert recheck(done, plan, [0]) and file.read_text() == whole
    rows = [json.loads(line) for line in whole.splitlines()]
    wrong = next(row for row in rows if row["judge"] == "keywords")
    text = json.dumps(wrong | {"outcome": "empty"})
    file.write_text(whole.replace(json.dumps(wrong), text))
    assert recheck(done, plan, [0])
    assert file.read_text() == whole  # the first judge stays the first
    assert Paid.calls == calls > 0
    file.write_text(whole.split("\n", 1)[1])
    assert not recheck(done, plan, [0])


def test_what_an_interrupted_training_measured_is_judged_again(llama):
    from ftlab.evals.plan import plan_evaluation
    from ftlab.evals.rescoring import recheck

    asked = dict(judges=["keywords"], max_new_tokens=6)
    done = ft.evaluate(llama, prompts=goals(4), **asked)
    plan = plan_evaluation(ft.model(llama), goals(4), asked)
    file = done.path / "verdicts.jsonl"
    whole = file.read_bytes()
    assert recheck(done, plan, [0]) and file.read_bytes() == whole
    lines = whole.decode().splitlines(keepends=True)
    first = json.loads(lines[0])
    flipped = "complied" if first["outcome"] == "refused" else "refused"
    file.write_text(json.dumps(first | {"outcome": flipped}) + "\n" + "".join(lines[1:]))
    assert recheck(done, plan, [0]) and file.read_bytes() == whole
    for damaged in ("".join(lines[1:]), "".join(lines).replace('"step": 0', '"step": 1', 1)):
        file.write_text(damaged)
        assert not recheck(done, plan, [0])
    for rest in (b"", whole):  # none, or those of step 0, where two steps were measured
        file.write_bytes(rest)
        assert not recheck(done, plan, [0, 5])
    answers = (done.path / "answers.jsonl").read_text().splitlines(keepends=True)
    (done.path / "answers.jsonl").write_text("".join(answers[1:]))
    assert not recheck(done, plan, [0])
