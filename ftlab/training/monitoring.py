"""What training knows of measuring: a function that is called with the model on the way.

A monitor is called with the model in training (`LoadedModel`) and the step, and returns
`{metric: rate}`. Training draws the metrics, and ends where one of them passes a limit. If it has
an attribute `metrics`, their names, a limit on another metric is refused before the training.
"""

from __future__ import annotations

import ast
import contextlib
import functools
import inspect
import textwrap
from collections.abc import Callable, Iterator
from typing import Any

from ftlab._core.errors import TrainingFailed, UsageError
from ftlab._core.files import digest
from ftlab._core.progress import Progress
from ftlab.models import out_of_memory
from ftlab.models.engines import LoadedModel
from ftlab.training.config import TrainingConfig

REFUSED = "refused"  # metric: the share of jailbreak prompts that the model refused
Monitor = Callable[[LoadedModel, int], dict[str, float]]


def function_identity(function: Callable) -> Any:
    """Return what stands for a user's function in a run's identity.

    Its attribute `identity` (anything JSON can hold) where it has one, else its name with its
    attribute `version`, else its name with a hash of its parsed source, so that neither comments
    nor layout make another run. Values the function takes from elsewhere are not seen.

    Raises:
        UsageError: `function_without_source`.
    """
    declared = getattr(function, "identity", None)
    if declared is not None:
        return declared
    named = function if hasattr(function, "__qualname__") else type(function)
    version = getattr(function, "version", None)
    if version is not None:
        return f"{named.__qualname__}:{version}"
    try:
        if isinstance(function, functools.partial):
            raise TypeError("a partial function's arguments are not in its source")
        tree = ast.parse(textwrap.dedent(inspect.getsource(named)))
    except (OSError, TypeError, SyntaxError):
        raise UsageError(
            "function_without_source",
            f"The source of {named.__qualname__} cannot be read. "
            "Define it with def, or give it an attribute version.",
        ) from None
    return f"{named.__qualname__}:{digest(ast.dump(_without_docstrings(tree)))}"


def _without_docstrings(tree: ast.Module) -> ast.Module:
    documented = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    for node in ast.walk(tree):
        if isinstance(node, documented) and ast.get_docstring(node) is not None:
            node.body = node.body[1:] or [ast.Pass()]
    return tree


def call_monitor(
    monitor: Monitor, loaded: LoadedModel, step: int, progress: Progress
) -> dict[str, float]:
    """Call the monitor so that the training does not notice, draw what it found and return it."""
    try:
        with undisturbed(loaded):
            found = monitor(loaded, step) or {}
    except Exception as error:
        if not out_of_memory(error):
            raise
        raise TrainingFailed(
            "monitor_out_of_memory",
            f"{loaded.run.name}: out of memory in the monitor at step {step} ({error}). "
            "Give it fewer or shorter prompts.",
        ) from None
    for name, value in found.items():
        if name != REFUSED:
            progress.point(step, name, value)
    return found


@contextlib.contextmanager
def undisturbed(loaded: LoadedModel) -> Iterator[None]:
    """Restore the random state, the padding side and the training mode afterwards."""
    import torch

    cpu_state = torch.get_rng_state()
    cuda_states = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    padding_side = loaded.tokenizer.padding_side
    try:
        yield
    finally:
        loaded.tokenizer.padding_side = padding_side
        torch.set_rng_state(cpu_state)
        if cuda_states:
            torch.cuda.set_rng_state_all(cuda_states)
        loaded.module.train()


@contextlib.contextmanager
def repaired(job: Any, module: Any) -> Iterator[None]:
    """Have the weights as the defence repairs them, and afterwards as they were, bit for bit."""
    defence = job.config.protection
    if not defence.overrides("repair"):
        yield
        return
    trained = [weights for weights in module.parameters() if weights.requires_grad]
    before = [weights.detach().clone() for weights in trained]
    try:
        defence.repair(job.parent, module)
        yield
    finally:
        for weights, values in zip(trained, before, strict=True):
            weights.data.copy_(values)


def passed_limit(config: TrainingConfig, monitor: Monitor, found: dict[str, float]) -> str:
    """Return why the monitor's metrics end the training, or ""."""
    if not hasattr(monitor, "metrics"):  # else checked before the training
        config.check_limits(found)
    for metric, limit in (config.stop_above or {}).items():
        rate = found.get(metric)  # None where no answer of this step could be scored
        if rate is not None and rate > limit:
            return f"{metric} {rate:.1%}, above {limit:.1%}"
    if config.stop_when_broken and found.get(REFUSED) == 0:
        return "no refusal left"
    return ""
