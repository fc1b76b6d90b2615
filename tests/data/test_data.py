from __future__ import annotations

import csv
import io
import json
import random
import re

import pytest

from ftlab.data import dataset as data
from ftlab.data.dataset import Data, DataError, read, read_prompts


def said(*contents: str) -> list[dict]:
    return [{"role": r, "content": c} for r, c in zip(["user", "assistant"] * len(contents), contents, strict=False)]


def jsonl(path, *rows) -> str:
    path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows), encoding="utf-8")
    return str(path)


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
        assert read(source).rows[0]["messages"] == messages
    assert read(read([row])) == read([row])


PAIR = {"prompt": said("Q"), "chosen": said("", "A")[1:], "rejected": said("", "B")[1:]}


@pytest.mark.parametrize(
    "row", [{"prompt": "Q", "chosen": "A", "rejected": "B", "id": 1}, PAIR, {**PAIR, "chosen": "A"}]
)
def test_every_form_of_a_pair(row):
    assert read([row], kind="pairs").rows == (PAIR,)
    assert read(read([row], kind="pairs"), kind="pairs").rows == (PAIR,)


BAD = [  # row of a chat file, what its sentence says
    ('{"question": "Q", ', "broken JSON"),
    ("[1]", "found list"),
    ("null", "found NoneType"),
    ({"question": "Q"}, "columns question; allowed: messages, conversations, prompt + completion"),
    ({}, "(none)"),
    ({"conversations": [], "text": ""}, "not a list of {role, content}"),
    ({"text": "T"}, "columns text; allowed"),
    ({"question": "Q", "answer": ""}, "'answer' is empty"),
    ({"question": "Q", "answer": " \n\t"}, "'answer' is empty"),
    ({"question": None, "answer": "A"}, "'question' is empty or no text"),
    ({"question": "Q", "answer": 5}, "'answer' is empty or no text"),
    ({"prompt": said("Q"), "completion": None}, "is empty or no text"),
    ({"instruction": "Q", "input": ["x"], "output": "A"}, "'input' is empty or no text"),
    ({"messages": []}, "not a list of {role, content}"),
    ({"messages": "hello"}, "not a list of {role, content}"),
    ({"messages": ["a", "b"]}, "not a list of {role, content}"),
    ({"messages": said("Q")}, "the last turn is user's"),
    ({"messages": said("Q", "A", "Q")}, "the last turn is user's"),
    ({"messages": said("Q", "A")[::-1]}, "roles out of order: assistant, user"),
    ({"messages": [*said("Q"), *said("Q", "A")]}, "roles out of order: user, user, assistant"),
    ({"messages": [*said("Q", "A"), {"role": "system", "content": "S"}]}, "roles out of order"),
    ({"messages": [{"role": "system", "content": "S"}]}, "roles out of order"),
    ({"messages": [{"role": "bot", "content": "Q"}]}, "unknown role 'bot'; allowed: system, user, assistant"),
    ({"messages": [{"role": ["user"], "content": "Q"}]}, "unknown role ['user']"),
    ({"messages": [{"content": "Q"}]}, "unknown role None"),
    ({"messages": said("Q", "")}, "assistant's 'content' is empty"),
    ({"messages": said("", "A")}, "user's 'content' is empty"),
    ({"messages": [{"role": "user"}, {"role": "assistant", "content": None}]}, "user's 'content' is empty or no text"),
    ({"question": "Q", "answer": "half \ud800"}, "lone surrogate"),
]


def test_all_problems_of_a_file_at_once_in_order_each_with_its_line(tmp_path, monkeypatch):
    monkeypatch.setattr(data, "SHOWN", 1000)
    file = jsonl(tmp_path / "chat.jsonl", *(r for bad, _ in BAD for r in (bad, "", GOOD)))
    with pytest.raises(DataError) as e:
        read(file)
    *lines, end = str(e.value).split("\n")
    assert len(lines) == len(BAD)
    for i, (line, (_, sentence)) in enumerate(zip(lines, BAD, strict=True)):
        assert line.startswith(f"{file}:{3 * i + 1}: ") and sentence in line
    assert end == f"chat.jsonl: {len(BAD)} rows ok, {len(BAD)} problems"


