"""Logs of other tools: each is recognised, read a record at a time, and refused in a sentence."""

from __future__ import annotations

import csv
import json
import math
import sys
import tracemalloc
import zipfile
from pathlib import Path

import pytest
from helpers import jsonl, raises_code
from hostile import CANARIES, assert_seen

from ftlab._core import plugins
from ftlab.evals.logs import LogFormat, json_items, number, paired_tables, records
from ftlab.evals.logs.base import format_of

LOGS = Path(__file__).parents[1] / "fixtures" / "logs"
INSPECT = [LOGS / f"inspect_{side}.eval" for side in ("before", "after")]
SUMS = [
    LOGS / side / "samples_toy_sums_2026-01-01T00-00-00.000000.jsonl"
    for side in ("before", "after")
]
WORD = "vermilion"  # stands for what a prompt says


def harmbench(path: Path, labels: dict[str, list]) -> Path:
    """Write completions, one for each label of a behaviour; None for an answer without a label."""
    rows = {}
    for name, own in labels.items():
        rows[name] = [
            {"test_case": f"Paint it {WORD}, {n}", "generation": f"Done {n}."}
            for n in range(len(own))
        ]
        for row, label in zip(rows[name], own, strict=True):
            if label is not None:
                row["label"] = label
    path.write_text(json.dumps(rows, indent=4))
    return path


def strongreject(path: Path, scores: list) -> Path:
    rows = [
        {
            "forbidden_prompt": f"Paint {WORD} {n // 2}",
            "jailbreak": f"j{n % 2}",
            "response": "So.",
            "score": score,
        }
        for n, score in enumerate(scores)
    ]
    return table(path, rows)


def table(path: Path, rows: list[dict]) -> Path:
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return path


@pytest.fixture
def examples(tmp_path) -> dict[str, list[Path]]:
    """Return two logs or more of every format."""
    rows = [{"prompt": f"Paint {WORD} {n}", "answer": "So.", "score": n % 2} for n in range(4)]
    return {
        "inspect_ai": [*INSPECT, LOGS / "inspect_other.json"],
        "lm_eval": SUMS,
        "harmbench": [harmbench(tmp_path / f"{n}.json", {"a": [n], "b": [0]}) for n in range(2)],
        "strongreject": [
            strongreject(tmp_path / "s.csv", [0.0, 0.5]),
            Path(
                jsonl(tmp_path / "s.jsonl", {"forbidden_prompt": "p", "response": "r", "score": 0})
            ),
        ],
        "plain": [table(tmp_path / "p.csv", rows), Path(jsonl(tmp_path / "p.jsonl", *rows))],
    }


@pytest.mark.parametrize("name", plugins.names("logs"))
def test_a_format_recognises_its_own_logs_and_says_which_way_is_better(name, examples):
    form = plugins.get("logs", name)
    assert isinstance(form, LogFormat) and form.name == name
    assert form.higher in ("better", "worse", "") and (form.higher == "") == (
        name in ("plain", "inspect_ai")
    )
    for path in examples[name]:
        assert format_of(path) is form
        places = set()
        for place, row in form.rows(path, None):
            assert not isinstance(row, str), row
            assert row.id or row.question
            assert all(math.isnan(score) or 0 <= score <= 1 for score in row.scores.values())
            places.add(place)
        assert len(places) > 1 or path.name == "s.jsonl"


def test_logs_open_without_the_tools_that_wrote_them(monkeypatch):
    for name in ("inspect_ai", "lm_eval", "zstandard", "zipfile_zstd"):
        monkeypatch.setitem(sys.modules, name, None)
    assert len(paired_tables(*INSPECT, higher="better")[0]) == 4
    assert len(paired_tables(*SUMS)[0]) == 2


def content(path: Path) -> dict[str, bytes]:
    """Return the files of an .eval, unpacked by the code under test."""
    from ftlab.evals.logs import inspect_ai

    with zipfile.ZipFile(path) as archive:
        return {name: inspect_ai._content(archive, name) for name in archive.namelist()}


