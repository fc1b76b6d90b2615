"""Answers by several processes, each with the model on a GPU of its own.

Each process opens the model and answers its share of the requests, which are dealt out by length so
that all work about equally long. Answers come back as they end.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from ftlab._core.processes import share_out
from ftlab._core.types import Answer
from ftlab.models.devices import use_device
from ftlab.models.engines.base import Collector, Engine, LoadedModel, Request, Tally

Found = tuple[list[int], list[Answer]]  # numbers of requests, their answers


@dataclass
class Elsewhere(LoadedModel):
    """A model that only the processes that answer will open.

    Args:
        how: Keyword arguments of `Model.load`.
    """

    how: dict[str, Any] = field(default_factory=dict)


@dataclass
class Share:
    """What one process answers.

    Args:
        engine: Answers in that process, on one device.
        model: The model.
        device: Number of its GPU.
        processes: How many processes there are.
        numbers: Numbers of its requests.
        requests: Its requests.
    """

    engine: Engine
    model: Elsewhere
    device: int
    processes: int
    numbers: list[int]
    requests: list[Request] = field(default_factory=list)


def answer_elsewhere(engine: Engine, model: Elsewhere, collector: Collector, devices: int) -> None:
    """Let processes answer the requests of a collector.

    Args:
        engine: An engine that answers on one device; each process works with a copy.
        model: The model.
        collector: The requests.
        devices: The number of processes, unless there are fewer requests.

    Raises:
        ProcessFailed: `process_lost`, `process_failed`. Answers that had come are kept.
    """
    lengths = [len(request.text) for request in collector.requests]
    by_length = sorted(range(len(lengths)), key=lengths.__getitem__)
    processes = min(devices, len(lengths))
    parts = []
    for device in range(processes):
        share = Share(
            engine,
            model,
            device,
            processes,
            by_length[device::processes],
        )
        for number in share.numbers:
            share.requests.append(collector.requests[number])
        parts.append((share,))
    tallies = share_out(
        model.reference.name,
        _answer,
        parts,
        lambda found: collector.add(*found),
    )
    for tally in tallies:
        collector.tally.drafted += tally.drafted
        collector.tally.saved += tally.saved
        collector.tally.halved += tally.halved


def _answer(report: Callable[[Found], None], share: Share) -> Tally:
    """Answer a share in this process; report the answers by their numbers among all requests."""

    def tell(mine: list[int], answers: list[Answer]) -> None:
        numbers = [share.numbers[number] for number in mine]
        report((numbers, answers))

    engine = share.engine
    use_device(share.device, share.processes)
    loaded = engine.open(
        share.model.reference,
        **share.model.how,
    )
    engine.answer(loaded, share.requests, tell)
    return engine.tally
