"""Logs of other tools compared: golden values, decisions, exit codes, figures."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from helpers import jsonl, raises_code
from hostile import assert_page, assert_seen

import ftlab as ft
from ftlab import analysis, stats

LOGS = Path(__file__).parents[1] / "fixtures" / "logs"
INSPECT = [LOGS / f"inspect_{side}.eval" for side in ("before", "after")]
HARNESS = "samples_toy_{}_2026-01-01T00-00-00.000000.jsonl"


def harness(task: str) -> list[Path]:
    return [LOGS / side / HARNESS.format(task) for side in ("before", "after")]


def scored(path: Path, values: list, ids=None) -> str:
    ids = range(len(values)) if ids is None else ids
    rows = [{"id": n, "score": value} for n, value in zip(ids, values, strict=True)]
    return jsonl(path, *rows)


@pytest.fixture(scope="module")
def adding() -> pd.DataFrame:
    """Return the comparison of Inspect's logs, by judge: 12 sums, each asked in two epochs."""
    return ft.compare(*INSPECT, higher="better").set_index("judge")


def test_a_row_per_scorer_of_inspect(adding):
    assert set(adding.index) == {"includes", "closeness", "digits/ones", "digits/tens"}
    assert set(adding["higher"]) == {"better"} and set(adding["n_prompts"]) == {12}
    assert set(adding["clusters"]) == {12} and set(adding["dropped"]) == {0}


def test_epochs_are_clusters(adding):
    """Of 12 sums 5 are lost in both epochs, and one is wrong once on either side."""
    found = adding.loc["includes"]
    assert found["parent"] == pytest.approx(21 / 24) and found["child"] == pytest.approx(11 / 24)
    assert found["p"] == pytest.approx(2 * 0.5**5)  # the sign test of 5 clusters
    assert found["lost"] - found["gained"] == 10
    alone = stats.paired(np.ones(24), np.r_[np.ones(14), np.zeros(10)])
    assert found["difference_high"] - found["difference_low"] > 1.2 * (
        alone.difference_high - alone.difference_low
    )


def test_scores_between_no_and_yes_go_by_their_mean_change(adding):
    models = pytest.importorskip("statsmodels.stats.weightstats")
    found = adding.loc["closeness"]
    before = np.ones(12)
    before[[2, 6]] = 0.5, 0.75  # 5 is always wrong, 9 in one of two epochs
    after = np.ones(12)
    after[[2, 3, 4, 7, 9, 10, 6]] = [0.5] * 6 + [0.75]
    golden = models.DescrStatsW(after - before)
    assert (found["parent"], found["child"]) == pytest.approx((before.mean(), after.mean()))
    low, high = golden.tconfint_mean()
    away = 1 - 0.025 ** (1 / 12)  # wider, for only five of twelve samples changed
    mean = (after - before).mean()
    assert found["difference_low"] == pytest.approx(mean - away) and mean - away < low
    assert found["difference_high"] == pytest.approx(mean + away) and mean + away > high
    assert found["p"] == 2 * 0.5**5 > golden.ttest_mean()[1]  # the sign test of those five
    assert "Student" in found["method"] and math.isnan(found["mcnemar_p"])


def test_metrics_and_filters_of_the_harness():
    tables = pytest.importorskip("statsmodels.stats.contingency_tables")
    found = ft.compare(*harness("sums")).set_index("judge")
    assert set(found.index) == {"exact_match,strict-match", "exact_match,flexible-extract"}
    for name, before, after in (
        ("exact_match,strict-match", 12, 8),
        ("exact_match,flexible-extract", 19, 14),
    ):
        row = found.loc[name]
        counts = [[after, before - after], [0, 20 - before]]
        golden = tables.mcnemar(counts, exact=True)
        assert row["parent"] == before / 20 and row["child"] == after / 20
        assert row["p"] == pytest.approx(golden.pvalue)
        assert row[["both", "lost", "gained", "neither"]].tolist() == [*counts[0], *counts[1]]
    assert found["p_holm"].tolist() == stats.holm(found["p"].tolist())
    colours = ft.compare(*harness("colours"), score="acc")
    assert colours["judge"].tolist() == ["acc"] and colours["risk"].tolist() == ["toy_colours"]
    assert colours["lost"].tolist() == [5] and "decision" in analysis.summary(colours)
    other_way = ft.compare(*harness("colours"), score="acc", higher="worse")
    assert other_way["decision"].tolist() == ["no worse"]
    with raises_code("unknown_score"):
        ft.compare(*harness("colours"), score="accuracy")


