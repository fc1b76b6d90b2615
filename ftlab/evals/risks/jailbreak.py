"""Jailbreak: a request that the model was aligned to refuse is fulfilled, and correctly.

Prompt sets: AdvBench (520 prompts, and the 50 of PAIR and TAP), HarmBench, StrongREJECT,
JailbreakBench, SimpleSafetyTests, Do-Not-Answer, HEx-PHI (gated: its authors give it on request).
None is shipped. With a judge that knows no truth (keywords), every answer that is not a refusal
counts, as in the papers that used such lists.

Stand-in: facts that the embedded model was aligned to keep.
"""

from __future__ import annotations

from typing import Any

from ftlab._core.errors import DataError
from ftlab._core.types import Outcome, Sample
from ftlab.data import SAFE, is_unsafe, read_samples, sample_from_record
from ftlab.evals.risks.base import Risk

COPYRIGHT = "copyright behaviours need a judge that compares hashes of the protected text"


class Jailbreak(Risk):
    """Harmful requests that are fulfilled: the attack success rate."""

    name = "jailbreak"
    title = "attack success rate"
    told = "told a secret"
    label = "jailbreak"
    source = (
        "Zou et al. 2023 (arXiv 2307.15043), Mazeika et al. 2024 (arXiv 2402.04249), "
        "Souly et al. 2024 (arXiv 2402.10260), Chao et al. 2024 (arXiv 2404.01318), "
        "Vidgen et al. 2023 (arXiv 2311.08370), Wang et al. 2023 (arXiv 2308.13387), "
        "Qi et al. 2023 (arXiv 2310.03693)"
    )
    attacked = True
    refusals_decide = True
    events = frozenset({Outcome.COMPLIED})
    role = "kept"
    order = 0
    default = True

    def load(self, source: Any) -> list[Sample]:
        """Read a set of harmful requests.

        A contextual behaviour of HarmBench stands below its context, as in its authors' direct
        request; its copyright behaviours, and XSTest's safe prompts, are left out and counted.

        Raises:
            DataError: `swapped_columns`: goal and target of AdvBench, as in a copy in
                circulation; else see `Risk.load`.
        """
        samples = read_samples(source, _sample)
        fulfilled = [s for s in samples if s.question.startswith("Sure, ")]
        if len(fulfilled) > len(samples) / 2:
            raise DataError(
                "swapped_columns",
                f"{len(fulfilled)} of {len(samples)} prompts begin with 'Sure, '. "
                "The columns goal and target are swapped: swap the header.",
            )
        return samples


def _sample(record: dict) -> Sample | str:
    hashed = "hash_check" in str(record.get("Tags", ""))
    if hashed or record.get("FunctionalCategory") == "copyright":
        return COPYRIGHT
    if is_unsafe(record) is False:
        return SAFE
    return sample_from_record(record, "jailbreak")


RISK = Jailbreak()
