"""Run a notebook with parameters through papermill, strictly.

An unknown parameter is an error, and so is a dead kernel. An output file under the given name is
always a notebook that ran to its end. The kernel is this interpreter.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ftlab._core.errors import NotebookFailed, NotFoundError, StorageFull, UsageError
from ftlab._core.files import resource, storage, write_atomic
from ftlab._core.lessons import for_students
from ftlab._core.text import did_you_mean, redacted, safe, throughout
from ftlab.experiments.parameters import check_parameters

TIMEOUT_S = 3600.0  # for one cell
NUMBERED = re.compile(r"(\d\d|lesson\d)_")  # names of notebooks that come with ftlab
OUTPUT_TIMEOUT_S = 60  # for the outputs of a cell that has ended


def run_notebook(
    notebook: str | Path,
    output: str | Path,
    parameters: dict[str, Any],
    *,
    timeout_s: float = TIMEOUT_S,
    env: dict[str, str] | None = None,
    on_cell: Callable[[int, int], None] | None = None,
    kernels: list | None = None,
) -> Path:
    """Run a notebook with parameters.

    Args:
        notebook: A local .ipynb file.
        output: Where the executed notebook goes. An older one is removed at the start.
        parameters: Values by name.
        timeout_s: Seconds that each cell may take.
        env: Environment variables for this kernel only.
        on_cell: Called when a code cell begins, with its number and the number of code cells.
        kernels: The kernel's manager is appended here, so that the caller can end it.

    Returns:
        The path of the executed notebook.

    Raises:
        UsageError: `wrong_parameters`, `secret_in_parameter`, `wrong_output`,
            `output_not_writable`, before any work.
        NotFoundError: `no_such_notebook`.
        NotebookFailed: `notebook_failed`, if a cell fails or takes too long, or the kernel dies.
            The notebook up to there is kept as `<name>.failed.ipynb`.
    """
    check_parameters(notebook, parameters)
    source = Path(notebook).absolute()
    paths = _Paths.prepare(source, output)
    position = _Position(on_cell)
    try:
        done = _execute(source, paths.partial, parameters, timeout_s, env, position, kernels)
    except BaseException as error:
        reason = _reason(error, timeout_s)
        paths.keep_failed(position.index, reason)
        if not isinstance(error, Exception):
            raise
        message = f"{source.name}, {position}: {reason}."
        if paths.failed.exists():
            message += f" What ran is kept in {paths.failed}."
        raise NotebookFailed("notebook_failed", safe(redacted(message))) from error
    import nbformat

    done.metadata.papermill.update(input_path=str(notebook), output_path=str(output))
    write_atomic(paths.target, nbformat.writes(throughout(done, redacted)))
    paths.partial.unlink(missing_ok=True)
    return Path(output)


def find_notebook(name: str | Path) -> Path:
    """Return a notebook by its path, or one that comes with ftlab by its name.

    Args:
        name: A file, or a shipped notebook's name, number or title: `02_risk_ratio`, `02`,
            `risk_ratio`; `lesson2` of the course.

    Returns:
        Its path.

    Raises:
        NotFoundError: `no_such_notebook`.
    """
    if Path(name).is_file():
        return Path(name)
    wanted = str(name).removesuffix(".ipynb")
    shipped = _shipped()
    for stem, path in shipped.items():
        number, _, title = stem.partition("_")
        if wanted in (stem, number, title):
            return path
    raise NotFoundError(
        "no_such_notebook",
        f"There is no notebook {name}.{did_you_mean(wanted, shipped)} Give the path of a local "
        f".ipynb file, or one of these names: {', '.join(shipped)}.",
    )


def copy_notebooks(folder: str | Path) -> Path:
    """Copy the notebooks that come with ftlab into a folder; those that are there are kept.

    Lessons come as students get them: solutions and notes for teachers stay in the repository.

    Args:
        folder: Created if it does not exist.

    Returns:
        The path of the first notebook.

    Raises:
        UsageError: `folder_not_writable`.
    """
    shipped = _shipped()
    target = Path(folder)
    try:
        target.mkdir(parents=True, exist_ok=True)
        for path in shipped.values():
            if not (target / path.name).exists():
                _copy(path, target / path.name)
    except OSError as error:
        raise UsageError(
            "folder_not_writable", f"{target} cannot be written ({error.strerror})."
        ) from None
    return target / next(iter(shipped.values())).name


def _copy(path: Path, target: Path) -> None:
    """Copy a notebook; a lesson without its solutions."""
    if path.parent.name != "course":
        shutil.copyfile(path, target)
        return
    book = for_students(json.loads(path.read_bytes()))
    text = json.dumps(book, indent=1, ensure_ascii=False)
    write_atomic(target, f"{text}\n")


def _shipped() -> dict[str, Path]:
    """Return the notebooks that come with ftlab by name, in their order."""
    found = {}
    for folder in ("tour", "experiments", "course"):  # not where runs may lie
        for path in (resource("notebooks") / folder).glob("*.ipynb"):
            if NUMBERED.match(path.name):
                found[path.stem] = path
    return dict(sorted(found.items()))


def _execute(
    source: Path,
    partial: Path,
    parameters: dict[str, Any],
    timeout_s: float,
    env: dict[str, str] | None,
    position: _Position,
    kernels: list | None,
) -> Any:
    import papermill

    # The exception reports the failure once; papermill's log would repeat it.
    logging.getLogger("papermill").addHandler(logging.NullHandler())
    lists = {k: list(v) if isinstance(v, tuple) else v for k, v in parameters.items()}
    with storage(partial):
        done = papermill.execute_notebook(
            _literal(source),
            _literal(partial),
            lists,
            kernel_name="python3",
            language="python",
            progress_bar=False,
            iopub_timeout=OUTPUT_TIMEOUT_S,
            kernel_manager_class=_kernel({**(env or {}), "FTLAB_BATCH": "1"}, kernels),
            execution_timeout=math.ceil(timeout_s),
            on_notebook_start=position.start,
            on_cell_start=position.cell,
        )
    statuses = [cell.metadata.papermill.get("status") for cell in done.cells]
    if any(status != "completed" for status in statuses):
        # papermill counts SystemExit as success.
        raise RuntimeError("the notebook was left by SystemExit")
    return done


def _literal(path: Path) -> str:
    """Return a path with its braces escaped, since papermill fills parameters into them."""
    return str(path).replace("{", "{{").replace("}", "}}")


class _Paths:
    """Where a notebook's output goes: under the given name only if it ran to its end."""

    def __init__(self, target: Path):
        self.target = target
        self.partial = target.with_name(f".{target.stem}.partial.ipynb")
        self.failed = target.with_suffix(".failed.ipynb")

    @classmethod
    def prepare(cls, source: Path, output: str | Path) -> _Paths:
        """Make the folder and remove older outputs."""
        paths = cls(Path(str(output)).absolute())
        every = [paths.target, paths.partial, paths.failed]
        taken = source.resolve() in [path.resolve() for path in every] or _is_own(paths.target)
        if paths.target.suffix != ".ipynb" or taken:
            raise UsageError(
                "wrong_output",
                f"The output {output} is not allowed. Give another .ipynb file than the notebook.",
            )
        try:
            paths.target.parent.mkdir(parents=True, exist_ok=True)
            for path in every:
                path.unlink(missing_ok=True)
            paths.partial.touch()
        except OSError as error:
            raise UsageError(
                "output_not_writable", f"{output} cannot be written ({error.strerror})."
            ) from error
        return paths

    def keep_failed(self, index: int, reason: str) -> None:
        """Keep the part of a notebook that ran, with the cell that began last marked as failed."""
        import nbformat

        with contextlib.suppress(Exception):  # a full disk leaves no notebook
            notebook = nbformat.read(self.partial, 4)
            notebook.metadata.papermill.update(exception=True, reason=reason)
            _mark_failed(notebook.cells, index)
            try:
                write_atomic(self.failed, nbformat.writes(throughout(notebook, redacted)))
            except StorageFull:
                os.replace(self.partial, self.failed)
        with contextlib.suppress(OSError):
            self.partial.unlink()


