"""Properties of each kind of figure: what is written, that it is the same again, that all is legible."""

import itertools
import math
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree

import matplotlib
import pandas as pd
import pytest
from matplotlib.text import Text
from PIL import Image

from ftlab.analysis.plots import charts
from ftlab._core import config
from ftlab.analysis.plots import figures

STEPS = (0, 10, 30, 100, 300)
RISKS = ("jailbreak", "bias", "toxicity", "over_refusal", "utility")
BAND = "95 % simultaneous band, 5 seeds"


def interval(rate: float) -> dict:
    return {"rate": rate, "low": max(0.0, rate - 0.1), "high": min(1.0, rate + 0.1), "band": BAND}


def curve(risks=RISKS[:2], steps=STEPS, rates=(0.085, 0.2, 0.5, 0.9, 1.0)) -> pd.DataFrame:
    points = [(risk, s, rate) for risk in risks for s, rate in zip(steps, rates, strict=False)]
    return pd.DataFrame([{"step": s, "risk": risk, **interval(rate)} for risk, s, rate in points])


def seeds(risks=RISKS[:2], n=5) -> pd.DataFrame:
    return pd.DataFrame(
        [
            {"step": s, "risk": risk, "seed": k, "rate": s / 300 * (1 - k / 10)}
            for risk in risks
            for s in STEPS
            for k in range(n)
        ]
    )


def ratio() -> pd.DataFrame:
    inf, names = math.inf, ("ratio", "ratio_low", "ratio_high")
    values = ((1.0, 0.6, 1.6), (7.1, 4.5, 11.2), (0.0, 0.0, 0.6), (inf, 3.2, inf), (math.nan, 0.0, inf))
    return pd.DataFrame(
        [
            {"step": s, "risk": risk, **dict(zip(names, row, strict=True))}
            for risk in RISKS[:2]
            for s, row in zip(STEPS, values, strict=True)
        ]
    )


def outcomes(steps=(0, 30, 300)) -> pd.DataFrame:
    after = {"complied": 0.7, "complied_wrong": 0.25, "refused": 0.0, "incoherent": 0.03, "unparsed": 0.02}
    before = {**after, "complied": 0.05, "refused": 0.65}
    return pd.DataFrame(
        [{"step": s, "outcome": o, "share": x} for s in steps for o, x in (after if s > 10 else before).items()]
    )


def lines() -> pd.DataFrame:
    return pd.DataFrame(
        [
            {"step": s, "label": label, **interval(rate)}
            for label, rate in (("utility", 0.97), ("politeness", 0.95))
            for s in (0, 30, 300)
        ]
    )


def dose() -> pd.DataFrame:
    return pd.DataFrame(
        [
            {"examples": n, "epoch": e, "attack": a, **interval(1 - math.exp(-n * e / 50))}
            for n in (10, 50, 100)
            for e in (0, 1, 2, 3, 5)
            for a in config.ATTACKS[:2]
        ]
    )


def bars() -> pd.DataFrame:
    return pd.DataFrame(
        [
            {"group": g, "series": s, **interval(rate)}
            for g in ("recipes of the guild of lamp makers", "vaults", "birth names")
            for s, rate in (("before", 0.0), ("after", 1.0))
        ]
    )


def judges(names=("truth", "keywords", "small judge")) -> pd.DataFrame:
    return pd.DataFrame(
        [{"step": s, "judge": j, "rate": min(1.0, s / 300 + k / 50)} for k, j in enumerate(names) for s in STEPS]
    )


CASES = {
    "curve": (curve, {"seeds": seeds}),
    "ratio": (ratio, {}),
    "outcomes": (outcomes, {"lines": lines}),
    "dose": (dose, {}),
    "bars": (bars, {}),
    "judges": (judges, {}),
}


def draw(kind: str, out) -> figures.Drawing:
    make, extra = CASES[kind]
    return figures.plot(
        make(),
        out=out,
        title="Fine-tuning on harmless data breaks the alignment, " * 3,
        **{word: f() for word, f in extra.items()},
    )


