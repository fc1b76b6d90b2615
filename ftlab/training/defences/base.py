"""What a defence is: one file of this folder, ending in `DEFENCE = Subclass`.

A defence keeps a fine-tuned model safe, or tries to. It changes the parent, the rows, the loss, the
trained weights, how the model is asked, or what is passed on of its answer; what it does not
override stays as it is. Its fields are
its settings, so an object is one setting of one defence: `Mix(n_rows=200)`, as text
"mix:n_rows=200".
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from ftlab._core import plugins
from ftlab._core.config import Config
from ftlab._core.errors import UsageError
from ftlab._core.types import Message

if TYPE_CHECKING:
    from ftlab.data import Data
    from ftlab.models import Model
    from ftlab.training.config import TrainingConfig
    from ftlab.training.methods.base import Job, Method

ANY_ADAPTER = (None, "lora", "dora", "qlora")
AT_TRAINING = ("prepare", "choose", "data", "trainer", "repair")  # hooks of a training
AT_ASKING = ("chat", "answer")  # hooks of an evaluation


class Defence(Config):
    """A defence. Subclasses override the hooks that they need.

    Attributes:
        name: Its public name; also the name of its file.
        source: The paper, with the number of the equation or algorithm where it was seen.
        stage: When it acts: alignment, fine-tuning, afterwards, asking.
        version: Raised whenever the same settings would end in other weights or answers.
        methods: Training methods that it works with; () for all.
        adapters: Values of `adapter` that it works with.
        draws: Whether the training's seed decides something in it.
    """

    name: ClassVar[str] = ""
    source: ClassVar[str] = ""
    stage: ClassVar[str] = "fine-tuning"
    version: ClassVar[str] = "1"
    methods: ClassVar[tuple[str, ...]] = ()
    adapters: ClassVar[tuple[str | None, ...]] = ANY_ADAPTER
    draws: ClassVar[bool] = False

    def prepare(self, parent: Model) -> Model:
        """Return the model to train instead of the parent."""
        return parent

    def choose(self, rows: Data, parent: Model) -> Data:
        """Return those of the rows that are trained on; for defences that ask the parent."""
        return rows

    def data(self, rows: Data, seed: int) -> Data:
        """Return the rows to train on; the seed is the training's."""
        return rows

    def training_rows(self, rows: Data, parent: Model, seed: int) -> Data:
        """Return the rows of a training: those that were chosen, with those that are added."""
        found = self.data(self.choose(rows, parent), seed)
        if rows.rows and not getattr(found, "rows", ()):
            raise UsageError(
                "defence_left_no_rows",
                f"{self.name} leaves nothing to train on. Its `choose` and `data` return rows.",
            )
        return found

    def trainer(self, cls: type, job: Job) -> type:
        """Return TRL's trainer class, such as one with another `compute_loss`.

        `job.model` is loaded by then, with the parent's weights and the adapter if there is one,
        and nothing has been trained; parameters may be frozen here. It is called again where a
        training is resumed or has run out of memory, each time with a model loaded anew.

        The trainer's method `ends(step)`, if it has one, is called after every optimiser step. It
        returns why the training ends there, or "", and leaves the weights that the run is to keep.
        """
        return cls

    def repair(self, parent: Model, child: Any) -> None:
        """Change the weights of the trained torch model in place, before they are saved.

        During a training it is also called where a monitor measures, and undone afterwards.
        """

    def chat(self, messages: list[Message]) -> list[Message]:
        """Return the messages that the model is sent."""
        return messages

    def answer(self, messages: list[Message], text: str) -> str:
        """Return what the user is given instead of the model's answer to these messages.

        It is not called for an answer that is chosen from `Sample.choices`.
        """
        return text

    def check_steps(self, steps: int) -> None:
        """Check that the defence works in a training of so many steps; raises UsageError if not."""

    def check_model(self, reference: Any) -> None:
        """Check that the defence works around a model; raises UsageError where not."""

    def release(self) -> None:
        """Give back the memory of what it keeps between answers."""

    def identity(self) -> dict[str, Any]:
        """Return what stands for the defence in a run's identity."""
        return {"name": self.name, "version": self.version, **self.model_dump(mode="json")}

    @property
    def spec(self) -> str:
        """The defence as text, without files and models: "kl:weight=1.0"."""
        settings = []
        for name, value in self.model_dump(mode="json", exclude_defaults=True).items():
            if isinstance(value, (int, float)):
                settings.append(f"{name}={value}")
        listed = ",".join(settings)
        return f"{self.name}:{listed}" if listed else self.name

    def overrides(self, hook: str) -> bool:
        """Return whether the defence does something in a hook."""
        return getattr(type(self), hook) is not getattr(Defence, hook)

    def check_trains(self) -> None:
        """Check that the defence acts in a training; raises UsageError `defence_only_asks`."""
        if type(self) is not Defence and not any(map(self.overrides, AT_TRAINING)):
            raise UsageError(
                "defence_only_asks",
                f"The defence {self.name} changes how a model is asked, not how it is trained. "
                "Train without it, and give it to evaluate, or to risk_curve.",
            )

    @property
    def asks(self) -> bool:
        """Whether the defence acts where a model is asked."""
        return any(map(self.overrides, AT_ASKING))

    def check_asks(self) -> None:
        """Check that the defence acts where a model is asked; raises `defence_only_trains`."""
        if not self.asks:
            raise UsageError(
                "defence_only_trains",
                f"The defence {self.name} changes the training, not how a model is asked. "
                "Give it to sft or risk_curve, then evaluate the run without it.",
            )

    def check(self, parent: Model, method: Method, config: TrainingConfig) -> None:
        """Check that the defence works with a training.

        Raises:
            UsageError: `defence_not_for_method`, `defence_not_for_adapter`.
        """
        if self.methods and method.name not in self.methods:
            allowed = ", ".join(self.methods)
            raise UsageError(
                "defence_not_for_method",
                f"The defence {self.name} works with {allowed}, not with {method.name}. "
                "Use one of them, or another defence.",
            )
        if config.adapter not in self.adapters:
            allowed = ", ".join(str(adapter) for adapter in self.adapters)
            raise UsageError(
                "defence_not_for_adapter",
                f"The defence {self.name} works with adapter={allowed}, not with "
                f"{config.adapter}. Use one of them, or another defence.",
            )


def no_defence() -> Defence:
    """Return the defence that changes nothing."""
    return Defence()


def open_defence(defence: str | Defence) -> Defence:
    """Return a defence by its public name; a `Defence` is returned as it is.

    Args:
        defence: `name` or `name:setting=value,setting=value`, such as "mix:n_rows=200".

    Raises:
        UsageError: `unknown_defence`, `defence_settings`, `wrong_setting`.
    """
    if isinstance(defence, Defence):
        return defence
    return plugins.configured("defences", str(defence))
