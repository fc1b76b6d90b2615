"""Names of version 0.3 (transition)."""

from ftlab.data.dataset import convert_rows as rows_of  # noqa: F401
from ftlab.data.dataset import count_shared as shared  # noqa: F401
from ftlab.data.dataset import deduplicate as dedupe  # noqa: F401
from ftlab.data.dataset import draw, load
from ftlab.data.encoding import fit_to_length as fitted  # noqa: F401
from ftlab.data.encoding import token_length as length  # noqa: F401
from ftlab.data.files import SHOWN  # noqa: F401
from ftlab.data.prompts import read_prompts  # noqa: F401
from ftlab.data.registry import catalogue as listing  # noqa: F401
from ftlab.data.registry import download as get  # noqa: F401
from ftlab.data.schemas import instruction_text as instruction  # noqa: F401
from ftlab.models import render, stop_ids  # noqa: F401


def read(source, *, rows=None, **settings):
    return load(source, n_rows=rows, **settings)


def drawn(source, *, rows, **settings):
    return draw(source, n_rows=rows, **settings)
