"""Draft replay: what a model said before its last training steps is what it will probably say after them.

Earlier answers to the same prompt are drafts for `generate.answers`, which verifies them: exact. Kept where it wins,
switched off by measurement where it does not.
"""

from __future__ import annotations

from ftlab._core.files import stamp

KEPT = 3  # different earlier answers to a prompt, the latest first
REST = 3  # calls without drafts after one in which they did not pay


class Replay:
    """One object a curve; its arms share it."""

    def __init__(self):
        self.plain: float | None = None  # seconds a new token without drafts
        self.off = 0  # calls left without drafts
        self.questions: list = []  # of the evaluation, rendered once (`asking.Question`)
        self.run = None  # folder of the run that was measured last
        self.latest: dict = {}  # hash of the model that answered last -> its records by key
        self.held: dict = {}  # name of a file -> (path, its records when it was first read, its inode and size since)
        self.said: dict[str, tuple] = {}  # rendered prompt -> earlier answers (tokens or text), the latest first

    def there(self, run, file: str) -> list[dict]:
        """-> the records that a file of a run had before this process wrote to it: read once, and anew where it was rewritten (as a
        training that begins anew does) or another wrote."""
        path = run.path / file
        if file not in self.held or self.held[file][0] != path or self.held[file][2] != stamp(path)[:2]:
            self.held[file] = path, run.read(file), stamp(path)[:2]
        return self.held[file][1]

    def wrote(self, run, file: str) -> None:
        path, records, _ = self.held[file]
        self.held[file] = path, records, stamp(path)[:2]

    def drafts(self, prompts: list[str]) -> list[list] | None:
        """-> for each rendered prompt its earlier answers; None where there is none, or where drafts do not pay."""
        found = [list(self.said.get(p, ())) for p in prompts]
        return found if not self.off and any(found) else None

    def remember(self, prompts: list[str], answers: list) -> None:
        for prompt, answer in zip(prompts, answers, strict=True):
            others = [a for a in self.said.get(prompt, ()) if a != answer]
            self.said[prompt] = (answer, *others[: KEPT - 1])

    def weigh(self, tally) -> None:
        """Sets drafts off for `REST` calls where a token took longer with them than without, as last measured."""
        if not tally.tokens:
            return
        each = tally.seconds / tally.tokens
        if not tally.drafted:
            self.plain, self.off = each, max(self.off - 1, 0)
        elif self.plain is not None and each > self.plain:
            self.off = REST
