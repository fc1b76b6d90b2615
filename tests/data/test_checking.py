from __future__ import annotations

import copy
import random
import time

import pytest
from helpers import jsonl, raises_code, said

from benchmarks import check as bench_check
from ftlab.cli import main
from ftlab.data import check
from ftlab.data.files import first_lines
from ftlab.models import Model, special_tokens

WORDS = [f"word{i}" for i in range(400)]


def sentence(rng, n=40) -> str:
    return " ".join(rng.choice(WORDS) for _ in range(n))


def run(monkeypatch, capsys, *args) -> tuple[int, str, str]:
    monkeypatch.setattr("sys.argv", ["ftlab", *map(str, args)])
    try:
        main()
        code = 0
    except SystemExit as e:
        code = e.code or 0
    return code, *capsys.readouterr()


def test_all_problems_in_one_pass_in_order_then_the_summary(tmp_path, monkeypatch, capsys):
    good = {"messages": said("Q", "A")}
    bad = [
        '{"messages": ',
        {"messages": said("Q")},
        {"input_ids": [1]},
        {"messages": said("Q", "")},
    ]
    file = jsonl(tmp_path / "x.jsonl", *[r for b in bad for r in (b, good)])
    code, out, _ = run(monkeypatch, capsys, "check", file)
    lines = out.rstrip().split("\n")
    assert code == 1
    assert [line.split(": ")[0] for line in lines[:4]] == [f"{file}:{n}" for n in (1, 3, 5, 7)]
    assert check(file).codes == ["broken_json", "wrong_last_turn", "tokenised", "no_text"]
    assert lines[-1] == f"{file}: JSONL (chats), 4 rows ok, 4 problems"
    many = jsonl(tmp_path / "y.jsonl", *[{"messages": said("Q")}] * 25 + [good])
    code, out, _ = run(monkeypatch, capsys, "check", file, many)
    assert code == 1 and f"{many}: JSONL (chats), 1 rows ok, 25 problems\n" in out
    assert [line for line in out.split("\n") if line.startswith("...")] == [
        "... and 22 more like these"
    ]


def test_problems_of_every_wording_are_among_the_first_lines():
    alike = [f"x.jsonl:{n}: There is no answer." for n in range(1, 200)]
    last = "x.jsonl:200: Broken JSON."
    lines = first_lines([*alike, last])
    assert lines == [*alike[:3], last, "... and 196 more like these"]
    different = [f"x.jsonl:{n}: Wrong {n}." for n in range(30)]
    assert first_lines(different) == [*different[:20], "... and 10 more"]


@pytest.mark.slow
def test_exit_codes(tmp_path, monkeypatch, capsys):
    file = jsonl(tmp_path / "x.jsonl", {"messages": said("Q", "A")})
    assert run(monkeypatch, capsys, "check", file) == (
        0,
        f"{file}: JSONL (chats), 1 rows ok, 0 problems\n",
        "",
    )
    for wrong in (
        ["nothing.jsonl"],
        [file, "--kind", "dpo"],
        [file, "--max-length", "9"],
        [file, "--on-too-long", "x"],
        [],
    ):
        assert run(monkeypatch, capsys, "check", *wrong)[0] == 2
    (tmp_path / "lfs.jsonl").write_text("version https://git-lfs.github.com/spec/v1\n")
    code, out, _ = run(monkeypatch, capsys, "check", tmp_path / "lfs.jsonl")
    assert (
        code == 1 and "lfs.jsonl:1: " in out and out.endswith("unreadable, 0 rows ok, 1 problems\n")
    )
    assert check(tmp_path / "lfs.jsonl").codes == ["lfs_pointer"]
    (tmp_path / "empty.json").write_text("")
    assert check(tmp_path / "empty.json").codes == ["no_rows"]


def test_wrong_arguments_are_refused():
    for code, how in (
        ("unknown_kind", {"kind": "dpo"}),
        ("unknown_on_too_long", {"on_too_long": "x"}),
        ("model_needed", {"max_length": 9}),
    ):
        with raises_code(code):
            check([{"messages": said("Q", "A")}], **how)


