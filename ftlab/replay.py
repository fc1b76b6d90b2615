"""Draft replay: what a model said before its last training steps is what it will probably say after them.

Earlier answers to the same prompt are drafts for `generate.answers`, which verifies them: exact. Kept where it wins,
switched off by measurement where it does not.
"""

from __future__ import annotations

KEPT = 3  # different earlier answers to a prompt, the latest first
ENOUGH = 64  # decoded tokens from which on their seconds are a measurement


class Replay:
    """One object a curve; its arms share it."""

    def __init__(self):
        self.on = True
        self.questions: list = []  # of the evaluation, rendered once (`asking.Question`)
        self.latest: dict = {}  # hash of the model that answered last -> its records by key
        self.held: dict = {}  # name of a file -> (path, its records when it was first read, its size since)
        self.said: dict[str, tuple] = {}  # rendered prompt -> earlier answers (tokens or text), the latest first

    def there(self, run, file: str) -> list[dict]:
        """-> the records that a file of a run had before this process wrote to it: at every checkpoint the same, read once."""
        path = run.path / file
        if file not in self.held or self.held[file][0] != path or self.held[file][2] != _size(path):
            self.held[file] = path, run.read(file), _size(path)
        return self.held[file][1]

    def wrote(self, run, file: str) -> None:
        path, records, _ = self.held[file]
        self.held[file] = path, records, _size(path)

    def drafts(self, prompts: list[str]) -> list[list] | None:
        """-> for each rendered prompt its earlier answers; None where there is none, or where drafts do not pay."""
        found = [list(self.said.get(p, ())) for p in prompts]
        return found if self.on and any(found) else None

    def remember(self, prompts: list[str], answers: list) -> None:
        for prompt, answer in zip(prompts, answers, strict=True):
            others = [a for a in self.said.get(prompt, ()) if a != answer]
            self.said[prompt] = (answer, *others[: KEPT - 1])

    def weigh(self, tally) -> None:
        """Switches drafts off where reading them took longer than decoding the tokens that they saved would have."""
        decoded = tally.tokens - tally.saved
        if tally.drafted and decoded >= ENOUGH:
            a_step = (tally.seconds - tally.drafting) / decoded
            read = tally.drafting * tally.drafted / (tally.drafted + tally.prompted)
            self.on = tally.saved * a_step > read


def _size(path) -> int:
    return path.stat().st_size if path.exists() else 0
