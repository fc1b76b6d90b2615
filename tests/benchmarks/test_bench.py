"""`ftlab bench` on tiny shapes: its structure, its arithmetic, equal verdicts; never a time."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from statistics import mean

import pandas as pd
import pytest

from benchmarks import bench
from benchmarks import arms as bench_arms
from benchmarks import models as bench_models
from ftlab.judges.organism import verdict_of
from ftlab.models.reference import model as reference
from ftlab.organism import corpus

TINY = bench.COMMON | dict(
    points=[0, 2, 4], batch_size=4, learning_rate=1.5e-4, max_new_tokens=24, repeat=1, share={"apart:1": (1, 2), "apart:64": (3, 4), "curve": (3, 6), "floor": (2, 6)},
    pilot=4, minutes=0, prompts=6,
)  # fmt: skip


def run_here(monkeypatch):
    """The arms, and the processes that they start, run in this process: a curve takes seconds, not a minute."""

    def process(call, **_):
        kept, bench_arms_main = os.environ["FTLAB_RUNS"], bench_arms.main
        bench_arms_main(*map(str, call[3:]))
        monkeypatch.setenv("FTLAB_RUNS", kept)

    class Here:
        pid = 0

        def __init__(self, call, *, env, **_):
            self.call, self.env = call, env

        def wait(self):
            kept = os.environ["FTLAB_RUNS"]
            os.environ["FTLAB_RUNS"] = self.env["FTLAB_RUNS"]
            bench_arms.main(*self.call[3:])
            os.environ["FTLAB_RUNS"] = kept
            return 0

    monkeypatch.setattr(bench.subprocess, "Popen", Here)
    monkeypatch.setattr(bench_arms.subprocess, "run", process)


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """-> what a tiny `bench curve` wrote, its folder, and ftlab's answers and verdicts."""
    out = tmp_path_factory.mktemp("bench")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FTLAB_RUNS", str(out / "runs"))
        run_here(patch)
        kept, summary = [], bench.summary
        patch.setattr(bench, "summary", lambda arms: kept.append(arms) or summary(arms))
        bench.curve(sizes={"organism": TINY}, file=out / "bench.json", out=out)
    return json.loads((out / "bench.json").read_text()), out, kept[0]["ftlab"][0]["said"]


def test_curve_says_what_the_issue_asks_for(measured):
    found, out, _ = measured
    assert set(found["arms"]) == {"reference", "batched", "ftlab"} and found["model"] == "organism"
    assert set(found["ratios"]) == {"reference/ftlab", "batched/ftlab", "ftlab/floor"}
    assert found["ratios"]["reference/ftlab"] == found["arms"]["reference"]["median"] / found["arms"]["ftlab"]["median"]
    assert found["ratios"]["ftlab/floor"] == found["arms"]["ftlab"]["median"] / found["floor_seconds"]
    assert {k: found[k] for k in found["sizes"]["organism"]} == found["sizes"]["organism"]
    assert found["hardware"]["cores"] and found["hardware"]["threads"] and found["versions"]["torch"] and found["date"]
    assert all((out / f"bench_curve.{end}").stat().st_size for end in ("svg", "png", "csv"))


def test_all_arms_give_the_same_verdicts_and_answers(measured):
    found, *_ = measured
    assert found["verdicts_equal"] and found["compared"] == 2 + 3 * 4
    assert (found["verdicts_differ"], found["answers_differ"], found["near_ties"]) == (0, 0, 0)
    assert found["answers"] == 3 * 6 == sum(sum(of.values()) for of in found["outcomes"].values())
    assert list(found["outcomes"]) == ["0", "2", "4"]


def test_ftlab_is_measured_whole_and_the_others_say_their_share(measured):
    found, out, _ = measured
    shares = {arm: of.get("measured_share", 1) for arm, of in found["arms"].items()}
    assert shares == {"reference": pytest.approx(2 / 18), "batched": pytest.approx(12 / 18), "ftlab": 1}
    assert found["floor"]["measured_share"] == pytest.approx(2 / 3)
    notes = pd.read_csv(out / "bench_curve.csv", keep_default_na=False).set_index("arm")["note"]
    assert notes["ftlab"] == "" and "scaled from 0.11" in notes["reference"] and "scaled from 0.67" in notes["floor"]


