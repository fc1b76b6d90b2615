"""Answers in a run folder: drafts of earlier checkpoints and screening change no verdict; what is no number is an error."""

from __future__ import annotations

import pytest
from small_models import CURVE, goals, sums

import ftlab
from ftlab.models.engines import huggingface as generate
from ftlab.models.engines._drafts import Replay
from ftlab.runs.store import Run, home


def members(run) -> list[Run]:
    return [Run(home() / m) for m in run.config["identity"]["members"]]


def lines(run, file: str) -> list:
    return [line for m in members(run) for line in m.read(file)]


def test_a_curve_with_draft_replay_is_the_curve_without(dropping, monkeypatch):
    """Same answers, same verdicts, same weights, over two seeds and every checkpoint; and drafts were used."""
    monkeypatch.setattr(Replay, "weigh", lambda self, tally: None)  # whether it pays is another test's
    ask = dict(prompts=goals(12), **CURVE)
    with_drafts = ftlab.risk_curve(dropping, sums(20), **ask)
    told, rows = lines(with_drafts, "answers.jsonl"), lines(with_drafts, "verdicts.jsonl")
    used = lines(with_drafts, "generation.jsonl")
    assert sum(u["drafted"] for u in used) > 0 and all(0 <= u["saved"] <= u["drafted"] for u in used)
    monkeypatch.setenv("FTLAB_RUNS", str(home()) + "-plain")
    monkeypatch.setattr(Replay, "drafts", lambda self, prompts: None)
    plain = ftlab.risk_curve(dropping, sums(20), **ask)
    by_key = [sorted(x, key=lambda r: r["key"]) for x in (told, lines(plain, "answers.jsonl"))]
    assert by_key[0] == by_key[1] and lines(plain, "verdicts.jsonl") == rows
    assert sum(u["drafted"] for u in lines(plain, "generation.jsonl")) == 0


def test_the_drafts_of_a_checkpoint_are_the_answers_of_the_one_before(llama, monkeypatch):
    """Nothing was learnt (rate 1e-12): every checkpoint's answers are the parent's, and no token is decoded but verified."""
    asked, answers = [], generate.answers

    def noted(*args, drafts=None, **kwargs):
        said = answers(*args, drafts=drafts, **kwargs)
        asked.append((drafts, said))
        return said

    monkeypatch.setattr(generate, "answers", noted)
    monkeypatch.setattr(Replay, "weigh", lambda self, tally: None)
    settings = CURVE | {"learning_rate": 1e-12, "max_new_tokens": 12}
    run = ftlab.risk_curve(llama, sums(20), prompts=goals(12), **settings)
    (first, parents), later = asked[0], asked[1:]
    assert first is None and len(later) == 6 and all(said == parents for _, said in later)
    assert [d[0] for d in later[0][0]] == [d[0] for d in later[3][0]] == parents  # each seed begins at the parent's
    used = [u for u in lines(run, "generation.jsonl") if u["step"] > 2]
    assert sum(u["saved"] for u in used) == sum(u["drafted"] for u in used) >= 11 / 12 * sum(u["tokens"] for u in used)


def test_drafts_are_switched_off_where_they_do_not_pay():
    replay = Replay()
    replay.remember(["a", "b"], ["x", "y"])
    replay.remember(["a"], ["z"])
    replay.remember(["a"], ["x"])
    assert replay.drafts(["a", "b", "c"]) == [["x", "z"], ["y"], []] and replay.drafts(["c"]) is None
    replay.weigh(generate.Tally(tokens=1000, seconds=2.0))
    replay.weigh(generate.Tally(tokens=1000, drafted=900, saved=800, seconds=1.0))
    assert replay.drafts(["a"])
    replay.weigh(generate.Tally(tokens=1000, drafted=900, saved=20, seconds=3.0))
    for _ in range(3):
        assert replay.drafts(["a"]) is None
        replay.weigh(generate.Tally(tokens=1000, seconds=2.0))
    assert replay.drafts(["a"]), "tried again"


def test_a_screened_answer_ends_at_its_refusal_and_no_verdict_changes(llama, monkeypatch):
    """With a keyword judge; off by default; what is asked with it and without it is not mixed up."""
    from ftlab.judges import keywords

    prompts = goals(8)
    whole = ftlab.evaluate(llama, prompts=prompts, judges="keywords", max_new_tokens=40)
    text = {r["key"]: r["answer"] for r in whole.read("answers.jsonl")}
    longest = max(text.values(), key=len)
    phrase = longest[2:6]  # what this model says becomes a refusal
    monkeypatch.setattr(
        keywords, "lists", lambda: {keywords.DEFAULT: dict(caseless=False, matching="substring", phrases=[phrase])}
    )
    monkeypatch.setenv("FTLAB_RUNS", str(home()) + "-again")
    whole = ftlab.evaluate(llama, prompts=prompts, judges="keywords", max_new_tokens=40)
    short = ftlab.evaluate(llama, prompts=prompts, judges="keywords", max_new_tokens=40, screen=True)
    a, b = whole.table(), short.table()
    assert list(a["verdict"]) == list(b["verdict"]) and "refused" in set(a["verdict"])
    cut = [r for r in short.read("answers.jsonl") if r.get("screened")]
    assert cut and sum(u["tokens"] for u in short.read("generation.jsonl")) < sum(
        u["tokens"] for u in whole.read("generation.jsonl")
    )
    assert short.path != whole.path and not {r["key"] for r in cut} & {r["key"] for r in whole.read("answers.jsonl")}
    with pytest.raises(ValueError, match="refusal reads whole answers"):
        ftlab.judged(short, "refusal")
    with pytest.raises(ValueError, match="refusal reads whole answers"):
        ftlab.evaluate(llama, prompts=prompts, screen=True)


