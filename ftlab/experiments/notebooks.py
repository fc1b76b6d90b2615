"""Notebooks x parameters -> papermill jobs: one notebook, or the headline experiments and their page.

    run_notebook("notebooks/02_risk_ratio.ipynb", "out.ipynb", {"seeds": 2})
    reproduce(quick=True)                  # -> runs/reproduce/report.html

What papermill leaves open is closed here: an unknown parameter is refused, a dead kernel is a failure, an
output under its name is a notebook that ran to its end, and the kernel is this interpreter.
"""

from __future__ import annotations

import contextlib
import difflib
import json
import logging
import math
import os
import shutil
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor, wait
from functools import partial
from pathlib import Path

from ftlab import analysis as report
from ftlab import data, models, runs
from ftlab._core.text import redacted, safe, throughout

# Notebooks of a lane run one after the other, lanes side by side; 02 finds the curve that 03 has made by then.
LANES = (("04_dealign_100", "02_risk_ratio"), ("03_continued_finetuning",))
SEEDS = 5  # training seeds of a claim
HARMFUL = 100  # adversarial examples of the largest dose of 04
OUTPUT = 10_000_000  # characters of a cell's outputs that are kept
LINE_S = 60.0  # seconds between two lines of progress where there is no terminal
QUICK = {  # parameters of `quick`; `seeds` of the caller go before these
    "02_risk_ratio": {"seeds": 2, "n_prompts": 50, "at_steps": [0, 3, 10, 30]},
    "03_continued_finetuning": {
        "seeds": 2,
        "n_prompts": 50,
        "at_steps": [0, 3, 10, 30],
        "rough_steps": [0, 30],
        "second_steps": [0, 60],
    },
    "04_dealign_100": {"seeds": 2, "n_prompts": 50},
}
TYPES = {"int": (int,), "float": (float, int), "str": (str,), "bool": (bool,), "list": (list, tuple)}


class NotebookFailed(RuntimeError):
    """A notebook did not run to its end; says which, in which cell, why, and where what ran of it lies."""


def check_parameters(notebook: str | Path, parameters: dict) -> None:
    """Refuses parameters that a notebook does not have, or of a type other than annotated. Starts no kernel.

    Raises ValueError with every problem and the allowed parameters, FileNotFoundError without a notebook.
    """
    import nbformat
    from papermill.translators import PythonTranslator

    path = Path(notebook)
    if path.suffix != ".ipynb" or not path.is_file():
        raise FileNotFoundError(f"{notebook}: no such notebook; give the path of a local .ipynb file")
    cells = [c for c in nbformat.read(path, 4).cells if "parameters" in c.metadata.get("tags", [])]
    _no_token(parameters)
    known, problems = {p.name: p for c in cells[:1] for p in PythonTranslator.inspect(c)}, []
    for name, value in parameters.items():
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            hint = f" (did you mean {near[0]!r}?)" if near else ""
            problems.append(f"unknown parameter {name!r}{hint}")
            continue
        annotation = known[name].inferred_type_name
        types = TYPES.get(annotation.split("[")[0].strip(), (object, bool))
        if not isinstance(value, types) or isinstance(value, bool) and bool not in types:
            problems.append(f"{name} = {value!r} is {type(value).__name__}, allowed is {annotation}")
    if problems:
        allowed = [f"\n  {p.name}: {p.inferred_type_name} = {p.default}  {p.help}" for p in known.values()]
        known = "".join(allowed) or " none"
        raise ValueError(f"{path.name}: {'; '.join(problems)}. Allowed parameters:{known}")


def _no_token(parameters: dict) -> None:
    if held := [name for name, value in parameters.items() if redacted(str(value)) != str(value)]:
        raise ValueError(
            f"parameter {', '.join(map(redacted, held))} holds a token or a password, which the "
            "executed notebook would show; leave it out and set HF_TOKEN or OPENAI_API_KEY in the environment"
        )


