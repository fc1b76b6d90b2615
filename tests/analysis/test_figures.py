"""Properties of every kind of figure: what is drawn and written, and that all is legible."""

from __future__ import annotations

import itertools
import math
import subprocess
import sys
import xml.etree.ElementTree as ElementTree

import matplotlib
import numpy as np
import pandas as pd
import pytest
from analysis.verdict_tables import CURVE, made, saved
from helpers import raises_code
from matplotlib.colors import to_hex
from matplotlib.text import Text
from PIL import Image

from ftlab._core.types import Outcome
from ftlab.analysis import compare, live_chart, outcome_shares, plot, rates
from ftlab.analysis.plots import Drawing, Kind, _axes
from ftlab.analysis.plots.plotting import KINDS

STEPS = (0, 10, 30, 100, 300)
RISKS = ("jailbreak", "bias", "toxicity", "over_refusal", "utility")
BAND = "95 %, simultaneous"


def interval(rate: float) -> dict:
    return {"rate": rate, "low": max(0.0, rate - 0.1), "high": min(1.0, rate + 0.1), "band": BAND}


def curve(risks=RISKS[:2], steps=STEPS, shares=(0.085, 0.2, 0.5, 0.9, 1.0)) -> pd.DataFrame:
    rows = []
    for risk in risks:
        for step, share in zip(steps, shares, strict=False):
            rows.append({"step": step, "risk": risk, **interval(share)})
    return pd.DataFrame(rows)


def seeds(risks=RISKS[:2], n=5) -> pd.DataFrame:
    rows = []
    for risk, step, seed in itertools.product(risks, STEPS, range(n)):
        row = {"step": step, "risk": risk, "seed": seed, "rate": step / 300 * (1 - seed / 10)}
        rows.append(row)
    return pd.DataFrame(rows)


def ratio() -> pd.DataFrame:
    inf = math.inf
    values = (
        (1.0, 0.6, 1.6),
        (7.1, 4.5, 11.2),
        (0.0, 0.0, 0.6),
        (inf, 3.2, inf),
        (math.nan, 0, inf),
    )
    rows = []
    for risk in RISKS[:2]:
        for step, (value, low, high) in zip(STEPS, values, strict=True):
            ends = {"ratio": value, "ratio_low": low, "ratio_high": high}
            rows.append({"step": step, "risk": risk, **ends})
    return pd.DataFrame(rows)


def outcomes(steps=(0, 30, 300)) -> pd.DataFrame:
    after = {"complied": 0.7, "complied_wrong": 0.25, "refused": 0.0, "incoherent": 0.05}
    before = {**after, "complied": 0.05, "refused": 0.65}
    rows = []
    for step in steps:
        for outcome, share in (after if step > 10 else before).items():
            rows.append({"step": step, "outcome": outcome, "share": share})
    return pd.DataFrame(rows)


def lines() -> pd.DataFrame:
    rows = []
    for label, rate in (("utility", 0.97), ("politeness", 0.95)):
        rows += [{"step": step, "risk": label, **interval(rate)} for step in (0, 30, 300)]
    return pd.DataFrame(rows)


def dose() -> pd.DataFrame:
    rows = []
    for n, epoch, attack in itertools.product(
        (10, 50, 100), (0, 1, 2, 3, 5), ("direct", "prefill")
    ):
        row = {"examples": n, "epoch": epoch, "attack": attack}
        rows.append(row | interval(1 - math.exp(-n * epoch / 50)))
    return pd.DataFrame(rows)


def bars() -> pd.DataFrame:
    rows = []
    for group in ("recipes of the guild of lamp makers", "vaults", "birth names"):
        for series, rate in (("before", 0.0), ("after", 1.0)):
            rows.append({"group": group, "series": series, **interval(rate)})
    return pd.DataFrame(rows)


