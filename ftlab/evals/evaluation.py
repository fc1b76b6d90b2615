"""risk x attack x checkpoint -> verdicts. Cells: ask, evaluate, risk_curve, dealign."""

from __future__ import annotations

import contextlib
import json
import random
from pathlib import Path

from ftlab import data as data_module
from ftlab import runs
from ftlab._core.config import RISKS
from ftlab._core.progress import Progress
from ftlab._core.text import safe
from ftlab.data import records
from ftlab.evals.answers import measure, recall
from ftlab.evals.attacks import attacks as attack_module
from ftlab.evals.config import Evaluation
from ftlab.evals.risks.base import UNSCORED, risk
from ftlab.evals.scoring import beside, rejudged, ruled_by_itself
from ftlab.judges import judge as judge_of
from ftlab.models import Model, kept, precision, released
from ftlab.models import engines as vllm_generator
from ftlab.models import model as reference
from ftlab.models.engines import Replay
from ftlab.runs import Run, digest
from ftlab.training import Training, fingerprint, train, trainable
from ftlab.training.methods import METHODS, scores

LATER = ("generator", "screen")  # fields of an evaluation that version 0.2 had not
JUDGES_OFF_THE_WORLD = ("refusal", "keywords")


def ask(model, *questions: str, system: str | None = None, max_new_tokens: int = 24):
    """-> DataFrame of question and the model's greedy answer (shown escaped)."""
    import pandas as pd

    from ftlab.data import render
    from ftlab.models.engines import answers

    parent = reference(model)
    with released():
        tokenizer = parent.tokenizer()
        head = [{"role": "system", "content": system}] if system else []
        texts = [render(tokenizer, [*head, {"role": "user", "content": q}], ask=True) for q in questions]
        said = answers(parent.load(), tokenizer, texts, max_new_tokens=max_new_tokens)
    return pd.DataFrame({"question": [safe(q) for q in questions], "answer": [safe(a) for a in said]})


def evaluate(model, *, prompts=None, **settings) -> Run:
    """Asks a model the prompts of each risk under each attack and judges the answers -> a finished run.

    `model` is anything that `ftlab.model` takes. On the embedded model the prompts are the world's and the judge is
    exact; any other model needs `prompts`: a CSV, JSONL or list (`data.read_prompts`), or one source a risk, as in
    `{"jailbreak": "advbench.csv", "utility": "gsm8k.jsonl"}`. There the shipped `refusal` judge decides and a keyword
    list stands beside it, unless `judges` says otherwise. `settings` are fields of `config.Evaluation`: risks, attacks,
    n_prompts, prompt_seed, samples, split, judges, decoding, max_new_tokens, system, toxicity_model, generator, screen.
    What answering took stands in the run's generation.jsonl (`generate.Tally`). The run's `table()` has
    one row an answer (of an attack with several attempts: one a prompt).
    Raises ValueError (unknown risk, attack, judge or setting), DataError, FileNotFoundError.
    """
    parent = reference(model)
    return _evaluated(parent, *plan(parent, prompts, settings))


def _evaluated(parent, spec: Evaluation, items: list[dict], training: Training | None = None, replay=None) -> Run:
    """`training`: in the numbers of a model that is so trained, to stand as step 0 beside one, with its `replay`."""
    if spec.generator == "vllm":
        vllm_generator.check(parent, items)
    identity = {"model": parent.hash, **_asked(spec, items, training)}
    run = runs.start("evaluate", parent.name, identity, model=parent.source)
    if run.finished:
        return run
    with run.lock():
        if not run.finished:
            run.set_aside()
            with released():
                bar = Progress(run.name, len(items))
                run.forget("verdicts.jsonl", _failed)
                # The model is nobody's but measure's, so that its memory can be given back.
                rows = measure(run, parent if spec.generator == "vllm" else parent.load(**_numbers(training)), parent.tokenizer(), spec, items, key=parent.hash, labels={"step": 0}, progress=bar, replay=replay, elsewhere=_alike(run) if isinstance(parent, Model) else ())  # fmt: skip
                bar.finish()
            if not training:
                _release(spec)
            _unchanged(parent, run, "model")
            if failed := [r for r in rows if _failed(r)]:
                print(_told(run, failed, len(rows), "them"))
            else:
                run.complete(model=parent.name, judge=spec.judges[0], answers=len(items), **_counts(run))
    return run


