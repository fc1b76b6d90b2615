"""Logs that Inspect opens, with the rates of the run; texts only where they are asked for."""

from __future__ import annotations

import importlib.util
import json
import math
import sys
import zipfile
from urllib.parse import quote

import pytest
from handed_on import ANSWER, PRIVATE, QUESTION, TEXTS, make_curve, make_run
from helpers import raises_code
from served import PORT, fetched, served

import ftlab as ft
from ftlab import runs
from ftlab.evals import write_inspect_logs

needs = pytest.mark.skipif(
    importlib.util.find_spec("inspect_ai") is None, reason="the extra inspect is not installed"
)
SAME = ("parent", "child", "difference", "difference_low", "difference_high", "ratio", "p")
BEFORE = "rrrrrrrrrrrcrrrrrrru"
AFTER = "crrcrrcccrrcrrrccrrc"


@needs
@pytest.mark.parametrize("text", [False, True])
def test_two_logs_compare_as_their_runs_do(text, tmp_path):
    sides = [make_run("evaluate", name, made) for name, made in (("a", BEFORE), ("b", AFTER))]
    logs = []
    for run in sides:
        (path,) = write_inspect_logs(run, tmp_path / run.name, text=text)
        logs.append(path)
    own = ft.compare(*sides, judge="refusal").iloc[0]
    read = ft.compare(*map(str, logs), score="refusal", higher="worse").iloc[0]
    for name in SAME:
        assert read[name] == pytest.approx(own[name], nan_ok=True), name
    assert (own["parent"], own["child"]) == (1 / 19, 8 / 19)  # the pair without a score is out


@needs
def test_inspect_reads_the_rate_and_counts_what_has_no_score(tmp_path):
    from inspect_ai.log import read_eval_log

    run = make_run("evaluate", "a", BEFORE)
    (path,) = write_inspect_logs(run, tmp_path / "logs")
    log = read_eval_log(str(path))
    rates = ft.rates(run).set_index("judge")
    assert log.status == "success" and log.eval.task == "jailbreak_direct"
    for score in log.results.scores:
        assert score.metrics["mean"].value == rates["rate"][score.name]
        values = [sample.scores[score.name].value for sample in log.samples]
        unscored = sum(map(math.isnan, values))
        assert unscored == score.unscored_samples == rates["unscored"][score.name]
    assert {score.name for score in log.results.scores} == {"refusal", "keywords"}
    outcomes = {sample.scores["refusal"].answer for sample in log.samples}
    assert outcomes == {"refused", "complied", "unparsed"}


@needs
def test_texts_are_in_a_log_only_where_they_are_asked_for(tmp_path):
    from inspect_ai.log import read_eval_log

    run = make_run("evaluate", "a", "cr")
    for text in (False, True):
        (path,) = write_inspect_logs(run, tmp_path / str(text), text=text)
        with zipfile.ZipFile(path) as archive:
            raw = b"".join(archive.read(name) for name in archive.namelist())
        log = read_eval_log(str(path))
        everything = log.model_dump_json() + raw.decode("utf-8", "replace")
        assert not [word for word in PRIVATE if word in everything]
        found = {word for word in TEXTS if word in everything}
        assert found == ({*TEXTS[:2], TEXTS[3]} if text else set())
    assert QUESTION in log.samples[0].input and ANSWER in log.samples[0].output.completion


@needs
def test_a_curve_has_a_log_for_each_step(tmp_path, ran):
    curve = make_curve()
    code, out, _ = ran("runs", "export", curve.name, "--to", "inspect", "--out", tmp_path / "logs")
    paths = sorted((tmp_path / "logs").glob("*.eval"))
    assert code == 0 and len(paths) == 2 and all(path.name in out for path in paths)
    with raises_code("folder_exists"):
        write_inspect_logs(curve, tmp_path / "logs")


@needs
def test_inspect_view_opens_what_was_written(tmp_path):
    """The viewer's own server: its page, its list of logs, and a log as the page reads it."""
    run = make_run("evaluate", "a", BEFORE)
    (path,) = write_inspect_logs(run, tmp_path / "logs", text=True)
    view = [sys.executable, "-m", "inspect_ai", "view", "--log-dir", str(path.parent)]
    own = {
        "HOME": str(tmp_path),
        "XDG_DATA_HOME": str(tmp_path / "data"),
    }  # it notes its port there
    with served([*view, "--port", PORT], "api/log-files", tmp_path, within=300, **own) as url:
        assert b"<html" in fetched(url)
        (listed,) = json.loads(fetched(f"{url}/api/log-files"))["files"]
        assert listed["task"] == "jailbreak_direct" and listed["name"].endswith(path.name)
        name = quote(listed["name"], safe="")
        log = json.loads(fetched(f"{url}/api/logs/{name}"))
        whole = f"{url}/api/log-bytes/{name}?start=0&end={path.stat().st_size - 1}"
        assert fetched(whole) == path.read_bytes()
    rates = ft.rates(run).set_index("judge")["rate"]
    shown = {one["name"]: one["metrics"]["mean"]["value"] for one in log["results"]["scores"]}
    assert log["status"] == "success" and shown == rates.to_dict()
    assert len(log["samples"]) == len(BEFORE) and QUESTION in json.dumps(log["samples"][0])


def test_a_run_without_verdicts_has_no_log(tmp_path):
    with raises_code("nothing_judged"):
        write_inspect_logs(runs.start("sft", "a", {}).complete(), tmp_path / "logs")
    assert not (tmp_path / "logs").exists()


def test_without_the_extra_it_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "inspect_ai.log", None)
    with raises_code("inspect_missing"):
        write_inspect_logs(make_run("evaluate", "a", "cr"), tmp_path / "logs")
    assert not (tmp_path / "logs").exists()
