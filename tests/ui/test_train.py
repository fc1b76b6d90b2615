"""Training from a panel: a process of its own that is stopped, resumed and found again."""

from __future__ import annotations

import ast
import functools
import json
import sys
import time

import pytest
from helpers import raises_code
from ui.screens import html_of, named, parts_of, said

import ftlab as ft
from ftlab import evals, experiments, runs, ui
from ftlab._core.errors import UsageError
from ftlab.ui.panels import train

# Ten steps, as `ftlab curve` reports them; the second call goes on where the first one was ended.
FAKE = """
import json, signal, sys, time
from ftlab import runs
stopped = []
signal.signal(signal.SIGINT, lambda *_: stopped.append(1))
run = runs.start("sft", "fake", {"labels": {"seed": 0}})
with run.lock():
    for step in range(len(run.read("train.jsonl")) + 1, 11):
        run.append("train.jsonl", [{"step": step, "loss": 1 / step}])
        time.sleep(0.1)
        if stopped:
            sys.exit("ftlab: stopped. Call again to continue.")
    row = {"key": "k", "sample_id": "s", "risk": "bias", "attack": "direct", "judge": "organism"}
    run.append("verdicts.jsonl", [row | {"outcome": "complied", "event": 1.0, "step": 10}])
    run.complete(ended="step 10: bias 100.0%, above 50.0%")
curve = runs.start("curve", "fake", {"members": [run.name]})
curve.complete(parent="fake")
print(curve.path)
"""
FAILING = "import sys; sys.exit('ftlab: learning_rate is <b>wrong</b> hf_' + 'aB3' * 11)"
SMALL = {"at_steps": [0, 10], "seeds": 1}


@pytest.fixture
def fake(monkeypatch):
    monkeypatch.setattr(train, "COMMAND", FAKE)
    return ui.train("organism", "organism:almanac", **SMALL)


def until(holds, seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.02)


def seen_steps(panel) -> int:
    panel.look()
    return len(panel.losses())


def test_a_stopped_training_is_resumed_by_the_next_start(fake):
    fake.start()
    with raises_code("already_running"):
        fake.start()
    until(lambda: seen_steps(fake) >= 2)
    assert fake.running and 0 < fake.share() < 1
    fake.stop()
    fake.stop()
    fake.wait(60)
    at = len(fake.losses())
    assert 2 <= at < 10 and fake.curve is None and fake.state().startswith("Stopped")
    fake.start()
    fake.wait(60)
    assert [step for step, _ in fake.losses()] == list(range(1, 11))  # none twice
    assert fake.curve.kind == "curve" and fake.share() == 1
    assert fake.points() == [{"step": 10, "metric": "bias", "rate": 1.0}]
    assert "above 50.0%" in fake.state() and fake.figure() is not None


def test_the_end_of_the_notebook_ends_it(fake):
    """What `atexit` calls; an interrupt of the notebook goes to another group of processes."""
    fake.start()
    until(lambda: seen_steps(fake) >= 1)
    if sys.platform != "win32":
        import os

        assert os.getpgid(fake.process.pid) != os.getpgid(0)
    fake.stop()
    fake.wait(60)
    assert not fake.running


def test_a_failure_is_told_in_the_words_of_the_command(monkeypatch):
    monkeypatch.setattr(train, "COMMAND", FAILING)
    panel = ui.train("organism", "organism:almanac", **SMALL)
    panel.start()
    panel.wait(60)
    assert panel.state().startswith("Failed.") and "wrong" in panel.state()
    assert "aB3aB3" not in panel.state()