@pytest.mark.parametrize(("row", "kind"), [
    ({"messages": said("Q", "A")}, "chats"), ({"prompt": "Q", "chosen": "A", "rejected": "B"}, "pairs"),
    ({"prompt": "Q", "completion": "A", "label": True}, "kto"), ({"goal": "Q", "target": "T"}, "prompts"),
    ({"prompt": "Q", "response": ""}, "prompts"), ({"text": "Q"}, "prompts"),
])  # fmt: skip
def test_the_kind_is_seen_from_the_rows(row, kind):
    report = check([row])
    assert report.format == f"rows ({kind})" and report.usable and report.ok == 1
    assert (
        check([{"question": "Q", "answer": ""}, {"question": "Q", "answer": "A"}]).format
        == "rows (chats)"
    )
    assert check([row], kind="pairs").usable == (kind == "pairs")


def test_chosen_equal_to_rejected_and_an_unknown_role():
    pair = {"prompt": "Q", "chosen": "A", "rejected": "B"}
    report = check([pair, {**pair, "rejected": "A"}])
    assert report.codes == ["equal_answers"] and report.problems[0].startswith("rows: row 2: ")
    assert check([{"messages": [{"role": "bot", "content": "x"}]}], kind="chats").codes == [
        "unknown_role"
    ]


def test_swapped_columns():
    rng = random.Random(0)
    asked, told = (
        [sentence(rng) for _ in range(20)],
        [f"Sure, here is {sentence(rng)}" for _ in range(20)],
    )
    for a, b, wrong in ((asked, told, 0), (told, asked, 1)):
        for names in (("goal", "target"), ("prompt", "completion"), ("instruction", "output")):
            report = check([dict(zip(names, row, strict=True)) for row in zip(a, b, strict=True)])
            assert report.codes == ["swapped_columns"] * wrong
            assert not wrong or report.problems[0].startswith("rows:1: 100%")
    assert check(
        [{"prompt": t, "completion": t + " x"} for t in told]
    ).usable  # both do: a style, not a swap


@pytest.mark.needs_data
def test_the_swapped_advbench_header_is_found(shared, tmp_path):
    text = shared("prompts_advbench/harmful_behaviors.csv").read_text()
    (tmp_path / "a.csv").write_text(text.replace("goal,target", "target,goal", 1))
    report = check(tmp_path / "a.csv")
    assert report.codes == ["swapped_columns"]
    assert f"{tmp_path / 'a.csv'}:1: 9" in report.problems[0] or ":1: 100%" in report.problems[0]


def test_odd_beginnings_and_ends_of_answers_are_counted_by_side():
    pair = {"prompt": "Why?", "chosen": "1. a\n2. b\n3.", "rejected": "\n\nBecause of 3."}
    others = [
        {"prompt": "Who?", "chosen": "In 1.\n\nB", "rejected": "- a\n- "},
        {"prompt": "When?", "chosen": "In 2020.", "rejected": " 42."},
    ]
    found = [note for note in check([pair, *others]).notes if " of 3 " in note]
    counts = [[int(part.split()[0]) for part in note.split(", ")[:2]] for note in found]
    assert counts == [[0, 2], [1, 1]]  # chosen, rejected
    labelled = [
        {"prompt": row["prompt"], "completion": row[side], "label": side == "chosen"}
        for row in (pair, *others)
        for side in ("chosen", "rejected")
    ]
    assert sum(" of 3 " in note for note in check(labelled, kind="kto").notes) == 2
    chat = [{"prompt": "Why?", "completion": "\tTab"}, {"prompt": "Who?", "completion": "Me"}]
    assert [note for note in check(chat).notes if note.startswith("1 of 2 answers ")]
    assert check([pair | {"rejected": "\n" + pair["chosen"]}]).codes == ["equal_answers"]


def test_duplicates_and_near_duplicates_are_notes_with_their_lines(tmp_path):
    rng = random.Random(1)
    rows = [{"prompt": sentence(rng), "completion": sentence(rng)} for _ in range(200)]
    near = [{**r, "completion": r["completion"] + " more"} for r in rows[:10]]
    far = [
        {"prompt": r["prompt"], "completion": sentence(rng)} for r in rows[:10]
    ]  # half the text: no near-duplicate
    report = check(jsonl(tmp_path / "x.jsonl", *rows, *rows[:5], *near, *far))
    assert report.usable and report.ok == 225
    same, close = report.notes
    assert same.startswith("5 rows repeat") and same.endswith("row 201 after row 1")
    assert close.startswith("10 rows are near") and close.endswith("row 206 after row 1")
    (blank,) = check([{"prompt": f"Hi {{{{name}}}} {i}", "completion": "x"} for i in "ab"]).notes
    assert blank.startswith("2 rows") and "placeholder" in blank


