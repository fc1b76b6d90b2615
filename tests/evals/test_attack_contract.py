"""What holds for every attack that is found by its place."""

from __future__ import annotations

import copy
import dataclasses

import pytest
from helpers import raises_code

from ftlab._core import plugins
from ftlab.evals.attacks import (
    Attack,
    BestOfN,
    DecodingSweep,
    Direct,
    Identity,
    Prefill,
    Templates,
    Trigger,
    open_attack,
)
from ftlab.evals.risks import open_risk

NAMES = plugins.names("attacks")
WITH_SETTINGS = {
    "prefill:3": Prefill(tokens=3),
    "decoding:quick": DecodingSweep(quick=True),
    "decoding:top_k+no_system": DecodingSweep(axes=("top_k",), no_system=True),
    "best_of_n:4": BestOfN(n=4),
    "trigger:two words": Trigger("two words"),
}


@pytest.mark.parametrize("name", NAMES)
def test_an_attack_declares_what_it_is(name):
    kind = plugins.get("attacks", name)
    assert issubclass(kind, Attack) and dataclasses.is_dataclass(kind)
    assert kind.name == name == kind().spec and kind.version
    with pytest.raises(dataclasses.FrozenInstanceError):
        kind().n = 1


@pytest.mark.parametrize("spec", [*NAMES, *WITH_SETTINGS])
def test_an_attack_keeps_samples_and_numbers_its_attempts(world, spec):
    samples = open_risk("jailbreak").organism(world, 40)
    before = copy.deepcopy(samples)
    attack = open_attack(spec)
    prompts = attack.apply(samples)
    assert samples == before and prompts == attack.apply(samples)
    several = len(prompts) // len(samples)
    for number, prompt in enumerate(prompts):
        assert prompt.sample == samples[number // several] and prompt.attack == spec
        assert (prompt.attempt or 0) == number % several
        assert (prompt.attempt is None) == (several == 1)
        assert prompt.messages[-1]["role"] == "user" and prompt.wording


@pytest.mark.parametrize("spec", WITH_SETTINGS)
def test_a_name_with_an_argument_stands_for_an_object(spec):
    assert open_attack(spec) == WITH_SETTINGS[spec]
    assert WITH_SETTINGS[spec].spec == spec
    assert open_attack(WITH_SETTINGS[spec]) is WITH_SETTINGS[spec]


def test_the_order_of_attacks():
    assert list(plugins.find("attacks").values()) == [
        Direct,
        Templates,
        Prefill,
        DecodingSweep,
        BestOfN,
        Trigger,
        Identity,
    ]


@pytest.mark.parametrize(
    ("spec", "code"),
    [
        ("gcg", "unknown_attack"),
        ("gcg:5", "unknown_attack"),
        ("", "unknown_attack"),
        ("prefill:", "attack_argument"),
        ("templates:", "attack_argument"),
        ("trigger:", "attack_argument"),
        ("decoding:", "attack_argument"),
        ("direct:1", "attack_argument"),
        ("prefill:no", "attack_argument"),
        ("best_of_n:0", "attack_argument"),
        ("best_of_n:10001", "attack_argument"),
        ("decoding:heat", "attack_argument"),
        ("trigger:", "attack_argument"),
        ("identity:", "attack_argument"),
        ("decoding:quick+top_p", "attack_argument"),
    ],
)
def test_a_wrong_name_or_argument_is_an_error(spec, code):
    with raises_code(code):
        open_attack(spec)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Prefill(tokens=0),
        lambda: BestOfN(n=0),
        lambda: DecodingSweep(axes=("heat",)),
        lambda: DecodingSweep(axes=("top_p",), quick=True),
    ],
)
def test_a_wrong_setting_of_an_object_is_an_error(make):
    with raises_code("attack_argument"):
        make()
