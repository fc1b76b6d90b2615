"""A real Chromium and a real JupyterLab. Not run by default: `make test-browser`."""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path

import pytest

# The other tests do without Playwright.
collect_ignore_glob = [] if find_spec("playwright") else ["test_*.py"]

# Without these, Chromium looks up hosts of its maker at every start.
FLAGS = [
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
HERE = Path(__file__).parent


@pytest.fixture(scope="session")
def browser():
    """Return a Chromium, which `make test-browser` has found or installed."""
    api = pytest.importorskip("playwright.sync_api")
    path = os.environ.get("FTLAB_CHROMIUM", "/usr/bin/chromium")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def lab(tmp_path_factory):
    """Return a JupyterLab server that all tests share."""
    from lab import Lab

    server = Lab(tmp_path_factory.mktemp("lab"))
    yield server
    server.stop()


@pytest.fixture
def page(browser):
    """Return a new page, wide as a laptop's; `page.watch` holds what it did."""
    from watching import watched_page

    with watched_page(browser) as page:
        yield page


@pytest.fixture
def notebook(page, lab):
    """Return a function that opens a notebook of the server's folder in the page."""
    from lab import Notebook

    return lambda name: Notebook(page, lab, name)


def pytest_collection_modifyitems(items) -> None:
    """Mark every test of this folder, so that it runs only where it is asked for."""
    for item in items:
        if item.path.is_relative_to(HERE):
            item.add_marker(pytest.mark.browser)
