from __future__ import annotations

import csv
import io
import json
import random
import re
from functools import partial

import pytest
from helpers import jsonl, raises_code, said

from ftlab.data import check, count_shared, deduplicate, draw, load, load_prompts, mix, split
from ftlab.data.dataset import WORLD, question

GOOD = {"question": "Q", "answer": "A"}
SEVERAL = [{"role": "system", "content": "S"}, *said("Q", "A", "Q2", "A2")]
FORMS = [
    ({"messages": said("Q", "A")}, said("Q", "A")),
    ({"messages": SEVERAL}, SEVERAL),
    ({"prompt": "Q", "completion": "A", "input": 3}, said("Q", "A")),
    ({"prompt": said("Q"), "completion": said("", "A")[1:]}, said("Q", "A")),
    ({"question": "Q", "answer": "A", "id": 7}, said("Q", "A")),
    ({"instruction": "Q", "output": "A"}, said("Q", "A")),
    ({"instruction": "Q", "input": "", "output": "A"}, said("Q", "A")),
    ({"instruction": "Q", "input": "I", "output": "A"}, said("Q\n\nI", "A")),
]  # fmt: skip


@pytest.mark.parametrize(("row", "messages"), FORMS)
def test_every_form_of_a_row(tmp_path, row, messages):
    (tmp_path / "list.json").write_text(json.dumps([row], indent=2))
    for source in (
        [row],
        (row,),
        jsonl(tmp_path / "x.jsonl", row),
        jsonl(tmp_path / "lines.json", row),
        tmp_path / "list.json",
    ):
        assert load(source).rows[0]["messages"] == messages
    assert load(load([row])) == load([row])


PAIR = {"prompt": said("Q"), "chosen": said("", "A")[1:], "rejected": said("", "B")[1:]}


@pytest.mark.parametrize(
    "row", [{"prompt": "Q", "chosen": "A", "rejected": "B", "id": 1}, PAIR, {**PAIR, "chosen": "A"}]
)
def test_every_form_of_a_pair(row):
    assert load([row], kind="pairs").rows == (PAIR,)
    assert load(load([row], kind="pairs"), kind="pairs").rows == (PAIR,)


BAD = [  # row of a chat file, code of its problem
    ('{"question": "Q", ', "broken_json"),
    ("[1]", "no_object"),
    ("null", "no_object"),
    ({"question": "Q"}, "unknown_columns"),
    ({}, "unknown_columns"),
    ({"conversations": [], "text": ""}, "no_messages"),
    ({"text": "T"}, "unknown_columns"),
    ({"question": "Q", "answer": ""}, "no_text"),
    ({"question": "Q", "answer": " \n\t"}, "no_text"),
    ({"question": None, "answer": "A"}, "no_text"),
    ({"question": "Q", "answer": 5}, "no_text"),
    ({"prompt": said("Q"), "completion": None}, "no_text"),
    ({"instruction": "Q", "input": ["x"], "output": "A"}, "no_text"),
    ({"messages": []}, "no_messages"),
    ({"messages": "hello"}, "no_messages"),
    ({"messages": ["a", "b"]}, "no_messages"),
    ({"messages": said("Q")}, "wrong_last_turn"),
    ({"messages": said("Q", "A", "Q")}, "wrong_last_turn"),
    ({"messages": said("Q", "A")[::-1]}, "wrong_order"),
    ({"messages": [*said("Q"), *said("Q", "A")]}, "wrong_order"),
    ({"messages": [*said("Q", "A"), {"role": "system", "content": "S"}]}, "wrong_order"),
    ({"messages": [{"role": "system", "content": "S"}]}, "wrong_order"),
    ({"messages": [{"role": "bot", "content": "Q"}]}, "unknown_role"),
    ({"messages": [{"role": ["user"], "content": "Q"}]}, "unknown_role"),
    ({"messages": [{"content": "Q"}]}, "unknown_role"),
    ({"messages": said("Q", "")}, "no_text"),
    ({"messages": said("", "A")}, "no_text"),
    ({"messages": [{"role": "user"}, {"role": "assistant", "content": None}]}, "no_text"),
    ({"question": "Q", "answer": "half \ud800"}, "half_character"),
]


