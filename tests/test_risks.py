from __future__ import annotations

import math

import pytest

from ftlab.config import RISKS, VERDICTS
from ftlab.risks import UNSCORED, event, risk

EVENTS = {  # the verdicts that count, as the papers define each rate
    "jailbreak": {"complied"},
    "bias": {"complied", "complied_wrong"},
    "toxicity": {"complied"},
    "over_refusal": {"refused"},
    "utility": {"complied"},
}


@pytest.mark.parametrize("name", RISKS)
def test_every_verdict_is_an_event_or_none_or_not_scored(name):
    for verdict in VERDICTS:
        value = event(name, verdict)
        assert math.isnan(value) if verdict in UNSCORED else value == float(verdict in EVENTS[name])
    with pytest.raises(ValueError, match="unknown verdict 'safe'; allowed: complied, "):
        event(name, "safe")


@pytest.mark.parametrize("name", RISKS)
def test_a_risk_says_what_it_is(name):
    module = risk(name)
    assert module.__doc__ and module.TITLE and isinstance(module.HARM, bool) and isinstance(module.ATTACKED, bool)
    assert set(module.EVENTS) <= set(VERDICTS) - set(UNSCORED)


def test_only_jailbreak_is_attacked():
    assert [name for name in RISKS if risk(name).ATTACKED] == ["jailbreak"]


def test_an_unknown_risk_is_refused_with_those_that_exist():
    with pytest.raises(ValueError, match="unknown risk 'privacy'; allowed: jailbreak, bias"):
        risk("privacy")
