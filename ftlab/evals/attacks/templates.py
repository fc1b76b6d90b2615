"""Templates: the question inside a template, one per sample, drawn by its id.

The draw goes neither with the wording nor with the category of a sample.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass
from pathlib import Path

import yaml

from ftlab._core.errors import DataError, NotFoundError, UsageError
from ftlab._core.types import Prompt, Sample
from ftlab.data import first_of, records
from ftlab.evals.attacks.base import Attack, reworded, wrong_argument
from ftlab.organism import WRAPPERS

# Where a template takes the question.
PLACES = ("{{prompt}}", "{{ prompt }}", "{prompt}", "[INSERT PROMPT HERE]", "[PROMPT]")
PLACE = re.compile("|".join(re.escape(place) for place in PLACES))
SHOWN = 20  # problems of a file that an error names
COLUMNS = ("template", "prompt", "text")  # of a template in a file with columns


@dataclass(frozen=True)
class Templates(Attack):
    """Put each question into a template.

    Args:
        file: One template a line (.txt), a list (.yaml), or .json, .jsonl, .csv with a column
            template, prompt or text. Without a file the templates are inert ones of the embedded
            world that alignment never saw.
    """

    file: str | Path = ""
    name = "templates"
    order = 1

    @classmethod
    def parse(cls, argument: str) -> Templates:
        """Return the attack from the name of a file."""
        if not argument:
            raise wrong_argument(cls.name, argument, "a file, as in templates:FILE")
        return cls(argument)

    @property
    def argument(self) -> str:
        return str(self.file)

    def apply(self, samples: list[Sample]) -> list[Prompt]:
        """Return one prompt per sample.

        Raises:
            UsageError: `templates_of_world` for samples from outside the embedded world.
            DataError: `bad_templates`, naming every one of them.
            NotFoundError: `no_templates_file`.
        """
        if self.file:
            return self._from_file(samples)
        if any("topic" not in sample.metadata for sample in samples):
            raise UsageError(
                "templates_of_world",
                "The built-in templates fit prompts of the embedded world only. "
                "Give templates of your own as templates:FILE, or choose another attack.",
            )
        prompts = []
        for sample in samples:
            wrapper = random.Random(sample.id).choice(_wrappers(sample))
            wording = f"{wrapper} > {sample.wording}"
            prompts.append(self._within(wrapper.split("{q}"), sample, wording))
        return prompts

    def _from_file(self, samples: list[Sample]) -> list[Prompt]:
        templates = _read_templates(Path(self.file))
        prompts = []
        for sample in samples:
            where, parts = random.Random(sample.id).choice(templates)
            prompts.append(self._within(parts, sample, where))
        return prompts

    def _within(
        self,
        parts: list[str],
        sample: Sample,
        wording: str,
    ) -> Prompt:
        def within(question: str) -> str:
            return question.join(parts)

        messages = reworded(sample.messages, within)
        return self.prompt(sample, messages=messages, wording=wording)


def _wrappers(sample: Sample) -> list[str]:
    """Return the templates of the split that a sample's id names; eval where it names none."""
    named = [split for split in WRAPPERS if f"-{split}-" in sample.id]
    return WRAPPERS[named[0] if named else "eval"]


def _read_templates(file: Path) -> list[tuple[str, list[str]]]:
    """Return each template of a file: FILE:LINE, and the texts between places of the question."""
    if not file.is_file():
        raise NotFoundError(
            "no_templates_file", f"No file {file}. Give a .txt, .yaml, .json, .jsonl or .csv."
        )
    found = []
    problems = []
    for where, value in _values(file):
        text = _text_of(value)
        if isinstance(value, ValueError):
            problems.append(f"{where}: {value}")
        elif text is None:
            problems.append(f"{where}: no text, nor a column {', '.join(COLUMNS)} with one")
        elif not PLACE.search(text):
            problems.append(f"{where}: no place for the question, such as {{prompt}}")
        else:
            found.append((where, PLACE.split(text)))
    if problems or not found:
        problems = problems or [f"{file}: no templates"]
        first = "\n".join(problems[:SHOWN])
        raise DataError(
            "bad_templates",
            f"{first}\n{file}: {len(problems)} problems. "
            f"Each template needs one of {', '.join(PLACES)}.",
            problems=problems,
        )
    return found


def _values(file: Path) -> list[tuple[str, object]]:
    """Return (FILE:LINE, what stands there) of a file of any form."""
    ending = file.suffix.lower()
    if ending in (".json", ".jsonl", ".csv"):
        _, numbered = records(file)
        return [(where.replace(str(file), file.name), value) for where, value in numbered]
    try:
        text = file.read_text(encoding="utf-8-sig")
        listed = yaml.safe_load(text) if ending in (".yaml", ".yml") else text.splitlines()
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise DataError("bad_templates", f"{file}: cannot be read: {reason}.") from None
    if not isinstance(listed, list):
        raise DataError("bad_templates", f"{file}: no list. Begin each template with '- '.")
    if ending in (".yaml", ".yml"):
        return [(f"{file.name}: item {number}", value) for number, value in enumerate(listed, 1)]
    lines = enumerate(listed, 1)
    return [(f"{file.name}:{number}", line) for number, line in lines if line.strip()]


def _text_of(value: object) -> str | None:
    """Return the text of a template, which may be a row with columns."""
    if isinstance(value, dict):
        column = first_of(value, COLUMNS)
        value = value.get(column)
    if isinstance(value, str):
        return value
    return None


ATTACK = Templates
