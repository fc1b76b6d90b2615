"""Answers that a browser would act on, if it were given them as they are."""

from __future__ import annotations

# Each sets a flag where it runs, and is an element of this class where it is not escaped.
FLAG = "window.owned = true"
MARK = "owned"
ADDRESS = "http://example.org/owned/"
AWAY = ("picture", "sheet", "refresh")  # those that ask for it
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
    "picture": f'<img class="{MARK}" src="{ADDRESS}x.png">',
    "sheet": f'<link class="{MARK}" rel="stylesheet" href="{ADDRESS}x.css">',
    "refresh": f'<meta class="{MARK}" http-equiv="refresh" content="0; url={ADDRESS}">',
    "widget": '<script type="application/vnd.jupyter.widget-view+json">{"model_id": "x"}</script>',
}
