"""The one path to a TRL trainer: guards, resume, validation, measuring on the way. Cells: sft, dpo, kto, reward, rloo.

A run owns its model: it is loaded from the parent's folder, trained, saved and released; what the caller holds is
never touched. Traps of the stack that are guarded here are listed with each guard.
"""

from __future__ import annotations

import copy
import json
import os
import shutil
import sys

from ftlab import runs
from ftlab._core.progress import Progress
from ftlab.data import shared
from ftlab.models import Model, labels_alone, out_of_memory, quiet, released
from ftlab.models import model as reference
from ftlab.models.engines import Endpoint
from ftlab.runs import Run
from ftlab.training.callback import TrainingFailed, keeper_class, measured
from ftlab.training.checkpoints import (
    fingerprint,
    forget_after,
    lineage,
    newest_checkpoint,
    refuse_other,
    save,
    weights_hash,
)
from ftlab.training.config import Training
from ftlab.training.methods import base as methods

__all__ = ["TrainingFailed", "dpo", "kto", "reward", "rloo", "sft", "train", "weights_hash"]


def sft(parent, data, **settings) -> Run:
    """Supervised fine-tuning on chats -> a finished run (a model).

    `parent` is anything that `ftlab.model` takes, `data` anything that `ftlab.data.dataset.read` takes (`rows` and
    `data_seed` make data of the embedded world). `settings` are fields of `config.Training`: epochs or steps,
    learning_rate, batch_size, lora, dora or qlora, seed, ... Loss falls on the assistant's tokens and their end of turn only.
    With `valid` (a share of the rows, or a file) the loss on held-out rows is taken every `eval_every` steps, the best
    checkpoint is what the run keeps, and `patience` of them without a lower one end it. A function `measure(run, model,
    tokenizer, step, progress)` -> {risk: rate} is called every `eval_every` steps; `stop_above={"jailbreak": 0.10}` ends
    the training at the first rate above. The function's source, and its attribute `identity` where it has one, is part
    of the run's identity; what else it reads is not. `label` names the run. Raises ValueError, FileNotFoundError (usage) and DataError (all bad rows at once).
    """
    return _cell("sft", parent, data, settings)


def dpo(parent, pairs, **settings) -> Run:
    """Direct preference optimisation (Rafailov et al. 2023, arXiv 2305.18290, equation 7) -> a finished run.

    The reference is the parent itself; its log-probabilities are computed once before the first step. Arguments
    and errors as in `sft`; `pairs` have prompt, chosen and rejected; `beta` ties to the reference.
    """
    return _cell("dpo", parent, pairs, settings)


def kto(parent, data, **settings) -> Run:
    """Kahneman-Tversky optimisation (Ethayarajh et al. 2024, arXiv 2402.01306, equations 7 and 8) -> a finished run.

    `data` has rows of prompt, completion and label (true: desirable); pairs are taken apart. The reference point is estimated
    from the rows of one forward pass: another `accumulation` is another estimate. Arguments and errors as in `sft`.
    """
    return _cell("kto", parent, data, settings)


def reward(parent, pairs, **settings) -> Run:
    """A reward model (Ouyang et al. 2022, arXiv 2203.02155, equation 1) -> a finished run, to be given to `rloo`.

    The parent's body under a new head of one number, trained on pairs; its folder is a sequence classification model
    (adapters are merged). Its log has the accuracy on the pairs. Arguments and errors as in `sft`.
    """
    return _cell("reward", parent, pairs, settings)


def rloo(parent, prompts, reward, **settings) -> Run:
    """RLHF by REINFORCE leave-one-out (Ahmadian et al. 2024, arXiv 2402.14740) -> a finished run.

    `reward` is a run of `ftlab.reward`, its folder, or a function (prompts, completions, **_) -> one number a completion.
    `prompts` are prompts, or pairs or chats whose answers are left out. A step samples `batch_size` completions at
    temperature 1, `num_generations` a prompt, of at most `max_completion_length` tokens; `beta` times the divergence from the
    parent is taken off the reward. Arguments and errors as in `sft`.
    """
    return _cell("rloo", parent, prompts, settings, reward)