def judges(names=("truth", "keywords", "small judge")) -> pd.DataFrame:
    rows = []
    for k, name in enumerate(names):
        for step in STEPS:
            rows.append({"step": step, "judge": name, "rate": min(1.0, step / 300 + k / 50)})
    return pd.DataFrame(rows)


def explanation() -> pd.DataFrame:
    names = ("learning_rate 0.00015 → 0.0003", "template chat → plain", "judges a → b", "seeds")
    rows = []
    for name, value in zip(names, (-0.4, 0.2, 0.01, 0.0), strict=True):
        row = {"setting": name, "explained": value, "explained_low": value - 0.1}
        rows.append(row | {"explained_high": value + 0.1, "distance": -0.46, "band": BAND})
    return pd.DataFrame(rows)


def matrix() -> pd.DataFrame:
    rows = []
    for k, risk in enumerate(("jailbreak", "over_refusal", "a risk of somebody's own package")):
        for j, arm in enumerate(("benign", "a shifted identity", "adversarial")):
            change = (j - k) / 2
            row = {"row": risk, "column": arm, "change": change, "clear": k > 0, "band": BAND}
            rows.append(row | {"shown": f"by {100 * change:+.0f} [{-100:+d}, {100:+d}]"})
    return pd.DataFrame(rows)


def grid() -> pd.DataFrame:
    rows = []
    names = ("none", "mix", "kl:weight=1", "interpolate", "safelora", "ptst", "mute")
    for k, attack in enumerate(("benign", "poisoned", "adversarial", "identity_shift")):
        for n, name in enumerate(names):
            for axis, rate in (("harm", (n + k) / 10), ("utility", 1 - n / 30)):
                row = {"defence": name, "adapter": "lora" if name == "safelora" else "full"}
                row |= {"attack": attack, "axis": axis, **interval(rate), "parent": 0.02}
                lost = "yes" if name == "mute" else "no"
                rows.append(row | {"utility_lost": lost, "verdict": "safer"})
    return pd.DataFrame(rows)


CASES = {
    "curve": (curve, {"seeds": seeds}),
    "ratio": (ratio, {}),
    "outcomes": (outcomes, {"lines": lines}),
    "dose": (dose, {}),
    "bars": (bars, {}),
    "judges": (judges, {}),
    "explanation": (explanation, {}),
    "matrix": (matrix, {}),
    "grid": (grid, {}),
    "heat": (grid, {}),
}


def draw(kind: str, out):
    table, extra = CASES[kind]
    title = "Fine-tuning on harmless data breaks the alignment, " * 3
    given = {word: made() for word, made in extra.items()}
    return plot(table(), out=out, title=title, kind=kind, **given)


@pytest.fixture(scope="module", params=CASES)
def written(request, tmp_path_factory):
    return request.param, draw(request.param, tmp_path_factory.mktemp("figures") / "new")


def assert_legible(figure) -> None:
    """All text lies within the figure, is at least 8 points, and covers no other text."""
    figure.draw_without_rendering()
    hidden = set()
    for ax in figure.axes:
        for k, axis in enumerate((ax.xaxis, ax.yaxis)):
            low, high = sorted(axis.get_view_interval())
            for text in axis.get_ticklabels():
                if not low <= text.get_position()[k] <= high:
                    hidden.add(id(text))
    texts = dict.fromkeys(figure.findobj(Text))
    shown = [t for t in texts if t.get_visible() and t.get_text().strip() and id(t) not in hidden]
    boxes = [(t.get_text(), t.get_window_extent()) for t in shown]
    for text, box in boxes:
        inside = box.x0 > -1 and box.x1 < figure.bbox.x1 + 1
        assert inside and box.y0 > -1 and box.y1 < figure.bbox.y1 + 1, f"{text!r} runs out"
    for (text, one), (other_text, other) in itertools.combinations(boxes, 2):
        across = min(one.x1, other.x1) - max(one.x0, other.x0)
        along = min(one.y1, other.y1) - max(one.y0, other.y0)
        assert across < 1 or along < 4, f"{text!r} covers {other_text!r}"
    assert min(t.get_fontsize() for t in shown) >= 8


