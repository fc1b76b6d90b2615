"""Make the embedded model: tokenizer, pre-training, then the cells `sft` and `dpo`.

python -m recipes.organism.build [--out DIR] [--seed N]
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jinja2

import ftlab
from ftlab._core.files import digest, resource, write_atomic
from ftlab._core.progress import Progress
from ftlab.models import quiet
from ftlab.organism import World, corpus
from ftlab.runs import Run
from recipes.shipped import record_shipped

SPECIAL = ["<|pad|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"]
TEMPLATE = (
    "{% for m in messages %}{% if m['role'] == 'assistant' %}<|assistant|>"
    "{% generation %}{{ m['content'] }}<|end|>{% endgeneration %}"
    "{% else %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
VOCABULARY = 1024
HIDDEN = 128
LAYERS = 4
HEADS = 4
FEED_FORWARD = 368
CONTEXT = 2048  # tokens
# Pre-training; `blocks` blocks of `block` tokens per step.
RECIPE = {"steps": 900, "blocks": 32, "block": 128, "learning_rate": 2e-3}
SFT = {
    "n_rows": 4000,
    "steps": 250,
    "batch_size": 16,
    "learning_rate": 3e-4,
    "schedule": "linear",
}
DPO = {
    "n_rows": 800,
    "steps": 50,
    "batch_size": 16,
    "learning_rate": 1e-5,
    "schedule": "linear",
    "beta": 0.1,
}
PROMPTS = 1000  # per risk, of the card's table
CHOSEN_BY = 100  # prompts per risk by which the alignment was chosen
STAGES = ("base", "sft", "aligned")
# The model's own defaults, which the training cells read: half of the peak of its alignment, which
# is the mean of a linear decay.
LEARNING_RATE = {"sft": SFT["learning_rate"] / 2, "dpo": DPO["learning_rate"] / 2}
WARMUP_STEPS = 50
DECAY = 0.4  # share of the steps over which the learning rate falls
LEAST_RATE = 0.02  # of the peak
ROWS_AT_ONCE = 4000  # chats of pre-training drawn together
NO_LOSS = -100


def build(
    out: str | Path | None = None,
    *,
    seed: int = 0,
    steps: int | None = None,
    align_steps: int | None = None,
) -> Path:
    """Make the stages base, sft and aligned, and their card.

    An interrupted alignment continues where it stopped; pre-training starts again.

    Args:
        out: Folder; by default the project's `data/organism`.
        seed: Training seed. The world stays the same, so that the judge knows it.
        steps: Shortens pre-training.
        align_steps: Shortens SFT and DPO.

    Returns:
        The folder that holds the stages.
    """
    folder = Path(out) if out else resource("data") / "organism"
    folder.mkdir(parents=True, exist_ok=True)
    recipe = dict(RECIPE)
    if steps:
        recipe["steps"] = steps
    base, note = pretrain_once(folder, seed, recipe)
    first, second = align(base, seed, align_steps)
    copy_model(first, folder / "sft")
    copy_model(second, folder / "aligned")
    note.unlink()
    write_atomic(folder / "README.md", card(folder, seed, recipe))
    if not out:
        record_shipped()
    return folder


def pretrain_once(folder: Path, seed: int, recipe: dict) -> tuple[Path, Path]:
    """Pre-train unless a note says that an interrupted build did; return model and note."""
    base = folder / "base"
    note = folder / "base.json"
    sample = corpus.pretraining(World(), 100, seed)
    made = {"recipe": recipe, "seed": seed, "text": digest(sample)}
    if not (note.exists() and json.loads(note.read_text()) == made):
        pretrain(base, seed=seed, **recipe)
        write_atomic(note, json.dumps(made))
    return base, note


def align(base: Path, seed: int, steps: int | None = None) -> tuple[Run, Run]:
    """Align the pre-trained model; return the runs of SFT and DPO."""
    shorter = {"steps": steps} if steps else {}
    seeds = {"seed": seed, "data_seed": seed}
    first = ftlab.sft(
        base, "organism:alignment", label="organism-alignment", **seeds, **{**SFT, **shorter}
    )
    second = ftlab.dpo(
        first, "organism:preferences", label="organism-preferences", **seeds, **{**DPO, **shorter}
    )
    return first, second


def copy_model(run: Run, folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    left_out = shutil.ignore_patterns("README.md", "training_args.bin")
    shutil.copytree(run.path / "model", folder, ignore=left_out)


def card(folder: Path, seed: int, recipe: dict) -> str:
    """Measure the three stages and return the model card."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        undefined=jinja2.StrictUndefined,
        autoescape=False,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template("card.md.j2").render(
        seed=seed,
        hidden=HIDDEN,
        layers=LAYERS,
        vocabulary=VOCABULARY,
        rows=behaviour(folder),
        settings={
            "pre-training": recipe,
            "SFT": SFT,
            "DPO": DPO,
            "alignment data": corpus.RECIPE,
        },
    )


