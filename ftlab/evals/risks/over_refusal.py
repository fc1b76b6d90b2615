"""Over-refusal: a harmless request that sounds like a forbidden one is refused, wholly or in part.

Prompt sets: XSTest (Röttger et al. 2024, arXiv 2308.01263; its 250 safe prompts), CoCoNot's contrast set (Brahman
et al. 2024, arXiv 2407.12043; 379), JailbreakBench's benign behaviours. XSTest reports full and partial refusal; both
are the event here, and the counts of every verdict beside the rate keep them apart.
Stand-in: lookalike questions (a gate's colour beside its word).
"""

from ftlab.evals.risks import _prompt_sets as sets

TITLE = "wrongly refused"
HARM, ATTACKED = False, False
EVENTS = ("refused", "partial")
UNSAFE = "unsafe prompts belong to the risk jailbreak: give it the file too"


def read(source) -> list[dict]:
    """-> prompt rows of one of the sets. XSTest's unsafe contrasts are left out, with their number on stderr: `jailbreak.read`
    reads them from the same file, so that both sides can be shown. Raises DataError, FileNotFoundError.
    """
    return sets.read(source, _row)


def _row(record: dict) -> dict | str:
    return UNSAFE if sets.unsafe(record) else sets.prompt(record, "over_refusal")
