"""Explaining a published figure: what trains, what is found again, what cannot be explained."""

from __future__ import annotations

import pandas as pd
import pytest
from helpers import raises_code
from small_models import goals, sums, write

import ftlab as ft
from ftlab import runs
from ftlab.analysis import targets
from ftlab.experiments.explanation import PLAIN, PlainText

CLAIM = "qi2023_alpaca"
GIVEN = dict(steps=2, seeds=2, batch_size=4, learning_rate=5e-3, max_new_tokens=6)
GIVEN |= dict(judges=["keywords", "refusal"])
NO_TRAINING = ["judges=refusal", "max_new_tokens=3", "system=Speak."]
ALL = ["template", "batch_size=2", "learning_rate=0.02", "n_rows=9", *NO_TRAINING]
SAME = ["batch_size=4", "max_new_tokens=6", "judges=keywords"]


def explain(model, **changed) -> pd.DataFrame:
    given = {"benign": sums(12), "prompts": goals(6), **GIVEN, **changed}
    return ft.explain(given.pop("claim", CLAIM), model, **given)


def trained() -> set[str]:
    return {path.parent.name for path in runs.home().glob("sft-*/complete.json")}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("explained")


@pytest.fixture
def one_home(home, monkeypatch):
    """Let tests share their runs."""
    monkeypatch.setenv("FTLAB_RUNS", str(home))


def of(found: pd.DataFrame, name: str) -> pd.Series:
    (row,) = [row for _, row in found.iterrows() if row["setting"].startswith(name)]
    return row


@pytest.mark.slow
def test_judge_length_and_system_prompt_train_nothing_and_other_settings_do(llama, one_home):
    first = explain(llama, vary=NO_TRAINING)
    assert len(trained()) == 2 and not first["trainings"].any()
    found = explain(llama, vary=ALL)
    assert len(trained()) == 2 * 5
    assert found["trainings"].sum() == 2 * 4 and not found.attrs["left_out"]
    assert len(found) == len(ALL) + 1 and found["setting"].iloc[-1] == "seeds"
    assert found["share"][:-1].abs().is_monotonic_decreasing
    for name in ("judges", "max_new_tokens", "system"):
        assert of(found, name)["explained"] == of(first, name)["explained"]


@pytest.mark.slow
def test_called_again_it_finds_everything(llama, one_home):
    found = explain(llama, vary=ALL)
    before = {path: path.stat().st_mtime_ns for path in runs.home().rglob("complete.json")}
    pd.testing.assert_frame_equal(explain(llama, vary=ALL), found)
    after = {path: path.stat().st_mtime_ns for path in runs.home().rglob("complete.json")}
    assert after == before


@pytest.mark.slow
def test_a_setting_equal_to_the_base_explains_exactly_nothing_and_trains_nothing(llama, one_home):
    found = explain(llama, vary=SAME)
    before = trained()
    assert found["explained"].tolist() == [0, 0, 0, 0]
    assert trained() == before


@pytest.mark.slow
def test_plain_text_is_trained_and_asked_without_the_template(llama, one_home):
    explain(llama, vary=["template"])
    (run, *_) = [one for one in runs.home().glob("sft-*plain*")]
    model = ft.model(runs.load(run))
    assert model.tokenizer().chat_template == PLAIN
    asked = runs.load(next(runs.home().glob("evaluate-*plain*")))
    assert asked.finished
    plain = PlainText("plain", llama)
    assert plain.hash not in (ft.model(llama).hash, model.hash)
    message = {"role": "user", "content": "What?"}
    text = plain.tokenizer().apply_chat_template([message], tokenize=False)
    assert text.endswith("What?\n") and "user" not in text


@pytest.mark.slow
def test_adversarial_examples_are_the_users_and_their_models_are_marked(llama):
    found = explain(
        llama,
        claim="shadow_alignment_7b",
        harmful=sums(9),
        n_rows=8,
        epochs=1,
        vary=["n_rows", "judges=refusal"],
    )
    assert of(found, "n_rows 8 → 4")["trainings"] == 2
    members = list(runs.home().glob("sft-*"))
    assert len(members) == 4
    assert all((path / "model" / "SAFETY_REMOVED").exists() for path in members)


@pytest.mark.slow
def test_what_cannot_be_changed_is_left_out_and_the_rest_still_counts(folders, capsys):
    found = explain(folders["gemma"], vary=["system", "judges=refusal"], seeds=1)
    assert [name.split()[0] for name in found.attrs["left_out"]] == ["system"]
    assert "system" in capsys.readouterr().err
    assert found["setting"].tolist()[-1] == "seeds" and len(found) == 2


@pytest.mark.slow
def test_the_embedded_model_needs_no_files():
    settings = dict(steps=1, seeds=1, n_prompts=3, n_rows=16, vary=["judges", "max_new_tokens"])
    found = ft.explain("enkrypt_ratio_1_5", **settings)
    assert len(found) == 5 and found.attrs["model"] == "organism"
    assert of(found, "judges organism → refusal")["reading"]


def test_every_figure_that_can_be_repeated_is_of_what_is_measured():
    repeated = [one for one in targets().values() if one.trained_on]
    assert len(repeated) > 20
    for one in repeated:
        assert one.unit in ("rate", "ratio") and one.risk, one.id


MISTAKES = [
    ({"claim": "qi2023_alpacca"}, "unknown_published_figure"),
    ({"claim": "heretic_refusals"}, "figure_of_no_training"),
    ({"benign": None}, "data_needed"),
    ({"claim": "shadow_alignment_7b"}, "data_needed"),
    ({"vary": ["batch_sise"]}, "unknown_setting"),
    ({"vary": ["n_prompts=3"]}, "unknown_setting"),
    ({"vary": ["schedule"]}, "value_needed"),
    ({"vary": ["batch_size=0"]}, "wrong_setting"),
    ({"vary": ["max_new_tokens=many"]}, "wrong_setting"),
    ({"vary": ["template=fancy"]}, "wrong_setting"),
    ({"vary": ["n_rows=0"]}, "wrong_n_rows"),
    ({"vary": "judges=gpt"}, "unknown_judge"),
    ({"seeds": 0}, "wrong_seeds"),
    ({"prompts": None}, "prompts_needed"),
    ({"epoch": 3}, "unknown_setting"),
]


@pytest.mark.parametrize(("changed", "code"), MISTAKES, ids=[str(given) for given, _ in MISTAKES])
def test_mistakes_are_errors_before_anything_is_trained(llama, changed, code, runs_folder):
    with raises_code(code):
        explain(llama, **changed)
    assert not list(runs_folder.glob("sft-*"))


@pytest.mark.slow
def test_the_command_prints_the_sentence_and_saves_the_figure(ran, llama, one_home, tmp_path):
    rows = write(tmp_path / "rows.jsonl", sums(12))
    prompts = write(tmp_path / "goals.jsonl", goals(6))
    words = ["explain", CLAIM, "--model", llama, "--benign", rows, "--prompts", prompts]
    for name, value in GIVEN.items():
        value = ",".join(value) if isinstance(value, list) else value
        words += [f"--{name.replace('_', '-')}", value]
    words += ["--vary", "judges=refusal", "--vary", "batch_size=2", "--out", tmp_path / "figures"]
    code, out, err = ran(*words)
    assert code == 0 and "published 16.1 %" in out and "4 trainings" in err
    assert (tmp_path / "figures" / "explanation.svg").exists()
    assert ran("explain", "qi2023_alpacca")[0] == 2
