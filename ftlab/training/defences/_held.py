"""What defences share that keep a second copy of the trained weights during a training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

FILE = "held.weights"  # in a checkpoint, in the format of safetensors


def trained(model: Any) -> dict[str, Any]:
    """Return a copy of the weights that are trained, by name."""
    found = {}
    for name, weights in model.named_parameters():
        if weights.requires_grad:
            found[name] = weights.detach().clone()
    return found


def copy(source: dict[str, Any], target: dict[str, Any]) -> None:
    """Copy weights by name, on whatever devices they are."""
    import torch

    with torch.no_grad():
        for name, weights in target.items():
            weights.copy_(source[name])


def with_checkpoints(cls: type) -> type:
    """Return a trainer whose attribute `held`, weights by name, is saved with its checkpoints.

    A resumed training then holds the same weights as one that was never stopped.
    """
    from safetensors.torch import load_file, save_file

    class Holding(cls):
        def _save_checkpoint(self, *given, **named):
            super()._save_checkpoint(*given, **named)
            step = self.state.global_step
            home = Path(self.args.output_dir)
            file = home / f"checkpoint-{step}" / FILE
            save_file(self.held, file)

        def _load_from_checkpoint(self, resume_from_checkpoint, *rest, **named):
            super()._load_from_checkpoint(resume_from_checkpoint, *rest, **named)
            file = Path(resume_from_checkpoint) / FILE
            found = load_file(file)
            copy(found, self.held)

        def hold(self):
            """Hold the weights as they are now."""
            own = dict(self.model.named_parameters())
            copy(own, self.held)

        def restore(self):
            """Set the weights to those that are held."""
            own = dict(self.model.named_parameters())
            changed = {}
            for name in self.held:
                changed[name] = own[name]
            copy(self.held, changed)

    return Holding