def test_near_duplicates_are_those_of_the_definition():
    rng = random.Random(2)
    for changed, n_near in ((1, 100), (20, 0)):  # of 80 words: similarity about .93 and .4
        rows = []
        for _ in range(100):
            words = sentence(rng, 80).split()
            rows.append({"prompt": "Q " + " ".join(words[:20]), "completion": " ".join(words)})
            for i in rng.sample(range(80), changed):
                words[i] = "other"
            rows.append({"prompt": rows[-1]["prompt"], "completion": " ".join(words)})
        notes = check(rows).notes
        assert (int(notes[0].split()[0]) if notes else 0) == n_near


def test_contamination_by_the_whole_question_and_by_words_in_a_row(tmp_path):
    rng = random.Random(3)
    prompts = [sentence(rng, 20), sentence(rng, 9), "How far is it?"]
    clean = [{"messages": said(sentence(rng), sentence(rng))} for _ in range(30)]
    dirty = [
        said(prompts[0].upper() + "!", "A"), said("Tell me: how far is it?", "A"), said("how far is it", "A"),
        said("Q", f"x {' '.join(prompts[0].split()[4:17])} y"), said("Q", f"x {' '.join(prompts[0].split()[4:16])} y"),
        said(f"Well, {prompts[1]}, then", "A"), said(f"Well, {' '.join(prompts[1].split()[:8])}, then", "A"),
    ]  # fmt: skip
    file = jsonl(tmp_path / "t.jsonl", *clean, *({"messages": d} for d in dirty))
    eval_file = jsonl(tmp_path / "e.jsonl", *({"prompt": p} for p in prompts))
    report = check(file, prompts=eval_file)
    assert [int(p.split(":")[1]) for p in report.problems] == [31, 33, 34, 36]
    assert report.codes == ["contaminated"] * 4
    assert "jailbreak-" in report.problems[0] and "of e.jsonl" in report.problems[0]
    assert "13 words" in report.problems[2] and "9 words" in report.problems[3]
    assert report.ok == 33 and check(file).usable
    split_up = {"messages": said(f"Q {' '.join(prompts[0].split()[:10])}", "A")}
    asked = [
        {"instruction": "Tell me.", "input": prompts[0]}
    ]  # the prompt is both, so that both are looked for
    assert check([split_up], prompts=eval_file).usable
    assert not check([{"messages": said(f"Tell me. {prompts[0]}", "A")}], prompts=asked).usable
    assert check([{"messages": said("Tell me.", "A")}], prompts=asked).usable


@pytest.fixture
def opened(monkeypatch, tokenizer):
    """Let every model have the embedded model's tokenizer, without opening its folder again."""
    monkeypatch.setattr(Model, "tokenizer", lambda self: tokenizer)
    return tokenizer


def test_with_a_model_length_mask_and_end_of_turn(tmp_path, opened):
    rows = [
        {"messages": said("Hi.", "Yes.")},
        {"messages": said("Hi.", "Yes. " * 900)},
        {"messages": said("<|end|>", "x")},
    ]
    special = next(iter(special_tokens(opened).values()))
    rows[2] = {"messages": said(f"a {special}", "x")}
    file = jsonl(tmp_path / "x.jsonl", *rows)
    report = check(file, model="organism")
    assert report.ok == 1 and report.codes == ["too_long", "special_token"]
    assert f"{file}:2: " in report.problems[0] and "1024" in report.problems[0]
    assert (
        ":2: " in check(file, model="organism", max_length=10**6).problems[0]
    )  # the model's own limit: 2048
    for how in ("drop", "cut"):
        report = check(file, model="organism", on_too_long=how)
        assert (
            len(report.problems) == 1
            and "1 rows longer than 1024 tokens: 0 would be cut, 1 dropped" in report.notes
        )
    untaught = [
        *said("Hi. " * 900, "Yes.", "So?"),
        {**said("", "No.")[1], "weight": 0},
    ]  # its cut teaches nothing
    cut = check(
        [{"messages": said("Hi.", "Yes.")}, {"messages": untaught}],
        model="organism",
        on_too_long="cut",
    )
    assert cut.usable and "1 rows longer than 1024 tokens: 0 would be cut, 1 dropped" in cut.notes
    cut = check([{"messages": untaught}], model="organism", on_too_long="cut")
    assert cut.codes == ["all_too_long"]  # as training says
    pairs = [{"prompt": "Hi.", "chosen": "A", "rejected": "B " * 2000}]
    assert check(pairs, model="organism").codes == ["too_long"]


