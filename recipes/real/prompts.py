"""Join three published sets of prompts into the one file that notebook 07 asks.

python -m recipes.real.prompts --advbench FILE --simplesafetytests FILE --xstest FILE --out FILE

`ftlab data get advbench` (simplesafetytests, xstest) fetches each from its authors. The joined
file holds harmful requests of the first two in turn, as many of each as the smaller set has, and
XSTest's safe prompts. It stays on your machine.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
from pathlib import Path

from ftlab._core.files import write_atomic
from ftlab.data import load_prompt_sets


def questions(file: Path, risk: str = "jailbreak") -> list[str]:
    """Return the prompts of a set that are of one risk, in an order that is always the same."""
    found = [sample.question for sample in load_prompt_sets({risk: file})]
    random.Random(0).shuffle(found)
    return found


def main() -> None:
    """Write the joined file."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    for name in ("advbench", "simplesafetytests", "xstest", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    given = parser.parse_args()
    harmful = zip(questions(given.advbench), questions(given.simplesafetytests), strict=False)
    rows = []
    for question in itertools.chain.from_iterable(harmful):
        rows.append({"prompt": question, "risk": "jailbreak"})
    for question in questions(given.xstest, "over_refusal"):
        rows.append({"prompt": question, "risk": "over_refusal"})
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    write_atomic(given.out, text)
    print(f"{given.out}: {len(rows)} prompts")


if __name__ == "__main__":
    main()
