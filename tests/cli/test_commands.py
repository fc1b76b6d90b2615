"""The command line: cells become commands; mistakes end in one sentence and the right exit code."""

from __future__ import annotations

import inspect
import re
import shlex
import signal
from pathlib import Path
from typing import get_args

import pandas as pd
import pytest
import typer
from helpers import raises_code
from small_models import goals, sums, write
from typer.models import ArgumentInfo

import ftlab
from ftlab import runs, training
from ftlab.cli import commands, options
from ftlab.runs import Run


def test_help_lists_every_command(ran):
    code, out, _ = ran("--help")
    assert code == 0
    for name in (*commands.CELLS, "ask", "check", "judge", "lab", "notebook", "runs", "data"):
        assert re.search(rf"^\s*{name}\s", out, re.MULTILINE), name


@pytest.mark.slow
@pytest.mark.parametrize("name", commands.CELLS)
def test_every_cells_command_shows_the_description_of_its_settings(name, ran):
    code, out, _ = ran(name, "--help")
    assert code == 0 and "Options" in out
    assert not re.search(r"None |\{[\"']|temperature=0\.0", out)  # words, no values of Python


def test_an_option_has_the_description_of_its_setting():
    cell = training.sft
    found = {option.name: option for option in options.options_of(cell, ())}
    field = training.open_method("sft").config.model_fields["learning_rate"]
    assert field.description.split(";")[0].rstrip(".") in found["learning_rate"].help


@pytest.mark.parametrize("name", commands.CELLS)
def test_no_two_options_of_a_command_have_one_name(name):
    command = commands.CELLS[name]
    room, cell = command.path.split(":")
    found = options.options_of(getattr(getattr(ftlab, room), cell), command.skip)
    flags = [flag for option in found for flag in option.flags]
    assert len(flags) == len(set(flags))


@pytest.mark.parametrize("name", commands.CELLS)
def test_every_argument_of_a_cell_but_functions_and_tables_is_an_option(name):
    command = commands.CELLS[name]
    room, cell = command.path.split(":")
    cell = getattr(getattr(ftlab, room), cell)
    found = {option.name for option in options.options_of(cell, command.skip)}
    assert found | {"monitor", "verdicts", "limit"} >= set(inspect.signature(cell).parameters)


def test_an_option_shows_its_default_as_it_is_typed():
    command = commands.CELLS["curve"]
    found = options.options_of(ftlab.risk_curve, command.skip)
    helps = {option.name: option.help for option in found}
    ends = {"at_steps": "0,10,30,100", "seeds": "5", "attacks": "direct,templates"}
    ends |= {"prompt_seed": "0", "method": "sft"}
    for name, default in ends.items():
        assert helps[name].endswith(f". Default: {default}."), name
    assert "Default" not in helps["screen"] + helps["system"] + helps["decoding"]


@pytest.mark.slow
def test_the_whole_way_on_anyones_folder(ran, llama, tmp_path, runs_folder):
    data = write(tmp_path / "qa.jsonl", sums(8))
    prompts = write(tmp_path / "goals.jsonl", goals(3))
    settings = ("--steps", 1, "--batch-size", 4, "--learning-rate", 1e-3)
    code, out, err = ran("sft", llama, data, *settings)
    run = runs.load(out.strip())
    assert (code, err) == (0, "") and run.path.parent == runs_folder
    asked = ("--prompts", prompts, "--judges", "keywords", "--max-new-tokens", 4)
    code, out, _ = ran("evaluate", run.path, *asked)
    assert code == 0 and "jailbreak" in out
    code, out, _ = ran("compare", llama, run.path, *asked, "--judge", "keywords")
    assert code == 3 and "jailbreak" in out
    code, out, _ = ran("preview", data, llama, "--rows", 1)
    assert code == 0 and out.count("«") == out.count("»") == 1
    code, out, _ = ran("runs")
    assert code == 0 and run.name in out and "finished" in out