@pytest.mark.parametrize("n", [1, 20, 21, 500])
def test_problems_beyond_twenty_are_counted(tmp_path, n):
    with pytest.raises(DataError) as e:
        read(jsonl(tmp_path / "x.jsonl", GOOD, *[{"question": "Q", "answer": ""}] * n))
    lines = str(e.value).split("\n")
    assert len(lines) == min(n, 20) + (n > 20) + 1 and lines[-1] == f"x.jsonl: 1 rows ok, {n} problems"
    assert (f"... and {n - 20} more" in lines) == (n > 20)


BAD_PAIRS = [
    ({"prompt": "Q", "chosen": "A"}, "no rejected"),
    ({"question": "Q", "answer": "A"}, "no prompt, chosen, rejected"),
    ({"chosen": "A", "rejected": "B"}, "no prompt"),
    ({"prompt": "Q", "chosen": "A", "rejected": "A"}, "chosen equals rejected"),
    ({**PAIR, "rejected": "A"}, "chosen equals rejected"),
    ({"prompt": "Q", "chosen": "A", "rejected": " "}, "'rejected' is empty"),
    ({"prompt": None, "chosen": "A", "rejected": "B"}, "'prompt' is empty"),
    ({**PAIR, "prompt": said("Q", "A")}, "the last turn is assistant's"),
    ({**PAIR, "chosen": said("R", "A")}, "roles out of order"),
    ({**PAIR, "rejected": said("A", "Q", "A")[1:] + said("", "A")[1:]}, "'rejected' has 3 turns"),
    ({**PAIR, "chosen": []}, "the last turn is user's"),
    ({**PAIR, "prompt": []}, "the messages are not a list of {role, content}"),
]


@pytest.mark.parametrize(("row", "sentence"), BAD_PAIRS)
def test_a_bad_pair_is_a_sentence(row, sentence):
    with pytest.raises(DataError, match=re.escape(f"rows: row 2: {sentence}")):
        read([PAIR, row], kind="pairs")


def test_encodings(tmp_path):
    row = {"question": "Grüße 漢 😀\u2028", "answer": "A"}
    text = json.dumps(row, ensure_ascii=False) + "\r\n"
    for name, encoding in (("plain", "utf-8"), ("bom", "utf-8-sig")):
        (tmp_path / name).write_bytes(text.encode(encoding))
        assert read(tmp_path / name).rows[0]["messages"][0]["content"] == row["question"]
    (tmp_path / "utf16").write_bytes(text.encode("utf-16"))
    (tmp_path / "latin1").write_bytes('{"question": "Grüße"}'.encode("latin-1"))
    for name, byte in (("utf16", "0; it looks like UTF-16"), ("latin1", 16)):
        with pytest.raises(DataError, match=f"{name}:1: not UTF-8 at byte {byte}; save the file as UTF-8"):
            read(tmp_path / name)


def test_what_is_not_there_is_a_sentence(tmp_path):
    (tmp_path / "folder").mkdir()
    for path, found in ((tmp_path / "no.jsonl", "does not exist"), (tmp_path / "folder", "is a folder")):
        for reader in (read, read_prompts):
            with pytest.raises(FileNotFoundError, match=f"{path} {found}; give a .jsonl"):
                reader(path)
    with pytest.raises(
        ValueError, match="unknown data 'organism:almanach'; allowed: organism:alignment, .*organism:adversarial"
    ):
        read("organism:almanach")
    for empty in ([], jsonl(tmp_path / "empty.jsonl"), jsonl(tmp_path / "header.csv", "question,answer")):
        with pytest.raises(DataError, match="no rows; give at least one"):
            read(empty)
    (tmp_path / "torn.json").write_text(json.dumps([GOOD])[:-3])
    with pytest.raises(DataError, match=r"torn.json:1: broken JSON \(.* column 30\)"):
        read(tmp_path / "torn.json")


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
    with pytest.raises(DataError) as e:
        read(tmp_path / "x.CSV")
    assert [int(n) for n in re.findall(r"x.CSV:(\d+): ", str(e.value))] == lines
    with open(tmp_path / "good.csv", "w", newline="") as f:
        csv.writer(f).writerows([["question", "answer"], *wanted])
    assert [[m["content"] for m in r["messages"]] for r in read(tmp_path / "good.csv").rows] == wanted