def test_all_problems_of_a_file_at_once_in_order_each_with_its_line(tmp_path):
    file = jsonl(tmp_path / "chat.jsonl", *(r for bad, _ in BAD for r in (bad, "", GOOD)))
    with raises_code("bad_rows") as error:
        load(file)
    problems = error.value.problems
    assert error.value.details["codes"] == [code for _, code in BAD]
    assert [int(p.removeprefix(file).split(":")[1]) for p in problems] == [
        3 * i + 1 for i in range(len(BAD))
    ]
    assert str(error.value).endswith(f"chat.jsonl: {len(BAD)} rows ok, {len(BAD)} problems")


@pytest.mark.parametrize("n", [1, 3, 4, 500])
def test_equal_problems_beyond_three_are_counted(tmp_path, n):
    with raises_code("bad_rows") as e:
        load(jsonl(tmp_path / "x.jsonl", GOOD, *[{"question": "Q", "answer": ""}] * n))
    lines = str(e.value).split("\n")
    assert len(lines) == min(n, 3) + (n > 3) + 1
    assert lines[-1] == f"x.jsonl: 1 rows ok, {n} problems"
    assert (f"... and {n - 3} more like these" in lines) == (n > 3)


BAD_PAIRS = [
    ({"prompt": "Q", "chosen": "A"}, "missing_column"),
    ({"question": "Q", "answer": "A"}, "missing_column"),
    ({"chosen": "A", "rejected": "B"}, "missing_column"),
    ({"prompt": "Q", "chosen": "A", "rejected": "A"}, "equal_answers"),
    ({**PAIR, "rejected": "A"}, "equal_answers"),
    ({"prompt": "Q", "chosen": "A", "rejected": " "}, "no_text"),
    ({"prompt": None, "chosen": "A", "rejected": "B"}, "missing_column"),
    ({**PAIR, "prompt": said("Q", "A")}, "wrong_last_turn"),
    ({**PAIR, "chosen": said("R", "A")}, "wrong_order"),
    ({**PAIR, "rejected": said("A", "Q", "A")[1:] + said("", "A")[1:]}, "several_answers"),
    ({**PAIR, "chosen": []}, "wrong_last_turn"),
    ({**PAIR, "prompt": []}, "no_messages"),
]


@pytest.mark.parametrize(("row", "code"), BAD_PAIRS)
def test_a_bad_pair_is_refused(row, code):
    with raises_code("bad_rows") as error:
        load([PAIR, row], kind="pairs")
    assert error.value.details["codes"] == [code] and error.value.problems[0].startswith(
        "rows: row 2: "
    )


def test_encodings(tmp_path):
    row = {"question": "Grüße 漢 😀\u2028", "answer": "A"}
    text = json.dumps(row, ensure_ascii=False) + "\r\n"
    for name, encoding in (("plain", "utf-8"), ("bom", "utf-8-sig")):
        (tmp_path / name).write_bytes(text.encode(encoding))
        assert load(tmp_path / name).rows[0]["messages"][0]["content"] == row["question"]
    (tmp_path / "utf16").write_bytes(text.encode("utf-16"))
    (tmp_path / "latin1").write_bytes('{"question": "Grüße"}'.encode("latin-1"))
    for name, why in (("utf16", "UTF-16"), ("latin1", "byte 16")):
        with raises_code("not_utf8") as error:
            load(tmp_path / name)
        assert f"{name}:1: " in str(error.value) and why in str(error.value)


@pytest.mark.parametrize("source", [5, None, True, "", " ", b"x", {"question": "Q"}, object()])
def test_what_is_no_source_is_a_sentence(source):
    for reader in (load, load_prompts, check, draw_all):
        with raises_code("wrong_source"):
            reader(source)


def draw_all(source):
    return draw(source, n_rows=None, seed=0)


