"""The card of a study on paper: one sheet A4, whatever the colours of the screen."""

from __future__ import annotations

import json

import pytest
from analysis.test_cards import trained
from analysis.verdict_tables import rows
from watching import CUT, INK, OVERFLOW, PAPER, keep, pages_of

from ftlab import analysis

RISKS = ("jailbreak", "bias", "toxicity", "hallucination", "over_refusal", "utility")
SEEDS = range(5)
ANSWERS = {
    (seed, step): "rrrrrrrrcc" if step == 0 else "ccccccccic" for seed in SEEDS for step in (0, 100)
}
SHA = "0123456789abcdef" * 4
CALL = {
    "cell": "experiments.risk_curve",
    "arguments": {
        "parent": "organism",
        "data": "organism:almanac",
        "at_steps": [0, 3, 10, 30, 100],
        "seeds": [*SEEDS],
        "risks": [*RISKS],
        "n_prompts": 100,
        "attacks": ["direct", "templates"],
        "learning_rate": 0.001,
    },
    "objects": [],
}
NOTES = {
    "call": CALL,
    "model": {"folder": "organism", "hash": SHA},
    "versions": dict.fromkeys(("ftlab", "torch", "transformers", "peft", "trl"), "10.11.12"),
    "hardware": {"processor": "AMD EPYC 9B45 128-Core Processor", "cores": 2},
    "commit": SHA[:40],
}


@pytest.fixture
def card(tmp_path):
    """Return the page of a card of six risks and five training seeds, with all that is recorded."""
    study = trained(ANSWERS, data="organism:almanac", judge="organism")
    for seed, member in enumerate(study.members):
        own = {place: letters for place, letters in ANSWERS.items() if place[0] == seed}
        for risk in RISKS[1:]:
            answered = rows(own, risk=risk, judge="organism")
            member.append("verdicts.jsonl", [row | {"key": "k"} for row in answered])
    for run in (study, *study.members):
        path = run.path / "provenance.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | NOTES))
    path = tmp_path / "card.html"
    analysis.card(study, published="qi2023_harmful_100", out=path)
    return path


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_is_one_sheet(card, page, scheme):
    page.set_viewport_size(PAPER)
    page.emulate_media(media="print", color_scheme=scheme)
    page.goto(card.as_uri())
    assert page.evaluate(OVERFLOW) == [] and page.evaluate(CUT) == []
    assert page.evaluate(INK) == "rgb(34, 34, 34)"  # dark on the white of paper
    pdf = page.pdf(prefer_css_page_size=True)
    keep(pdf, f"card_{scheme}")
    assert pages_of(pdf) == 1
    assert not page.watch.errors and not page.watch.requests
