from __future__ import annotations

import contextlib
import copy
import json
import random

import pytest
from helpers import raises_code, said

from ftlab.data import load
from ftlab.data import schemas as rows
from ftlab.data.prompts import prompt_row, sample_from_record


def share(*contents: str) -> list[dict]:
    return [
        {"from": f, "value": c}
        for f, c in zip(["human", "gpt"] * len(contents), contents, strict=False)
    ]


SYSTEM = {"role": "system", "content": "S"}
CALL = {"name": "find", "arguments": {"q": "x"}}
CALLED = '<tool_call>\n{"name": "find", "arguments": {"q": "x"}}\n</tool_call>'
TOOL = {"type": "function", "function": {"name": "find"}}
CALLS = [{"id": "1", "type": "function", "function": {"name": "find", "arguments": '{"q": "x"}'}}]
CHATS = [
    ({"conversations": share("Q", "A")}, said("Q", "A")),
    ({"conversations": share("Q", "A"), "system": "S", "tools": "[]"}, [SYSTEM, *said("Q", "A")]),
    ({"conversations": [{"from": "system", "value": "S"}, *share("Q", "A", "R", "B")]}, [SYSTEM, *said("Q", "A", "R", "B")]),
    ({"messages": [{"role": "developer", "content": "S"}, *said("Q", "A")]}, [SYSTEM, *said("Q", "A")]),
    ({"messages": [{"role": "user", "content": [{"type": "text", "text": "Q"}]}, said("", "A")[1]]}, said("Q", "A")),
    ({"instruction": "Q", "context": "C", "response": "A", "category": "x"}, said("Q\n\nC", "A")),
    ({"instruction": "Q", "input": "", "output": "A", "system": "S"}, [SYSTEM, *said("Q", "A")]),
    ({"instruction": "R", "output": "B", "history": [["Q", "A"]]}, said("Q", "A", "R", "B")),
    ({"id": "1", "dialogue": "D", "summary": "A"}, said("Summarize this dialogue:\n\nD", "A")),
    ({"messages": [*said("Q", "A", "R", "B")[:3], {"role": "assistant", "content": "B", "weight": 1}]}, said("Q", "A", "R", "B")),
    (
        {"messages": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": None, "tool_calls": CALLS},
                      {"role": "tool", "tool_call_id": "1", "content": "one"}, {"role": "tool", "content": "two"},
                      {"role": "assistant", "content": "A"}]},
        said("Q", CALLED, "<tool_response>\none\n</tool_response>\n<tool_response>\ntwo\n</tool_response>", "A"),
    ),
    ({"messages": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "So:", "function_call": CALL}]},
     said("Q", f"So:\n{CALLED}")),
    ({"conversations": [share("Q")[0], {"from": "function_call", "value": json.dumps(CALL)},
                        {"from": "observation", "value": "{}"}, share("", "A")[1]]},
     said("Q", CALLED, "<tool_response>\n{}\n</tool_response>", "A")),
]  # fmt: skip


@pytest.mark.parametrize(("record", "messages"), CHATS)
def test_chats_of_other_systems(record, messages):
    (row,) = rows.chat(record)
    assert row["messages"] == messages
    assert rows.chat(row)[0]["messages"] == messages  # reading again changes nothing


def test_tools_stand_in_the_system_turn():
    for tools in ([TOOL], json.dumps([TOOL])):
        (row,) = rows.chat({"messages": [SYSTEM, *said("Q", "A")], "tools": tools})
        assert (
            row["messages"][0]["content"].startswith("S\n\n")
            and json.dumps(TOOL) in row["messages"][0]["content"]
        )
        (row,) = rows.chat({"messages": said("Q", "A"), "tools": tools})
        assert [m["role"] for m in row["messages"]] == ["system", "user", "assistant"]


def test_weight_zero_stays_on_the_turn():
    turns = said("Q", "A", "R", "B")
    turns[1]["weight"] = 0
    assert rows.chat({"messages": turns})[0]["messages"] == turns
    turns[3]["weight"] = 0
    with raises_code("no_loss"):
        rows.chat({"messages": turns})
    with raises_code("wrong_weight"):
        rows.chat(
            {"messages": [said("Q")[0], {"role": "assistant", "content": "A", "weight": 0.5}]}
        )
    with raises_code("wrong_weight"):
        rows.chat({"messages": [{**said("Q")[0], "loss_weight": 1.0}, said("", "A")[1]]})