@pytest.mark.parametrize(("rows", "sentence"), [
    (["question,answer", "Q,A,too many"], "x.csv:2: 3 fields, the header has 2"),
    (["question,answer", "Q"], "x.csv:2: 1 fields, the header has 2"),
    (["question,answer", "Q,A", '"never closed,A', "Q,A"], "x.csv:3: broken CSV"),
    (["question,answer", 'Q,"A" x', "Q,A"], "x.csv:2: broken CSV"),
    (['"question,answer'], "x.csv:1: broken CSV"),
    (["question;answer", "Q;A"], "x.csv:2: columns question;answer; allowed"),
])  # fmt: skip
def test_a_broken_csv_loses_nothing_in_silence(tmp_path, rows, sentence):
    with pytest.raises(DataError, match=re.escape(sentence)):
        read(jsonl(tmp_path / "x.csv", *rows))


def test_a_long_field_of_a_csv_is_read(tmp_path):
    """Python's own limit is 131,072 characters; an answer of a long context is longer."""
    (row,) = read(jsonl(tmp_path / "x.csv", "question,answer", f"Q,{'A' * 200_000}")).rows
    assert len(row["messages"][-1]["content"]) == 200_000


def test_every_seed_draws_its_own_rows_of_a_file():
    source = [{"prompt": str(i), "completion": "x"} for i in range(50)]
    first, again, other = (data.drawn(source, rows=10, seed=s) for s in (0, 0, 1))
    assert first.rows == again.rows != other.rows and len(set(map(str, first.rows))) == 10
    assert data.drawn(source, rows=None, seed=3).rows == read(source).rows
    assert data.drawn("organism:almanac", rows=10, seed=0).rows != data.drawn("organism:almanac", rows=10, seed=1).rows
    with pytest.raises(ValueError, match="has 50 rows; 51 were asked"):
        data.drawn(source, rows=51, seed=0)


def test_rows_takes_the_first_ones(tmp_path):
    many = [{"question": str(i), "answer": "A"} for i in range(9)]
    for source in (many, jsonl(tmp_path / "x.jsonl", *many), read(many)):
        assert read(source, rows=4).rows == read(many).rows[:4] and len(read(source)) == 9
    assert read(many, rows=4).hash != read(many).hash == read(jsonl(tmp_path / "x.jsonl", *many)).hash
    for n in (0, -1):
        with pytest.raises(ValueError, match=f"rows = {n}: give a number >= 1"):
            read("organism:adversarial", rows=n)


@pytest.mark.parametrize("name", data.WORLD)
def test_data_of_the_world_are_rows_like_any_other(name):
    pairs = name == "preferences"
    kind, other = ("pairs", "chats") if pairs else ("chats", "pairs")
    made = read(f"organism:{name}", kind=kind, rows=60)
    assert made == read(f"organism:{name}", kind=kind, rows=60) != read(f"organism:{name}", kind=kind, rows=60, seed=1)
    assert len(made) == 60 or pairs and 40 < len(made) < 60  # rows without a worse answer make no pair
    assert len(read([dict(r) for r in made.rows], kind=kind)) == len(made)
    with pytest.raises(ValueError, match="needed here: " + ("chats" if pairs else "preference pairs")):
        read(f"organism:{name}", kind=other, rows=60)


@pytest.mark.parametrize("column", data.PROMPT_COLUMNS)
def test_prompts_by_any_known_column(tmp_path, column):
    file = jsonl(tmp_path / "p.csv", f",{column},category,target", '0,"Q, 1",c,t', "1,Q2,,t")
    rows = read_prompts(file, risk="toxicity").rows
    assert [(r["id"], r["messages"], r["risk"], r["category"]) for r in rows] == [
        ("toxicity-00000", said("Q, 1"), "toxicity", "c"), ("toxicity-00001", said("Q2"), "toxicity", "")]  # fmt: skip
    assert read_prompts(Data("again", rows)).rows == rows


