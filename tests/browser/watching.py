"""Pages that are watched: what they ask, fetch and report, and what in them is markup."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path

from markup import MARK, MARKUP

OWN = ("http://127.0.0.1:", "file:", "data:", "blob:")  # addresses that a page may open
FORMULA = "mjx-container, .MathJax"
LAPTOP = {"width": 1280, "height": 800}
PAPER = {"width": 688, "height": 1017}  # A4 within margins of 14 mm, in pixels
# What is wider than the window, so that the page is scrolled sideways.
OVERFLOW = """() => document.documentElement.scrollWidth > window.innerWidth
    ? [...document.querySelectorAll("body *")]
        .filter(one => one.getBoundingClientRect().right > window.innerWidth + 1)
        .map(one => one.outerHTML.slice(0, 120))
    : []"""
# What holds more than it shows, which on paper nobody can scroll.
CUT = """() => [...document.querySelectorAll("body *")]
    .filter(one => getComputedStyle(one).overflow !== "visible" && one.clientWidth)
    .filter(one => one.scrollWidth > one.clientWidth + 1 || one.scrollHeight > one.clientHeight + 1)
    .map(one => one.outerHTML.slice(0, 120))"""
INK = "getComputedStyle(document.body).color"
PAGE_OF_PDF = re.compile(rb"/Type\s*/Page\b")


class Watch:
    """What a page did that no page of ftlab may do.

    Args:
        page: A page that has not been opened yet.
    """

    def __init__(self, page):
        self.dialogs: list[str] = []
        self.errors: list[str] = []
        self.requests: list[str] = []  # to anything but this machine
        page.on("dialog", self._dialog)
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("console", self._console)
        page.context.route(lambda address: True, self._route)

    def _dialog(self, dialog) -> None:
        self.dialogs.append(dialog.message)
        dialog.dismiss()

    def _console(self, message) -> None:
        if message.type == "error":
            self.errors.append(message.text)

    def _route(self, route) -> None:
        address = route.request.url
        if address.startswith(OWN):
            route.continue_()
        else:
            self.requests.append(address)
            route.abort()


@contextlib.contextmanager
def watched_page(browser) -> Iterator:
    """Open a page as wide as a laptop's; `page.watch` holds what it did."""
    context = browser.new_context(viewport=LAPTOP)
    page = context.new_page()
    page.watch = Watch(page)
    yield page
    context.close()


def screenshot(page, name: str, **options) -> None:
    """Take a picture of a page where FTLAB_SCREENSHOTS names a folder."""
    folder = os.environ.get("FTLAB_SCREENSHOTS")
    if folder:
        page.screenshot(path=Path(folder) / f"{name}.png", **options)


def keep(pdf: bytes, name: str) -> None:
    """Keep a printed page where FTLAB_SCREENSHOTS names a folder."""
    folder = os.environ.get("FTLAB_SCREENSHOTS")
    if folder:
        (Path(folder) / f"{name}.pdf").write_bytes(pdf)


def pages_of(pdf: bytes) -> int:
    """Return the number of sheets of a printed page."""
    return len(PAGE_OF_PDF.findall(pdf))


def expect_only_text(page) -> None:
    """Expect that no hostile text became an element, ran, asked or fetched anything."""
    for frame in page.frames:
        for markup in (f".{MARK}", 'img[src="x"]', 'a[href^="javascript:"]', FORMULA):
            assert frame.locator(markup).count() == 0, markup
    expect_nothing_done(page)


def expect_nothing_done(page) -> None:
    """Expect that nothing hostile ran, asked or fetched anything."""
    for frame in page.frames:
        assert frame.evaluate("window.owned") is None
    assert not page.watch.dialogs
    assert not page.watch.requests


def not_shown(text: str) -> list[str]:
    """Return what of `MARKUP` is not in a text letter by letter, white space aside."""
    flat = " ".join(text.split())
    return [markup for markup in MARKUP.values() if " ".join(markup.split()) not in flat]
