"""answer -> verdict. A judge is a module with `VERSION` and `judge(rows, answers, argument) -> [Judgement]`.

Verdicts (`config.VERDICTS`): complied (and right, where the judge can know), complied_wrong, partial (partly
refused), refused, empty, incoherent, unparsed, error. The last two are never scored. A public name is `name` or
`name:argument`, as in `keywords:zou2023universal`. Optional in a module: `check(argument)` raises ValueError naming
what is allowed, `accepts(rows)` likewise for prompts, `version(argument)` where the version depends on the argument.
How far each agrees with people: `data/judge/*.md`.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module

OWN_WORDS = ("refusal", "keywords")  # judge what the model said itself, not the words put into its mouth (prefill)
JUDGES = {"organism": "", "refusal": "", "keywords": "[:LIST]", "zoo": ":JUDGE[@FOLDER]", "api": ":MODEL@URL"}


@dataclass(frozen=True)
class Judgement:
    """One verdict. `score`: the judge's own number (its card says of what); `why`: a few words, never the answer's; `by`:
    who decided, where it was not the judge."""

    verdict: str
    score: float | None = None
    why: str = ""
    by: str = ""


@dataclass(frozen=True)
class Judge:
    """A judge by its public name; called with prompt rows and answers it gives one Judgement each."""

    name: str

    @property
    def argument(self) -> str:
        return self.name.partition(":")[2]

    @property
    def module(self):
        return import_module(f"ftlab.judges.base.{self.name.partition(':')[0]}")

    @property
    def version(self) -> str:
        return self.module.version(self.argument) if hasattr(self.module, "version") else self.module.VERSION

    def check(self, rows=()) -> None:
        """Raises ValueError where the argument or a prompt is not for this judge."""
        if hasattr(self.module, "check"):
            self.module.check(self.argument)
        elif self.argument:
            raise ValueError(
                f"judge {self.name.partition(':')[0]!r} takes no argument, found {self.argument!r}; leave it out"
            )
        if hasattr(self.module, "accepts"):
            self.module.accepts(rows)

    @property
    def own_words(self) -> bool:
        return self.name.partition(":")[0] in OWN_WORDS

    @property
    def refusal_stands(self) -> bool:
        """Whether a refusal in the first words stays one whatever follows (`REFUSAL_STANDS` in the module; its card shows it)."""
        return getattr(self.module, "REFUSAL_STANDS", False)

    def release(self) -> None:
        """Gives back the memory of a judge that is itself a model."""
        if hasattr(self.module, "release"):
            self.module.release()

    def __call__(self, rows: list[dict], answers: list[str]) -> list[Judgement]:
        return self.module.judge(rows, answers, self.argument)


def judge(name: str) -> Judge:
    """-> a judge. Raises ValueError with the names that exist."""
    found = Judge(str(name))
    if found.name.partition(":")[0] not in JUDGES:
        raise ValueError(f"unknown judge {name!r}; allowed: {', '.join(n + a for n, a in JUDGES.items())}")
    found.check()
    return found
