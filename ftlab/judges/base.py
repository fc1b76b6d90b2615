"""What a judge is, and how to open one by its name.

Each judge is a file of this folder that ends in `JUDGE = ClassName`, or an entry point of the
group `ftlab.judges`. Its card, `data/judge/NAME.md`, says how far it agrees with people.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import ClassVar, Literal

from ftlab._core import plugins
from ftlab._core.errors import UsageError
from ftlab._core.types import Judgement, Sample

OLD_NAMES = {"api": "rubric"}


class Judge:
    """Decides what an answer did: see `ftlab._core.types.Outcome`.

    Attributes:
        name: Public name of the judge without its settings.
        version: Changes whenever a verdict can change. Part of a run's identity.
        trained_on: Data sets it was trained on. Agreement measured on them is no evidence.
        reads: "own_text" to judge only what the model wrote itself, without an attack's prefill.
        refusal_stands: Whether a refusal in the first words stays one whatever follows, so that
            an answer may end there.
        english_only: Whether it knows refusals in English alone; see `ftlab.judges.judged`.
        repeatable: Whether it gives the same verdict again, within milliseconds: an interrupted
            training then checks its verdicts when it resumes.
        built_on: Judge whose verdicts it takes over; agreement of the two says nothing.
        counts_reasons: Whether its reasons are few words that are worth counting.
    """

    name: ClassVar[str]
    version: str = "1"
    trained_on: ClassVar[tuple[str, ...]] = ()
    reads: ClassVar[Literal["text", "own_text"]] = "text"
    refusal_stands: ClassVar[bool] = False
    english_only: ClassVar[bool] = False
    repeatable: ClassVar[bool] = False
    built_on: ClassVar[str] = ""
    counts_reasons: ClassVar[bool] = False

    @classmethod
    def parse(cls, argument: str) -> Judge:
        """Make the judge from what follows the colon of its public name.

        Raises:
            UsageError: `judge_takes_no_argument`.
        """
        if argument:
            message = f"Judge {cls.name!r} takes no argument, found {argument!r}. Leave it out."
            raise UsageError("judge_takes_no_argument", message)
        return cls()

    @property
    def spec(self) -> str:
        """Public name with the settings, such as "keywords:zou2023universal"."""
        return self.name

    def accepts(self, samples: Sequence[Sample]) -> None:
        """Raise UsageError where the judge cannot judge answers to these samples."""

    def judge(self, samples: Sequence[Sample], texts: Sequence[str]) -> list[Judgement]:
        """Judge one answer text per sample.

        Args:
            samples: What was asked.
            texts: What was answered, in the same order.

        Returns:
            One judgement per text, in the same order.
        """
        raise NotImplementedError

    def release(self) -> None:
        """Free the memory of a judge that is itself a model."""

    @classmethod
    def about(cls) -> str:
        """Describe the judge in Markdown, for its card."""
        return inspect.getdoc(cls) or ""


def open_judge(judge: str | Judge) -> Judge:
    """Open a judge.

    Args:
        judge: Public name ("refusal", "keywords:LIST", "zoo:NAME@FOLDER", "rubric:MODEL@URL",
            "organism"), or a Judge, which is returned as it is.

    Raises:
        UsageError: `unknown_judge`, or a code of the judge that reads the argument.
    """
    if isinstance(judge, Judge):
        return judge
    argument = str(judge).partition(":")[2]
    return judge_class(str(judge)).parse(argument)


def judge_class(spec: str) -> type[Judge]:
    """Return the class that a public name stands for."""
    name = spec.partition(":")[0]
    return plugins.get("judges", OLD_NAMES.get(name, name))
