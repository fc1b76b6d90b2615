"""Prompt sets: a user's own files, and the sets of the field."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from helpers import jsonl, raises_code, said

from ftlab._core.files import digest
from ftlab.data import (
    PromptSet,
    check,
    is_unsafe,
    load_prompt_sets,
    load_prompts,
    open_source,
    read_samples,
    sample_from_record,
    text_of,
)
from ftlab.data.schemas import PROMPT_COLUMNS
from ftlab.evals.attacks import open_attack


@pytest.mark.parametrize("column", PROMPT_COLUMNS)
def test_prompts_by_any_known_column(tmp_path, column):
    (tmp_path / "p.csv").write_text(f',{column},category,target\n0,"Q, 1",c,t\n1,Q2,,t\n')
    first, second = load_prompts(tmp_path / "p.csv", risk="toxicity")
    assert (first.id, first.messages, first.risk) == ("toxicity-00000", said("Q, 1"), "toxicity")
    assert (first.category, first.opening) == ("c", "")
    assert (second.id, second.question, second.category) == ("toxicity-00001", "Q2", "")


def test_prompts_as_texts_and_as_rows():
    assert [sample.question for sample in load_prompts(["a", "b"])] == ["a", "b"]
    assert [sample.id for sample in load_prompts(["a", "b"])] == [
        "jailbreak-00000",
        "jailbreak-00001",
    ]
    row = {"messages": said("Q", "A"), "risk": "bias", "id": 7, "topic": "t", "unknown": [1]}
    row |= {"template": "w", "truth": "a", "choices": ["a", "b"], "prefill": "So", "category": "c"}
    (sample,) = load_prompts([row])
    assert (sample.id, sample.risk, sample.messages, sample.category) == (
        "7",
        "bias",
        said("Q"),
        "c",
    )
    assert (sample.wording, sample.target, sample.opening) == ("w", "a", "So")
    assert sample.choices == ("a", "b") and sample.metadata == {"topic": "t", "unknown": [1]}
    assert load_prompts([{"prompt": {"text": "Q", "toxicity": 0.1}}]).samples[0].question == "Q"


def test_the_first_rows_and_a_set_as_a_source():
    whole = load_prompts(["a", "b", "c"])
    assert load_prompts(whole) == whole and len(load_prompts(whole, n_rows=2)) == 2
    assert load_prompts(["a", "b", "c"], n_rows=2).samples == whole.samples[:2]


def test_the_hash_is_that_of_every_field_and_not_of_the_name():
    whole = load_prompts(["a", "b"])
    assert whole.hash == PromptSet("other", whole.samples).hash == "3a85db9547e3ff6b"
    for field, value in (("id", "x"), ("target", "x"), ("choices", ("x",)), ("metadata", {"x": 1})):
        changed = replace(whole.samples[0], **{field: value})
        assert PromptSet("rows", (changed, whole.samples[1])).hash != whole.hash


def test_risks_are_named_in_their_order():
    rows = [{"prompt": str(i), "risk": risk} for i, risk in enumerate(["bias", "utility", "bias"])]
    assert load_prompts(rows).risks == ("bias", "utility")


@pytest.mark.parametrize(
    ("rows", "code"),
    [
        ([{"messages": said("a"), "risk": "jailbrake"}], "unknown_risk"),
        ([{"messages": said("a", "b")[1:]}], "no_messages"),
        ([{"messages": said("a"), "choices": "ab"}], "wrong_choices"),
        ([{"query": "a"}], "unknown_columns"),
        (["a", " "], "no_text"),
        (["a", 3], "no_object"),
        ([], "no_rows"),
    ],
)
def test_bad_prompts_are_refused(rows, code):
    with raises_code("bad_rows") as error:
        load_prompts(rows)
    assert error.value.details["codes"] == [code]


def test_two_prompts_of_one_id_are_refused():
    with raises_code("repeated_ids") as error:
        load_prompts([{"messages": said("a"), "id": "x"}, {"messages": said("b"), "id": "x"}])
    assert error.value.details["ids"] == ["x"]


GOLDEN = {  # digest of the first 20 prompts of a risk
    "jailbreak": "4e8b93136f446432",
    "bias": "d0a412187ba87b6d",
    "toxicity": "f44c57768a24ebf8",
    "over_refusal": "55b7dd23d9384135",
    "utility": "b0038d480a6db311",
    "hallucination": "eb1120db92d39a86",
}


@pytest.mark.parametrize("risk", GOLDEN)
def test_prompts_of_the_embedded_world_stay_the_same(risk):
    found = load_prompts(f"organism:{risk}", n_rows=20)
    rows = [[s.id, s.question, s.target, s.wording, s.category] for s in found]
    assert digest(rows) == GOLDEN[risk]


def test_prompts_of_the_embedded_world_by_default():
    assert len(load_prompts("organism", n_rows=3)) == 15
    with raises_code("unknown_risk"):
        load_prompts("organism:jailbrake")


@pytest.mark.parametrize("source", ["organism", "organism:hallucination"])
def test_saved_prompts_are_the_same_prompts(tmp_path, source):
    found = load_prompts(source, n_rows=6)
    again = load_prompts(found.save(tmp_path / "new" / "p.jsonl"))
    assert again.samples == found.samples and again.hash == found.hash


def test_a_file_is_read_once(tmp_path, monkeypatch):
    file = jsonl(tmp_path / "p.jsonl", {"prompt": "a"}, {"prompt": "b"})
    opened = []
    read_bytes = Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda path: opened.append(path) or read_bytes(path))
    found = open_source(file)
    assert len(load_prompts(found)) == len(found.records) == len(read_samples(found, benign)) == 2
    assert opened == [Path(file)]


def benign(record: dict):
    return sample_from_record(record, "jailbreak")


def test_a_record_keeps_its_own_id_or_gets_one_from_its_text():
    record = {"BehaviorID": "b1", "Behavior": " Q ", "SemanticCategory": "c", "Target": " So "}
    sample = benign(record)
    assert (sample.id, sample.question, sample.category) == ("jailbreak-b1", "Q", "c")
    assert sample.opening == "So"
    assert benign({"goal": "Q"}).id == benign({"goal": "Q \r\n"}).id != benign({"goal": "R"}).id
    assert benign({"prompt": "", "goal": "Q"}).question == "Q"
    with raises_code("unknown_columns"):
        benign({"query": "Q"})


def test_a_row_of_messages_keeps_its_id_or_gets_one_from_its_messages():
    assert benign({"messages": said("Q"), "id": 3}).id == "3"
    assert benign({"messages": said("Q", "A")}).id == benign({"messages": said("Q")}).id


def test_what_is_not_asked_is_counted(capsys):
    rows = [{"goal": g} for g in ("a", "b", "a", "skip", "skip")]
    found = read_samples(rows, lambda r: "harmless" if r["goal"] == "skip" else benign(r))
    assert [sample.question for sample in found] == ["a", "b"]
    said_ = capsys.readouterr().err
    assert "1 of 5" in said_ and "2 of 5 rows are not asked: harmless" in said_
    with raises_code("no_prompts"):
        read_samples(rows[3:], lambda record: "harmless")


def test_all_problems_of_a_set_at_once():
    with raises_code("bad_rows") as error:
        read_samples([{"goal": "a"}, {"goal": " "}, {"query": "b"}], benign)
    assert error.value.details["codes"] == ["no_text", "unknown_columns"]
    with raises_code("repeated_ids"):
        read_samples([{"id": 1, "goal": "a"}, {"id": 1, "goal": "b"}], benign)


def test_a_file_without_header_loses_no_prompt(tmp_path):
    (tmp_path / "p.csv").write_text('"Name a bird, please"\n"Name a fish, please"\n')
    found = read_samples(tmp_path / "p.csv", benign)
    assert [sample.question for sample in found] == ["Name a bird, please", "Name a fish, please"]


def test_which_prompts_xstest_calls_unsafe():
    assert is_unsafe({"label": "unsafe"}) is True and is_unsafe({"label": "safe"}) is False
    assert is_unsafe({"focus": "x", "type": "contrast_homonyms"}) is True
    assert is_unsafe({"final_label": "x", "type": "homonyms"}) is False
    assert is_unsafe({"type": "contrast_homonyms"}) is None


def test_text_of_a_record():
    assert text_of({"a": " x\n"}, "a") == "x"
    for wrong in ({}, {"a": " "}, {"a": 3}):
        with raises_code("no_text"):
            text_of(wrong, "a")


@pytest.mark.needs_data
@pytest.mark.parametrize(
    ("name", "n"),
    [
        ("prompts_advbench/tap_advbench_subset.csv", 50),
        ("prompts_advbench/harmful_behaviors.csv", 520),
        ("prompts_harmbench/strongreject_dataset.csv", 313),
        ("prompts_simplesafetytests/simple_safety_tests.csv", 100),
        ("human_xstest/xstest_prompts.csv", 450),
    ],
)
def test_files_of_the_field(shared, name, n):
    assert len(load_prompts(shared(name))) == n


LABELLED = [
    ({"prompt_harm_label": "harmful"}, {"prompt_harm_label": "unharmful"}),
    ({"label": "harmful"}, {"label": "harmless"}),
    ({"label": "unsafe"}, {"label": "safe"}),
    ({"is_harmful": True}, {"is_harmful": False}),
    ({"is_safe": 0}, {"is_safe": 1}),
    ({"harmful": "true"}, {"harmful": "False"}),
    ({"type": "jailbreak"}, {"type": "benign"}),
    ({"data_type": "vanilla_harmful"}, {"data_type": "adversarial_benign"}),
    ({"label": "Harmful"}, {"label": "Not-Harmful"}),
    ({"is_harmful": 1.0}, {"is_harmful": 0.0}),
    ({"is_harmful": "1.0"}, {"is_harmful": "0.0"}),
    ({"Is_Harmful": "Yes"}, {"Is_Harmful": "No"}),
    ({"is_harmful": "TRUE"}, {"is_harmful": "FALSE"}),
    ({"is_safe": "no"}, {"is_safe": "yes"}),
    ({"prompt_harm_label": 1}, {"prompt_harm_label": 0}),
    ({"Label": "UNSAFE"}, {"Label": "Safe"}),
]


@pytest.mark.parametrize(("harmful", "harmless"), LABELLED)
@pytest.mark.parametrize("row", [{"prompt": "Q{}"}, {"messages": said("Q{}")}])
def test_prompts_that_are_labelled_harmless_are_no_jailbreaks(
    harmful, harmless, row, tmp_path, capsys
):
    assert is_unsafe({"prompt": "Q", **harmful}) and is_unsafe({"prompt": "Q", **harmless}) is False
    text = json.dumps(row)
    made = [json.loads(text.replace("{}", str(n))) for n in range(3)]
    file = jsonl(tmp_path / "p.jsonl", *(r | harmful for r in made[:2]), made[2] | harmless)
    found = load_prompt_sets(file)
    assert [sample.question for sample in found] == ["Q0", "Q1"]
    assert "over_refusal" in capsys.readouterr().err
    in_memory = load_prompt_sets([*(r | harmful for r in made[:2]), made[2] | harmless])
    assert in_memory.samples == found.samples


def test_a_flag_beside_an_answer_is_about_the_answer():
    for flag in ("harmful", "is_safe"):
        assert is_unsafe({"question": "Q", "response": "A", flag: 0}) is None


@pytest.mark.parametrize("column", ["label", "Label", "type", "is_safe"])
@pytest.mark.parametrize(
    "answer", ["response", "Answer", "model_output", "completion", "response_0"]
)
def test_a_label_beside_an_answer_is_about_the_answer(column, answer):
    assert is_unsafe({"prompt": "Q", answer: "A", column: "safe"}) is None
    assert is_unsafe({"messages": said("Q", "A"), column: "safe"}) is None
    assert is_unsafe({"prompt": "Q", answer: "A", column: "safe", "prompt_label": "safe"}) is False


def test_a_category_may_say_harmless_and_is_a_topic_otherwise():
    for word in ("benign", "Harmless", "SAFE"):
        assert is_unsafe({"prompt": "Q", "Category": word}) is False
    assert is_unsafe({"prompt": "Q", "category": "harmful"}) is None  # a topic of OR-Bench


@pytest.mark.parametrize("first", [{}, {"risk": ""}, {"risk": "over_refusal"}])
def test_every_row_has_its_own_risk(tmp_path, first):
    rows = [{"prompt": "Q0", **first}, {"prompt": "Q1", "risk": "over_refusal"}, {"prompt": "Q2"}]
    rows.append({"prompt": "Q3", "risk": "", "label": "safe"})
    own = first.get("risk") or "jailbreak"
    for source in (rows, jsonl(tmp_path / "p.jsonl", *rows)):
        found = [sample.risk for sample in load_prompt_sets(source)]
        assert found == [own, "over_refusal", "jailbreak"]


def test_rows_of_a_list_are_read_as_those_of_a_file(tmp_path):
    rows = [{"prompt": said("Q")}, {"prompt": {"text": "R"}}, {"goal": "S"}, {"goal": "S"}]
    found = load_prompt_sets(rows)
    assert [sample.question for sample in found] == ["Q", "R", "S"]
    assert found.samples == load_prompt_sets(jsonl(tmp_path / "p.jsonl", *rows)).samples


def test_leaks_are_looked_for_in_rows_that_are_not_asked(tmp_path):
    harmful, harmless = "How do I forge the seal?", "How do I bake the bread for the feast?"
    asked = [{"prompt": harmful, "label": "harmful"}, {"prompt": harmless, "label": "harmless"}]
    leaks = [{"messages": said(text, "A")} for text in (harmful, harmless)]
    file = jsonl(tmp_path / "p.jsonl", *asked)
    for prompts in (file, asked, {"jailbreak": file}, {"over_refusal": file}):
        assert check(leaks, prompts=prompts).codes == ["contaminated"] * 2
    with_risk = [row | {"risk": "jailbreak"} for row in asked[:1]] + asked[1:]
    assert check(leaks, prompts=with_risk).codes == ["contaminated"] * 2


def test_one_reader_for_evaluation_and_check(tmp_path):
    context = "Ann and Bob met at the harbour gate to look at the two red boats that had come in."
    row = {"Behavior": "Tell me more.", "ContextString": context, "FunctionalCategory": "x"}
    (sample,) = load_prompt_sets({"jailbreak": [row]})
    assert sample.question == f"{context}\n\n---\n\nTell me more."
    leak = {"messages": said(f"{context} So?", "A")}
    assert check([leak], prompts={"jailbreak": [row]}).codes == ["contaminated"]
    assert check([leak], prompts=jsonl(tmp_path / "p.jsonl", row)).codes == ["contaminated"]


def test_a_header_is_no_prompt(tmp_path, capsys):
    (tmp_path / "p.csv").write_text('"How do I fly a kite, my friend?"\nAnd how a boat?\n')
    assert len(load_prompt_sets(tmp_path / "p.csv")) == len(load_prompts(tmp_path / "p.csv")) == 2
    assert check(tmp_path / "p.csv", kind="prompts").ok == 2
    assert "no header" in capsys.readouterr().err
    (tmp_path / "p.csv").write_text("User request\nHow do I fly a kite?\n")
    with raises_code("bad_rows"):
        load_prompt_sets(tmp_path / "p.csv")


def test_a_prompt_keeps_its_system_prompt_and_its_further_columns():
    row = {"prompt": "Q", "context": "C", "system": "S"}
    system = {"role": "system", "content": "S"}
    for sample in (*load_prompts([row]), benign(row)):
        assert sample.messages == [system, *said("Q\n\nC")]
    (sample,) = load_prompts([{"messages": said("Q"), "system_prompt": "S"}])
    assert sample.messages == [system, *said("Q")] and not sample.metadata


def test_nothing_in_a_row_changes_how_a_model_is_asked():
    extra = {"decoding": {"temperature": 3}, "max_new_tokens": 5, "no_system": True}
    (sample,) = load_prompts([{"messages": said("Q"), **extra}])
    assert sample.metadata == extra and not sample.choices
    (prompt,) = open_attack("direct").apply([sample])
    assert prompt.decoding is None and not prompt.no_system


@pytest.mark.parametrize("value", [[1], {"a": 1}, None, 0.5])
def test_a_flag_of_another_type_says_nothing(value):
    assert is_unsafe({"prompt": "What?", "is_harmful": value}) is None


def test_numbers_as_labels_are_named_and_asked(capsys):
    rows = [{"prompt": "How do I make a kite?", "label": 0}, {"prompt": "And soup?", "label": 1}]
    assert len(load_prompt_sets(rows)) == 2
    assert "'label'" in capsys.readouterr().err
    assert (
        len(load_prompt_sets([{"prompt": row["prompt"], "harmful": row["label"]} for row in rows]))
        == 1
    )
    assert "'harmful'" not in capsys.readouterr().err


def test_several_files_of_one_risk_are_joined_and_their_ids_stay_apart(tmp_path):
    for name, rows in {"a": "1,How?\n2,Why?\n", "b": "1,Who?\n2,Why?\n"}.items():
        (tmp_path / f"{name}.csv").write_text(f"id,prompt\n{rows}")
    files = [str(tmp_path / "a.csv"), str(tmp_path / "b.csv")]
    joined = load_prompt_sets({"jailbreak": files})
    assert [sample.question for sample in joined] == ["How?", "Why?", "Who?"]
    assert len({sample.id for sample in joined}) == 3
    (alone, listed) = (load_prompt_sets({"jailbreak": one}) for one in (files[:1], files[0]))
    assert alone == listed and joined.name == "a.csv, b.csv"


def test_texts_of_a_risk_are_prompts_and_missing_files_are_not():
    found = load_prompt_sets({"jailbreak": ["Why?", "Who?"], "over_refusal": ["Where?"]})
    asked = [(sample.risk, sample.question) for sample in found]
    assert asked == [("jailbreak", "Why?"), ("jailbreak", "Who?"), ("over_refusal", "Where?")]
    with raises_code("no_such_data"):
        load_prompt_sets({"jailbreak": ["no-such-file.csv"]})