def test_prompts_as_texts_and_as_messages():
    assert [r["messages"] for r in read_prompts(["a", "b"]).rows] == [said("a"), said("b")]
    row = {"messages": said("Q", "A"), "risk": "bias", "id": 7, "topic": "t", "other": 1}
    assert read_prompts([row]).rows == (
        {"id": "7", "risk": "bias", "category": "", "topic": "t", "messages": said("Q")},
    )


@pytest.mark.parametrize(("rows", "sentence"), [
    ([{"messages": said("a"), "id": "x"}, {"messages": said("b"), "id": "x"}], "1 ids occur more than once, as 'x'"),
    ([{"messages": said("a"), "risk": "jailbrake"}], "unknown risk 'jailbrake'; allowed in the column risk: jailbreak, bias"),
    ([{"messages": said("a", "b")[1:]}], "the messages are not a list"),
    ([{"query": "a"}], "columns query; allowed for a prompt: prompt, goal"),
    (["a", " "], "row 2: 'prompt' is empty"),
    (["a", 3], "row 2: found int"),
    ([], "no rows"),
])  # fmt: skip
def test_bad_prompts_are_a_sentence(rows, sentence):
    with pytest.raises(DataError, match=re.escape(sentence)):
        read_prompts(rows)


@pytest.mark.parametrize(("name", "how", "n"), [
    ("gsm8k/train.jsonl", read, 7473),
    ("rasbt_instruction/instruction-data.json", read, 1100),
    ("coconot/coconot_pref.jsonl", lambda p: read(p, kind="pairs"), 927),
    ("prompts_advbench/tap_advbench_subset.csv", read_prompts, 50),
    ("prompts_advbench/harmful_behaviors.csv", read_prompts, 520),
    ("prompts_harmbench/strongreject_dataset.csv", read_prompts, 313),
    ("prompts_simplesafetytests/simple_safety_tests.csv", read_prompts, 100),
    ("human_xstest/xstest_prompts.csv", lambda p: read_prompts(p, risk="over_refusal"), 450),
])  # fmt: skip
def test_files_of_the_field(shared, name, how, n):
    assert len(how(shared(name))) == n


def test_a_file_of_the_field_with_a_bad_row(shared):
    with pytest.raises(DataError, match=r"toy_chat_fine_tuning.jsonl:4: roles out of order: system, assistant"):
        read(shared("loader_openai/toy_chat_fine_tuning.jsonl"))


CHATS = [{"prompt": f"Question {i % 40}?", "completion": f"Answer {i}."} for i in range(100)]


def test_split_is_seeded_whole_and_keeps_a_question_on_one_side():
    data_ = read(CHATS)
    train, valid = data.split(data_, valid=0.2, seed=1)
    assert sorted(map(str, train.rows + valid.rows)) == sorted(map(str, data_.rows))
    assert not {data.question(r) for r in train.rows} & {data.question(r) for r in valid.rows}
    assert 10 <= len(valid) <= 20
    assert data.split(CHATS, valid=0.2, seed=1)[1].hash == valid.hash != data.split(CHATS, valid=0.2, seed=2)[1].hash
    assert valid.made == {"by": "split", "part": "valid", "valid": 0.2, "seed": 1,
                          "from": [{"name": "rows", "hash": data_.hash, "rows": 100}]}  # fmt: skip
    for wrong in (0, 1, -0.5):
        with pytest.raises(ValueError, match="give a fraction between 0 and 1"):
            data.split(CHATS, valid=wrong)
    with pytest.raises(ValueError, match="1 different question"):
        data.split([CHATS[0], CHATS[40]])


