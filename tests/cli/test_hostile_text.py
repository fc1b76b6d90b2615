"""Tables and failures on the command line show nothing that acts and no secret."""

from __future__ import annotations

import pandas as pd
import pytest
from hostile import CANARIES, TOKENS_IN_TEXT, assert_seen

from ftlab import cli
from ftlab._core.errors import FtlabError, UsageError
from ftlab._core.text import encodable
from ftlab.cli import commands


def test_tables(capsys):
    columns = {encodable(text[:1000]): [encodable(text), 1.5] for text in CANARIES.values()}
    commands.print_table(pd.DataFrame(columns))
    assert_seen(capsys.readouterr().out)


KINDS = {UsageError: 2, FtlabError: 2, ValueError: 2, FileNotFoundError: 2, KeyError: 1}


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_failures(kind, monkeypatch, capsys):
    for text in (*CANARIES.values(), *TOKENS_IN_TEXT):
        error = kind("a_code", text) if issubclass(kind, FtlabError) else kind(text)

        def app(error=error, **_):
            raise error

        monkeypatch.setattr(commands, "app", app)
        with pytest.raises(SystemExit) as info:
            cli.main()
        assert info.value.code == KINDS[kind]
        shown = capsys.readouterr().err
        assert_seen(shown, 25_000)
        assert shown.startswith("ftlab: ") and "aB3" not in shown and "pass@" not in shown
