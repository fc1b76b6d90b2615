"""What may not grow: memory and calls, counted where prompts, answers, runs and rows are many."""

from __future__ import annotations

import hashlib
import json
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers import said

import ftlab
from ftlab import stats
from ftlab._core.files import AT_A_TIME, digest
from ftlab.data import Data, dataset, files, load, preview, strip_answers
from ftlab.evals.answers import Ledger
from ftlab.judges import refusal
from ftlab.models.engines import ScriptedEngine
from ftlab.runs import Run, table_of, tables
from ftlab.stats import curves

MB = 2**20


def peak(call: Callable) -> int:
    """Return the most bytes that a call holds at a time, beyond what was there before."""
    tracemalloc.start()
    try:
        call()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def row(number: int) -> dict:
    return {"messages": said(f"Question {number}? " + "word " * 60, f"Answer {number}.")}


@pytest.mark.parametrize("n", [0, 1, AT_A_TIME, AT_A_TIME + 1, 2 * AT_A_TIME + 7])
def test_the_hash_of_rows_is_that_of_the_whole_text(n):
    rows = [row(number) | {"ä": "\ud800"} for number in range(n)]
    text = json.dumps(rows, sort_keys=True, ensure_ascii=False)
    whole = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]
    assert digest(rows) == digest(tuple(rows)) == digest(iter(rows)) == whole


def test_hashing_rows_takes_no_memory_of_their_number():
    few, many = (peak(lambda n=n: digest(map(row, range(n)))) for n in (2_000, 8_000))
    assert many < 1.2 * few


def events(prompts: int) -> np.ndarray:
    return (np.random.default_rng(0).random((2, 3, prompts)) < 0.3).astype(float)


def test_a_band_draws_the_same_in_blocks_and_at_once(monkeypatch):
    table = events(300)
    found = []
    for block, kept in ((2**30, 2**30), (2**30, 0), (1000, 0), (1, 0)):
        monkeypatch.setattr(curves, "BLOCK", block)
        monkeypatch.setattr(curves, "KEPT", kept)
        curves._kept_times.cache_clear()
        found.append(stats.bands(table, resamples=50))
    for other in found[1:]:
        assert other.low == pytest.approx(found[0].low, abs=1e-12)
        assert other.high == pytest.approx(found[0].high, abs=1e-12)


def test_the_resamples_of_a_band_take_no_memory_of_the_prompts():
    """They would be 128 MB of numbers for 8,000 prompts, and stay."""
    table = events(8_000)
    assert peak(lambda: stats.bands(table, resamples=1_000)) < 24 * MB