def test_answers_without_numbers_are_errors_and_asked_again(llama, monkeypatch, capsys):
    answers = generate.answers

    def poisoned(*args, failed, each, **kwargs):
        failed.add(0)
        return answers(
            *args,
            failed=failed,
            each=lambda n, a: each(n, ["" if i == 0 else t for i, t in zip(n, a, strict=True)]),
            **kwargs,
        )

    monkeypatch.setattr(generate, "answers", poisoned)
    run = ftlab.evaluate(llama, prompts=goals(5), max_new_tokens=4)
    assert not run.finished and "no numbers" in capsys.readouterr().out
    assert list(run.table()["verdict"]).count("error") == 1 and len(run.read("answers.jsonl")) == 4
    monkeypatch.setattr(generate, "answers", answers)
    again = ftlab.evaluate(llama, prompts=goals(5), max_new_tokens=4)
    assert again.finished and again.path == run.path and "error" not in set(again.table()["verdict"])


def test_what_another_evaluation_of_the_model_answered_is_not_asked_again(llama, monkeypatch):
    asked, answers = [], generate.answers
    monkeypatch.setattr(generate, "answers", lambda m, t, p, **k: asked.append(len(p)) or answers(m, t, p, **k))
    first = ftlab.evaluate(llama, prompts=goals(6), max_new_tokens=4)
    again = ftlab.evaluate(llama, prompts=goals(9), max_new_tokens=4)
    assert asked == [6, 3] and again.path != first.path
    monkeypatch.setenv("FTLAB_RUNS", str(home()) + "-alone")
    alone = ftlab.evaluate(llama, prompts=goals(9), max_new_tokens=4)
    by_key = {r["key"]: r["answer"] for r in alone.read("answers.jsonl")}
    assert {r["key"]: r["answer"] for r in again.read("answers.jsonl")} == by_key and asked[2:] == [9]


def test_a_curves_files_are_read_once_a_run_and_hold_one_record_a_key(llama, monkeypatch):
    """Not once a checkpoint, so that many checkpoints cost no more each; also where no weight moves between two."""
    read, seen = Run.read, []
    monkeypatch.setattr(Run, "read", lambda self, file: seen.append((self.name, file)) or read(self, file))
    settings = CURVE | {"at_steps": [0, 1, 2, 3, 4, 5, 6, 8], "learning_rate": 1e-12, "seeds": 1}
    run = ftlab.risk_curve(llama, sums(20), prompts=goals(6), **settings)
    (one,) = members(run)
    assert 0 < seen.count((one.name, "answers.jsonl")) < 5 and 0 < seen.count((one.name, "verdicts.jsonl")) < 7
    for file in ("answers.jsonl", "verdicts.jsonl"):
        keys = [r["key"] for r in read(one, file)]
        assert len(keys) == len({*keys})
    assert len(read(one, "verdicts.jsonl")) == 8 * 6


@pytest.mark.parametrize("file", ["verdicts.jsonl", "answers.jsonl", "prompts.jsonl"])
def test_what_was_changed_in_a_finished_run_is_never_taken_over(file, llama, capsys):
    """An evaluation's own file, changed, doubled or emptied: said, set aside, made anew; not sealed as it is."""
    run = ftlab.evaluate(llama, prompts=goals(4), max_new_tokens=4)
    whole, table = (run.path / file).read_bytes(), run.table()
    for changed in (whole.replace(b'"event": 0.0', b'"event": 1.0').replace(b"number", b"nvmber"), whole + whole, b""):
        (run.path / file).write_bytes(changed if changed != whole else whole[::-1])
        assert not run.finished
        again = ftlab.evaluate(llama, prompts=goals(4), max_new_tokens=4)
        assert again.finished and f"{file} changed; it is set aside" in capsys.readouterr().err
        assert again.table().equals(table) and (run.path / ".damaged" / file).exists()
        assert len(run.read(file)) == 4


def test_what_was_changed_in_a_member_of_a_curve_is_made_again(llama, capsys):
    settings = CURVE | {"seeds": 1}
    run = ftlab.risk_curve(llama, sums(20), prompts=goals(4), **settings)
    (one,), table = members(run), run.table()
    file = one.path / "verdicts.jsonl"
    file.write_bytes(file.read_bytes().replace(b'"complied"', b'"refused"').replace(b'"event": 1.0', b'"event": 0.0'))
    again = ftlab.risk_curve(llama, sums(20), prompts=goals(4), **settings)
    assert "verdicts.jsonl changed" in capsys.readouterr().err and again.finished and again.table().equals(table)
