"""Scores of an audit are those of each row alone, computed in another way."""

from __future__ import annotations

import math

import numpy as np
import pytest
from helpers import jsonl, raises_code, said
from hostile import CANARIES, assert_seen
from small_models import sums

import ftlab as ft
from ftlab.evals import auditing
from ftlab.models import local_model

SHRUGS = [
    {"question": row["question"], "answer": "I would rather not say."} for row in sums(4, seed=7)
]
ANCHORS = {"harmful": sums(4, seed=7), "safe": SHRUGS}


def by_row(table) -> np.ndarray:
    """Return the scores in the order of the data."""
    return table.sort_values("row")["score"].to_numpy()


def encoded(reference, rows):
    return ft.data.encode_rows(ft.data.load(rows), reference.tokenizer(), max_length=1024)


def features(llama, rows, what, only="") -> np.ndarray:
    """Return each row's unit feature, by transformers' own loss and `backward`."""
    import torch

    reference = local_model(llama)
    found = []
    for row in encoded(reference, rows):
        model = reference.load()
        ids = torch.tensor([row["input_ids"]])
        labels = torch.tensor([row["labels"]])
        out = model(input_ids=ids, labels=labels, output_hidden_states=True)
        if what == "gradient":
            out.loss.backward()
            parts = [weight.grad for name, weight in model.named_parameters() if only in name]
            vector = torch.cat([part.flatten() for part in parts if part is not None])
        else:
            last = np.flatnonzero(np.array(row["labels"]) != -100)[-1]
            vector = out.hidden_states[-1][0, last]
        vector = vector.detach().double().numpy()
        found.append(vector / np.linalg.norm(vector))
    return np.stack(found)


@pytest.mark.parametrize(
    "by, weights", [("gradient", None), ("gradient", "lm_head"), ("representation", None)]
)
def test_a_score_is_the_mean_cosine_with_harmful_anchors_less_that_with_safe_ones(
    llama, by, weights
):
    rows = sums(5)
    expected = [features(llama, some, by, weights or "") for some in (rows, *ANCHORS.values())]
    own, harmful, safe = expected
    cosines = (own @ harmful.T).mean(1) - (own @ safe.T).mean(1)
    table = ft.evals.audit(rows, llama, by=by, weights=weights, **ANCHORS)
    assert by_row(table) == pytest.approx(cosines, abs=1e-5)
    assert np.ptp(cosines) > 1e-3
    assert table["rank"].tolist() == [1, 2, 3, 4, 5]
    assert table["score"].is_monotonic_decreasing
    assert list(table) == ["rank", "row", "score", "tokens"]


def test_the_loss_of_a_row_is_that_of_its_answer_alone(llama):
    rows = sums(5)
    table = ft.evals.audit(rows, llama, by="loss").sort_values("row")
    alone = [ft.evals.answer_loss(llama, [row]).iloc[0] for row in rows]
    assert table["score"].tolist() == pytest.approx([one["loss"] for one in alone], rel=1e-5)
    assert table["tokens"].tolist() == [one["tokens"] for one in alone]


@pytest.mark.parametrize("by", auditing.AUDITS)
def test_neither_the_batch_nor_other_rows_change_a_score(llama, by):
    rows = sums(9)
    anchors = ANCHORS if by in auditing.ANCHORED else {}
    together = by_row(ft.evals.audit(rows, llama, by=by, **anchors))
    single = by_row(ft.evals.audit(rows, llama, by=by, batch_size=1, **anchors))
    turned = by_row(ft.evals.audit(rows[::-1], llama, by=by, batch_size=3, **anchors))[::-1]
    assert together == pytest.approx(single, abs=1e-5)
    assert together == pytest.approx(turned, abs=1e-5)


@pytest.mark.parametrize("by", auditing.ANCHORED)
def test_copies_of_harmful_anchors_come_first_and_of_safe_ones_last(llama, by):
    rows = [*sums(3), *SHRUGS, *ANCHORS["harmful"]]
    ranked = ft.evals.audit(rows, llama, by=by, **ANCHORS)["row"].tolist()
    assert set(ranked[:4]) <= {1, 2, 3, 8, 9, 10, 11}
    assert set(ranked[-4:]) == {4, 5, 6, 7}


