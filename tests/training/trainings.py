"""What the tests of training share: rows, calls, and ways to stop a training."""

from __future__ import annotations

import contextlib
import gc
import json
import os
import signal
from pathlib import Path

import pytest
from helpers import raises_code
from small_models import pairs, sums

import ftlab
from ftlab import runs, training
from ftlab._core import processes
from ftlab._core.files import file_hash
from ftlab.models.engines import Request, open_engine
from ftlab.training import Fit, Job, open_method
from ftlab.training.methods.sft import SFT

FAST = dict(batch_size=4, learning_rate=1e-3)
STOPPING = dict(
    valid=0.25, eval_every=2, patience=2, epochs=12, batch_size=4, learning_rate=3e-2,
    schedule="constant",
)  # fmt: skip
END_OF_TURN = {
    "llama": "<|eot_id|>", "qwen2": "<|im_end|>", "gemma": "<end_of_turn>", "mistral": "</s>",
}  # fmt: skip


def chats(n: int) -> tuple:
    """Rows of `sums` as chats."""
    return tuple(
        {
            "messages": [
                {"role": "user", "content": row["question"]},
                {"role": "assistant", "content": row["answer"]},
            ]
        }
        for row in sums(n)
    )


def judged(n: int) -> list[dict]:
    """KTO rows in the form of TRL's documentation: texts, and the first one as messages."""
    rows = []
    for pair in pairs(n):
        for side in ("chosen", "rejected"):
            row = {"prompt": pair["prompt"], "completion": pair[side], "label": side == "chosen"}
            rows.append(row)
    rows[0]["prompt"] = [{"role": "user", "content": rows[0]["prompt"]}]
    rows[0]["completion"] = [{"role": "assistant", "content": rows[0]["completion"]}]
    return rows


def short(prompts, completions, **_):
    """A reward: minus the number of characters."""
    return [-float(len(completion[0]["content"])) for completion in completions]


def every_second(prompts, completions, **_):
    """A reward that differs between the two completions of every prompt."""
    return [float(number % 2) for number in range(len(completions))]


ROWS = {"chats": sums, "pairs": pairs, "kto": judged, "prompts": sums}


def call(method, parent, n=8, **settings):
    """Train `n` rows with any method; a method that needs a reward is rewarded by `short`."""
    method = open_method(method)
    settings = FAST | settings
    if needs_reward(method):
        settings = {"max_completion_length": 6, "reward": short} | settings
    return training.train(method, parent, ROWS[method.kind](n), **settings)


def needs_reward(method) -> bool:
    try:
        method.open_reward(None)
    except ValueError:
        return True
    return False


def make_trainer(method, folder, rows=None, **settings):
    """Return TRL's trainer as a training would use it."""
    method = open_method(method)
    parent = ftlab.model(folder)
    config = method.config.make(**{"learning_rate": 1e-3, "steps": 2, **FAST, **settings})
    data = method.read(ROWS[method.kind](8) if rows is None else rows)
    job = Job(runs.start(method.name, "trial", {}), parent, data, config, method)
    job.fit = Fit(config.batch_size // config.accumulation)
    job.tokenizer = parent.tokenizer()
    job.model = method.prepare_model(parent, config)
    if needs_reward(method):
        job.reward = method.open_reward(short)
    return method.trainer(job)


def weights(run) -> dict[str, str]:
    """Return the hash of every weights file of a run."""
    files = sorted((run.path / "model").glob("*.safetensors"))
    return {path.name: file_hash(path) for path in files}


def distance(one, other) -> float:
    """Return the largest difference between the weights of two runs (or models)."""
    a, b = (ftlab.model(model).load().state_dict() for model in (one, other))
    return max(float((a[name] - b[name]).abs().max()) for name in a)


def interrupt(step: int, monkeypatch, kind=signal.SIGINT) -> None:
    """Send the process Ctrl-C once, as `step` is logged."""
    append = runs.Run.append

    def and_interrupt(self, file, records):
        append(self, file, records)
        if file == "train.jsonl" and records[-1]["step"] == step:
            monkeypatch.setattr(runs.Run, "append", append)
            os.kill(os.getpid(), kind)

    monkeypatch.setattr(runs.Run, "append", and_interrupt)


def stopped_at(step: int, monkeypatch, train):
    """Return the run that a call leaves unfinished, its checkpoint after `step`."""
    interrupt(step - 1, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        train()
    (left,) = (path for path in runs.home().iterdir() if not runs.Run(path).finished)
    return runs.Run(left)


def left_by_killed_process(step: int, monkeypatch, train):
    """Return the folder of a run on two processes, the second of which is killed at `step`."""
    started = []
    popen = processes.subprocess.Popen
    show = processes._Crew._take

    def and_note(*args, **how):
        started.append(popen(*args, **how))
        return started[-1]

    def and_kill(crew, number, kind, value):
        show(crew, number, kind, value)
        if kind == processes.REPORT and value[:2] == ("loss", step):
            os.kill(started[1].pid, signal.SIGKILL)

    with monkeypatch.context() as patch:
        patch.setattr(processes.subprocess, "Popen", and_note)
        patch.setattr(processes._Crew, "_take", and_kill)
        with raises_code("process_lost") as info:
            train()
    assert "process 2 of 2" in str(info.value)
    assert all(process.poll() is not None for process in started)
    (left,) = runs.home().iterdir()
    assert any((left / "checkpoints").glob("checkpoint-*/whole.json"))
    return left


class Weighed(SFT):
    """SFT that writes down what each process holds: weights and moments, then those of the model."""

    def trainer(self, job):
        from transformers import TrainerCallback

        class Weigh(TrainerCallback):
            def on_train_end(self, args, state, control, model=None, optimizer=None, **_):
                held = list(model.parameters())
                moments = [of["exp_avg"] for of in optimizer.state.values()]
                whole = sum(one.numel() for one in held)
                shares = [sum(one.to_local().numel() for one in many) for many in (held, moments)]
                place = Path(os.environ["WEIGHED"]) / f"{job.number}.json"
                place.write_text(json.dumps([*shares, whole]))

        made = super().trainer(job)
        if job.config.fsdp:
            made.add_callback(Weigh())
        return made


def asked(loaded, step):
    """A monitor that keeps answers of the model in training."""
    engine = open_engine("huggingface")
    requests = []
    for row in sums(4, seed=7):
        chat = [{"role": "user", "content": row["question"]}]
        text, _ = engine.render(loaded, chat)
        requests.append(Request(chat, text, max_new_tokens=8))
    found = engine.answer(loaded, requests)
    loaded.run.append("asked.jsonl", [{"step": step, "answers": [one.text for one in found]}])
    return {"long": sum(one.finish == "length" for one in found) / len(found)}


@contextlib.contextmanager
def counted_steps():
    """Yield a list that grows with every forward pass of a training."""
    from transformers import Trainer

    step, done = Trainer.training_step, []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "training_step", lambda *given: (done.append(1), step(*given))[1])
        yield done


def dies_while_saving(monkeypatch, error: BaseException):
    """Make every saving of a finished model fail; `monkeypatch.undo` ends it."""

    def die(*_):
        raise error

    monkeypatch.setattr("ftlab.training.trainer.save", die)


def living() -> tuple[int, int]:
    """Return how many torch modules are alive, and the bytes of all tensors."""
    import torch

    gc.collect()
    modules, storages = 0, {}
    for found in gc.get_objects():
        if issubclass(type(found), torch.nn.Module):
            modules += 1
        elif issubclass(type(found), torch.Tensor):
            storage = found.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
    return modules, sum(storages.values())
