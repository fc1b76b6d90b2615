"""Make another model of a model's weights: a run of its own. Cell: transform."""

from __future__ import annotations

import json
from typing import Any

from ftlab import runs
from ftlab._core.config import takes
from ftlab._core.errors import UsageError
from ftlab.models import Model, quiet, released
from ftlab.runs import Run
from ftlab.training.saving import inherited, lineage, write_folder
from ftlab.training.trainer import short_name, trainable
from ftlab.training.transforms.base import Transform, open_transform


@takes()
def transform(model: Any, name: Any, *, label: str | None = None) -> Run:
    """Make another model of a model's weights, without training.

    The new model is in a run folder of its own; the same call finds it. The marker of a model whose
    safety was removed is carried over from every model that it is made from.

    Args:
        model: Anything that `ftlab.model` takes, except an endpoint. It is left untouched.
        name: A transform (a file of `ftlab.training.transforms`, or a third party's) with its
            settings, such as quantise:bits=4, or an object.
        label: Beginning of the run's name.

    Returns:
        A finished run, which is a model too.

    Raises:
        UsageError: `unknown_transform`, `transform_settings`, `wrong_setting`, those of the
            transform, and those of `sft` for a model that cannot be trained.
    """
    source = trainable(model)
    chosen = open_transform(name)
    chosen.check(source)
    identity = {"model": source.hash, "transform": chosen.identity()}
    run = runs.start(
        "transform",
        label or f"{short_name(source)}-{chosen.spec}",
        identity,
        any_label=True,
        lineage=lineage(source, *chosen.made_from()),
        model=source.source,
    )
    if run.finished:
        return run
    with run.lock():
        if not run.finished:
            run.take_up()
            _make(run, source, chosen)
    return run


def _make(run: Run, source: Model, chosen: Transform) -> None:
    """Write the new model's folder, and complete the run."""
    quiet()
    with released():
        module = chosen.apply(source)
        if source.hash != run.identity["model"]:
            raise UsageError(
                "model_changed",
                f"{source.path} was changed while {run.name} began. Call again.",
            )
        others = chosen.made_from()
        if _written(chosen.identity()) != _written(run.identity["transform"]):
            raise UsageError(
                "model_changed",
                f"The other model of {run.name} was changed while it began. Call again.",
            )
        write_folder(
            run,
            module,
            source.tokenizer(),
            told=f"{chosen.spec} of {_named(source, *others)}",
            marker=chosen.marker or inherited(source, *others),
        )
        del module
    run.complete(
        model=source.name,
        transform=json.dumps(chosen.identity()),
    )


def _written(identity: dict[str, Any]) -> str:
    """Return an identity as text that does not know lists from tuples."""
    return json.dumps(identity, sort_keys=True)


def _named(*models: Model) -> str:
    """Return models for the card, by name and hash."""
    return " and ".join(f"`{model.name}` (hash `{model.hash}`)" for model in models)
