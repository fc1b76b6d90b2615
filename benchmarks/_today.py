"""How people train, answer and judge today: TRL's trainer, transformers' `generate`, processes.

`python -m benchmarks._today answer|judge FOLDER ...` is one of those processes. It starts cold and
imports only what its task needs.
"""

from __future__ import annotations

import json
import resource
import sys
from pathlib import Path
from time import monotonic as clock
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from benchmarks._work import Work
    from ftlab._core.types import Message

PILOT_STEPS = 3  # optimiser steps of what is tried


def trainer(work: Work, steps: int | None = None, **settings) -> Any:
    """Return TRL's trainer on the tokens that ftlab trains on, in the same order.

    Its settings are TRL's defaults but for `settings`, and fp32 numbers on a CPU.
    """
    import torch
    import trl
    from datasets import Dataset, disable_progress_bars
    from transformers import AutoModelForCausalLM, AutoTokenizer, PrinterCallback, set_seed

    from ftlab.data import Data, encode_rows

    disable_progress_bars()
    set_seed(work.seed)
    tokenizer = AutoTokenizer.from_pretrained(work.model)
    rows = encode_rows(Data("bench", tuple(work.rows())), tokenizer, max_length=2048)
    on_gpu = torch.cuda.is_available()
    how = {
        "save_strategy": "no",
        "max_steps": steps or work.steps,
        "per_device_train_batch_size": work.batch_size,
        "learning_rate": work.learning_rate,
        "lr_scheduler_type": "constant_with_warmup",
        "seed": work.seed,
        "data_seed": work.seed,
        "max_length": None,
        "dataset_kwargs": {"skip_prepare_dataset": True},
        "use_cpu": not on_gpu,
        "bf16": on_gpu,
        "dataloader_pin_memory": on_gpu,
        "disable_tqdm": True,
    }
    made = trl.SFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(work.model, dtype=torch.float32),
        args=trl.SFTConfig(output_dir=work.folder, **{**how, **settings}),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
    )
    made.remove_callback(PrinterCallback)
    return made


def fastest_settings(work: Work) -> dict[str, Any]:
    """Return TRL's fastest settings for these rows, found by a few steps now.

    Activations are not checkpointed; padding-free or not is tried.
    """
    settings = {"activation_checkpointing": False, "logging_strategy": "no"}
    seconds = {}
    for free in (False, True):
        made = trainer(work, PILOT_STEPS, padding_free=free, **settings)
        start = clock()
        made.train()
        seconds[free] = clock() - start
    return settings | {"padding_free": min(seconds, key=seconds.get)}


def open_plainly(model: str) -> tuple[Any, Any]:
    """Return a model in eval mode and its tokenizer."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model, padding_side="left")
    module = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    return module.to("cuda" if torch.cuda.is_available() else "cpu"), tokenizer


def render(chats: list[list[Message]], tokenizer: Any) -> list[str]:
    """Return the text of every chat, with the generation prompt."""
    how = {"tokenize": False, "add_generation_prompt": True}
    return [tokenizer.apply_chat_template(chat, **how) for chat in chats]


def generate(model: Any, tokenizer: Any, texts: list[str], n_tokens: int, batch: int) -> list[str]:
    """Answer greedily, `batch` prompts at a time in the order given, padded on the left."""
    import torch

    tokenizer.padding_side = "left"
    answers = []
    for first in range(0, len(texts), batch):
        some = texts[first : first + batch]
        given = tokenizer(some, add_special_tokens=False, padding=True, return_tensors="pt")
        ids = given["input_ids"].to(model.device)
        mask = given["attention_mask"].to(model.device)
        with torch.inference_mode():
            found = model.generate(
                input_ids=ids,
                attention_mask=mask,
                max_new_tokens=n_tokens,
                do_sample=False,
                use_cache=True,
            )
        new = found[:, ids.shape[1] :]
        answers += [tokenizer.decode(row, skip_special_tokens=True) for row in new]
    return answers


def count_tokens(tokenizer: Any, answers: list[str]) -> int:
    """Return the number of tokens of answers, each with its end of turn."""
    encoded = tokenizer(answers, add_special_tokens=False)["input_ids"]
    return sum(len(ids) + 1 for ids in encoded)


def peak_memory_mb(of: int = resource.RUSAGE_SELF) -> float:
    """Return the most memory that this process, or its children, have held."""
    status = Path("/proc/self/status")
    if of == resource.RUSAGE_SELF and status.exists():  # getrusage begins with the parent's peak
        [line] = [line for line in status.read_text().splitlines() if line.startswith("VmHWM:")]
        return int(line.split()[1]) / 2**10
    unit = 2**20 if sys.platform == "darwin" else 2**10  # bytes there, else KB
    return resource.getrusage(of).ru_maxrss / unit


def answer(folder: Path, point: str, batch: str) -> dict:
    """Answer the chats of `asked.json` by the model of a checkpoint."""
    asked = json.loads((folder / "asked.json").read_text())
    checkpoint = folder / f"checkpoint-{point}"
    if not checkpoint.exists():  # of the parent there is none
        checkpoint = asked["model"]
    model, tokenizer = open_plainly(str(checkpoint))
    texts = render(asked["chats"], tokenizer)
    start = clock()
    answers = generate(model, tokenizer, texts, asked["max_new_tokens"], int(batch))
    seconds = clock() - start
    (folder / f"answers-{point}.json").write_text(json.dumps(answers))
    return {"seconds": seconds}


def judge(folder: Path, name: str, *points: str) -> dict:
    """Judge the answers at every point."""
    from ftlab.data import load_prompts
    from ftlab.judges import open_judge

    samples = list(load_prompts(folder / "asked.jsonl"))
    said = {}
    seconds = 0.0
    for point in points:
        answers = json.loads((folder / f"answers-{point}.json").read_text())
        start = clock()
        judgements = open_judge(name).judge(samples, answers)
        seconds += clock() - start
        for sample, text, judgement in zip(samples, answers, judgements, strict=True):
            said[f"{point}|{sample.id}"] = [text, str(judgement.outcome)]
    return {"seconds": seconds, "said": said}


def main(task: str, folder: str, *arguments: str) -> None:
    tasks = {"answer": answer, "judge": judge}
    found = tasks[task](Path(folder), *arguments)
    (Path(folder) / f"{task}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