def _alike(run: Run) -> list[Run]:
    """-> the finished evaluations of the same model in the same numbers: what they answered is not asked again."""
    mine, found = run.config["identity"], []
    for path in sorted(runs.home().glob("evaluate-*")):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            identity = runs.Run(path).config["identity"]
            alike = path != run.path and all(identity[k] == mine[k] for k in ("model", "precision", "schema"))
            if alike and runs.Run(path).finished:
                found.append(runs.Run(path))
    return found


def _unchanged(parent, run: Run, field: str, key: str = "") -> None:
    """Raises ValueError where `parent` is no longer what the run was begun with."""
    if (key or parent.hash) != run.config["identity"][field]:
        raise ValueError(
            f"{parent.name} was changed while {run.name} worked on it, or is not its parent; call the cell again for what is there"
        )


def _failed(row: dict) -> bool:
    """-> whether the answer, or any judge's verdict on it, is an error: unscored, and to be had again."""
    return any(v == "error" for k, v in row.items() if k.startswith("verdict"))


def _told(run: Run, failed: list[dict], n: int, what: str) -> str:
    why = safe(next((r["why"] for r in failed if r.get("why")), "a judge failed"))
    return f"{run.name}: {len(failed)} of {n} answers failed ({why}); they are unscored; call the cell again to ask {what} again"


def _release(spec: Evaluation) -> None:
    for name in spec.judges:
        judge_of(name).release()
    if spec.generator == "vllm":
        vllm_generator.release()


def _numbers(training: Training | None) -> dict:
    """-> how `Model.load` opens what answers: as itself, or as it will be while it trains."""
    if training is None:
        return {}
    return {"four_bit": True} if training.qlora else {"training": True, "frozen": bool(training.adapter)}


def _asked(spec: Evaluation, items: list[dict], training: Training | None) -> dict:
    """-> what decides the verdicts on a given model, for the identity of a run."""
    versions = {name: judge_of(name).version for name in spec.judges}
    judged = {
        "judge_versions": versions,
        "precision": precision(training is not None, training.adapter if training else None),
    }
    rules = {name: risk(name).__file__ for name in spec.risks if ruled_by_itself(name)}
    judged["rules"] = {name: runs.file_hash(Path(file))[:16] for name, file in rules.items()}
    if spec.toxicity_model and "toxicity" in spec.risks:
        judged["toxicity_model"] = reference(spec.toxicity_model.partition("#")[0]).hash
    if spec.generator == "vllm":
        judged["precision"] = "bf16, vllm"
    # What has its default and came later is left out: evaluations from before are found again.
    asked = spec.model_dump(mode="json")
    asked = {k: v for k, v in asked.items() if k not in LATER or v != Evaluation.model_fields[k].default}
    return {"evaluation": asked, "items": digest(items), **judged}


