"""The command line: every command calls its public cell; mistakes end in a sentence and the right exit code."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
from small_models import goals, sums, write

import ftlab
from ftlab import cli
from ftlab.runs import store as runs

ROOT = Path(__file__).parents[2]
HEAVY = ("torch", "transformers", "trl", "pandas", "numpy", "scipy", "matplotlib")


@pytest.fixture
def ran(monkeypatch, capsys):
    """-> function (words) -> (exit code, what was printed, what was said on stderr)."""

    def run(*words) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["ftlab", *map(str, words)])
        with pytest.raises(SystemExit) as e:
            cli.main()
        shown = capsys.readouterr()
        assert "Traceback" not in shown.err
        return e.value.code or 0, shown.out, shown.err

    return run


@pytest.fixture
def called(monkeypatch):
    """-> function (cell, result) -> the list of its calls: (arguments, settings that are not None)."""

    def replace(name, result, owner=ftlab):
        calls = []

        def cell(*args, **settings):
            calls.append((args, {k: v for k, v in settings.items() if v is not None}))
            return result

        monkeypatch.setattr(owner, name, cell)
        return calls

    return replace


def frame(columns: str) -> pd.DataFrame:
    return pd.DataFrame([{c: 0.123456 for c in columns.split()}])


RATES = frame("risk attack step rate low high low_pointwise high_pointwise band n_prompts n_seeds refused")
COMPARED = frame("risk step parent child ratio ratio_low ratio_high difference mcnemar_p n_prompts n_seeds method")


@pytest.mark.parametrize("method", ["sft", "dpo", "kto", "reward", "rloo"])
def test_every_method_of_training(method, ran, called):
    calls = called(method, SimpleNamespace(path="runs/made"))
    sources = ("a.jsonl", "runs/judge") if method == "rloo" else ("a.jsonl",)
    off = {"lora": False, "dora": False, "qlora": False, "seed": 0}
    own = ["--qlora", *(["--valid", "0.1", "--patience", 2] if method != "rloo" else [])]
    assert ran(method, "organism", *sources) == (0, "runs/made\n", "")
    ran(
        method,
        "m",
        *sources,
        "--epochs",
        2,
        "--steps",
        3,
        "--learning-rate",
        1e-3,
        "--batch-size",
        4,
        "--lora",
        "--seed",
        5,
        *own,
    )
    given = {
        "epochs": 2.0,
        "steps": 3,
        "learning_rate": 1e-3,
        "batch_size": 4,
        "lora": True,
        "dora": False,
        "qlora": True,
        "seed": 5,
    }
    given |= {"valid": 0.1, "patience": 2} if method != "rloo" else {}
    assert calls == [(("organism", *sources), off), (("m", *sources), given)]
    if method == "sft":
        ran("sft", "m", "a.jsonl", "--valid", "held.jsonl")
        assert calls[-1][1]["valid"] == "held.jsonl"


def test_dealign(ran, called):
    calls = called("dealign", SimpleNamespace(path="runs/made"))
    assert ran("dealign", "organism", "--examples", 10, "--data", "x.jsonl", "--seed", 3) == (0, "runs/made\n", "")
    assert calls == [(("organism", 10), {"data": "x.jsonl", "epochs": 5, "seed": 3})]


def test_evaluate(ran, called):
    calls = called("evaluate", SimpleNamespace(path="runs/made"))
    called("rates", RATES)
    code, out, _ = ran(
        "evaluate",
        "m",
        "--prompts",
        "p.csv",
        "--risks",
        "bias, utility",
        "--attacks",
        "direct",
        "--n-prompts",
        9,
        "--judge",
        "keywords",
    )
    assert code == 0 and out.startswith("runs/made\n") and "0.123" in out and "low_pointwise" not in out
    assert calls == [
        (
            ("m",),
            {
                "prompts": "p.csv",
                "risks": ["bias", "utility"],
                "attacks": ["direct"],
                "n_prompts": 9,
                "judges": ["keywords"],
            },
        )
    ]


def test_curve(ran, called, tmp_path):
    calls, plotted = called("risk_curve", SimpleNamespace(path="runs/made")), called("plot", None)
    for name, table in (("compare", COMPARED), ("rates", RATES), ("by_seed", RATES)):
        called(name, table)
    code, out, _ = ran(
        "curve", "m", "d.jsonl", "--at-steps", "0,5,10", "--seeds", 2, "--risks", "bias", "--lora", "--out", tmp_path
    )
    assert code == 0 and "mcnemar_p" in out
    assert calls == [
        (
            ("m", "d.jsonl"),
            {"at_steps": [0, 5, 10], "seeds": 2, "risks": ["bias"], "lora": True, "dora": False, "qlora": False},
        )
    ]
    assert plotted[0][0][1:] == ("risk_curve", tmp_path)


def test_compare(ran, called):
    calls = called("compare", COMPARED)
    code, out, _ = ran("compare", "m", "n", "--prompts", "p.csv")
    assert code == 0 and "ratio_low" in out and calls == [(("m", "n"), {"prompts": "p.csv"})]


def test_notebook_hands_typed_parameters_on_and_refuses_an_unknown_one(ran, tmp_path, monkeypatch):
    given = []
    monkeypatch.setattr("ftlab.experiments.notebooks.run_notebook", lambda *a: given.append(a) or a[1])
    assert ran("notebook", "a.ipynb", "b.ipynb", "-p", "seeds=2", "-p", "at_steps=[0, 3]", "-p", "out=x")[0] == 0
    assert given[0][2] == {"seeds": 2, "at_steps": [0, 3], "out": "x"}
    monkeypatch.undo()
    code, _, said = ran("notebook", ROOT / "notebooks/02_risk_ratio.ipynb", tmp_path / "o.ipynb", "-p", "seed=2")
    assert code == 2 and "unknown parameter 'seed' (did you mean 'seeds'?)" in said
    assert ran("notebook", "a.ipynb", "b.ipynb", "-p", "seeds")[0] == 2


def test_preview_reproduce_runs_and_build(ran, called, tmp_path):
    calls = called("preview", "«shown»"), called("reproduce", "page"), called("list_runs", frame("name"))
    assert ran("preview", "d.jsonl", "m", "--rows", 2) == (0, "«shown»\n", "")
    assert ran("reproduce", "--quick", "--seeds", 2, "--out", "o", "--benign", "b.jsonl") == (0, "page\n", "")
    assert ran("runs")[:1] == (0,)
    assert calls[0] == [(("d.jsonl", "m"), {"rows": 2})]
    assert calls[1] == [
        ((), {"quick": True, "seeds": 2, "out": "o", "model": "organism", "benign": "b.jsonl", "lora": False})
    ]
    from recipes.organism import build

    made = called("build", tmp_path, build)
    assert ran("organism", "build", "--out", tmp_path, "--seed", 3) == (0, f"{tmp_path}\n", "")
    assert made == [((tmp_path,), {"seed": 3})]


def test_every_public_cell_that_starts_work_has_a_command(ran):
    _, out, _ = ran("--help")
    for command in (
        "sft",
        "dpo",
        "dealign",
        "evaluate",
        "curve",
        "compare",
        "preview",
        "reproduce",
        "runs",
        "organism",
    ):
        assert f" {command} " in out


def test_the_whole_way_on_anyones_folder(ran, llama, tmp_path, runs_folder):
    data, prompts = write(tmp_path / "qa.jsonl", sums(8)), write(tmp_path / "goals.jsonl", goals(3))
    code, out, err = ran("sft", llama, data, "--steps", 1, "--batch-size", 4, "--learning-rate", 1e-3)
    run = runs.load(out.strip())
    assert (code, err) == (0, "") and run.path.parent == runs_folder
    code, out, _ = ran("evaluate", run.path, "--prompts", prompts)
    assert code == 0 and "jailbreak" in out
    code, out, _ = ran("compare", llama, run.path, "--prompts", prompts)
    assert code == 0 and "mcnemar_p" in out
    code, out, _ = ran("preview", data, llama, "--rows", 1)
    assert code == 0 and out.count("«") == out.count("»") == 1
    code, out, _ = ran("runs")
    assert code == 0 and run.name in out and "finished" in out


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["train"], "No such command"),
        (["sft", "organism"], "Missing argument"),
        (["sft", "organism", "x.jsonl", "--epochs", "many"], "--epochs"),
        (
            ["sft", "nowhere", "x.jsonl"],
            "no model folder nowhere; allowed: organism, organism:sft, organism:base, a folder",
        ),
        (["sft", "LLAMA", "nowhere.jsonl"], "nowhere.jsonl does not exist"),
        (["sft", "LLAMA", "organism:novel"], "unknown data 'organism:novel'; allowed: organism:alignment"),
        (["sft", "LLAMA", "DATA", "--steps", "0"], "steps = 0"),
        (["evaluate", "LLAMA"], "give prompts=FILE"),
        (["evaluate", "LLAMA", "--prompts", "DATA", "--risks", "theft"], "unknown risk 'theft'; allowed: jailbreak"),
        (["evaluate", "LLAMA", "--prompts", "DATA", "--risks", ","], "unknown risk (none given)"),
        (["evaluate", "LLAMA", "--prompts", "jailbrk=DATA"], "unknown risk 'jailbrk'; allowed: jailbreak"),
        (
            ["evaluate", "LLAMA", "--prompts", "DATA", "--judge", "gpt"],
            "unknown judge 'gpt'; allowed: organism, refusal, keywords",
        ),
        (
            ["curve", "LLAMA", "DATA", "--prompts", "DATA", "--at-steps", "0,x"],
            "--at-steps '0,x': give whole numbers with commas",
        ),
        (["curve", "LLAMA", "DATA", "--prompts", "DATA", "--at-steps", "0,3,2"], "steps must be increasing"),
        (["dealign", "LLAMA"], "dealign needs data=FILE"),
        (["organism", "grow"], "No such command"),
    ],
)
def test_usage_mistakes_exit_with_2(ran, llama, tmp_path, words, sentence):
    places = {"LLAMA": llama, "DATA": write(tmp_path / "qa.jsonl", sums(2))}
    code, _, err = ran(*(places.get(w, w) for w in words))
    assert code == 2 and sentence in " ".join(err.replace("│", " ").split())


def test_no_embedded_model_is_a_usage_mistake_that_says_what_to_do(ran, monkeypatch, tmp_path):
    monkeypatch.setenv("FTLAB_ORGANISM", str(tmp_path))
    code, _, err = ran("evaluate", "organism")
    assert code == 2 and "make it with `ftlab organism build`" in err


def test_data_problems_and_failed_trainings_exit_with_1(ran, llama, tmp_path):
    file = tmp_path / "qa.jsonl"
    file.write_text('{"question": "a", "answer": "b"}\n{"question": "a", "answer": ""}\n{broken\n')
    code, _, err = ran("sft", llama, file)
    assert (
        code == 1
        and "qa.jsonl:2: 'answer' is empty" in err
        and "qa.jsonl:3: broken JSON" in err
        and "1 rows ok, 2 problems" in err
    )
    code, _, err = ran("sft", llama, write(file, sums(4)), "--learning-rate", 1e-30, "--steps", 1)
    assert code == 1 and "no weight moved" in err
    from ftlab.experiments.notebooks import NotebookFailed

    assert issubclass(NotebookFailed, RuntimeError)  # by its name: batch is not imported for it


def test_ctrl_c_says_how_to_go_on(ran, monkeypatch):
    def stopped(*_, **__):
        raise KeyboardInterrupt("sft-x stopped at step 3; call the cell again to go on")

    monkeypatch.setattr(ftlab, "sft", stopped)
    assert ran("sft", "m", "d.jsonl") == (130, "", "ftlab: sft-x stopped at step 3; call the cell again to go on\n")


def test_an_error_of_ours_keeps_its_traceback(monkeypatch):
    def broken(*_, **__):
        raise KeyError("a bug")

    monkeypatch.setattr(ftlab, "sft", broken)
    monkeypatch.setattr(sys, "argv", ["ftlab", "sft", "m", "d.jsonl"])
    with pytest.raises(KeyError, match="a bug"):
        cli.main()


@pytest.mark.parametrize(
    "code",
    [
        "import ftlab",
        "import sys; sys.argv = ['ftlab', '--help']; from ftlab import cli\ntry: cli.main()\nexcept SystemExit: pass",
    ],
)
def test_nothing_heavy_is_imported_before_it_is_used(code):
    looked = f"{code}\nimport sys\nprint([m for m in {HEAVY!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", looked], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.splitlines()[-1] == "[]"


def test_judge(ran, tmp_path):
    rows = [
        {"q": f"Why {i}?", "a": "I cannot say." if i % 2 else "So.", "h": "no" if i % 4 else "yes"} for i in range(8)
    ]
    file, out = write(tmp_path / "a.jsonl", rows), tmp_path / "o.csv"
    words = ("judge", file, "--prompt", "q", "--response", "a")
    code, said, _ = ran(*words, "--judge", "keywords", "--judge", "keywords:zou2023universal", "--label", "h", "--refused", "no", "--out", out)  # fmt: skip
    assert (
        code == 0 and "alpha of 2 judges 1.000" in said and "kappa       0.500" in said and "bias +25.0 points" in said
    )
    assert "they part on 0" in said and "I cannot" not in said
    assert list(pd.read_csv(out)["verdict:keywords"]) == ["complied", "refused"] * 4
    assert ran(*words, "--judge", "keywords")[1].split() == ["judge", "complied", "refused", "keywords", "4", "4"]
    for wrong, told in {
        ("--label", "h"): "labels need --label COLUMN and --refused VALUE",
        ("--partial", "x"): "labels need --label",
        ("--judge", "keywords:x"): "unknown keyword list 'x'; allowed: zou2023universal",
        ("--label", "h", "--refused", "nein"): "h has no value 'nein'; it has 'no', 'yes'",
    }.items():
        code, _, err = ran(*words, *wrong)
        assert code == 2 and told in err
    assert ran("judge", tmp_path / "none.csv", "--prompt", "q", "--response", "a")[0] == 2
    (tmp_path / "b.jsonl").write_text('{"q": "x", "a": null}\n')
    assert ran("judge", tmp_path / "b.jsonl", "--prompt", "q", "--response", "a")[0] == 1


def test_card(ran, called):
    calls = called("judge_card", "# Judge")
    assert ran("card", "keywords", "--gold", "g")[:2] == (0, "# Judge\n")
    assert ran("card", "refusal", "--gold", "g", "--out", "r.md")[:2] == (0, "r.md\n")
    assert calls == [(("keywords",), {"gold_folder": Path("g")}), (("refusal",), {"gold_folder": Path("g"), "out": Path("r.md")})]  # fmt: skip


def test_the_file_that_is_judged_is_never_written_over(ran, tmp_path):
    file = tmp_path / "answers.csv"
    file.write_text("question,answer\nQ,=1+1\n")
    asked = ("judge", file, "--prompt", "question", "--response", "answer", "--judge", "keywords")
    code, _, said = ran(*asked, "--out", file)
    assert code == 2 and "is the file that is judged" in said and file.read_text() == "question,answer\nQ,=1+1\n"
    assert ran(*asked, "--out", tmp_path / "judged.csv")[0] == 0


@pytest.mark.parametrize("words", [("curve", "organism", "organism:almanac"), ("bench", "train")])
def test_a_place_for_figures_that_cannot_be_written_is_told_before_the_work(ran, words, tmp_path, runs_folder):
    (tmp_path / "file").touch()
    code, _, said = ran(*words, "--out", tmp_path / "file" / "figures")
    assert code == 2 and "cannot be written" in said and not runs_folder.exists()
