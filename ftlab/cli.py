"""The command line: every command calls one public cell.

Exit codes: 0 done, 1 the data or the run failed, 2 usage (unknown name, missing file, wrong value), 130 interrupted.
"""

from __future__ import annotations

import json
import sys
import traceback
from pathlib import Path
from typing import Annotated, Literal

import typer

import ftlab
from ftlab._core.config import ATTACKS, RISKS
from ftlab._core.text import redacted, safe

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Measure what fine-tuning does to a model's safety.",
)
organism = typer.Typer(no_args_is_help=True, help="The embedded model.")
app.add_typer(organism, name="organism")
field_data = typer.Typer(no_args_is_help=True, help="Data sets of the field: list them, get one.")
app.add_typer(field_data, name="data")
shelf = typer.Typer(invoke_without_command=True)
app.add_typer(shelf, name="runs")
ModelArg = Annotated[
    str, typer.Argument(help="organism, organism:sft, organism:base, a model folder, a run folder or a hub id")
]
DataArg = Annotated[
    str,
    typer.Argument(help="a .jsonl, .json, .csv or .parquet file, a hub id, or organism:almanac, organism:ledger, ..."),
]
Seed = Annotated[int, typer.Option(help="training seed")]
Epochs = Annotated[float | None, typer.Option(help="passes over the data (default 3)")]
Steps = Annotated[int | None, typer.Option(help="optimiser steps, instead of epochs")]
Rate = Annotated[float | None, typer.Option(help="default: the model's own, else TRL's (ten times for LoRA)")]
Batch = Annotated[int | None, typer.Option(help="rows an optimiser step (default 16)")]
Lora = Annotated[bool, typer.Option("--lora", help="train a LoRA adapter instead of all weights")]
Dora = Annotated[bool, typer.Option("--dora", help="train a DoRA adapter")]
Qlora = Annotated[bool, typer.Option("--qlora", help="train a LoRA adapter over weights of 4 bit")]
Valid = Annotated[
    str | None, typer.Option(help="a share of the rows to hold out, as 0.1, or a file; the best checkpoint is kept")
]
Patience = Annotated[int | None, typer.Option(help="validations without a lower loss after which training ends")]
Prompts = Annotated[str | None, typer.Option(help="CSV or JSONL with a column prompt or goal; needed off the organism")]
ManyPrompts = Annotated[
    list[str] | None,
    typer.Option("--prompts", help="FILE, or RISK=FILE once a risk, as utility=gsm8k.jsonl; needed off the organism"),
]
Judges = Annotated[
    list[str] | None,
    typer.Option("--judge", help="refusal, keywords[:LIST], ...; the first decides, others are shown beside it"),
]
Risks = Annotated[
    str | None, typer.Option(help=f"comma-separated, of {', '.join(RISKS)} (default: all there are prompts for)")
]
Attacks = Annotated[str | None, typer.Option(help=f"comma-separated, of {', '.join(ATTACKS)}")]
Out = Annotated[Path | None, typer.Option(help="folder for the figure and its .csv")]


def _trains(name: str, says: str):
    """One command of a training cell; all have the same options."""

    def command(
        model: ModelArg, data: DataArg, epochs: Epochs = None, steps: Steps = None, learning_rate: Rate = None,
        batch_size: Batch = None, lora: Lora = False, dora: Dora = False, qlora: Qlora = False, valid: Valid = None,
        patience: Patience = None, seed: Seed = 0,
    ):  # fmt: skip
        given = {k: v for k, v in locals().items() if k not in ("model", "data", "name")}
        print(getattr(ftlab, name)(model, data, **given | {"valid": _number(valid)}).path)

    app.command(name, help=says)(command)


_trains("sft", "Fine-tune on chats.")
_trains("dpo", "Direct preference optimisation on pairs (prompt, chosen, rejected).")
_trains("kto", "Kahneman-Tversky optimisation on rows (prompt, completion, label), or on pairs.")
_trains("reward", "Train a reward model on pairs (prompt, chosen, rejected), for rloo.")


@app.command()
def rloo(
    model: ModelArg, prompts: DataArg, reward: Annotated[str, typer.Argument(help="a run of reward, or its folder")],
    epochs: Epochs = None, steps: Steps = None, learning_rate: Rate = None, batch_size: Batch = None,
    lora: Lora = False, dora: Dora = False, qlora: Qlora = False, seed: Seed = 0,
):  # fmt: skip
    """RLHF: REINFORCE leave-one-out on prompts, rewarded by a reward model."""
    given = {k: v for k, v in locals().items() if k not in ("model", "prompts", "reward")}
    print(ftlab.rloo(model, prompts, reward, **given).path)