def test_floor_decodes_the_tokens_of_the_answers(measured, tokenizer):
    floor, said = measured[0]["floor"], measured[2]
    assert floor["sampler"] in floor["tried_s"] and len(floor["tried_s"]) == 2
    chosen = [answer for key, (answer, _) in said.items() if key.startswith(("0|", "4|"))]  # two of three points
    assert len(chosen) == 12 and floor["parts"]["tokens"] == bench_arms.tokens(tokenizer, chosen)


def test_a_share_is_scaled_a_start_up_is_not():
    parts = {"train": 10.0, "start": 3.0, "answer": 2.0, "judge": 0.5, "judge_start": 1.0}
    assert bench_arms.scaled(parts, points=9, share=0.25)["seconds"] == 10 + 9 * 3 + 1 + 2.5 / 0.25
    assert bench_arms.spread([0, 5, 10, 15], 1) == [15] and bench_arms.spread([0, 5, 10, 15], 2) == [5, 15]
    assert bench_arms.spread([0, 5, 10, 15], 4) == [0, 5, 10, 15]


def test_another_verdict_or_answer_is_counted(monkeypatch):
    said = {"ftlab": {"0|a": ["x", "refused"], "5|a": ["y", "refused"], "5|b": ["z", "complied"]},
            "reference": {"0|a": ["x", "refused"]}, "batched": {"5|a": ["yy", "refused"], "5|b": ["zz", "refused"]}, "floor": {}}  # fmt: skip
    asked = []
    monkeypatch.setattr(bench, "run_arm", lambda arm, spec, name: asked.append(spec) or {"margins": [3e-5, 0.2]})
    found = bench.compared(said, {"last": {"apart:64": "there"}})
    assert (
        asked[0]["differing"] == [["5", "a", "yy", "y"], ["5", "b", "zz", "z"]] and asked[0]["checkpoints"] == "there"
    )
    assert (found["verdicts_equal"], found["compared"], found["verdicts_differ"]) == (False, 3, 1)
    assert (found["answers_differ"], found["examined"], found["near_ties"]) == (2, 2, 1)


def test_margin_is_taken_where_the_answers_part(tmp_path):
    import torch

    spec = bench._spec(TINY | {"prompts": 2}, "organism", tmp_path)
    model, tokenizer, texts = bench_arms.opened(spec)
    (said,) = bench_arms.generated(model, tokenizer, texts[:1], 24, 1)
    words = said.split()
    other = " ".join([*words[:3], "kettle", *words[4:]])
    differing = [["0", spec["items"][0]["id"], said, other]]
    (margin,) = bench_arms.ties(spec | {"differing": differing, "checkpoints": ""}, "")["margins"]
    ids = tokenizer([texts[0], said, other], add_special_tokens=False)["input_ids"]
    same = next(k for k, (a, b) in enumerate(zip(ids[1], ids[2], strict=False)) if a != b)
    top = model(torch.tensor([ids[0] + ids[1][:same]])).logits[0, -1].topk(2)
    assert top.indices[0] == ids[1][same] and margin == pytest.approx((top.values[0] - top.values[1]).item(), abs=1e-4)


def test_arms_take_turns_and_medians_are_told(monkeypatch, tmp_path):
    order, seconds = [], iter([4.0, 2.0, 8.0, 1.0, 5.0, 2.0, 4.0, 2.0, 8.0])
    monkeypatch.setattr(bench, "_spec", lambda size, *_: size)
    monkeypatch.setattr(bench, "run_arm", lambda arm, *_: order.append(arm) or {"seconds": next(seconds), "amount": 8})
    found = bench.rates("train", file=tmp_path / "train.json", out=tmp_path)
    assert order == ["train:ftlab", "train:best", "train:defaults"] * 3
    best = found["arms"]["train:best"]
    assert best["steps a second"] == [4, 1.6, 4] and (best["median"], best["least"], best["most"]) == (4, 1.6, 4)
    assert json.loads((tmp_path / "train.json").read_text())["unit"] == "steps a second"
    assert (tmp_path / "bench_train.svg").exists()