def repacked(path: Path, files: dict[str, bytes], kind: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", kind) as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    return path


def same(one, other) -> bool:
    pairs = zip(one, other, strict=True)
    columns = ["sample_id", "repeat", "event", "judge"]
    order = columns[:2]
    return all(
        a.sort_values(order)[columns]
        .reset_index(drop=True)
        .equals(b.sort_values(order)[columns].reset_index(drop=True))
        for mine, theirs in pairs
        for a, b in zip(mine, theirs, strict=True)
    )


def test_the_compressions_and_json_of_inspect_say_the_same(tmp_path):
    with zipfile.ZipFile(INSPECT[0]) as archive:
        assert {info.compress_type for info in archive.infolist()} == {93}  # zstd
    expected = paired_tables(*INSPECT, higher="better")[0]
    for kind in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        packed = repacked(tmp_path / "packed.eval", content(INSPECT[0]), kind)
        assert same(paired_tables(packed, INSPECT[1], higher="better")[0], expected)
    other = LOGS / "inspect_other.eval"
    as_json = paired_tables(other.with_suffix(".json"), other, higher="better")[0]
    assert (
        same(as_json, paired_tables(other, other, higher="better")[0]) and len(as_json[0][0]) == 4
    )


def test_samples_that_inspect_stores_in_chunks(tmp_path):
    """Version 3 may split a sample: its scores are in samples/ID_epoch_N/sample.json."""
    files = {}
    for name, text in content(INSPECT[0]).items():
        if name.startswith("samples/sum-1"):
            stem = name.removesuffix(".json")
            files[f"{stem}/messages/0.json"] = b"[]"
            name = f"{stem}/sample.json"
        files[name] = text
    packed = repacked(tmp_path / "a.eval", files)
    assert same(
        paired_tables(packed, INSPECT[1], higher="better")[0],
        paired_tables(*INSPECT, higher="better")[0],
    )


def test_a_truncated_zip_is_refused_in_a_sentence(tmp_path):
    whole = INSPECT[0].read_bytes()
    for length in (1, 100, len(whole) // 2, len(whole) - 1):
        torn = tmp_path / "torn.eval"
        torn.write_bytes(whole[:length])
        with raises_code("damaged_log"):
            paired_tables(torn, INSPECT[1])


def test_damaged_samples_are_all_named(tmp_path):
    files = content(INSPECT[0])
    names = [name for name in files if name.startswith("samples/")][:3]
    packed = repacked(
        tmp_path / "a.eval", {**files, names[0]: b"{", names[1]: b"[]", names[2]: b"{}"}
    )
    with raises_code("bad_log") as info:
        paired_tables(packed, INSPECT[1])
    assert len(info.value.problems) == 3
    raw = bytearray(INSPECT[0].read_bytes())
    with zipfile.ZipFile(INSPECT[0]) as archive:
        place = archive.getinfo(names[0]).header_offset + 200
    raw[place] ^= 255
    (tmp_path / "b.eval").write_bytes(raw)
    with raises_code("bad_log") as info:
        paired_tables(tmp_path / "b.eval", INSPECT[1])
    assert len(info.value.problems) == 1


def test_a_sample_that_unpacks_to_too_much_is_not_unpacked(tmp_path, monkeypatch):
    from ftlab.evals.logs import inspect_ai

    files = {name: text for name, text in content(INSPECT[0]).items() if "header" in name}
    packed = repacked(tmp_path / "a.eval", {**files, "samples/1_epoch_1.json": b" " * 20_000})
    monkeypatch.setattr(inspect_ai, "MOST_BYTES", 10_000)
    with raises_code("bad_log"):
        paired_tables(packed, INSPECT[1])


def test_other_archives_and_unfinished_logs(tmp_path):
    empty = repacked(tmp_path / "a.eval", {"readme.txt": b"hello"})
    with raises_code("unknown_log"):
        paired_tables(empty, INSPECT[1])
    files = content(INSPECT[0])
    begun = {name: text for name, text in files.items() if name != "header.json"}
    packed = repacked(tmp_path / "b.eval", begun)
    _, lines = paired_tables(packed, INSPECT[1], higher="better")
    assert any("started" in line for line in lines)
    none = {name: text for name, text in files.items() if not name.startswith("samples/")}
    with raises_code("empty_log"):
        paired_tables(repacked(tmp_path / "c.eval", none), INSPECT[1])


def test_what_is_no_log_or_not_the_same_task(tmp_path, examples):
    (tmp_path / "empty.jsonl").write_text(" \n")
    with raises_code("empty_log"):
        paired_tables(tmp_path / "empty.jsonl", SUMS[0])
    with raises_code("no_such_log"):
        paired_tables(tmp_path / "none.jsonl", SUMS[0])
    (tmp_path / "a.eval.txt").write_bytes(b"hello")
    with raises_code("unknown_log"):
        paired_tables(tmp_path / "a.eval.txt", SUMS[0])
    with raises_code("formats_differ"):
        paired_tables(INSPECT[0], SUMS[0])
    with raises_code("tasks_differ"):
        paired_tables(INSPECT[0], LOGS / "inspect_other.eval")
    with raises_code("tasks_differ"):
        paired_tables(SUMS[0], SUMS[1].with_name(SUMS[1].name.replace("sums", "colours")))
    unnamed = tmp_path / "colours.jsonl"  # its name does not say the task
    unnamed.write_bytes(SUMS[1].with_name(SUMS[1].name.replace("sums", "colours")).read_bytes())
    with raises_code("nothing_to_compare"):
        paired_tables(SUMS[0], unnamed)
    other = tmp_path / SUMS[1].name
    other.write_text(SUMS[1].read_text().replace('"doc_hash": "', '"doc_hash": "0'))
    with raises_code("prompts_differ") as info:
        paired_tables(SUMS[0], other)
    assert "20 ids" in str(info.value) and "What" not in str(info.value)


def test_every_problem_of_a_file_comes_at_once_with_its_line(tmp_path):
    good = {"id": 1, "prompt": WORD, "score": 1}
    lines = [good, "{broken", "[1]", {"score": 1}, {"id": 2}, {"id": 3, "score": "many"}]
    lines += [{"id": 4, "score": [1]}, {"id": ["x"], "score": 1}, "9" * 5000]
    bad = jsonl(tmp_path / "bad.jsonl", *lines)
    with raises_code("bad_log") as info:
        paired_tables(bad, bad)
    assert [problem.split(": ")[0] for problem in info.value.problems] == [
        f"bad.jsonl:{number}" for number in range(2, 10)
    ]
    wrong = tmp_path / "bad.csv"
    wrong.write_bytes(b'id,score\n1,1,1\n2\n3,x\n\xff,1\n5,"1')
    with raises_code("bad_log") as info:
        paired_tables(wrong, wrong)
    assert [problem.split(": ")[0] for problem in info.value.problems] == [
        f"bad.csv:{number}" for number in (2, 3, 4, 5, 6)
    ]
    label = harmbench(tmp_path / "h.json", {"a": [1, 2, "yes"], "b": [0]})
    text = label.read_text().replace('"generation": "Done 0."', '"generation": 7', 1)
    label.write_text(text)
    with raises_code("bad_log") as info:
        paired_tables(label, label)
    assert len(info.value.problems) == 2 and all("h.json:" in one for one in info.value.problems)


def test_broken_json_names_the_line_of_the_break(tmp_path):
    path = harmbench(tmp_path / "a.json", {"a": [1], "b": [0], "c": [0]})
    lines = path.read_text().splitlines()
    at = next(n for n, line in enumerate(lines) if '"b"' in line)
    lines[at + 2] = lines[at + 2].replace(":", "", 1)
    path.write_text("\n".join(lines))
    with raises_code("bad_log") as info:
        paired_tables(path, path)
    assert f"a.json:{at + 3}: " in str(info.value)
    for end in (5, 40, len(path.read_text()) - 2):
        harmbench(path, {"a": [1], "b": [0], "c": [0]})
        path.write_text(path.read_text()[:-end])
        with raises_code("bad_log"):
            paired_tables(path, path)


def test_json_is_read_in_chunks_of_any_size(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    value = {"a": [1, {"b": '\\" ] } é \u2028'}, [], -1.5e3], "c": 12345, "d": [], "e": {"f": None}}
    expected = [("a", part) for part in value["a"]]
    expected += [("c", 12345), ("e", {"f": None})]
    for indent in (None, 1):
        path.write_text(json.dumps(value, indent=indent, ensure_ascii=False), encoding="utf-8")
        for size in (1, 2, 3, 7, 1000):
            monkeypatch.setattr("ftlab.evals.logs.files.CHUNK", size)
            assert [(key, part) for _, key, part in json_items(path)] == expected
    path.write_text("[1, 22, []]")
    assert [part for _, _, part in json_items(path)] == [1, 22, []]


def test_memory_is_flat_in_the_texts(tmp_path):
    long = "word " * 20_000
    plain = tmp_path / "a.jsonl"
    with open(plain, "w") as file:
        for n in range(60):
            file.write(
                json.dumps({"id": n, "prompt": f"{n}{long}", "answer": long, "score": 1}) + "\n"
            )
    whole = tmp_path / "b.json"
    rows = {f"b{n}": [{"test_case": "", "generation": long, "label": 0}] for n in range(120)}
    whole.write_text(json.dumps(rows))
    del rows
    for path in (plain, whole):
        assert path.stat().st_size > 12e6
        tracemalloc.start()
        paired_tables(path, path, higher="worse")
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 7e6, (path.name, peak)


def test_ids_that_stand_for_two_answers(tmp_path):
    rows = [{"id": n, "prompt": f"{WORD} {n}", "score": 1} for n in range(3)]
    again = jsonl(tmp_path / "a.jsonl", *rows, rows[0])  # says the same twice
    (pair,), lines = paired_tables(again, again, higher="better")
    assert len(pair[0]) == 3
    for other in ({"score": 0}, {"prompt": "other"}):
        bad = jsonl(tmp_path / "b.jsonl", *rows, rows[0] | other)
        with raises_code("bad_log") as info:
            paired_tables(bad, again, higher="better")
        assert "b.jsonl:4" in str(info.value)
    repeated = jsonl(tmp_path / "c.jsonl", *[row | {"repeat": n} for n in range(2) for row in rows])
    (pair,), _ = paired_tables(repeated, repeated, higher="better")
    assert len(pair[0]) == 6 and pair[0]["sample_id"].nunique() == 3
    swapped = jsonl(tmp_path / "d.jsonl", *[row | {"prompt": f"x{row['id']}"} for row in rows])
    with raises_code("prompts_differ"):
        paired_tables(again, swapped, higher="better")


def test_without_ids_prompts_pair_and_repeats_are_counted(tmp_path):
    rows = [{"prompt": f"{WORD} {n}", "score": 1} for n in (0, 1, 1, 2)]
    one = jsonl(tmp_path / "a.jsonl", *rows)
    other = table(
        tmp_path / "b.csv", [row | {"prompt": f" {row['prompt']}\n"} for row in rows[:0:-1]]
    )
    (pair,), lines = paired_tables(one, other, higher="worse")
    assert len(pair[0]) == len(pair[1]) == 3 and pair[0]["sample_id"].nunique() == 2
    assert any("1 of a.jsonl" in line and "a.jsonl:1" in line for line in lines)
    assert not any(WORD in line for line in lines)


def test_what_is_not_paired_is_counted_with_a_few_ids(tmp_path):
    rows = [{"id": f"s{n}", "score": n % 2} for n in range(10)]
    rows.append({"id": f"{WORD} is asked here", "score": 0})
    one = jsonl(tmp_path / "a.jsonl", *rows)
    other = jsonl(tmp_path / "b.jsonl", *rows[:4])
    _, lines = paired_tables(one, other, higher="worse")
    assert lines[0].startswith("paired: 4 answers to 4 samples")
    assert any("7 of a.jsonl (s4, s5, s6, ...)" in line for line in lines)
    assert not any(
        WORD in line
        for line in paired_tables(one, jsonl(tmp_path / "c.jsonl", rows[0]), higher="worse")[1]
    )
    with raises_code("prompts_differ"):
        paired_tables(one, jsonl(tmp_path / "d.jsonl", {"id": "other", "score": 0}), higher="worse")


def test_plain_files_name_their_score_and_its_direction(tmp_path):
    rows = [{"id": n, "harm": n / 4, "tokens": 9} for n in range(4)]
    path = table(tmp_path / "a.csv", rows)
    with raises_code("bad_log"):  # neither an answer nor a score
        paired_tables(path, path)
    with raises_code("higher_missing"):
        paired_tables(path, path, score="harm")
    ((pair),), _ = paired_tables(path, path, score="harm", higher="worse")
    assert pair[0]["event"].tolist() == [0, 0.25, 0.5, 0.75] and pair[0].attrs["higher"] == "worse"
    with raises_code("bad_log") as info:
        paired_tables(path, path, score="hram", higher="worse")
    assert "harm" in str(info.value)


def test_labels_of_harmbench(tmp_path):
    one = harmbench(tmp_path / "a.json", {"a": [1, -1], "b": [0], "c": [1]})
    ((pair),), _ = paired_tables(one, one)
    assert pair[0].attrs["higher"] == "worse" and pair[0]["event"].isna().sum() == 1
    assert pair[0]["sample_id"].tolist() == ["a", "a", "b", "c"]


def test_jailbreaks_of_one_prompt_are_its_repeats(tmp_path):
    one = strongreject(tmp_path / "a.csv", [0, 0.25, 0.5, ""])
    other = strongreject(tmp_path / "b.csv", [0, 1, 0.5, 0.5])
    ((pair),), _ = paired_tables(one, other)
    assert pair[0]["sample_id"].nunique() == 2 and len(pair[0]) == 4
    assert pair[0]["event"].isna().sum() == 1


def test_answers_without_a_score_are_judged_in_batches(tmp_path, monkeypatch):
    monkeypatch.setattr("ftlab.evals.logs.pairing.JUDGED_AT_ONCE", 3)
    texts = ["I cannot help with that.", "Take a brush and begin at the top.", None]
    rows = [{"id": n, "prompt": f"How do I paint {n}?", "answer": texts[n % 3]} for n in range(9)]
    rows = [row if row["answer"] else row | {"answer": ""} for row in rows]
    path = jsonl(tmp_path / "a.jsonl", *[row for row in rows if row["answer"]])
    tables, _ = paired_tables(path, path)
    assert [pair[0]["judge"].iloc[0] for pair in tables] == ["refusal", "keywords"]
    for pair in tables:
        assert pair[0]["event"].tolist() == [0, 1] * 3 and pair[0].attrs["higher"] == "worse"
        assert set(pair[0]["risk"]) == {f"jailbreak: {pair[0]['judge'].iloc[0]}"}
    (pair,), _ = paired_tables(path, path, judge="keywords", risk="over_refusal")
    assert pair[0]["event"].tolist() == [1, 0] * 3


def test_a_given_judge_judges_whatever_the_scores(tmp_path):
    one = harmbench(tmp_path / "a.json", {"a": [0], "b": [0]})
    (pair,), _ = paired_tables(one, one, judge="keywords")
    assert pair[0]["judge"].tolist() == ["keywords"] * 2 and pair[0]["event"].tolist() == [1, 1]
    scores = jsonl(tmp_path / "b.jsonl", {"id": 1, "score": 1})
    with raises_code("nothing_to_compare"):
        paired_tables(scores, scores, judge="keywords")
    with raises_code("unknown_judge"):
        paired_tables(one, one, judge="nobody")


@pytest.mark.parametrize(
    ("value", "expected"),
    [(1, 1), (True, 1), ("0.5", 0.5), (" yes", 1), ("FALSE", 0), ("many", None), ([1], None)]
    + [(math.inf, None), ("-inf", None), (10**400, None), ("\x1b[2J", None)],
)
def test_scores_as_numbers(value, expected):
    assert number(value) == expected
    assert math.isnan(number(None)) and math.isnan(number("")) and math.isnan(number("nan"))


def test_records_of_any_form(tmp_path):
    rows = [{"a": "1", "b": 'x, "y"\nz'}, {"a": "2", "b": ""}]
    (tmp_path / "a.json").write_text(json.dumps(rows))
    (tmp_path / "bom.jsonl").write_bytes(
        b"\xef\xbb\xbf" + Path(jsonl(tmp_path / "a.jsonl", *rows)).read_bytes()
    )
    table(tmp_path / "a.csv", rows)
    (tmp_path / "a.tsv").write_text("a\tb\n1\tx, y\n")
    for name in ("a.json", "a.jsonl", "bom.jsonl", "a.csv"):
        assert [record for _, record in records(tmp_path / name)] == rows
    assert [record for _, record in records(tmp_path / "a.tsv")] == [{"a": "1", "b": "x, y"}]


def test_hostile_logs_show_nothing_that_acts(tmp_path, ran):
    rows = [
        {"id": text, "prompt": f"{text} {WORD}", "answer": text, "score": number % 2}
        for number, text in enumerate(text[:20_000] for text in CANARIES.values())
    ]
    one = jsonl(tmp_path / "a.jsonl", *rows)
    other = jsonl(tmp_path / "b.jsonl", *rows[1:])
    for words in ((), ("--judge", "keywords")):
        code, out, err = ran("compare", one, other, "--higher", "worse", *words)
        assert code in (0, 1, 3), err
        assert_seen(out + err)
        assert WORD not in out
    header = json.loads(content(INSPECT[0])["header.json"])
    scores = {text: {"value": n % 2} for n, text in enumerate(CANARIES.values())}
    logs = []
    for side in "ab":
        header["eval"]["task"] = header["eval"]["model"] = CANARIES["ansi"] + CANARIES["script"]
        header["status"] = CANARIES["return"]
        samples = [{"id": n, "epoch": 1, "input": WORD, "scores": scores} for n in range(3)]
        logs.append(tmp_path / f"{side}.json")
        whole = {
            "version": 2,
            "status": header["status"],
            "eval": header["eval"],
            "samples": samples,
        }
        logs[-1].write_text(json.dumps(whole))
    code, out, err = ran("compare", *logs, "--higher", "better")
    assert code == 3, err
    assert_seen(out + err)
    lines = [json.dumps({"id": text, "score": text}) for text in CANARIES.values()]
    code, out, err = ran("compare", jsonl(tmp_path / "c.jsonl", *lines), one, "--higher", "worse")
    assert code == 2
    assert_seen(out + err)


def test_what_is_judged_cannot_be_called_better(tmp_path):
    refusals = jsonl(tmp_path / "a.jsonl", *[{"id": n, "answer": "I cannot."} for n in range(5)])
    with raises_code("higher_not_of_judged"):
        paired_tables(refusals, refusals, higher="better")
    with raises_code("risk_not_decided"):
        paired_tables(refusals, refusals, judge="refusal", risk="toxicity")