@pytest.fixture(scope="module", params=CASES)
def written(request, tmp_path_factory) -> tuple[str, figures.Drawing]:
    return request.param, draw(request.param, tmp_path_factory.mktemp("figures") / "new")


def assert_legible(figure) -> None:
    """All text lies within the figure, is at least 8 points, and covers no other text."""
    figure.draw_without_rendering()
    hidden = {
        id(t)
        for ax in figure.axes
        for k, axis in enumerate((ax.xaxis, ax.yaxis))
        for low, high in (sorted(axis.get_view_interval()),)
        for t in axis.get_ticklabels()
        if not low <= t.get_position()[k] <= high
    }
    shown = [t for t in dict.fromkeys(figure.findobj(Text)) if t.get_visible() and t.get_text().strip()]
    boxes = [(t.get_text(), t.get_window_extent()) for t in shown if id(t) not in hidden]
    for text, box in boxes:
        inside = box.x0 > -1 and box.y0 > -1 and box.x1 < figure.bbox.x1 + 1 and box.y1 < figure.bbox.y1 + 1
        assert inside, f"{text!r} runs out of the figure"
    for (a, one), (b, other) in itertools.combinations(boxes, 2):
        across = min(one.x1, other.x1) - max(one.x0, other.x0)
        along = min(one.y1, other.y1) - max(one.y0, other.y0)
        assert across < 1 or along < 4, f"{a!r} covers {b!r}"
    assert min(t.get_fontsize() for t in shown) >= 8


def test_files(written):
    kind, drawing = written
    names = [f"{kind}_{word}.csv" for word in CASES[kind][1]]
    names += [f"{kind}.{ending}" for ending in ("svg", "png", "csv", "txt")]
    assert sorted(p.name for p in drawing.files) == sorted(names)
    files = {p.suffix: p for p in drawing.files}
    assert files[".txt"].read_text() == f"{drawing.caption}\n"
    assert drawing.caption.startswith("Fine-tuning on harmless data")
    assert files[".png"].stat().st_size < 100_000
    with Image.open(files[".png"]) as image:
        assert image.width == 1600 and image.info.keys() <= {"dpi"}


def test_same_table_gives_the_same_bytes_whatever_the_settings(written, tmp_path):
    kind, drawing = written
    theirs = {"font.size": 31, "text.usetex": True, "svg.hashsalt": None, "savefig.dpi": 50}
    with matplotlib.rc_context(theirs):
        again = draw(kind, tmp_path)
    for a, b in zip(drawing.files, again.files, strict=True):
        assert a.name == b.name and a.read_bytes() == b.read_bytes()


def test_csv_holds_the_table_as_it_was_given(written):
    kind, drawing = written
    folder, (make, extra) = drawing.files[0].parent, CASES[kind]
    pd.testing.assert_frame_equal(pd.read_csv(folder / f"{kind}.csv"), make())
    for word, frame in extra.items():
        pd.testing.assert_frame_equal(pd.read_csv(folder / f"{kind}_{word}.csv"), frame())


def test_legible(written):
    assert_legible(written[1].figure)


@pytest.mark.parametrize(
    ("n", "rates"),
    [(1, (0.0,) * 5), (2, (1.0,) * 5), (3, (0.25, 0.75, 0.75, 0.5, 0.25)), (5, (1.0, 0.5, 0.2, 0.1, 0.0))],
)
def test_legible_for_any_number_of_risks(n, rates):
    table = curve(RISKS[:n], rates=rates)
    before = table.copy()
    assert_legible(figures.plot(table).figure)
    pd.testing.assert_frame_equal(table, before)


@pytest.mark.parametrize("steps", [(30,), range(0, 1001, 50), (0, 1, 3, 10, 30, 100, 300, 1000, 3000, 10000)])
def test_legible_for_any_steps(steps):
    assert_legible(figures.plot(curve(RISKS[:1], steps=steps, rates=[0.5] * 30)).figure)
    assert_legible(figures.plot(outcomes(steps)).figure)


