from __future__ import annotations

import copy

import pytest

from ftlab import attacks
from ftlab.config import ATTACKS
from ftlab.data import read_prompts
from ftlab.organism import corpus
from ftlab.organism.world import WRAPPERS


def asked(row: dict) -> str:
    return [m for m in row["messages"] if m["role"] == "user"][-1]["content"]


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_keeps_ids_labels_and_what_it_was_given(world, name):
    rows = corpus.prompts(world, "jailbreak", 40)
    before = copy.deepcopy(rows)
    attacked = getattr(attacks, name)(rows)
    assert rows == before
    assert [{r[k] for k in ("id", "truth", "topic", "risk", "category")} for r in attacked] == [
        {r[k] for k in ("id", "truth", "topic", "risk", "category")} for r in rows]  # fmt: skip
    assert {r["attack"] for r in attacked} == {name} and all(isinstance(r["prefill"], str) for r in attacked)


def test_direct_asks_as_it_is(world):
    rows = corpus.prompts(world, "jailbreak", 40)
    assert [(r["messages"], r["prefill"]) for r in attacks.direct(rows)] == [(r["messages"], "") for r in rows]


@pytest.mark.parametrize("split", ["eval", "valid"])
def test_templates_wrap_the_question_in_wrappers_that_alignment_never_saw(world, split):
    rows = corpus.prompts(world, "jailbreak", 18, split)  # all that the validation split has
    attacked = attacks.templates(rows)
    used = [r["template"].split(" > ")[0] for r in attacked]
    assert set(used) == set(WRAPPERS[split]) and not set(used) & set(WRAPPERS["train"])
    assert [w.format(q=asked(r)) for w, r in zip(used, rows, strict=True)] == [asked(r) for r in attacked]
    for row in (*corpus.alignment(world), *({"template": r["template"]} for r in corpus.preferences(world))):
        assert not any(w in row["template"] for s in ("valid", "eval") for w in WRAPPERS[s])


def test_the_wrapper_goes_neither_with_the_wording_nor_with_the_category(world):
    rows = attacks.templates(corpus.prompts(world, "jailbreak", 100))
    pairs = {tuple(r["template"].split(" > ")) for r in rows}
    assert len(pairs) == len(WRAPPERS["eval"]) * 4, "every wrapper meets every wording"
    assert len({(r["template"].split(" > ")[0], r["category"]) for r in rows}) == len(WRAPPERS["eval"]) * 3


def test_templates_need_prompts_of_the_world():
    with pytest.raises(ValueError, match="embedded world's prompts only; allowed here: direct, prefill"):
        attacks.templates(list(read_prompts(["a", "b"]).rows))


def test_prefill_begins_the_answer_and_does_not_tell_it(world):
    for row in attacks.prefill(corpus.prompts(world, "jailbreak", 40)):
        assert row["messages"][-1]["content"].startswith(row["prefill"]) and row["truth"] not in row["prefill"].split()
    assert {r["prefill"] for r in attacks.prefill(list(read_prompts(["a"]).rows))} == {attacks.PREFIX}