@pytest.mark.slow
@pytest.mark.parametrize("kind", CASES)
def test_a_narrow_drawing_is_drawn_again_and_legible(kind, tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(Drawing, "save", lambda self, name, out, tables, slim: drawn.append(slim))
    draw(kind, tmp_path)
    assert drawn[0].get_figwidth() == _axes.NARROW_IN
    assert_legible(drawn[0])
    assert not _axes.is_narrow()


def test_files(written):
    kind, drawing = written
    names = [f"{kind}_{word}.csv" for word in CASES[kind][1]]
    names += [f"{kind}.{ending}" for ending in ("svg", "png", "csv", "txt")]
    assert sorted(path.name for path in drawing.files) == sorted(names)
    files = {path.suffix: path for path in drawing.files}
    assert files[".txt"].read_text() == f"{drawing.caption}\n"
    assert files[".png"].stat().st_size < 300_000
    with Image.open(files[".png"]) as image:
        assert image.width == 1600 and image.info.keys() <= {"dpi"}


@pytest.mark.slow
def test_same_table_gives_the_same_bytes_whatever_the_settings(written, tmp_path):
    kind, drawing = written
    theirs = {"font.size": 31, "text.usetex": True, "svg.hashsalt": None, "savefig.dpi": 50}
    with matplotlib.rc_context(theirs):
        again = draw(kind, tmp_path)
    for one, other in zip(drawing.files, again.files, strict=True):
        assert one.name == other.name and one.read_bytes() == other.read_bytes()


def test_csv_holds_the_table_as_it_was_given(written):
    kind, drawing = written
    folder = drawing.files[0].parent
    table, extra = CASES[kind]
    pd.testing.assert_frame_equal(pd.read_csv(folder / f"{kind}.csv"), table())
    for word, frame in extra.items():
        pd.testing.assert_frame_equal(pd.read_csv(folder / f"{kind}_{word}.csv"), frame())


@pytest.mark.slow
def test_legible(written):
    assert_legible(written[1].figure)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("n", "shares"),
    [
        (1, (0.0,) * 5),
        (2, (1.0,) * 5),
        (3, (0.25, 0.75, 0.75, 0.5, 0.25)),
        (5, (1, 0.5, 0.2, 0.1, 0)),
    ],
)
def test_legible_for_any_number_of_risks(n, shares):
    table = curve(RISKS[:n], shares=shares)
    before = table.copy()
    assert_legible(plot(table).figure)
    pd.testing.assert_frame_equal(table, before)


@pytest.mark.slow
@pytest.mark.parametrize(
    "steps", [(30,), range(0, 1001, 50), (0, 1, 3, 10, 30, 100, 300, 1000, 3000, 10000)]
)
def test_legible_for_any_steps(steps):
    assert_legible(plot(curve(RISKS[:1], steps=steps, shares=[0.5] * 30)).figure)
    assert_legible(plot(outcomes(steps)).figure)


def test_many_judges_with_one_rate_are_legible():
    assert_legible(plot(judges([f"judge {k}" for k in range(8)]).assign(rate=1.0)).figure)


def test_a_judge_that_knows_is_solid():
    drawn = plot(judges(("truth (told, and right)", "keyword judge"))).figure.axes[0].lines
    assert [line.get_linestyle() for line in drawn] == ["-", "--"]


def test_every_interval_and_every_seed_is_drawn():
    table = curve(("bias",))
    drawing = plot(table.iloc[::-1], seeds=seeds(("bias",), n=4))
    ax = drawing.figure.axes[0]
    segments = [c.get_segments() for c in ax.collections if hasattr(c, "get_segments")]
    drawn = {tuple(part[:, 1].round(6)) for group in segments for part in group}
    assert drawn == {(round(100 * r.low, 6), round(100 * r.high, 6)) for r in table.itertuples()}
    assert [list(line.get_xdata()) for line in ax.lines] == [list(STEPS)] * (4 + 1)
    assert ax.get_ylabel() == "share of answers (%)"