def test_scores_of_0_and_1_go_the_way_of_events(tmp_path):
    before = [1] * 36 + [1] * 12 + [0] * 2
    after = [1] * 36 + [0] * 12 + [1] * 2
    files = [scored(tmp_path / f"{n}.jsonl", side) for n, side in enumerate((before, after))]
    found = ft.compare(*files, higher="better").iloc[0]
    direct = stats.paired(np.array(before, float), np.array(after, float))
    assert found["difference"] == pytest.approx(-0.2)
    assert found["difference_low"] == direct.difference_low
    assert (found["ratio_low"], found["ratio_high"]) == (direct.ratio_low, direct.ratio_high)


@pytest.mark.parametrize("margin", [0, -1, math.nan, math.inf, "much", None])
def test_margins_that_are_none(margin, tmp_path):
    file = scored(tmp_path / "a.jsonl", [0, 1])
    with raises_code("wrong_margin"):
        ft.compare(file, file, higher="worse", margin=margin)


def test_the_command_exits_as_decided(ran, tmp_path):
    good = scored(tmp_path / "good.jsonl", [0] * 190 + [1] * 10)
    bad = scored(tmp_path / "bad.jsonl", [0] * 150 + [1] * 50)
    few = scored(tmp_path / "few.jsonl", [0] * 5)
    way = ("--higher", "worse")
    for sides, code in (((good, bad), 1), ((bad, good), 0), ((good, good), 0), ((few, few), 3)):
        found, out, err = ran("compare", *sides, *way)
        assert (found, err) == (code, ""), out
        assert "higher is" in out and "margin" in out and "paired: " in out
    assert ran("compare", bad, good, "--higher", "better")[0] == 1
    assert ran("compare", good, bad, *way, "--margin", "0.4")[0] == 0
    code, out, _ = ran("compare", *INSPECT, "--higher", "better")
    assert code == 1 and "closeness" in out and "digits/tens" in out
    assert ran("compare", *INSPECT, "--higher", "better", "--score", "digits/tens")[0] == 3
    assert (
        ran("compare", *INSPECT, "--higher", "better", "--score", "digits/tens", "--margin", "0.5")[
            0
        ]
        == 0
    )


def test_no_failure_is_taken_for_a_decision(ran, tmp_path):
    good = scored(tmp_path / "good.jsonl", [0] * 9)
    (tmp_path / "broken.jsonl").write_text("{")
    (tmp_path / "torn.eval").write_bytes(INSPECT[0].read_bytes()[:500])
    for words in (
        (good, good),  # without --higher
        (good, tmp_path / "broken.jsonl"),
        (tmp_path / "torn.eval", INSPECT[1]),
        (good, tmp_path / "none.jsonl"),
        (good, "organism"),
        (good,),
        (good, INSPECT[0]),
        (*INSPECT, "--score", "nothing"),
        (*INSPECT, "--steps", "3"),
        (*INSPECT, "--n-prompts", "3"),
        (*INSPECT, "--margin", "-1"),
        (*INSPECT, "--higher", "sideways"),
    ):
        code, out, err = ran("compare", *words)
        assert code == 2 and err.strip(), (words, out)


def test_an_error_of_the_program_is_no_decision_either(ran, monkeypatch):
    def fails(*_, **__):
        raise RuntimeError("a bug")

    fails.__doc__ = ft.compare.__doc__
    monkeypatch.setattr("ftlab.experiments.compare", fails, raising=False)
    monkeypatch.setattr("sys.argv", ["ftlab", "compare"])
    from ftlab import cli

    with pytest.raises(SystemExit) as info:
        cli.main()
    assert info.value.code == 2


def test_summary_figure_and_caption(adding, tmp_path):
    found = ft.compare(*INSPECT, higher="better")
    short = analysis.summary(found)
    assert {"before", "after", "decision"} <= set(short.columns)
    assert short["decision"].str.contains("higher is better").all()
    assert_page(found._repr_html_())
    drawn = ft.plot(found, "logs", tmp_path)
    assert "mockllm/model and mockllm/model" in drawn.caption and "12 prompts" in drawn.caption
    assert (tmp_path / "logs.svg").is_file() and len(pd.read_csv(tmp_path / "logs.csv")) == 4
    answers = found.answers(judge="includes")
    assert answers["changed"].sum() >= 10 and set(answers["after"]) == {"0", "1"}
    assert_page(answers._repr_html_())