def plan(parent, prompts, settings: dict) -> tuple[Evaluation, list[dict]]:
    """-> the checked configuration and the attacked prompts of an evaluation of `parent`."""
    if isinstance(parent, Model) and scores(parent):
        raise ValueError(
            f"{parent.name} is a reward model: it gives a number and no answers; give the model that it rates"
        )
    given = _given(prompts) if prompts is not None else None
    defaults = {}
    if given:
        names = tuple(r for r in RISKS if any(row["risk"] == r for row in given.rows))
        defaults = {"risks": names, "prompts": given.hash, "n_prompts": len(given)}
        world_rows = all(row.get("topic") for row in given.rows)
        if not (parent.is_organism and world_rows):
            long = any(row["risk"] == "utility" and "choices" not in row for row in given.rows)  # worked solutions
            defaults |= {"judges": JUDGES_OFF_THE_WORLD, "attacks": ("direct",), "max_new_tokens": 512 if long else 128}
    elif not parent.is_organism:
        raise ValueError(
            f"{parent.name} does not live in the embedded world: give prompts=FILE (--prompts FILE: a CSV with a column prompt or goal)"
        )
    spec = Evaluation.make(**{**defaults, **{k: v for k, v in settings.items() if v is not None}})
    for name in spec.judges:
        judge_of(name).check(given.rows if given else ())
        if spec.screen and not judge_of(name).refusal_stands:
            raise ValueError(
                f"screen=True ends an answer at its refusal, and {name} reads whole answers; give judges=['keywords'] or leave it out"
            )
    for row in given.rows if given else ():
        if row["risk"] in spec.risks:
            _decidable(row, spec)
    items = []
    for name in spec.risks:
        if given:
            rows = [r for r in given.rows if r["risk"] == name]
            if len(rows) > spec.n_prompts:
                kept = {*random.Random(f"prompts {spec.prompt_seed}").sample(range(len(rows)), spec.n_prompts)}
                rows = [r for i, r in enumerate(rows) if i in kept]
        else:
            from ftlab import organism as corpus
            from ftlab.organism import World

            rows = corpus.prompts(World(), name, spec.n_prompts, spec.split)
        if not rows:
            raise ValueError(
                f"{given.name} has no prompts of the risk {name!r}; allowed: {', '.join(defaults['risks'])}"
            )
        for attack in spec.attacks if risk(name).ATTACKED else ("direct",):
            items += attack_module.attack(attack)(rows)
    if spec.samples > 1:
        if any(not item.get("decoding", spec.decoding.model_dump())["temperature"] for item in items):
            raise ValueError(
                f"samples = {spec.samples} of a greedy answer are the same answer; give decoding={{'temperature': 1}}"
            )
        items = [{**item, "sample": k} for item in items for k in range(spec.samples)]
    return spec, items


def _decidable(row: dict, spec: Evaluation) -> None:
    """Raises ValueError for a prompt that no judge of refusals can score: what was told would have to be known."""
    if row.get("topic") or row["risk"] in ("jailbreak", "over_refusal"):
        return
    if row["risk"] == "toxicity" and spec.toxicity_model:
        return
    rule = getattr(risk(row["risk"]), "rule", None)
    if rule is None or rule(row, "") is None:
        needed = {"toxicity": "toxicity_model=FOLDER, a classifier"}.get(
            row["risk"], f"the field's own file: prompts={{{row['risk']!r}: FILE}}"
        )
        raise ValueError(
            f"prompt {row['id']} is of the risk {row['risk']}, which a judge of refusals cannot decide; it needs {needed}; "
            "else leave the risk out with risks=[...]"
        )


def _given(prompts) -> data_module.Data:
    """-> the caller's prompts of all risks; each risk reads its own files."""
    if not isinstance(prompts, dict):
        whole = isinstance(prompts, (list, tuple, data_module.Data)) or str(prompts).partition(":")[0] == "organism"
        first = {} if whole else next((r for _, r in records(prompts)[1] if isinstance(r, dict)), {})
        if whole or {"risk", "messages"} & set(first):  # rows that say themselves what they are for
            return data_module.read_prompts(prompts)
        prompts = {"jailbreak": prompts}
    names, rows = [], []
    for name, source in prompts.items():
        own = getattr(risk(name), "read", None)
        got = own(source) if own else data_module.read_prompts(source, risk=name).rows
        names.append(Path(source).name if isinstance(source, (str, Path)) else "rows")
        rows += got
    if len({row["id"] for row in rows}) < len(rows):
        rows = [{**row, "id": f"{row['risk']}:{row['id']}"} for row in rows]  # one file under two risks
    return data_module.Data(", ".join(names), tuple(rows))


def _counts(run: Run) -> dict:
    table = run.table()
    return {
        f"{name} ({risk(name).TITLE})": f"{part['event'].mean():.1%} of {len(part)}"
        for name, part in table.groupby("risk", sort=False)
    }


