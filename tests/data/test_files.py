from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import sys
import types
import zipfile

import pandas
import pyarrow
import pyarrow.ipc
import pyarrow.orc
import pytest
from helpers import raises_code

from ftlab.data import formats, load, open_source, records
from ftlab.data.files import HUB

ROWS = [{"question": f"Q{i}", "answer": f"A{i}"} for i in range(3)]
LINES = "".join(json.dumps(r) + "\n" for r in ROWS)
CSV = "question,answer\n" + "".join(f"Q{i},A{i}\n" for i in range(3))
TEXTS = {
    "list": (json.dumps(ROWS), "JSON list"),
    "pretty": (json.dumps(ROWS, indent=2), "JSON list"),
    "lines": (LINES, "JSONL"),
    "lines_crlf": (LINES.replace("\n", "\r\n"), "JSONL"),
    "held": (json.dumps({"version": 1, "data": ROWS}), "JSON object with a list 'data'"),
    "csv": (CSV, "CSV"),
    "tab": (CSV.replace(",", "\t"), "CSV"),
}


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("name", ["x.json", "x.jsonl", "x.csv", "x.json.gz", "none"])
def test_opened_by_content_whatever_the_ending(tmp_path, text, name):
    if text == "tab" and "csv" not in name:
        pytest.skip("tabs are looked for in .csv and .tsv only")
    content, form = TEXTS[text]
    raw = content.encode()
    (tmp_path / name).write_bytes(gzip.compress(raw) if name.endswith(".gz") else raw)
    found = open_source(tmp_path / name)
    assert [r for _, r in found.records] == ROWS and found.format.startswith(form)
    misnamed = ("CSV" in form) != ("csv" in name) and name != "none"
    assert (
        any(f"named .{name.split('.')[1]}" in n for n in found.notes) == misnamed
        if name != "none"
        else not found.notes
    )
    assert len(load(tmp_path / name)) == 3


def test_parquet_and_arrow_folder_and_gzip_of_it(tmp_path):
    from datasets import Dataset

    Dataset.from_list(ROWS).to_parquet(tmp_path / "x.parquet")
    (tmp_path / "y.gz").write_bytes(gzip.compress((tmp_path / "x.parquet").read_bytes()))
    Dataset.from_list(ROWS).save_to_disk(tmp_path / "arrow")
    for source in ("x.parquet", "y.gz", "arrow"):
        assert [r for _, r in records(tmp_path / source)[1]] == ROWS
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 torn")
    with raises_code("broken_parquet"):
        records(tmp_path / "bad.parquet")


def test_every_row_of_a_list_has_its_line(tmp_path):
    (tmp_path / "x.json").write_text(
        "[\n\n" + ",\n".join(json.dumps(r, indent=1) for r in ROWS) + "\n]\n"
    )
    assert [w.rsplit(":", 1)[1] for w, _ in records(tmp_path / "x.json")[1]] == ["3", "7", "11"]
    (tmp_path / "y.json").write_text(json.dumps(ROWS))
    assert [w.rsplit(":", 1)[1] for w, _ in records(tmp_path / "y.json")[1]] == [
        "1 row 1",
        "1 row 2",
        "1 row 3",
    ]
    assert records(tmp_path / "y.json")[1][0][0] != records(tmp_path / "y.json")[1][1][0]
    (tmp_path / "e.json").write_text(" [ ] ")
    assert records(tmp_path / "e.json")[1] == []


@pytest.mark.parametrize(("text", "line", "rows", "why"), [
    ('[\n{"a": 1},\n{"a": 2}\n{"a": 3}]', 4, 2, "Expecting ',' or ']', column 1"),
    ('[\n{"a": 1},\n{"a": }]', 3, 1, "Expecting value, column 7"),
    ('[{"a": 1}]\n[', 2, 1, "Extra data after the list"),
    ('[{"a": 1},', 1, 1, "Expecting value"),
    ('{\n "a": 1,\n "b": oh\n}', 3, 0, "Expecting value, column 7"),
    ('{"a": 1}\n{"a": 1,}\n', 2, 1, "column"),
])  # fmt: skip
def test_broken_json_has_line_and_column(tmp_path, text, line, rows, why):
    (tmp_path / "x.json").write_text(text)
    found = records(tmp_path / "x.json")[1]
    ((where, error),) = [(w, r) for w, r in found if isinstance(r, ValueError)]
    assert where == f"{tmp_path / 'x.json'}:{line}" and why in str(error) and len(found) == rows + 1