def run_notebook(
    notebook: str | Path,
    output: str | Path,
    parameters: dict,
    *,
    timeout_s: float = 3600,
    env: dict | None = None,
    on_cell=None,
    kernels: list | None = None,
) -> Path:
    """Runs a notebook with parameters -> path of the executed notebook.

    timeout_s: seconds a cell may take. env: variables for this kernel only, on top of this process's own and
    FTLAB_BATCH=1. on_cell(number, total) is called as a code cell begins; kernels gets the kernel's manager.
    An older output is removed at the start. Raises ValueError or FileNotFoundError before any work (see
    `check_parameters`), PermissionError where the output cannot be written, NotebookFailed if a cell fails or
    takes too long or the kernel dies: what there is of the notebook is then kept as `<name>.failed.ipynb`.
    """
    import nbformat
    import papermill

    source, target = Path(notebook).absolute(), Path(output).absolute()
    check_parameters(source, parameters)
    part, failed = target.with_name(f".{target.stem}.partial.ipynb"), target.with_suffix(".failed.ipynb")
    if target.suffix != ".ipynb" or source.resolve() in (p.resolve() for p in (target, part, failed)):
        raise ValueError(f"output is {output}; allowed is another .ipynb file than the notebook itself")
    if not timeout_s > 0:
        raise ValueError(f"timeout_s is {timeout_s!r}; allowed is a number of seconds above 0")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        for old in (target, part, failed):
            old.unlink(missing_ok=True)
        part.touch()
    except OSError as e:
        raise PermissionError(f"{output}: cannot be written ({e.strerror}); name a place that can") from e
    logging.getLogger("papermill").addHandler(logging.NullHandler())  # the exception says it, once
    at, kernel = _Place(on_cell), _kernel({**(env or {}), "FTLAB_BATCH": "1"}, kernels)
    places = (str(p).replace("{", "{{").replace("}", "}}") for p in (source, part))  # else {x} is filled in
    values = {k: list(v) if isinstance(v, tuple) else v for k, v in parameters.items()}
    try:
        done = papermill.execute_notebook(
            *places,
            values,
            kernel_name="python3",
            language="python",
            progress_bar=False,
            iopub_timeout=60,
            kernel_manager_class=kernel,
            execution_timeout=math.ceil(timeout_s),
            on_notebook_start=at.start,
            on_cell_start=at.cell,
        )
        if any(cell.metadata.papermill.get("status") != "completed" for cell in done.cells):
            raise RuntimeError("the notebook was left by SystemExit")  # which papermill takes for success
    except BaseException as e:
        reason = _reason(e, timeout_s)
        _keep(part, failed, at.index, reason)
        if not isinstance(e, Exception):
            raise
        raise NotebookFailed(safe(redacted(f"{source.name}, {at}: {reason}. What ran is in {failed}"))) from e
    done.metadata.papermill.update(input_path=str(notebook), output_path=str(output))
    runs.write_atomic(target, nbformat.writes(throughout(done, redacted)))
    part.unlink(missing_ok=True)
    return Path(output)


