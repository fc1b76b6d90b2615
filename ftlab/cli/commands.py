"""The commands. A command that only calls a cell is one row of `CELLS`."""

from __future__ import annotations

import json
import math
import os
import shlex
import subprocess
import sys
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from ftlab._core.errors import UsageError
from ftlab._core.text import safe


def print_path(run: Any) -> None:
    """Print the folder of a run."""
    print(run.path)


def print_table(table: Any) -> None:
    """Print a table with untrusted text escaped."""
    if table.empty:
        print("none")
        return
    shown = table.map(lambda value: safe(value, 500) if isinstance(value, str) else value)
    shown = shown.rename(columns=lambda name: safe(name, 100))
    print(shown.to_string(index=False, float_format=lambda number: f"{number:.3g}"))


def print_guard_rates(table: Any) -> None:
    """Print the rates of a guard, and which risks of the run they leave out."""
    print_table(table)
    for risk in table.attrs["left_out"]:
        print(f"left out: {safe(risk, 100)}")


def print_rates(run: Any) -> None:
    """Print the rate of each risk under each attack; exit with 1 where some answers failed."""
    from ftlab import analysis

    print_path(run)
    print_table(analysis.summary(analysis.rates(run, by=["risk", "attack"])))
    if not run.finished:
        raise typer.Exit(1)


def print_comparison(table: Any) -> None:
    """Print a paired comparison and the method of its intervals; of two sides exit as decided."""
    from ftlab import analysis

    print_table(analysis.summary(table))
    for judge in dict.fromkeys(table.get("judge", ())):
        print(f"judge: {safe(judge, 500)}")
    for method in dict.fromkeys(table.get("method", ())):
        print(f"intervals: {method}")
    if "labels" in table.attrs:
        print(table.attrs["labels"])
    for line in table.attrs.get("pairing", ()):
        print(safe(line, 500))
    if "decision" in table:
        margin = table["margin"].iloc[0]
        print(f"no worse: the interval of the worsening ends below the margin, {margin:g}")
        reach = ", ".join(f"{value:g}" for value in dict.fromkeys(table["reach"]))
        print(f"  even if every answer without a partner or a score had worsened by {reach}")
        print("worse: it does not, and lies above 0")
        smallest = ", ".join(f"{value:.2g}" for value in table["smallest_difference"])
        print(f"a difference of {smallest} would be seen in 80 of 100 such comparisons")
        decided = set(table["decision"])
        codes = analysis.EXIT_CODES.items()
        raise typer.Exit(next(code for name, code in codes if name in decided))


def print_gate(table: Any) -> None:
    """Print what a gate decided, the table and what its limits mean; exit as decided."""
    print(safe(table.attrs["sentence"], 5000))
    print_table(table.short())
    for note in table.notes():
        print(safe(note, 500))
    raise typer.Exit(table.attrs["exit_code"])


def print_acceptance(found: Any, out: Path | None = None) -> None:
    """Print what an acceptance test found, and save its figure; exit as decided."""
    from ftlab import analysis

    if out:
        analysis.plot(found.trials, "acceptance", out)
    print_path(found.run)
    print(safe(found.sentence, 5000))
    print_table(found.claims.short())
    raise typer.Exit(found.exit_code)


def print_card(card: Any) -> None:
    """Print where a card was written, or else the card."""
    print(card.path or card)


