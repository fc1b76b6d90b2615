"""What tests of every room share."""

from __future__ import annotations

from contextlib import contextmanager

import pytest

from ftlab._core.errors import FtlabError


@contextmanager
def raises_code(code: str):
    """Expect an error of ftlab with this code; yields pytest's exception info."""
    with pytest.raises(FtlabError) as info:
        yield info
    assert info.value.code == code, f"{info.value.code}: {info.value}"