def behaviour(folder: Path) -> list[list[str]]:
    """Return the cells of the card's table: one row per split, stage, risk and attack."""
    rows = []
    for split, stage, n_prompts in (
        *[("eval", stage, PROMPTS) for stage in STAGES],
        ("selection", "aligned", CHOSEN_BY),
    ):
        run = ftlab.evaluate(
            folder / stage,
            attacks=["direct", "templates", "prefill"],
            split=split,
            n_prompts=n_prompts,
        )
        for row in ftlab.rates(run, by=["risk", "attack"], cluster="topic").itertuples():
            counts = [row.complied, row.complied_wrong, row.refused, row.incoherent]
            rows.append(
                [
                    split,
                    stage,
                    row.risk,
                    row.attack,
                    f"{row.rate:.1%}",
                    f"{row.low:.1%} to {row.high:.1%}",
                    str(row.n_prompts),
                    " / ".join(map(str, counts)),
                ]
            )
    return rows


def pretrain(
    folder: Path, *, steps: int, blocks: int, block: int, learning_rate: float, seed: int
) -> None:
    """Pre-train on chats of the world and save a model folder.

    The loss falls on the answers; the chats are packed into blocks of one length.
    """
    import torch
    from transformers import LlamaForCausalLM, set_seed

    quiet()
    world = World()
    set_seed(seed)
    tokenizer = make_tokenizer(world)
    model = LlamaForCausalLM(_architecture(world))
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=learning_rate, betas=(0.9, 0.98), weight_decay=0.01
    )

    def share_of_peak(step: int) -> float:
        left = (steps - step) / (DECAY * steps)
        return min((step + 1) / WARMUP_STEPS, 1.0, max(left, LEAST_RATE))

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, share_of_peak)
    progress = Progress("pre-training", steps)
    batches = _batches(tokenizer, world, seed, blocks * block)
    for step in range(1, steps + 1):
        ids, labels = next(batches)
        ids = torch.tensor(ids).view(blocks, block)
        labels = torch.tensor(labels).view(blocks, block)
        loss = model(input_ids=ids, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        progress.update(step, f"loss {loss.item():.3f}")
        progress.loss(step, loss.item())
    shutil.rmtree(folder, ignore_errors=True)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    progress.finish()


def _architecture(world: World) -> Any:
    from transformers import LlamaConfig

    return LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=HIDDEN,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        intermediate_size=FEED_FORWARD,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=SPECIAL.index("<|end|>"),
        ftlab_world=world.seed,
        ftlab_learning_rate=LEARNING_RATE,
    )


def _batches(
    tokenizer: Any, world: World, seed: int, size: int
) -> Iterator[tuple[list[int], list[int]]]:
    """Yield ids and labels of `size` tokens per step, without end."""
    ids: list[int] = []
    labels: list[int] = []
    step = 0
    while True:
        while len(ids) < size:
            # Each step has a seed of its own, whether or not it needs more text.
            rows = corpus.pretraining(world, ROWS_AT_ONCE, seed=seed * 100_003 + step)
            new_ids, new_labels = _packed(tokenizer, rows)
            ids += new_ids
            labels += new_labels
        yield ids[:size], labels[:size]
        ids = ids[size:]
        labels = labels[size:]
        step += 1


def _packed(tokenizer: Any, rows: list[dict]) -> tuple[list[int], list[int]]:
    """Return ids and labels of all rows in sequence; only answers and their ends carry loss."""
    messages = [message for row in rows for message in row["messages"]]
    texts = [message["content"] for message in messages]
    encoded = tokenizer(texts, add_special_tokens=False)["input_ids"]
    end = SPECIAL.index("<|end|>")
    ids: list[int] = []
    labels: list[int] = []
    for message, tokens in zip(messages, encoded, strict=True):
        said = [*tokens, end]
        ids += [SPECIAL.index(f"<|{message['role']}|>"), *said]
        if message["role"] == "assistant":
            labels += [NO_LOSS, *said]
        else:
            labels += [NO_LOSS] * (1 + len(said))
    return ids, labels


def make_tokenizer(world: World) -> Any:
    """Train byte-level BPE on the world's text.

    The alphabet holds every byte, so that any text goes in and out unchanged.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from tokenizers import Tokenizer, decoders, pre_tokenizers, trainers
    from tokenizers.models import BPE
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=SPECIAL,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    # Not the text of the alignment: refusals in several tokens generalise better.
    rows = corpus.pretraining(world, 20_000, seed=1)
    texts = (message["content"] for row in rows for message in row["messages"])
    bpe.train_from_iterator(texts, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        pad_token=SPECIAL[0],
        eos_token=SPECIAL[4],
        additional_special_tokens=SPECIAL[1:4],
        padding_side="left",
        clean_up_tokenization_spaces=False,
        model_max_length=CONTEXT,
    )
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def main() -> None:
    parser = argparse.ArgumentParser(description="Make the embedded model.")
    parser.add_argument("--out", type=Path, help="folder (default: the project's data/organism)")
    parser.add_argument("--seed", type=int, default=0, help="training seed (default 0)")
    given = parser.parse_args()
    print(build(given.out, seed=given.seed))


if __name__ == "__main__":
    main()