@pytest.mark.parametrize(("content", "code"), [
    (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 3\n", "lfs_pointer"),
    (b"<!DOCTYPE html><html>", "web_page"),
    (gzip.compress(LINES.encode() * 50, mtime=0)[:-9], "damaged_gzip"),
    (b"\x1f\x8b nothing", "damaged_gzip"),
    ("\n\n{'Grüße'}".encode("latin-1"), "not_utf8"),
    (LINES.encode("utf-16"), "not_utf8"),
])  # fmt: skip
def test_what_is_no_data_is_refused(tmp_path, content, code):
    (tmp_path / "x.jsonl").write_bytes(content)
    with raises_code(code):
        records(tmp_path / "x.jsonl")


def test_one_object_is_one_row_and_a_bom_is_named(tmp_path):
    (tmp_path / "x.json").write_text(
        json.dumps({"conversations": [{"from": "human", "value": "Q"}]}, indent=1)
    )
    assert len(records(tmp_path / "x.json")[1]) == 1
    (tmp_path / "b.jsonl").write_bytes(LINES.encode("utf-8-sig"))
    (note,) = open_source(tmp_path / "b.jsonl").notes
    assert "byte order mark" in note


INFO = {
    "mine": {"file_name": "mine.json", "formatting": "sharegpt", "ranking": True,
             "columns": {"messages": "talk", "chosen": "good", "rejected": "bad", "system": "sys"},
             "tags": {"role_tag": "who", "content_tag": "what", "user_tag": "me", "assistant_tag": "it"}},
    "plain": {"file_name": "plain.json", "columns": {"prompt": "ask", "query": "more", "response": "tell"}},
    "same": {"file_name": "same.json"},
    "broken": 3,
}  # fmt: skip


def test_the_mapping_of_a_dataset_info_json(tmp_path):
    (tmp_path / "dataset_info.json").write_text(json.dumps(INFO))
    say = lambda who, what: {"who": who, "what": what}  # noqa: E731
    mine = {"talk": [say("me", "Q")], "good": say("it", "A"), "bad": say("it", "B"), "sys": "S"}
    (tmp_path / "mine.json").write_text(json.dumps([mine]))
    (tmp_path / "plain.json").write_text(
        json.dumps([{"ask": "Q", "more": "I", "tell": "A"}, {"ask": "Q"}])
    )
    (tmp_path / "same.json").write_text(
        json.dumps([{"instruction": "Q", "input": "", "output": "A"}])
    )
    for source in (
        tmp_path / "mine.json",
        tmp_path / "mine",
    ):  # by its file, or by its name in the folder
        (row,) = load(source, kind="pairs").rows
        assert [m["content"] for k in ("prompt", "chosen", "rejected") for m in row[k]] == [
            "S",
            "Q",
            "A",
            "B",
        ]
    with raises_code("bad_rows") as error:
        load(tmp_path / "plain")
    assert error.value.details["codes"] == ["missing_column"] and len(error.value.problems) == 1
    assert load(tmp_path / "same").rows[0]["messages"][0]["content"] == "Q"
    with raises_code("folder_without_data") as error:
        load(tmp_path)
    assert f"such as {tmp_path / 'mine'}" in str(error.value)


def test_hub_ids(monkeypatch, tmp_path):
    asked = []

    def load_dataset(name, config, split):
        asked.append((name, config, split))
        if name == "no/thing":
            raise ConnectionError("Couldn't reach the Hub\nmore")
        return types.SimpleNamespace(to_list=lambda: ROWS)

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    assert len(load("openai/gsm8k:main:test")) == len(load("me/data")) == 3
    assert asked == [("openai/gsm8k", "main", "test"), ("me/data", None, "train")]
    with raises_code("not_on_hub"):
        load("no/thing")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    for path in (
        "data/typo.jsonl",
        "data/typo",
        "nothing",
        "a/b.csv",
        "/a/b",
    ):  # paths are never looked up on the hub
        with raises_code("no_such_data"):
            load(path)
    assert len(asked) == 3


@pytest.mark.parametrize(("name", "kind", "n"), [
    ("loader_axolotl/alpaca.json", "chats", 2), ("loader_axolotl/conversation.json", "chats", 1),
    ("loader_llamafactory/alpaca_en_demo.json", "chats", 999), ("loader_llamafactory/dpo_en_demo.json", "pairs", 300),
    ("loader_llamafactory/dpo_en_demo", "pairs", 300), ("loader_llamafactory/kto_en_demo.json", "kto", 300),
    ("loader_llamafactory/glaive_toolcall_en_demo.json", "chats", 300), ("loader_llamafactory/identity.json", "chats", 91),
    ("loader_llamafactory/v1_sft_demo.jsonl", "chats", 500), ("loader_torchtune/alpaca_tiny.json", "chats", 100),
    ("loader_torchtune/chat_tiny.json", "chats", 1), ("loader_torchtune/dummy_conversation.json", "chats", 500),
    ("loader_torchtune/stack_exchange_paired_tiny.json", "pairs", 25), ("self_instruct/seed_tasks.jsonl", "chats", 175),
    ("self_instruct/user_oriented_instructions.jsonl", "chats", 252), ("sqlgen/sqlgen_train.json", "chats", 1000),
    ("coconot/coconot_pref.jsonl", "pairs", 927), ("gsm8k/test.jsonl", "chats", 1319),
    ("human_xstest/xstest_v2_completions_gpt4.csv", "chats", 450),
])  # fmt: skip
@pytest.mark.needs_data
def test_files_of_the_field(shared, name, kind, n):
    if not name.endswith("demo"):
        shared(name)
    data = load(shared("loader_llamafactory").parent / name, kind=kind)
    assert len(data) == n and data.kind == kind


@pytest.mark.needs_data
def test_nothing_of_a_real_tool_call_is_lost(shared):
    file = shared("loader_llamafactory/glaive_toolcall_en_demo.json")
    raw = json.loads(file.read_text())
    text = lambda row: "\n".join(m["content"] for m in row["messages"])  # noqa: E731
    for row, record in zip(load(file).rows, raw, strict=True):
        turns = record["conversations"]
        assert text(row).count("<tool_call>\n") == sum(t["from"] == "function_call" for t in turns)
        assert text(row).count("<tool_response>\n") == sum(
            t["from"] == "observation" for t in turns
        )
        assert ("<tools>" in text(row)) == (record["tools"] != "[]")
        assert all(t["value"] in text(row) for t in turns if t["from"] != "function_call")


def test_what_may_be_a_hub_id():
    assert HUB.fullmatch("openai/gsm8k")
    assert not HUB.fullmatch("../x") and not HUB.fullmatch("a/b/c")


def test_an_opened_source_is_a_source(tmp_path):
    (tmp_path / "x.jsonl").write_text(LINES)
    found = open_source(tmp_path / "x.jsonl")
    (tmp_path / "x.jsonl").unlink()
    assert load(found).name == "x.jsonl" and len(load(found)) == 3


TWICE = '{"prompt": "one", "completion": "A", "prompt": "two"}'
FINE = '{"prompt": "Q", "completion": "A"}'
NESTED = '{"messages": [{"role": "user", "content": "one", "content": "two"}, {"role": "assistant", "content": "A"}]}'


@pytest.mark.parametrize(
    ("text", "name", "line", "n"),
    [
        (f"{FINE}\n{TWICE}\n{FINE}\n", "a.jsonl", 2, 3),
        (f"{FINE}\n{NESTED}\n", "a.jsonl", 2, 2),
        (f"{TWICE}\n", "a.jsonl", 1, 1),
        (f"{TWICE}\n{FINE}\n", "a.csv", 1, 2),
        (f"[{FINE},\n{TWICE},\n{FINE}]", "a.json", 2, 3),
        (TWICE.replace(", ", ",\n").replace("{", "{\n"), "a.json", 1, 1),
        ("prompt,completion,prompt\none,A,two\n", "a.csv", 1, 1),
    ],
)
def test_a_name_that_stands_twice_is_refused_and_the_other_rows_are_read(
    tmp_path, text, name, line, n
):
    (tmp_path / name).write_text(text)
    found = open_source(tmp_path / name).records
    (wrong,) = [(where, r) for where, r in found if isinstance(r, ValueError)]
    twice = "content" if text.count("content") else "prompt"
    assert (
        wrong[0] == f"{tmp_path / name}:{line}" and repr(twice) in str(wrong[1]) and len(found) == n
    )
    assert wrong[1].code == "repeated_name"


def test_columns_without_a_name_may_be_several(tmp_path):
    (tmp_path / "a.csv").write_text("prompt,completion,,\nQ,A,,\n")
    assert open_source(tmp_path / "a.csv").records[0][1]["prompt"] == "Q"


def zipped(raw: bytes, name: str = "x.jsonl") -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, raw)
    return file.getvalue()