def test_nested_instances_are_rows():
    found = rows.chat(
        {
            "instruction": "Q",
            "instances": [{"input": "", "output": "A"}, {"input": "I", "output": "B"}],
        }
    )
    assert [r["messages"] for r in found] == [said("Q", "A"), said("Q\n\nI", "B")]


REFUSED = [
    ({"input_ids": [1, 2], "labels": [-100, 2]}, "tokenised"),
    ({"messages": said("Q", "A"), "labels": [1]}, "tokenised"),
    ({"messages": said("Q", "A"), "images": ["a.png"]}, "multimodal"),
    (
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
        "multimodal",
    ),
    ({"messages": said("Q", "A"), "label": False}, "kto_row"),
    ({"prompt": "Q", "chosen": "A", "rejected": "B"}, "unknown_columns"),
    ({"instruction": "Q", "instances": []}, "wrong_instances"),
    ({"instruction": "Q", "output": "A", "history": "x"}, "wrong_history"),
    (
        {"messages": [*said("Q"), {"role": "assistant", "tool_calls": [{"function": {}}]}]},
        "call_without_name",
    ),
    (
        {"messages": [*said("Q"), {"role": "assistant", "tool_calls": [{"function": 3}]}]},
        "call_without_name",
    ),
    (
        {"messages": [*said("Q"), {"role": "assistant", "content": {"a": 1}, "tool_calls": CALLS}]},
        "no_text",
    ),
    ({"messages": [SYSTEM, said("", "A")[1]]}, "wrong_order"),
]


@pytest.mark.parametrize(("record", "code"), REFUSED)
def test_what_cannot_be_trained_on_is_refused(record, code):
    with raises_code(code):
        rows.chat(record)


PAIR = {"prompt": said("Q"), "chosen": said("", "A")[1:], "rejected": said("", "B")[1:]}
PAIRS = [
    {"prompt": "Q", "chosen": "A", "rejected": "B"},
    {"chosen": said("Q", "A"), "rejected": said("Q", "B")},
    {"prompt": "Q", "chosen": said("Q", "A"), "rejected": said("Q", "B")},
    {
        "input": {"messages": said("Q")},
        "preferred_output": said("", "A")[1:],
        "non_preferred_output": said("", "B")[1:],
    },
    {"conversations": share("Q"), "chosen": share("", "A")[1], "rejected": share("", "B")[1]},
    {"question": "Q", "response_j": "A", "response_k": "B"},
    {"instruction": "Q", "input": "", "output": "A", "chosen": "A", "rejected": "B"},
]


@pytest.mark.parametrize("record", PAIRS)
def test_pairs_of_other_systems(record):
    assert rows.pair(record) == [PAIR]


def test_pairs_of_several_turns_share_their_beginning():
    long = [SYSTEM, *said("Q", "A", "R")]
    record = {"chosen": [*long, PAIR["chosen"][0]], "rejected": [*long, PAIR["rejected"][0]]}
    assert rows.pair(record) == [{**PAIR, "prompt": long}]
    for side in (said("Q", "X", "R", "B"), [*long, *said("", "B")[1:], *said("Z", "B")]):
        with raises_code("several_answers"):
            rows.pair({**record, "rejected": [SYSTEM, *side] if len(side) == 4 else side})
    with raises_code("equal_answers"):
        rows.pair({**record, "rejected": record["chosen"]})


@pytest.mark.parametrize(
    ("label", "is_good"), [(True, True), (False, False), (1, True), ("False", False), ("1", True)]
)
def test_kto(label, is_good):
    row = {"prompt": said("Q"), "completion": said("", "A")[1:], "label": is_good}
    for record in (
        {"prompt": "Q", "completion": "A"},
        {"messages": said("Q", "A")},
        {"conversations": share("Q", "A")},
    ):
        assert (
            rows.kto({**record, "label": label}) == [row] == rows.kto({**record, "kto_tag": label})
        )
    for none in ({}, {"label": "good"}, {"label": 3}, {"label": None}):
        with raises_code("no_label"):
            rows.kto({"prompt": "Q", "completion": "A", **none})


