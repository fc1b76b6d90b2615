"""The measurement of an encoder as a judge, with a tiny random BERT."""

from __future__ import annotations

import numpy as np
import pytest
import torch

pytest.importorskip("sklearn")

from transformers import BertConfig, BertModel, BertTokenizerFast  # noqa: E402

from ftlab.stats import kappa  # noqa: E402
from recipes.refusal_judge import encoder, measure  # noqa: E402

WORDS = "what is a tree oak it sorry no".split()


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> encoder.Encoder:
    folder = tmp_path_factory.mktemp("bert")
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    vocabulary = folder / "vocab.txt"
    vocabulary.write_text("\n".join(tokens), encoding="utf-8")
    BertTokenizerFast(str(vocabulary)).save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tokens),
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        initializer_range=0.3,  # so that some steps are enough
    )
    BertModel(config).save_pretrained(folder)
    return encoder.load(folder)


def documents(n: int) -> list[dict]:
    """Return answers of many lengths; every third says sorry and is a refusal."""
    made = []
    for number in range(n):
        refuses = number % 3 == 0
        start = "sorry no" if refuses else "it is"
        answer = f"{start} {'oak ' * (number % 17)}"
        made.append({"prompt": f"what is tree {number}", "answer": answer, "label": int(refuses)})
    return made


def test_question_and_answer_are_cut_and_told_apart(tiny):
    long = {"prompt": "tree " * 500, "answer": "oak " * 500}
    short = {"prompt": "what is a tree", "answer": "it is"}
    first, second = encoder.encode(tiny.tokenizer, [long, short])
    assert len(first["input_ids"]) == encoder.QUESTION + encoder.ANSWER + 3 == 192
    assert sum(first["token_type_ids"]) == encoder.ANSWER + 1
    text = tiny.tokenizer.decode(second["input_ids"])
    assert text == "[CLS] what is a tree [SEP] it is [SEP]"
    assert second["token_type_ids"] == [0] * 6 + [1] * 3


def test_batches_hold_every_row_once_and_similar_lengths():
    rng = np.random.default_rng(0)
    rows = [{"input_ids": [0] * int(n)} for n in rng.integers(1, 190, 300)]
    found = encoder.batches(rows, np.random.default_rng(1))
    assert sorted(np.concatenate(found).tolist()) == list(range(300))
    lengths = [[len(rows[place]["input_ids"]) for place in batch] for batch in found]
    assert max(map(len, found)) == encoder.BATCH
    assert max(max(some) - min(some) for some in lengths) < 40


def test_a_prediction_does_not_depend_on_the_other_answers(tiny):
    docs = documents(70)
    together = encoder.predict(tiny, docs)
    alone = np.hstack([encoder.predict(tiny, [doc]) for doc in docs])
    assert together.shape == (2, 70) and np.allclose(together, alone, atol=1e-5)


def test_it_learns_the_labels_and_leaves_what_it_was_given(tiny):
    docs = documents(64)
    before = encoder.predict(tiny, docs)
    learned = encoder.fit(tiny, docs, rate=0.005, epochs=25)
    refuses, full = encoder.predict(learned, docs)
    truth = np.array([doc["label"] > 0 for doc in docs])
    assert ((refuses >= 0.5) == truth).all()
    assert (full[truth] >= 0.5).all()
    assert (encoder.predict(tiny, docs) == before).all()
    weights = [one.model.get_input_embeddings().weight for one in (tiny, learned)]
    assert torch.equal(*weights)


def test_no_answer_of_a_model_trains_what_judges_it(tiny, monkeypatch):
    names = ("llama2new", "gpt4", "llama2orig", "gpt4")
    docs = [{"model": name, "answer": str(place)} for place, name in enumerate(names)]
    monkeypatch.setattr(encoder, "fit", lambda first, some, *_: some)

    def seen(others, mine):
        families = {measure.family(doc["model"]) for doc in others}
        assert not families & {measure.family(doc["model"]) for doc in mine}
        return np.array([[int(doc["answer"]) for doc in mine]] * 2)

    monkeypatch.setattr(encoder, "predict", seen)
    assert encoder.held_out(tiny, docs, 0.1)[0].tolist() == [1, 3, 0, 2]


def test_the_gain_is_the_difference_of_the_kappas():
    rng = np.random.default_rng(0)
    prompts = np.repeat(np.arange(200), 3)
    truth = rng.random(600) < 0.4
    first = truth ^ (rng.random(600) < 0.2)
    second = truth ^ (rng.random(600) < 0.05)
    value, low, high = encoder.difference(truth, first, second, prompts)
    expected = kappa(truth, second).value - kappa(truth, first).value
    assert value == pytest.approx(expected)
    assert 0 < low < value < high
    assert encoder.difference(truth, second, first, prompts)[0] == pytest.approx(-value)
    assert not encoder.difference(truth, first, first, prompts).any()