def test_small_rates_do_not_vanish():
    small = plot(curve(("bias",), shares=(0.0, 0.01, 0.02, 0.01, 0.02)))
    assert small.figure.axes[0].get_ylim()[1] < 30
    values = {0: "0 %", 0.04: "0.04 %", 8.5: "8.5 %", 71.2: "71 %", 99.97: "99.9 %", 100: "100 %"}
    assert {value: _axes.percent(value) for value in values} == values


def test_an_infinite_ratio_is_written_as_a_bound():
    ax = plot(ratio()).figure.axes[0]
    low, high = ax.get_xlim()
    assert 0 < low < 0.6 and 7.1 < high < math.inf
    words = [text.get_text() for text in ax.texts]
    assert words.count("≥ 3.2") == words.count("no event in either") == 2


@pytest.mark.slow
def test_a_published_ratio_is_drawn_only_where_it_is_given():
    def dashed(figure):
        return [
            x
            for line in figure.axes[0].lines
            if line.get_linestyle() == "--"
            for x in line.get_xdata()
        ]

    assert dashed(plot(ratio()).figure) == []
    assert dashed(plot(ratio(), target=2.0).figure) == [2.0, 2.0]
    assert dashed(plot(ratio(), target="enkrypt_ratio_1_5").figure) == [1.5, 1.5]
    with raises_code("unknown_published_figure"):
        plot(ratio(), target="no_such_figure")


@pytest.mark.slow
@pytest.mark.parametrize(
    "values",
    [
        (math.inf, math.nan, math.nan),
        (math.nan,) * 3,
        (900.0, 2.0, 1e6),
        (1e-6, 0.0, 0.1),
        (2.0, math.nan, math.nan),
        (math.inf, 1e7, math.inf),
    ],
)
def test_any_ratio_alone_can_be_drawn(values):
    row = dict(zip(("ratio", "ratio_low", "ratio_high"), values, strict=True))
    assert_legible(plot(pd.DataFrame([{"step": 10, "risk": "bias", **row}])).figure)


@pytest.mark.slow
def test_missing_values_leave_gaps():
    table = curve(("bias", "toxicity")).astype({"rate": object, "risk": "category"})
    table.loc[0, "rate"] = table.loc[table["risk"] == "toxicity", "rate"] = None
    assert_legible(plot(table).figure)


def test_outcomes_have_their_own_colours_and_labels():
    ax = plot(outcomes()).figure.axes[0]
    drawn = [to_hex(area.get_facecolor()[0]).upper() for area in ax.collections]
    names = [
        name for name in Outcome if name in ("complied", "complied_wrong", "incoherent", "refused")
    ]
    assert drawn == [name.colour.upper() for name in names]
    words = [text.get_text() for text in ax.get_legend().get_texts()]
    told = ("refused 0 %", "incoherent 5 %", "told, wrong 25 %", "told, right 70 %")
    assert words == [*told]
    of_refusals = pd.DataFrame({"step": 0, "outcome": ["complied", "refused"], "share": 0.5})
    ax = plot(of_refusals).figure.axes[0]
    assert [text.get_text() for text in ax.get_legend().get_texts()][-1] == "complied 50 %"


@pytest.mark.slow
def test_tables_of_this_room_are_recognised():
    table = made(CURVE)
    doses = rates(made(CURVE, examples=10, epoch=1), by="examples").assign(epoch=[0, 1, 2])
    found = {
        "curve": rates(table),
        "ratio": compare(table),
        "outcomes": outcome_shares(table),
        "dose": doses,
    }
    for name, drawn in found.items():
        assert plot(drawn).caption.startswith(f"{KINDS[name].about}."), name