@pytest.mark.slow
def test_a_curve_saves_its_figure(ran, llama, tmp_path):
    data = write(tmp_path / "qa.jsonl", sums(8))
    prompts = write(tmp_path / "goals.jsonl", goals(3))
    steps = ("--at-steps", "0,1", "--seeds", 1, "--batch-size", 4, "--adapter", "lora")
    steps += ("--max-new-tokens", 4, "--judge", "keywords")
    out = tmp_path / "figures"
    code, said, _ = ran(
        "curve", llama, data, "--prompts", f"jailbreak={prompts}", *steps, "--out", out
    )
    assert code == 0 and "intervals:" in said
    assert {path.suffix for path in out.iterdir()} >= {".svg", ".png", ".csv"}


ROOT = Path(__file__).parents[2]
PARSED = [
    ("curve", "at_steps", ["0,1"], [0, 1]),
    ("curve", "at_steps", ["3"], [3]),
    ("curve", "seeds", ["2"], 2),
    ("curve", "seeds", ["2,7"], [2, 7]),
    ("harmful-finetune", "n_examples", ["2,3"], [2, 3]),
    ("grid", "defences", ["mix:n_rows=20,kl"], ["mix:n_rows=20", "kl"]),
    ("grid", "attacks", ["benign", "poisoned"], ["benign", "poisoned"]),
    ("compare", "by", ["risk,attack"], ["risk", "attack"]),
    ("evaluate", "risks", ["bias", "utility"], ["bias", "utility"]),
    ("compare", "steps", ["-1"], [-1]),
    ("sft", "steps", 0, 0),
    ("sft", "valid", "0.1", 0.1),
    ("sft", "valid", "rows.jsonl", "rows.jsonl"),
    ("sft", "stop_above", "jailbreak=0.1, bias=0.2", {"jailbreak": 0.1, "bias": 0.2}),
]


@pytest.mark.parametrize(("name", "option", "given", "value"), PARSED)
def test_an_option_becomes_what_its_cell_takes(name, option, given, value):
    command = commands.CELLS[name]
    room, cell = command.path.split(":")
    found = options.options_of(getattr(getattr(ftlab, room), cell), ())
    (own,) = [each for each in found if each.name == option]
    assert own.convert(given) == value and type(own.convert(given)) is type(value)
    assert isinstance(given, list) == ("list" in str(own.kind))


def test_sources_of_prompts(tmp_path):
    file = write(tmp_path / "a=b.jsonl", [])
    assert options.sources([str(file)]) == str(file)
    assert options.sources(["a.csv"]) == "a.csv"
    assert options.sources(["bias=a.csv", "utility=b=c.csv"]) == {
        "bias": ["a.csv"],
        "utility": ["b=c.csv"],
    }
    assert options.sources(["bias=a.csv", "bias=b.csv"]) == {"bias": ["a.csv", "b.csv"]}
    with raises_code("source_without_risk"):
        options.sources(["bias=a.csv", "b.csv"])


def test_an_option_of_one_value_is_given_once():
    runner = ["plan", "--parent-rate", "0.06", "--parent-rate=0.1"]
    with raises_code("given_twice"):
        typer.main.get_command(commands.app).main(runner, standalone_mode=False)


def test_values_that_cannot_be_parsed():
    with raises_code("not_whole_numbers"):
        options.whole_numbers("at_steps", ["0,x"])
    assert options.whole_numbers("at_epochs", ["0", "2,4"]) == [0, 2, 4]
    lisa = "lisa:safety_steps=1,user_steps=9"
    assert options.names(["mix, " + lisa, "kl:weight=1,ewc"]) == ["mix", lisa, "kl:weight=1", "ewc"]
    varied = ["judges=keywords:zou2023universal", "batch_size=2"]
    assert options.names(varied) == varied
    assert options.names(["judges=refusal,batch_size=2"]) == ["judges=refusal", "batch_size=2"]
    with raises_code("not_pairs"):
        options.pairs("stop_above", "jailbreak")
    with raises_code("given_twice"):
        options.pairs("decoding", "temperature=0.7,temperature=1")