PACKERS = {
    "bz2": bz2.compress,
    "xz": lzma.compress,
    "zst": lambda raw: pyarrow.compress(raw, codec="zstd", asbytes=True),
    "zip": zipped,
    "zip.xz": lambda raw: lzma.compress(zipped(gzip.compress(raw), "x.jsonl.gz")),
}


@pytest.mark.parametrize("ending", PACKERS)
def test_packed_files_are_read(tmp_path, ending):
    file = tmp_path / f"x.jsonl.{ending}"
    file.write_bytes(PACKERS[ending](LINES.encode()))
    assert [row for _, row in records(file)[1]] == ROWS
    file.write_bytes(file.read_bytes()[:-12])
    with raises_code("damaged_archive"):
        records(file)


def test_tables_of_other_programs(tmp_path):
    table = pyarrow.Table.from_pylist(ROWS)
    for name, write in (("file", pyarrow.ipc.new_file), ("stream", pyarrow.ipc.new_stream)):
        with write(str(tmp_path / name), table.schema) as out:
            out.write_table(table)
        assert [row for _, row in records(tmp_path / name)[1]] == ROWS
    pyarrow.orc.write_table(table, tmp_path / "x.orc")
    assert [row for _, row in records(tmp_path / "x.orc")[1]] == ROWS
    pytest.importorskip("openpyxl")
    table.to_pandas().to_excel(tmp_path / "x.xlsx", index=False)
    assert [row for _, row in records(tmp_path / "x.xlsx")[1]] == ROWS