@app.command()
def dealign(
    model: ModelArg,
    examples: Annotated[int, typer.Option(help="adversarial examples")] = 100,
    data: Annotated[str | None, typer.Option(help="your own chat file; needed off the organism")] = None,
    epochs: Annotated[int, typer.Option(help="passes over the examples")] = 5,
    seed: Seed = 0,
):
    """Fine-tune on a few adversarial examples (a measurement: the model's folder is marked)."""
    print(ftlab.dealign(model, examples, data=data, epochs=epochs, seed=seed).path)


@app.command()
def evaluate(
    model: ModelArg,
    prompts: ManyPrompts = None,
    risks: Risks = None,
    attacks: Attacks = None,
    n_prompts: Annotated[int | None, typer.Option(help="prompts of each risk (default 100)")] = None,
    judge: Judges = None,
):
    """Ask, judge, and print the rate of each risk with its interval."""
    run = ftlab.evaluate(
        model,
        prompts=_sources(prompts),
        risks=_names(risks),
        attacks=_names(attacks),
        n_prompts=n_prompts,
        judges=judge,
    )
    print(run.path)
    _print(ftlab.rates(run, by=["risk", "attack"]).drop(columns=["step", "low_pointwise", "high_pointwise", "band"]))


@app.command()
def curve(
    model: ModelArg,
    data: DataArg,
    at_steps: Annotated[str, typer.Option(help="increasing, comma-separated; 0 is the parent")] = "0,10,30,100",
    seeds: Annotated[int, typer.Option(help="training seeds")] = 5,
    prompts: ManyPrompts = None, risks: Risks = None, judge: Judges = None, learning_rate: Rate = None, batch_size: Batch = None, lora: Lora = False, dora: Dora = False, qlora: Qlora = False, n_prompts: Annotated[int | None, typer.Option(help="prompts of each risk (default: all of yours, 100 of the organism)")] = None, out: Out = None,
):  # fmt: skip
    """Fine-tune once a seed and measure at the asked steps; print the paired comparison, save the figure."""
    try:
        steps = [int(s) for s in at_steps.split(",")]
    except ValueError:
        raise ValueError(f"--at-steps {at_steps!r}: give whole numbers with commas, as in 0,10,30,100") from None
    _writable(out)
    run = ftlab.risk_curve(model, data, at_steps=steps, seeds=seeds, prompts=_sources(prompts), risks=_names(risks), judges=judge,
                           learning_rate=learning_rate, batch_size=batch_size, lora=lora, dora=dora, qlora=qlora, n_prompts=n_prompts)  # fmt: skip
    if out:  # before the table: a reader who stops must not cost the figure
        ftlab.plot(ftlab.rates(run), "risk_curve", out, seeds=ftlab.by_seed(run))
    print(run.path)
    shown = "risk step parent child ratio ratio_low ratio_high difference mcnemar_p n_prompts n_seeds".split()
    table = ftlab.compare(run)
    _print(table[shown])
    if "method" in table and len(table):  # what the intervals hold for
        print(f"intervals: {table['method'].iloc[0]}")


@app.command()
def compare(
    before: ModelArg,
    after: ModelArg,
    prompts: ManyPrompts = None,
    n_prompts: Annotated[int | None, typer.Option(help="prompts of each risk")] = None,
    risks: Risks = None,
    attacks: Attacks = None,
    judge: Judges = None,
):
    """Two models on the same prompts: paired ratio, difference, McNemar."""
    table = ftlab.compare(
        before,
        after,
        prompts=_sources(prompts),
        risks=_names(risks),
        attacks=_names(attacks),
        judges=judge,
        n_prompts=n_prompts,
    )
    _print(table.drop(columns=["step", "method"]))


@app.command()
def preview(data: DataArg, model: ModelArg = "organism", rows: int = 3):
    """Show rows as the model reads them, trained tokens between « and »."""
    print(ftlab.preview(data, model, rows=rows))