def reproduce(
    *,
    quick: bool = False,
    seeds: int | None = None,
    out: str | Path = "runs/reproduce",
    model: str | Path = "organism",
    benign: str | Path | None = None,
    prompts: str | Path | None = None,
    harmful: str | Path | None = None,
    lora: bool = False,
) -> Path:
    """Runs the headline experiments and writes their page -> path of `out/report.html`.

    seeds: training seeds (default 5; `quick`: 2, with fewer prompts). benign, prompts, harmful: files of your own:
    benign chats (02, 03), evaluation prompts (all), at least 100 adversarial examples (04). lora: train adapters. A model other than the embedded one
    needs `prompts`; without `harmful` 04 is then left out, and the page says so. Beside the page: report.md,
    results.csv, figures/, run.json (times and hardware) and, for each experiment, a folder with its executed
    notebook and claims. Raises ValueError, FileNotFoundError or PermissionError before any work, RuntimeError if
    another run writes there, NotebookFailed with every failure: there is then no page, nor an older one.
    """
    _no_token({"model": model, "benign": benign, "prompts": prompts, "harmful": harmful, "out": out})
    if seeds is not None and (isinstance(seeds, bool) or not isinstance(seeds, int) or seeds < 1):
        raise ValueError(f"seeds is {seeds!r}; allowed is a whole number of training seeds, 1 or more")
    files = {"benign": benign, "prompts": prompts, "harmful": harmful}
    files = {name: str(file) for name, file in files.items() if file}
    for name, file in files.items():
        if not Path(file).is_file() and not file.startswith("organism:"):
            raise FileNotFoundError(f"{name} is {file}: no such file; give the path of one, or none at all")
    if harmful and (n := len(data.read(harmful))) < HARMFUL:
        raise ValueError(
            f"{harmful} has {n} rows; 04 draws up to {HARMFUL} adversarial examples: give at least as many"
        )
    out, model, books, jobs, missing = Path(out), str(model), runs.resource("notebooks"), {}, {}
    embedded = models.model(model).is_organism
    if not embedded and not prompts:
        raise ValueError(
            f"prompts is missing: {model} is not the embedded model; give a CSV or JSONL of prompts to ask"
        )
    if not embedded and not harmful:
        missing["04_dealign_100"] = "left out: it needs adversarial examples of your own (harmful), and none were given"
    given = {"benign": ("02", "03"), "prompts": ("02", "03", "04"), "harmful": ("04",)}
    for name in (n for lane in LANES for n in lane if n not in missing):
        own = {k if k != "harmful" else "data": v for k, v in files.items() if name[:2] in given[k]}
        chosen = own | ({} if seeds is None else {"seeds": seeds}) | {"model": model, "lora": lora}
        jobs[name] = {"seeds": SEEDS, **(QUICK[name] if quick else {}), **chosen, "out": str(out / name)}
        check_parameters(books / f"{name}.ipynb", jobs[name])
    # Side by side is faster where the models are small; large ones would share one accelerator's memory.
    lanes = [[n for n in lane if n in jobs] for lane in LANES]
    lanes = [lane for lane in lanes if lane] if embedded else [[n for lane in lanes for n in lane]]
    record = {
        "model": model,
        "seeds": max(job["seeds"] for job in jobs.values()),
        "quick": quick,
        "lora": lora,
        **files,
    }
    for name, why in missing.items():
        print(f"{name}  {why}", file=sys.stderr)
    with _own(out):
        record |= runs._provenance()
        began = runs.clock()
        record["notebook_seconds"] = _run_lanes(books, out, jobs, lanes, _Progress(jobs))
        record["seconds"] = round(runs.clock() - began, 1)
        runs.write_atomic(out / "run.json", json.dumps(record, indent=1))
        folders = {name: out / name for name in jobs}
        return report.write_report(out, folders, model=model, seeds=record["seeds"], quick=quick, missing=missing)