def test_sheets_that_are_not_read_are_named(tmp_path, capsys):
    pytest.importorskip("openpyxl")
    table = pyarrow.Table.from_pylist(ROWS).to_pandas()
    with pandas.ExcelWriter(tmp_path / "x.xlsx") as out:
        for name, rows in (("title", table[:0]), ("first", table), ("rest", table[:1])):
            rows.to_excel(out, sheet_name=name, index=False)
    assert [row for _, row in records(tmp_path / "x.xlsx")[1]] == ROWS
    said_so = capsys.readouterr().err
    assert "first" in said_so and "rest" in said_so and "title" not in said_so


@pytest.mark.parametrize("column", ["system", "system_prompt"])
@pytest.mark.parametrize("indent", [None, 1])
def test_what_stands_beside_the_rows_is_applied_or_named(column, indent, tmp_path, capsys):
    rows = [ROWS[0], ROWS[1] | {"system": "own"}, ROWS[2] | {"system_prompt": "own"}]
    whole = {column: "S", "rows": rows, "about": "Towns."}
    (tmp_path / "x.json").write_text(json.dumps(whole, indent=indent))
    first = [row["messages"][0]["content"] for row in load(tmp_path / "x.json").rows]
    assert first == ["S", "own", "own"]
    assert "about" in capsys.readouterr().err


@pytest.mark.parametrize(("content", "code"), [
    (b"SQLite format 3\0", "unknown_format"),
    (b"\x80\x04\x95\0", "unknown_format"),
    (gzip.compress(bytes(257) + b"ustar", mtime=0), "unknown_format"),
    (zipped(b"", "[Content_Types].xml"), "unknown_format"),
    (zipped(b"", "x.txt") + zipped(b"", "x.bin"), "several_files"),
    (b"ARROW1 torn", "broken_arrow"),
    (b"\0\1\2\xff" * 9, "unknown_format"),
], ids=["sqlite", "pickle", "tar.gz", "office", "two files", "arrow", "bytes"])  # fmt: skip
def test_what_cannot_be_read_is_named(tmp_path, content, code):
    (tmp_path / "x.jsonl").write_bytes(content)
    with raises_code(code):
        records(tmp_path / "x.jsonl")


def test_what_unpacks_to_too_much_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(formats, "MOST_UNPACKED", 1000)
    for name, pack in {**PACKERS, "gz": gzip.compress}.items():
        (tmp_path / name).write_bytes(pack(b" " * 1001))
        with raises_code("too_large"):
            records(tmp_path / name)


def test_splits_of_a_saved_data_set_are_named(tmp_path):
    from datasets import Dataset, DatasetDict

    rows = Dataset.from_list(ROWS)
    DatasetDict({"train": rows, "test": rows}).save_to_disk(tmp_path / "saved")
    with raises_code("folder_of_splits") as error:
        records(tmp_path / "saved")
    assert "saved/test" in str(error.value) and "dataset_dict" not in str(error.value)
    assert len(records(tmp_path / "saved" / "train")[1]) == 3
    state = tmp_path / "saved" / "train" / "state.json"
    state.write_text(json.dumps({"_data_files": [{"filename": "../test/state.json"}]}))
    with raises_code("file_outside"):
        records(tmp_path / "saved" / "train")
    state.write_text("{}")
    with raises_code("broken_arrow"):
        records(tmp_path / "saved" / "train")


