"""`ftlab bench --gpu`: the arithmetic of its shares, and every arm end to end at a tiny shape on this machine."""

from __future__ import annotations

import io
import json

import pytest

from benchmarks import gpu as bench


def test_flops_of_lora_training_are_two_thirds_of_full_training():
    assert bench.train_flops(1_000_000, 2, 8, 0) == 4_000_000  # full training: 6 N
    # One layer, width 8, a row of 4 tokens, causal: forward (1 + 2 + 3 + 4) pairs x 2 products x 2 FLOPs x width, to the leading term
    assert bench.train_flops(0, 1, 8, 4) * 4 == 3 * (4 * 4 / 2) * 2 * 2 * 8


def test_bytes_of_decoding_are_weights_a_step_and_a_cache_that_grows():
    assert bench.decode_bytes(1000, 0, 64, 10, 5) == 5000  # weights are read once a step, whatever the batch
    assert bench.decode_bytes(0, 3, 2, 10, 3) == 2 * 3 * (10 + 11 + 12)


@pytest.mark.parametrize("name, billions", [("1B", 1.236), ("8B", 8.030)])
def test_shapes_have_the_published_number_of_parameters(name, billions):
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    with torch.device("meta"):
        llama = LlamaForCausalLM(LlamaConfig(**bench.SHAPES[name][1]))
    assert llama.num_parameters() / 1e9 == pytest.approx(billions, abs=0.001)


def test_without_a_gpu_only_the_tiny_shape_runs(monkeypatch):
    monkeypatch.setattr(bench, "device", lambda: "cpu")
    with pytest.raises(ValueError, match=r"shapes 1B, 8B; allowed without an NVIDIA GPU \(1B and 8B need one\): tiny"):
        bench.bench_gpu()
    monkeypatch.setattr(bench, "device", lambda: "cuda")
    with pytest.raises(ValueError, match="the shapes 2B; allowed here: 1B, 8B, tiny"):
        bench.bench_gpu(shapes=("2B",))


@pytest.fixture(scope="module")
def record(tmp_path_factory) -> dict:
    """-> what a run at the tiny shape wrote, with its printed table as `shown`."""
    file, shown = tmp_path_factory.mktemp("bench") / "bench.json", io.StringIO()
    found = bench.bench_gpu(json=file, out=shown, shapes=("tiny",))
    written = json.loads(file.read_text())
    assert written == json.loads(json.dumps(found))
    return written | {"shown": shown.getvalue()}


def test_every_arm_returns_numbers_or_a_reason(record):
    arms = record["tiny"]["decoding"]
    assert {a["arm"] for a in arms} == {"ftlab", "dynamic", "static, compiled", "continuous", "vllm"}
    assert len(arms) == 5 * len(bench.TINY["batches"])
    for a in arms:
        assert a.get("reason") or a["tokens_a_second"] > 0 and len(a["seconds"]) == 3, a
    assert all("reason" not in a for a in arms if a["arm"] != "vllm")
    assert all("vllm" in a["reason"] for a in arms if a["arm"] == "vllm")
    assert [t["checkpointing"] for t in record["tiny"]["training"]] == [True, False]
    assert record["tiny"]["curve"]["answers"] == 5 * (1 + bench.TINY["points"])
    assert all(
        word in record["shown"] for word in ("tiny: training", "share_of_flops", "share_of_floor", "transformers")
    )


def test_shares_can_be_computed_again_from_what_stands_beside_them(record):
    facts = record["tiny"]["facts"]
    for t in record["tiny"]["training"]:
        flops = bench.train_flops(facts["parameters"], facts["layers"], facts["width"], t["row"])
        assert t["share_of_flops"] == pytest.approx(t["tokens_a_second"] * flops / facts["flops"])
    done = [a for a in record["tiny"]["decoding"] if "seconds" in a]
    for a in done:
        read = bench.decode_bytes(facts["weight_bytes"], facts["cache_bytes_a_token"], a["rows"], a["prompt"], a["new"])
        floor = read / max(facts["copied_bytes_a_second"], facts["read_bytes_a_second"])
        again = sum(sorted(a["seconds"][1:])) / 2
        assert a["share_of_floor"] == pytest.approx(floor / again)
        assert a["tokens_a_second"] == pytest.approx(a["tokens"] / again) and a["tokens"] <= a["rows"] * a["new"]
    curve = record["tiny"]["curve"]
    assert 0 < curve["answering"] < curve["seconds"]
    assert curve["seconds"] == pytest.approx(curve["answering"] + curve["training_and_rest"])


def test_an_arm_that_fails_says_why():
    def broken():
        raise RuntimeError("no kernel\nfor this card")

    assert bench._softly(broken) == {"reason": "RuntimeError: no kernel for this card"}