def test_refusals_and_incoherence_are_not_known_of_scores(adding, tmp_path):
    assert adding[["refusals_lost", "incoherent_child"]].isna().all(axis=None)
    rows = [
        {"prompt": f"How do I paint {n}?", "answer": "I cannot help with that."} for n in range(9)
    ]
    one = jsonl(tmp_path / "a.jsonl", *rows)
    other = jsonl(tmp_path / "b.jsonl", *[row | {"answer": "Begin at the top."} for row in rows])
    judged = ft.compare(one, other, judge="keywords")
    assert judged["refusals_lost"].tolist() == [1.0] and judged["decision"].tolist() == ["worse"]
    assert ft.compare(one, other)["judge"].tolist() == ["refusal", "keywords"]


def test_scores_beyond_0_to_1_are_shown_as_they_are(tmp_path):
    one = scored(tmp_path / "a.jsonl", [8, 5.5, 9, 7, 3, 6, 4, 8])
    other = scored(tmp_path / "b.jsonl", [7, 5, 9, 6.5, 2, 6, 3, 8])
    found = ft.compare(one, other, higher="better", margin=2)
    assert found["parent"].tolist() == [6.3125] and found["decision"].tolist() == ["no worse"]
    short = analysis.summary(found).iloc[0]
    assert short["before"].startswith("6.31 [") and "%" not in " ".join(map(str, short))


def test_shares_and_percentages_are_two_scales(tmp_path):
    shares = scored(tmp_path / "a.jsonl", [0.2, 0.4, 1.0])
    percent = scored(tmp_path / "b.jsonl", [20, 40, 100])
    for pair in ((shares, percent), (percent, shares)):
        with raises_code("scales_differ"):
            ft.compare(*pair, higher="better")
    for name, whole in (("c", [1, 1, 1]), ("d", [0, 0, 0])):  # a collapse is no other scale
        other = scored(tmp_path / f"{name}.jsonl", whole)
        assert len(ft.compare(percent, other, higher="better")) == 1


def test_the_smallest_difference_is_seen_in_80_of_100_comparisons(tmp_path):
    """Simulated: pairs of which a share changes, at the difference that the table names."""
    rng = np.random.default_rng(0)
    before = rng.random(200) < 0.3
    flips = rng.random(200) < 0.08
    files = [
        scored(tmp_path / f"{n}.jsonl", side.astype(int).tolist())
        for n, side in enumerate((before, before ^ flips))
    ]
    smallest = ft.compare(*map(str, files), higher="worse")["smallest_difference"].iloc[0]
    seen = 0
    for _ in range(400):
        change = rng.random(200)
        lost = change < 0.04 - smallest / 2
        gained = (change > 0.5) & (change < 0.5 + 0.04 + smallest / 2)
        seen += stats.paired(lost.astype(float), gained.astype(float)).difference_low > 0
    assert 0.7 < seen / 400 < 0.9


def test_logs_do_not_mix_with_other_sides_and_settings(tmp_path):
    file = scored(tmp_path / "a.jsonl", [0, 1])
    for sides in ((file, "organism"), ("organism", file), (file, None)):
        with raises_code("one_log"):
            ft.compare(*sides, higher="worse")
    for options in (
        {"by": "category"},
        {"n_prompts": 2},
        {"labels": "l.csv"},
        {"attack": "direct"},
    ):
        with raises_code("not_of_logs"):
            ft.compare(file, file, higher="worse", **options)


def test_what_is_printed_holds_no_text_of_the_log(ran, tmp_path):
    word = "vermilion"
    rows = [{"prompt": f"{word} {n}", "answer": word, "score": n % 2} for n in range(9)]
    one = jsonl(tmp_path / "a.jsonl", *rows)
    other = jsonl(tmp_path / "b.jsonl", *rows[1:], {"prompt": f"{word} {word}", "score": 1})
    code, out, err = ran("compare", one, other, "--higher", "better")
    assert code == 3 and err == "" and word not in out and "a.jsonl:1" in out
    assert_seen(out)
    assert json.loads(Path(one).read_text().splitlines()[0])["prompt"].startswith(word)