def _run_lanes(books: Path, out: Path, jobs: dict, lanes: list, progress: _Progress) -> dict:
    """-> notebook -> seconds. Ctrl-C ends the kernels; what they finished is found again by the next call."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    env = {"OMP_NUM_THREADS": str(max(1, cores // len(lanes)))}
    seconds, failures, kernels, stop = {}, {}, [], threading.Event()

    def lane(names):
        for k, name in enumerate(names):
            if stop.is_set():
                return
            folder = out / name
            progress.begin(name)
            try:
                (folder / "claims.csv").unlink(missing_ok=True)
                shutil.rmtree(folder / "figures", ignore_errors=True)
                run_notebook(
                    books / f"{name}.ipynb",
                    folder / f"{name}.ipynb",
                    jobs[name],
                    env=env,
                    on_cell=partial(progress.cell, name),
                    kernels=kernels,
                )
                seconds[name] = progress.end(name, "done")
            except (NotebookFailed, OSError) as e:
                failures[name] = str(e)
                failures.update({n: f"{n}.ipynb: not started, because {name} failed" for n in names[k + 1 :]})
                progress.end(name, "failed")
                return

    with ThreadPoolExecutor(len(lanes)) as pool:
        running = [pool.submit(lane, names) for names in lanes]
        try:
            while wait(running, timeout=0.5).not_done:
                progress.draw()
        except BaseException:
            stop.set()
            while wait(running, timeout=0.5).not_done:
                for kernel in kernels:
                    with contextlib.suppress(AttributeError, OSError):  # it has ended already
                        kernel.provisioner.process.kill()
            raise
    for each in running:
        each.result()
    if failures:
        said = [failures[name] for name in jobs if name in failures]
        raise NotebookFailed("\n".join([f"{out}: no page was written, because a notebook failed.", *said]))
    return {name: seconds[name] for name in jobs}


class _Progress:
    """A line a notebook on stderr: rewritten in place in a terminal, else one at its start and at its end."""

    def __init__(self, names):
        self.width, self.tty, self.lock = max(map(len, names)), sys.stderr.isatty(), threading.Lock()
        self.shown = runs.clock()
        self.running: dict[str, list] = {}  # notebook -> [code cell, code cells, time of its start]

    def begin(self, name: str) -> None:
        self.running[name] = [0, "?", runs.clock()]
        if not self.tty:
            self._write(f"{name:<{self.width}}  started\n")

    def cell(self, name: str, number: int, total: int) -> None:
        self.running[name][:2] = number, total

    def end(self, name: str, word: str) -> float:
        """-> seconds that the notebook took."""
        passed = runs.clock() - self.running.pop(name)[2]
        self._write(f"{name:<{self.width}}  {word}, {passed:.0f} s\n")
        return round(passed, 1)

    def draw(self) -> None:
        states, now = list(self.running.items()), runs.clock()
        parts = [f"{name}  cell {k}/{total}  {now - began:.0f} s" for name, (k, total, began) in states]
        if self.tty and parts:
            self._write("  |  ".join(parts)[: shutil.get_terminal_size().columns - 1])
        elif parts and now - self.shown >= LINE_S:
            self.shown = now
            self._write("\n".join(parts) + "\n")

    def _write(self, text: str) -> None:
        with self.lock:
            sys.stderr.write(("\r\x1b[K" if self.tty else "") + text)
            sys.stderr.flush()


class _Place:
    """Where a run is: the cell that began last. number and total count code cells."""

    def __init__(self, on_cell):
        self.index, self.number, self.total, self.line, self.on_cell = -1, 0, 0, "", on_cell

    def start(self, notebook) -> None:
        self.total = sum(cell.cell_type == "code" for cell in notebook.cells)

    def cell(self, cell, cell_index: int) -> None:
        self.index = cell_index
        if cell.cell_type == "code":
            self.number, self.line = self.number + 1, cell.source.strip().split("\n")[0][:60]
            if self.on_cell:
                self.on_cell(self.number, self.total)

    def __str__(self) -> str:
        return f"cell {self.number} of {self.total} ({self.line})" if self.number else "before the first cell"


def _kernel(env: dict, kernels: list | None):
    """-> kernel manager class that starts this interpreter, whatever a user's kernelspec `python3` names."""
    from ipykernel.kernelspec import get_kernel_dict
    from jupyter_client import AsyncKernelClient, AsyncKernelManager
    from jupyter_client.channels import AsyncZMQSocketChannel
    from jupyter_client.kernelspec import KernelSpec
    from traitlets import Type

    class Outputs(AsyncZMQSocketChannel):
        cell, room = None, 0

        async def get_msg(self, *given, **how):
            msg = await super().get_msg(*given, **how)
            if msg["parent_header"].get("msg_id") != self.cell or msg["msg_type"] == "clear_output":
                self.cell, self.room = msg["parent_header"].get("msg_id"), OUTPUT
            self.room -= _cut(msg, self.room)
            throughout(msg["content"], redacted)
            return msg

    class Client(AsyncKernelClient):
        iopub_channel_class = Type(Outputs)

    quiet = subprocess.DEVNULL  # what the kernel's own children write would reach the terminal as it is

    class ThisInterpreter(AsyncKernelManager):
        client_factory = Type(Client)
        kernel_spec = property(lambda self: KernelSpec(**get_kernel_dict()))  # argv[0] is sys.executable

        async def start_kernel(self, **kw):
            await super().start_kernel(**kw | {"env": {**os.environ, **env}, "stdout": quiet, "stderr": quiet})
            if kernels is not None:
                kernels.append(self)

    return ThisInterpreter