def _is_own(target: Path) -> bool:
    """Return whether a notebook is somebody's own: it was not executed by papermill."""
    try:
        notebook = json.loads(target.read_bytes())
        return "papermill" not in notebook["metadata"]
    except (OSError, ValueError, LookupError, TypeError):  # there is none, or a torn one
        return False


def _mark_failed(cells: list[Any], index: int) -> None:
    """Correct papermill's record, which would call every cell completed."""
    states = [cell.metadata.get("papermill", {}) for cell in cells]
    if any(state.get("status") == "failed" for state in states):
        return
    for number, state in enumerate(states):
        if number == max(index, 0):
            state.update(status="failed", exception=True)
        elif number > index:
            state.update(status="pending")


class _Position:
    """The code cell that began last."""

    def __init__(self, on_cell: Callable[[int, int], None] | None):
        self.index = -1  # among all cells
        self.number = 0  # among code cells
        self.total = 0
        self.line = ""
        self.on_cell = on_cell

    def start(self, notebook: Any) -> None:
        self.total = sum(cell.cell_type == "code" for cell in notebook.cells)

    def cell(self, cell: Any, cell_index: int) -> None:
        self.index = cell_index
        if cell.cell_type != "code":
            return
        self.number += 1
        self.line = cell.source.strip().split("\n")[0][:60]
        if self.on_cell:
            self.on_cell(self.number, self.total)

    def __str__(self) -> str:
        if not self.number:
            return "before the first cell"
        return f"cell {self.number} of {self.total} ({self.line})"