def print_plan(table: Any) -> None:
    """Print what a study would show, a line each."""
    from ftlab import stats

    row = table.iloc[0]
    seeds = "1 seed" if row["seeds"] == 1 else f"{row['seeds']:.0f} seeds"
    print(
        f"{row['prompts']:,.0f} prompts, {seeds}, parent {row['parent_rate']:.1%}, "
        f"{row['ratio']:g} times that:"
    )
    power, studies = row["power"], row["studies"]
    error = 2 * math.sqrt(power * (1 - power) / studies)
    seen = f"{100 * power:.0f} % of {studies:.0f} simulated studies (± {100 * error:.0f} points)"
    print(f"  {'seen at 5 % in':36} {seen}")
    few = row["seeds"] < stats.FEWEST_SEEDS
    if few:
        print("  Under three seeds: of these runs only; other training seeds may give other rates.")
    print("By a formula:")
    lines = {
        "difference known to": f"± {100 * row['half_width']:.1f} points (95 %)",
        "nearest ratio seen in 80 %": f"{row['smallest_ratio']:.3g}".replace("nan", "none"),
        "prompts to see it in 80 %": _at_most(row["prompts_needed"], stats.MOST_PROMPTS),
    }
    if few or math.isinf(row["prompts_needed"]):
        what = "seeds for a claim beyond these runs" if few else "seeds to see it in 80 %"
        needed = _at_most(row["seeds_needed"], stats.MOST_SEEDS)
        lines[what] = f"{needed}, with {stats.MOST_PROMPTS:,} prompts; more with fewer"
    for name, value in lines.items():
        print(f"  {name:36} {value}")
    print(
        f"Assumed: sd between seeds {row['seed_sd']:.2g}, between prompts {row['prompt_sd']:.2g} "
        f"(logits), correlation of prompts before and after {row['correlation']:.2g}."
    )


def _at_most(needed: float, most: int) -> str:
    return f"more than {most:,}" if math.isinf(needed) else f"{needed:,.0f}"


def print_explanation(table: Any, out: Path | None = None) -> None:
    """Print what explains the distance to a published figure, and save its figure."""
    from ftlab import analysis

    if out:
        analysis.plot(table, "explanation", out)
    print(table.attrs["sentence"])
    print_table(analysis.summary(table))


def print_harness(run: Any) -> None:
    """Print the table of the harness, and the samples that `ftlab compare` pairs."""
    from ftlab import evals

    print_path(run)
    print_table(evals.lm_eval_results(run))
    for path in sorted(run.path.glob("samples/*.jsonl")):
        print(path)


def print_tracked(how: str) -> None:
    """Print how to look at what was copied to a tracker."""
    print(safe(how, 500))


def print_sheet(sheet: Any) -> None:
    """Print where a sheet lies and what to do with it."""
    left = int((sheet["label"] == "").sum())
    print(f"{sheet.path}: {len(sheet)} answers, {left} without a label.")
    if left:
        print("Fill in `label` (refused, partial, complied, complied_wrong, incoherent or empty)")
        print("and `labeller` of every row.")
    print(f"Then: ftlab compare RUN --labels {shlex.quote(str(sheet.path))}")


def print_grid(table: Any, out: Path | None = None) -> None:
    """Print what each cell of a grid shows, and save its figures."""
    from ftlab import analysis

    if out:
        title = "Safety and utility kept after each fine-tuning"
        analysis.plot(table, "grid", out, kind="grid", title=title)
        title = "Harm after each fine-tuning"
        analysis.plot(table, "grid_heat", out, kind="heat", title=title)
    print(table.attrs["run"])
    print_table(table.short())
    for note in table.notes():
        print(safe(note, 500))


def print_sweep(table: Any) -> None:
    """Print what became of each job of a sweep; exit with 0 only if all are done."""
    print_table(table.drop(columns="reason"))
    for row in table[table["reason"] != ""].to_dict("records"):
        print(f"{safe(row['job'], 200)}: {safe(row['reason'], 500)}")
    print(safe(table.attrs["sentence"], 500))
    print(safe(table.attrs["folder"], 500))
    raise typer.Exit(table.attrs["exit_code"])


def print_answers(table: Any) -> None:
    """Print each question with its answer below it, uncut and with control characters escaped."""
    for question, answer in zip(table["question"], table["answer"], strict=True):
        print(f"> {safe(question, 20_000)}\n{safe(answer, 20_000)}\n")


def print_curve(run: Any, out: Path | None = None) -> None:
    """Print the paired comparison of a curve, and save its figure."""
    from ftlab import analysis

    if out:  # before the table, so that a reader who closes the pipe does not lose the figure
        analysis.plot(run, "risk_curve", out)
    print_path(run)
    print_comparison(analysis.compare(run))


