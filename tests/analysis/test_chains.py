"""What would have stopped a version: rules that see one step, and one that sees the sum."""

from __future__ import annotations

import pytest
from analysis.verdict_tables import made, rows
from helpers import raises_code

from ftlab.analysis import VERSIONS, chain_drift, chain_stops, plot, report
from ftlab.analysis.chains import BEFORE, CUT, EARLY, FIRST, LINE, LOSS, ORIGINAL, PREVIOUS, STOPS
from ftlab.runs import start

PROMPTS = 1500
UNKNOWN = "not enough evidence"


def chain(events: list[int], *, seeds: int = 1, **records):
    """A chain's run in which so many of the prompts of each version show the event."""
    run = start("chain", "made", {"events": events, "seeds": seeds, **records})
    for seed in range(seeds):
        answers = {}
        for version, count in enumerate(events):
            answers[seed, version] = "c" * count + "r" * (PROMPTS - count)
        found = rows(answers)
        run.append("verdicts.jsonl", [row | {"version": row["step"], "key": "k"} for row in found])
        for version in range(1, len(events)):
            record = {
                "seed": seed,
                "version": version,
                "trained_on": "organism:almanac",
                "steps": 10,
                "ended_at": 10,
                "best_step": 10,
                "loss_before": 2.0,
                "loss_after": 1.0,
            }
            record |= {name: values[version - 1] for name, values in records.items()}
            run.append(VERSIONS, [record])
    return run.complete(parent="organism", seeds=seeds)


def decided(table, rule: str, word: str = STOPS) -> list[int]:
    return table[table["rule"] == rule][word].tolist()


def test_each_step_passes_while_the_sum_fails(runs_folder):
    """A point at a time: within 2 points of the version before, and never of the original."""
    found = chain_stops(chain([30, 45, 60, 75, 90]))
    assert decided(found, PREVIOUS, "passes") == [1, 1, 1, 1]
    assert decided(found, ORIGINAL) == [0, 0, 1, 1]
    assert found.attrs["first"][PREVIOUS] == [0]
    assert found.attrs["first"][ORIGINAL] == [3]


def test_a_loss_that_is_not_known_passes_nothing(runs_folder):
    found = chain_stops(chain([30, 30], loss_after=[float("nan")]))
    assert decided(found, LOSS, UNKNOWN) == [1]


def test_drift_from_the_original_is_the_sum_of_the_steps(runs_folder):
    found = chain_drift(chain([30, 45, 60, 90], seeds=2))
    steps = found[found["against"] == BEFORE]["difference"]
    drift = found[found["against"] == FIRST]["difference"]
    sums = drift.iloc[0] + steps.cumsum()
    assert drift.tolist()[1:] == pytest.approx(sums.tolist())
    assert found["version"].tolist() == [1, 2, 2, 3, 3]
    assert found["n_seeds"].tolist() == [2] * 5 and found["p_holm"].ge(found["p"]).all()


def test_the_gates_agree_on_the_first_version(runs_folder):
    found = chain_stops(chain([30, 300, 300], seeds=2))
    assert decided(found, PREVIOUS) == [2, 0] and decided(found, ORIGINAL) == [2, 2]
    assert found.attrs["first"][ORIGINAL] == [1, 1]


def test_what_is_not_known_is_neither_a_pass_nor_a_stop(runs_folder):
    found = chain_stops(chain([30, 58]))
    assert decided(found, ORIGINAL, UNKNOWN) == [1] and decided(found, ORIGINAL) == [0]


def test_validation_stops_what_it_sees(runs_folder):
    run = chain([30, 30, 30], loss_after=[1.0, 2.5], best_step=[10, 2], ended_at=[10, 4])
    found = chain_stops(run)
    assert decided(found, LOSS) == [0, 1] and decided(found, EARLY, CUT) == [0, 1]
    assert decided(found, EARLY) == [0, 0] and found.attrs["first"][EARLY] == [2]


def test_early_stopping_goes_by_the_weights_it_keeps(runs_folder):
    """A training that is over before patience ends it still loses what came after its best."""
    found = chain_stops(chain([30, 30], best_step=[8], ended_at=[10]))
    early = found[found["rule"] == EARLY].iloc[0]
    assert early[CUT] == 1 and early["rate"] == 1 and early["shown"] == "cut short 1"
    assert "8" in early["told"] and "10" in early["told"]


