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
# Texts below an element whose contrast is under 4.5 to 1 (WCAG 2.2, 1.4.3); what is disabled may be so.
LOW_CONTRAST = """root => {
    const canvas = document.createElement("canvas").getContext("2d", {willReadFrequently: true});
    const parts = colour => {
        canvas.clearRect(0, 0, 1, 1);
        canvas.fillStyle = colour;
        canvas.fillRect(0, 0, 1, 1);
        const [r, g, b, alpha] = canvas.getImageData(0, 0, 1, 1).data;
        return [r, g, b, alpha / 255];
    };
    const over = (top, alpha, below) => below.map((v, i) => top[i] * alpha + v * (1 - alpha));
    const behind = part => {
        if (part === null) return [255, 255, 255];
        const own = parts(getComputedStyle(part).backgroundColor);
        return over(own, own[3], own[3] === 1 ? own.slice(0, 3) : behind(part.parentElement));
    };
    const opacity = part => part ? getComputedStyle(part).opacity * opacity(part.parentElement) : 1;
    const luminance = colour => {
        const [r, g, b] = colour.map(v => v / 255)
            .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const found = [];
    for (const one of root.querySelectorAll("*")) {
        const own = [...one.childNodes].filter(node => node.nodeType === Node.TEXT_NODE);
        let text = own.map(node => node.data).join("").trim();
        let style = getComputedStyle(one);
        let share = opacity(one);
        if (one.matches("select, textarea, input:not([type=checkbox])")) text = one.value;
        if (!text && one.placeholder) {
            text = one.placeholder;
            style = getComputedStyle(one, "::placeholder");
            share *= style.opacity;
        }
        const skipped = one.matches("option, title, style, :disabled") || !one.checkVisibility();
        if (!/[^\\s\\u200b]/.test(text) || skipped) continue;
        const below = behind(one);
        const ink = parts(one instanceof SVGElement ? style.fill : style.color);
        const seen = luminance(over(ink, ink[3] * share, below));
        const [dark, light] = [seen, luminance(below)].sort((a, b) => a - b);
        const ratio = (light + 0.05) / (dark + 0.05);
        if (ratio < 4.5) found.push(`${ratio.toFixed(2)} ${one.tagName} ${text.slice(0, 60)}`);
    }
    return found;
}"""


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