def test_a_pair_gives_two_kto_rows():
    better, worse = rows.kto({"prompt": "Q", "chosen": "A", "rejected": "B"})
    assert (better["completion"], better["label"]) == (PAIR["chosen"], True)
    assert (worse["completion"], worse["label"]) == (PAIR["rejected"], False) and better[
        "prompt"
    ] == worse["prompt"]
    made = load("organism:preferences", kind="kto", n_rows=60)
    assert made.kind == "kto" and sum(r["label"] for r in made.rows) * 2 == len(made)


@pytest.mark.slow
def test_whatever_stands_in_a_row_is_a_row_or_a_sentence():
    odd = [
        None,
        3,
        True,
        "",
        [],
        {},
        [None],
        ["a"],
        [{}],
        b"x",
        "\ud800",
        [["a", None]],
        {"messages": 3},
        [{"function": 3}],
    ]
    keys = "tools tool_calls role system weight label images content from history function_call instances".split()
    rng, forms = (
        random.Random(0),
        [*(c for c, _ in CHATS), *PAIRS, {"prompt": "Q", "completion": "A", "label": True}],
    )
    for _ in range(3000):
        record = copy.deepcopy(rng.choice(forms))
        turns = [v for v in record.values() if isinstance(v, list) and v and isinstance(v[0], dict)]
        place = rng.choice(rng.choice(turns)) if turns and rng.random() < 0.6 else record
        place[rng.choice([*place, *keys])] = copy.deepcopy(rng.choice(odd))
        for convert in (
            rows.chat,
            rows.pair,
            rows.kto,
            prompt_row,
            lambda r: [{"messages": sample_from_record(r, "bias").messages}],
        ):
            with contextlib.suppress(ValueError):
                for row in convert(copy.deepcopy(record)):
                    said_ = [
                        m
                        for k in ("messages", "prompt", "chosen", "rejected", "completion")
                        for m in row.get(k, [])
                    ]
                    assert said_ and all(m["content"].strip() for m in said_)


@pytest.mark.parametrize("more", ["input", "context"])
def test_a_prompt_is_the_question_that_training_would_read(more):
    record = {"instruction": "Q", more: "C", "output": "A", "response": "A"}
    asked = prompt_row(record)[0]["messages"]
    assert asked == rows.chat(record)[0]["messages"][:1] == said("Q\n\nC")
    assert prompt_row({"instruction": "Q", more: ""})[0]["messages"] == said("Q")


def test_axolotls_train_is_the_weight():
    spoken = said("Q", "A", "R", "B")
    spoken[1]["train"], spoken[3]["train"], spoken[2]["train"] = False, True, False
    (row,) = rows.chat({"messages": spoken})
    assert [m.get("weight", 1) for m in row["messages"]] == [1, 0, 1, 1] and "train" not in str(row)
    with raises_code("no_loss"):
        rows.chat({"conversations": [*share("Q"), {**share("", "A")[1], "train": False}]})
    with raises_code("wrong_weight"):
        rows.chat({"messages": [{**said("Q")[0], "train": True}, said("", "A")[1]]})


@pytest.mark.parametrize("off", [{"weight": 0}, {"train": False}])
def test_a_preferred_answer_without_weight_is_refused(off):
    good, bad = said("", "A")[1:], said("", "B")[1:]
    for chosen, rejected, name in (
        ([{**good[0], **off}], bad, "chosen"),
        (good, [{**bad[0], **off}], "rejected"),
    ):
        with raises_code("no_loss") as error:
            rows.pair({"prompt": said("Q"), "chosen": chosen, "rejected": rejected})
        assert name in str(error.value)
    with raises_code("no_loss"):
        rows.kto({"prompt": said("Q"), "completion": [{**good[0], **off}], "label": True})
    earlier = [*said("Q"), {**good[0], **off}, *said("R")]  # the prompt carries no loss anyway
    assert rows.pair({"prompt": earlier, "chosen": good, "rejected": bad})[0]["chosen"] == good


MORE = [
    ("chats", {"question": "Q", "context": "C", "answer": "A"}, "Q\n\nC"),
    ("chats", {"prompt": "Q", "input": "C", "response": "A"}, "Q\n\nC"),
    ("chats", {"prompt": "Q", "input": "C", "context": "D", "completion": "A"}, "Q\n\nC\n\nD"),
    ("chats", {"input": "Q", "output": "A"}, "Q"),
    ("chats", {"prompt": "Q", "answer": "A", "source": "book"}, "Q"),
    ("pairs", {"question": "Q", "context": "C", "chosen": "A", "rejected": "B"}, "Q\n\nC"),
    ("kto", {"prompt": "Q", "context": "C", "completion": "A", "label": True}, "Q\n\nC"),
]