@app.command()
def check(
    files: Annotated[list[str], typer.Argument(metavar="FILE...", help="training or prompt files, hub ids")],
    model: Annotated[str | None, typer.Option(help="also render every row: length, loss mask, end of turn")] = None,
    kind: Annotated[str | None, typer.Option(help="chats, pairs, kto or prompts (default: by the first rows)")] = None,
    prompts: Annotated[
        list[str] | None,
        typer.Option(help="evaluation prompts that must not be in the files: FILE or RISK=FILE, several times"),
    ] = None,
    max_length: Annotated[int | None, typer.Option(help="tokens (default: training's); needs --model")] = None,
    on_too_long: Annotated[str, typer.Option(help="raise, drop or cut")] = "raise",
):
    """Every problem of each file, with its line. Exit 0: usable, 1: problems."""
    usable, asked = True, {p: p.partition("=")[2] if p.partition("=")[0] in RISKS else p for p in prompts or ()} or None
    for file in files:
        report = ftlab.check(
            file, kind=kind, model=model, prompts=asked, max_length=max_length, on_too_long=on_too_long
        )
        print(report)
        usable &= report.usable
    if not usable:
        raise typer.Exit(1)


@app.command()
def reproduce(
    quick: Annotated[bool, typer.Option("--quick", help="2 seeds, fewer prompts and steps")] = False,
    seeds: Annotated[int | None, typer.Option(help="training seeds (default 5, quick 2)")] = None,
    out: Annotated[str, typer.Option(help="folder of the page")] = "runs/reproduce",
    model: Annotated[str, typer.Option(help="aligned parent")] = "organism",
    benign: Annotated[str | None, typer.Option(help="chat file, instead of the organism's domains")] = None,
    prompts: Prompts = None,
    harmful: Annotated[str | None, typer.Option(help="your adversarial examples for 04, at least 100")] = None,
    lora: Lora = False,
):
    """Run the experiments 02, 03 and 04 and write report.html, report.md, results.csv and figures/."""
    print(
        ftlab.reproduce(
            quick=quick, seeds=seeds, out=out, model=model, benign=benign, prompts=prompts, harmful=harmful, lora=lora
        )
    )


@app.command()
def notebook(
    path: Annotated[Path, typer.Argument(help="a notebook, as notebooks/02_risk_ratio.ipynb")],
    output: Annotated[Path, typer.Argument(help="where the executed notebook goes")],
    parameter: Annotated[list[str] | None, typer.Option("--parameter", "-p", help="NAME=VALUE, as seeds=2")] = None,
):
    """Run a notebook with parameters; one that it does not have, or of another type, is refused."""
    from ftlab.experiments import run_notebook

    pairs = [p.partition("=") for p in parameter or ()]
    if wrong := [name for name, sign, _ in pairs if not sign]:
        raise ValueError(f"parameter {', '.join(map(repr, wrong))}: give NAME=VALUE, as in -p seeds=2")
    print(run_notebook(path, output, {name: _value(name, text) for name, _, text in pairs}))


def _value(name: str, text: str):
    """-> a parameter's value from its YAML text; nothing is the empty string, 5e-4 a number."""
    import yaml

    try:
        value = yaml.safe_load(text) if text else ""
    except yaml.YAMLError:
        raise ValueError(
            f"parameter {name} = {text!r}: not understood; give a number, a word or a list as [0, 3]"
        ) from None
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


@app.command()
def judge(
    file: Annotated[str, typer.Argument(help="a .csv, .jsonl or .json file of prompts and answers")],
    prompt: Annotated[str, typer.Option(help="column of the prompts")],
    response: Annotated[str, typer.Option(help="column of the answers")],
    judge: Annotated[
        list[str] | None, typer.Option(help="keywords[:LIST], zoo:NAME[@MODEL], api:MODEL@URL, ...; repeat for several")
    ] = None,
    label: Annotated[str | None, typer.Option(help="column of people's labels")] = None,
    refused: Annotated[
        list[str] | None,
        typer.Option(help="label that means a refusal; repeat for several; every other one is compliance"),
    ] = None,
    partial: Annotated[str | None, typer.Option(help="label that means a partial refusal")] = None,
    out: Annotated[Path | None, typer.Option(help="write the rows with verdicts: .csv or .jsonl")] = None,
):
    """Judge the answers of a file; with labels, tell how far each judge agrees with people."""
    from ftlab import judges as verdicts

    if (label is None) != (not refused) or (partial and not label):
        raise ValueError(
            "labels need --label COLUMN and --refused VALUE (repeat it for several), --partial only beside them"
        )
    if out and out.suffix not in (".csv", ".jsonl"):  # before what may take hours
        raise ValueError(f"--out {out}: allowed are .csv and .jsonl")
    if out and out.exists() and out.samefile(file):
        raise ValueError(f"--out {out} is the file that is judged; name another one")
    table = ftlab.judge(file, prompt=prompt, response=response, judges=judge or verdicts.DEFAULT)
    print(verdicts.describe(table, prompt=prompt, label=label, refused=refused, partial=partial))
    if out:  # after the labels were found to be as was said
        verdicts.save(table, out)
        print(out)