def _kernel(env: dict[str, str], kernels: list | None) -> type:
    """Return a manager that starts this interpreter, whatever the kernelspec `python3` names."""
    from ipykernel.kernelspec import get_kernel_dict
    from jupyter_client import AsyncKernelClient, AsyncKernelManager
    from jupyter_client.channels import AsyncZMQSocketChannel
    from jupyter_client.kernelspec import KernelSpec
    from traitlets import Type

    class Outputs(AsyncZMQSocketChannel):
        async def get_msg(self, *args, **options):
            message = await super().get_msg(*args, **options)
            # Before anything is written: a killed run must not leave a secret on disk.
            throughout(message["content"], redacted)
            return message

    class Client(AsyncKernelClient):
        iopub_channel_class = Type(Outputs)

    class ThisInterpreter(AsyncKernelManager):
        client_factory = Type(Client)
        kernel_spec = property(lambda self: KernelSpec(**get_kernel_dict()))

        async def start_kernel(self, **options):
            # Output of the kernel's child processes must not reach the terminal.
            options |= {
                "env": {**os.environ, **env},
                "stdout": subprocess.DEVNULL,
                "stderr": subprocess.DEVNULL,
            }
            await super().start_kernel(**options)
            if kernels is not None:
                kernels.append(self)

    return ThisInterpreter


def _reason(error: BaseException, timeout_s: float) -> str:
    """Return why a notebook failed, in plainer words than the libraries use."""
    kind = type(error).__name__
    if kind == "CellTimeoutError" and "IOPub" in str(error):
        return "its output did not all arrive"
    if kind == "CellTimeoutError":
        return f"the cell took longer than {timeout_s:g} s"
    if kind == "DeadKernelError" or "Kernel died" in str(error):
        return "the kernel died (it was killed, ran out of memory, or could not start)"
    kind = getattr(error, "ename", kind)
    text = str(getattr(error, "evalue", error)).strip()
    if not text:
        return kind
    return safe(f"{kind}: {text.splitlines()[-1]}", 500)
