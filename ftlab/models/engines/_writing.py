"""Writes answers token by token, many at a time, with a torch model in this process."""

from __future__ import annotations

import inspect
import os
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from ftlab._core.errors import UsageError
from ftlab._core.types import Answer
from ftlab.models.chat_template import stop_ids
from ftlab.models.devices import clear_error, free_memory, out_of_memory
from ftlab.models.engines._drafts import Drafts
from ftlab.models.engines.base import (
    Collector,
    Decoding,
    LoadedModel,
    Request,
    Tally,
    check_length,
    make_answer,
)

NOT_FINITE = "the model's logits are not finite numbers (NaN or infinite)"
FAILED = -1  # in place of a token: the logits were not finite
# Limits of a batch: rows; rows times columns; the same where drafts are read, of which more leave
# a processor's cache.
ON_CPU = (256, 16_384, 4096)
ELSEWHERE = (1024, 65_536, 65_536)
FEWEST_SAVED = 256  # tokens not read, for which one more pass through the model pays


@dataclass(slots=True)
class Row:
    """One answer in the making.

    `guess` may follow the prompt (a draft or a choice, whose log-probability is `score`), `new`
    are the answer's tokens so far, `finish` is how it ended ("" until it has).
    """

    number: int
    request: Request
    prompt: list[int]
    guess: list[int] = field(default_factory=list)
    new: list[int] = field(default_factory=list)
    finish: str = ""
    score: float = 0.0

    @property
    def unread(self) -> list[int]:
        """What the model reads to go on."""
        return self.prompt + self.new + self.guess

    @property
    def size(self) -> int:
        return len(self.prompt) + len(self.new) + len(self.guess)