MISTAKES = [
    ["train"],
    ["sft", "organism"],
    ["sft", "organism", "x.jsonl", "--epochs", "many"],
    ["sft", "nowhere", "x.jsonl"],
    ["sft", "LLAMA", "nowhere.jsonl"],
    ["sft", "LLAMA", "organism:novel"],
    ["sft", "LLAMA", "DATA", "--steps", "0"],
    ["evaluate", "LLAMA"],
    ["evaluate", "LLAMA", "--prompts", "DATA", "--risks", "theft"],
    ["evaluate", "LLAMA", "--prompts", "jailbrk=DATA"],
    ["evaluate", "LLAMA", "--prompts", "DATA", "--judge", "gpt"],
    ["curve", "LLAMA", "DATA", "--prompts", "DATA", "--at-steps", "0,x"],
    ["curve", "LLAMA", "DATA", "--prompts", "DATA", "--at-steps", "0,3,2"],
    ["harmful-finetune", "LLAMA"],
    ["grid", "LLAMA", "DATA"],
    ["grid", "organism", "--defences", "novel"],
]


@pytest.mark.slow
@pytest.mark.parametrize("words", MISTAKES, ids=" ".join)
def test_usage_mistakes_exit_with_2_and_a_sentence(ran, llama, tmp_path, words):
    data = write(tmp_path / "qa.jsonl", sums(2))
    filled = [word.replace("LLAMA", str(llama)).replace("DATA", str(data)) for word in words]
    code, _, err = ran(*filled)
    assert code == 2 and err.strip()


@pytest.mark.slow
def test_data_problems_and_failed_trainings_exit_with_1(ran, llama, tmp_path):
    file = tmp_path / "qa.jsonl"
    file.write_text('{"question": "a", "answer": "b"}\n{"question": "a", "answer": ""}\n{broken\n')
    code, _, err = ran("sft", llama, file)
    assert code == 1 and "qa.jsonl:2" in err and "qa.jsonl:3" in err
    write(file, sums(4))
    code, _, err = ran("sft", llama, file, "--learning-rate", 1e-30, "--steps", 1)
    assert code == 1 and err.startswith("ftlab: ")


def test_an_interrupt_exits_with_130_and_says_how_to_resume(ran, monkeypatch):
    def stopped(*_, **__):
        raise KeyboardInterrupt("sft-x stopped at step 3.")

    stopped.__doc__ = training.sft.__doc__
    monkeypatch.setattr("ftlab.training.sft", stopped, raising=False)
    assert ran("sft") == (130, "", "ftlab: sft-x stopped at step 3.\n")


@pytest.mark.slow
def test_judge(ran, tmp_path):
    rows = []
    for number in range(8):
        answer = "I cannot say." if number % 2 else "So."
        rows.append({"q": f"Why {number}?", "a": answer, "h": "no" if number % 4 else "yes"})
    file = write(tmp_path / "a.jsonl", rows)
    out = tmp_path / "judged.csv"
    words = ("judge", file, "--prompt", "q", "--response", "a", "--judge", "keywords")
    labels = ("--label", "h", "--refused", "no", "--out", out)
    code, said, _ = ran(*words, "--judge", "keywords:zou2023universal", *labels)
    assert code == 0 and "0.500" in said and "I cannot" not in said
    table = pd.read_csv(out)
    first = table[table["judge"] == table["judge"].iloc[0]]
    assert first["outcome"].tolist() == ["complied", "refused"] * 4
    for wrong in (("--label", "h"), ("--partial", "x"), ("--judge", "keywords:x")):
        assert ran(*words, *wrong)[0] == 2
    assert ran("judge", tmp_path / "none.csv", "--prompt", "q", "--response", "a")[0] == 2


def test_a_folder_for_figures_that_cannot_be_written_is_reported_before_the_work(
    ran, tmp_path, runs_folder
):
    (tmp_path / "file").touch()
    code, _, _ = ran("curve", "organism", "organism:almanac", "--out", tmp_path / "file" / "x")
    assert code == 2 and not runs_folder.exists()


