"""What differs between training arms, and nothing else: the rows each learns from, its trainer, its first step.

Sources: SFT; DPO, Rafailov et al. 2023 (arXiv 2305.18290, equation 7); KTO, Ethayarajh et al. 2024 (arXiv 2402.01306,
equations 7 and 8); reward model, Ouyang et al. 2022 (arXiv 2203.02155, equation 1); RLOO, Ahmadian et al. 2024 (arXiv
2402.14740). TRL trains all of them.
"""

from __future__ import annotations

import contextlib
import copy
import inspect
import itertools
import math
import os
import random
from collections.abc import Callable
from dataclasses import dataclass

from ftlab import data as data_module
from ftlab import models as adapters
from ftlab.data import Data, encode_rows, fitted, length, stop_ids
from ftlab.models import Model, device, holds, out_of_memory
from ftlab.models import model as reference
from ftlab.runs import Run, digest
from ftlab.training.config import Training


@dataclass(frozen=True)
class Method:
    """A training arm: names in TRL, its columns, what TRL's configuration adds, and what its first step must log."""

    trainer: str  # TRL's class; its configuration's is the same with Config
    kind: str  # of `data.read`
    columns: tuple[str, ...]
    settings: Callable[[Training], dict]
    # name, value where policy and reference are one, tolerance, as text
    first: tuple[str, float, float, str] | None = None
    fewest: int = 1  # rows of one forward pass


METHODS = {
    "sft": Method("SFT", "chats", ("messages",), lambda c: {"packing": False, "dataset_kwargs": {"skip_prepare_dataset": True}}),
    # Without precomputing, TRL would read the reference from the path in the model's config (trap: it may be older).
    "dpo": Method("DPO", "pairs", ("prompt", "chosen", "rejected"), lambda c: {"beta": c.beta, "precompute_ref_log_probs": True},
                  ("loss", math.log(2), 0.05, "ln 2 = 0.693")),
    "kto": Method("KTO", "kto", ("prompt", "completion", "label"), lambda c: {"beta": c.beta, "precompute_ref_log_probs": True},
                  ("loss", 0.5, 0.05, "0.5"), fewest=2),
    "reward": Method("Reward", "pairs", ("prompt", "chosen", "rejected"), lambda c: {}),
    "rloo": Method("RLOO", "prompts", ("prompt",), lambda c: {"beta": c.beta, "num_generations": c.num_generations, "disable_dropout": True,
                   "max_completion_length": c.max_completion_length}, ("kl", 0.0, 0.05, "0")),
}  # fmt: skip


def read(method: str, source, *, rows: int | None = None, seed: int = 0) -> Data:
    """-> the rows that a method learns from. Raises what `data.read` raises.

    kto: `prompt`, `completion`, `label` (true: desirable), or pairs, each of which gives two rows. rloo: prompts, or pairs
    or chats whose answers are left out.
    """
    if method != "rloo":
        return data_module.read(source, kind=METHODS[method].kind, rows=rows, seed=seed)
    if isinstance(source, str) and source.startswith("organism:"):
        kind = "pairs" if source == "organism:preferences" else "chats"
        made = data_module.read(source, kind=kind, rows=rows, seed=seed)
        source = Data(made.name, tuple({"messages": r.get("prompt") or r["messages"]} for r in made.rows))
    asked = data_module.read_prompts(source)
    return Data(asked.name, tuple({"prompt": r["messages"]} for r in asked.rows[:rows]))


def callable_id(function) -> str:
    """-> name of a function, hash of its source and of its attribute `identity` where it has one, for a run's identity.

    Raises ValueError where it has neither.
    """
    name, own = getattr(function, "__qualname__", type(function).__qualname__), getattr(function, "identity", None)
    try:
        source = inspect.getsource(function if hasattr(function, "__code__") else type(function))
    except (OSError, TypeError):
        if own is None:
            raise ValueError(f"{name} has no source to tell runs with it from others; write it with def") from None
        source = ""
    return f"{name}:{digest([source, own])}"


def opened(parent: Model, config: Training):
    """-> the torch model to be trained, in training mode: the parent's weights, with a new adapter where one is asked.

    A reward model is the parent's body under a new head of one number (`AutoModelForSequenceClassification`).
    """
    from transformers import set_seed

    frozen = bool(config.adapter) and config.method != "reward"  # its body is copied under the new head in full
    model = parent.load(**({"four_bit": True} if config.qlora else {"training": True, "frozen": frozen}))
    set_seed(config.seed)  # of what is new, an adapter or a head; loading may draw too
    if config.method == "reward":
        from transformers import AutoModelForSequenceClassification

        shape = copy.deepcopy(model.config)
        shape.num_labels = 1
        scores = AutoModelForSequenceClassification.from_config(shape).to(model.device)
        scores.base_model.load_state_dict(model.base_model.state_dict())
        model = scores
    if config.adapter:
        model = adapters.adapt(model, config.adapter, config.lora_rank)
    return model.train()


