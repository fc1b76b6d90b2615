"""A training whose processes each hold a share of all weights, gradients and moments (FSDP2).

transformers shards the model as it is loaded, and its trainer leaves such a model alone. Here are
checkpoints, which are whole, as those of one process, and the whole model where it is measured.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from ftlab.models import share_of

SETTINGS = {  # gradients are shared out after every pass, not kept whole until the step
    "accelerator_config": {"gradient_accumulation_kwargs": {"sync_each_batch": True}}
}


def whole_model(job: Any) -> Any:
    """Return, in the first process, a whole copy of the model in training, on its device.

    All processes must call it; the others get None.
    """
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    weights = get_model_state_dict(job.model, options=options)
    if not job.is_first:
        return None
    model = job.parent.load(training=True)
    model.load_state_dict(weights)
    return model


def share_out(model: Any) -> None:
    """Leave each process its share: after a validation it holds the outermost weights whole."""
    model.state_dict()  # FSDP2 makes shares of all weights for it


def sharded(trainer_class: type) -> type:
    """Return a trainer that saves the optimiser's state whole, and loads its share of it.

    Autocast keeps no weights: they would be whole, in bf16, until the end of a forward pass.
    """
    from accelerate.utils import AutocastKwargs

    class Sharded(trainer_class):
        def create_optimizer(self, *given: Any) -> Any:
            self.accelerator.autocast_handler = AutocastKwargs(cache_enabled=False)
            optimizer = super().create_optimizer(*given)
            whole = partial(_whole_state, self.args.should_save)
            optimizer.register_state_dict_post_hook(whole)
            return optimizer

        def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
            if not self.args.should_save:
                self.optimizer.state_dict()  # the first one waits for this one's share
            super()._save_optimizer_and_scheduler(output_dir)

        def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
            if checkpoint is not None:
                _load_share(self.optimizer, Path(checkpoint) / "optimizer.pt")
                schedule = _read(Path(checkpoint) / "scheduler.pt")
                self.lr_scheduler.load_state_dict(schedule)

    return Sharded


def _whole_state(kept: bool, optimizer: Any, found: dict) -> dict:
    """Return an optimiser's state whole, in main memory where it is kept; else only its groups."""
    states = {}
    for number, state in found["state"].items():
        for name, value in state.items():
            whole = value.full_tensor() if hasattr(value, "full_tensor") else value
            if kept:
                states.setdefault(number, {})[name] = whole.cpu()
    return {**found, "state": states}


def _load_share(optimizer: Any, file: Path) -> None:
    """Load this process's share of an optimiser's state that was saved whole."""
    found = _read(file)
    weights = [one for group in optimizer.param_groups for one in group["params"]]
    for number, state in found["state"].items():
        for name, value in state.items():
            if value.shape == weights[number].shape:  # not the number of steps
                state[name] = share_of(value, weights[number])
    optimizer.load_state_dict(found)


def _read(file: Path) -> dict:
    """Return what torch saved; tensors are read from the disk as they are used."""
    import torch

    return torch.load(file, map_location="cpu", mmap=True, weights_only=True)
