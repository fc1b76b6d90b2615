"""The decoding loop under `generate`: rows that have ended leave, others take their place, drafts are verified.

A draft is what the answer may be (an earlier checkpoint's answer). One forward pass over prompt and draft gives the most
probable token at every place; the draft holds up to the first place where it is another (speculative decoding, Leviathan
et al. 2023, arXiv 2211.17192, with the greedy rule), and the answer goes on from there: exact, up to ties.
"""

from __future__ import annotations

import inspect
import os
from dataclasses import dataclass, field

from ftlab.models.devices import clear, free_memory, out_of_memory
from ftlab.models.engines.kvcache import State, copied, joined, rolled, roomy
from ftlab.runs import clock

ROUND = 4  # new tokens after which answers that have ended leave the batch
SHARED = 16  # tokens of a common prefix from which on it is computed once
# Of prompts and drafts in one forward pass: more leave a processor's cache (organism: 15 % more time at 4,096).
FORWARD_TOKENS = {"cpu": 1024}
FORWARD_TOKENS_ELSEWHERE = 8192
LOGITS_BYTES = 2**28  # of the verified places of one forward pass
FEW, MOST_ROWS = 16, {"cpu": 256}  # of a batch; on a CPU more gain 7 % of the time for 1.5 times the memory
MOST_ROWS_ELSEWHERE = 1024
LONG_S = 0.1  # a step that long needs no second measurement
GAIN = 0.93  # twice the rows must take at most this much of the seconds a row; else they are not worth their memory
# Relative, of a logit: four of its roundings, for layers add theirs up.
ROUNDING = {"bfloat16": 2.0**-6, "float16": 2.0**-9}
_halved: dict[tuple, int] = {}  # shape and columns -> rows that memory was found to hold
_measured: dict[tuple, int] = {}  # shape and device of a model -> rows of a batch, once a process


