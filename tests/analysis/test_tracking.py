"""A run in a tracker: its numbers by step, once, and no text of a prompt or an answer."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys

import pytest
from handed_on import PRIVATE, SECRET, TEXTS, make_curve
from helpers import raises_code

from ftlab import analysis
from ftlab._core import plugins
from ftlab.analysis.trackers import Tracker


def needs(package: str):
    return pytest.mark.skipif(
        importlib.util.find_spec(package) is None, reason="the extra track is not installed"
    )


class Kept(Tracker):
    name = "kept"

    def write(self, runs, project, at):
        self.given = (runs, project, at)
        return "there"


@pytest.fixture
def kept(monkeypatch) -> Kept:
    tracker = Kept()
    monkeypatch.setattr(plugins, "get", lambda place, name: tracker)
    return tracker


def test_a_tracker_is_given_losses_rates_and_settings_but_no_text(kept):
    curve = make_curve("crrcu")
    assert analysis.track(curve.name, "kept", project="mine", at="https://host") == "there"
    (run,), project, at = kept.given
    assert (run.name, run.group, project) == (curve.members[0].name, curve.name, "mine")
    assert run.metrics[1] == {"train/loss": 2.5} and run.metrics[10]["train/loss"] == 1.5
    (rate,) = analysis.rates(curve, judge="refusal", steps=[10])["rate"]
    assert run.metrics[10]["rate/jailbreak/direct/refusal"] == rate == 0.5
    assert run.metrics[10]["unscored/jailbreak/direct/refusal"] == 1
    assert run.settings["evaluation.risks"] == "['jailbreak']"
    everything = str(run)
    assert not [word for word in (*TEXTS, *PRIVATE, str(curve.path.parent)) if word in everything]
    assert run.notes["ftlab.safety"].endswith("rows.jsonl")
    analysis.track(curve, "kept")
    assert kept.given[0][0].notes["ftlab.folder"] == str(curve.members[0].path)


@needs("mlflow")
def test_mlflow_holds_a_run_once_with_its_numbers(runs_folder):
    from mlflow import MlflowClient

    curve = make_curve()
    for _ in range(2):
        shown = analysis.track(curve, "mlflow", project="mine")
    store = shown.rpartition(" ")[2]
    assert store == f"sqlite:///{runs_folder / 'mlflow.db'}"
    client = MlflowClient(tracking_uri=store)
    experiment = client.get_experiment_by_name("mine").experiment_id
    (run,) = client.search_runs([experiment])
    assert run.info.run_name == curve.members[0].name and run.info.status == "FINISHED"
    losses = client.get_metric_history(run.info.run_id, "train/loss")
    assert [(one.step, one.value) for one in losses] == [(1, 2.5), (10, 1.5)]
    rates = client.get_metric_history(run.info.run_id, "rate/jailbreak/direct/refusal")
    assert [(one.step, one.value) for one in rates] == [(0, 0.5), (10, 0.5)]
    assert run.data.params["evaluation.risks"] == "['jailbreak']"


@needs("trackio")
def test_trackio_holds_a_run_once_with_its_numbers(tmp_path, monkeypatch):
    import trackio
    from trackio import sqlite_storage, utils

    for module in (trackio, sqlite_storage, utils):
        monkeypatch.setattr(module, "TRACKIO_DIR", tmp_path / "trackio")
    curve = make_curve()
    for _ in range(2):
        assert analysis.track(curve, "trackio", project="mine").startswith("trackio show")
    (run,) = trackio.Api().runs("mine")
    assert run.name == curve.members[0].name and run.config["_Group"] == curve.name
    assert run.config["evaluation.risks"] == "['jailbreak']"
    logged = {row["step"]: row for row in sqlite_storage.SQLiteStorage.get_logs("mine", run.name)}
    assert {step: row.get("train/loss") for step, row in logged.items()} == {
        0: None,
        1: 2.5,
        10: 1.5,
    }
    assert [logged[step]["rate/jailbreak/direct/refusal"] for step in (0, 10)] == [0.5, 0.5]
    with raises_code("tracker_is_local"):
        analysis.track(curve, "trackio", at="user/space")


@needs("mlflow")
def test_a_server_that_does_not_answer_is_one_sentence(monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with raises_code("tracker_failed"):
        analysis.track(make_curve(), "mlflow", at="http://127.0.0.1:9")


OFFLINE = """
import socket, sys
def refused(*_, **__):
    open("tried", "w").close()  # a library may swallow the error
    raise OSError("network")
socket.socket.connect = refused
socket.getaddrinfo = refused
from ftlab import cli
cli.main()
"""


@pytest.mark.parametrize("to", ["mlflow", "trackio"])
def test_the_command_needs_no_network(to, runs_folder, tmp_path):
    if importlib.util.find_spec(to) is None:
        pytest.skip("the extra track is not installed")
    curve = make_curve()
    command = [sys.executable, "-c", OFFLINE, "track", curve.name, "--to", to, "--project", "mine"]
    own = {"FTLAB_RUNS": str(runs_folder), "TRACKIO_DIR": str(tmp_path / "trackio")}
    own |= {
        "TRACKIO_SPACE_ID": "user/space",
        "HF_TOKEN": "hf_none",
        "MLFLOW_TRACKING_URI": "http://h",
    }
    done = subprocess.run(
        command, env=os.environ | own, cwd=tmp_path, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().splitlines()[-1].startswith(to)
    assert not (tmp_path / "tried").exists()
    stored = b"".join(path.read_bytes() for path in tmp_path.rglob("*.db"))
    assert b"train/loss" in stored
    assert not [word for word in (*TEXTS, SECRET) if word.encode() in stored]


def test_an_unknown_tracker_and_a_missing_one_are_named(monkeypatch):
    curve = make_curve()
    with raises_code("unknown_tracker"):
        analysis.track(curve, "nobody")
    for name in ("mlflow", "trackio"):
        monkeypatch.setitem(sys.modules, name, None)
        monkeypatch.delitem(sys.modules, "trackio.sqlite_storage", raising=False)
        with raises_code("tracker_missing"):
            analysis.track(curve, name)
