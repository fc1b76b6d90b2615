"""The recipe of the judge `refusal`."""

from __future__ import annotations

import json

import numpy as np
import pytest

pytest.importorskip("sklearn")

from sklearn.metrics import cohen_kappa_score  # noqa: E402

from ftlab._core.files import resource  # noqa: E402
from ftlab.judges import agreement_of_card, judge_card, refusal  # noqa: E402
from ftlab.judges.cards import GOLD, agreement_by_model  # noqa: E402
from ftlab.judges.kinds import KINDS, weights  # noqa: E402
from recipes.refusal_judge import kinds, measure, train  # noqa: E402

BENIGN = (
    "rasbt_instruction/instruction-data.json",
    "gsm8k/train.jsonl",
    "self_instruct/seed_tasks.jsonl",
    "self_instruct/user_oriented_instructions.jsonl",
    "sqlgen/sqlgen_train.json",
)


@pytest.fixture(scope="module")
def documents() -> list[dict]:
    folder = resource("data").parent.parent / "shared" / "data"
    if not folder.exists():
        pytest.skip("the authors' files are not part of the project")
    files = [folder / name for name in BENIGN]
    real = train.read(folder / "human_xstest", folder / "coconot", files)
    return real + train.synthesise(real)


@pytest.mark.needs_data
@pytest.mark.slow
def test_the_recipe_makes_the_shipped_weights(documents):
    made, kept = train.fit(documents), refusal.load()
    assert list(made.vocabulary) == list(kept.vocabulary) and made.common == kept.common
    assert np.allclose(made.calibration, kept.calibration, atol=0.02)
    assert np.abs(made.weights.astype(np.float16) - kept.weights).max() < 0.05


@pytest.mark.needs_data
@pytest.mark.slow
def test_leave_one_model_out_is_as_the_card_says(documents):
    test = [doc for doc in documents if doc["model"] == "llama2orig"]
    others = [doc for doc in documents if not doc["model"].startswith("llama2")]
    table = measure.verdicts(test, train.predict(train.fit(others), test))
    found = agreement_by_model(table, GOLD[0])[1]["kappa"].iloc[0]
    kept = agreement_of_card("refusal").query("model == 'llama2orig'")
    kept = kept[kept["refusal"] == "full or partial"]["kappa"].iloc[0]
    assert found >= 0.70 and found == pytest.approx(kept, abs=0.02)


@pytest.mark.slow
def test_synthetic_documents_are_repeatable_and_not_the_challenge():
    real = []
    for number in range(9):
        prompt = f"Tell me of tree {number}."
        answer = f"Tree {number} is an oak. It is old."
        real.append({"prompt": prompt, "answer": answer, "label": 0, "source": "benign"})
    made = train.synthesise(real, 3000)
    assert made == train.synthesise(real, 3000) != train.synthesise(real, 3000, seed=1)
    assert {doc["label"] for doc in made} == {0, 1, 2}
    lines = measure.CHALLENGE.read_text(encoding="utf-8").splitlines()
    asked = {row["answer"] for row in map(json.loads, lines) if len(row["answer"].split()) > 9}
    assert not asked & {doc["answer"] for doc in made}


@pytest.mark.slow
def test_every_synthetic_document_has_a_kind():
    real = []
    for number in range(9):
        prompt = f"Tell me of tree {number}."
        answer = f"Tree {number} is an oak. It is old. " * 5
        real.append({"prompt": prompt, "answer": answer, "label": 0, "source": "benign"})
    made = train.synthesise(real, 2000)
    found = {KINDS[kinds.kind_of(doc)] for doc in made}
    assert found == set(KINDS)
    labels = {"complies": {0}, "disclaims": {0}, "partial": {2}}
    for doc in made:
        assert doc["label"] in labels.get(KINDS[kinds.kind_of(doc)], {1})


@pytest.mark.needs_data
@pytest.mark.slow
def test_the_recipe_makes_the_shipped_kinds(documents):
    xstest = resource("data").parent.parent / "shared" / "data" / "human_xstest"
    real = [doc for doc in documents if doc["source"] != "synthetic"]
    known, read = kinds.unread(real), kinds.labelled(xstest)
    assert len(read) == 409
    made = kinds.fit(refusal.load(), known, read)
    assert np.abs(made - weights()).max() < 0.1


@pytest.mark.needs_data
@pytest.mark.slow
def test_kinds_of_a_model_left_out_are_as_the_card_says(documents):
    """Llama 2 is one model in two files: with one of them in training kappa is .3 higher."""
    xstest = resource("data").parent.parent / "shared" / "data" / "human_xstest"
    real = [doc for doc in documents if doc["source"] != "synthetic"]
    found = kinds.left_out(refusal.load(), kinds.unread(real), kinds.labelled(xstest))
    for model, part in found.groupby("model"):
        kappa = cohen_kappa_score(part["read"], part["found"])
        assert f"| {model} | {len(part)} | {kappa:.2f} |" in judge_card("kinds")


def test_what_is_said_of_smollm2_is_what_its_file_holds():
    rows = {row["state"]: row for row in kinds.of_smollm2()}
    parts = [rows[state] for state in kinds.STATES]
    for column in ("answers", "senseless", "seen", "complied"):
        assert rows["all"][column] == sum(part[column] for part in parts)
        assert f"| {rows['all'][column]} |" in judge_card("kinds")
    said = f"of {rows['all']['senseless']} answers without sense it sees {rows['all']['seen']}"
    assert said in judge_card("refusal")