def scorer(reward):
    """-> (what TRL calls for rewards, its tokenizer or None, its identity) of a reward run, a folder, or a function."""
    if callable(reward) and not isinstance(reward, Run):
        return lambda: (reward, None), callable_id(reward)
    if reward is None:
        raise ValueError("RLOO needs a reward: a run of ftlab.reward, its folder, or a function")
    judge = reference(reward)
    if not scores(judge):
        raise ValueError(f"{judge.name} is no reward model; give a run of ftlab.reward, its folder, or a function")

    def load():
        import torch
        from transformers import AutoModelForSequenceClassification

        model = AutoModelForSequenceClassification.from_pretrained(
            judge.path, dtype=torch.float32, use_safetensors=True, trust_remote_code=False
        )
        return model.to(device()), judge.tokenizer()

    return load, judge.hash


def scores(model: Model) -> bool:
    """-> whether the folder holds a reward model, which gives a number and no answers."""
    return any("ForSequenceClassification" in a for a in model.config.get("architectures") or ())


def dataset(data: Data, tokenizer, config: Training, most: int) -> list[dict]:
    """-> rows for TRL, each with its number in `data` (`row`, from 1), after the same checks for every method.

    Order of turns, special tokens in the text, an end of turn, at most `most` tokens: a DataError names every row.
    """
    sides = {"kto": ["completion"], "rloo": [None]}.get(config.method, ["chosen", "rejected"])
    if config.method == "sft":
        return [{**r, "row": i} for i, r in enumerate(encode_rows(data, tokenizer, max_length=most), 1)]
    for side in sides:
        room = most - (config.max_completion_length if side is None else 0)
        name = f"{data.name} ({side})" if len(sides) > 1 else data.name
        answer = [{"role": "assistant", "content": "."}]  # the shortest, where the model is to find its own
        whole = tuple({"messages": [*r["prompt"], *(r[side] if side else answer)]} for r in data.rows)
        encode_rows(Data(name, whole), tokenizer, max_length=room)
    rows = [{**{k: r[k] for k in METHODS[config.method].columns}, "row": i} for i, r in enumerate(data.rows, 1)]
    if config.method == "kto":  # TRL keeps the order, whose neighbours give the reference point
        random.Random(f"kto {config.seed}").shuffle(rows)
    return rows


def together(model, config: Training, tokens: list[int], micro: int) -> bool:
    """-> whether SFT on rows of so many tokens is cheaper padding-free, the rows of a forward pass one behind the other: no
    padding, but attention between rows too, masked (flash attention skips it). Counted as in `preflight`, never timed: a run
    that is resumed decides the same. Never with dropout, whose draws would differ."""
    text, how = model.config.get_text_config(), model.config._attn_implementation or ""
    dropout = any(v for k, v in text.to_dict().items() if "drop" in k and isinstance(v, float))
    if config.method != "sft" or dropout or not ("flash" in how or how == "sdpa"):
        return False
    rows = random.Random("padding").sample(tokens, len(tokens))
    parts = [rows[i : i + micro] for i in range(0, len(rows), micro)]
    one = (4 if config.adapter else 6) * model.num_parameters(exclude_embeddings=True)
    pair = 12 * text.num_hidden_layers * text.hidden_size
    padded = sum(len(p) * max(p) * (one + pair * max(p)) for p in parts)
    return padded > sum(sum(p) * one + pair * (sum(n * n for n in p) if "flash" in how else sum(p) ** 2) for p in parts)


def apart(model, rows: list[list[int]]) -> bool:
    """-> whether the model reads rows of tokens one behind the other as each alone: not where a state runs on (Mamba)."""
    import torch
    from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

    made = DataCollatorForLanguageModeling(pad_token_id=0, padding_free=True)([{"input_ids": ids} for ids in rows])
    body = getattr(model, "get_base_model", lambda: model)().base_model.eval()
    try:
        with torch.no_grad():
            row = {k: v.to(model.device) if hasattr(v, "to") else v for k, v in made.items() if k != "labels"}
            found = body(**row, use_cache=False).last_hidden_state[0]
            alone = [body(input_ids=torch.tensor([ids], device=model.device), use_cache=False) for ids in rows]
        wanted = torch.cat([a.last_hidden_state[0] for a in alone])
        return bool((found - wanted).norm() <= (1e-3 if model.dtype == torch.float32 else 2e-2) * wanted.norm())
    except (AttributeError, TypeError, ValueError, RuntimeError) as e:  # it takes no such arguments
        if out_of_memory(e):
            raise
        return False
    finally:
        body.train()