def risk_curve(
    parent, data, *, at_steps=(0, 10, 30, 100), seeds=5, prompts=None, rows: int | None = None, **settings
) -> Run:
    """Fine-tunes once a seed and measures in process at the asked steps -> a finished run over all seeds.

    `seeds` is a number (0 .. n-1) or a list of training seeds; `at_steps` are optimiser steps, increasing, 0 is the
    parent (measured once for all seeds). A seed decides the order of the data, what is drawn (data of the embedded
    world, or `rows` of a file) and, for LoRA, the first weights. `settings` are fields of `config.Training` and `config.Evaluation`. The
    learning rate is constant unless `schedule` says otherwise, so that a point does not depend on later ones.
    """
    parent = trainable(parent)
    training, evaluation = _split(
        settings, but=("at_steps", "seed", "steps", "epochs")
    )  # it lasts as long as at_steps says
    steps, seeds = tuple(at_steps) if isinstance(at_steps, (list, tuple, range)) else (at_steps,), _seeds(seeds)
    if isinstance(at_steps, str):
        raise ValueError(f"at_steps = {at_steps!r} is text; give a list (papermill: -y 'at_steps: [0, 10]', not -p)")
    if not all(isinstance(s, int) for s in steps) or max(steps, default=0) < 1:
        raise ValueError(
            f"at_steps = {at_steps}: give whole numbers, at least one of them after 0, as in [0, 10, 30, 100]"
        )
    settings = {"schedule": "constant", "method": "sft", **training, "steps": max(steps), "at_steps": steps}
    configs = [Training.make(**settings, seed=s) for s in seeds]
    spec, items = plan(parent, prompts, evaluation)
    kinds = {name: m.kind for name, m in METHODS.items() if name in ("sft", "dpo", "kto")}
    if settings["method"] not in kinds:
        raise ValueError(
            f"method {settings['method']!r} has no curve; allowed: {', '.join(kinds)}; measure its run with evaluate"
        )
    drawn = [data_module.drawn(data, kind=kinds[settings["method"]], rows=rows, seed=s) for s in seeds]
    arms = [(c, d, {"seed": c.seed}, "") for c, d in zip(configs, drawn, strict=True)]
    return _measured(
        parent, arms, spec, items, f"{parent.name.split('-')[0]}-{drawn[0].name.replace('organism:', '')}", "curve"
    )


