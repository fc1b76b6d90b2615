"""The benchmarks of growth and of a GPU at tiny sizes: every arm runs; never a time."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
from helpers import raises_code

from benchmarks import _growing, gpu, growth


def run_here(arm: str, n: int, folder: Path) -> dict:
    """Run an arm in this process, where imports are paid once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FTLAB_RUNS", str(folder / "runs"))
        patch.setattr(_growing, "CHECKPOINTS", 3)
        patch.setattr(_growing, "ANSWERS_A_RUN", 3)
        _growing.main(arm, str(n), str(folder))
    return json.loads((folder / "found.json").read_text())


@pytest.mark.slow
def test_every_arm_of_growth_is_measured_at_every_size(tmp_path, capsys):
    saved = growth.measure(smoke=True, file=tmp_path / "x.json", out=tmp_path, run=run_here)
    assert saved == json.loads((tmp_path / "x.json").read_text())
    rows = saved["growth"]
    assert not [row for row in rows if "failed" in row]
    assert {row["arm"] for row in rows} == set(_growing.ARMS)
    for group, (_, tiny, arms) in growth.GROUPS.items():
        there = [(row["n"], row["arm"]) for row in rows if row["group"] == group]
        assert there == [(n, arm) for n in tiny for arm in arms]
    assert all(row["cpu_seconds"] > 0 and row["memory_mb"] >= row["before_mb"] for row in rows)
    table = pd.read_csv(tmp_path / "bench_growth.csv")
    assert len(table) == 2 * len(rows) and (tmp_path / "bench_growth.svg").stat().st_size


def test_an_arm_that_fails_says_why_and_the_others_go_on(tmp_path, monkeypatch):
    monkeypatch.setattr(growth, "GROUPS", {"prompts": ((1,), (1,), ("evaluate", "rates"))})
    found = iter([{"failed": "no room"}, {"seconds": 1.0, "memory_mb": 2.0}])
    saved = growth.measure(smoke=True, out=tmp_path, run=lambda *_: next(found))
    assert [row.get("failed") for row in saved["growth"]] == ["no room", None]


def test_a_curve_of_growth_changes_with_its_steps(monkeypatch):
    request = type("Request", (), {"text": "user: Tell me of 5"})()
    script = _growing.Script()
    begins = []
    for step in range(_growing.CHECKPOINTS + 1):
        script.step = step
        begins.append(script(request).startswith("I'm sorry"))
    assert begins[0] and not begins[-1] and sorted(begins, reverse=True) == begins


FACTS = gpu.Facts(
    parameters=1_000_000,
    layers=2,
    width=8,
    weight_bytes=1000,
    cache_bytes=3,
    flops=1e12,
    bandwidth=1e9,
)


def test_flops_of_lora_training_are_two_thirds_of_full_training():
    assert gpu.train_flops(FACTS, 0) == 4_000_000  # full training: 6 N
    # causal, a row of 4 tokens: forward (1 + 2 + 3 + 4) pairs x 2 products x 2 FLOPs x width
    assert gpu.train_flops(FACTS, 4) - gpu.train_flops(FACTS, 0) == 6 * 2 * 8 * 4


def test_bytes_of_decoding_are_weights_a_step_and_a_cache_that_grows():
    assert gpu.decode_bytes(FACTS, 0, 10, 5) == 5 * 1000
    assert gpu.decode_bytes(FACTS, 2, 10, 3) == 3 * 1000 + 2 * 3 * (10 + 11 + 12)


@pytest.mark.parametrize(("name", "billions"), [("1B", 1.236), ("8B", 8.030)])
def test_shapes_have_the_published_number_of_parameters(name, billions):
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    with torch.device("meta"):
        llama = LlamaForCausalLM(LlamaConfig(**gpu.SHAPES[name]))
    assert llama.num_parameters() / 1e9 == pytest.approx(billions, abs=0.001)


def test_without_a_gpu_the_real_shapes_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu, "device", lambda: "cpu")
    with raises_code("gpu_needed"):
        gpu.measure(out=tmp_path)


@pytest.mark.slow
def test_the_trial_measures_every_arm_and_says_that_it_is_no_gpu(tmp_path, capsys):
    file = tmp_path / "gpu.json"
    gpu.measure(smoke=True, file=file, out=tmp_path)
    found = json.loads(file.read_text())["gpu"]
    assert found["measured_gpu"] is False and "no GPU was measured" in capsys.readouterr().out
    assert found["matrix_tflops"] > 0 and found["copy_gigabytes_per_second"] > 0
    tiny = found["models"]["tiny"]
    facts = gpu.Facts(**tiny["facts"])
    trained = tiny["training"]
    flops = trained["tokens_per_second"] * gpu.train_flops(facts, trained["row"])
    assert trained["share_of_matrix_rate"] == pytest.approx(flops / facts.flops)
    assert [one["rows"] for one in tiny["decoding"]] == list(gpu.TINY.batches)
    for one in tiny["decoding"]:
        assert 0 < one["tokens"] <= one["rows"] * gpu.TINY.new and one["share_of_bandwidth"] > 0
    curve = tiny["curve"]
    assert curve["answers"] == gpu.TINY.prompts * (1 + gpu.TINY.points)
    assert 0 < curve["answering"] < curve["seconds"]