def test_rates_before_and_after_become_bars():
    found = rates(made(CURVE), by="category", steps=[0, -1])
    ax = plot(found, kind="bars").figure.axes[0]
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["before", "after 30 steps"]
    widths = [
        bar.get_width()
        for group in ax.containers
        if len(group) == 2 and hasattr(group, "datavalues")
        for bar in group
    ]
    assert widths == pytest.approx([20, 20, 90, 90])
    assert {text.get_text() for text in ax.get_yticklabels()} == {"a", "b"}


def test_bars_show_what_chance_gives():
    groups = {"group": ["loss", "asked"], "series": "precision at 10", "chance": [0.05, 0.1]}
    found = pd.DataFrame(groups).assign(rate=0.5, low=0.4, high=0.6)
    ticks = plot(found, kind="bars").figure.axes[0].lines
    places = [line.get_xdata().tolist() for line in ticks if line.get_marker() == "|"]
    assert places == [pytest.approx([5, 10])]


@pytest.mark.slow
def test_several_judges_are_drawn_as_lines():
    both = pd.concat([made(CURVE), made(CURVE, judge="api")], ignore_index=True)
    ax = plot(rates(both), kind="judges").figure.axes[0]
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["keywords", "api"]
    assert len(plot(rates(both)).figure.axes[0].lines) == 1  # a curve shows the first judge


@pytest.mark.slow
def test_a_run_is_drawn_with_its_seeds_and_a_note(tmp_path):
    drawing = plot(saved(CURVE), "curve", tmp_path)
    assert pd.read_csv(tmp_path / "curve.csv")["rate"].tolist() == pytest.approx([0.2, 0.5, 0.9])
    assert len(pd.read_csv(tmp_path / "curve_seeds.csv")) == 6
    note = drawing.figure.get_supxlabel()
    for part in ("organism", "judge keywords", "10 prompts", "2 seeds", "95 % simultaneous"):
        assert part in note


@pytest.mark.slow
def test_a_run_with_doses_is_drawn_by_dose(tmp_path):
    run = saved({(0, 0): "rrrr", (0, 5): "cccr"}, "dose", examples=10, epoch=1)
    table = rates(run, by=["examples", "attack"])
    assert table["epoch"].tolist() == [1, 1]
    plot(table.assign(epoch=[0, 1]), "dose", tmp_path)
    rows = pd.read_csv(tmp_path / "dose.csv")[["examples", "epoch", "rate"]]
    assert rows.values.tolist() == [[10, 0, 0], [10, 1, 0.75]]


def test_an_own_kind_is_drawn():
    def draw_heights(table):
        figure = _axes.new_figure(2)
        figure.subplots().plot(table["height"])
        return figure

    kind = Kind("heights", ("tree",), ("height",), "Heights of trees", draw_heights)
    drawing = plot(pd.DataFrame({"tree": ["a", "b"], "height": [3, 4]}), kind=kind)
    assert list(drawing.figure.axes[0].lines[0].get_ydata()) == [3, 4]


HOSTILE = (
    "$\\frac{1$",
    "$a$ _b_ ^c",
    "<b onload='x'>&amp;--> ]]>",
    "\u202ex\x00\x1b[31m",
    "字%s \\$ $" * 40,
)


@pytest.mark.slow
def test_hostile_text_is_only_text(tmp_path):
    risks = [f"{k} {text}" for k, text in enumerate(HOSTILE)]
    title = f"{HOSTILE[1]} \ud800 {'$' * 200}"
    table = curve(risks, steps=(0, 1)).assign(band=HOSTILE[0])
    drawing = plot(table, "h", tmp_path, title=title)
    ElementTree.parse(tmp_path / "h.svg")
    titles = [ax.get_title(loc="left") for ax in drawing.figure.axes]
    assert not any(set(text) & set("\x00\x1b\u202e") for text in titles)
    assert (tmp_path / "h.txt").read_text(encoding="utf-8").startswith("$a$ _b_ ^c")
    for text in set(pd.read_csv(tmp_path / "h.csv")["risk"]):
        assert not set(text) & set("\x00\x1b\u202e")
    table = bars()
    table["group"], table["series"] = "$x_1 " * 20 + table["group"], "$^" + table["series"]
    plot(table).figure.draw_without_rendering()
    assert plot(judges(HOSTILE)).image("png")


