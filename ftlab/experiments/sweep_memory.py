"""What the jobs of a sweep take of a machine's memory, estimated before they begin."""

from __future__ import annotations

import inspect
import json
from dataclasses import replace
from typing import Any

from ftlab import models
from ftlab._core.errors import UsageError
from ftlab.experiments.backends import Needs
from ftlab.experiments.sweep_plans import Resolved, open_cell

GIB = 2**30


def needs_of(found: Resolved) -> Needs:
    """Return what each job of a plan takes; with `estimate_memory`, the memory of the largest.

    It is that of a training on CPUs, so that such a job sees no accelerator.

    Raises:
        UsageError: `nothing_to_estimate` where the jobs have no `parent` or `model`; what
            `ftlab.models.estimate_memory` raises.
    """
    needs = found.plan.needs
    if not found.plan.estimate_memory:
        return needs
    shapes = {}
    for job in found.jobs:
        shape = _shape(found, job)
        shapes[json.dumps(shape)] = shape
    most = max(_gib(**shape) for shape in shapes.values())
    return replace(needs, memory=int(most * GIB), gpus=0)


def _shape(found: Resolved, job: dict[str, Any]) -> dict[str, Any]:
    """Return what the memory of a job depends on, the cell's defaults included."""
    values: dict[str, Any] = {}
    if job["cell"]:
        cell = open_cell(job["cell"], found.directory)
        for name, parameter in inspect.signature(cell).parameters.items():
            values[name] = parameter.default
    values |= job["arguments"]
    model = job["arguments"].get("parent") or job["arguments"].get("model")
    if not isinstance(model, str):
        raise UsageError(
            "nothing_to_estimate",
            f"{job['name']} has no parent or model as an argument. Write memory: instead.",
        )
    beside = found.directory / model
    return {
        "model": str(beside) if beside.exists() else model,
        "method": values.get("adapter") or "full",
        "length": values.get("max_length") or 512,
        "batch": values.get("batch_size") or 16,
        "lora_rank": values.get("lora_rank") or 16,
    }


def _gib(**shape: Any) -> float:
    estimate = models.estimate_memory(shape.pop("model"), gpu="cpu", **shape)
    table = estimate.table().set_index("method")
    return table["total"][estimate.method]