class Writer:
    """Writes the answers to requests that share decoding and length."""

    def __init__(
        self,
        model: LoadedModel,
        collector: Collector,
        numbers: list[int],
    ):
        self.module = model.module
        self.tokenizer = model.tokenizer
        self.collector = collector
        self.inner = without_adapter(self.module)
        self.config = self.inner.config.get_text_config(decoder=True)
        self.takes = inspect.signature(self.inner.forward).parameters
        self.stops = stop_ids(self.tokenizer, self.inner)
        self.device = self.module.device
        requests = [collector.requests[number] for number in numbers]
        self.most_new = requests[0].max_new_tokens
        self.warpers = _warpers(requests[0].decoding)
        texts = [request.text for request in requests]
        encoded = self.tokenizer(texts, add_special_tokens=False)
        prompts = encoded["input_ids"]
        longest = max(len(prompt) for prompt in prompts)
        check_length(longest, self.most_new, context(self.module))
        self.masks_freely = False
        self.rows = []
        for number, request, prompt in zip(numbers, requests, prompts, strict=True):
            self.rows.append(Row(number, request, prompt))

    def run(self, drafts: Drafts | None) -> None:
        """Write all answers; earlier greedy ones are verified first, and the new ones join them."""
        if self.warpers:  # sampled
            drafts = None
        tally = self.collector.tally
        layers = self._cache_layers()
        recurrent = any(hasattr(layer, "recurrent_states") for layer in layers)
        work = self._generate  # for architectures such as Mamba, whose rows cannot leave a batch
        if layers and not recurrent:
            work = self._decode
        self.masks_freely = self._masks_freely(layers)
        if drafts is not None and self.masks_freely:
            self._find_drafts(drafts)
        in_batches(self.rows, work, tally, self._limits(), self.most_new)
        if drafts is not None:
            drafts.weigh(tally.drafted, tally.saved)
            self._remember(drafts)

    def _remember(self, drafts: Drafts) -> None:
        for row in self.rows:
            if row.finish == "error":
                continue
            tokens = row.new
            if row.finish == "stop":
                tokens = tokens[:-1]
            drafts.known[row.request.text] = tokens

    def _cache_layers(self) -> list[Any]:
        """Return the layers of the model's cache; none where it keeps no keys and values."""
        from transformers import DynamicCache

        if "past_key_values" not in self.takes:
            return []
        return DynamicCache(config=self.config).layers

    def _masks_freely(self, layers: list[Any]) -> bool:
        """Whether any place of what was read may be masked: rejected drafts, padding in between.

        Every layer must keep every token, and positions must be given, not counted.
        """
        from transformers.cache_utils import DynamicLayer

        if "position_ids" not in self.takes:
            return False
        if hasattr(self.config, "attention_types"):
            return False
        rope = getattr(self.config, "rope_parameters", None) or {}
        if rope.get("rope_type") in ("dynamic", "longrope"):  # positions depend on the length read
            return False
        kinds = {type(layer) for layer in layers}
        return kinds == {DynamicLayer}

    def shared(self, rows: list[Row]) -> int:
        """Return how many tokens all prompts begin with, 0 where reading them once saves little."""
        if not self.masks_freely:
            return 0
        prompts = [row.prompt for row in rows]
        alike = len(os.path.commonprefix(prompts))
        shortest = min(len(prompt) for prompt in prompts)
        alike = min(alike, shortest - 1)
        saved = alike * (len(rows) - 1)
        if saved < FEWEST_SAVED:
            return 0
        return alike

    def logits_of_last(self, places: int) -> dict[str, int]:
        """Return the argument by which a model computes the logits of its last places only."""
        if "logits_to_keep" not in self.takes:
            return {}
        return {"logits_to_keep": places}

    def _limits(self) -> tuple[int, int]:
        """Return the most rows of a batch, and rows times columns."""
        most_rows, most_tokens, most_read = ELSEWHERE
        if self.device.type == "cpu":
            most_rows, most_tokens, most_read = ON_CPU
        drafted = any(row.guess for row in self.rows)
        if drafted:
            most_tokens = most_read
        return most_rows, min(most_tokens, self._memory_holds(drafted))

    def _memory_holds(self, drafted: bool) -> int:
        """Return how many tokens fit into half of the free memory: keys, values and logits."""
        config = self.config
        heads = getattr(config, "num_attention_heads", 0)
        if not heads:
            return ELSEWHERE[1]
        kept = getattr(config, "num_key_value_heads", None) or heads
        width = getattr(config, "head_dim", None)
        if width is None:
            width = config.hidden_size // heads
        numbers = 2 * config.num_hidden_layers * kept * width
        growing = 2  # while it grows by a token, a cache is there twice
        size = growing * numbers * self.module.dtype.itemsize
        if drafted:
            size += 4 * config.vocab_size
        return free_memory(self.device) // 2 // size

    def _decode(self, rows: list[Row]) -> None:
        """Decode a batch to its end; rows that have ended leave it."""
        batch = _Batch(self, rows)
        while batch.rows:
            found = batch.read().tolist()
            made = []
            for row, tokens in zip(batch.rows, found, strict=True):
                made.append(self._held(row, tokens))
            batch.forget_rejected(made)
            self._extend(batch.rows, made)
            batch.keep_unfinished()

    def _held(self, row: Row, tokens: list[int]) -> list[int]:
        """Return what holds of a row's draft, and the token after it.

        `tokens` are the most probable ones after each of the batch's last places.
        """
        start = len(tokens) - 1 - len(row.guess)
        own = tokens[start:]
        held = 0
        for drafted, token in zip(row.guess, own, strict=False):
            if drafted != token:
                break
            held += 1
        self.collector.tally.drafted += len(row.guess)
        self.collector.tally.saved += held
        return own[: held + 1]

    def _generate(self, rows: list[Row]) -> list[Row]:
        """Answer the rows as long as the first by the model's own `generate`; return the others."""
        import torch
        from transformers import GenerationConfig

        length = rows[0].size
        alike = [row for row in rows if row.size == length]
        unread = [row.unread for row in alike]
        ids = torch.tensor(unread, device=self.device)
        fewest = min(len(row.new) for row in alike)
        chooser = _Chooser(self, alike)
        own_config = self.inner.generation_config
        self.inner.generation_config = GenerationConfig(  # without the model's own defaults
            max_new_tokens=self.most_new - fewest,
            eos_token_id=self.stops or None,
            pad_token_id=self.tokenizer.pad_token_id,
        )
        try:
            self.module.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                logits_processor=[chooser],
            )
        finally:
            self.inner.generation_config = own_config
        tokens = torch.cat(chooser.made, 1)
        self._extend(alike, tokens.tolist())
        return [row for row in rows if not row.finish]

    def _find_drafts(self, drafts: Drafts) -> None:
        texts = [row.request.text for row in self.rows]
        found = drafts.find(texts, self.tokenizer)
        known = self.inner.get_input_embeddings().num_embeddings
        longest = self.most_new - 1
        for row, draft in zip(self.rows, found, strict=True):
            if max(draft, default=0) < known:
                row.guess = draft[:longest]

    def _extend(self, rows: list[Row], tokens: list[list[int]]) -> None:
        """Append tokens to rows up to their ends, and report the answers that end."""
        for row, new in zip(rows, tokens, strict=True):
            row.guess = []
            for token in new:
                if not row.finish:
                    self._append(row, token)
        ended = [row for row in rows if row.finish]
        if ended:
            numbers = [row.number for row in ended]
            answers = [self._answer(row) for row in ended]
            self.collector.add(numbers, answers)

    def _append(self, row: Row, token: int) -> None:
        row.new.append(token)
        stop_when = row.request.stop_when
        if token == FAILED:
            row.finish = "error"
        elif token in self.stops:
            row.finish = "stop"
        elif len(row.new) == self.most_new:
            row.finish = "length"
        elif stop_when and stop_when(self._text(row)):
            row.finish = "screened"

    def _answer(self, row: Row) -> Answer:
        if row.finish == "error":
            return Answer("", finish="error", error=NOT_FINITE)
        return make_answer(
            row.request,
            self._text(row),
            finish=row.finish,
            tokens=len(row.new),
        )

    def _text(self, row: Row) -> str:
        return self.tokenizer.decode(row.new, skip_special_tokens=True)

    def choose(
        self,
        logits: Any,
        rows: list[Row],
        ahead: int = 0,
    ) -> Any:
        """Return the next tokens [rows, places]; `FAILED` where logits are not finite.

        Args:
            logits: [rows, places, vocabulary].
            rows: The rows.
            ahead: Number of tokens that the rows have and do not hold yet.
        """
        import torch

        value, token = logits.max(-1)
        if self.warpers:
            drawn = self._draw(logits[:, -1], rows, ahead)
            token = drawn[:, None]
        return torch.where(value.isfinite(), token, FAILED)

    def _draw(
        self,
        logits: Any,
        rows: list[Row],
        ahead: int,
    ) -> Any:
        """Sample by inversion.

        Token number n of an answer is drawn with one uniform number made from (seed, n) alone:
        neither the batch, nor its order, nor the device takes part.
        """
        import torch

        scores = self.warpers(None, logits.float())
        if scores.device.type == "mps":  # has no double precision
            scores = scores.cpu()
        shares = scores.double().softmax(-1)
        cumulated = shares.cumsum(-1)
        uniform = []
        for row in rows:
            place = len(row.new) + ahead
            generator = random.Random(f"{row.request.seed}/{place}")
            uniform.append(generator.random())
        points = torch.tensor(
            uniform,
            dtype=torch.double,
            device=scores.device,
        )
        total = cumulated[:, -1:]
        points = points[:, None] * total
        drawn = torch.searchsorted(cumulated, points, right=True)[:, 0]
        last = logits.shape[-1] - 1
        return drawn.clamp(max=last).to(logits.device)