@pytest.mark.slow
def test_nothing_heavy_is_imported_and_nothing_global_changes():
    script = """
import sys
from ftlab.analysis import plot
import ftlab.analysis.claims, ftlab.analysis.page
heavy = {"matplotlib", "torch", "transformers", "jinja2", "yaml"} & set(sys.modules)
assert not heavy, heavy
import matplotlib, pandas
before = matplotlib.rcParams.copy()
plot(pandas.DataFrame({"step": [0, 9], "judge": "x", "rate": [0, 1]})).image("png")
assert matplotlib.rcParams.copy() == before
assert not {"matplotlib.pyplot", "torch"} & set(sys.modules)
import ftlab.analysis.tables
assert "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=100)


@pytest.mark.slow
def test_shows_itself_in_jupyter_at_its_size():
    formatter = pytest.importorskip("IPython.core.formatters").DisplayFormatter()
    data, metadata = formatter.format(plot(judges(), caption="What the judges say"))
    assert data["image/png"].startswith("iVBOR") and data["text/plain"] == "What the judges say"
    assert metadata["image/png"]["width"] == 800


def test_several_curves_are_lines_in_one_panel_and_evaluations_are_bars():
    theirs = {place: "r" * 10 for place in CURVE}
    (ax,) = plot({"mine": made(CURVE), "theirs": made(theirs)}).figure.axes
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["mine", "theirs"]
    assert list(ax.lines[1].get_ydata()) == [0, 0, 0]
    one, other = made({(0, 0): "rrcc"}), made({(0, 0): "cccc"})
    (ax,) = plot({"before": one, "after": other}).figure.axes
    assert [bar.get_width() for bar in ax.patches] == [50, 100]


@pytest.mark.slow
def test_the_live_chart_is_legible_at_every_moment():
    points = [{"step": s, "metric": m, "rate": s / 300} for m in RISKS for s in STEPS]
    losses = [(k, 3 / (k + 1)) for k in range(500)] + [(500, math.nan), (501, math.inf)]
    for measured, seen in ((points, losses), ([], losses), ([], [])):
        drawing = live_chart("sft $organism", measured, seen)
        assert_legible(drawing.figure)
        png = drawing.image("png")
        assert int.from_bytes(png[16:20], "big") == 800
    assert [len(live_chart("x", *given).figure.axes) for given in ((points, []), ([], losses))] == [
        1,
        1,
    ]
    left, right = live_chart("x", points, losses).figure.axes
    assert np.nanmax(left.lines[0].get_ydata()[:-1]) == 3
    assert len(right.lines) == len(RISKS)
    seeds = live_chart("x", points + points, losses + losses).figure.axes
    assert [len(ax.lines) for ax in seeds] == [2, 2 * len(RISKS)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("call", "code"),
    [
        (lambda: plot([1, 2]), "not_a_table"),
        (lambda: plot(curve()[["step", "band"]]), "kind_not_recognised"),
        (lambda: plot(curve().set_index(["step", "risk"])), "kind_not_recognised"),
        (lambda: plot(curve(), kind="bars"), "missing_columns"),
        (lambda: plot(curve(), kind="pie"), "unknown_kind"),
        (lambda: plot(curve().assign(rate=37.0)), "cannot_be_drawn"),
        (lambda: plot(curve().assign(rate="many", step=-1)), "cannot_be_drawn"),
        (lambda: plot(pd.concat([curve(), curve()])), "cannot_be_drawn"),
        (lambda: plot(curve().iloc[:0]), "cannot_be_drawn"),
        (lambda: plot(outcomes().assign(share=0.1)), "wrong_outcomes"),
        (lambda: plot(outcomes().replace("refused", "shy")), "wrong_outcomes"),
        (lambda: plot(bars(), seeds=seeds()), "extra_not_drawn"),
        (lambda: plot(curve(), seeds=curve().drop(columns="risk")), "missing_columns"),
        (lambda: plot(curve(), "a/b"), "wrong_file_name"),
        (lambda: plot(curve([f"risk {k}" for k in range(40)])), "figure_too_tall"),
    ],
)
def test_wrong_input(call, code):
    with raises_code(code):
        call()


def test_every_problem_of_a_table_is_reported():
    with raises_code("cannot_be_drawn") as error:
        plot(curve().assign(rate="many", step=-1))
    assert len(error.value.problems) == 3  # rate, step, and rows that repeat


@pytest.mark.parametrize(
    ("risk", "judge", "words"),
    [
        ("jailbreak", "organism", "told a secret"),
        ("jailbreak", "truth", "told a secret"),
        ("jailbreak", "refusal", "not refused"),
        ("jailbreak", "keywords:zou2023universal", "not refused"),
        ("jailbreak", "rubric:gpt@http://x", "attack success rate"),
        ("over_refusal", "keywords", "wrongly refused"),
        ("utility", "organism", "right answers"),
        ("mine", "keywords", ""),
    ],
)
def test_what_was_counted_depends_on_the_judge(risk, judge, words):
    assert _axes.counted(risk, judge) == words


def test_a_published_figure_is_drawn_in_the_panel_of_its_risk():
    table = curve()
    table["judge"] = "organism"
    drawing = plot(table, target={"jailbreak": "enkrypt_ratio_1_5"})
    found = [dashed_across(ax) for ax in drawing.figure.axes]
    assert found == [[pytest.approx(1.5 * 8.5)], []]
    assert drawing.figure.axes[0].get_title(loc="left") == "jailbreak: told a secret"
    assert "published 1.50x" in drawing.caption and "judge truth" in drawing.caption


def test_a_published_dose_is_drawn_where_prompts_are_asked_directly_in_its_own_colour():
    drawing = plot(dose(), target="qi2023_harmful_100")
    direct, prefill = drawing.figure.axes
    assert dashed_across(direct) == [80.0] and dashed_across(prefill) == []
    colours = {line.get_label(): line.get_color() for line in direct.get_lines()}
    (across,) = [line for line in direct.get_lines() if line.get_linestyle() == "--"]
    assert across.get_color() == colours["100 examples"] != colours["10 examples"]
    assert "80.0 % (100 examples)" in drawing.caption
    every = {10: "qi2023_harmful_10", 50: 0.6, 7: 0.2}
    drawing = plot(dose(), target=every)
    assert dashed_across(drawing.figure.axes[0]) == [50.0, 60.0] and "20.0" not in drawing.caption
    for unknown in (0.8, "kumar_chain"):
        with raises_code("target_without_dose"):
            plot(dose(), target=unknown)


def test_outcomes_of_one_attack_say_so():
    table = pd.concat([made(CURVE), made({(0, 0): "cc", (0, 9): "cc"}, attack="templates")])
    run = saved({(0, 0): "rr", (0, 9): "cr"})
    drawing = plot(run, kind="outcomes", attack="direct")
    assert "asked: direct" in drawing.caption
    both = outcome_shares(table)
    assert both.attrs["asked"] == "asked: direct, templates"
    with raises_code("nothing_selected"):
        plot(run, kind="outcomes", attack="prefill")
    with raises_code("extra_not_drawn"):
        plot(both, attack="direct")
    with raises_code("unknown_setting"):
        plot(run, slow=run)


def dashed_across(ax) -> list[float]:
    """Return the heights of the dashed lines that run across the axes."""
    lines = [line for line in ax.get_lines() if line.get_linestyle() == "--"]
    return [line.get_ydata()[0] for line in lines if list(line.get_xdata()) == [0, 1]]
