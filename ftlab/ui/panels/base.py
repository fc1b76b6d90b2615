"""What panels share: the calls they stand for, plain output, escaped text, and their widgets.

A panel is a view over cells. What it knows and does is a plain object; widgets only call its
methods. Where there is no front end (a script, a pipe, papermill), or the extra `lab` is not
installed, the panel shows the same as text and tables.

Model text is hostile input. Whatever HTML a panel makes goes through `escaped`.
"""

from __future__ import annotations

import ast
import html
import inspect
import math
import os
import shlex
from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pandas as pd

from ftlab._core.config import argument_lines
from ftlab._core.errors import FtlabError
from ftlab._core.progress import surface
from ftlab._core.text import redacted, safe
from ftlab.runs import Run

NOTEBOOK = "21_panels"  # whose parameters hold what the panels choose
WIDGETS = ("ipywidgets", "anywidget")
HOLDS = "holds names and numbers, and never shows words of a model"
INSTALL = "The panel itself needs the extra lab: pip install 'ftlab[lab]'"
MOST_CODE = 300  # characters of one argument
MOST_TEXT = 20_000  # characters of an answer that are shown
PAGE = 20  # answers that are shown at a time
PRE = "white-space: pre-wrap; max-height: 20em; overflow: auto; margin: 0"
TABLE = "color: inherit; text-align: left"
BUTTON = "font: inherit; color: inherit; background: transparent; border: 1px solid currentColor"


class Panel:
    """What every panel has. Subclasses hold the state, and widgets that only call it.

    Attributes:
        name: Public name, which is also that of its file.
        title: What it is, for people and screen readers.
    """

    name = ""
    title = ""

    def call(self) -> str:
        """Return the Python call that gives what the panel shows."""
        raise NotImplementedError

    def parameters(self) -> dict[str, Any]:
        """Return the parameters of the notebook `NOTEBOOK` that stand for the panel's choices."""
        raise NotImplementedError

    def choices(self) -> dict[str, Any]:
        """Return the arguments of the panel's cell that stand for its choices.

        `texts`, whether words of a model are shown, is none of them: it is None or True.
        """
        raise NotImplementedError

    def left_out(self) -> list[str]:
        """Return names of the choices that parameters cannot hold, such as rows, and of texts."""
        would = notebook_arguments(self.name, self.parameters())
        missing = []
        for name, value in self.choices().items():
            if _comparable(value) != _comparable(would.get(name)):
                missing.append(name)
        return missing

    def plain(self) -> list[Any]:
        """Return what is shown without widgets: texts, tables, drawings."""
        raise NotImplementedError

    def widget(self) -> Any:
        """Return the widgets."""
        raise NotImplementedError

    def papermill(self) -> str:
        """Return the papermill command that runs the same choices without the panel."""
        import yaml

        from ftlab.experiments import find_notebook

        path = find_notebook(NOTEBOOK)
        shown = min(
            str(path),
            os.path.relpath(path),
            key=len,
        )
        chosen = yaml.safe_dump(  # as papermill reads it: in JSON 5e-05 would be a word
            self.parameters(),
            default_flow_style=True,
            allow_unicode=True,
            sort_keys=False,
            width=math.inf,
        )
        words = ["papermill", shown, f"{NOTEBOOK}.executed.ipynb", "-y", chosen.strip()]
        return shlex.join(words)

    def __repr__(self) -> str:
        parts = [str(part) for part in self.plain()]
        return "\n\n".join([*parts, self.call()])

    def _ipython_display_(self) -> None:
        from IPython.display import display

        if has_front_end():
            view = self.widget()._repr_mimebundle_()
            view["text/plain"] = self.title  # `plain` would compute what nobody looks at
            display(view, raw=True)
            return
        for part in self.plain():
            if isinstance(part, str):
                print(part)
            else:
                display(part)
        print(self.call())
        if surface() == "jupyter":
            print(INSTALL)


def has_front_end() -> bool:
    """Return whether widgets can be shown: in a notebook that a person looks at, with the extra."""
    return surface() == "jupyter" and all(map(find_spec, WIDGETS))


@cache
def _notebook() -> tuple[dict[str, Any], dict[str, ast.Call]]:
    """Return the notebook's parameters by default, and its call of each panel by the name."""
    import nbformat

    from ftlab.experiments import default_parameters, find_notebook

    path = find_notebook(NOTEBOOK)
    calls = {}
    for cell in nbformat.read(path, 4).cells:
        if cell.cell_type == "code":
            for node in ast.walk(ast.parse(cell.source)):
                if isinstance(node, ast.Call) and ast.unparse(node.func).startswith("ft.ui."):
                    calls[node.func.attr] = node
    return default_parameters(path), calls