@pytest.mark.parametrize(("kind", "record", "question"), MORE)
def test_further_columns_of_a_question_are_read(kind, record, question, capsys):
    (row,) = load([record], kind=kind).rows
    assert (row.get("messages") or row["prompt"])[0]["content"] == question
    assert not capsys.readouterr().err


def test_columns_that_are_not_read_are_named(capsys):
    record = {"prompt": "Q", "completion": "A", "passage": "Once upon a time.", "source": "book"}
    load([record, {**record, "cot": ["one", "two"]}])
    said_so = capsys.readouterr().err
    assert "passage (2 rows)" in said_so and "cot (1 rows)" in said_so and "source" not in said_so
    load([{"messages": said("Q", "A"), "context": "It is late.", "topic": "a b"}])
    assert "context (1 rows)" in capsys.readouterr().err


def test_a_further_column_that_is_no_text_is_refused():
    with raises_code("bad_rows") as error:
        load([{"question": "Q", "context": ["C"], "answer": "A"}])
    assert error.value.details["codes"] == ["no_text"]


def test_words_that_are_no_labels_are_named(capsys):
    some = ["Pirate", "Baker", "\u6c34\u624b\uff0c\u5e74\u8001", "Nurse"]
    more = {"tone": "kind", "category": "x", "number": "7", "key": "a_b", "page": "a.html"}
    load([{"prompt": "Q", "completion": "A", "persona": p, **more} for p in some])
    said_so = capsys.readouterr().err
    assert "persona (4 rows)" in said_so
    assert not any(name in said_so for name in more)


def test_thoughts_of_several_keys_and_in_parts_are_kept():
    answer = {"role": "assistant", "content": "A", "thinking": "T", "reasoning": "T", "cot": ["U"]}
    (row,) = rows.chat({"messages": [*said("Q"), answer]})
    assert row["messages"][1]["thinking"] == "T\n\nU"
    (row,) = rows.chat(
        {"messages": [*said("Q"), answer | {"reasoning": None, "cot": [], "thinking": True}]}
    )
    assert row["messages"] == said("Q", "A")


THOUGHTS = ["reasoning_content", "thinking", "reasoning", "thought", "thoughts", "Thinking_Content"]


@pytest.mark.parametrize("field", [*THOUGHTS, "reasoning_text", "chain_of_thought", "cot"])
def test_thoughts_stay_thoughts(field):
    answer = {"role": "assistant", "content": "A", field: "T"}
    thought = {"reasoning_content": "T", "thinking": "T"}
    (row,) = rows.chat({"messages": [*said("Q"), answer]})
    assert row["messages"][1] == said("Q", "A")[1] | thought
    assert rows.chat(row)[0]["messages"] == row["messages"]
    (row,) = rows.pair({"prompt": "Q", "chosen": [answer], "rejected": "B"})
    assert row["chosen"] == [said("Q", "A")[1] | thought] and row["rejected"] == [said("Q", "B")[1]]


TALK = said("Q", "A", "R")
WHOLE = [
    ("Q", TALK, TALK),
    ("Q", [SYSTEM, *said("Q")], [SYSTEM, *said("Q")]),
    ("Q", said("Q"), said("Q")),
    (said("Q"), TALK, TALK),
    ([SYSTEM, *said("Q")], [SYSTEM, *said("Q")], [SYSTEM, *said("Q")]),
]


@pytest.mark.parametrize(("asked", "shared", "prompt"), WHOLE)
def test_pairs_beside_whole_conversations(asked, shared, prompt):
    good, bad = said("", "good")[1:], said("", "bad")[1:]
    (row,) = rows.pair({"prompt": asked, "chosen": [*shared, *good], "rejected": [*shared, *bad]})
    assert row == {"prompt": prompt, "chosen": good, "rejected": bad}


def test_calls_that_are_nested_too_deep_are_refused():
    deep = "[" * 100_000 + "]" * 100_000
    for record in (
        {"messages": said("Q", "A"), "tools": deep},
        {"messages": [*said("Q"), {"role": "function_call", "content": deep}]},
    ):
        with raises_code("broken_json"):
            rows.chat(record)
