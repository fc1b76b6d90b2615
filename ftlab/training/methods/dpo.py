"""Direct preference optimisation. Source: Rafailov et al. 2023, arXiv 2305.18290, equation 7."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from ftlab._core.config import setting
from ftlab._core.progress import Progress
from ftlab.models import special_tokens
from ftlab.training.config import TrainingConfig
from ftlab.training.methods.base import FirstStep, Job, Method

ANSWER_IDS = {"chosen_ids", "rejected_ids", "completion_ids", "KL_completion_ids"}  # TRL's


class DPOConfig(TrainingConfig):
    """Settings of DPO."""

    beta: float = setting(0.1, "Strength of the tie to the parent", gt=0)


class DPO(Method):
    """Direct preference optimisation. The reference is the parent itself."""

    name = "dpo"
    kind = "pairs"
    config = DPOConfig
    version = "2"  # answers end with the end-of-turn token
    learning_rate = 1e-6
    columns = ("prompt", "chosen", "rejected")
    answers = ("chosen", "rejected")
    first_step_check = FirstStep("loss", math.log(2), 0.05, "ln 2 = 0.693")
    has_curve = True
    draws = False

    def trl_class(self) -> tuple[type, type]:
        import trl

        return as_in_sft(trl.DPOTrainer), trl.DPOConfig

    def settings(self, job: Job, rows: list[dict]) -> dict[str, Any]:
        """Compute the reference's log-probabilities before the first step.

        Otherwise TRL would read the reference from the path in the model's configuration, which
        may be an older model. Without gradients more rows fit into memory than in training.
        """
        return super().settings(job, rows) | {
            "beta": job.config.beta,
            "precompute_ref_log_probs": True,
            "precompute_ref_batch_size": min(job.config.batch_size, 4 * job.fit.micro_batch),
        }


def as_in_sft(trainer: type) -> type:
    """Return TRL's trainer with answers that end as in `sft`, and a line for its reference pass.

    TRL scores what a template writes after the end-of-turn token too, such as a newline.
    """

    class Trainer(trainer):
        reference: Progress | None = None

        def _prepare_dataset(self, dataset, processing_class, *rest):
            special = special_tokens(processing_class)

            def ended(row):
                for name in ANSWER_IDS & row.keys():
                    ends = [place for place, token in enumerate(row[name]) if token in special]
                    if ends:  # some templates end a turn with words
                        row[name] = row[name][: ends[-1] + 1]
                return row

            return super()._prepare_dataset(dataset, processing_class, *rest).map(ended)

        def _precompute_ref_logps(self, dataset, name, batch_size):
            run = Path(self.args.output_dir).parent.name
            self.reference = Progress(f"{run}: reference ({name})", len(dataset))
            self.reference.update(0)
            found = super()._precompute_ref_logps(dataset, name, batch_size)
            self.reference.finish()
            return found

        def compute_ref_log_probs(self, model, inputs):
            found = super().compute_ref_log_probs(model, inputs)
            if self.reference:
                done = self.reference.done + self.args.precompute_ref_batch_size
                self.reference.update(min(done, self.reference.total))
            return found

    return Trainer


METHOD = DPO()
