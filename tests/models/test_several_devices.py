"""Requests shared out among processes are answered as one process answers them."""

from __future__ import annotations

import os
import signal

import pytest
from helpers import raises_code
from small_models import goals

import ftlab as ft
from ftlab.models import devices
from ftlab.models.engines import Decoding, HuggingFaceEngine, Request, ScriptedEngine

ASKED = dict(judges="keywords", max_new_tokens=8, screen=True)
SAMPLED = Decoding(temperature=1.5, top_k=40)


def requests_for(engine, loaded) -> list[Request]:
    """Greedy and sampled answers, choices, and words in the model's mouth."""
    found = []
    for number in range(12):
        chat = [{"role": "user", "content": f"Add {number} apples" + " and 2 pears" * (number % 4)}]
        text, opening = engine.render(loaded, chat, "Start" if number % 3 == 1 else "")
        request = Request(chat, text, opening, max_new_tokens=12)
        if number % 3 == 0:
            request.decoding, request.seed = SAMPLED, number
        if number == 5:
            request.choices = ("Yes.", "No, never.")
        found.append(request)
    return found


@pytest.mark.slow
def test_two_processes_answer_as_one_does(llama):
    model = ft.model(llama)
    alone, both = HuggingFaceEngine(), HuggingFaceEngine()
    both.use_devices(2)
    loaded, elsewhere = alone.open(model), both.open(model)
    assert elsewhere.module is None
    requests = requests_for(alone, loaded)
    came = {}
    found = both.answer(
        elsewhere, requests, lambda numbers, some: came.update(zip(numbers, some, strict=True))
    )
    assert found == alone.answer(loaded, requests)  # texts, ends, tokens, likelihoods
    assert [came[number] for number in range(len(requests))] == found
    assert both.tally.tokens == alone.tally.tokens and both.tally.answers == 12


@pytest.mark.slow
def test_a_lost_process_is_named_and_its_answers_are_kept(llama, monkeypatch, tmp_path):
    """Then one process answers the rest: the same run, the same answers."""
    monkeypatch.setenv("FTLAB_RUNS", str(tmp_path / "straight"))
    straight = ft.evaluate(llama, prompts=goals(10), **ASKED)
    monkeypatch.setenv("FTLAB_RUNS", str(tmp_path / "lost"))
    append, kept = ft.runs.Run.append, []

    def and_kill(self, file, rows):
        append(self, file, rows)
        if file == "answers.jsonl" and not kept:
            kept.extend(row["key"] for row in rows)
            os.kill(started[1], signal.SIGKILL)

    started = []
    popen = ft._core.processes.subprocess.Popen

    def and_note(*args, **how):
        process = popen(*args, **how)
        started.append(process.pid)
        if len(started) == 2:
            process.send_signal(signal.SIGSTOP)  # so that it never answers
        return process

    with monkeypatch.context() as patch:
        patch.setattr(ft.runs.Run, "append", and_kill)
        patch.setattr("ftlab._core.processes.subprocess.Popen", and_note)
        with raises_code("process_lost") as info:
            ft.evaluate(llama, prompts=goals(10), devices=2, **ASKED)
    assert "process 2 of 2" in str(info.value) and kept
    asked = []
    answer = HuggingFaceEngine.answer
    with monkeypatch.context() as patch:
        patch.setattr(
            HuggingFaceEngine,
            "answer",
            lambda engine, model, requests, *more: (
                asked.extend(requests),
                answer(engine, model, requests, *more),
            )[1],
        )
        again = ft.evaluate(llama, prompts=goals(10), **ASKED)
    assert again.name == straight.name and again.finished
    assert len(asked) == 10 - len(kept) == 5

    def by_key(run):
        return {row["key"]: row for row in run.read("answers.jsonl")}

    assert by_key(again) == by_key(straight)


def test_the_number_of_devices_is_no_part_of_an_evaluation(llama):
    plans = []
    for count in (1, 2):
        settings = {**ASKED, "devices": count}
        plans.append(ft.evals.plan_evaluation(ft.model(llama), goals(2), settings))
    assert plans[0].identity() == plans[1].identity()
    assert [plan.engine.devices for plan in plans] == [1, 2]


def test_engines_of_one_device_refuse_several(llama):
    with raises_code("one_device_only"):
        ft.evaluate(llama, prompts=goals(2), devices=2, engine=ScriptedEngine({}), **ASKED)
    with raises_code("wrong_setting"):
        ft.evaluate(llama, prompts=goals(2), devices=0, **ASKED)


def test_more_devices_than_there_are_is_an_error(monkeypatch):
    import torch

    monkeypatch.setattr(devices, "device", lambda: "cuda")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    devices.check_devices(2)
    with raises_code("too_few_devices"):
        devices.check_devices(3)
    monkeypatch.setattr(devices, "device", lambda: "mps")
    with raises_code("too_few_devices"):
        devices.check_devices(2)
    monkeypatch.setattr(devices, "device", lambda: "cpu")
    devices.check_devices(3)  # processes share the cores and the memory


def test_each_process_takes_its_share_of_the_memory(monkeypatch):
    import torch

    monkeypatch.setattr(devices, "_sharers", 1)
    whole = devices.free_memory(torch.device("cpu"))
    devices.use_device(1, 4)
    assert devices.free_memory(torch.device("cpu")) < whole / 3