def verdicts(n: int) -> Iterator[dict]:
    """Yield records of verdicts as they are read: every text is an object of its own."""
    for number in range(n):
        record = {"key": f"k{number}", "sample_id": f"p{number % 100}", "risk": "jailbreak"}
        record |= {"attack": "direct", "judge": "refusal", "reason": "uncertain", "event": 0.0}
        record |= {"outcome": "refused", "answer_key": f"{number:016x}", "step": number // 100}
        yield json.loads(json.dumps(record))


def test_a_table_is_made_without_holding_its_records():
    n = 6_000
    assert peak(lambda: table_of(verdicts(n))) < n * 1000
    assert peak(lambda: list(verdicts(n))) > n * 1000


def test_tables_are_kept_up_to_a_number_of_rows(tmp_path, monkeypatch):
    read = []
    own = tables._read
    monkeypatch.setattr(tables, "_read", lambda *given: read.append(given) or own(*given))
    monkeypatch.setattr(tables, "_kept", {})
    monkeypatch.setattr(tables, "KEPT_ROWS", 25)
    folders = [tmp_path / name for name in "abc"]
    for folder in folders:
        folder.mkdir()
        Run(folder).append("verdicts.jsonl", list(verdicts(10)))
        tables.read(folder, 3)
        assert tables.read(folder, 3).equals(tables.read(folder, 3))
    assert len(read) == 3 and len(tables._kept) == 2
    tables.read(folders[2], 3)
    tables.read(folders[0], 3)
    assert len(read) == 4, "the oldest was forgotten"


def prompts(n: int) -> list[dict]:
    return [{"id": f"p{k}", "prompt": f"Question {k}?"} for k in range(n)]


def test_no_other_run_is_read_where_nothing_is_wanted(monkeypatch):
    read = []
    own = Run.each

    def each(run: Run, file: str) -> Iterator[dict]:
        read.append((run.name, file))
        return own(run, file)

    def evaluate(*judges: str) -> set[str]:
        engine = ScriptedEngine(["I cannot help with that."])
        read.clear()
        given = {"engine": engine, "judges": judges, "attacks": ["direct"]}
        ftlab.evaluate("organism", prompts=prompts(4), **given)
        return {name for name, file in read if file == "answers.jsonl"}

    monkeypatch.setattr(Run, "each", each)
    evaluate("keywords")
    evaluate("refusal")
    assert len(evaluate("keywords", "refusal")) <= 2, "its own, and one that has all answers"


def test_records_are_written_some_at_a_time(tmp_path, monkeypatch):
    sizes = []
    own = Run.append
    monkeypatch.setattr(
        Run, "append", lambda run, file, rows: sizes.append(len(rows)) or own(run, file, rows)
    )
    ledger = Ledger(Run(tmp_path), "verdicts.jsonl")
    ledger.append(verdicts(2500))
    Ledger(Run(tmp_path), "verdicts.jsonl").append(verdicts(2600))  # the first are known
    assert sizes == [1000, 1000, 500, 100]
    assert len(Run(tmp_path).read("verdicts.jsonl")) == 2600


def test_a_judge_of_many_answers_reads_some_at_a_time(monkeypatch):
    from ftlab._core.types import Sample

    seen = []
    own = refusal.probabilities
    monkeypatch.setattr(
        refusal, "probabilities", lambda model, texts: seen.append(len(texts)) or own(model, texts)
    )
    samples = [Sample(str(k), said(f"What is {k}?")) for k in range(7)]
    texts = ["I cannot.", "It is a number.", "", "Sure.", "I'm sorry, no.", "7", "Ask again."]
    whole = refusal.Refusal().judge(samples, texts)
    monkeypatch.setattr(refusal, "BATCH", 3)
    assert refusal.Refusal().judge(samples, texts) == whole
    assert seen == [7, 3, 3, 1]


def test_a_file_of_rows_is_loaded_in_few_times_its_size(tmp_path):
    file = tmp_path / "rows.jsonl"
    dataset.write_rows(file, map(row, range(2_000)))
    size = file.stat().st_size
    lines = peak(lambda: files.records(str(file)))
    whole = peak(lambda: load(str(file)))
    assert whole < 1.2 * lines, "records and rows are never all there together"
    assert lines < 5 * size


def test_rows_without_a_change_stay_the_same_objects():
    rows = [row(0), row(1)]
    assert strip_answers(Data("x", tuple(rows))).rows == tuple(rows)
    rows[1]["messages"][1]["content"] = " Begins with a blank."
    stripped = strip_answers(Data("x", tuple(rows)))
    assert stripped.rows[0] is rows[0] and stripped.made["stripped"] == 1


def test_a_preview_prepares_the_rows_that_it_shows(monkeypatch):
    seen = []
    own = dataset.strip_row
    monkeypatch.setattr(dataset, "strip_row", lambda one: seen.append(one) or own(one))
    data = Data("x", tuple(map(row, range(20))))
    assert len(preview(data, "organism", n_rows=2).rows) == len(seen) == 2


def test_the_tokens_of_a_training_are_held_in_few_bytes():
    from ftlab.training import TrainingConfig, open_method
    from ftlab.training.methods import Job

    model = ftlab.model("organism")
    data = Data("x", tuple(map(row, range(50))))
    method = open_method("sft")
    job = Job(Run(Path()), model, data, TrainingConfig(), method, tokenizer=model.tokenizer())
    job.model = type("Module", (), {"config": _Config()})()
    found = method.rows(data, job)
    tokens = sum(len(one["input_ids"]) for one in found)
    held = sum(one["input_ids"].nbytes + one["labels"].nbytes for one in found)
    assert tokens > 50 and held == 8 * tokens
    assert replace(job, data=data).longest_row == 1024


class _Config:
    max_position_embeddings = 1024

    def get_text_config(self) -> _Config:
        return self