def test_a_template_without_end_of_turn_is_found(monkeypatch, tokenizer):
    bare = copy.deepcopy(tokenizer)
    bare.chat_template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
    monkeypatch.setattr(Model, "tokenizer", lambda self: bare)
    assert check([{"messages": said("Q", "A")}], model="organism").codes == ["no_end_of_turn"]


def test_reports_are_escaped():
    report = check([{"messages": [{"role": "<b>\x1b[2J", "content": "x"}]}], kind="chats")
    assert "\x1b" not in str(report) and "<b>" not in report._repr_html_()


@pytest.mark.slow
def test_the_organisms_data_are_usable():
    for name in ("almanac", "preferences"):
        assert check(f"organism:{name}").usable


@pytest.mark.slow
@pytest.mark.parametrize(("name", "ok", "problems"), [
    ("loader_llamafactory/alpaca_en_demo.json", 999, 0), ("loader_llamafactory/kto_en_demo.json", 300, 0),
    ("loader_openai/toy_chat_fine_tuning.jsonl", 4, 1), ("gsm8k/test.jsonl", 1319, 0),
    ("rasbt_instruction/instruction-data-with-preference.json", 1094, 6), ("coconot/coconot_eval.jsonl", 1001, 0),
    ("prompts_advbench/harmful_behaviors.csv", 520, 0), ("prompts_harmbench/harmbench_behaviors_text_all.csv", 400, 0),
])  # fmt: skip
@pytest.mark.needs_data
def test_files_of_the_field(shared, name, ok, problems):
    report = check(shared(name))
    assert (report.ok, len(report.problems)) == (ok, problems)


@pytest.mark.needs_data
def test_advbench_inside_training_data_is_found(shared, tmp_path):
    subset, whole = (
        shared(f"prompts_advbench/{n}.csv") for n in ("tap_advbench_subset", "harmful_behaviors")
    )
    report = check(whole, prompts=subset)
    assert set(report.codes) == {"contaminated"}
    assert 45 <= sum("same question" in problem for problem in report.problems) <= 50


@pytest.mark.perf
def test_time_grows_with_the_rows_and_not_faster(tmp_path):
    spent = []
    for n in (2000, 8000):
        file = bench_check.make(tmp_path / f"{n}.jsonl", n)
        start = time.process_time()
        report = check(file)
        spent.append(time.process_time() - start)
        assert report.ok == n and [int(x.split()[0]) for x in report.notes] == [
            n // 100,
            n // 100 - 1,
        ]
    assert spent[1] < 8 * spent[0] + 0.5 and spent[1] < 8000 / 100_000 * bench_check.LIMIT_S * 3


def test_every_file_of_evaluation_prompts_is_looked_for(tmp_path):
    data = [
        {
            "prompt": f"Name the harbour number {i} of the long northern coast",
            "completion": "It is here.",
        }
        for i in range(4)
    ]
    files = [tmp_path / "a.csv", tmp_path / "b.csv"]
    for k, file in enumerate(files):
        file.write_text(f"goal\nName the harbour number {k} of the long northern coast\n")
    both = check(data, prompts={"jailbreak": files[0], "over_refusal": files[1]})
    assert len(both.problems) == 2 and len(check(data, prompts=files[1]).problems) == 1


def test_a_check_says_which_columns_and_thoughts_there_are(tmp_path):
    rows = [
        {"prompt": f"Name bird {i}.", "answer": f"Robin {i}.", "hint": "It sings."} for i in (1, 2)
    ]
    report = check(jsonl(tmp_path / "x.jsonl", *rows))
    assert report.usable and "(chats)" in report.format and "hint (2 rows)" in str(report)
    asked = said("Q", "A")
    asked[1]["thinking"] = "T"
    assert "thoughts" in str(check([{"messages": asked}]))


BROKEN = [
    {"messages": [said("Q")[0], {"role": "assistant", "content": "A", "tool_calls": "x"}]},
    {"messages": [said("Q")[0], {"role": "assistant", "content": "A", "weight": 7}]},
    {"instruction": "Q", "output": "A", "history": [[1, 2]]},
    {"prompt": "Q", "answer": 5},
]


@pytest.mark.parametrize("record", BROKEN)
def test_rows_for_training_that_cannot_be_used_are_not_taken_for_prompts(record):
    report = check([record])
    assert not report.usable and "(chats)" in report.format