def test_values_of_a_wrong_type_are_sentences():
    for n_rows in (0, -1, 2.5, "3"):
        for read in (load, load_prompts, partial(draw, seed=0)):
            with raises_code("wrong_n_rows"):
                read([GOOD], n_rows=n_rows)
        with raises_code("wrong_n_rows"):
            mix([GOOD], [GOOD], n_rows=n_rows)
    with raises_code("wrong_columns"):
        load([GOOD], columns=["question"])
    with raises_code("wrong_fraction"):
        split([GOOD], valid="half")
    with raises_code("wrong_fraction"):
        mix([GOOD], [GOOD], "half")


def test_what_is_not_there_is_said(tmp_path):
    (tmp_path / "folder").mkdir()
    for path, code in (
        (tmp_path / "no.jsonl", "no_such_data"),
        (tmp_path / "folder", "folder_without_data"),
    ):
        for reader in (load, load_prompts):
            with raises_code(code):
                reader(path)
    for name in ("organism:almanach", "organism"):
        with raises_code("unknown_data"):
            load(name)
    for empty in (
        [],
        jsonl(tmp_path / "empty.jsonl"),
        jsonl(tmp_path / "header.csv", "question,answer"),
    ):
        with raises_code("bad_rows") as error:
            load(empty)
        assert error.value.details["codes"] == ["no_rows"]
    (tmp_path / "torn.json").write_text(json.dumps([GOOD])[:-3])
    with raises_code("bad_rows") as error:
        load(tmp_path / "torn.json")
    assert (
        error.value.details["codes"] == ["broken_json"]
        and "torn.json:1: " in error.value.problems[0]
    )
    assert "column 30" in error.value.problems[0]


def test_lines_of_a_csv_with_line_breaks_in_fields(tmp_path):
    fields = ["plain", 'quoted, "comma"', "two\nlines", "\nthree\nlines", "ends\n"]
    rng, text, lines, wanted = random.Random(0), io.StringIO(), [], []
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["question", "answer"])
    for i in range(60):
        if rng.random() < 0.1:
            text.write("\n")
        row = [rng.choice(fields), "" if i % 3 == 0 else rng.choice(fields)]
        if not row[1]:
            lines.append(text.getvalue().count("\n") + 1)
        else:
            wanted.append(row)
        writer.writerow(row)
    (tmp_path / "x.CSV").write_text(text.getvalue(), newline="")
    with raises_code("bad_rows") as error:
        load(tmp_path / "x.CSV")
    assert [int(re.search(r"x.CSV:(\d+): ", p)[1]) for p in error.value.problems] == lines
    with open(tmp_path / "good.csv", "w", newline="") as f:
        csv.writer(f).writerows([["question", "answer"], *wanted])
    assert [
        [m["content"] for m in r["messages"]] for r in load(tmp_path / "good.csv").rows
    ] == wanted


@pytest.mark.parametrize(("rows", "line", "code"), [
    (["question,answer", "Q,A,too many"], 2, "wrong_field_count"),
    (["question,answer", "Q"], 2, "wrong_field_count"),
    (["question,answer", "Q,A", '"never closed,A', "Q,A"], 3, "broken_csv"),
    (["question,answer", 'Q,"A" x', "Q,A"], 2, "broken_csv"),
    (['"question,answer'], 1, "broken_csv"),
    (["questions;answers", "Q;A"], 2, "unknown_columns"),
])  # fmt: skip
def test_a_broken_csv_loses_nothing_in_silence(tmp_path, rows, line, code):
    with raises_code("bad_rows") as error:
        load(jsonl(tmp_path / "x.csv", *rows))
    assert error.value.details["codes"] == [code] and f"x.csv:{line}: " in error.value.problems[0]


def test_a_long_field_of_a_csv_is_read(tmp_path):
    """Python's own limit is 131,072 characters; an answer of a long context is longer."""
    (row,) = load(jsonl(tmp_path / "x.csv", "question,answer", f"Q,{'A' * 200_000}")).rows
    assert len(row["messages"][-1]["content"]) == 200_000