def in_the_middle(*counts: int, scored: int = 100) -> dict:
    """Return what records hold of versions that were measured at step 5 of 10."""
    between = []
    for count in counts:
        verdicts = {"events": count, "scored": scored, "unscored": 100 - scored}
        between.append({"jailbreak": verdicts})
    return {"middle": [5] * len(counts), "in_the_middle": between}


def test_a_safety_line_cuts_short_in_the_middle_and_stops_at_the_end(runs_folder):
    """The last version ends below the line, and is cut short before it is there."""
    run = chain([15, 100, 300, 60], seeds=2, **in_the_middle(3, 9, 40))
    found = chain_stops(run)
    assert decided(found, LINE, "passes") == [2, 0, 0]
    assert decided(found, LINE) == [0, 2, 0] and decided(found, LINE, CUT) == [0, 0, 2]
    assert found.attrs["first"][LINE] == [2, 2]
    found = chain_stops(run, line=0.3)
    assert decided(found, LINE, CUT) == [0, 0, 2] and decided(found, LINE) == [0, 0, 0]


def test_a_safety_line_allows_the_rate_that_it_names(runs_folder):
    run = chain([15, 150], **in_the_middle(10))
    assert decided(chain_stops(run, line=0.1), LINE, "passes") == [1]
    assert decided(chain_stops(run, line=0.099), LINE, CUT) == [1]


def test_a_safety_line_without_a_scored_answer_passes_nothing(runs_folder):
    found = chain_stops(chain([15, 15, 300], **in_the_middle(0, 0, scored=0)))
    assert decided(found, LINE, UNKNOWN) == [1, 0] and decided(found, LINE) == [0, 1]
    assert "100 unscored" in found[found["rule"] == LINE]["told"].iloc[0]


def test_a_chain_that_measured_no_middle_has_no_safety_line(runs_folder):
    assert LINE not in set(chain_stops(chain([3, 4]))["rule"])


@pytest.mark.parametrize("line", [1, -0.1, "half", float("nan")])
def test_a_line_is_a_share(line, runs_folder):
    with raises_code("wrong_line"):
        chain_stops(chain([3, 4]), line=line)


def test_its_page_shows_every_version_and_every_rule(runs_folder):
    run = chain([30, 45, 300], seeds=2, **in_the_middle(1, 30))
    page = report(run)
    assert page.parent.parent == run.path.parent and not run.problems(deep=True)
    figures = page.parent / "figures"
    for name in ("versions", "drift", "stops"):
        assert f"versions-{name}.csv" in page.read_text(encoding="utf-8")
        assert (figures / f"versions-{name}.svg").stat().st_size
    for rule in (LOSS, EARLY, LINE, PREVIOUS, ORIGINAL):
        assert rule in (figures / "versions-stops.csv").read_text(encoding="utf-8")
    assert report(run) == page


def test_a_page_of_no_chain_is_refused(runs_folder, tmp_path):
    with raises_code("not_a_chain"):
        report(start("curve", "none", {}))
    for given in ([tmp_path], [tmp_path, {}]):
        with raises_code("nothing_to_report"):
            report(*given)
    assert not list(tmp_path.glob("*.html"))


def test_a_wider_tolerance_stops_less(runs_folder):
    run = chain([30, 300])
    assert decided(chain_stops(run, max_rise=0.3), ORIGINAL) == [0]
    assert decided(chain_stops(run, max_rise=0.05), ORIGINAL) == [1]


def test_its_decisions_are_drawn(runs_folder, tmp_path):
    found = chain_stops(chain([30, 45, 300], seeds=2))
    drawing = plot(found, "stops", tmp_path, kind="matrix")
    assert (tmp_path / "stops.svg").stat().st_size
    assert found.attrs["about"] in drawing.caption and "differ" not in drawing.caption
    cell = found[(found["rule"] == ORIGINAL) & (found["version"] == 2)].iloc[0]
    assert cell["shown"] == "stops 2" and cell["change"] == 1


def test_only_a_chain_has_versions(runs_folder):
    for other in (start("curve", "none", {}), made({(0, 0): "cr"})):
        for cell in (chain_drift, chain_stops):
            with raises_code("not_a_chain"):
                cell(other)


@pytest.mark.parametrize("given", [{"risks": "bias"}, {"max_rise": -1}, {"alpha": 2}])
def test_the_gates_settings_are_checked(given, runs_folder):
    codes = {"risks": "risk_not_measured", "max_rise": "wrong_tolerance", "alpha": "wrong_alpha"}
    with raises_code(codes[next(iter(given))]):
        chain_stops(chain([3, 4]), **given)
