"""What `docs/build.py` writes: a reference of public names, and pages that share one style."""

from __future__ import annotations

import re
from importlib import import_module
from pathlib import Path

import pytest

import ftlab
from docs import build

PAGES = sorted(build.PAGES.glob("*.html"))
OF_0_3 = ("before_after", "by_seed", "crossing", "no_refusal")  # functions that became options


PLACEHOLDER = re.compile(r"\b(MEASURED|TODO|TBD|FIXME|XXX)\b")


def test_no_page_holds_a_placeholder():
    root = Path(build.__file__).parent
    pages = [*root.glob("*.md"), *root.parent.glob("*.md")]
    assert len(pages) > 10
    found = [page.name for page in pages if PLACEHOLDER.search(page.read_text(encoding="utf-8"))]
    assert found == []


def test_the_reference_lists_every_verb_and_nothing_that_a_face_lacks():
    listed = set()
    for face, names in build.PUBLIC.items():
        assert set(names.split()) <= set(import_module(f"ftlab.{face}").__all__), face
        listed |= {f"{face}.{name}" for name in names.split()}
    verbs = {f"{room}.{verb}" for room, own in ftlab._VERBS.items() for verb in own}
    unlisted = (verbs | set(ftlab._MOVED.values())) - listed
    assert unlisted == {f"analysis.{name}" for name in OF_0_3}


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_a_page_takes_its_style_from_the_sheet_beside_it(path: Path):
    page = path.read_text(encoding="utf-8")
    assert build.STYLE in page and (build.PAGES / "page.css").is_file()
    assert page.count("<style") == 1 and "<script" not in page and "<!--" not in page
    assert len(page) < build.MOST_BYTES


def test_what_nbconvert_writes_for_its_own_look_is_left_out():
    page = build.with_shared_style(
        "<head><style>a\n{}</style><script>b</script><!-- c --></head><style scoped>d</style>e"
    )
    assert page == f"<head>{build.STYLE}\n</head>e"


def test_the_page_of_published_figures_is_written_from_their_files():
    assert build.PUBLISHED.read_text(encoding="utf-8") == build.published()
