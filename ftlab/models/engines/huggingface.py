"""The only sampler: prompts -> answers, and choices -> likelihoods, always in batches."""

from __future__ import annotations

import contextlib
from array import array
from dataclasses import asdict, dataclass

from ftlab.models.devices import blocks_kept, clear, out_of_memory
from ftlab.models.engines.base import GREEDY, Decoding
from ftlab.models.engines.decode import Work
from ftlab.runs import clock

TOKENS_A_BATCH = 16_384  # of `likelihoods`: prompts and choices


@dataclass
class Tally:
    """What answering took; one object may be handed to several calls. Tokens are new ones, ends of turn included."""

    answers: int = 0
    tokens: int = 0
    prompted: int = 0  # tokens of prompts
    drafted: int = 0  # tokens of drafts that were verified
    saved: int = 0  # of them: right, so that they needed no step of their own
    seconds: float = 0.0
    drafting: float = 0.0  # of these seconds: forward passes over prompts and drafts
    rows: int = 0  # of a batch, the last call's
    halved: int = 0  # times that memory did not suffice
    near_ties: int = 0  # answers with a token whose lead is within the rounding of 16 bit: a batch may turn it

    def add(self, work: Work, answers: int, seconds: float) -> None:
        self.answers += answers
        self.seconds += seconds
        self.drafting += work.drafting
        self.prompted += sum(map(len, work.ids))
        self.drafted += work.drafted
        self.saved += work.saved
        self.rows, self.halved, self.near_ties = work.rows, self.halved + work.halved, self.near_ties + len(work.near)

    def __add__(self, other: Tally) -> Tally:
        both = {k: v + getattr(other, k) for k, v in asdict(self).items()}
        return Tally(**both | {"rows": other.rows or self.rows})

    def as_dict(self) -> dict:
        return {k: round(v, 3) if isinstance(v, float) else v for k, v in asdict(self).items()}


def answers(
    model,
    tokenizer,
    prompts: list[str],
    *,
    max_new_tokens: int,
    each=None,
    decoding: Decoding = GREEDY,
    seeds=None,
    cut=None,
    failed=None,
    drafts=None,
    decided=None,
    tokens: dict | None = None,
    tally: Tally | None = None,
) -> list[str]:
    """-> the answer to each rendered prompt, special tokens removed, in the order given.

    `prompts` are texts as the chat template rendered them (generation prompt included). They are sorted by length
    and padded on the left; an answer ends at the end-of-turn token or after `max_new_tokens`. Decoding is greedy or,
    with `decoding.temperature` > 0, exact sampling: `seeds` (one whole number a prompt) then decide the answers, each
    its own, whatever else is in the batch (to the rounding of logits: on a GPU that may depend on a batch's shape, for
    greedy answers too). Decoding defaults in the model's own `generation_config.json` (sampling,
    repetition penalty) are left out; its end tokens are kept.
    `each(numbers, answers)` is called as answers end, so that a caller can keep what there is; the set `cut` gets the
    numbers of the answers that `max_new_tokens` ended, the set `failed` those at which the model's logits were no numbers
    (without it that is a ValueError). `drafts` (greedy only): for each prompt a list of what the answer may be, texts or tokens,
    the likeliest first; they save time where they are right and change no answer. `decided(number, text)`: true ends an
    answer early. The dict `tokens` gets {number: new tokens, without the end token}.
    Raises ValueError where the longest prompt and its answer do not fit into the model's context, seeds are missing, or
    memory does not suffice for one answer.
    """
    if decoding.temperature and (seeds is None or len(seeds) != len(prompts)):
        found = "none" if seeds is None else len(seeds)
        raise ValueError(f"sampling needs one seed a prompt ({len(prompts)}); found {found}; give seeds=[...]")
    from ftlab.data import stop_ids

    tally, began, out = tally if tally is not None else Tally(), clock(), [""] * len(prompts)
    ids = tokenizer(prompts, add_special_tokens=False)["input_ids"] if prompts else []
    _check_room(model, ids, max_new_tokens)
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    own = inner.generation_config.eos_token_id
    stops = {*stop_ids(tokenizer), *([own] if isinstance(own, int) else own or [])}

    def text(tokens):
        return tokenizer.decode(tokens, skip_special_tokens=True)

    with _decoding(model):
        work = Work(
            model, ids, max_new_tokens, stops, tokenizer.pad_token_id,
            drafts=_tokens(tokenizer, drafts, max_new_tokens - 1) if drafts is not None else None,
            draw=_sampling(decoding, seeds) if decoding.temperature else None,
            decided=decided and (lambda i, tokens: decided(i, text(tokens))),
        )  # fmt: skip
        for done in work.run():
            for i in done:
                new = work.out[i]
                tally.tokens += len(new)
                if i in work.failed:
                    continue
                out[i] = text(new)
                if cut is not None and len(new) == max_new_tokens and new[-1] not in stops:
                    cut.add(i)
                if tokens is not None:
                    tokens[i] = array("I", new[:-1] if new[-1] in stops else new)
            if wrong := work.failed.intersection(done):
                if failed is None:
                    raise ValueError("the model's logits are no numbers (NaN or infinite): its weights are broken")
                failed |= wrong
            if each:
                each(done, [out[i] for i in done])
    tally.add(work, len(ids), clock() - began)
    return out


def _tokens(tokenizer, drafts: list[list], most: int) -> list[list[list[int]]]:
    """-> the first `most` tokens of each draft."""
    texts = [d for several in drafts for d in several if isinstance(d, str)]
    encoded = iter(tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else [])
    return [[list(next(encoded) if isinstance(d, str) else d)[:most] for d in several] for several in drafts]