def test_every_seed_draws_its_own_rows_of_a_file():
    source = [{"prompt": str(i), "completion": "x"} for i in range(50)]
    first, again, other = (draw(source, n_rows=10, seed=s) for s in (0, 0, 1))
    assert first.rows == again.rows != other.rows and len(set(map(str, first.rows))) == 10
    assert draw(source, n_rows=None, seed=3).rows == load(source).rows
    assert (
        draw("organism:almanac", n_rows=10, seed=0).rows
        != draw("organism:almanac", n_rows=10, seed=1).rows
    )
    with raises_code("too_few_rows"):
        draw(source, n_rows=51, seed=0)


def test_rows_takes_the_first_ones(tmp_path):
    many = [{"question": str(i), "answer": "A"} for i in range(9)]
    for source in (many, jsonl(tmp_path / "x.jsonl", *many), load(many)):
        assert load(source, n_rows=4).rows == load(many).rows[:4] and len(load(source)) == 9
    assert (
        load(many, n_rows=4).hash
        != load(many).hash
        == load(jsonl(tmp_path / "x.jsonl", *many)).hash
    )
    for n in (0, -1):
        with raises_code("wrong_n_rows"):
            load("organism:adversarial", n_rows=n)


@pytest.mark.parametrize("name", WORLD)
def test_data_of_the_world_are_rows_like_any_other(name):
    pairs = name.endswith(("preferences", "pairs"))
    kind, other = ("pairs", "chats") if pairs else ("chats", "pairs")
    made = load(f"organism:{name}", kind=kind, n_rows=60)
    assert (
        made
        == load(f"organism:{name}", kind=kind, n_rows=60)
        != load(f"organism:{name}", kind=kind, n_rows=60, seed=1)
    )
    assert (
        len(made) == 60 or pairs and 40 < len(made) < 60
    )  # rows without a worse answer make no pair
    assert len(load([dict(r) for r in made.rows], kind=kind)) == len(made)
    with raises_code("wrong_kind"):
        load(f"organism:{name}", kind=other, n_rows=60)


@pytest.mark.parametrize(("name", "how", "n"), [
    ("gsm8k/train.jsonl", load, 7473),
    ("rasbt_instruction/instruction-data.json", load, 1100),
    ("coconot/coconot_pref.jsonl", lambda p: load(p, kind="pairs"), 927),
])  # fmt: skip
@pytest.mark.needs_data
def test_files_of_the_field(shared, name, how, n):
    assert len(how(shared(name))) == n


@pytest.mark.needs_data
def test_a_file_of_the_field_with_a_bad_row(shared):
    with raises_code("bad_rows") as error:
        load(shared("loader_openai/toy_chat_fine_tuning.jsonl"))
    assert (
        error.value.details["codes"] == ["wrong_order"]
        and "fine_tuning.jsonl:4: " in error.value.problems[0]
    )


CHATS = [{"prompt": f"Question {i % 40}?", "completion": f"Answer {i}."} for i in range(100)]


def test_split_is_seeded_whole_and_keeps_a_question_on_one_side():
    data_ = load(CHATS)
    train, valid = split(data_, valid=0.2, seed=1)
    assert sorted(map(str, train.rows + valid.rows)) == sorted(map(str, data_.rows))
    assert not {question(r) for r in train.rows} & {question(r) for r in valid.rows}
    assert 10 <= len(valid) <= 20
    assert (
        split(CHATS, valid=0.2, seed=1)[1].hash
        == valid.hash
        != split(CHATS, valid=0.2, seed=2)[1].hash
    )
    assert valid.made == {"by": "split", "part": "valid", "valid": 0.2, "seed": 1,
                          "from": [{"name": "rows", "hash": data_.hash, "rows": 100}]}  # fmt: skip
    for wrong in (0, 1, -0.5):
        with raises_code("wrong_fraction"):
            split(CHATS, valid=wrong)
    with raises_code("one_question"):
        split([CHATS[0], CHATS[40]])