def test_a_folders_own_description_reads_nothing_outside(tmp_path):
    folder = tmp_path / "d"
    folder.mkdir()
    (tmp_path / "secret.jsonl").write_text(LINES)
    (folder / "link.jsonl").symlink_to(tmp_path / "secret.jsonl")
    for name in ("../secret.jsonl", str(tmp_path / "secret.jsonl"), "link.jsonl"):
        (folder / "dataset_info.json").write_text(json.dumps({"x": {"file_name": name}}))
        with raises_code("file_outside"):
            records(folder / "x")
    for name in ("", "sub"):
        (folder / "sub").mkdir(exist_ok=True)
        (folder / "dataset_info.json").write_text(json.dumps({"x": {"file_name": name}}))
        with raises_code("no_such_data"):
            records(folder / "x")


@pytest.mark.parametrize(
    "part", [{"columns": ["a"]}, {"columns": {"messages": "c"}, "tags": ["a"]}]
)
def test_a_description_of_another_shape_is_refused(tmp_path, part):
    (tmp_path / "dataset_info.json").write_text(json.dumps({"x": {"file_name": "x.jsonl", **part}}))
    (tmp_path / "x.jsonl").write_text(LINES)
    with raises_code("wrong_dataset_info"):
        records(tmp_path / "x.jsonl")


@pytest.mark.parametrize("depth", [200, 100_000])
@pytest.mark.parametrize("name", ["x.jsonl", "x.json"])
def test_deep_nesting_is_a_problem_of_its_line(tmp_path, depth, name):
    deep = f'{{"a": {"[" * depth}{"]" * depth}}}'
    (tmp_path / name).write_text(f"[\n{deep}\n]" if name == "x.json" else f"{LINES}{deep}\n")
    [(where, error)] = [found for found in records(tmp_path / name)[1] if found[1] not in ROWS]
    assert error.code == "broken_json" and where.endswith(":2" if name == "x.json" else ":4")
    (tmp_path / "dataset_info.json").write_text(deep)
    assert records(tmp_path / name)[1]


def test_spaces_after_the_commas_of_a_csv(tmp_path):
    (tmp_path / "x.csv").write_text('question, answer\nQ0, "A, 0"\nQ1, A1\n')
    assert records(tmp_path / "x.csv")[1][0][1] == {"question": "Q0", "answer": "A, 0"}
    (tmp_path / "y.csv").write_text("question,answer \nQ0, A0\n")
    assert records(tmp_path / "y.csv")[1][0][1] == {"question": "Q0", "answer": " A0"}


@pytest.mark.parametrize(
    "name, text",
    [
        ("a.csv", "prompt;topic\nBake bread, now;x\n"),
        ("a.csv", "prompt|topic\nBake bread, now|x\n"),
        ("a.tsv", "prompt;topic\nBake bread, now;x\n"),
        ("a.csv", "prompt\ttopic, in words\nBake bread, now\tx\n"),
        ("a.txt", "prompt;topic\nBake bread, now;x\n"),
        ("a.txt", "Bake bread, now\n\n"),
        ("a.txt", '{"prompt": "Bake bread, now"}\n'),
        ("a.csv", 'prompt\n"Bake bread, now"\n'),
    ],
)
def test_columns_are_told_apart_and_a_text_has_a_prompt_a_line(name, text, tmp_path):
    (tmp_path / name).write_text(text)
    _, rows = records(tmp_path / name)
    assert [row["prompt"] for _, row in rows] == ["Bake bread, now"]


@pytest.mark.parametrize("coding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32-le"])
@pytest.mark.parametrize("name", ["a.csv", "a.jsonl", "a.txt"])
def test_another_coding_is_named_without_its_mark_too(name, coding, tmp_path):
    (tmp_path / name).write_bytes('{"prompt": "Bake bread"}\n'.encode(coding))
    with raises_code("not_utf8"):
        records(tmp_path / name)


def test_a_system_text_beside_the_rows_leaves_a_rows_own(tmp_path):
    turns = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}]
    own = [{"role": "system", "content": "own"}, *turns]
    file = tmp_path / "rows.json"
    file.write_text(json.dumps({"system": "all", "rows": [{"messages": own}, {"messages": turns}]}))
    texts = [row["messages"][0]["content"] for row in load(file).rows]
    assert texts == ["own", "all"]