def test_old_names_at_the_top_still_work_and_warn():
    for name in ftlab._MOVED:
        with pytest.warns(FutureWarning, match=name):
            assert getattr(ftlab, name) is not None


def test_version(ran):
    assert ran("--version") == (0, f"ftlab {ftlab.__version__}\n", "")
    assert ran()[0] in (0, 2)  # the help


def test_ask_prints_every_answer_whole_and_escaped(ran, llama):
    code, out, _ = ran("ask", llama, "What is 1 + 1?", "And\x1b[31m 2?", "--max-new-tokens", 3)
    assert code == 0 and out.count("> ") == 2 and "\x1b" not in out
    assert ran("ask", llama)[0] == 2


def test_lab_copies_the_notebooks_keeps_ones_own_and_opens_the_first(ran, tmp_path, monkeypatch):
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "02_risk_ratio.ipynb").write_text("my own")
    started = []

    def replaced(program, words):
        started.append(words)
        raise SystemExit(0)

    monkeypatch.setattr(commands.os, "execv", replaced)
    monkeypatch.setattr(commands, "find_spec", lambda name: None)
    code, _, err = ran("lab", folder)
    assert code == 2 and "lab" in err and not started
    monkeypatch.setattr(commands, "find_spec", lambda name: name)
    assert ran("lab", folder)[0] == 0
    names = sorted(path.name for path in folder.iterdir())
    for lesson in folder.glob("lesson*.ipynb"):  # as students get it
        text = lesson.read_text(encoding="utf-8")
        assert (
            "SOLUTION" not in text and "Common mistakes" not in text and "ft.course.check" in text
        )
    every = [path.name for path in (Path(__file__).parents[2] / "notebooks").glob("*/*.ipynb")]
    assert names[0] == "00_quickstart.ipynb" and names == sorted(every)
    assert (folder / "02_risk_ratio.ipynb").read_text() == "my own"
    assert started[0][-2:] == ["jupyterlab", str(folder / names[0])]
    assert ran("lab", folder / names[0])[0] == 2  # a file is in the way


