"""Models from anywhere show themselves escaped; an address with a password is no model."""

from __future__ import annotations

import pytest
from hostile import CANARIES, assert_page

import ftlab as ft


def test_a_model_shows_itself_escaped(llama):
    model = ft.model(llama)
    for text in CANARIES.values():
        hostile = {**model.config, "architectures": [text], "hidden_size": text}
        model.__dict__["config"] = hostile
        assert_page(model._repr_html_())


@pytest.mark.parametrize(
    "where",
    ["https://user:pass@h/v1", "https://:pass@h/v1", "https://h/v1?key=pass", "ftp://u:pass@h"],
)
def test_an_address_with_a_password_is_no_model_and_not_repeated(where, runs_folder):
    """So that none can come into a run's provenance."""
    with pytest.raises(ValueError) as info:
        ft.model(f"api:m@{where}")
    assert info.value.code in ("endpoint_credentials", "wrong_endpoint")
    assert "pass" not in str(info.value)
    assert not runs_folder.exists()