class _Batch:
    """Rows in the middle of their answers, with the keys and values of what they have read."""

    def __init__(self, writer: Writer, rows: list[Row]):
        import torch
        from transformers import DynamicCache

        self.writer = writer
        self.rows = rows
        self.cache = DynamicCache(config=writer.config)
        shared = writer.shared(rows)
        rest = []
        for row in rows:
            rest.append(row.unread[shared:])
        pad = writer.tokenizer.pad_token_id
        self.unread, mask = padded(rest, pad, "left", writer.device)
        read_once = mask.new_ones(len(rows), shared)
        self.mask = torch.cat([read_once, mask], 1)
        if shared:
            beginning = rows[0].prompt[:shared]
            self._read_shared(beginning)

    def _read_shared(self, tokens: list[int]) -> None:
        """Read what all prompts begin with, such as a system message, once for all rows."""
        ids = self.mask.new_tensor([tokens])
        self.writer.module(
            input_ids=ids,
            past_key_values=self.cache,
            use_cache=True,
            **self.writer.logits_of_last(1),
        )
        self.cache.batch_repeat_interleave(len(self.rows))

    def read(self) -> Any:
        """Return the next tokens [rows, places]: after the last token, and after drafted ones."""
        places = 1 + max(len(row.guess) for row in self.rows)
        more = {}
        if "position_ids" in self.writer.takes:
            positions = self.mask.cumsum(1) - 1
            positions = positions.clamp(min=0)
            width = self.unread.shape[1]
            more["position_ids"] = positions[:, -width:]
        more |= self.writer.logits_of_last(places)
        out = self.writer.module(
            input_ids=self.unread,
            attention_mask=self.mask,
            past_key_values=self.cache,
            use_cache=True,
            **more,
        )
        logits = out.logits[:, -places:]
        return self.writer.choose(logits, self.rows)

    def forget_rejected(self, made: list[list[int]]) -> None:
        """Mask the drafted tokens that did not hold; all but the last one of `made` did."""
        width = self.mask.shape[1]
        for place, row in enumerate(self.rows):
            kept = len(made[place]) - 1
            rejected = len(row.guess) - kept
            if rejected:
                self.mask[place, width - rejected :] = 0

    def keep_unfinished(self) -> None:
        """Let the rows that have ended leave; the others read their last token next."""
        import torch

        places = []
        for place, row in enumerate(self.rows):
            if not row.finish:
                places.append(place)
        if len(places) < len(self.rows):
            self.rows = [self.rows[place] for place in places]
            index = self.mask.new_tensor(places)
            self.mask = self.mask[index]
            self.cache.batch_select_indices(index)
        last = []
        for row in self.rows:
            last.append(row.new[-1:])
        self.unread = self.mask.new_tensor(last)
        column = self.mask.new_ones(len(self.rows), 1)
        self.mask = torch.cat([self.mask, column], 1)


