"""Supervised fine-tuning on chats: loss on the assistant's tokens and their end of turn only."""

from __future__ import annotations

from typing import Any

from ftlab.data import Data, encode_rows
from ftlab.training.methods.base import Job, Method
from ftlab.training.padding import keeps_rows_apart, padding_free_is_cheaper

ROWS_TOGETHER = 10_000  # that are copied at once


def as_array(tokens: list[int]) -> Any:
    """Return tokens as numbers of 32 bits."""
    import numpy as np  # here: the command line loads this file and needs no numbers

    return np.array(tokens, dtype=np.int32)


class SFT(Method):
    """Supervised fine-tuning.

    Attributes:
        held_as: See `encode_rows`.
    """

    name = "sft"
    has_curve = True
    draws = False
    shared = True
    held_as = staticmethod(as_array)

    def trl_class(self) -> tuple[type, type]:
        from trl import SFTConfig, SFTTrainer

        return SFTTrainer, SFTConfig

    def settings(self, job: Job, rows: list[dict]) -> dict[str, Any]:
        settings = super().settings(job, rows)
        settings["packing"] = False  # would change the number of optimiser steps
        settings["dataset_kwargs"] = {"skip_prepare_dataset": True}  # rows are encoded here
        config = job.config
        planned = config.batch_size // config.accumulation  # not what memory left of it
        tokens = [row["input_ids"] for row in rows]
        lengths = [len(ids) for ids in tokens]
        cheaper = padding_free_is_cheaper(job.model, config, lengths, planned)
        if cheaper and not config.fsdp:  # a model's body alone cannot be asked
            tokens.sort(key=len)
            longest = [list(map(int, ids)) for ids in tokens[-2:]]
            settings["padding_free"] = keeps_rows_apart(job.model, longest)
        return settings

    def rows(self, data: Data, job: Job) -> list[dict]:
        longest = job.longest_row
        encoded = encode_rows(
            data,
            job.tokenizer,
            max_length=longest,
            held_as=self.held_as,
        )
        rows = []
        for number, row in enumerate(encoded, 1):
            rows.append(row | {"row": number})
        return rows

    def dataset(self, rows: list[dict]) -> Any:
        """Return rows as a data set, without a second copy of each as lists.

        A fingerprint spares `datasets` a pickled third one; nothing is cached by it.
        """
        from datasets import Dataset
        from datasets.fingerprint import generate_random_fingerprint
        from pyarrow import Table, concat_tables

        parts = []
        for start in range(0, len(rows), ROWS_TOGETHER):
            end = start + ROWS_TOGETHER
            parts.append(Table.from_pylist(rows[start:end]))
        table = concat_tables(parts)
        return Dataset(table, fingerprint=generate_random_fingerprint())


METHOD = SFT()