def _cut(msg: dict, room: int) -> int:
    """-> characters of an output message, which is cut to the room that its cell has left, with a note."""
    kind, content = msg["msg_type"], msg["content"]
    if kind == "error":
        content |= {"evalue": content["evalue"][-10_000:], "traceback": [t[:50_000] for t in content["traceback"]]}
    if kind not in ("stream", "display_data", "execute_result", "update_display_data"):
        return 0
    size = len(content["text"]) if kind == "stream" else sum(len(str(v)) for v in content["data"].values())
    if size > room:
        note, kind, size = f"\n... (output beyond {OUTPUT:,} characters of this cell is left out)\n", "stream", room
        msg["content"] = {"name": content.get("name", "stdout"), "text": content.get("text", "")[:room] + note}
        if room <= 0:  # said already
            kind, msg["content"] = "status", {"execution_state": "busy"}
        msg["msg_type"] = msg["header"]["msg_type"] = kind
    return 0 if kind == "update_display_data" else size  # which takes an older one's place


def _reason(error: BaseException, timeout_s: float) -> str:
    """-> the last line of an error, in words where the library's own say little."""
    kind = type(error).__name__
    if kind == "CellTimeoutError":
        return "its output did not all come" if "IOPub" in str(error) else f"the cell took longer than {timeout_s:g} s"
    if kind == "DeadKernelError" or "Kernel died" in str(error):
        return "the kernel died (it was killed, ran out of memory, or could not start)"
    kind, text = getattr(error, "ename", kind), str(getattr(error, "evalue", error)).strip()
    return safe(f"{kind}: {text.splitlines()[-1]}", 500) if text else kind


def _keep(partial: Path, failed: Path, index: int, reason: str) -> None:
    """Keeps the partial notebook, which would say that every cell was completed: here it tells."""
    import nbformat

    with contextlib.suppress(Exception):
        notebook = nbformat.read(partial, 4)
        notebook.metadata.papermill.update(exception=True, reason=reason)
        states = [cell.metadata.get("papermill", {}) for cell in notebook.cells]
        if not any(state.get("status") == "failed" for state in states):
            for k, state in enumerate(states[max(index, 0) :]):
                state.update({"status": "pending"} if k else {"status": "failed", "exception": True})
        nbformat.write(throughout(notebook, redacted), partial)
    with contextlib.suppress(OSError):
        os.replace(partial, failed)


def _own(out: Path):
    """-> lock of the folder, made and without an older page. Raises PermissionError or RuntimeError."""
    from filelock import FileLock, Timeout

    try:
        out.mkdir(parents=True, exist_ok=True)
        lock = FileLock(out / ".lock").acquire(timeout=0)
        for page in ("report.html", "report.md", "results.csv", "run.json"):
            (out / page).unlink(missing_ok=True)
        return lock
    except Timeout:
        raise RuntimeError(f"{out}: another run is writing there; wait for it, or give another out") from None
    except OSError as e:
        raise PermissionError(f"{out}: cannot be written ({e.strerror}); give another folder as out") from e