class _Chooser:
    """Makes transformers' `generate` take the tokens that the writer chooses, and keeps them."""

    def __init__(self, writer: Writer, rows: list[Row]):
        self.writer = writer
        self.rows = rows
        self.made: list[Any] = []

    def __call__(self, _: Any, logits: Any) -> Any:
        import torch

        token = self.writer.choose(logits[:, None], self.rows, len(self.made))
        self.made.append(token)
        place = token.clamp(min=0)
        only = torch.full_like(logits, -torch.inf)
        return only.scatter(1, place, 0.0)


def in_batches(
    rows: list[Row],
    work: Callable[[list[Row]], list[Row] | None],
    tally: Tally,
    limits: tuple[int, int],
    growth: int = 0,
) -> None:
    """Work through rows in batches, shortest first; halve the batch where memory ends.

    Args:
        rows: What to work through.
        work: Takes a batch; returns the rows that it has left over.
        tally: Counts the halvings.
        limits: Rows, and rows times columns, of a batch.
        growth: Columns that a batch grows by.

    Raises:
        UsageError: `out_of_memory` where memory does not suffice for one row.
    """
    most_rows, most_tokens = limits
    waiting = sorted(rows, key=lambda row: row.size)
    while waiting:
        count = 1
        for row in waiting[1:most_rows]:
            columns = row.size + growth
            if columns * (count + 1) > most_tokens:
                break
            count += 1
        batch = waiting[:count]
        waiting = waiting[count:]
        try:
            left = work(batch) or []
        except Exception as error:
            if not out_of_memory(error):
                raise
            clear_error(error)
            if count == 1:
                raise UsageError(
                    "out_of_memory",
                    "Memory does not suffice for one answer. Shorten prompts or max_new_tokens.",
                ) from None
            most_rows = count // 2
            tally.halved += 1
            left = [row for row in batch if not row.finish]
        waiting = left + waiting


def padded(texts: list[list[int]], pad: int, side: str, device: Any) -> tuple[Any, Any]:
    """Return token ids and attention mask, both [rows, columns], padded on one side."""
    import torch
    from torch.nn.utils.rnn import pad_sequence

    rows = [torch.tensor(row) for row in texts]
    read = [torch.ones_like(tokens) for tokens in rows]
    ids = pad_sequence(rows, batch_first=True, padding_value=pad, padding_side=side)
    mask = pad_sequence(read, batch_first=True, padding_side=side)
    return ids.to(device), mask.to(device)


def context(module: Any) -> int | None:
    """Return the longest text that a model reads, in tokens, where its configuration says so."""
    return getattr(module.config, "max_position_embeddings", None)


def without_adapter(module: Any) -> Any:
    """Return the transformers model itself, where PEFT has wrapped it."""
    if hasattr(module, "get_base_model"):
        return module.get_base_model()
    return module


def _warpers(decoding: Decoding) -> Any:
    """Return what shapes the distribution that tokens are sampled from; None for greedy."""
    if not decoding.temperature:
        return None
    import transformers

    warpers = [transformers.TemperatureLogitsWarper(decoding.temperature)]
    if decoding.top_k:
        warpers.append(transformers.TopKLogitsWarper(decoding.top_k))
    if decoding.top_p < 1:
        warpers.append(transformers.TopPLogitsWarper(decoding.top_p))
    return transformers.LogitsProcessorList(warpers)