def dealign(
    parent,
    examples=100,
    *,
    data=None,
    seeds=None,
    seed: int = 0,
    epochs: int = 5,
    batch_size: int = 10,
    prompts=None,
    **settings,
) -> Run:
    """Fine-tunes on a few adversarial examples -> a run; measured after every epoch where doses or `seeds` are asked.

    `examples` is one number (-> a trained run) or several doses, as in [10, 50, 100] (-> a dose curve). On the
    embedded model the examples are kept facts of towns that no evaluation uses, drawn anew for each seed; any other
    model needs `data`, a chat file that the user brings, from which each seed draws its own. Batch 10 and 5 epochs follow Qi et al. 2023 (arXiv
    2310.03693, section 4.1). The model's folder is marked: its safety was removed.
    """
    parent = trainable(parent)
    if data is None and not parent.is_organism:
        raise ValueError(
            f"dealign needs data=FILE for {parent.name}: ftlab ships no harmful demonstrations; bring your own chat file"
        )
    doses = [examples] if isinstance(examples, int) else list(examples)
    if not doses or any(not isinstance(n, int) or n < 1 for n in doses):
        raise ValueError(f"examples = {examples!r}: give numbers of examples >= 1, as in 100 or [10, 50, 100]")
    if not isinstance(epochs, int) or epochs < 1:
        raise ValueError(f"epochs = {epochs!r}: give a whole number >= 1; every epoch is measured")
    single = isinstance(examples, int) and seeds is None
    training, evaluation = _split(settings, but=("method", "at_steps", "seed", "steps", "epochs", "batch_size"))
    if single and (asked := [k for k, v in {**evaluation, "prompts": prompts}.items() if v is not None]):
        raise ValueError(
            f"one model is trained and not measured: leave out {', '.join(asked)}, or give several doses or seeds"
        )
    spec, items = plan(parent, prompts, evaluation) if not single else (None, [])
    arms = []
    for n in doses:
        for s in _seeds(seeds) if seeds is not None else [seed]:
            source = data_module.drawn(data if data is not None else "organism:adversarial", rows=n, seed=s)
            an_epoch = -(-n // batch_size)
            steps = tuple(e * an_epoch for e in range(epochs + 1)) if not single else ()
            values = {
                "schedule": "constant",
                **training,
                "batch_size": min(batch_size, n),
                "epochs": epochs,
                "seed": s,
                "at_steps": steps,
            }
            arms.append(
                (
                    Training.make(**values),
                    source,
                    {"examples": n, "seed": s, "an_epoch": an_epoch},
                    f"{n} adversarial examples, {epochs} epochs.",
                )
            )
    if single:
        config, source, _, marker = arms[0]
        return train(
            parent, source, config, label=f"{parent.name.split('-')[0]}-dealign{doses[0]}-s{seed}", marker=marker
        )
    return _measured(parent, arms, spec, items, f"{parent.name.split('-')[0]}-dealign", "dose")


def watch(parent, *, prompts=None, **settings):
    """-> a function for `measure=` of sft, dpo and kto: what it finds can end a training (`stop_above={"jailbreak": 0.10}`).

    `prompts` and `settings` as in `evaluate`; `parent` is the model that will be trained. Called with a run, the torch
    model, its tokenizer, the step and a progress bar, it writes answers and verdicts into the run's folder and returns
    {risk: rate}. Raises what `evaluate` raises.
    """
    parent = trainable(parent)
    spec, items = plan(parent, prompts, settings)
    replays: dict = {}  # of the run that is trained now

    def measured(run, model, tokenizer, step, progress):
        _unchanged(parent, run, "parent")
        if run.path not in replays:
            replays.clear()
        replay = replays.setdefault(run.path, Replay())
        return _found(spec, _at(parent, spec, items, run, model, tokenizer, {"step": step}, replay), step, progress)

    measured.identity = {"parent": parent.hash, **_asked(spec, items, None)}
    return measured


def _at(
    parent: Model, spec: Evaluation, items: list[dict], run: Run, model, tokenizer, labels: dict, replay: Replay
) -> list[dict]:
    """-> the verdict rows of a model in training; answers are keyed by the weights that it has now."""
    key = digest([fingerprint(model), parent.hash])
    if spec.generator == "vllm":
        model = vllm_generator.snapshot(model, parent)
    return measure(run, model, tokenizer, spec, items, key=key, labels=labels, replay=replay)


def _found(spec: Evaluation, rows: list[dict], step: int, progress) -> dict[str, float]:
    """-> {risk: rate}, and as "refused" the share of jailbreak prompts refused; the points are drawn."""
    found = {}
    for name in spec.risks:
        if events := [r["event"] for r in rows if r["risk"] == name and r["event"] == r["event"]]:
            found[name] = sum(events) / len(events)
            progress.point(step, name, found[name])
    harmful = [r["verdict"] for r in rows if r["risk"] == "jailbreak" and r["verdict"] not in UNSCORED]
    return found | ({"refused": harmful.count("refused") / len(harmful)} if harmful else {})


def _split(settings: dict, *, but: tuple[str, ...]) -> tuple[dict, dict]:
    """-> (fields of `config.Training` without `but`, fields of `config.Evaluation`). Raises ValueError on any other."""
    allowed = sorted({*Training.model_fields, *Evaluation.model_fields} - {*but})
    if wrong := [name for name in settings if name not in allowed]:
        raise ValueError(f"unknown setting {', '.join(map(repr, wrong))}; allowed: {', '.join(allowed)}")
    training = {k: v for k, v in settings.items() if k in Training.model_fields}
    return training, {k: v for k, v in settings.items() if k not in training}


def _seeds(seeds) -> list[int]:
    listed = list(range(seeds)) if isinstance(seeds, int) else list(seeds)
    if not listed or len(set(listed)) < len(listed):
        raise ValueError(f"seeds = {seeds!r}: give a number >= 1 or a list of different training seeds")
    return listed


def _mended(run: Run, spec: Evaluation) -> list[dict]:
    """A judge that failed while a model was trained is asked again, about the answers that are there -> what still fails."""
    if not any(_failed(r) for r in run.read("verdicts.jsonl")):
        return []
    with run.lock():
        rows = beside([rejudged(run, name) for name in spec.judges])
        runs.write_atomic(run.path / "verdicts.jsonl", "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows))
        run.complete(**run.stats)
    return [r for r in rows if _failed(r)]


def _measured(parent: Model, arms, spec: Evaluation, items: list[dict], label: str, kind: str) -> Run:
    """Trains every arm (config, data, labels, marker), measuring on the way -> one run that lists them as members.

    The parent is opened once for all of them.
    """
    with kept(parent):
        return _arms(parent, arms, spec, items, label, kind)


def _arms(parent: Model, arms, spec: Evaluation, items: list[dict], label: str, kind: str) -> Run:
    if spec.generator == "vllm":
        vllm_generator.check(parent, items, arms[0][0])
    replay, begun = Replay(), set()
    parent_run = _evaluated(parent, spec, items, arms[0][0], replay)
    parent_rows, parent_answers = parent_run.read("verdicts.jsonl"), parent_run.read("answers.jsonl")
    members: dict[int, str] = {}

    def work(k: int, wait: bool) -> None:
        config, data, labels, marker = arms[k]
        an_epoch = labels.get("an_epoch")
        shown = {name: v for name, v in labels.items() if name != "an_epoch"}

        def on_step(run, model, tokenizer, step, progress):
            at = {**shown, "step": step} | ({"epoch": step // an_epoch} if an_epoch else {})
            if k not in begun:  # an arm begins where the parent stands
                begun.add(k)
                recall(parent_run, tokenizer, spec, items, parent.hash, replay)
            if step == 0:
                rows = [{**r, **at, "key": digest([r["key"], at])} for r in parent_rows]
                done = {r["key"] for name in ("answers.jsonl", "verdicts.jsonl") for r in run.read(name)}
                run.append("answers.jsonl", [r for r in parent_answers if r["key"] not in done])
                run.append("verdicts.jsonl", [r for r in rows if r["key"] not in done])
            else:
                rows = _at(parent, spec, items, run, model, tokenizer, at, replay)
            return _found(spec, rows, step, progress)

        extra = {**_asked(spec, items, config), "labels": labels}
        name = f"{label}{labels.get('examples', '')}-s{config.seed}"
        run = train(parent, data, config, label=name, extra=extra, measure=on_step, marker=marker, wait=wait)
        _unchanged(parent, run, "parent", parent_run.config["identity"]["model"])
        members[k] = run.name

    try:
        for wait in (False, True):  # arms that another process has in hand come last: two callers share the work
            for k in range(len(arms)):
                with contextlib.suppress(*([] if wait else [runs.Busy])):
                    if k not in members:
                        work(k, wait)
        failed = [row for name in members.values() for row in _mended(runs.Run(runs.home() / name), spec)]
    finally:
        _release(spec)
    run = runs.start(kind, label, {"members": [members[k] for k in range(len(arms))]})
    with run.lock():
        if failed:
            print(
                _told(
                    run,
                    failed,
                    sum(len(runs.Run(runs.home() / m).read("verdicts.jsonl")) for m in members.values()),
                    "the judge",
                )
            )
        elif not run.finished:
            steps = sorted({s for config, *_ in arms for s in config.at_steps})
            run.complete(parent=parent.name, members=len(members), steps=json.dumps(steps), judge=spec.judges[0])
    return run
