"""The harness runs on our models; its numbers are checked against our own likelihoods."""

from __future__ import annotations

import importlib.util
import json

import pytest

import ftlab.evals.lm_harness as harness

needs = pytest.mark.skipif(importlib.util.find_spec("lm_eval") is None, reason="the extra eval is not installed")
TASK = """task: ftlab_local
dataset_path: json
dataset_kwargs:
  data_files:
    test: {file}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{label}}}}"
doc_to_choice: "{{{{choices}}}}"
metric_list:
  - metric: acc
    aggregation: mean
    higher_is_better: true
"""
ROWS = [
    {"question": f"{a} and {b} are", "choices": [f"{a + b}", f"{a + b + 1}", f"{a * b}"], "label": (a + b) % 3}
    for a in range(2, 8)
    for b in (3, 5)
]


@pytest.fixture
def task(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    data, file = tmp_path / "rows.jsonl", tmp_path / "local.yaml"
    data.write_text("".join(json.dumps(r) + "\n" for r in ROWS))
    file.write_text(TASK.format(file=data))
    return file


def likeliest(folder, row) -> int:
    """The choice with the highest log-probability after the question, without the harness."""
    import torch

    from ftlab.models.reference import model

    loaded, tokenizer, scores = model(folder).load(), model(folder).tokenizer(), []
    for choice in row["choices"]:
        before = tokenizer(row["question"])["input_ids"]
        ids = tokenizer(f"{row['question']} {choice}")["input_ids"]
        logs = loaded(torch.tensor([ids])).logits[0].log_softmax(-1)
        scores.append(sum(logs[k - 1, ids[k]].item() for k in range(len(before), len(ids))))
    return max(range(len(scores)), key=scores.__getitem__)


@needs
def test_a_local_task_gives_the_accuracy_that_our_own_likelihoods_give(llama, task):
    run = harness.lm_eval(llama, task)
    table = harness.results(run)
    (row,) = table[table["metric"] == "acc"].itertuples()
    assert row.task == "ftlab_local" and row.n == len(ROWS) and run.finished
    assert row.value == pytest.approx(sum(likeliest(llama, r) == r["label"] for r in ROWS) / len(ROWS))
    chat = harness.lm_eval(llama, task, chat=True, limit=2)
    assert chat.finished and chat.path != run.path and len(harness.results(chat)) == len(table)


@needs
def test_the_same_again_is_found_and_another_limit_or_other_data_is_another_run(llama, task):
    run = harness.lm_eval(llama, [task], limit=4)
    stamp = (run.path / "results.json").stat().st_mtime_ns
    again = harness.lm_eval(llama, str(task), limit=4)
    assert again.path == run.path and (run.path / "results.json").stat().st_mtime_ns == stamp
    assert set(harness.results(run)["n"]) == {4}
    (task.parent / "rows.jsonl").write_text("".join(json.dumps(r) + "\n" for r in ROWS[::-1]))
    assert harness.lm_eval(llama, task, limit=4).path != run.path != harness.lm_eval(llama, task, limit=3).path


@needs
def test_what_is_not_there_is_a_sentence(llama, tmp_path):
    with pytest.raises(ValueError, match="unknown task nosuchtask; `lm-eval ls tasks` lists them"):
        harness.lm_eval(llama, "nosuchtask")
    with pytest.raises(FileNotFoundError, match="none.yaml does not exist; give a YAML"):
        harness.lm_eval(llama, tmp_path / "none.yaml")
    for text, found in (
        ("a: [", "bad.yaml cannot be read"),
        ("task: a\nb: !function u.f", "plain YAML without tags"),
        ("a: 1", "names no `task`"),
    ):
        (tmp_path / "bad.yaml").write_text(text)
        with pytest.raises(ValueError, match=found):
            harness.lm_eval(llama, tmp_path / "bad.yaml")


def test_without_the_extra_it_says_what_to_install(llama, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "lm_eval", None)
    with pytest.raises(ValueError, match=r"pip install 'ftlab\[eval\]'"):
        harness.lm_eval(llama, "gsm8k")
