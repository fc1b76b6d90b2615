"""What a transform is: one file of this folder, ending in `TRANSFORM = Subclass`.

A transform takes a model and makes another one of its weights, without any training. Its fields are
its settings, so an object is one setting of one transform: `Quantise(bits=4)`, as text
"quantise:bits=4".
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

from ftlab._core import plugins
from ftlab._core.config import Config, setting
from ftlab._core.errors import UsageError
from ftlab.models import Model, local_model
from ftlab.training.shapes import difference_of_shape


class Transform(Config):
    """A transform. Subclasses override `change`, or `apply` where the folder is to hold no floats.

    Attributes:
        name: Its public name; also the name of its file.
        source: The paper, with the number of the equation or section.
        amount: The setting that says how much is changed.
        others: Settings that are further models.
        version: Raised whenever the same settings would end in other weights.
    """

    name: ClassVar[str] = ""
    source: ClassVar[str] = ""
    amount: ClassVar[str] = ""
    others: ClassVar[tuple[str, ...]] = ()
    version: ClassVar[str] = "1"

    def apply(self, model: Model) -> Any:
        """Return the torch model that is saved: the model's weights in fp32, changed.

        Raises:
            UsageError: `weights_not_finite`.
        """
        import torch

        module = model.load(training=True)
        with torch.no_grad():
            self.change(module)
        for name, weights in module.named_parameters():
            if not weights.isfinite().all():
                raise UsageError(
                    "weights_not_finite",
                    f"{self.spec} of {model.name} leaves numbers in {name} that are not finite. "
                    "Lower its settings, or look for the model that holds them.",
                )
        return module

    def change(self, module: Any) -> None:
        """Change the weights of a torch model in place."""
        raise NotImplementedError

    def check(self, model: Model) -> None:
        """Raise UsageError where the transform does not work with a model."""

    def beside(self, parent: Any) -> Transform:
        """Return the transform with the model that it compares with, where none was given."""
        return self

    def made_from(self) -> list[Model]:
        """Return the further models that the new one is made from."""
        return []

    def identity(self) -> dict[str, Any]:
        """Return what stands for the transform in a run's identity."""
        return {"name": self.name, "version": self.version, **self.model_dump(mode="json")}

    @property
    def marker(self) -> str:
        """Why the new model is not safe, where the transform removes safety; "" otherwise."""
        return ""

    @property
    def spec(self) -> str:
        """The transform as text, without models: "quantise:bits=4"."""
        settings = []
        for name, field in type(self).model_fields.items():
            value = getattr(self, name)
            if name in self.others:
                continue
            if name == self.amount or value != field.default:
                settings.append(f"{name}={value}")
        listed = ",".join(settings)
        return f"{self.name}:{listed}" if listed else self.name


class OfTwo(Transform):
    """A transform of a model and another one of its shape, or more of them (`others`)."""

    others = ("other",)

    other: Any = setting(None, "The other model, of the same shape")

    def check(self, model: Model) -> None:
        """Check that the other models were given and fit.

        Raises:
            UsageError: `other_model_needed`, `other_model_differs`, and those of `ftlab.model`.
        """
        for name in self.others:
            given = getattr(self, name)
            if given is None:
                raise UsageError(
                    "other_model_needed",
                    f"The transform {self.name} needs another model beside {model.name}. "
                    f"Give it, as in {self.name}:{name}=FOLDER.",
                )
            differs = difference_of_shape(model, local_model(given))
            if differs:
                raise UsageError(
                    "other_model_differs",
                    f"Of the model {name}= {differs}. Give a model of the same shape.",
                )

    def beside(self, parent: Any) -> Transform:
        """Return the transform with the parent as its other model, where none was given."""
        if self.other is not None:
            return self
        return self.model_copy(update={"other": parent})

    def made_from(self) -> list[Model]:
        """Return the other models."""
        return [local_model(getattr(self, name)) for name in self.others]

    def identity(self) -> dict[str, Any]:
        """Return the identity; the other models are in it by their hashes."""
        settings = self.model_dump(mode="json", exclude=set(self.others))
        hashes = [model.hash for model in self.made_from()]
        others = dict(zip(self.others, hashes, strict=True))
        return {"name": self.name, "version": self.version, **settings, **others}

    def pairs(self, module: Any) -> Iterator[tuple[Any, Any]]:
        """Yield each weight of a torch model with that of the other model.

        Raises:
            UsageError: `other_model_differs`, before the first.
        """
        other = local_model(self.other)
        mine = dict(module.named_parameters())
        theirs = dict(other.load(training=True).named_parameters())
        names = sorted({*mine, *theirs})
        differing = [name for name in names if _shape(mine, name) != _shape(theirs, name)]
        if differing:
            name = differing[0]
            raise UsageError(
                "other_model_differs",
                f"Of the other model {name} is {_shape(theirs, name)}, of the model "
                f"{_shape(mine, name)}. Give a model of the same shape.",
            )
        for name, weights in mine.items():
            yield weights, theirs[name].detach().to(weights.device)


def _shape(weights: dict[str, Any], name: str) -> str:
    """Return the shape of a weight in words."""
    found = weights.get(name)
    return "absent" if found is None else f"of shape {tuple(found.shape)}"


def open_transform(transform: str | Transform) -> Transform:
    """Return a transform by its public name; a `Transform` is returned as it is.

    Args:
        transform: `name` or `name:setting=value,setting=value`, such as "quantise:bits=4".

    Raises:
        UsageError: `unknown_transform`, `transform_settings`, `wrong_setting`.
    """
    if isinstance(transform, Transform):
        return transform
    return plugins.configured("transforms", str(transform))