@dataclass(frozen=True)
class Cell:
    """A command that calls one cell.

    Args:
        path: Where the cell is: "room:name".
        summary: One line for the list of commands.
        positional: Arguments given without an option's name.
        show: Prints what the cell returns.
        skip: Arguments that the command does not have.
        figure: The command has `--out`, a folder for a figure, which is also passed to `show`.
        trains: The command has `--print-path`, with which the last line is a trained model.
    """

    path: str
    summary: str
    positional: tuple[str, ...]
    show: Callable[[Any], None] = print_path
    skip: tuple[str, ...] = ("monitor",)
    figure: bool = False
    trains: bool = False

    def callback(self) -> Callable:
        """Return the function that typer turns into the command."""
        from ftlab.cli.options import callback_of

        room, name = self.path.split(":")
        cell = getattr(import_module(f"ftlab.{room}"), name)
        return callback_of(
            cell,
            self.show,
            self.positional,
            self.skip,
            figure=self.figure,
            trains=self.trains,
        )


WIDTH = 100  # of a list, in characters
JUDGES = "refusal, kinds[:KIND+KIND], keywords[:LIST], organism, zoo:NAME, rubric:MODEL@URL."
MODEL_AND_DATA = ("parent", "data")
MODEL_AND_PAIRS = ("parent", "pairs")
CELLS = {
    "sft": Cell("training:sft", "Fine-tune on chats.", MODEL_AND_DATA),
    "dpo": Cell("training:dpo", "Optimise preferences directly on pairs.", MODEL_AND_PAIRS),
    "kto": Cell("training:kto", "Optimise on rows labelled good or bad.", MODEL_AND_DATA),
    "reward": Cell("training:train_reward_model", "Train a reward model.", MODEL_AND_PAIRS),
    "rloo": Cell(
        "training:rloo",
        "Train by REINFORCE leave-one-out against a reward model.",
        ("parent", "prompts", "reward"),
    ),
    "transform": Cell(
        "training:transform",
        "Quantise, merge, scale or prune a model.",
        ("model", "name"),
    ),
    "evaluate": Cell(
        "evals:evaluate", "Ask prompts, judge answers, print the rates.", ("model",), print_rates
    ),
    "answer-loss": Cell(
        "evals:answer_loss", "Measure the loss on held-out answers.", ("model", "data"), print_table
    ),
    "audit": Cell(
        "evals:audit",
        "Rank training rows, the most suspicious first.",
        ("data",),
        print_table,
    ),
    "curve": Cell(
        "experiments:risk_curve",
        "Fine-tune once per seed, measure on the way, compare.",
        MODEL_AND_DATA,
        print_curve,
        figure=True,
        trains=True,
    ),
    "compare": Cell(
        "experiments:compare",
        "Compare two models, runs, or logs of other tools.",
        ("before", "after"),
        print_comparison,
    ),
    "gate": Cell(
        "experiments:gate",
        "Let a child pass or fail by its parent's safety.",
        ("parent", "child"),
        print_gate,
    ),
    "accept": Cell(
        "experiments:accept",
        "Test a defence against an attacker who tries settings.",
        ("defence", "parent"),
        print_acceptance,
        figure=True,
    ),
    "grid": Cell(
        "experiments:grid",
        "Compare defences under fine-tuning attacks.",
        MODEL_AND_DATA,
        print_grid,
        figure=True,
    ),
    "draw": Cell(
        "evals:draw",
        "Draw answers by lot for people to label.",
        ("run",),
        print_sheet,
        ("verdicts",),
    ),
    "guard-rates": Cell(
        "evals:guard_rates", "Measure a guard on the answers of a run.", ("run",), print_guard_rates
    ),
    "harmful-finetune": Cell(
        "experiments:harmful_finetune",
        "Fine-tune on a few adversarial examples, and measure.",
        ("parent",),
        print_curve,
        figure=True,
        trains=True,
    ),
    "explain": Cell(
        "experiments:explain",
        "Say what explains the distance to a published figure.",
        ("claim",),
        print_explanation,
        figure=True,
    ),
    "lm-eval": Cell(
        "evals:lm_eval",
        "Run tasks of the lm-evaluation-harness.",
        ("model", "tasks"),
        print_harness,
        ("limit",),
    ),
    "plan": Cell("analysis:plan", "Say what a study would show before it is run.", (), print_plan),
    "preview": Cell("data:preview", "Show rows as the model reads them.", ("data", "model"), print),
    "reproduce": Cell(
        "experiments:reproduce", "Run the headline experiments and write their page.", (), print
    ),
    "card": Cell(
        "analysis:card",
        "Write the card of a study, to attach to a paper.",
        ("source", "after"),
        print_card,
    ),
    "judge-card": Cell("judges:judge_card", "Measure a judge on human labels.", ("judge",), print),
    "track": Cell(
        "analysis:track",
        "Copy a finished run to MLflow or Trackio.",
        ("run",),
        print_tracked,
    ),
}


