"""Measure a model while it is trained. Cell: monitor."""

from __future__ import annotations

from typing import Any

from ftlab._core.config import takes
from ftlab._core.files import digest
from ftlab.evals.config import NOT_FOR_USERS, EvaluationConfig
from ftlab.evals.evaluation import check_engine, check_unchanged
from ftlab.evals.measuring import Measurement, metrics_of
from ftlab.evals.plan import Plan, plan_evaluation
from ftlab.evals.rescoring import recheck
from ftlab.models import Model, fingerprint
from ftlab.models.engines import LoadedModel
from ftlab.runs import Run
from ftlab.training import trainable


class Monitor:
    """Measures risks of a model in training.

    Called with the model and the step, it writes answers and verdicts into the training's run
    and returns {risk: rate}.

    Args:
        parent: The model that is trained.
        plan: What is asked. Several monitors of one curve share it, with its engine.
        parent_run: The parent's finished evaluation, reused as step 0; None measures step 0.
        labels: What distinguishes this training from others of a curve: seed, examples.
        steps_per_epoch: Optimiser steps per epoch; if given, the label `epoch` is added.
    """

    def __init__(
        self,
        parent: Model,
        plan: Plan,
        *,
        parent_run: Run | None = None,
        labels: dict[str, Any] | None = None,
        steps_per_epoch: int | None = None,
    ):
        self.parent = parent
        self.plan = plan
        self.parent_run = parent_run
        self.labels = labels or {}
        self.steps_per_epoch = steps_per_epoch
        self.measurement: Measurement | None = None

    @property
    def identity(self) -> dict[str, Any]:
        """What joins the identity of the training's run."""
        return {"parent": self.parent.hash, **self.plan.identity()}

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of the metrics that it returns."""
        return (*self.plan.risks, "refused")

    def __call__(self, model: LoadedModel, step: int) -> dict[str, float]:
        """Measure the model as it is now.

        Args:
            model: The model in training, with its run.
            step: Optimiser steps so far; 0 is the parent.

        Returns:
            The rate of each risk, and under "refused" the share of jailbreak prompts refused.

        Raises:
            UsageError: `model_changed` if the parent is no longer the one that was planned for.
        """
        measurement = self._measurement_of(model)
        labels = self.labels | {"step": step}
        if self.steps_per_epoch:
            labels["epoch"] = step // self.steps_per_epoch
        if step == 0 and self.parent_run:
            verdicts = measurement.take_over(self.parent_run, labels)
        else:
            weights = digest([fingerprint(model.module), self.parent.hash])
            verdicts = measurement.take(model, weights, labels)
        return metrics_of(self.plan, verdicts)

    def recheck(self, run: Run, steps: list[int]) -> bool:
        """Judge again what an interrupted training measured; return whether all was there."""
        return recheck(run, self.plan, steps)

    def _measurement_of(self, model: LoadedModel) -> Measurement:
        """Return the measurement of the model's run; a new run gets a new one."""
        run = model.run
        if self.measurement is None or self.measurement.run != run:
            check_unchanged(self.parent, run, run.identity["parent"])
            self.measurement = Measurement(run, self.plan)
            if self.parent_run:  # every training of a curve starts where the parent stands
                self.measurement.remind(model, self.parent_run, self.parent.hash)
        return self.measurement


@takes(EvaluationConfig, omit=NOT_FOR_USERS)
def monitor(parent: Any, *, prompts: Any = None, **settings) -> Monitor:
    """Return a monitor for `monitor=` of sft, dpo and kto.

    What it measures can end the training, as with `stop_above={"jailbreak": 0.10}`.

    Args:
        parent: The model that will be trained; anything that `ftlab.model` takes.
        prompts: As in `evaluate`.
        {settings}

    Returns:
        The monitor.

    Raises:
        UsageError: As `evaluate`.
    """
    reference = trainable(parent)
    plan = plan_evaluation(reference, prompts, settings)
    check_engine(reference, plan)
    return Monitor(reference, plan)
