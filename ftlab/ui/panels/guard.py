"""Try a prompt on a model with and without what guards it. Cell: guard."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ftlab import evals, models
from ftlab._core.config import takes
from ftlab._core.errors import UsageError
from ftlab._core.text import safe
from ftlab.models.engines import Request, open_engine
from ftlab.training import Defence, open_defence
from ftlab.ui.panels.base import Frame, Panel, call_of, check_box, html_table, name_of

NONE = "no guard"
FLAGS = {
    True: "harmful",
    False: "not harmful",
    None: "cannot be read",
}


@takes()
def guard(
    model: Any,
    guards: str | Iterable[str | Defence] = ("guard",),
    *,
    question: str = "",
    max_new_tokens: int = 64,
) -> GuardPanel:
    """Try prompts on a model with and without guards.

    The model answers greedily. With a guard it is sent what the guard makes of the prompt, and the
    user gets what the guard passes on. The answers are shown only on a tick.

    Args:
        model: Anything that `ftlab.model` takes.
        guards: Defences that act where a model is asked, such as "guard" or "ptst".
        question: Asked at once.
        max_new_tokens: Length of an answer in tokens, at most.

    Returns:
        The panel.

    Raises:
        UsageError: `unknown_defence`, `defence_only_trains`, those of `Defence.check_model` and of
            `ftlab.model`.
    """
    one = isinstance(guards, (str, Defence)) or not isinstance(guards, Iterable)
    names = [guards] if one else list(guards)
    found = GuardPanel(model, names, max_new_tokens)
    if question:
        found.ask(question)
    return found


class GuardPanel(Panel):
    """A model, its guards, and what became of the last prompt.

    Args:
        model: Anything that `ftlab.model` takes.
        guards: Names or objects.
        max_new_tokens: Of an answer.

    Attributes:
        question: What was asked last; "" before that.
        answers: A row for each way of asking: guard, flags, passed_on, answer.
        texts: Whether the answers are shown.
    """

    name = "guard"
    title = "With and without a guard"

    def __init__(self, model: Any, guards: list[Any], max_new_tokens: int):
        self.given = model
        self.model = models.model(model)
        self.names = guards
        self.guards: dict[str, Defence] = {}
        for one in guards:
            defence = open_defence(one)
            defence.check_asks()
            defence.check_model(self.model)
            self.guards[one if isinstance(one, str) else defence.name] = defence
        self.max_new_tokens = max_new_tokens
        self.question = ""
        self.answers: list[dict[str, Any]] = []
        self.texts = False
        self._loaded: tuple[Any, Any] | None = None

    def ask(self, question: str) -> list[dict[str, Any]]:
        """Ask the model without and with each guard.

        Raises:
            UsageError: `no_question`; `guard_unreadable`, `prompt_too_long`.
        """
        if not isinstance(question, str) or not question.strip():
            raise UsageError("no_question", "Write a question first.")
        plain = [{"role": "user", "content": question}]
        own = self._answer(plain)
        rows = [
            {
                "guard": NONE,
                "flags": "",
                "passed_on": True,
                "answer": own,
            }
        ]
        for name, defence in self.guards.items():
            chat = defence.chat(plain)
            text = own if chat == plain else self._answer(chat)
            passed = defence.answer(chat, text)
            flags = ""
            if hasattr(defence, "flags"):
                found = defence.flags(chat, text)
                flags = ", ".join(f"{side} {FLAGS[flag]}" for side, flag in found.items())
            row = {
                "guard": name,
                "flags": flags,
                "passed_on": passed == text,
                "answer": passed,
            }
            rows.append(row)
        self.question = question
        self.answers = rows
        return rows

    def release(self) -> None:
        """Give back the memory of the model and of its guards."""
        self._loaded = None
        for defence in self.guards.values():
            defence.release()
        with models.released():
            pass

    def rows(self) -> list[dict[str, Any]]:
        """Return what became of the prompt; the answers' words on the tick only."""
        shown = []
        for row in self.answers:
            passed = "as it is" if row["passed_on"] else "another answer instead"
            line = {"guard": row["guard"], "guard says": row["flags"], "passed on": passed}
            line["characters"] = len(row["answer"])
            if self.texts:
                line["answer"] = row["answer"]
            shown.append(line)
        return shown

    def call(self) -> str:
        """Return the calls: to ask without a guard, and to measure with each."""
        question = self.question or "..."
        tokens = {"max_new_tokens": self.max_new_tokens}
        lines = [call_of("ft.ask", self.given, question, **tokens)]
        for name in self.guards:
            lines.append(call_of("ft.evaluate", self.given, defence=name))
        return "\n".join(lines)

    def parameters(self) -> dict[str, Any]:
        """Return the notebook's parameters."""
        return {
            "model": str(name_of(self.given)),
            "guards": list(self.guards),
            "question": self.question,
            "max_new_tokens": self.max_new_tokens,
        }

    def choices(self) -> dict[str, Any]:
        """Return the arguments of the cell, and what it has no argument for."""
        return {
            "model": self.given,
            "guards": self.names,
            "question": self.question,
            "max_new_tokens": self.max_new_tokens,
            "texts": self.texts or None,
        }

    def plain(self) -> list[Any]:
        """Return what became of the prompt; the answers on the tick only, escaped."""
        lines = [f"Guards: {', '.join(self.guards)}"]
        for row in self.rows():
            lines.append(
                ", ".join(f"{name}: {safe(value)}" for name, value in row.items() if value != "")
            )
        return ["\n".join(lines)]

    def widget(self) -> Any:
        """Return the widgets."""
        return _Widgets(self).box

    def _answer(self, chat: list[dict[str, str]]) -> str:
        engine, loaded = self._opened()
        text, _ = engine.render(loaded, chat)
        request = Request(chat, text, max_new_tokens=self.max_new_tokens)
        (answer,) = engine.answer(loaded, [request])
        return answer.text or answer.error

    def _opened(self) -> tuple[Any, Any]:
        if self._loaded is None:
            engine = open_engine(evals.default_engine(self.model))
            self._loaded = engine, engine.open(self.model)
        return self._loaded


class _Widgets:
    """The panel on the screen."""

    def __init__(self, state: GuardPanel):
        from ipywidgets import HTML, Button, HBox, Textarea

        self.state = state
        self.frame = Frame(state)
        react = self.frame.reacting
        self.question = Textarea(
            state.question,
            description="Question",
            continuous_update=False,  # else a quick Ask is sent before the last letters
        )
        self.question.layout.width = "100%"
        ask = Button(description="Ask", tooltip="Without and with each guard")
        ask.on_click(react(lambda _: self._ask()))
        release = Button(description="Release the model", tooltip="Give its memory back")
        release.on_click(react(lambda _: state.release()))
        texts = check_box("Show the answers (the model's own words)", state.texts)
        texts.observe(react(self._show), "value")
        self.answers = HTML()
        self.draw()
        row = HBox([ask, release, texts])
        self.box = self.frame.show(self.question, row, self.answers)

    def draw(self) -> None:
        rows = self.state.rows()
        self.answers.value = html_table(rows, "What became of the question") if rows else ""

    def _ask(self) -> None:
        self.frame.tell("Asking ...")
        self.state.ask(self.question.value)
        self.frame.tell("")
        self.draw()

    def _show(self, change: Any) -> None:
        self.state.texts = change["new"]
        self.draw()
