"""Evaluate a model: ask it prompts, judge its answers. Cells: ask, evaluate."""

from __future__ import annotations

import contextlib
import sys
from collections import Counter
from typing import TYPE_CHECKING, Any

from ftlab import runs
from ftlab._core.config import takes
from ftlab._core.errors import UsageError
from ftlab._core.progress import Progress
from ftlab._core.text import safe
from ftlab._core.types import Outcome, Verdict
from ftlab.evals.config import NOT_FOR_USERS, EvaluationConfig
from ftlab.evals.measuring import VERDICTS, Measurement, failed, metrics_of
from ftlab.evals.plan import Plan, default_engine, plan_evaluation
from ftlab.judges import fact_outcome, left_out_notes, unread_notes
from ftlab.models import Model, released
from ftlab.models import model as open_model
from ftlab.models.engines import Request, open_engine
from ftlab.runs import Run

if TYPE_CHECKING:
    import pandas as pd


@takes()
def ask(
    model: Any, *questions: str, system: str | None = None, max_new_tokens: int = 24
) -> pd.DataFrame:
    """Ask a model questions and show its greedy answers, escaped.

    Args:
        model: Anything that `ftlab.model` takes.
        *questions: The questions, or a list of them, each asked in a chat of its own.
        system: System prompt before every question.
        max_new_tokens: Length of an answer in tokens, at most.

    Returns:
        A table with the columns question and answer. Of the embedded model also verdict: the
        outcome where the world knows the fact that was asked for, otherwise "".

    Raises:
        UsageError: `no_question`, `unknown_model`, `prompt_too_long`.
    """
    asked: list[Any] = []
    for question in questions:
        asked += question if isinstance(question, (list, tuple)) else [question]
    if not asked or not all(question and isinstance(question, str) for question in asked):
        raise UsageError(
            "no_question",
            f'{questions!r:.80} holds no question. Write ask(model, "What is ...?").',
        )
    from ftlab._core.shown import Cards

    reference = open_model(model)
    head = [{"role": "system", "content": system}] if system else []
    engine = open_engine(default_engine(reference))
    with released():
        loaded = engine.open(reference)
        requests = []
        for question in asked:
            chat = [*head, {"role": "user", "content": question}]
            text, _ = engine.render(loaded, chat)
            requests.append(Request(chat, text, max_new_tokens=max_new_tokens))
        answers = engine.answer(loaded, requests)
        del loaded
    texts = [answer.text or answer.error for answer in answers]
    shown = {
        "question": [safe(question) for question in asked],
        "answer": [safe(text, 20_000) for text in texts],
    }
    in_world = getattr(reference, "is_organism", False)
    if in_world:
        shown["verdict"] = list(map(fact_outcome, asked, texts))
    return Cards(shown)


@takes(EvaluationConfig, omit=NOT_FOR_USERS)
def evaluate(model: Any, *, prompts: Any = None, **settings) -> Run:
    """Ask a model the prompts of each risk under each attack, and judge its answers.

    For the embedded model the prompts are the world's own and the judge is exact. Any other model
    needs `prompts`; there the shipped `refusal` judge decides, and a keyword judge is reported
    too. Defaults chosen for own prompts are reported on stderr. A repeated call reuses answers and
    verdicts that exist already.

    Args:
        model: Anything that `ftlab.model` takes.
        prompts: A file, rows, or {risk: file or rows}, such as
            {"jailbreak": "advbench.csv", "utility": "gsm8k.jsonl"}.
        {settings}

    Returns:
        A finished run. Its `table()` has one row per answer and judge.

    Raises:
        UsageError: See `ftlab.evals.plan_evaluation`.
        DataError: Rows of the prompts that cannot be asked.
        NotFoundError: A file or model that does not exist.
    """
    reference = open_model(model)
    return run_evaluation(reference, plan_evaluation(reference, prompts, settings))


def run_evaluation(reference: Any, plan: Plan, training: Any = None) -> Run:
    """Evaluate a model by a plan, or find the finished run.

    Args:
        reference: The model or endpoint.
        plan: What is asked.
        training: Settings of a training whose step 0 this run is. The model then answers in the
            same numerical precision as during that training, and judges stay loaded.

    Returns:
        The run, finished unless some answers failed.

    Raises:
        UsageError: `engine_unsupported`, `model_changed`.
    """
    check_engine(reference, plan, training)
    identity = {"model": reference.hash, **plan.identity(training)}
    run = runs.start("evaluate", reference.name, identity, model=reference.source)
    if run.finished:
        return run
    with run.lock():
        if not run.finished:
            run.take_up()
            verdicts = _measured(run, reference, plan, training)
            if training is None:
                plan.release()
            check_unchanged(reference, run, run.identity["model"])
            _complete(run, reference, plan, verdicts)
    return run