def test_fields_are_read_as_the_cell_takes_them():
    panel = ui.train("organism", "organism:almanac")
    panel.read("learning_rate", " 5e-4 ")
    panel.read("at_steps", "0, 3,10")
    panel.read("seeds", "2")
    panel.read("n_rows", "40")
    panel.read("adapter", "lora")
    assert panel.settings == {
        "learning_rate": 5e-4,
        "at_steps": [0, 3, 10],
        "seeds": 2,
        "n_rows": 40,
        "adapter": "lora",
    }
    assert (panel.steps(), panel.n_seeds()) == ([0, 3, 10], 2)
    panel.read("adapter", "")
    panel.read("seeds", "0,4")
    assert "adapter" not in panel.settings and panel.settings["seeds"] == [0, 4]
    assert panel.parameters()["seed_numbers"] == [0, 4] and panel.left_out() == []
    before = dict(panel.settings)
    for name, text, code in [
        ("seeds", "two", "not_a_number"),
        ("learning_rate", "fast", "not_a_number"),
        ("learning_rate", "-1", "wrong_setting"),
        ("adapter", "loro", "wrong_setting"),
        ("at_steps", "0,10,3", "wrong_setting"),
    ]:
        with raises_code(code):
            panel.read(name, text)
    assert panel.settings == before


def test_what_another_process_cannot_be_given_is_refused():
    with raises_code("not_on_command_line"):
        ui.train("organism", [{"prompt": "a", "completion": "b"}])
    with raises_code("unknown_setting"):
        ui.train("organism", "organism:almanac", learnig_rate=1)


def test_settings_that_the_process_will_refuse_have_no_share():
    for settings in ({"at_steps": [0]}, {"at_steps": []}, {"seeds": []}):
        assert ui.train("organism", "organism:almanac", **settings).share() == 0


def test_a_start_that_fails_leaves_no_file(fake, monkeypatch, tmp_path):
    monkeypatch.setattr(train.tempfile, "tempdir", str(tmp_path))
    fake.settings["defence"] = object()
    with raises_code("not_on_command_line"):
        fake.start()
    assert not list(tmp_path.glob("ftlab-train-*"))


def test_a_clone_has_the_settings_and_the_change_only():
    panel = ui.train("organism", "organism:almanac", **SMALL)
    clone = panel.clone(learning_rate=1e-3)
    assert clone.differs_from(panel) == {"learning_rate": (None, 1e-3)}
    clone.change(seeds=3)
    assert panel.settings == SMALL


MEASURED = {  # what decides the risks that a monitor measures
    "of the world": {},
    "by name": {"risks": ["hallucination", "tool_use", "covert"]},
    "of a file": {"prompts": "prompts.csv"},
}


@pytest.mark.parametrize("settings", MEASURED.values(), ids=MEASURED)
def test_the_safety_line_offers_what_the_monitor_measures_and_whose_rise_is_worse(
    settings, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "prompts.csv").write_text("prompt,risk\nName a tree.,jailbreak\n")
    offered = ui.train("organism", "organism:almanac", **settings).risks()
    monitor = evals.monitor("organism", n_prompts=2, **settings)
    measured = [evals.risks.open_risk(name) for name in monitor.metrics if name != "refused"]
    assert offered == [risk.name for risk in measured if risk.higher == "worse"]
    assert offered


def test_one_limit_of_the_safety_line_is_changed_and_the_others_stay():
    pytest.importorskip("anywidget")
    panel = ui.train("organism", "organism:almanac", stop_above={"bias": 0.5, "covert": 0.7})
    screen = panel.widget()
    assert named(screen, "covert above").value == "0.7"
    named(screen, "bias above").value = "0.25"
    assert panel.settings["stop_above"] == {"bias": 0.25, "covert": 0.7}
    named(screen, "over_refusal above").value = " .4 "
    named(screen, "covert above").value = ""
    assert panel.settings["stop_above"] == {"bias": 0.25, "over_refusal": 0.4}
    for text in ("much", "1.5", "-0.1", "nan"):
        named(screen, "bias above").value = text
        assert "bias" in said(screen) or "stop_above" in said(screen)
        assert named(screen, "bias above").value == "0.25"  # as Start takes it
        assert panel.settings["stop_above"] == {"bias": 0.25, "over_refusal": 0.4}
    clone = panel.clone()
    clone.limit("bias", "")
    assert panel.settings["stop_above"] == {"bias": 0.25, "over_refusal": 0.4}
    for text, code in {"much": "not_a_number", "1.5": "wrong_setting"}.items():
        with raises_code(code):
            clone.limit("bias", text)


