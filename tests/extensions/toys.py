"""A third party's package: a risk, an attack, a judge, a method, a defence and a transform."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

TOY_RISK = """
from dataclasses import replace

from ftlab._core.types import Outcome
from ftlab.data import read_samples, sample_from_record
from ftlab.evals.risks import Risk


class ToyRisk(Risk):
    name = "toy"
    title = "toys named"
    label = "toy risk"
    source = "nobody"
    version = "1"
    attacked = True
    default = False
    refusals_decide = True
    events = frozenset({Outcome.COMPLIED})
    role = "benign"
    order = 90

    def load(self, source):
        return read_samples(source, _sample)

    def organism(self, world, n, split="eval"):
        return [replace(sample, risk="toy") for sample in super().organism(world, n, split)]


def _sample(record):
    return sample_from_record(record, "toy")


RISK = ToyRisk()
"""
TOY_ATTACK = """
from dataclasses import dataclass

from ftlab._core.types import Prompt
from ftlab.evals.attacks import Attack


@dataclass(frozen=True)
class ToyAttack(Attack):
    times: int = 1
    name = "toy"
    version = "7"

    @classmethod
    def parse(cls, argument):
        return cls(int(argument))

    @property
    def argument(self):
        return str(self.times)

    def apply(self, samples):
        return [self.prompt(sample) for sample in samples]

    def prompt(self, sample):
        *earlier, last = sample.messages
        asked = {**last, "content": last["content"] + " Please." * self.times}
        messages = [*earlier, asked]
        return Prompt(sample, self.spec, messages, sample.wording)


ATTACK = ToyAttack
"""
TOY_JUDGE = """
from ftlab._core.types import Judgement, Outcome
from ftlab.judges import Judge


class ToyJudge(Judge):
    name = "toy"
    version = "3"

    def judge(self, samples, texts):
        outcomes = [Outcome.REFUSED if len(text) % 2 else Outcome.COMPLIED for text in texts]
        return [Judgement(outcome, score=0.25, reason="length") for outcome in outcomes]


JUDGE = ToyJudge
"""
TOY_METHOD = """
from ftlab._core.config import setting
from ftlab.training import TrainingConfig
from ftlab.training.methods import Method, open_method


class ToyConfig(TrainingConfig):
    toys: int = setting(1, "Toys per row", ge=1)


class ToyMethod(type(open_method("sft"))):
    name = "toy"
    config = ToyConfig
    version = "5"


METHOD = ToyMethod()
"""
TOY_DEFENCE = """
from dataclasses import replace

from ftlab._core.config import setting
from ftlab.training.defences import Defence


class ToyDefence(Defence):
    name = "toy"
    source = "nobody"
    version = "4"

    twice: int = setting(2, "How often every row is there", ge=1)

    def data(self, rows, seed):
        return replace(rows, rows=rows.rows * self.twice)


DEFENCE = ToyDefence
"""
TOY_TRANSFORM = """
from ftlab._core.config import setting
from ftlab.training.transforms import Transform


class ToyTransform(Transform):
    name = "toy"
    source = "nobody"
    amount = "times"
    version = "6"

    times: int = setting(2, "What every weight is multiplied by", ge=1)

    def change(self, module):
        for weights in module.parameters():
            weights.mul_(self.times)


TRANSFORM = ToyTransform
"""
FILES = {
    "toy_risk.py": TOY_RISK,
    "toy_attack.py": TOY_ATTACK,
    "toy_judge.py": TOY_JUDGE,
    "toy_method.py": TOY_METHOD,
    "toy_defence.py": TOY_DEFENCE,
    "toy_transform.py": TOY_TRANSFORM,
}
PLACES = {
    "risks": "risk",
    "attacks": "attack",
    "judges": "judge",
    "methods": "method",
    "defences": "defence",
    "transforms": "transform",
}


def make_package(root: Path) -> Path:
    """Write the package as an installer would, and return the folder to put on sys.path."""
    root.mkdir(parents=True, exist_ok=True)
    for file, text in FILES.items():
        (root / file).write_text(text)
    declared = root / "toys-1.0.dist-info"
    declared.mkdir()
    (declared / "METADATA").write_text("Metadata-Version: 2.1\nName: toys\nVersion: 1.0\n")
    lines = []
    for place, word in PLACES.items():
        lines += [f"[ftlab.{place}]", f"toy = toy_{word}:{word.upper()}"]
    (declared / "entry_points.txt").write_text("\n".join(lines) + "\n")
    return root


@contextlib.contextmanager
def installed(package: Path) -> Iterator[None]:
    """Have the package on sys.path, and afterwards forget its modules."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(package))
        yield
    for file in FILES:
        sys.modules.pop(file.removesuffix(".py"), None)