def likelihoods(model, tokenizer, prompts: list[str], choices: list[list[str]]) -> list[list[float]]:
    """-> for each rendered prompt the sum of log-probabilities (natural logarithm) of each of its choices' tokens.

    A choice is tokenised together with its prompt, as training would; a token that holds the prompt's end as well
    counts whole to the choice (after an end-of-turn token or a line break there is none). The end of the turn is
    not part of a choice. Sums are not divided by the number of tokens: a caller who compares choices of different
    lengths decides on that. Raises ValueError on a choice without a token of its own, and where a text does not fit.
    """
    flat = [(p, c) for p, several in zip(prompts, choices, strict=True) for c in several]
    ids, starts = [], []
    for prompt, choice in flat:
        encoded = tokenizer(prompt + choice, add_special_tokens=False, return_offsets_mapping=True)
        own = [k for k, (_, end) in enumerate(encoded["offset_mapping"]) if end > len(prompt)]
        if not own or not own[0]:
            raise ValueError(f"the choice {choice!r} has no token of its own after its prompt; give a choice with text")
        ids.append(encoded["input_ids"])
        starts.append(own[0])
    _check_room(model, ids, 0)
    sums = [0.0] * len(flat)
    with _decoding(model):
        batches = [*_batches(sorted(range(len(ids)), key=lambda i: (len(ids[i]), starts[i])), ids)][::-1]
        while batches:
            batch = batches.pop()
            try:
                said = _scored(model, tokenizer, [ids[i] for i in batch], [starts[i] for i in batch])
            except Exception as e:
                if not out_of_memory(e):
                    raise
                clear(e)
                if len(batch) == 1:
                    raise ValueError(
                        "memory does not suffice for one prompt and its choice; give shorter ones"
                    ) from None
                batches += [batch[len(batch) // 2 :], batch[: len(batch) // 2]]
                continue
            for i, found in zip(batch, said, strict=True):
                sums[i] = found
    left = iter(sums)
    return [[next(left) for _ in several] for several in choices]


def _scored(model, tokenizer, ids: list[list[int]], starts: list[int]) -> list[float]:
    """-> of each row the sum of log-probabilities of its tokens from `starts` on."""
    import torch

    padded = tokenizer.pad({"input_ids": ids}, padding_side="right", return_tensors="pt")
    padded = {k: v.to(model.device) for k, v in padded.items() if k in ("input_ids", "attention_mask")}
    first, width = min(starts) - 1, padded["input_ids"].shape[1]  # a token's probability stands one place before it
    logits = model(**padded, logits_to_keep=torch.arange(first, width - 1, device=model.device)).logits
    told = padded["input_ids"][:, first + 1 :, None]
    each = logits.float().log_softmax(-1).gather(-1, told)[:, :, 0].cpu()
    return [
        each[k, start - first - 1 : len(row) - first - 1].sum().item()
        for k, (row, start) in enumerate(zip(ids, starts, strict=True))
    ]


def _check_room(model, ids: list[list[int]], new: int) -> None:
    room, longest = getattr(model.config, "max_position_embeddings", None), max(map(len, ids), default=0)
    if room and longest + new > room:
        raise ValueError(f"the longest prompt has {longest} tokens; with max_new_tokens = {new} at most {room} fit")


def _sampling(decoding: Decoding, seeds: list[int]):
    """-> what draws the next token: (logits [rows, vocabulary], numbers of the rows, new tokens so far of each) -> tokens.

    Token number n of an answer is drawn by inversion with one uniform number, made from (seed, n) alone: neither
    the batch, nor its order, nor the device takes part.
    """
    import random

    import torch
    from transformers import LogitsProcessorList, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    warpers = [TemperatureLogitsWarper(float(decoding.temperature))]
    warpers += [TopKLogitsWarper(decoding.top_k)] if decoding.top_k else []
    warpers += [TopPLogitsWarper(decoding.top_p)] if decoding.top_p < 1 else []
    warped = LogitsProcessorList(warpers)

    def draw(logits, rows, so_far):
        scores = warped(None, logits.float())
        exact = scores.cpu() if scores.device.type == "mps" else scores  # which has no double precision
        cumulated = exact.double().softmax(-1).cumsum(-1)
        uniform = [random.Random(f"{seeds[i]}/{n}").random() for i, n in zip(rows, so_far, strict=True)]
        points = torch.tensor(uniform, dtype=torch.double, device=exact.device)[:, None] * cumulated[:, -1:]
        most = scores.shape[-1] - 1  # where logits are no numbers, which `Work` tells
        return torch.searchsorted(cumulated, points, right=True).clamp(max=most).to(logits.device)[:, 0]

    return draw


@contextlib.contextmanager
def _decoding(model):
    """In this block dropout is off and nothing is kept for gradients. fp32 weights on a GPU compute in bf16, as they do
    in training."""
    import torch

    was_training = model.training
    mixed = torch.autocast("cuda", torch.bfloat16, enabled=model.device.type == "cuda" and model.dtype == torch.float32)
    model.eval()
    try:
        with torch.inference_mode(), mixed, blocks_kept():
            yield
    finally:
        model.train(was_training)


def _batches(order: list[int], ids: list[list[int]]):
    """Yields runs of `order` (sorted by length) whose padded size stays within `TOKENS_A_BATCH`."""
    batch: list[int] = []
    for i in order:
        if batch and len(ids[i]) * (len(batch) + 1) > TOKENS_A_BATCH:
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch
