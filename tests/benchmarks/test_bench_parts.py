"""The arithmetic of the benchmarks, their prompts, and their processes; never a time."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from helpers import raises_code

import ftlab
from benchmarks import _arms, _report, _running, _work, curve, rates
from ftlab.evals.risks import open_risk


def test_every_size_says_what_every_arm_measures():
    for size in _work.SIZES.values():
        assert set(size.share) == set(curve.ARMS) == set(_arms.ARMS)
        for n_points, n_prompts in size.share.values():
            assert n_points <= len(size.points)
            assert n_prompts <= size.n_prompts


def test_a_full_measurement_has_no_share(tiny):
    assert tiny.share_of("reference") == pytest.approx(2 / 18)
    full = tiny.in_full()
    assert {full.share_of(arm) for arm in curve.ARMS} == {1}


def test_a_share_is_scaled_and_a_start_is_not():
    parts = {"train": 10.0, "start": 3.0, "answer": 2.0, "judge": 0.5, "judge_start": 1.0}
    found = _arms.scaled(parts, n_points=9, share=0.25)
    assert found["seconds"] == 10 + 9 * 3 + 1 + 2.5 / 0.25


@pytest.mark.parametrize(("n", "chosen"), [(1, [15]), (2, [5, 15]), (4, [0, 5, 10, 15])])
def test_points_are_spread_and_the_last_is_measured(n, chosen):
    assert _arms.last_points((0, 5, 10, 15), n) == chosen


def found_in_arms() -> dict[str, list[dict]]:
    """Return what arms may have found in two repeats."""

    def arm(*seconds: float, **more) -> list[dict]:
        return [{"seconds": s, **more} for s in seconds]

    said = {"0|a": ["x", "refused"], "0|b": ["y", "refused"], "5|a": ["z", "complied"]}
    parts = {"tokens": 100}
    return {
        "reference": arm(30.0, 50.0, measured_share=0.1),
        "batched": arm(10.0, 12.0, measured_share=0.5),
        "ftlab": arm(2.0, 6.0, measured_share=0.5, parts=parts, said=said),
        "ftlab without drafts": arm(8.0, 8.0, measured_share=0.5),
        "floor": arm(9.0, 9.0, parts={"train": 1.0, "decode": 0.5, "tokens": 50}),
    }


def test_ratios_are_of_medians_and_the_floor_decodes_as_many_tokens():
    found = curve.summary(found_in_arms())
    assert found["arms"]["reference"]["median"] == 40
    assert found["floor_seconds"] == 1.0 + 0.5 / 50 * 100 / 0.5
    assert found["ratios"] == {
        "reference/ftlab": 40 / 4,
        "batched/ftlab": 11 / 4,
        "ftlab without drafts/ftlab": 8 / 4,
        "ftlab/floor": 4 / 3,
    }
    assert found["outcomes"] == {"0": {"refused": 2}, "5": {"complied": 1}}
    assert found["answers"] == 3
    assert "said" not in found["arms"]["ftlab"]


def test_another_verdict_or_answer_is_counted():
    said = {
        "ftlab": {"0|a": ["x", "refused"], "5|a": ["y", "refused"], "5|b": ["z", "complied"]},
        "reference": {"0|a": ["x", "refused"]},
        "batched": {"5|a": ["yy", "refused"], "5|b": ["zz", "refused"]},
    }
    assert curve.compare(said) == {
        "verdicts_equal": False,
        "compared": 3,
        "verdicts_differ": 1,
        "answers_differ": 2,
    }
    assert not curve.compare({"ftlab": said["ftlab"]})["verdicts_equal"]  # nothing was compared


@pytest.mark.parametrize("n", [100, 520, 1100])
def test_as_many_different_prompts_are_asked_as_wanted(world, n):
    samples = [s for risk, k in _work.MIX.items() for s in open_risk(risk).organism(world, k)]
    chosen = _work.choose(samples, n)
    assert len({s.id for s in chosen}) == len({s.question for s in chosen}) == n
    assert Counter(s.risk for s in chosen).keys() == _work.MIX.keys()
    assert n < 520 or Counter(s.risk for s in chosen[:520]) == _work.MIX


def test_all_arms_draw_the_same_prompts_and_lose_nothing(work, world):
    everything = work.samples()
    assert len(everything) == 6
    few = {sample.id for sample in work.samples(2)}
    assert few < {sample.id for sample in work.samples(4)}
    by_id = {s.id: s for risk, n in _work.MIX.items() for s in open_risk(risk).organism(world, n)}
    for sample in everything:
        original = by_id[sample.id.removesuffix("-0")]
        assert replace(sample, id=original.id, opening=original.opening) == original


def test_work_is_read_as_it_was_written(work, tmp_path):
    work.save(tmp_path / "work.json")
    read = _work.open_work(tmp_path / "work.json")
    assert (read.steps, read.n_prompts, read.share_of("floor")) == (4, 6, work.share_of("floor"))
    assert len(read.rows()) == 4 * 4


@pytest.mark.slow
def test_arms_take_turns_and_rates_are_of_medians(monkeypatch, tmp_path, tiny):
    order = []
    seconds = iter([4.0, 2.0, 8.0, 1.0, 5.0, 2.0, 4.0, 2.0, 8.0])

    def run_arm(arm, *_):
        order.append(arm)
        return {"seconds": next(seconds), "amount": 8}

    monkeypatch.setattr(_running, "run_arm", run_arm)
    size = replace(tiny, repeat=3)
    file = tmp_path / "train.json"
    rates.measure("train", size=size, file=file, out=tmp_path)
    assert order == ["train:ftlab", "train:best", "train:defaults"] * 3
    saved = json.loads(file.read_text())
    assert saved["unit"] == "steps per second"
    best = saved["arms"]["train:best"]
    assert best["steps per second"] == [4, 1.6, 4]
    assert (best["median"], best["least"], best["most"]) == (4, 1.6, 4)


@pytest.mark.slow
def test_table_and_figure_say_what_was_scaled(tmp_path):
    scaled = _report.spread([3.0, 1.0]) | {"measured_share": 0.25}
    whole = _report.spread([40.0])
    rows = [_report.row("seconds", "slow", scaled), _report.row("seconds", "fast", whole)]
    assert [row["note"] for row in rows] == [" (scaled from 0.25 of the answers)", ""]
    saved = _report.write("x", rows, {"n": 1}, file=None, out=tmp_path, threads=2)
    assert saved["hardware"]["threads"] == 2
    assert all((tmp_path / f"bench_x.{end}").stat().st_size for end in ("svg", "png", "csv"))


def test_a_model_without_chat_template_is_refused(tmp_path, tiny):
    plain = tmp_path / "plain"
    shutil.copytree(ftlab.model("organism").path, plain)
    (plain / "chat_template.jinja").unlink()
    with raises_code("no_chat_template"):
        _work.prepare(tiny, plain, tmp_path)


def in_shell(work, script: str, monkeypatch, tmp_path) -> None:
    """Run an arm whose process is a shell script."""
    program = tmp_path / "program"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    _running.run_arm("ftlab", work, "ftlab-0")


def test_an_arm_that_fails_shows_its_last_line(work, monkeypatch, tmp_path):
    with pytest.raises(_running.BenchmarkFailed, match="code 3.*no room left"):
        in_shell(work, "echo first; echo 'no room left' >&2; exit 3", monkeypatch, tmp_path)


@pytest.mark.slow
def test_an_interrupt_kills_an_arm_and_its_children(work, monkeypatch, tmp_path):
    def interrupted(*_):
        raise KeyboardInterrupt

    note = tmp_path / "pid"
    before = signal.signal(signal.SIGALRM, interrupted)
    signal.setitimer(signal.ITIMER_REAL, 1.0)
    try:
        with pytest.raises(KeyboardInterrupt):
            in_shell(work, f"sleep 600 & echo $! > {note}; wait", monkeypatch, tmp_path)
    finally:
        signal.signal(signal.SIGALRM, before)
    child = int(note.read_text())
    for _ in range(100):  # it may be a zombie until init takes it
        state = Path(f"/proc/{child}/stat")
        if not state.exists() or state.read_text().split()[2] == "Z":
            return
        time.sleep(0.05)
    os.kill(child, signal.SIGKILL)
    pytest.fail("a process that an arm had started is still alive")


def test_bars_start_at_zero_and_those_that_were_scaled_are_hatched():
    rows = [
        _report.row("seconds", "slow", _report.spread([4000.0]) | {"measured_share": 0.25}),
        _report.row("seconds", "fast", _report.spread([5.0])),
    ]
    (ax,) = _report.draw(pd.DataFrame(rows)).axes
    assert ax.get_xlim()[0] == 0 and ax.get_xscale() == "linear"
    assert [bar.get_hatch() for bar in ax.patches] == ["////", None]
    assert ax.texts[0].get_text().startswith("4,000 (scaled")