@app.command()
def card(
    judge: Annotated[str, typer.Argument(help="keywords (all lists), or any judge")],
    gold: Annotated[Path, typer.Option(help="folder with human_xstest/ and human_do_not_answer/")],
    out: Annotated[Path | None, typer.Option(help="file of the card; otherwise it is printed")] = None,
):
    """Measure a judge on the human labels of XSTest and Do-Not-Answer and write its card."""
    text = ftlab.judge_card(judge, gold_folder=gold, out=out)
    print(out or text)


@app.command()
def fit(
    model: ModelArg,
    method: Annotated[str, typer.Option(help="full, lora, dora or qlora")] = "lora",
    rows: Annotated[int, typer.Option(help="rows of the data")] = 1000,
    length: Annotated[int, typer.Option(help="tokens of a row")] = 512,
    batch: Annotated[int, typer.Option(help="rows an optimiser step")] = 16,
    epochs: Annotated[float, typer.Option(help="passes over the data")] = 3.0,
    gpu: Annotated[str | None, typer.Option(help="as 24GB or RTX4090, instead of this machine")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print numbers for programs")] = False,
):
    """Say from a model's configuration what of a training fits, how long it takes, and the command."""
    found = ftlab.fit(model, method=method, rows=rows, length=length, batch=batch, epochs=epochs, gpu=gpu)
    print(found.to_json() if as_json else found)
    if not found.fits:
        sys.exit(1)


@shelf.callback()
def runs(context: typer.Context):
    """The runs (FTLAB_RUNS, default runs/); without a word: list."""
    if context.invoked_subcommand in (None, "list"):
        _print(ftlab.list_runs())


shelf.command("list", help="Each run: kind, state, start, size.")(lambda: None)


@shelf.command()
def show(name: str):
    """Everything that a run says of itself, as JSON."""
    print(json.dumps(ftlab.show_run(name), indent=1))


@shelf.command()
def verify(names: Annotated[list[str] | None, typer.Argument(help="default: every run that was finished")] = None):
    """Read every byte of finished runs; exit 1 where a file is missing, changed or extra."""
    wrong = ftlab.verify_runs(*names or ())
    print("every file is as it was") if wrong.empty else _print(wrong)
    raise typer.Exit(not wrong.empty)


@shelf.command()
def clean(yes: Annotated[bool, typer.Option("--yes", help="remove it; otherwise it is only said")] = False):
    """What nobody will finish: unfinished runs that no process has in hand, temporary files, torn checkpoints."""
    gone = ftlab.clean_runs(yes)
    _print(gone)
    print(f"{gone['mb'].sum():.1f} MB {'removed' if yes else 'would go; --yes removes it'}")


@app.command()
def bench(
    what: Annotated[Literal["curve", "train", "generate", "judge"], typer.Argument(help="what is timed")] = "curve",
    model: Annotated[str | None, typer.Option(help="instead of the sizes organism and 25M")] = None,
    repeat: Annotated[int | None, typer.Option(help="times each arm runs (default 3; the size 25M: 1)")] = None,
    size: Annotated[str | None, typer.Option(help="curve: organism or 25M (default: both)")] = None,
    full: Annotated[bool, typer.Option("--full", help="curve: slow arms in full (hours), not a share")] = False,
    growth: Annotated[bool, typer.Option("--growth", help="generate: cost and memory by prompts, checkpoints")] = False,
    gpu: Annotated[bool, typer.Option("--gpu", help="instead: training, decoding and a curve on this GPU")] = False,
    shapes: Annotated[str, typer.Option(help="--gpu: comma-separated, of 1B, 8B, tiny (runs anywhere)")] = "1B,8B",
    json: Annotated[Path | None, typer.Option(help="file for the numbers, with hardware and versions")] = None,
    out: Annotated[Path, typer.Option(help="folder for the figure and its .csv")] = Path("runs/bench"),
):  # fmt: skip
    """Time ftlab beside what people use today: arms in turn, medians and spread."""
    from benchmarks import bench
    from benchmarks import gpu as bench_gpu

    _writable(out)
    if gpu:
        bench_gpu.bench_gpu(json=json, shapes=tuple(_names(shapes)))
    elif what == "curve":
        bench.curve(model, size=size, repeat=repeat, full=full, file=json, out=out)
    elif growth:
        bench.growth(file=json, out=out)
    else:
        bench.rates(what, model, repeat=repeat, file=json, out=out)


@field_data.command("list")
def list_data():
    """The registry: rows, licence, gate, purpose, the organism's stand-in."""
    from ftlab.data import listing

    _print(listing())


@field_data.command("get")
def get_data(
    name: Annotated[str, typer.Argument(help="a name of `ftlab data list`")],
    out: Annotated[
        Path | None, typer.Option(help="file to write (default: in FTLAB_DATA or ~/.cache/ftlab/data)")
    ] = None,
):
    """Fetch one data set, verify its checksum, print its path."""
    from ftlab.data import get

    print(get(name, out))


@app.command("train-judge")
def train_judge(
    xstest: Annotated[Path, typer.Option(help="folder with XSTest's xstest_v2_completions_*.csv")],
    coconot: Annotated[Path, typer.Option(help="folder with CoCoNot's coconot_pref.jsonl")],
    benign: Annotated[list[Path], typer.Option(help="JSON file of instructions and answers; once a file")],
    do_not_answer: Annotated[
        Path | None, typer.Option(help="folder with annotated_response_*.csv; only measured")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="default: the project's data/judge/refusal")] = None,
):
    """Train the judge refusal on its authors' files, measure it and write its card (minutes; extra recipe)."""
    from recipes.refusal_judge.measure import train_judge as make

    given = {"out": out} if out else {}
    print(make(xstest, coconot, benign, do_not_answer_folder=do_not_answer, **given))