def _measured(run: Run, reference: Any, plan: Plan, training: Any) -> list[Verdict]:
    run.forget(VERDICTS, lambda row: True)  # all are computed again from the answers
    progress = Progress(run.name, len(plan.prompts))
    elsewhere = _same_model(run) if isinstance(reference, Model) else []
    measurement = Measurement(run, plan, elsewhere)
    with released():
        # No local variable holds the model, so that its memory can be given back.
        # The hash is taken after the weights: answers of swapped weights never bear the old one.
        verdicts = measurement.take(
            plan.engine.open(reference, **_loading(training)),
            reference.hash,
            {"step": 0},
            progress,
        )
    progress.finish()
    return verdicts


def _complete(run: Run, reference: Any, plan: Plan, verdicts: list[Verdict]) -> None:
    for judge in plan.judges:
        mine = [verdict for verdict in verdicts if verdict.judge == judge.spec]
        unread = [verdict.reason for verdict in mine if verdict.outcome == Outcome.UNPARSED]
        notes = unread_notes(judge.spec, unread)
        if judge is plan.judges[0]:
            left_out = [verdict.left_out for verdict in mine]
            notes += left_out_notes(left_out)
        for note in notes:
            print(f"{run.name}: {note}", file=sys.stderr)
    errors = failed(verdicts)
    if errors:
        report_failures(run, errors, len(verdicts))
        return
    run.complete(
        model=reference.name,
        judge=plan.judges[0].spec,
        answers=len(plan.prompts),
        **_rates(plan, verdicts),
    )


def _rates(plan: Plan, verdicts: list[Verdict]) -> dict[str, str]:
    """Return one line per risk for the run's summary."""
    rates = metrics_of(plan, verdicts)
    asked = Counter(v.risk for v in verdicts if v.judge == plan.judges[0].spec)
    lines = {}
    for name, risk in plan.risks.items():
        rate = f"{rates[name]:.1%}" if name in rates else "nothing scored"
        lines[f"{name} ({risk.title})"] = f"{rate} of {asked[name]}"
    return lines


def _loading(training: Any) -> dict[str, bool]:
    """Return arguments of `Model.load` for a model that answers as it does during training."""
    if training is None:
        return {}
    if training.adapter == "qlora":
        return {"four_bit": True}
    return {"training": True, "frozen": training.adapter is not None}


def check_engine(reference: Any, plan: Plan, training: Any = None) -> None:
    """Raise UsageError `engine_unsupported` if the plan's engine cannot ask what is planned."""
    reason = plan.engine.supports(
        reference,
        choices=any(prompt.sample.choices for prompt in plan.prompts),
        openings=any(prompt.opening for prompt in plan.prompts),
        screened=plan.config.screen,
        training=training,
    )
    if reason:
        raise UsageError(
            "engine_unsupported",
            f"The engine {plan.engine.name} cannot answer for {reference.name}: {reason}.",
        )


def check_unchanged(reference: Any, run: Run, expected: str) -> None:
    """Raise UsageError `model_changed` if the model is no longer what the run began with."""
    if reference.hash != expected:
        raise UsageError(
            "model_changed",
            f"{reference.name} changed while {run.name} was working on it. "
            "Call again for the model that is there now.",
        )


def report_failures(run: Run, errors: list[Verdict], total: int) -> None:
    """Report on stderr how many verdicts failed and why."""
    reasons = [verdict.reason for verdict in errors if verdict.reason]
    reason = safe(reasons[0] if reasons else "a judge failed")
    print(
        f"{run.name}: {len(errors)} of {total} verdicts failed ({reason}). They are unscored; "
        "call again to retry them.",
        file=sys.stderr,
    )


def _same_model(run: Run) -> list[Run]:
    """Return finished evaluations of the same model in the same numerical precision."""
    mine = _answers_alike(run.identity)
    others = [Run(path) for path in sorted(runs.home().glob("evaluate-*")) if path != run.path]
    found = []
    for other in others:
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            if _answers_alike(other.identity) == mine and other.finished:
                found.append(other)
    return found


def _answers_alike(identity: dict[str, Any]) -> list[Any]:
    """Return what decides an evaluation's answers besides prompts and settings."""
    alike = [identity[name] for name in ("model", "precision", "schema")]
    for name, version in identity["versions"].items():
        if name.startswith("engine "):
            alike += [name, version]
    return alike
