"""Settings of an evaluation: names count once, and there is at least one of each."""

from __future__ import annotations

import pytest
from helpers import raises_code

from ftlab.evals import EvaluationConfig


@pytest.mark.parametrize("field", ["risks", "attacks", "judges"])
def test_names_count_once_and_one_name_is_a_list(field):
    made = EvaluationConfig.make(**{field: ["b", "a", "b"]})
    assert getattr(made, field) == ("b", "a")
    assert getattr(EvaluationConfig.make(**{field: "a"}), field) == ("a",)


@pytest.mark.parametrize("field", ["attacks", "judges"])
def test_an_evaluation_needs_attacks_and_judges(field):
    with raises_code("wrong_setting") as info:
        EvaluationConfig.make(**{field: []})
    assert info.value.details["settings"] == [field]


def test_decoding_is_checked_too():
    assert EvaluationConfig.make(decoding={"temperature": 0.5}).decoding.temperature == 0.5
    for wrong in ({"temperature": -1}, {"top_p": 0}, {"top_k": -1}, {"beams": 3}):
        with raises_code("wrong_setting") as info:
            EvaluationConfig.make(decoding=wrong)
        assert info.value.details["settings"] == ["decoding"]