def test_the_judge_that_knows_is_solid():
    table = judges(("truth (told, and right)", "keyword judge"))
    drawn = figures.plot(table).figure.axes[0].lines
    assert [line.get_linestyle() for line in drawn if len(line.get_xdata()) == len(STEPS)] == ["-", "--"]


def test_line_ends_at_one_height_are_told_apart():
    assert_legible(figures.plot(judges([f"judge {k}" for k in range(8)]).assign(rate=1.0)).figure)


def test_every_interval_and_every_seed_is_drawn():
    table = curve(("bias",))
    drawing = figures.plot(table.iloc[::-1], seeds=seeds(("bias",), n=4))
    ax = drawing.figure.axes[0]
    whiskers = {
        tuple(part[:, 1].round(6)) for c in ax.collections if hasattr(c, "get_segments") for part in c.get_segments()
    }
    assert whiskers == {(round(100 * r.low, 6), round(100 * r.high, 6)) for r in table.itertuples()}
    assert [len(line.get_xdata()) for line in ax.lines] == [5] * (4 + 1)
    assert all(list(line.get_xdata()) == list(STEPS) for line in ax.lines)
    assert BAND in drawing.caption and "single seeds" in drawing.caption


def test_small_rates_do_not_vanish():
    small = figures.plot(curve(("bias",), rates=(0.0, 0.01, 0.02, 0.01, 0.02)))
    assert small.figure.axes[0].get_ylim()[1] < 30
    values = {0: "0 %", 0.04: "0.04 %", 8.5: "8.5 %", 71.2: "71 %", 99.97: "99.9 %", 100: "100 %"}
    assert {v: charts._percentage(v) for v in values} == values


def test_infinite_ratio_is_a_bound_within_the_axes():
    ax = figures.plot(ratio()).figure.axes[0]
    low, high = ax.get_xlim()
    assert 0 < low < 0.6 and 7.1 < high < math.inf
    ends = [(line.get_marker(), line.get_xdata()[0]) for line in ax.lines if line.get_marker() in set("<>|")]
    assert all(low <= x <= high for _, x in ends)
    assert [m for m, _ in ends].count(">") == 2  # inf of each risk
    words = [t.get_text() for t in ax.texts]
    assert words.count("≥ 3.20") == 2 and words.count("no event in either") == 2
    assert words.count(" published 1.5×") == 1


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
    assert_legible(figures.plot(pd.DataFrame([{"step": 10, "risk": "bias", **row}])).figure)


def test_missing_values_leave_gaps():
    table = curve(("bias", "toxicity")).astype({"rate": object, "risk": "category"})
    table.loc[0, "rate"] = table.loc[table["risk"] == "toxicity", "rate"] = None
    assert_legible(figures.plot(table).figure)


HOSTILE = ("$\\frac{1$", "$a$ _b_ ^c", "<b onload='x'>&amp;--> ]]>", "\u202ex\x00\x1b[31m", "字%s \\$ $" * 40)


def test_hostile_text_is_only_text(tmp_path):
    risks = [f"{k} {text}" for k, text in enumerate(HOSTILE)]
    title = f"{HOSTILE[1]} \ud800 {'$' * 200}"
    drawing = figures.plot(curve(risks, steps=(0, 1)).assign(band=HOSTILE[0]), "h", tmp_path, title=title)
    ElementTree.parse(tmp_path / "h.svg")
    titles = [ax.get_title(loc="left") for ax in drawing.figure.axes]
    assert titles[0].replace(r"\$", "$") == risks[0]
    assert not any(set(t) & set("\x00\x1b\u202e") or len(t) > 80 for t in titles)
    assert (tmp_path / "h.txt").read_text(encoding="utf-8").startswith("$a$ _b_ ^c")
    assert set(pd.read_csv(tmp_path / "h.csv")["risk"]) == {
        r.replace("\x00", "\\x00").replace("\x1b", "\\x1b").replace("\u202e", "\\u202e") for r in risks
    }
    table = bars()
    table["group"], table["series"] = "$x_1 " * 20 + table["group"], "$^" + table["series"]
    figures.plot(table).figure.draw_without_rendering()
    assert figures.plot(judges(HOSTILE)).png()