@dataclass
class Work:
    """Prompts on their way to answers. `ids`: tokens of each prompt; `out`: new tokens of each, end token included."""

    model: object
    ids: list[list[int]]
    new: int  # tokens of an answer, at most
    stops: set[int]
    pad: int
    drafts: list[list[list[int]]] | None = None  # of each prompt, likeliest first, without end tokens
    draw: object = None  # (logits [rows, vocabulary], rows, new tokens so far of each) -> tokens [rows]; None: greedy
    decided: object = None  # (row, new tokens) -> whether the rest of the answer is not needed
    out: list[list[int]] = field(default_factory=list)
    failed: set[int] = field(default_factory=set)  # rows with logits that are no numbers
    near: set[int] = field(default_factory=set)  # rows with a token whose lead is within the rounding of 16 bit
    drafted: int = 0
    saved: int = 0
    halved: int = 0
    rows: int = 0  # of a batch
    drafting: float = 0.0  # seconds of forward passes over prompts and drafts

    def __post_init__(self):
        import torch
        from transformers.cache_utils import DynamicLayer

        inner = self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model
        self.config = inner.config.get_text_config(decoder=True)
        self.takes = inspect.signature(inner.forward).parameters
        if not inner._supports_default_dynamic_cache():
            raise ValueError(
                f"{self.config.model_type} models keep a state of their own; give one with transformers' common cache"
            )
        self.own = "past_key_values" in self.takes  # else (Mamba) transformers' own generate answers
        layers = self._cache(plain=False).layers if self.own else []
        self.moves = all(hasattr(x, "batch_select_indices") and not hasattr(x, "recurrent_states") for x in layers)
        # Rows can be joined and moved, with empty columns in their middle, where every layer keeps every token and positions
        # are told, not counted (ALiBi and local windows count columns).
        self.plain = bool(layers) and all(type(layer) is DynamicLayer for layer in layers)
        self.plain &= "position_ids" in self.takes and not hasattr(self.config, "attention_types")
        self.ends = torch.tensor(sorted(self.stops) or [-1], device=self.model.device)
        self.out = [[] for _ in self.ids]
        if self.drafts is None or not self.plain or self.draw:
            self.drafts = [[] for _ in self.ids]
        mixed = torch.is_autocast_enabled(self.model.device.type)  # its logits may have been made fp32 again
        self.lead = ROUNDING.get("bfloat16" if mixed else str(self.model.dtype).removeprefix("torch."))
        self.waits = self.model.device.type == "cpu"  # elsewhere every look at a tensor's numbers waits for the device
        self.prefix, self.looked = None, {}

    def run(self):
        """Yields lists of the numbers of prompts as their answers end; raises ValueError where memory does not suffice."""
        order = {
            i: (len(p) + len(d[0] if d else ()), i) for i, (p, d) in enumerate(zip(self.ids, self.drafts, strict=True))
        }
        todo = sorted(order, key=order.get)
        shared = len(os.path.commonprefix(self.ids)) if self.plain and len(self.ids) > 1 else 0
        self.head = min(shared, min(map(len, self.ids), default=1) - 1) if shared > SHARED else 0
        self.rows = self._rows(len(todo)) if self.own else min(FEW, len(todo))
        queue, pool = list(todo), []
        while queue or pool:
            waiting = sum(len(s.rows) for s in pool)
            try:
                if queue and waiting <= (self.rows // 2 if self.plain else 0):
                    taken, began = self._taken(queue, self.rows - waiting), clock()
                    queue = queue[len(taken) :]
                    pool.append(self._begun(taken) if self.own else self._generated(taken))
                    self.drafting += clock() - began
                    done = [*{*taken} - {*pool[-1].rows}]
                else:
                    pool = [joined(pool)]
                    before = {*pool[0].rows}
                    self._decoded(pool[0])
                    done = [*before - {*pool[0].rows}]
                pool = [s for s in pool if s.rows]
            except Exception as e:
                if not out_of_memory(e):
                    raise
                clear(e)
                if self.rows == 1:
                    raise ValueError(
                        f"memory does not suffice for one answer of {self.new} tokens; lower max_new_tokens"
                    ) from None
                pool, self.halved, self.rows = [], self.halved + 1, self.rows // 2
                _halved[self._shape(), self._columns()] = self.rows
                queue = list(todo)  # what was begun begins anew
                for i in todo:
                    self.out[i] = []
                self.failed.difference_update(todo)
                self.near.difference_update(todo)
                self.drafted = self.saved = 0
                continue
            if done:
                gone = {*done}
                todo = [i for i in todo if i not in gone]
                yield sorted(done)

    def _taken(self, queue: list[int], most: int) -> list[int]:
        """-> the first rows of the queue that one forward pass may read."""
        sizes = [(len(self.ids[i]) - self.head, len(self.drafts[i][0]) if self.drafts[i] else 0) for i in queue[:most]]
        if not self.own:  # one length: not all of them read padding as such
            return [i for i in queue[:most] if len(self.ids[i]) == len(self.ids[queue[0]])]
        return queue[: self._within(sizes)]

    def _within(self, sizes: list[tuple[int, int]]) -> int:
        """-> how many of the first rows, at least one, of (tokens, tokens of the guess) one forward pass may read."""
        most, widest, longest = FORWARD_TOKENS.get(self.model.device.type, FORWARD_TOKENS_ELSEWHERE), 0, 0
        for n, (head, guess) in enumerate(sizes):
            widest, longest = max(widest, head + guess), max(longest, guess)
            logits = (n + 1) * (longest + 1) * self.config.vocab_size * 4
            if n and ((n + 1) * widest > most or logits > LOGITS_BYTES):
                return n
        return len(sizes)

    def _generated(self, rows: list[int]) -> State:
        """Answers whole, by transformers' own `generate` -> a state without rows."""
        from transformers import GenerationConfig

        if self.draw or self.decided:
            raise ValueError(
                f"{self.config.model_type} models answer greedily and in full only; leave decoding and screen away"
            )
        x = self._index([self.ids[i] for i in rows])
        config = GenerationConfig(
            do_sample=False, max_new_tokens=self.new, eos_token_id=sorted(self.stops) or None, pad_token_id=self.pad
        )
        inner = self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model
        kept, inner.generation_config = inner.generation_config, config  # penalties of the model's own are left out
        try:
            made = self.model.generate(input_ids=x, attention_mask=x.new_ones(x.shape))
        finally:
            inner.generation_config = kept
        state = State(list(rows), None, None, None)
        for i, new in zip(rows, made[:, x.shape[1] :].tolist(), strict=True):
            self.out[i] = new
        self._leave(state)
        return state

    def _begun(self, rows: list[int]) -> State:
        """Reads prompts and first drafts -> the rows that are not at their end; then their other drafts."""
        import torch

        cache, mask = self._cache(), None
        if self.head and not self.prefix:
            shared = self._cache()
            self._forward([self.ids[0][: self.head]], shared, None, 1)
            self.prefix = [(layer.keys, layer.values) for layer in shared.layers]
        if self.prefix:
            for layer, (keys, values) in zip(cache.layers, self.prefix, strict=True):
                layer.update(keys.expand(len(rows), -1, -1, -1), values.expand(len(rows), -1, -1, -1))
            mask = torch.ones(len(rows), self.head, dtype=torch.long, device=self.model.device)
        guesses = [self.drafts[i][0] if self.drafts[i] else [] for i in rows]
        state = self._read(State(rows, cache, mask, None), [self.ids[i][self.head :] for i in rows], guesses)
        while state.rows and any(guesses := [self._another(i) for i in state.rows]):
            with_one = [k for k, g in enumerate(guesses) if g]
            with_one = with_one[: self._within([(1, len(guesses[k])) for k in with_one])]
            if len(with_one) < len(guesses):  # the others wait
                other = State(list(state.rows), copied(state.cache), state.mask, state.token)
                other.select(self._index([k for k in range(len(guesses)) if k not in {*with_one}]))
                state.select(self._index(with_one))
            else:
                other = None
            tokens = [[t] for t in state.token.tolist()]
            state = self._read(state, tokens, [guesses[k] for k in with_one])
            if other:
                state = joined([other, state] if state.rows else [other])
        return state

    def _read(self, state: State, heads: list[list[int]], guesses: list[list[int]]) -> State:
        """Reads `heads`, keeps of each guess what holds and the token after it -> the state of the rows that go on."""
        import torch

        longest = max(map(len, guesses))
        logits, state.mask = self._forward(heads, state.cache, state.mask, longest + 1, guesses)
        own = self._index([len(g) for g in guesses])
        real = (
            torch.arange(longest + 1, device=own.device) >= longest - own[:, None]
        )  # the rest belongs to head or padding
        token, marks = self._chosen(logits, state.rows, real=real)
        self._note(state.rows, marks.tolist())
        n = torch.zeros_like(own)  # tokens of the guess that hold
        if longest:
            told = torch.tensor([[-1] * (longest - len(g)) + g for g in guesses], device=token.device)
            n = ((token[:, :-1] == told) | (told < 0)).long().cumprod(1).sum(1) - longest + own
            state.mask = rolled(state.cache, state.mask, own - n)
        state.token = token.gather(1, (longest - own + n)[:, None])[:, 0]
        held = n.tolist()
        self.drafted += sum(map(len, guesses))
        self.saved += sum(held)
        for i, guess, k, last in zip(state.rows, guesses, held, state.token.tolist(), strict=True):
            self.out[i] += [*guess[:k], last]
        self._leave(state)
        return state

    def _another(self, row: int) -> list[int]:
        """-> what follows, in the first draft that begins with all new tokens so far, if any."""
        so_far = self.out[row]
        return next(
            (d[len(so_far) :] for d in self.drafts[row][1:] if len(d) > len(so_far) and d[: len(so_far)] == so_far), []
        )

    def _decoded(self, state: State) -> None:
        """Token after token, until a row has ended."""
        import torch

        before = len(state.rows)
        while len(state.rows) == before:
            made, marked = [], []
            left = max(1, min(ROUND, min(self.new - len(self.out[i]) for i in state.rows)))
            for k in range(left):
                logits, state.mask = self._forward(state.token[:, None], state.cache, state.mask, 1)
                token, marks = self._chosen(logits, state.rows, k)
                state.token = token[:, 0]
                made.append(state.token)
                marked.append(marks)
                if self.waits and len(made) < left and bool(torch.isin(torch.stack(made, 1), self.ends).any(1).all()):
                    break
            for marks in torch.stack(marked).tolist():  # the device is waited for once a round
                self._note(state.rows, marks)
            for i, tokens in zip(state.rows, torch.stack(made, 1).tolist(), strict=True):
                self.out[i] += tokens
            self._leave(state)

    def _leave(self, state: State) -> None:
        """Cuts answers behind their end token; rows that have ended leave the batch."""
        going = []
        for k, i in enumerate(state.rows):
            own = self.out[i]
            end = next((n for n, t in enumerate(own, 1) if t in self.stops), self.new)
            del own[end:]
            if not (len(own) == end or i in self.failed or self._is_decided(i)):
                going.append(k)
        if not going:
            state.rows = []
        elif len(going) < len(state.rows) and self.moves:
            state.select(self._index(going))

    def _is_decided(self, row: int) -> bool:
        """Whether the answer is decided by its tokens so far; then it ends at the first that decide it, whatever the batch."""
        if self.decided:
            for n in range(self.looked.get(row, 0) + 1, len(self.out[row]) + 1):
                if self.decided(row, self.out[row][:n]):
                    del self.out[row][n:]
                    return True
            self.looked[row] = len(self.out[row])
        return False

    def _index(self, numbers: list):
        import torch

        return torch.tensor(numbers, dtype=torch.long, device=self.model.device)

    def _forward(self, heads, cache, mask, keep: int, guesses=()):
        """-> (logits [rows, keep, vocabulary] of the last columns, mask). A row is a head and its guess, padded on the left."""
        import torch

        if isinstance(heads, torch.Tensor):
            x, new = heads, torch.ones_like(heads)
        else:
            lines = [head + guess for head, guess in zip(heads, guesses or [[]] * len(heads), strict=True)]
            widest = max(map(len, lines))
            marks = [[0] * (widest - len(line)) + [1] * len(line) for line in lines]
            lines = [[self.pad] * (widest - len(line)) + line for line in lines]
            x, new = torch.tensor([lines, marks], device=self.model.device)
        mask = new if mask is None else torch.cat([mask, new], 1)
        more = {}
        if "position_ids" in self.takes:
            more["position_ids"] = (mask.cumsum(1) - 1).clamp(min=0)[:, -x.shape[1] :]
        if "logits_to_keep" in self.takes:
            more["logits_to_keep"] = keep
        out = self.model(input_ids=x, attention_mask=mask, past_key_values=cache, use_cache=True, **more)
        return out.logits[:, -keep:], mask

    def _chosen(self, logits, rows: list[int], more: int = 0, real=True):
        """logits [rows, places, vocabulary] -> (tokens [rows, places], marks [rows]); see `_note`. `real`: places that count."""
        if self.lead and not self.draw:
            best, first = logits.topk(2, -1)
            value, token = best[..., 0], first[..., 0]
            close = ((value - best[..., 1] <= self.lead * value.abs()) & real).any(1)
        else:
            value, token = logits.max(-1)
            close = False
        marks = (~value.isfinite() & real).any(1).long() + 2 * close
        if self.draw:
            token = self.draw(logits[:, -1], rows, [len(self.out[i]) + more for i in rows])[:, None]
        return token, marks

    def _note(self, rows: list[int], marks: list[int]) -> None:
        """Keeps which rows had logits that are no numbers (1), or nearly tied (2)."""
        self.failed.update(i for i, m in zip(rows, marks, strict=True) if m & 1)
        self.near.update(i for i, m in zip(rows, marks, strict=True) if m & 2)

    def _cache(self, plain: bool = True):
        from transformers import DynamicCache

        cache = DynamicCache(config=self.config)
        if plain and self.plain:
            cache.layers = [roomy()() for _ in cache.layers]
        return cache

    def _shape(self) -> tuple:
        most = 1 << (len(self.ids) - 1).bit_length()  # rows that are worth to be tried
        on = str(self.model.dtype), str(self.model.device)
        return self.config.model_type, self.model.num_parameters(), *on, most

    def _rows(self, wanted: int) -> int:
        """-> rows of a batch: doubled as long as a step's seconds a row fall, within the memory there is."""
        if wanted <= FEW:
            return max(wanted, 1)
        if (known := _measured.get(self._shape())) is None:
            known, fastest, rows = FEW, None, FEW
            while rows <= min(MOST_ROWS.get(self.model.device.type, MOST_ROWS_ELSEWHERE), self._shape()[-1]):
                try:
                    each = self._step_s(rows) / rows
                except Exception as e:
                    if not out_of_memory(e):
                        raise
                    clear(e)
                    break
                if fastest is None or each <= GAIN * fastest:
                    known, fastest = rows, each
                elif rows > 2 * known:  # one disturbed measurement does not end it
                    break
                rows *= 2
            _measured[self._shape()] = known
        known = min(known, _halved.get((self._shape(), self._columns()), known))
        return max(1, min(known, wanted, self._fitting(max(map(len, self.ids)) + self.new)))

    def _columns(self) -> int:
        """-> columns of the widest row, as a power of two."""
        return (max(map(len, self.ids)) + self.new).bit_length()

    def _step_s(self, rows: int) -> float:
        """-> seconds of a decoding step: the shortest of three, of a long one the first."""
        import torch

        cache, mask, times = self._cache(), None, []
        token = torch.full((rows, 1), self.pad, device=self.model.device)
        for _ in range(4):
            began = clock()
            logits, mask = self._forward(token, cache, mask, 1)
            token = logits.max(-1)[1].cpu().to(token.device)  # waits for the device
            times.append(clock() - began)
            if len(times) > 1 and times[-1] > LONG_S:
                break
        return min(times[1:])

    def _fitting(self, columns: int) -> int:
        """-> rows of so many columns whose cache takes half of the free memory, copies of it included."""
        c = self.config
        heads = getattr(c, "num_key_value_heads", None) or getattr(c, "num_attention_heads", 1)
        size = getattr(c, "head_dim", None) or c.hidden_size // c.num_attention_heads
        a_row = 2 * c.num_hidden_layers * heads * size * columns * self.model.dtype.itemsize
        return int(free_memory(self.model.device) / 4 / a_row)