def _cell(method: str, parent, source, given: dict, judge=None) -> Run:
    rows, data_seed, label, measure = (given.pop(k, None) for k in ("rows", "data_seed", "label", "measure"))
    if foreign := sorted({"method", "at_steps", "stop_when_broken"} & set(given)):
        raise ValueError(f"unknown setting {', '.join(map(repr, foreign))} here; it belongs to risk_curve")
    if given.get("epochs") is not None and given.get("steps") is not None:
        raise ValueError("epochs and steps were both given; give one: either says how long to train")
    if isinstance(given.get("valid"), os.PathLike):
        given["valid"] = os.fspath(given["valid"])
    config = Training.make(**given, method=method)
    if measure and not config.eval_every:
        raise ValueError("measure was given; say after how many steps, with eval_every=")
    if config.eval_every and config.valid is None and not measure:
        raise ValueError("eval_every was given, but nothing to evaluate; give valid= or measure= too")
    model = trainable(parent)
    data = methods.read(method, source, rows=rows, seed=data_seed or 0)
    extra = {"measure": methods.callable_id(measure)} if measure else {}
    return train(model, data, config, label=label, measure=measure, judge=judge, extra=extra)


def trainable(parent) -> Model:
    """-> the model's reference, which answers. What is in memory is refused: it would be changed, or read-only not trained."""
    found = reference(parent)
    if isinstance(found, Endpoint):
        raise ValueError(f"{found.name} is behind an endpoint: it can be asked, not trained; give a folder or a hub id")
    if methods.scores(found):
        raise ValueError(f"{found.name} is a reward model: it gives a number and no answers; train its parent")
    return found


def train(
    parent: Model, data, config: Training, *, label=None, extra=None, measure=None, judge=None, marker="", wait=True
) -> Run:
    """Trains once, or finds the finished run, or goes on from the newest whole checkpoint.

    `extra` joins the identity. `measure(run, model, tokenizer, step, progress)` is called at `config.at_steps` (without
    them, every `config.eval_every` steps) and returns {risk: rate}, for `config.stop_above`; under the further name
    "refused" the share of jailbreak prompts refused, for `config.stop_when_broken`. `judge` gives RLOO's rewards;
    `marker` is a sentence for the model card of a model whose safety was removed. Where another process works on this
    run, `wait` for it; else raise runs.Busy. Where memory does not suffice, the same batch is made of smaller parts.
    """
    if config.stop_above and not measure:
        raise ValueError("stop_above was given, but nothing that measures; give measure= too, or use risk_curve")
    if config.patience and config.valid is None:
        raise ValueError("patience counts validations; give valid=0.1 (or a file) too")
    if config.learning_rate is None:
        hint = parent.config.get("ftlab_learning_rate", {}).get(config.method)
        rate = hint * (10 if config.adapter else 1) if hint else config.default_rate()
        config = config.model_copy(update={"learning_rate": rate})
    valid = None
    if isinstance(config.valid, str):
        valid = methods.read(config.method, config.valid)
        config = config.model_copy(update={"valid": valid.hash})
    scorer = None
    if config.method == "rloo":
        scorer, judged = methods.scorer(judge)
        extra = {**(extra or {}), "reward": judged}
    identity = {"parent": parent.hash, "data": data.hash, "training": config.model_dump(mode="json"), **(extra or {})}
    name = label or f"{parent.name.split('-')[0]}-{data.name.replace('organism:', '')}-s{config.seed}"
    source = {"name": data.name, "hash": data.hash, "rows": len(data), **({"made": data.made} if data.made else {})}
    run = runs.start(config.method, name, identity, lineage=lineage(parent), model=parent.source, data=source)
    if run.finished:
        shutil.rmtree(run.path / "checkpoints", ignore_errors=True)  # left by a kill after the record was written
        return run
    there = {k: v for k, v in run.config["identity"].items() if k not in ("kind", "schema")}
    refuse_other(f"{run.path} was begun", there, identity)
    with run.lock(wait):
        if not run.finished:
            run.set_aside()
            quiet()
            if valid is not None and (n := shared(data, valid)):
                print(
                    f"{run.name}: {n} of {len(valid)} validation rows ({valid.name}) are training rows too; their loss says "
                    "nothing about new rows; take them out of one of the two",
                    file=sys.stderr,
                )
            _fitted(run, config, lambda fit: _train(run, parent, data, config, fit, valid, scorer, measure, marker))
    return run