def notebook_arguments(panel: str, parameters: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments with which the notebook `NOTEBOOK` calls a panel's cell.

    Args:
        panel: Its name.
        parameters: Of the notebook; what is not among them has its default.
    """
    from ftlab import ui

    defaults, calls = _notebook()
    names = defaults | parameters
    names["curve"] = names["run"]

    def value(node: ast.expr) -> Any:
        code = compile(ast.Expression(node), NOTEBOOK, "eval")
        return eval(code, {"__builtins__": {}}, names)

    call = calls[panel]
    signature = inspect.signature(getattr(ui, panel))
    given = {}
    for one in call.keywords:
        given |= {one.arg: value(one.value)} if one.arg else value(one.value)
    bound = signature.bind(*map(value, call.args), **given)
    for name, parameter in signature.parameters.items():
        if bound.arguments.get(name) is None:
            bound.arguments[name] = parameter.default
    return bound.arguments


def _comparable(value: Any) -> Any:
    """Return a value as parameters hold it; of one that they cannot hold, its type."""
    value = name_of(value)
    if isinstance(value, tuple):
        return list(value)
    is_plain = value is None or isinstance(value, (str, int, float, list, dict))
    return value if is_plain else type(value)


def call_of(cell: str, *given: Any, **settings: Any) -> str:
    """Return a call as Python code; settings that are None are left out.

    Args:
        cell: Its name, such as "ft.rates".
        *given: Arguments without a name. Runs, models and data stand there by name.
        **settings: Arguments with a name.
    """
    parts = [in_code(value) for value in given]
    for name, value in settings.items():
        if value is not None:
            parts.append(f"{name}={in_code(value)}")
    return f"{cell}({', '.join(parts)})"


def in_code(value: Any) -> str:
    """Return a value as Python code; "..." for one that would fill the line, such as rows."""
    shown = repr(name_of(value))
    return shown if len(shown) <= MOST_CODE and "\n" not in shown else "..."


def name_of(value: Any) -> Any:
    """Return what opens a run, a model or data again; plain values stand for themselves."""
    if isinstance(value, Path):
        return str(value)
    name = getattr(value, "name", None)
    if name is None or isinstance(value, Run):
        return name or value
    is_embedded = str(name).startswith("organism")
    path = getattr(value, "path", None)
    if path is None or is_embedded:
        return name
    return str(path)


def about(cell: Callable, name: str) -> str:
    """Return what a cell's docstring says of an argument."""
    return argument_lines(cell.__doc__ or "").get(name, "")


def escaped(text: object, most: int = MOST_TEXT) -> str:
    """Return text as HTML that shows it as it is."""
    return html.escape(safe(text, most))


def pre(text: object) -> str:
    """Return words of a model or of a file as HTML: escaped, with their line breaks."""
    return f'<div style="{PRE}">{escaped(text)}</div>'


def html_table(rows: list[dict[str, Any]], caption: str = "") -> str:
    """Return rows as an HTML table: escaped, with a caption for screen readers too."""
    if not rows:
        return f"<p>{escaped(caption)}: none</p>"
    head = "".join(f'<th scope="col" style="text-align: left">{escaped(n)}</th>' for n in rows[0])
    body = ""
    for row in rows:
        cells = "".join(f'<td style="text-align: left">{pre(value)}</td>' for value in row.values())
        body += f"<tr>{cells}</tr>"
    caption = f'<caption style="text-align: left">{escaped(caption)}</caption>'
    inside = f"{caption}<thead><tr>{head}</tr></thead><tbody>{body}</tbody>"
    return f"<table style='{TABLE}'>{inside}</table>"


def pad(label: str, **traits: Any) -> Any:
    """Return a widget that shows HTML of ours and sends back keys and clicks.

    What it sends are messages {"key": ...} and {"pick": ...}: the name of a key, and the value of
    the attribute `data-pick` of what was clicked, or chosen by Enter. A button with `data-copy`
    copies that text.

    Args:
        label: For screen readers.
        traits: Its first `html`, `key_names` (that it takes) and `prompt` (of the key field).
    """
    return _pad_class()(
        label=label,
        **traits,
    )


@cache
def _pad_class() -> type:
    import anywidget
    import traitlets

    class Pad(anywidget.AnyWidget):
        _esm = Path(__file__).with_name("pad.js").read_text(encoding="utf-8")
        html = traitlets.Unicode("").tag(sync=True)
        key_names = traitlets.List(traitlets.Unicode()).tag(sync=True)
        prompt = traitlets.Unicode("").tag(sync=True)
        label = traitlets.Unicode("").tag(sync=True)

    return Pad


class Frame:
    """The widgets of a panel with a line for messages, and the calls that the panel stands for.

    Args:
        panel: The panel.
    """

    def __init__(self, panel: Panel):
        from ipywidgets import HTML, VBox

        self.panel = panel
        self.status = HTML()
        self.calls = pad(f"Calls of the panel {panel.name}")
        self.box = VBox()
        self.box.add_class(f"ftlab-{panel.name}")

    def show(self, *parts: Any) -> Any:
        """Put the panel's own widgets into the frame and return the whole."""
        from ipywidgets import HTML

        title = HTML(f"<h3>{escaped(self.panel.title)}</h3>")
        self.refresh()
        self.box.children = (title, *parts, self.status, self.calls)
        return self.box

    def tell(self, text: str) -> None:
        """Show a message, which screen readers read out."""
        self.status.value = f'<div role="status" aria-live="polite">{escaped(text)}</div>'

    def refresh(self) -> None:
        """Show the calls as they are now."""
        lines = {"Python call": self.panel.call(), "papermill command": self.panel.papermill()}
        shown = "".join(_copied(name, line) for name, line in lines.items())
        missing = self.panel.left_out()
        if missing:
            note = f"Not in the command, which {HOLDS}: {', '.join(missing)}"
            shown += f"<p>{escaped(note)}</p>"
        self.calls.html = f"<details><summary>As code</summary>{shown}</details>"

    def reacting(self, react: Callable[..., Any]) -> Callable[..., None]:
        """Return a handler that reports errors of the user in words, and then shows the calls."""

        def handle(*given: Any) -> None:
            self.tell("")
            try:
                react(*given)
            except FtlabError as error:
                self.tell(redacted(str(error)))
            self.refresh()

        return handle


class AnswerPages:
    """Answers, a page at a time, and only after a tick.

    Args:
        rows: Returns all of them in their order: a table, or a list of dicts.
        shown: Returns of one what is shown of it, as plain text.
        read: Reads the texts; called at the tick, so that what it raises undoes the tick.

    Attributes:
        texts: Whether they are shown.
        page: Which `PAGE` of them, from 0.
    """

    def __init__(
        self,
        rows: Callable[[], Any],
        shown: Callable[[dict[str, Any]], dict[str, Any]],
        read: Callable[[], Any] = lambda: None,
    ):
        self.rows = rows
        self.shown = shown
        self.read = read
        self.texts = False
        self.page = 0

    def show(self, texts: bool) -> None:
        """Show the answers, or show them no longer."""
        if texts:
            self.read()
        self.texts = texts

    def turn(self, pages: int) -> None:
        """Go on by so many pages, or back; not past the ends."""
        last = max(len(self.rows()) - 1, 0) // PAGE
        self.page = min(max(self.page + pages, 0), last)

    def table(self) -> str:
        """Return the present page as HTML; "" before the tick."""
        if not self.texts:
            return ""
        found = self.rows()
        start = self.page * PAGE
        part = pd.DataFrame(found[start : start + PAGE]).to_dict("records")
        caption = f"Answers {start + 1} to {start + len(part)} of {len(found):,}"
        return html_table([self.shown(row) for row in part], f"{caption}, changed ones first")

    def controls(self, react: Callable, draw: Callable[[], None]) -> Any:
        """Return the tick and the buttons.

        Args:
            react: `Frame.reacting`.
            draw: Shows the panel again.
        """
        from ipywidgets import Button, HBox

        def show(change: Any) -> None:
            self.show(change["new"])
            draw()

        def turn(pages: int) -> None:
            self.turn(pages)
            draw()

        tick = check_box("Show the answers (the models' own words)", self.texts)
        tick.observe(react(show), "value")
        earlier = Button(description="Earlier answers")
        later = Button(description="Further answers")
        earlier.on_click(react(lambda _: turn(-1)))
        later.on_click(react(lambda _: turn(1)))
        return HBox([tick, earlier, later])


def _copied(name: str, line: str) -> str:
    code = escaped(line)
    button = f'<button type="button" style="{BUTTON}" data-copy="{html.escape(line)}"'
    button += f' aria-label="Copy the {name}">Copy</button>'
    return f'<div>{name}: {button}<pre style="{PRE}" tabindex="0">{code}</pre></div>'


def check_box(label: str, value: bool) -> Any:
    """Return a check box with its label beside it."""
    from ipywidgets import Checkbox

    box = Checkbox(
        value=value,
        description=safe(label, 80),
        indent=False,
    )
    box.layout.width = "auto"
    return box