def trainer(
    run, parent: Model, model, tokenizer, data, config: Training, micro: int, valid=None, reward=None, recomputed=None
):
    """-> TRL's trainer on checked rows, with `micro` rows a forward pass; what the method adds is in `METHODS`. Activations are
    `recomputed`; None: on a GPU that cannot hold them.

    Rows that are too long are treated first (`config.on_too_long`). `valid` is data of its own; where `config.valid` is a
    share, those rows of `data` are held out by the seed (`data.held_out`).
    """
    import trl
    from datasets import Dataset, disable_progress_bars
    from transformers import GenerationConfig, PrinterCallback

    disable_progress_bars()
    method, cuda = METHODS[config.method], device() == "cuda"
    room = getattr(model.config.get_text_config(), "max_position_embeddings", None) or config.max_length
    most = min(config.max_length, room)  # tokens
    if config.method != "rloo":
        data, valid = (
            d and fitted(d, tokenizer, max_length=most, on_too_long=config.on_too_long) for d in (data, valid)
        )
    rows, held = dataset(data, tokenizer, config, most), None
    if valid is not None:
        held = dataset(valid, tokenizer, config, most)
    elif config.valid:
        out = data_module.held_out(data, config.valid, config.seed)
        rows, held = ([r for r in rows if (r["row"] - 1 in out) == inside] for inside in (False, True))
    settings, tokens = method.settings(config), [len(r["input_ids"]) for r in rows if "input_ids" in r]
    if recomputed is None and (recomputed := cuda) and config.method != "rloo":  # which samples too
        longest = max(tokens or (2 * length(r, tokenizer) for r in data.rows))  # both sides of a pair
        recomputed = not holds(model, config.adapter or "full", config.lora_rank, micro * longest)
    if "precompute_ref_log_probs" in settings:  # without gradients more rows fit than in training
        settings["precompute_ref_batch_size"] = min(config.batch_size, 4 * micro)
    if together(
        model, config, tokens, config.batch_size // config.accumulation
    ):  # also where memory made `micro` smaller
        settings["padding_free"] = apart(model, sorted((r["input_ids"] for r in rows), key=len)[-2:])
    args = getattr(trl, f"{method.trainer}Config")(
        output_dir=str(run.path / "checkpoints"), seed=config.seed, data_seed=config.seed,
        per_device_train_batch_size=micro, gradient_accumulation_steps=config.batch_size // micro,
        per_device_eval_batch_size=micro, prediction_loss_only=True,
        num_train_epochs=config.epochs, max_steps=config.steps or -1, learning_rate=config.learning_rate,
        lr_scheduler_type={"constant": "constant_with_warmup"}.get(config.schedule, config.schedule), warmup_steps=config.warmup_steps,
        logging_steps=1, logging_first_step=True, logging_nan_inf_filter=False, save_strategy="no", report_to=[],
        disable_tqdm=True, use_cpu=device() == "cpu", bf16=cuda, dataloader_pin_memory=cuda,
        activation_checkpointing=recomputed, restore_callback_states_from_checkpoint=False,
        use_cache=bool(getattr(model.config, "use_cache", True)),  # TRL never trains with it; else it would be saved as off
        **({} if config.method == "rloo" else {"max_length": None}), **settings,
    )  # fmt: skip
    extra = {"eval_dataset": Dataset.from_list(held)} if held else {}
    if config.method == "rloo":
        inner = model.get_base_model() if config.adapter else model
        ends = inner.generation_config.eos_token_id
        ends = {*stop_ids(tokenizer), *([ends] if isinstance(ends, int) else ends or [])}
        inner.generation_config = GenerationConfig(  # penalties of the model's own would not be the policy
            eos_token_id=sorted(ends), bos_token_id=tokenizer.bos_token_id, pad_token_id=tokenizer.pad_token_id
        )
        if parent.adapter and not config.adapter:  # TRL reads the reference from a path: what is merged has none
            inner.config._name_or_path = str(run.path / "checkpoints" / "reference")
            inner.save_pretrained(inner.config._name_or_path)
        extra |= dict(zip(("reward_funcs", "reward_processing_classes"), reward(), strict=True))
    with _no_bar():
        made = getattr(trl, f"{method.trainer}Trainer")(
            model=model, args=args, train_dataset=Dataset.from_list(rows), processing_class=tokenizer, **extra
        )
    if config.qlora:
        adapters.full_precision(made.model)
    made.remove_callback(PrinterCallback)
    return made


def rows_of(trainer, batches: list) -> list[int]:
    """-> numbers (from 1) of the rows in what the trainer was given for a step, found by their tokens."""
    if isinstance(batches[0], list):  # RLOO is given rows as they are
        return sorted({row["row"] for batch in batches for row in batch})
    seen = set()
    for b in batches:
        ids = b["input_ids"].tolist()
        if "attention_mask" in b:
            seen |= {tuple(itertools.compress(*row)) for row in zip(ids, b["attention_mask"].tolist(), strict=True)}
        else:  # padding-free: where each row begins, and the end
            seen |= {tuple(ids[0][i:j]) for i, j in itertools.pairwise(b["cu_seq_lens_q"].tolist())}
    return sorted(r["row"] for r in trainer.train_dataset if any(tuple(ids) in seen for ids in _sequences(r)))


def _sequences(row: dict):
    for side in ("input_ids", "completion_ids", "chosen_ids", "rejected_ids"):
        if side in row:
            yield [*row.get("prompt_ids", ()), *row[side]]


@contextlib.contextmanager
def _no_bar():
    """TRL's bar over the reference's log-probabilities is switched off by the environment alone."""
    before = os.environ.get("TQDM_DISABLE")
    os.environ["TQDM_DISABLE"] = "1"
    try:
        yield
    finally:
        del os.environ["TQDM_DISABLE"]
        if before is not None:
            os.environ["TQDM_DISABLE"] = before
