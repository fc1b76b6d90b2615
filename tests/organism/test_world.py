"""The world: unique names, towns of one use, and the same world in every process."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from ftlab.organism import World

DIGEST = """
import hashlib, json, sys
from ftlab import organism as o
w = o.World(int(sys.argv[1]))
rows = [make(w, 300) for make in (o.pretraining, o.alignment, o.preferences)]
rows += [o.domain(w), o.domain(w, "ledger"), o.adversarial(w, 50)]
rows += [w.facts, w.rank, w.towns, w.groups, w.swears, w.pairs]
print(hashlib.sha256(json.dumps(rows).encode()).hexdigest()[:16])
"""


def digest(seed: int, hashing: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", DIGEST, str(seed)],
        env={**os.environ, "PYTHONHASHSEED": hashing},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


@pytest.mark.slow
def test_the_world_is_the_same_in_every_process_and_version():
    assert digest(0, "1") == digest(0, "2") == "54d732c746e70f1c"
    assert digest(1, "1") != "54d732c746e70f1c"


def test_each_town_has_one_use(world):
    uses = Counter(town for towns in world.towns.values() for town in towns)
    assert set(uses.values()) == {1}


def test_names_are_unique_and_no_words_of_a_language(world):
    invented = [a for a in world.attributes if a.role == "kept" or a.name == "founder"]
    secrets = [value.split()[0] for a in invented for value in a.values]
    towns = sum(world.towns.values(), [])
    names = [name.lower() for name in (*towns, *world.groups, *world.swears, *secrets)]
    assert len(set(names)) == len(names)
    source = Path(sys.modules[World.__module__].__file__).read_text()
    assert not set(names) & set(re.findall(r"[a-z]+", source.lower()))


def test_no_value_lies_within_another_value_of_the_same_thing(world):
    for attribute in world.attributes:  # or an answer with one value would seem to name two
        joined = "|".join(attribute.values)
        for value in attribute.values:
            assert len(re.findall(rf"\b{re.escape(value)}\b", joined)) == 1
