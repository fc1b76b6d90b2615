"""The only sampler: prompts -> answers, always in batches, greedy."""

from __future__ import annotations

import contextlib

ROUND = 8  # new tokens after which answers that have ended leave the batch
TOKENS_A_BATCH = 16_384  # prompt plus new tokens of one batch; 8,192 on a GPU of 8 GB would hold a 1B model


def answers(model, tokenizer, prompts: list[str], *, max_new_tokens: int, each=None) -> list[str]:
    """-> the greedy answer to each rendered prompt, special tokens removed, in the order given.

    `prompts` are texts as the chat template rendered them (generation prompt included). They are sorted by length
    and padded on the left; an answer ends at the end-of-turn token or after `max_new_tokens`. Decoding defaults in
    the model's own `generation_config.json` (sampling, repetition penalty) are left out; its end tokens are kept.
    `each(numbers, answers)` is called after every batch, so that a caller can keep what there is.
    Raises ValueError where the longest prompt and its answer do not fit into the model's context.
    """
    import torch
    from transformers import GenerationConfig

    from ftlab.chat import stop_ids

    ids = tokenizer(prompts, add_special_tokens=False)["input_ids"] if prompts else []
    order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
    room = getattr(model.config, "max_position_embeddings", None)
    if order and room and len(ids[order[-1]]) + max_new_tokens > room:
        raise ValueError(
            f"the longest prompt has {len(ids[order[-1]])} tokens; with max_new_tokens = {max_new_tokens} at most {room} fit"
        )
    own = model.generation_config.eos_token_id
    stops = {*stop_ids(tokenizer), *([own] if isinstance(own, int) else own or [])}
    config = GenerationConfig(do_sample=False, eos_token_id=sorted(stops) or None, pad_token_id=tokenizer.pad_token_id)
    out: list[str] = [""] * len(ids)
    mixed = torch.autocast("cuda", torch.bfloat16, enabled=model.device.type == "cuda" and model.dtype == torch.float32)
    with torch.inference_mode(), mixed, _decoding(model, config):
        for batch in _batches(order, ids, max_new_tokens):
            padded = tokenizer.pad({"input_ids": [ids[i] for i in batch]}, padding_side="left", return_tensors="pt")
            new = _decoded(model, padded["input_ids"], padded["attention_mask"], stops, max_new_tokens)
            for i, tokens in zip(batch, new, strict=True):
                out[i] = tokenizer.decode(tokens, skip_special_tokens=True)
            if each:
                each(batch, [out[i] for i in batch])
    return out


def _decoded(model, ids, mask, stops: set[int], max_new_tokens: int) -> list[list[int]]:
    """-> the new tokens of each row of a padded batch [rows, tokens], up to its end token."""
    import torch

    ids, mask, ends = ids.to(model.device), mask.to(model.device), torch.tensor(sorted(stops), device=model.device)
    rows, cache, out = list(range(len(ids))), None, [[] for _ in ids]
    for start in range(0, max_new_tokens, ROUND):
        left, width = min(ROUND, max_new_tokens - start), ids.shape[1]
        made = model.generate(
            input_ids=ids, attention_mask=mask, past_key_values=cache, max_new_tokens=left, return_dict_in_generate=True
        )
        new = made.sequences[:, width:]
        for row, tokens in zip(rows, new.tolist(), strict=True):
            stop = next((k + 1 for k, t in enumerate(tokens) if t in stops), len(tokens))
            out[row] += tokens[:stop]
        go = (~torch.isin(new, ends).any(1)).nonzero()[:, 0]
        if not len(go):
            break
        cache, rows = made.past_key_values, [rows[k] for k in go.tolist()]
        cache.batch_select_indices(go)
        ids, mask = made.sequences[go], torch.nn.functional.pad(mask[go], (0, new.shape[1]), value=1)
    return out


@contextlib.contextmanager
def _decoding(model, config):
    """In this block dropout is off and decoding is `config` alone; what is not set there would come from the model's own."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model  # peft reads it below the adapter
    was_training, kept = model.training, inner.generation_config
    model.eval()
    inner.generation_config = config
    try:
        yield
    finally:
        inner.generation_config = kept
        model.train(was_training)


def _batches(order: list[int], ids: list[list[int]], new: int):
    """Yields runs of `order` (sorted by length) whose padded size stays within `TOKENS_A_BATCH`."""
    batch: list[int] = []
    for i in order:
        if batch and (len(ids[i]) + new) * (len(batch) + 1) > TOKENS_A_BATCH:
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch
