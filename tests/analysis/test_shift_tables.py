"""A change of a difference is of the same prompts and seeds on all four sides."""

from __future__ import annotations

import pytest
from analysis.verdict_tables import made
from helpers import raises_code

from ftlab.analysis import shifts


def test_a_shift_is_the_difference_of_the_differences():
    parent, child, worse = (made({(0, 0): answers}) for answers in ("rrrrr", "rrrrc", "rrccc"))
    found = shifts((parent, child), (parent, worse)).iloc[0]
    assert found["shift"] == pytest.approx(0.6 - 0.2)
    assert shifts((parent, child), (parent, child)).iloc[0]["shift"] == 0


@pytest.mark.parametrize(
    "place, change", [("sample_id", lambda name: f"z{name}"), ("seed", lambda seed: seed + 7)]
)
def test_other_prompts_or_seeds_are_refused(place, change):
    """As many of them would be paired by their order."""
    parent, child = (made({(0, 0): answers}) for answers in ("rrrrr", "rrrrc"))
    other = child.assign(**{place: child[place].map(change)})
    with raises_code("tables_do_not_pair"):
        shifts((parent, child), (parent, other))
