"""Defences that know safety by the way from an unaligned model to the parent."""

from __future__ import annotations

from typing import Any

from ftlab._core.config import setting
from ftlab._core.errors import UsageError
from ftlab.models import Model, local_model
from ftlab.training.defences.base import Defence
from ftlab.training.shapes import difference_of_shape


class WithUnaligned(Defence):
    """A defence that compares the parent with an unaligned model of the same shape."""

    unaligned: Any = setting(None, "Model of the parent's shape without its safety")

    def check(self, parent, method, config) -> None:
        """Check further that the unaligned model was given and has the parent's shape.

        Raises:
            UsageError: `unaligned_model_needed`, `unaligned_model_differs`, and those of
                `ftlab.model`.
        """
        super().check(parent, method, config)
        if self.unaligned is None:
            raise UsageError(
                "unaligned_model_needed",
                f"The defence {self.name} compares {parent.name} with an unaligned model of the "
                f"same shape. Give it, as in {self.name}:unaligned=FOLDER.",
            )
        differs = difference_of_shape(parent, local_model(self.unaligned))
        if differs:
            raise UsageError(
                "unaligned_model_differs",
                f"Of the unaligned model {differs}. Give a model of the same shape.",
            )

    def identity(self) -> dict[str, Any]:
        """Return the identity; the unaligned model is in it by its hash."""
        settings = self.model_dump(mode="json", exclude={"unaligned"})
        unaligned = local_model(self.unaligned).hash
        return {"name": self.name, "version": self.version, **settings, "unaligned": unaligned}

    def safety_vector(self, parent: Model) -> dict[str, Any]:
        """Return parent minus unaligned model for every parameter, by name."""
        aligned = parent.load(training=True)
        before = dict(local_model(self.unaligned).load(training=True).named_parameters())
        found = {}
        for name, weights in aligned.named_parameters():
            found[name] = weights.detach() - before[name].detach()
        return found