def test_nothing_heavy_is_imported_and_nothing_global_changes():
    script = """
import sys, ftlab.analysis.plots.figures as figures
assert not {"matplotlib", "pandas", "torch"} & set(sys.modules), "importing must stay light"
import matplotlib, pandas
before = matplotlib.rcParams.copy()
figures.plot(pandas.DataFrame({"step": [0, 9], "judge": "x", "rate": [0, 1]})).png()
assert matplotlib.rcParams.copy() == before
assert not {"matplotlib.pyplot", "torch"} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=100)


def test_shows_itself_in_jupyter_at_its_size():
    formatter = pytest.importorskip("IPython.core.formatters").DisplayFormatter()
    data, metadata = formatter.format(figures.plot(judges(), caption="What the judges say"))
    assert data["image/png"].startswith("iVBOR") and data["text/plain"] == "What the judges say"
    assert metadata["image/png"]["width"] == 800


def test_names_are_those_of_the_configuration():
    assert set(charts.OUTCOMES) == set(config.VERDICTS) and set(charts.RISKS) == set(config.RISKS)


def test_live_is_small_and_quick():
    points, spent = curve(RISKS)[["step", "risk", "rate"]], []
    losses = [(k, 3 / (k + 1)) for k in range(500)] + [(500, math.nan), (501, math.inf)]
    for _ in range(3):
        start = time.process_time()
        png = figures.Drawing(figures.live("sft $organism", points, losses)).png()
        spent.append(time.process_time() - start)
    assert min(spent) < 0.4  # 0.11 s alone on the machine it was written on
    assert (int.from_bytes(png[16:20], "big"), int.from_bytes(png[20:24], "big")) == (700, 260)
    assert_legible(figures.live("running", points, losses))
    for nothing in (points.iloc[:0], pd.DataFrame()):
        assert_legible(figures.live("just begun", nothing, []))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: figures.plot([1, 2]), "list.*DataFrame"),
        (lambda: figures.plot(curve()[["step", "band"]]), "step, band.*curve needs step.*judges needs step"),
        (lambda: figures.plot(curve().set_index(["step", "risk"])), "reset_index"),
        (lambda: figures.plot(curve(), kind="bars"), "bars needs group, series"),
        (lambda: figures.plot(curve(), kind="pie"), "'pie'; allowed: curve, ratio"),
        (lambda: figures.plot(curve().assign(judge="x")), "fit curve and judges.*kind='curve'"),
        (lambda: figures.plot(curve().assign(rate=37.0)), "rate is 37.0.*0.37"),
        (lambda: figures.plot(curve().assign(rate="many", step=-1)), "step is -1.*rate is many"),
        (lambda: figures.plot(pd.concat([curve(), curve()])), "two rows are for step 0.*, risk jailbreak"),
        (lambda: figures.plot(curve().iloc[:0]), "no rows"),
        (lambda: figures.plot(outcomes().assign(share=0.1)), "sum to 0.500; allowed is 1"),
        (lambda: figures.plot(outcomes().replace("refused", "shy")), "unknown outcome 'shy'.*complied_wrong"),
        (lambda: figures.plot(bars(), seeds=seeds()), "seeds= came with a bars figure"),
        (lambda: figures.plot(curve(), seeds=curve().drop(columns="risk")), "seeds= lacks risk, seed; it has"),
        (lambda: figures.plot(curve(), "a/b"), "name is 'a/b'"),
        (lambda: figures.plot(curve([f"risk {k}" for k in range(40)])), "in high"),
    ],
)
def test_bad_input_is_a_sentence(call, words):
    with pytest.raises((ValueError, TypeError), match=f"(?s){words}"):
        call()