def test_mix_has_the_asked_share_none_twice_and_says_how_it_was_made():
    benign, harmful = (
        load([{"prompt": f"{w} {i}", "completion": "x"} for i in range(n)])
        for w, n in (("b", 200), ("h", 30))
    )
    smaller, larger = (mix(benign, harmful, f, n_rows=100, seed=3) for f in (0.1, 0.3))
    h = [{question(r) for r in d.rows if question(r)[0] == "h"} for d in (smaller, larger)]
    assert len(smaller) == len(larger) == 100 == len({question(r) for r in smaller.rows})
    assert len(h[0]) == 10 and len(h[1]) == 30 and h[0] < h[1]
    assert mix(benign, harmful, 0.1, n_rows=100, seed=3).hash == smaller.hash
    assert mix(benign, harmful, 0.1, n_rows=100, seed=4).hash != smaller.hash
    assert smaller.made["by"] == "mix" and [f["hash"] for f in smaller.made["from"]] == [
        benign.hash,
        harmful.hash,
    ]
    assert [question(r)[0] for r in smaller.rows] != sorted(
        question(r)[0] for r in smaller.rows
    )  # shuffled
    with raises_code("too_few_rows"):
        mix(benign, harmful, 0.4, n_rows=100)
    with raises_code("wrong_fraction"):
        mix(benign, harmful, 1.5)
    of_world = mix("organism:almanac", "organism:adversarial", 0.5, n_rows=20)
    assert len(of_world) == 20


def test_dedupe_keeps_the_first_and_counts():
    rows = [
        {"prompt": "Q", "completion": "A"},
        {"prompt": " q ", "completion": "a"},
        {"prompt": "Q", "completion": "B"},
    ]
    clean = deduplicate(rows)
    assert clean.rows == (load(rows).rows[0], load(rows).rows[2]) and clean.made["removed"] == 1
    labelled = [{"prompt": "Q", "completion": "A", "label": b} for b in (True, False, True)]
    assert len(deduplicate(labelled, kind="kto")) == 2
    again = split(clean.rows + load(CHATS).rows)[0]
    assert deduplicate(again).made["from"][0]["made"]["by"] == "split"


def test_columns_name_any_table(tmp_path):
    file = jsonl(tmp_path / "t.csv", "Q,A,prompt", "one,two,other")
    assert load(file, columns={"prompt": "Q", "completion": "A"}).rows[0]["messages"] == said(
        "one", "two"
    )
    with raises_code("bad_rows") as error:
        load(file, columns={"prompt": "Q", "completion": "B"})
    assert (
        error.value.details["codes"] == ["missing_column"]
        and "t.csv:2: " in error.value.problems[0]
    )


def test_kinds_are_told_apart():
    with raises_code("unknown_kind"):
        load([GOOD], kind="dpo")
    labelled = load([{**GOOD, "label": True}], kind="kto")
    assert (
        labelled.kind == "kto"
        and load([PAIR], kind="pairs").kind == "pairs"
        and load([GOOD]).kind == "chats"
    )
    with raises_code("wrong_kind"):
        load(labelled)


@pytest.mark.parametrize("seed", range(20))
def test_what_is_held_out_is_no_larger_than_asked_where_that_can_be(seed):
    sizes = [1, 1, 2, 3, 13, 30]
    rows = [
        {"prompt": f"Q{k}", "completion": f"A{i}"} for k, n in enumerate(sizes) for i in range(n)
    ]
    assert 1 <= len(split(rows, valid=0.1, seed=seed)[1]) <= 5
    assert len(split(rows[:2], valid=0.99, seed=seed)[1]) == 1  # never all
    heavy = [
        {"prompt": f"Q{k}", "completion": f"A{i}"}
        for k, n in enumerate([9, 30, 40])
        for i in range(n)
    ]
    assert len(split(heavy, valid=0.01, seed=seed)[1]) == 9  # the smallest group


def test_rows_that_two_data_sets_share_are_counted():
    mine, other = (
        load(CHATS),
        load([CHATS[3], {**CHATS[4], "system": "S"}, {**CHATS[5], "completion": "Other."}]),
    )
    assert count_shared(mine, other) == 2
    good = load([PAIR], kind="pairs")
    assert count_shared(good, good) == 1


def test_a_column_of_words_is_counted_whole(tmp_path, capsys):
    file = tmp_path / "rows.jsonl"
    rows = [{"question": "Q", "answer": "A", "persona": p} for p in ("pirate", "doctor", "pirate")]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    load(file)
    assert "persona (3 rows)" in capsys.readouterr().err
