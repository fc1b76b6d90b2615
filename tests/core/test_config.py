"""Settings: declared once, shown in signature and docstring, all problems reported at once."""

from __future__ import annotations

import inspect
import math
from typing import Literal

import pytest
from helpers import raises_code
from pydantic import field_validator

from ftlab._core.config import Config, describe, setting, takes, unknown_setting
from ftlab._core.errors import Interrupted


class Oven(Config):
    heat: float = setting(180.0, "Temperature in degrees Celsius", gt=0, le=300)
    shelves: int = setting(1, "Shelves in use", ge=1)
    mode: Literal["fan", "grill"] = setting("fan", "Where the heat comes from")
    label: str | None = setting(None, "Name of the dish")

    @field_validator("label")
    @classmethod
    def _short(cls, label):
        if label and len(label) > 9:
            raise ValueError("give at most 9 letters")
        return label


class Timer(Config):
    minutes: int = setting(30, "Time in minutes.", ge=1)


@takes(Oven, Timer, omit=["label"])
def bake(dish, *, heat=200.0, times: int = 1, **settings):
    """Bake a dish.

    Args:
        dish: What is baked.
        {settings}

    Returns:
        What came out.
    """
    return dish, heat, times, settings


# Config.make


def test_none_means_the_default_and_settings_do_not_change():
    assert Oven.make(heat=None, label=None) == Oven()
    with pytest.raises(ValueError):
        Oven().heat = 5


def test_a_wrong_name_within_a_setting_is_answered_by_the_names_it_has():
    class Kitchen(Config):
        oven: Oven = setting(Oven(), "The oven")

    with raises_code("wrong_setting") as info:
        Kitchen.make(oven={"heet": 200})
    assert "'heet'" in str(info.value) and "'heat'" in str(info.value)


def test_all_problems_are_reported_at_once():
    with raises_code("wrong_setting") as info:
        Oven.make(heat=-1, shelves=0, mode="steam", label="a long label", shelfs=2)
    assert info.value.details["settings"] == ["heat", "shelves", "mode", "label", "shelfs"]
    message = str(info.value)
    assert "-1" in message and "at most 9 letters" in message and "'shelves'" in message


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan, 0, -1, 301, "hot"])
def test_limits_hold_and_a_number_is_finite(value):
    with raises_code("wrong_setting") as info:
        Oven.make(heat=value)
    assert info.value.details["settings"] == ["heat"]


def test_a_default_that_breaks_its_own_limits_is_found():
    class Broken(Config):
        shelves: int = setting(0, "Shelves", ge=1)

    with raises_code("wrong_setting"):
        Broken.make()


# takes


def test_the_signature_shows_every_setting_with_its_default_and_type():
    parameters = inspect.signature(bake).parameters
    assert list(parameters) == ["dish", "heat", "times", "shelves", "mode", "minutes"]
    assert parameters["heat"].default == 200.0  # the cell's own wins
    assert parameters["shelves"].default == 1 and parameters["minutes"].default == 30
    assert parameters["mode"].annotation == Literal["fan", "grill"]
    assert parameters["minutes"].kind is inspect.Parameter.KEYWORD_ONLY


def test_the_docstring_has_one_line_per_setting():
    lines = [line.strip() for line in bake.__doc__.splitlines()]
    assert "{settings}" not in bake.__doc__ and "label" not in bake.__doc__
    assert "shelves: Shelves in use. Default: 1." in lines
    assert "minutes: Time in minutes. Default: 30." in lines
    assert lines.index("dish: What is baked.") < lines.index("shelves: Shelves in use. Default: 1.")
    assert bake.__name__ == "bake"


def test_the_cell_gets_what_was_given():
    assert bake("pie") == ("pie", 200.0, 1, {})
    given = bake("pie", heat=90.0, times=2, shelves=3, minutes=5)
    assert given == ("pie", 90.0, 2, {"shelves": 3, "minutes": 5})


@pytest.mark.parametrize(("wrong", "near"), [("shelfs", "shelves"), ("heatt", "heat")])
def test_an_unknown_setting_is_an_error_with_the_nearest_name(wrong, near):
    with raises_code("unknown_setting") as info:
        bake("pie", **{wrong: 2})
    assert info.value.details["settings"] == [wrong] and f"'{near}'" in str(info.value)


def test_an_omitted_setting_is_unknown_and_so_is_every_other_name():
    with raises_code("unknown_setting") as info:
        bake("pie", label="x", zzz=1)
    assert info.value.details["settings"] == ["label", "zzz"]
    with raises_code("unknown_setting") as info:
        bake("pie", zzz=1)
    names = ("dish", "heat", "times", "shelves", "mode", "minutes")
    assert all(name in str(info.value) for name in names)


def test_the_cell_does_not_run_with_an_unknown_setting():
    ran = []

    @takes(Timer)
    def cell(**settings):
        ran.append(settings)

    with raises_code("unknown_setting"):
        cell(minuts=1)
    cell(minutes=1)
    assert ran == [{"minutes": 1}]


def test_descriptions():
    assert describe(Oven.model_fields["label"]) == "Name of the dish."
    assert describe(Timer.model_fields["minutes"]) == "Time in minutes. Default: 30."
    error = unknown_setting(["x"], ["b", "a"])
    assert error.code == "unknown_setting" and "a, b" in str(error)


def test_a_missing_argument_is_a_sentence():
    with raises_code("wrong_call"):
        bake()
    with raises_code("wrong_call"):
        bake("pie", 200)


def test_an_interrupt_says_how_to_go_on():
    @takes(Timer)
    def wait(words=(), **settings):
        raise KeyboardInterrupt(*words)

    for words in ((), ("Stopped at step 3.",)):
        with pytest.raises(Interrupted) as info:
            wait(words)
        assert str(info.value) == (
            words[0] if words else "Interrupted. The same call takes over what was finished."
        )