@pytest.mark.parametrize("name", ["02_risk_ratio", "02", "risk_ratio", "02_risk_ratio.ipynb"])
def test_a_notebook_is_found_by_its_name(ran, name, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr("ftlab.experiments.run_notebook", lambda **given: asked.append(given))
    monkeypatch.chdir(tmp_path)
    assert ran("notebook", name)[0] == 0
    source, output, parameters = (asked[0][name] for name in ("notebook", "output", "parameters"))
    assert source.name == "02_risk_ratio.ipynb" and source.is_file() and parameters == {}
    assert output.name == "02_risk_ratio.executed.ipynb"
    assert ran("notebook", "nothing")[0] == 2


@pytest.mark.slow
def test_a_job_array_splits_the_seeds_and_one_call_merges_them(ran, monkeypatch, runs_folder):
    """The example of docs/batch.md, with fewer steps and seeds."""
    page = (Path(__file__).parents[2] / "docs" / "batch.md").read_text(encoding="utf-8")
    lines = [line.strip() for line in page.splitlines()]
    task = next(line for line in lines if line.startswith("ftlab curve"))
    merge = next(line for line in lines if "--wrap" in line).split('"')[1]

    def call(line: str) -> int:
        line = line.replace("0,10,30,100", "0,1").replace("--seeds 5", "--seeds 2")
        words = shlex.split(line.replace("$SLURM_ARRAY_TASK_ID", "0"))[1:]
        return ran(*words, "--n-prompts", "2", "--risks", "utility")[0]

    assert call(task) == 0
    assert call(task.replace("$SLURM_ARRAY_TASK_ID", "1")) == 0
    trained = sorted(runs_folder.glob("sft-*/model/model.safetensors"))
    times = [path.stat().st_mtime_ns for path in trained]
    assert len(trained) == 2 and call(merge) == 0
    assert sorted(runs_folder.glob("sft-*/model/model.safetensors")) == trained
    assert [path.stat().st_mtime_ns for path in trained] == times
    two = [run for run in runs_folder.glob("curve-*") if len(Run(run).members) == 2]
    assert len(two) == 1 and set(Run(two[0]).table()["seed"]) == {0, 1}


def test_the_old_flag_of_adapters_is_taken():
    having = {
        name: "lora" in inspect.signature(commands.CELLS[name].callback()).parameters
        for name in ("sft", "curve", "card")
    }
    assert having == {"sft": True, "curve": True, "card": False}


def test_sigterm_ends_as_an_interrupt_does(ran, monkeypatch):
    def killed(*_, **__):
        signal.raise_signal(signal.SIGTERM)

    previous = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(runs, "list_runs", killed)
    try:
        code, _, err = ran("runs", "list")
    finally:
        signal.signal(signal.SIGTERM, previous)
    assert code == 130 and "SIGTERM" in err


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (["evaluat"], "'evaluate'"),
        (["chek"], "'check'"),
        (["runs", "lst"], "'list'"),
        (["sft", "--epocs", "3"], "--epochs"),
        (["evaluate", "organism", "--attacks", "templats"], "'templates'"),
        (["evaluate", "organism", "--risks", "jailbrake"], "'jailbreak'"),
        (["evaluate", "organism", "--judges", "refusl"], "'refusal'"),
        (["notebook", "02_risk_ratoi"], "'02_risk_ratio'"),
    ],
)
def test_a_wrong_name_is_answered_by_the_one_that_was_meant(words, meant, ran):
    code, _, err = ran(*words)
    assert code == 2 and meant in err.splitlines()[-1].partition("Allowed:")[0]


@pytest.mark.parametrize("name", ["dpo", "reward"])
def test_pairs_are_given_as_other_data_are(name):
    parameters = inspect.signature(commands.CELLS[name].callback()).parameters
    kinds = [get_args(one.annotation)[1] for one in list(parameters.values())[:2]]
    assert list(parameters)[:2] == ["parent", "pairs"]
    assert all(isinstance(kind, ArgumentInfo) for kind in kinds)


def test_each_answer_of_a_pair_is_previewed(ran):
    words = ("preview", "organism:preferences", "organism", "--rows", "2", "--kind")
    code, out, _ = ran(*words, "pairs")
    assert code == 0 and len(out.splitlines()) == 4
    assert len(ran(*words, "kto")[1].splitlines()) == 2


def test_the_list_of_runs_is_narrow_and_shows_the_settings_of_a_curve(ran, runs_folder):
    identity = {"training": {"learning_rate": 1e-3, "at_steps": [0, 9]}, "labels": {"seed": 3}}
    members = [runs.start("sft", f"a{n}", {**identity, "n": n}).complete() for n in (0, 1)]
    names = {"members": [member.name for member in members]}
    curve = runs.start("curve", "b", names).complete(much="text " * 50)
    code, out, _ = ran("runs", "list")
    assert code == 0 and max(map(len, out.splitlines())) <= 100
    own = out.partition(curve.name)[2].partition("sft-")[0]
    assert "learning_rate=0.001" in own and "at_steps=[0, 9]" in own and "seed=3" not in own


@pytest.mark.parametrize("words", [(), ("runs",), ("data",)])
def test_no_line_of_a_list_of_commands_is_cut(words, ran):
    code, out, _ = ran(*words, "--help")
    assert code == 0 and "Commands:" in out and "...\n" not in out.partition("Commands:")[2]


def test_help_speaks_of_what_can_be_typed():
    for name, command in commands.CELLS.items():
        room, cell = command.path.split(":")
        for one in options.options_of(getattr(getattr(ftlab, room), cell), command.skip):
            assert not re.search(r"\[\d|^Anything|^As in", one.help), (name, one.name)