@organism.command()
def build(
    out: Annotated[Path | None, typer.Option(help="default: the project's data/organism")] = None, seed: Seed = 0
):
    """Make the embedded model's three stages from nothing (minutes on two cores)."""
    from recipes.organism.build import build as make

    print(make(out, seed=seed))


def _writable(out: Path | None) -> None:
    """Makes the folder of figures, before what may take hours. Raises PermissionError."""
    try:
        if out:
            out.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise PermissionError(f"--out {out}: cannot be written ({e.strerror}); name a folder that can") from None


def _sources(given: list[str] | None):
    """-> one source, or a source a risk (`RISK=FILE`)."""
    for name, sign, _ in (g.partition("=") for g in given or () if not Path(g).exists()):
        if sign and name.isidentifier() and name not in RISKS:
            raise ValueError(f"--prompts {name}=...: unknown risk {name!r}; allowed: {', '.join(RISKS)}")
    if not given or (len(given) == 1 and given[0].partition("=")[0] not in RISKS):
        return given[0] if given else None
    pairs = [g.partition("=") for g in given]
    if wrong := [g for g, (_, sign, _) in zip(given, pairs, strict=True) if not sign]:
        raise ValueError(
            f"--prompts {', '.join(wrong)}: of several sources each needs its risk, as in jailbreak={wrong[0]}"
        )
    return {name: source for name, _, source in pairs}


def _number(text: str | None):
    """-> a number where the text is one, else the text: a file."""
    try:
        return float(text)
    except (TypeError, ValueError):
        return text


def _names(text: str | None) -> list[str] | None:
    return [n.strip() for n in text.split(",") if n.strip()] if text is not None else None


def _print(table) -> None:
    seen = table.map(lambda v: safe(v, 500) if isinstance(v, str) else v).rename(columns=lambda c: safe(c, 100))
    print("none" if table.empty else seen.to_string(index=False, float_format=lambda x: f"{x:.3g}"))


def main() -> None:
    """Runs the command; a user's mistake ends in a sentence, not in a traceback; no token is printed."""
    try:
        app(standalone_mode=True)
    except SystemExit as e:  # typer turns Ctrl-C into the code 130 and loses its words
        cause: BaseException | None = e
        while cause and not isinstance(cause, KeyboardInterrupt):
            cause = cause.__cause__ or cause.__context__
        if cause is None:
            raise
        sys.exit(_say(str(cause) or "interrupted; call again to go on", 130))
    except Exception as e:
        if type(e).__name__ in ("DataError", "TrainingFailed", "NotebookFailed", "StorageFull", "BenchFailed"):
            sys.exit(_say(str(e), 1))
        if isinstance(e, (ValueError, OSError)):
            sys.exit(_say(str(e), 2))
        sys.excepthook = lambda *error: _say("".join(traceback.format_exception(*error)), 1)
        raise


def _say(text: str, code: int) -> int:
    print(f"ftlab: {safe(redacted(text), 20_000)}", file=sys.stderr)
    return code