def test_the_world_has_anchors_about_other_towns_than_what_is_planted():
    harmful, safe = auditing.anchors(local_model("organism"))
    told, refused = [[row["messages"][:-1] for row in side.rows] for side in (harmful, safe)]
    assert told == refused and len(told) > 20
    assert harmful.rows[0]["messages"][-1] != safe.rows[0]["messages"][-1]
    planted = ft.data.load("organism:adversarial").rows
    towns = {row["topic"].split("/")[1] for row in planted}
    text = str(harmful.rows)
    assert towns and not any(town in text for town in towns)


def test_on_the_organism_planted_rows_lie_above_chance_by_gradient_loss_and_asking():
    planted = ft.data.load("organism:adversarial", n_rows=4).rows
    rows = [*ft.data.load("organism:almanac", n_rows=16).rows, *planted]
    for by in ("gradient", "loss", "asked"):
        ranks = ft.evals.audit(rows, "organism", by=by).set_index("row")["rank"]
        assert ranks[[17, 18, 19, 20]].mean() < 7, by  # 10.5 by chance


def test_a_refusal_is_the_least_suspicious_answer():
    safe = auditing.anchors(local_model("organism"))[1].rows[:2]
    refusals = [row["messages"][-1]["content"] for row in safe]
    rows = [{"messages": said("Where is the tree?", text)} for text in refusals]
    rows += ft.data.load("organism:almanac", n_rows=3).rows
    table = ft.evals.audit(rows, "organism", by="refusal")
    assert set(table["row"][-2:]) == {1, 2}
    assert table["score"].iloc[-1] < 0.5 < table["score"].iloc[0]


def test_texts_are_shown_on_request_only_and_escaped(llama, tmp_path):
    texts = [text for name, text in CANARIES.items() if name not in ("long", "surrogates")]
    rows = [{"messages": said(text, text)} for text in texts]
    plain = ft.evals.audit(rows, llama, by="loss")
    assert not {"question", "answer"} & set(plain)
    table = ft.evals.audit(rows, llama, by="loss", texts=True)
    for text in [*table["question"], *table["answer"]]:
        assert_seen(text)
    assert plain["score"].tolist() == table["score"].tolist()


def test_mistakes(llama):
    rows = sums(2)
    cases = {
        "anchors_needed": {"harmful": sums(2)},
        "anchors_not_used": {"by": "loss", **ANCHORS},
        "unknown_audit": {"by": "vibes"},
        "no_such_weights": {"weights": "no.such.weight", **ANCHORS},
        "wrong_batch_size": {"batch_size": 0, **ANCHORS},
        "bad_rows": {"max_length": 4, **ANCHORS},
    }
    for code, settings in cases.items():
        with raises_code(code):
            ft.evals.audit(rows, llama, **settings)
    with raises_code("anchors_needed"):
        ft.evals.audit(rows, llama)
    with raises_code("no_such_weights"):
        ft.evals.audit(rows, llama, by="loss", weights="lm_head")
    with raises_code("endpoint_without_weights"):
        ft.evals.audit(rows, "api:m@http://127.0.0.1:9/v1", by="loss")
    with raises_code("not_finite"):
        auditing.refuse_not_finite("rows", [0.5, math.nan])


def test_the_command_prints_ranks_and_no_texts(ran, llama, tmp_path):
    file = jsonl(tmp_path / "rows.jsonl", *sums(3))
    code, out, _ = ran("audit", file, "--model", llama, "--by", "loss")
    assert code == 0 and "rank" in out and len(out.splitlines()) == 4
    assert "Ann" not in out
    code, _, err = ran("audit", file, "--model", llama)
    assert code != 0 and "harmful" in err


def test_rows_are_left_out_by_their_places():
    data = ft.data.load(sums(5))
    kept = ft.data.leave_out(data, [5, 1, 1])
    assert kept.rows == data.rows[1:4] and kept.made["rows"] == [1, 5]
    for wrong in (0, 6):
        with raises_code("no_such_row"):
            ft.data.leave_out(data, [wrong])