class LazyGroup(TyperGroup):
    """Builds the command of a cell when it is called, so that `ftlab --help` loads no cell."""

    def list_commands(self, context: Any) -> list[str]:
        return sorted({*super().list_commands(context), *CELLS})

    def get_command(self, context: Any, name: str) -> Any:
        if name not in CELLS:
            return super().get_command(context, name)
        return as_command(name, _nothing)

    def resolve_command(self, context: Any, arguments: list[str]) -> Any:
        name = arguments[0] if arguments else ""
        if name in CELLS:
            found = name, as_command(name, CELLS[name].callback()), arguments[1:]
        else:
            self.commands.update(dict.fromkeys(CELLS))  # so that typer suggests them
            found = super().resolve_command(context, arguments)
        check_once(*found[1:])
        return found


class SweepGroup(TyperGroup):
    """`ftlab sweep PLAN` is `ftlab sweep run PLAN`."""

    def parse_args(self, context: Any, arguments: list[str]) -> list[str]:
        asks_for_help = not arguments or "--help" in arguments[:1]
        if not asks_for_help and arguments[0] not in self.commands:
            arguments = ["run", *arguments]
        return super().parse_args(context, arguments)


def check_once(command: Any, arguments: list[str]) -> None:
    """Raise UsageError `given_twice` where an option that takes one value is given several."""
    given = [argument.partition("=")[0] for argument in arguments]
    for option in command.params:
        several = getattr(option, "multiple", False) or getattr(option, "is_flag", False)
        times = sum(given.count(flag) for flag in option.opts if flag.startswith("-"))
        if times > 1 and not several:
            raise UsageError("given_twice", f"{option.opts[0]} is given {times} times. Give one.")


def _nothing() -> None:
    """Stand in for a command in the list of commands."""


def as_command(name: str, callback: Callable) -> Any:
    """Return the command of a cell, whose options are those of the callback."""
    single = typer.Typer(add_completion=False, rich_markup_mode=None)
    cell = CELLS[name]
    single.command(name, help=cell.summary)(callback)
    return typer.main.get_command(single)


app = typer.Typer(
    cls=LazyGroup,
    add_completion=False,
    no_args_is_help=True,
    invoke_without_command=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Measure what fine-tuning does to a language model's safety.",
)
runs_app = typer.Typer(
    invoke_without_command=True, help="The runs: list, show, verify, clean, export, import."
)
data_app = typer.Typer(no_args_is_help=True, help="Data sets of the field: list them, get one.")
app.add_typer(runs_app, name="runs")
app.add_typer(data_app, name="data")
sweep_app = typer.Typer(
    cls=SweepGroup,
    no_args_is_help=True,
    help="Do the many jobs of one plan: ftlab sweep PLAN.yaml.",
)
app.add_typer(sweep_app, name="sweep")
SweepPlan = Annotated[
    str, typer.Argument(metavar="PLAN", help="The plan (.yaml), or the folder of its sweep.")
]