def test_mix_has_the_asked_share_none_twice_and_says_how_it_was_made():
    benign, harmful = (
        read([{"prompt": f"{w} {i}", "completion": "x"} for i in range(n)]) for w, n in (("b", 200), ("h", 30))
    )
    smaller, larger = (data.mix(benign, harmful, f, n=100, seed=3) for f in (0.1, 0.3))
    h = [{data.question(r) for r in d.rows if data.question(r)[0] == "h"} for d in (smaller, larger)]
    assert len(smaller) == len(larger) == 100 == len({data.question(r) for r in smaller.rows})
    assert len(h[0]) == 10 and len(h[1]) == 30 and h[0] < h[1]
    assert data.mix(benign, harmful, 0.1, n=100, seed=3).hash == smaller.hash
    assert data.mix(benign, harmful, 0.1, n=100, seed=4).hash != smaller.hash
    assert smaller.made["by"] == "mix" and [f["hash"] for f in smaller.made["from"]] == [benign.hash, harmful.hash]
    assert [data.question(r)[0] for r in smaller.rows] != sorted(data.question(r)[0] for r in smaller.rows)  # shuffled
    with pytest.raises(ValueError, match="has 30 rows; 40 harmful ones are needed"):
        data.mix(benign, harmful, 0.4, n=100)
    with pytest.raises(ValueError, match="harmful_fraction = 1.5"):
        data.mix(benign, harmful, 1.5)
    of_world = data.mix("organism:almanac", "organism:adversarial", 0.5, n=20)
    assert len(of_world) == 20


def test_dedupe_keeps_the_first_and_counts():
    rows = [
        {"prompt": "Q", "completion": "A"},
        {"prompt": " q ", "completion": "a"},
        {"prompt": "Q", "completion": "B"},
    ]
    clean = data.dedupe(rows)
    assert clean.rows == (read(rows).rows[0], read(rows).rows[2]) and clean.made["removed"] == 1
    labelled = [{"prompt": "Q", "completion": "A", "label": b} for b in (True, False, True)]
    assert len(data.dedupe(labelled, kind="kto")) == 2
    again = data.split(clean.rows + read(CHATS).rows)[0]
    assert data.dedupe(again).made["from"][0]["made"]["by"] == "split"


def test_columns_name_any_table(tmp_path):
    file = jsonl(tmp_path / "t.csv", "Q,A,prompt", "one,two,other")
    assert read(file, columns={"prompt": "Q", "completion": "A"}).rows[0]["messages"] == said("one", "two")
    with pytest.raises(DataError, match="t.csv:2: no column B; there are Q, A, prompt"):
        read(file, columns={"prompt": "Q", "completion": "B"})


def test_kinds_are_told_apart():
    with pytest.raises(ValueError, match="unknown kind 'dpo'; allowed: chats, pairs, kto"):
        read([GOOD], kind="dpo")
    labelled = read([{**GOOD, "label": True}], kind="kto")
    assert labelled.kind == "kto" and read([PAIR], kind="pairs").kind == "pairs" and read([GOOD]).kind == "chats"
    with pytest.raises(ValueError, match="holds KTO rows; needed here: chats"):
        read(labelled)


@pytest.mark.parametrize("seed", range(20))
def test_what_is_held_out_is_no_larger_than_asked_where_that_can_be(seed):
    sizes = [1, 1, 2, 3, 13, 30]
    rows = [{"prompt": f"Q{k}", "completion": f"A{i}"} for k, n in enumerate(sizes) for i in range(n)]
    assert 1 <= len(data.split(rows, valid=0.1, seed=seed)[1]) <= 5
    assert len(data.split(rows[:2], valid=0.99, seed=seed)[1]) == 1  # never all
    heavy = [{"prompt": f"Q{k}", "completion": f"A{i}"} for k, n in enumerate([9, 30, 40]) for i in range(n)]
    assert len(data.split(heavy, valid=0.01, seed=seed)[1]) == 9  # the smallest group


def test_rows_that_two_data_sets_share_are_counted():
    mine, other = read(CHATS), read([CHATS[3], {**CHATS[4], "system": "S"}, {**CHATS[5], "completion": "Other."}])
    assert data.shared(mine, other) == 2
    good = read([PAIR], kind="pairs")
    assert data.shared(good, good) == 1
