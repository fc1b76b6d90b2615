"""Keys and values of rows in the middle of their answers: rows leave, join and move without being read again."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

ROOM = 32  # columns that a cache grows by at a time


@dataclass
class State:
    """Rows in the middle of their answers. `mask` [rows, columns]: which columns of the cache hold a token (they end
    together); `token` [rows]: what the model reads next."""

    rows: list[int]
    cache: object
    mask: object
    token: object

    def select(self, keep) -> None:
        self.rows = [self.rows[k] for k in keep.tolist()]
        self.cache.batch_select_indices(keep)
        self.mask, self.token = self.mask[keep], self.token[keep]

    def trim(self) -> None:
        """Drops the columns on the left in which no row has a token."""
        if first := int(self.mask.any(0).nonzero()[0]):
            self.mask = self.mask[:, first:]
            for layer in self.cache.layers:
                layer.keys, layer.values = layer.keys[:, :, first:], layer.values[:, :, first:]


def joined(states: list[State]) -> State:
    """-> one state of several: the shorter ones get empty columns on the left."""
    import torch
    from torch.nn.functional import pad

    if len(states) == 1:
        return states[0]
    for s in states:  # rows that have left no longer need their columns
        s.trim()
    widest = max(s.mask.shape[1] for s in states)
    for parts in zip(*(s.cache.layers for s in states), strict=True):
        for name in ("keys", "values"):
            each = [getattr(p, name) for p in parts]
            setattr(parts[0], name, torch.cat([pad(t, (0, 0, widest - t.shape[2], 0)) for t in each]))
    mask = torch.cat([pad(s.mask, (widest - s.mask.shape[1], 0)) for s in states])
    rows = [i for s in states for i in s.rows]
    return State(rows, states[0].cache, mask, torch.cat([s.token for s in states]))


def rolled(cache, mask, by):
    """Moves each row `by` columns to the right, over what was read and does not hold -> the mask; empty columns are dropped."""
    import torch

    place = torch.arange(mask.shape[1], device=mask.device) - by[:, None]
    mask = mask.gather(1, place.clamp(min=0)) * (place >= 0)
    first = int(mask.any(0).nonzero()[0])
    place = place.clamp(min=0)[:, None, first:, None]
    for layer in cache.layers:
        wide = place.expand(-1, layer.keys.shape[1], -1, layer.keys.shape[3])
        layer.keys, layer.values = layer.keys.gather(2, wide), layer.values.gather(2, wide)
    return mask[:, first:]


def copied(cache):
    """-> a cache of the same tensors: selecting rows of one leaves the other."""
    from transformers import DynamicCache

    made = DynamicCache()
    for layer in cache.layers:
        made.layers.append(roomy()())
        made.layers[-1].keys, made.layers[-1].values, made.layers[-1].is_initialized = layer.keys, layer.values, True
    return made


@cache
def roomy():
    """-> transformers' cache layer with room for `ROOM` more columns: its own copies everything at every token."""
    from transformers.cache_utils import DynamicLayer

    class Roomy(DynamicLayer):
        room = None  # keys and values with free columns behind those in use

        def update(self, key_states, value_states, *args, **kwargs):
            if not self.is_initialized:
                self.lazy_initialization(key_states, value_states)
                self.keys, self.values = key_states[:, :, :0], value_states[:, :, :0]
            n, more = self.keys.shape[2], key_states.shape[2]
            mine = (
                self.room and self.keys.data_ptr() == self.room[0].data_ptr()
            )  # else rows were selected, joined or moved
            if not mine or n + more > self.room[0].shape[2]:
                free = n + more + ROOM
                self.room = tuple(t.new_empty(*t.shape[:2], free, t.shape[3]) for t in (key_states, value_states))
                self.room[0][:, :, :n], self.room[1][:, :, :n] = self.keys, self.values
            self.room[0][:, :, n : n + more], self.room[1][:, :, n : n + more] = key_states, value_states
            self.keys, self.values = self.room[0][:, :, : n + more], self.room[1][:, :, : n + more]
            return self.keys, self.values

        def crop(self, tokens_to_remove):
            raise NotImplementedError

    return Roomy