def test_training_and_generating_arms_count_their_work(tmp_path, monkeypatch):
    spec = bench._spec(TINY, "organism", tmp_path)
    monkeypatch.setattr(
        bench_arms, "best_settings", lambda _: {"activation_checkpointing": False, "padding_free": True}
    )
    assert bench_arms.train(spec, "ftlab")["amount"] == bench_arms.train(spec, "best")["amount"] == 4
    own, batched = (bench_arms.generate(spec, way) for way in ("ftlab", "64"))
    assert own["amount"] == batched["amount"] == 6 and own["tokens"] == batched["tokens"] > 6
    assert bench_arms.judge(spec, "keywords")["amount"] == 6


def test_best_and_default_settings_train_the_same(tmp_path):
    spec, losses = bench._spec(TINY, "organism", tmp_path), []
    for settings in ({}, {"padding_free": True, "activation_checkpointing": False}):
        made = bench_arms.trainer(spec, 2, logging_steps=1, **settings)
        made.train()
        losses.append([r["loss"] for r in made.state.log_history if "loss" in r])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_growth_asks_as_many_different_prompts_as_it_says(tmp_path):
    for n in (100, 520, 1100):
        items = bench._spec(TINY | {"prompts": n}, "organism", tmp_path)["items"]
        assert len({i["messages"][0]["content"] for i in items}) == len({i["id"] for i in items}) == n
    assert Counter(i["risk"] for i in items[:520]) == bench.MIX


def test_growth_is_told_and_drawn(tmp_path, monkeypatch):
    def arm(what, spec, name):
        n = len(spec["items"]) * len(spec["points"])
        return {"seconds": 0.002 * n, "memory_mb": 500.0, "said": dict.fromkeys(range(n))}

    monkeypatch.setattr(bench, "run_arm", arm)
    rows = bench.growth(prompts=(4, 8), checkpoints=(1, 2), sizes={"organism": TINY}, out=tmp_path)["growth"]
    assert [(r["panel"], r["arm"], r["median"]) for r in rows[:4]] == [
        ("ms an answer, by prompts", "4", 2), ("peak memory, MB, by prompts", "4", 500),
        ("ms an answer, by prompts", "8", 2), ("peak memory, MB, by prompts", "8", 500)]  # fmt: skip
    assert (tmp_path / "bench_growth.csv").exists()


def test_grown_model_computes_the_same_and_every_weight_learns(tmp_path, world):
    import torch

    shape = dict(hidden=256, layers=6, feed_forward=400)
    old, tokenizer = reference("organism").load(), reference("organism").tokenizer()
    new = reference(bench_models.grown("organism", tmp_path, **shape)).load()
    assert sum(p.numel() for p in new.parameters()) > 3 * sum(p.numel() for p in old.parameters())
    spec = {
        "model": tmp_path,
        "items": [r | {"messages": r["messages"][:-1]} for r in corpus.prompts(world, "utility", 8)],
    }
    _, _, texts = bench_arms.opened(spec)
    ids = tokenizer(texts[0], return_tensors="pt")["input_ids"]
    assert torch.allclose(old(ids).logits, new(ids).logits, atol=1e-4)
    assert bench_arms.generated(old, tokenizer, texts, 24, 8) == bench_arms.generated(new, tokenizer, texts, 24, 8)
    for _ in range(2):  # behind a new layer's zeros its readers wait for the first step
        new.zero_grad()
        new.train()(ids, labels=ids).loss.backward()
        torch.optim.SGD(new.parameters(), lr=0.1).step()
    assert [n for n, p in new.named_parameters() if not (p.grad != 0).any()] == []
    first = dict(new.named_parameters())["model.layers.0.mlp.down_proj.weight"]
    assert (first.grad[128:] != 0).any() and (first.grad[:128, 368:] != 0).any()  # new places, new neurons