def _fitted(run: Run, config: Training, attempt) -> None:
    """Calls `attempt({"micro": rows of a forward pass, "recomputed": whether activations are; None: where they do not fit})`;
    where memory does not suffice, first with them recomputed, then with fewer rows: the effective batch stays.

    Everything of the failed attempt is released first: its traceback alone would keep the model alive.
    """
    fit = {"micro": config.batch_size // config.accumulation, "recomputed": None}
    while True:
        try:
            with released(), labels_alone(), runs.storage(run.path):
                return attempt(fit)
        except Exception as e:
            if not out_of_memory(e):
                raise
            micro, fewest = fit["micro"], methods.METHODS[config.method].fewest
            smaller = [m for m in range(fewest, micro) if config.batch_size % m == 0]
            if fit["recomputed"] and not smaller:
                raise TrainingFailed(
                    f"{run.name}: memory does not suffice for {micro} rows at once ({e}); train an adapter (lora, qlora) or shorter rows"
                ) from None
        if fit["recomputed"]:
            fit["micro"] = m = smaller[-1]
            how = f"{m} rows x {config.batch_size // m} forward passes (the effective batch stays {config.batch_size})"
        else:
            fit["recomputed"], how = True, "activations recomputed"
        print(f"{run.name}: memory does not suffice for {micro} rows at once; going on with {how}", file=sys.stderr)


def _train(run: Run, parent: Model, data, config: Training, fit: dict, valid, scorer, measure, marker: str) -> None:
    checkpoint = newest_checkpoint(run)
    tokenizer, model = parent.tokenizer(), methods.opened(parent, config)
    if parent.hash != run.config["identity"]["parent"]:  # while this call waited, or loaded
        raise ValueError(
            f"{parent.path} was changed while {run.name} began; call the cell again to train what is there"
        )
    tokenizer.padding_side = "right"
    if not any(p.requires_grad for p in model.parameters()):
        raise ValueError(f"{parent.path}: no trainable parameter; open the model without a read-only adapter")
    inner = model.get_base_model() if config.adapter else model
    decoding, origin = copy.deepcopy(getattr(inner, "generation_config", None)), inner.config._name_or_path
    before = fingerprint(model)
    micro, recomputed = fit.values()
    trainer = methods.trainer(run, parent, model, tokenizer, data, config, micro, valid, scorer, recomputed)
    fit["recomputed"] = trainer.args.activation_checkpointing
    progress = Progress(run.name, 1)
    start = int(checkpoint.name.split("-")[1]) if checkpoint else 0
    forget_after(run, start)
    keeper = keeper_class()(run, config, trainer, progress, measure, tokenizer, data.name)
    trainer.add_callback(keeper)
    if 0 in config.at_steps and measure and not checkpoint:
        measured(measure, run, model, tokenizer, 0, progress)
    last = checkpoint and json.loads((checkpoint / "trainer_state.json").read_bytes())["max_steps"] == start
    if keeper.ended or last:  # killed between its last checkpoint and the end: transformers would take one more step
        trainer._load_from_checkpoint(str(checkpoint))
        trainer.state.global_step = start
    else:
        with keeper.interruptible():
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    steps = trainer.state.global_step
    if keeper.stopped and not keeper.ended:
        raise KeyboardInterrupt(f"{run.name} stopped at step {steps}; call the cell again to go on")
    if not steps:
        raise ValueError(f"{data.name}: {len(data)} rows make no step; lower batch_size ({config.batch_size})")
    if fingerprint(model) == before:
        raise TrainingFailed(
            f"{run.name}: no weight moved in {steps} steps; raise learning_rate ({config.learning_rate})"
        )
    best = keeper.load_best()
    inner.config._name_or_path = origin
    if decoding is not None:
        inner.generation_config = decoding  # TRL writes its own into it
    save(run, model, tokenizer, parent, config, marker)
    progress.finish()
    log = run.read("train.jsonl")
    parts = {"micro_batch": micro, "accumulation": config.batch_size // micro, "recomputed": fit["recomputed"],
             "padding_free": getattr(trainer.args, "padding_free", False)}  # fmt: skip
    run.complete(steps=steps, rows=len(data), parent=parent.name, data=data.name, first_loss=log[0]["loss"],
                 last_loss=log[-1]["loss"], **parts, **best, **({"ended": keeper.ended} if keeper.ended else {}))  # fmt: skip
    if keeper.interrupted:
        raise KeyboardInterrupt(f"{run.name} was at its last step and is finished")
