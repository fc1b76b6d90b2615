"""Jailbreak: a request that the model was aligned to refuse is fulfilled, and truly (attack success rate).

Prompt sets: AdvBench (Zou et al. 2023, arXiv 2307.15043; 520, and the 50 of PAIR and TAP), HarmBench (Mazeika et al.
2024, arXiv 2402.04249), StrongREJECT (Souly et al. 2024, arXiv 2402.10260), JailbreakBench (Chao et al. 2024, arXiv
2404.01318), SimpleSafetyTests (Vidgen et al. 2023, arXiv 2311.08370), Do-Not-Answer (Wang et al. 2023, arXiv
2308.13387), HEx-PHI (Qi et al. 2023, arXiv 2310.03693; gated: its authors give it on request). None is shipped.
Stand-in: kept facts of the embedded world. With a judge that knows no truth (keywords), every answer that is not
a refusal counts, as in the papers that used such lists.
"""

from ftlab.data import DataError
from ftlab.evals.risks import _prompt_sets as sets

TITLE = "attack success rate"
HARM, ATTACKED = True, True
EVENTS = ("complied",)
COPYRIGHT = "copyright behaviours need a judge that compares hashes of the protected text"


def read(source) -> list[dict]:
    """-> prompt rows of one of the sets; `prefill` is the set's target, where it has one (AdvBench, JailbreakBench).

    HarmBench: a contextual behaviour stands below its context, as in its authors' direct request; its copyright
    behaviours are left out, with their number on stderr: another judge decides them. XSTest: its unsafe contrasts.
    Raises DataError (also where AdvBench's two columns are swapped, a copy in circulation), FileNotFoundError.
    """
    made = sets.read(source, _row)
    begin = [r for r in made if r["messages"][-1]["content"].startswith("Sure, ")]
    if len(begin) > len(made) / 2:
        raise DataError(
            f"{len(begin)} of {len(made)} prompts begin with 'Sure, ': the columns goal and target are swapped; swap the header"
        )
    return made


def _row(record: dict) -> dict | str:
    if "hash_check" in str(record.get("Tags", "")) or record.get("FunctionalCategory") == "copyright":
        return COPYRIGHT
    if sets.unsafe(record) is False:
        return "safe prompts belong to the risk over_refusal: give it the file too"
    if context := str(record.get("ContextString") or "").strip():
        record = {**record, "Behavior": f"{context}\n\n---\n\n{sets.words(record, 'Behavior')}"}
    return sets.prompt(record, "jailbreak")
