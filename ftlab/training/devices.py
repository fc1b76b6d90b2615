"""One training on several devices: a process on each, which share the rows of every step.

torch's DistributedDataParallel, by way of accelerate: every process holds the whole model (or, with
`fsdp`, a share of it), computes the gradients of its rows, and all of them take the same step with
the sum. The first process alone writes the run, measures and decides; the others write nothing but
their random state into a checkpoint. The process that was called waits, shows the progress, and
ends all where one fails.

A step is the one that a single process would take: the rows are those that it would draw, and an
epoch's last step is filled up with rows that have no label, not with repeated ones. Only the order
in which gradients are added differs, and so the last digits.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ftlab._core.errors import UsageError
from ftlab._core.files import storage
from ftlab._core.processes import share_out
from ftlab._core.progress import FarProgress, Progress
from ftlab.models import Model, check_devices, device, quiet, use_device
from ftlab.runs import Run
from ftlab.training.config import TrainingConfig
from ftlab.training.methods.base import Job, Method
from ftlab.training.padding import has_dropout, score_labelled_positions_only

# For the first process, which measures and saves; one that is gone is noticed by the caller.
PATIENCE = timedelta(days=7)
FSDP_SINCE = (2, 8)  # of torch; older ones do not share out what transformers asks for
AT_TRAINING = ("trainer", "repair")  # hooks of a defence that would need all processes
Train = Callable[[Job, "Path | None", Any], None]  # trains a job on from a checkpoint


def check_sharing(config: TrainingConfig, method: Method, parent: Model) -> None:
    """Check that the devices can share a training.

    Raises:
        UsageError: `launched`, `fsdp_not_here`, `method_on_one_device`, `defence_on_one_device`,
            `too_few_devices`.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise UsageError(
            "launched",
            "A launcher started this process several times. Start it once, with devices="
            f"{os.environ['WORLD_SIZE']}; only the command `ftlab` can be launched.",
        )
    if config.fsdp:
        _check_fsdp(config, parent)
    if config.devices == 1:
        return
    if not method.shared:
        raise UsageError(
            "method_on_one_device",
            f"The method {method.name} trains on one device. Leave devices out.",
        )
    if any(map(config.protection.overrides, AT_TRAINING)):
        raise UsageError(
            "defence_on_one_device",
            f"The defence {config.protection.name} trains on one device. Leave devices out.",
        )
    check_devices(config.devices)


def _check_fsdp(config: TrainingConfig, parent: Model) -> None:
    obstacles = {
        "devices is 1": config.devices == 1,
        f"adapter is {config.adapter}": config.adapter,
        f"{parent.name} is an adapter": parent.adapter,
        f"{parent.name} is quantised": parent.quantised,
        f"torch is {version('torch')}, older than 2.8": _torch() < FSDP_SINCE,
    }
    for obstacle, found in obstacles.items():
        if found:
            raise UsageError(
                "fsdp_not_here",
                "fsdp shards all weights, unquantised and in one folder, over several devices, but "
                f"{obstacle}. Leave fsdp out.",
            )


def _torch() -> tuple[int, ...]:
    """Return the first two numbers of torch's version."""
    numbers = version("torch").split(".")
    return tuple(map(int, numbers[:2]))


def identity_of_sharing(config: TrainingConfig, parent: Model) -> dict[str, int]:
    """Return what the number of devices adds to the identity of a training.

    Without dropout they only round. With dropout each draws for its own rows.
    """
    own = parent.config.get("text_config") or parent.config
    if config.devices > 1 and has_dropout(own):
        return {"devices": config.devices}
    return {}


def train_on_devices(job: Job, checkpoint: Path | None, train: Train) -> None:
    """Train a job in one process per device; the first one completes the run.

    Args:
        job: The training.
        checkpoint: Where it continues, if anywhere.
        train: Called in every process.
    """
    progress = Progress(job.run.name, 1)

    def show(message: tuple) -> None:
        method, *given = message
        getattr(progress, method)(*given)

    with tempfile.TemporaryDirectory(prefix="ftlab-") as folder:
        parts = []
        for number in range(job.config.devices):
            own = replace(job, number=number, processes=job.config.devices)
            parts.append((own, checkpoint, Path(folder) / "store", train))
        share_out(job.run.name, _train_part, parts, show)


class Watched(Run):
    """A run folder as the processes have it that do not write."""

    def append(self, file: str, rows: list[dict]) -> None:
        pass


def _train_part(
    report: Callable[[tuple], None],
    job: Job,
    checkpoint: Path | None,
    store: Path,
    train: Train,
) -> None:
    """Train in this process, as one of several that meet in a file."""
    import torch.distributed as together

    use_device(job.number, job.processes)
    os.environ |= {  # what accelerate reads
        "RANK": str(job.number),
        "LOCAL_RANK": str(job.number),
        "WORLD_SIZE": str(job.processes),
        "LOCAL_WORLD_SIZE": str(job.processes),
    }
    loopback = "lo0" if sys.platform == "darwin" else "lo"
    os.environ.setdefault("GLOO_SOCKET_IFNAME", loopback)
    together.init_process_group(
        "cuda:nccl,cpu:gloo" if device() == "cuda" else "gloo",
        init_method=store.as_uri(),
        rank=job.number,
        world_size=job.processes,
        timeout=PATIENCE,
    )
    progress = FarProgress(report)
    if not job.is_first:
        job = replace(job, run=Watched(job.run.path))
        progress = FarProgress(lambda message: None)
    quiet()
    with score_labelled_positions_only(), storage(job.run.path):
        train(job, checkpoint, progress)
    together.barrier()  # the first one still saves
    together.destroy_process_group()
