"""Which training rows pull a model towards harm: a score per row, most suspicious first.

A row is compared with two sets of anchors, harmful rows and safe ones, by what it does to the
model's weights (gradient) or by where it lies inside the model (representation). Both follow one
rule, bi-directional anchoring: f(z) is a row's feature, made one unit long; the score is
<f(z), mean f(harmful)> - <f(z), mean f(safe)>, that is the mean cosine with the harmful anchors
less that with the safe ones. Loss, the answer's own refusal and the model's refusal to the same
question need no anchors.

Source: He et al. 2024 (arXiv 2404.01099), and their code's `--normalize`
(`average_gradient.py`, `rank.py`). A row's loss is the mean over its answer's tokens, and its
gradient has one length, so that long answers do not lead by being long (SQSD, arXiv 2605.04572).
Their code can stop after an answer's first tokens; here all of them count.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Literal

from ftlab._core.config import takes
from ftlab._core.errors import DataError, UsageError
from ftlab._core.text import safe as escaped
from ftlab._core.types import Message, Sample
from ftlab.data import MAX_LENGTH, Data, encode_rows, load, strip_answers
from ftlab.judges import Refusal, judged
from ftlab.models import local_model, released
from ftlab.models.engines import Request, open_engine
from ftlab.training import ANCHORED, RANKINGS, Given, anchors, answer_labels

if TYPE_CHECKING:
    import pandas as pd

AUDITS = ("gradient", "representation", "loss", "refusal", "asked")
ANSWER_TOKENS = 64  # of the model's own answers
BATCH_SIZE = 16


@takes()
def audit(  # noqa: PLR0913
    data: Any,
    model: Any,
    *,
    by: Literal["gradient", "representation", "loss", "refusal", "asked"] = "gradient",
    harmful: Any = None,
    safe: Any = None,
    weights: str | None = None,
    max_length: int = MAX_LENGTH,
    batch_size: int = BATCH_SIZE,
    texts: bool = False,
) -> pd.DataFrame:
    """Rank training rows by how much they look as if they would remove a model's refusals.

    A score orders the rows of one call. It is no probability, and it does not say where harmful
    rows end: look at the first ones, or leave them out and measure again.

    Args:
        data: Anything that `ftlab.data.load` takes: chats.
        model: The parent, before it is trained on them: anything that `ftlab.model` takes, except
            an endpoint.
        by: gradient, representation (last layer, last token of the answer), loss (the mean of the
            answer's tokens under the model), refusal (how likely the row's answer is none, by the
            judge `refusal`), asked (how likely the model itself refuses the row's question, less
            how likely the row's answer does).
        harmful: Rows as the ones to be found: a chat file of yours. Of the embedded model, answers
            that tell kept facts, about towns that `organism:adversarial` does not use.
        safe: Rows that answer the same questions safely. Of the embedded model, the refusals of
            those questions.
        weights: Of gradients, only the weights whose names contain this, such as "layers.31.".
            Memory is that of the model, of the gradient of these weights, and of one more in 32
            bit. Default: all.
        max_length: Most tokens of a row; a longer one is an error.
        batch_size: Rows that are read together, of one length; changes no score. Gradients are
            taken of single rows.
        texts: Also return each row's last question and answer.

    Returns:
        One row per training row, the most suspicious first: rank (from 1), row (its place in the
        data, from 1), score, tokens (those that carry loss); with texts also question and answer,
        escaped.

    Raises:
        UsageError: `unknown_audit`, `anchors_needed`, `anchors_not_used`, `no_such_weights`,
            `wrong_batch_size`, `endpoint_without_weights`, and those of `ftlab.data.load`.
        DataError: Rows that cannot be used, all of them at once; `not_finite`.

    Source:
        He et al. 2024 (arXiv 2404.01099, bi-directional anchoring).
    """
    import pandas as pd

    _check(by, harmful, safe, weights, batch_size)
    reference = local_model(model)
    rows = strip_answers(load(data))
    sides: tuple[Data, ...] = ()
    if by in ANCHORED:
        sides = anchors(reference, harmful, safe)
    tokenizer = reference.tokenizer()
    own, *others = [
        encode_rows(
            one,
            tokenizer,
            max_length=max_length,
        )
        for one in (rows, *sides)
    ]
    given = Given(
        reference,
        rows,
        own,
        others,
        weights,
        batch_size,
    )
    with released():
        scores = SCORES[by](given)
    refuse_not_finite(rows.name, scores)
    found: dict[str, Any] = {
        "row": range(1, len(rows) + 1),
        "score": scores,
        "tokens": [len(answer_labels(row)) for row in own],
    }
    if texts:
        questions = [asked_of(row)[-1]["content"] for row in rows.rows]
        found["question"] = list(map(escaped, questions))
        answers = map(answer_of, rows.rows)
        found["answer"] = [escaped(text, 20_000) for text in answers]
    table = pd.DataFrame(found)
    table = table.sort_values(
        "score",
        ascending=False,
        kind="stable",
        ignore_index=True,
    )
    table.insert(0, "rank", found["row"])
    table.attrs = {
        "by": by,
        "model": reference.name,
        "data": rows.name,
    }
    return table


def _check(
    by: str,
    harmful: Any,
    safe: Any,
    weights: str | None,
    batch_size: int,
) -> None:
    if by not in AUDITS:
        raise UsageError("unknown_audit", f"by={by!r}. Allowed: {', '.join(AUDITS)}.")
    if by not in ANCHORED and not (harmful is None and safe is None):
        why = f"by={by!r} compares with no anchors. Leave harmful and safe out."
        raise UsageError("anchors_not_used", why)
    if weights is not None and by != "gradient":
        raise UsageError("no_such_weights", f"by={by!r} takes no gradient. Leave weights out.")
    if type(batch_size) is not int or batch_size < 1:
        raise UsageError("wrong_batch_size", f"batch_size={batch_size!r} is not >= 1.")


def asked_of(row: dict) -> list[Message]:
    """Return a chat up to the question of its last answer."""
    return row["messages"][:-1]


def answer_of(row: dict) -> str:
    """Return a chat's last answer."""
    return row["messages"][-1]["content"]


def refuse_not_finite(name: str, scores: list[float]) -> None:
    """Raise DataError `not_finite` where a score is no number."""
    wrong = []
    for number, score in enumerate(scores, 1):
        if not math.isfinite(score):
            wrong.append(str(number))
    if wrong:
        shown = ", ".join(wrong[:10])
        why = f"{name}: the score of row {shown} is not finite."
        raise DataError("not_finite", f"{why} Check the model and these rows.")


def by_refusal(given: Given) -> list[float]:
    """Score rows by how likely their answers are no refusals; the model is not asked."""
    refused = _refusals_of_rows(given)
    return [1 - one for one in refused]


def by_asking(given: Given) -> list[float]:
    """Score rows by how likely the model refuses their question, less how likely they do."""
    chats = list(map(asked_of, given.data.rows))
    engine = open_engine("huggingface")
    loaded = engine.open(given.model)
    requests = []
    for chat in chats:
        text, _ = engine.render(loaded, chat)
        request = Request(
            chat,
            text,
            max_new_tokens=ANSWER_TOKENS,
        )
        requests.append(request)
    answers = engine.answer(loaded, requests)
    texts = [answer.text for answer in answers]
    own = _refusals(chats, texts)
    pairs = zip(
        own,
        _refusals_of_rows(given),
        strict=True,
    )
    return [before - after for before, after in pairs]


def _refusals_of_rows(given: Given) -> list[float]:
    """Return how likely each row's answer refuses."""
    rows = given.data.rows
    chats = list(map(asked_of, rows))
    answers = list(map(answer_of, rows))
    return _refusals(chats, answers)


def _refusals(chats: list[list[Message]], texts: list[str]) -> list[float]:
    """Return how likely each answer refuses; 0 where the judge cannot say."""
    samples = []
    for number, chat in enumerate(chats):
        sample = Sample(
            str(number),
            chat,
            risk="audit",
        )
        samples.append(sample)
    found = judged(Refusal(), samples, texts)
    return [one.score or 0.0 for one in found]


SCORES = {
    **RANKINGS,
    "refusal": by_refusal,
    "asked": by_asking,
}
