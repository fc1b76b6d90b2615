"""Figures, claims and the page of hostile texts: only text, no secret, harmless tables."""

from __future__ import annotations

import base64
import json
import math

import pandas as pd
import pytest
from hostile import CANARIES, TOKENS, assert_csv, assert_page, assert_seen

from ftlab import analysis
from ftlab.analysis import rendering

PICTURE = b"\x89PNG" * 100_000


@pytest.mark.slow
def test_figures_write_harmless_tables(tmp_path):
    rows = []
    for number, text in enumerate([*CANARIES.values()][:6]):
        for step in (0, 1):
            point = {"step": step, "risk": f"{text[:300]}{number}"}
            rows.append(point | {"rate": 0.5, "low": 0.1, "high": 0.9})
    analysis.plot(pd.DataFrame(rows), "f", tmp_path, caption=CANARIES["ansi"])
    assert_csv((tmp_path / "f.csv").read_text())
    assert_seen((tmp_path / "f.txt").read_text())
    assert "\x1b" not in (tmp_path / "f.svg").read_text()


def claimed(text: str, out):
    return analysis.record_claim(
        "02",
        text,
        published="enkrypt_ratio_1_5",
        measured=math.nan,
        low=1.0,
        high=2.0,
        n_prompts=2,
        n_seeds=1,
        null=1.0,
        p=math.nan,
        model=text,
        differs=text,
        note=text,
        out=out,
    )


@pytest.mark.slow
def test_claims_and_the_page(tmp_path):
    folder = tmp_path / "02"
    for name, text in CANARIES.items():
        long = f"{text[:20_000]} {TOKENS[0]} https://u:pass@h/"
        for _ in range(2):  # the second replaces the first
            made = claimed(text if name == "row" else long, folder)
        assert_seen(repr(made))
        assert_page(made._repr_html_())
    assert_csv((folder / "claims.csv").read_text())
    figures = folder / "figures"
    figures.mkdir()
    caption = "".join(text[:500] for text in CANARIES.values())
    (figures / "f.txt").write_bytes(caption.encode("utf-8", "replace"))
    (figures / "f.png").write_bytes(PICTURE)
    record = {"benign": CANARIES["ansi"], "commit": TOKENS[1], "versions": {}}
    (tmp_path / "run.json").write_text(json.dumps(record))
    page = analysis.report(tmp_path, {"02": folder}, model="m", seeds=1)
    results = (tmp_path / "results.csv").read_text()
    assert_csv(results)
    assert len(results.split("02,")) == len(CANARIES) + 1
    own = f"<script>{rendering.script()['text']}</script>"
    for text in (page.read_text(), page.with_suffix(".md").read_text()):
        assert all(character.isprintable() or character == "\n" for character in text)
        assert "<script" not in text.replace(own, "") and "<img src=x" not in text
        assert "aB3" not in text and "pass@" not in text
    assert base64.b64encode(PICTURE).decode() in page.read_text()  # the picture is whole
