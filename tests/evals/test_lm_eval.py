"""The harness on our models, against likelihoods computed without it."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest
from helpers import raises_code

import ftlab
from ftlab import runs
from ftlab._core.errors import FtlabDeprecationWarning
from ftlab.evals import lm_eval, lm_eval_results
from ftlab.models import model

needs = pytest.mark.skipif(
    importlib.util.find_spec("lm_eval") is None, reason="the extra eval is not installed"
)
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
    {
        "question": f"{a} and {b} are",
        "choices": [f"{a + b}", f"{a + b + 1}", f"{a * b}"],
        "label": (a + b) % 3,
    }
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

    loaded = model(folder).load()
    tokenizer = model(folder).tokenizer()
    scores = []
    for choice in row["choices"]:
        before = tokenizer(row["question"])["input_ids"]
        ids = tokenizer(f"{row['question']} {choice}")["input_ids"]
        logs = loaded(torch.tensor([ids])).logits[0].log_softmax(-1)
        scores.append(sum(logs[k - 1, ids[k]].item() for k in range(len(before), len(ids))))
    return max(range(len(scores)), key=scores.__getitem__)


@pytest.mark.slow
@needs
def test_a_local_task_gives_the_accuracy_that_our_own_likelihoods_give(llama, task):
    run = lm_eval(llama, task)
    table = lm_eval_results(run)
    (row,) = table[table["metric"] == "acc"].itertuples()
    assert row.task == "ftlab_local" and row.n == len(ROWS) and run.finished
    right = sum(likeliest(llama, r) == r["label"] for r in ROWS)
    assert row.value == pytest.approx(right / len(ROWS))
    chat = lm_eval(llama, task, chat=True, n_prompts=2)
    assert chat.finished and chat.path != run.path and len(lm_eval_results(chat)) == len(table)


@pytest.mark.slow
@needs
def test_the_same_again_is_found_and_another_limit_or_other_data_is_another_run(llama, task):
    run = lm_eval(llama, [task], n_prompts=4)
    stamp = (run.path / "results.json").stat().st_mtime_ns
    again = lm_eval(llama, str(task), n_prompts=4)
    assert again.path == run.path and (run.path / "results.json").stat().st_mtime_ns == stamp
    assert set(lm_eval_results(run)["n"]) == {4}
    with pytest.warns(FtlabDeprecationWarning):
        assert lm_eval(llama, task, limit=4) == run
    (task.parent / "rows.jsonl").write_text("".join(json.dumps(r) + "\n" for r in ROWS[::-1]))
    assert (
        lm_eval(llama, task, n_prompts=4).path != run.path != lm_eval(llama, task, n_prompts=3).path
    )


@pytest.mark.slow
@needs
def test_an_unknown_task_is_an_error(llama, tmp_path, monkeypatch):
    from lm_eval.tasks import TaskManager

    def without_defaults(include_defaults: bool) -> TaskManager:
        """Return a manager that does not read the harness's thousands of files."""
        return TaskManager(include_defaults=False)

    monkeypatch.setattr("lm_eval.tasks.TaskManager", without_defaults)
    for unknown in ("nosuchtask", []):
        with raises_code("unknown_task"):
            lm_eval(llama, unknown)
    with raises_code("no_task_file"):
        lm_eval(llama, tmp_path / "none.yaml")


@pytest.mark.slow
@needs
@pytest.mark.parametrize("text", ["a: [", "task: a\nb: !function u.f", "a: 1"])
def test_a_broken_task_file_is_an_error(llama, tmp_path, text):
    (tmp_path / "bad.yaml").write_text(text)
    with raises_code("bad_task_file"):
        lm_eval(llama, tmp_path / "bad.yaml")


def test_without_the_extra_it_is_an_error(llama, monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with raises_code("lm_eval_missing"):
        lm_eval(llama, "gsm8k")


@pytest.mark.slow
@needs
def test_the_command_prints_the_table_and_two_of_its_logs_are_compared(llama, task, ran):
    code, out, _ = ran("lm-eval", llama, task, "--n-prompts", 6)
    folder, *_, log = out.splitlines()
    run = runs.load(folder)
    assert code == 0 and "ftlab_local" in out and Path(log).is_file()
    chat = lm_eval(llama, task, n_prompts=6, chat=True)
    (other,) = (chat.path / "samples").glob("samples_ftlab_local_*.jsonl")
    found = ftlab.compare(log, str(other), score="acc").iloc[0]
    for side, made in (("parent", run), ("child", chat)):
        (row,) = lm_eval_results(made).query("metric == 'acc'").itertuples()
        assert found[side] == pytest.approx(row.value)
    assert found["n_prompts"] == 6