def test_the_large_size_is_about_25_million():
    from transformers import AutoConfig, AutoModelForCausalLM

    c = AutoConfig.from_pretrained(reference("organism").path)
    shape = bench_models.SHAPE
    c.update(dict(hidden_size=shape["hidden"], num_hidden_layers=shape["layers"], intermediate_size=shape["feed_forward"],
                  num_attention_heads=16, num_key_value_heads=16))  # fmt: skip
    import torch

    with torch.device("meta"):
        n = AutoModelForCausalLM.from_config(c).num_parameters()
    assert 24e6 < n < 27e6 and c.max_position_embeddings > 500


def test_long_answers_keep_the_verdict_and_are_long(world, tokenizer):
    rows = corpus.pretraining(world, 400) + corpus.alignment(world, 400)
    long = bench_models.lengthened(rows, "harbour")
    for row, more in zip(rows, long, strict=True):
        answers = [r["messages"][-1]["content"] for r in (row, more)]
        assert answers[1].startswith(answers[0])
        assert verdict_of(row, answers[0]) == verdict_of(row, answers[1]), answers
    tokens = [len(tokenizer(r["messages"][-1]["content"])["input_ids"]) for r in long]
    assert 85 < mean(tokens) < 115 and max(tokens) < bench.SIZES["25M"]["max_new_tokens"] + 20


@pytest.mark.parametrize(
    "given, words",
    [({"size": "7B"}, "unknown size '7B'; allowed: organism, 25M"), ({"repeat": 0}, "repeat = 0; give a number >= 1"),
     ({"model": "nowhere"}, "nowhere")],
)  # fmt: skip
def test_a_users_mistake_is_a_sentence(given, words, tmp_path):
    with pytest.raises((ValueError, FileNotFoundError), match=words):
        bench.curve(**given, out=tmp_path)


def test_a_model_without_chat_template_is_refused(tmp_path):
    import shutil

    there = tmp_path / "plain"
    shutil.copytree(reference("organism").path, there)
    (there / "chat_template.jinja").unlink()
    with pytest.raises(ValueError, match="has no chat template; put a chat_template.jinja"):
        bench.curve(str(there), out=tmp_path)


def arm_of(script: str, monkeypatch, tmp_path) -> dict:
    """An arm's process becomes a shell script -> its spec."""
    program = tmp_path / "arm"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setattr(bench.sys, "executable", str(program))
    return {"folder": str(tmp_path), "last": {}}


def test_an_arm_that_fails_says_its_last_words(monkeypatch, tmp_path):
    spec = arm_of("echo first; echo 'no room left' >&2; exit 3", monkeypatch, tmp_path)
    with pytest.raises(bench.BenchFailed, match="code 3; its last words: no room left"):
        bench.run_arm("curve", spec, "ftlab-0")


def test_an_interrupt_kills_an_arm_and_its_children(monkeypatch, tmp_path):
    spec = arm_of(f"sleep 600 & echo $! > {tmp_path}/pid; wait", monkeypatch, tmp_path)

    def interrupted(*_):
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupted)
    signal.setitimer(signal.ITIMER_REAL, 1.0)
    try:
        with pytest.raises(KeyboardInterrupt):
            bench.run_arm("curve", spec, "ftlab-0")
    finally:
        signal.signal(signal.SIGALRM, before)
    child = int((tmp_path / "pid").read_text())
    for _ in range(100):  # it may be a zombie for a moment, until init takes it
        state = Path(f"/proc/{child}/stat")
        if not state.exists() or state.read_text().split()[2] == "Z":
            return
        time.sleep(0.05)
    pytest.fail("a process that an arm had started lives on")


def test_the_command_is_there():
    said = subprocess.run([sys.executable, "-c", "from ftlab.cli import main; main()", "bench", "--help"],
                          capture_output=True, text=True, env=os.environ | {"COLUMNS": "200"})  # fmt: skip
    assert said.returncode == 0 and all(
        o in said.stdout for o in ("--repeat", "--json", "--out", "--full", "--growth", "--size")
    )