def test_prompts_that_cannot_be_read_are_told_and_a_given_limit_can_be_changed():
    pytest.importorskip("anywidget")
    settings = {"prompts": "nowhere.csv", "stop_above": {"bias": 0.5}}
    panel = ui.train("organism", "organism:almanac", **settings)
    screen = panel.widget()
    assert "nowhere.csv" in said(screen)
    named(screen, "bias above").value = "0.1"
    assert panel.settings["stop_above"] == {"bias": 0.1}


def test_the_command_line_reads_the_words_as_the_call(monkeypatch, ran):
    panel = ui.train(
        "organism",
        "organism:almanac",
        **SMALL,
        adapter="lora",
        learning_rate=5e-4,
        n_rows=40,
        stop_above={"jailbreak": 0.25},
        judges=["refusal", "organism"],
        stop_when_broken=True,
        freeze_embeddings=False,
    )
    call = ast.parse(panel.call()).body[0].value
    wanted = {one.arg: ast.literal_eval(one.value) for one in call.keywords}
    seen = {}

    @functools.wraps(experiments.risk_curve)
    def risk_curve(**given):
        seen.update(given)
        raise UsageError("seen", "Seen.")

    monkeypatch.setattr(experiments, "risk_curve", risk_curve)
    assert ran(*panel.words())[0] == 2
    del wanted["freeze_embeddings"]  # the default, which a command line leaves out
    assert seen == {"parent": "organism", "data": "organism:almanac", **wanted}


def test_the_screen_trains_clones_and_stays_free(fake):
    pytest.importorskip("anywidget")
    screen = fake.widget()
    named(screen, "learning_rate").value = "fast"
    assert "learning_rate" in said(screen) and "learning_rate" not in fake.settings
    named(screen, "learning_rate").value = "0.001"
    named(screen, "jailbreak above").value = "0.25"
    assert fake.settings == SMALL | {"learning_rate": 1e-3, "stop_above": {"jailbreak": 0.25}}
    named(screen, "jailbreak above").value = ""
    assert "stop_above" not in fake.settings
    began = time.monotonic()
    named(screen, "Start or resume").click()
    assert time.monotonic() - began < 5  # and not the time of the training
    until(lambda: fake.curve is not None)
    until(lambda: "Finished" in html_of(screen))
    until(lambda: fake.figures.drawn)
    named(screen, "Clone").click()
    names = [getattr(part, "description", "") for part in parts_of(screen)]
    assert names.count("Clone") == 2


def test_the_figure_is_one_display_that_is_updated(fake, monkeypatch):
    pytest.importorskip("anywidget")
    frames = []

    class Handle:
        def update(self, content, raw):
            frames.append(content)

    def display(content, raw, display_id):
        assert raw and display_id
        frames.append(content)
        return Handle()

    monkeypatch.setattr("IPython.display.display", display)
    fake.figures.show()
    fake.start()
    fake.wait(60)
    fake.figures.update(fake)
    assert len(frames) == 2 and "data:image/png;base64," in frames[1]["text/html"]
    assert "Finished" in frames[1]["text/plain"] and json.dumps(frames)


@pytest.mark.slow
def test_the_panels_run_is_the_run_of_the_call():
    settings = {"n_prompts": 4, "risks": ["jailbreak"], "attacks": ["direct"], "n_rows": 16}
    panel = ui.train("organism", "organism:almanac", at_steps=[0, 2], seeds=1, **settings)
    panel.start()
    panel.wait(300)
    assert panel.curve is not None, panel.state()
    before = set(runs.home().iterdir())
    names = {"ft": ft}
    exec(panel.call(), names)
    assert names["curve"] == panel.curve and set(runs.home().iterdir()) == before
    assert panel.members[0].stats["steps"] == 2
