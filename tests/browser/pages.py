"""Pages that ftlab writes, with answers in them that a browser would act on."""

from __future__ import annotations

# Each sets a flag where it runs, and is an element of this class where it is not escaped.
FLAG = "window.owned = true"
MARK = "owned"
MARKUP = {
    "script": f'<script class="{MARK}">{FLAG}</script>',
    "image": f'<img class="{MARK}" src="x" onerror="{FLAG}">',
    "vector": f'<svg class="{MARK}" onload="{FLAG}"></svg>',
    "frame": f'<iframe class="{MARK}" srcdoc="<script>parent.{FLAG}</script>"></iframe>',
    "details": f'<details class="{MARK}" open ontoggle="{FLAG}">x</details>',
    "style": f'<style class="{MARK}">body {{ display: none }}</style>',
    "attribute": f'" onmouseover="{FLAG}" class="{MARK}" x="',
    "cell": f'</td></tr></table></pre></summary><img class="{MARK}" src=x onerror="{FLAG}">',
    "comment": f'--><img class="{MARK}" src=x onerror="{FLAG}"><!--',
    "link": f'[click](javascript:{FLAG}) <a class="{MARK}" href="javascript:{FLAG}">click</a>',
    "formula": rf"$\href{{javascript:{FLAG}}}{{x}}$ and \(\class{{{MARK}}}{{y}}\)",
    "prices": "It costs $5 today and $6 tomorrow.",
    "template": "{{ 7 * 7 }} ${7 * 7} {% raw %}",
    "widget": '<script type="application/vnd.jupyter.widget-view+json">{"model_id": "x"}</script>',
}


def expect_only_text(page, frame=None) -> None:
    """Expect that nothing of `MARKUP` became an element, ran, asked or fetched anything.

    Args:
        page: The page, whose `watch` began before it was opened.
        frame: Where to look; by default the page.
    """
    where = frame or page
    assert page.evaluate("window.owned") is None
    assert page.locator(f".{MARK}").count() == 0
    assert page.locator('a[href^="javascript:"]').count() == 0
    assert where.locator("mjx-container").count() == 0  # set as a formula
    assert not page.watch.dialogs
    assert not page.watch.requests


def shown_in(text: str, values=tuple(MARKUP.values())) -> list[str]:
    """Return the values that are not in a text letter by letter, white space aside."""
    flat = " ".join(text.split())
    return [value for value in values if " ".join(value.split()) not in flat]