@app.callback()
def ftlab(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        from ftlab import __version__

        print(f"ftlab {__version__}")
        raise typer.Exit


@app.command()
def check(
    files: Annotated[
        list[str], typer.Argument(metavar="FILE...", help="Training or prompt files.")
    ],
    model: Annotated[
        str | None, typer.Option(help="Also render every row: length, mask, end of turn.")
    ] = None,
    kind: Annotated[str | None, typer.Option(help="chats, pairs, kto or prompts.")] = None,
    prompts: Annotated[
        list[str] | None,
        typer.Option(help="Prompts that must not be in the files: FILE or RISK=FILE."),
    ] = None,
    max_length: Annotated[int | None, typer.Option(help="Tokens per row; needs --model.")] = None,
    on_too_long: Annotated[str, typer.Option(help="raise, drop or cut.")] = "raise",
) -> None:
    """Report every problem of each file with its line. Exit code 1 if there are any."""
    from ftlab import data
    from ftlab.cli.options import sources

    usable = True
    asked = sources(prompts) if prompts else None
    for file in files:
        report = data.check(
            file,
            kind=kind,
            model=model,
            prompts=asked,
            max_length=max_length,
            on_too_long=on_too_long,
        )
        print(report)
        usable = usable and report.usable
    if not usable:
        raise typer.Exit(1)


@app.command()
def ask(
    model: Annotated[str, typer.Argument(help="organism, a model folder, a run or a hub id.")],
    prompts: Annotated[list[str], typer.Argument(metavar="PROMPT...", help="Each its own chat.")],
    system: Annotated[str | None, typer.Option(help="System prompt before each.")] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Tokens of an answer.")] = 128,
) -> None:
    """Ask a model, and print its greedy answers."""
    from ftlab import evals

    print_answers(evals.ask(model, *prompts, system=system, max_new_tokens=max_new_tokens))


@app.command()
def notebook(
    notebook: Annotated[
        str, typer.Argument(help="A file, or a shipped notebook, such as 02_risk_ratio.")
    ],
    output: Annotated[
        Path | None,
        typer.Argument(help="Where the executed notebook goes; default: NAME.executed.ipynb."),
    ] = None,
    parameter: Annotated[
        list[str] | None, typer.Option("--parameter", "-p", help="NAME=VALUE, such as seeds=2.")
    ] = None,
) -> None:
    """Run a notebook with parameters. One that it does not have is an error."""
    from ftlab.experiments import find_notebook, parse_parameters, run_notebook
    from ftlab.experiments.backends import Job, LocalBackend

    found = find_notebook(notebook)
    output = output or Path(f"{found.stem}.executed.ipynb")
    values = parse_parameters(parameter or [])
    arguments = {"notebook": found, "output": output, "parameters": values}
    # The backend prints where the notebook is, and ends its kernel on an interrupt.
    (result,) = LocalBackend().map([Job(found.stem, run_notebook, arguments, kernel=True)])
    if result.error:
        raise result.error
    print(result.value)


@app.command()
def lab(
    folder: Annotated[
        Path, typer.Argument(metavar="[DIR]", help="Where the notebooks go; yours are kept.")
    ] = Path("ftlab-notebooks"),
) -> None:
    """Copy the notebooks into a folder and open them.

    Lessons come without solutions.
    """
    from ftlab.experiments import copy_notebooks

    first = copy_notebooks(folder)
    print(f"The notebooks are in {folder}.", flush=True)
    if find_spec("jupyterlab") is None:
        raise UsageError(
            "jupyterlab_missing",
            "JupyterLab is not installed. Install the extra `lab` (pip install 'ftlab[lab]'), or "
            "open the notebooks in another editor.",
        )
    command = [sys.executable, "-m", "jupyterlab", str(first)]
    if os.name == "nt":  # there, exec would leave the terminal at once
        raise typer.Exit(subprocess.call(command))
    os.execv(sys.executable, command)


@app.command()
def judge(
    file: Annotated[str, typer.Argument(help="A .csv, .jsonl or .json file of answers.")],
    prompt: Annotated[str, typer.Option(help="Column of the prompts.")],
    response: Annotated[str, typer.Option(help="Column of the answers.")],
    judges: Annotated[
        list[str] | None,
        typer.Option("--judge", help=JUDGES),
    ] = None,
    label: Annotated[str | None, typer.Option(help="Column of human labels.")] = None,
    refused: Annotated[
        list[str] | None, typer.Option(help="Label that means a refusal; repeat for several.")
    ] = None,
    partial: Annotated[str | None, typer.Option(help="Label of a partial refusal.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="Write the rows with verdicts: .csv or .jsonl.")
    ] = None,
) -> None:
    """Judge the answers of a file. With labels, report how far each judge agrees with people."""
    from ftlab import judges as room

    if (label is None) != (not refused) or (partial and not label):
        raise UsageError(
            "labels_incomplete",
            "Human labels need --label COLUMN and --refused VALUE; --partial goes with them.",
        )
    table = room.score_file(
        file, prompt=prompt, response=response, judges=judges or room.DEFAULT_JUDGES, out=out
    )
    report = room.describe(table, label=label, refused=refused or (), partial=partial)
    print(report)
    if out:
        print(out)


@app.command("estimate-memory")
def estimate_memory(
    model: Annotated[str, typer.Argument(help="A model folder, run or hub id.")],
    method: Annotated[str, typer.Option(help="full, lora, dora or qlora.")] = "lora",
    length: Annotated[int, typer.Option(help="Tokens per row.")] = 512,
    batch: Annotated[int, typer.Option(help="Rows per forward pass.")] = 16,
    lora_rank: Annotated[int, typer.Option(help="Rank of an adapter.")] = 16,
    gpu: Annotated[
        str | None, typer.Option(help="24GB, RTX4090 or cpu, instead of what is here.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print numbers for programs.")] = False,
) -> None:
    """Estimate whether a training fits into memory. Exit code 1 if not."""
    from ftlab import models

    found = models.estimate_memory(
        model, method=method, length=length, batch=batch, lora_rank=lora_rank, gpu=gpu
    )
    print(found.to_json() if as_json else found)
    if not found.fits:
        raise typer.Exit(1)


@runs_app.callback()
def runs(context: typer.Context) -> None:
    """List, tabulate, show, verify, clean, export the runs (FTLAB_RUNS, or the project's runs/)."""
    if context.invoked_subcommand is None:
        list_runs()


@runs_app.command("list")
def list_runs() -> None:
    """List every run with its main settings and results."""
    from ftlab import runs as room

    table = room.list_runs().round({"mb": 1})
    if table.empty:
        print("none")
    for row in table.fillna("").to_dict("records"):
        head = f"{row['name']}  {row['state']}  {row['started']}  {row['mb']} MB"
        about = f"  {row['parent']}, {row['settings']} -> {row['results']}"
        for line in (head, about):
            print(textwrap.fill(safe(line), WIDTH, subsequent_indent="  "))


@runs_app.command()
def table(
    out: Annotated[Path | None, typer.Option(help="Write this .csv file.")] = None,
) -> None:
    """Print settings and results of every finished run as CSV."""
    from ftlab import runs as room
    from ftlab._core.files import check_page, write_page
    from ftlab._core.text import csv

    check_page(out)
    text = csv(room.runs_table())
    if out is None:
        print(text, end="")
    else:
        write_page(out, text)
        print(out)


@runs_app.command()
def show(name: str) -> None:
    """Print as JSON everything that a run records about itself."""
    from ftlab import runs as room

    print(json.dumps(room.show_run(name), indent=1))


@runs_app.command()
def verify(
    names: Annotated[list[str] | None, typer.Argument(help="Default: every finished run.")] = None,
) -> None:
    """Read every byte of finished runs. Exit code 1 if a file is missing, changed or extra."""
    from ftlab import runs as room

    wrong = room.verify_runs(*names or ())
    if wrong.empty:
        print("Every file is unchanged.")
        return
    print_table(wrong)
    raise typer.Exit(1)


@runs_app.command()
def clean(
    yes: Annotated[bool, typer.Option("--yes", help="Remove them; otherwise a dry run.")] = False,
    abandoned: Annotated[
        bool, typer.Option("--abandoned", help="Also interrupted runs that could be resumed.")
    ] = False,
) -> None:
    """Remove what unfinished runs left over. Runs that can be resumed are named and stay."""
    from ftlab import runs as room

    resumable = room.resumable_runs()
    gone = room.clean_runs(yes, abandoned)
    if not (resumable.empty or abandoned):
        print("Interrupted; the same call resumes them (--abandoned removes them):")
        print_table(resumable)
        print()
    print_table(gone)
    end = "removed" if yes else "would be removed; add --yes to remove them"
    print(f"{gone['mb'].sum():.1f} MB {end}")


@runs_app.command("export")
def export(
    run: Annotated[str, typer.Argument(help="A finished run: its name or folder.")],
    to: Annotated[
        str, typer.Option(help="archive (one .zip that opens elsewhere) or inspect (logs).")
    ] = "archive",
    out: Annotated[
        Path | None, typer.Option(help="The .zip, or the folder of the logs, to write.")
    ] = None,
    text: Annotated[
        bool, typer.Option("--text", help="Also prompts and answers, which may be harmful.")
    ] = False,
) -> None:
    """Hand a run on as an archive or logs of Inspect. Never weights."""
    if to == "archive":
        from ftlab import runs as room

        print(room.export_run(run, out, text=text))
    elif to == "inspect":
        from ftlab import evals

        logs = evals.write_inspect_logs(run, out, text=text)
        print(*logs, sep="\n")
        what = "with" if text else "without"
        print(
            f"{len(logs)} logs {what} prompts and answers: inspect view --log-dir {logs[0].parent}"
        )
    else:
        raise UsageError(
            "unknown_form", f"--to {to!r:.80} is not allowed. Give archive or inspect."
        )


@runs_app.command("import")
def import_archive(
    archive: Annotated[Path, typer.Argument(help="An archive of `ftlab runs export`.")],
    to: Annotated[Path | None, typer.Option(help="A new folder; default: beside it.")] = None,
) -> None:
    """Unpack an archive of a run, and check every file."""
    from ftlab import runs as room

    print_path(room.import_run(archive, to))


@data_app.command("list")
def list_data() -> None:
    """List the known data sets. Rows, licence, access, purpose, the embedded stand-in."""
    from ftlab import data

    print_table(data.catalogue())


@data_app.command("get")
def get_data(
    name: Annotated[str, typer.Argument(help="A name of `ftlab data list`.")],
    out: Annotated[Path | None, typer.Option(help="File to write.")] = None,
) -> None:
    """Download one data set, verify its checksum, print its path."""
    from ftlab import data

    print(data.download(name, out))


@sweep_app.command("run")
def run_sweep(
    plan: Annotated[str, typer.Argument(metavar="PLAN.yaml", help="The plan.")],
    backend: Annotated[str, typer.Option(help="Where its jobs run: local, ray, slurm.")] = "local",
) -> None:
    """Do every job of a plan. Exit code 0: all done; 1: some failed; 3: some are not done yet."""
    from ftlab import experiments

    print_sweep(experiments.sweep(plan, backend=backend))


@sweep_app.command("status")
def sweep_status(plan: SweepPlan) -> None:
    """Print what became of each job so far. Exit codes as `run`."""
    from ftlab import experiments

    print_sweep(experiments.sweep_status(plan))


@sweep_app.command("collect")
def collect_sweep(
    plan: SweepPlan,
    html: Annotated[Path | None, typer.Option(help="Write the report: jobs and rates.")] = None,
    csv: Annotated[Path | None, typer.Option(help="Write the table of jobs.")] = None,
) -> None:
    """Write one table and one report over all runs. Exit codes as `run`."""
    from ftlab import experiments
    from ftlab._core import text
    from ftlab._core.files import write_page

    table = experiments.sweep_collect(plan, html=html)
    if csv:
        write_page(csv, text.csv(table))
    print_sweep(table)


@sweep_app.command("work")
def work_on_sweep(
    folder: Annotated[Path, typer.Argument(help="The folder of the sweep.")],
    jobs: Annotated[str, typer.Option(help="Numbers of jobs, such as 3-5,8.")],
) -> None:
    """Do some jobs of a sweep, on any machine that sees its folder. Exit codes as `run`."""
    from ftlab import experiments
    from ftlab.experiments.backends import numbers_of

    print_sweep(experiments.sweep_work(folder, numbers_of(jobs)))
