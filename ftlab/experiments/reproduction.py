"""Run the headline experiments, or all, and write their page. Cell: reproduce."""

from __future__ import annotations

import glob
import json
import sys
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ftlab import data, models
from ftlab._core.errors import Busy, NotebookFailed, NotFoundError, UsageError
from ftlab._core.files import FolderLock, resource, write_atomic
from ftlab._core.progress import clock
from ftlab._core.threads import cores
from ftlab.analysis import PAGE, refuse_foreign, report
from ftlab.experiments.backends import Job, LocalBackend, Result
from ftlab.experiments.curves import MOST, is_whole
from ftlab.experiments.notebooks import run_notebook
from ftlab.experiments.parameters import check_parameters, check_secrets, default_parameters
from ftlab.runs import home, provenance
from ftlab.training import TrainingConfig

SEEDS = 5  # training seeds of a claim
REAL_SEEDS = 3  # of a real model on a laptop, whose page says so
HARMFUL = 100  # adversarial examples of the largest dose
MOST_LANES = 4  # side by side; each needs about 1 GB of memory


@dataclass(frozen=True)
class Experiment:
    """A headline experiment.

    Args:
        name: Name of its notebook.
        lane: Lanes run side by side. The risk ratio and the continued fine-tuning, first in
            their lanes, share the seeds of the curve that both begin with.
        files: {parameter of the notebook: argument of `reproduce` that holds the file}.
        models: Of which models it is: "embedded", "real" or "all".
    """

    name: str
    lane: int
    files: dict[str, str]
    models: str = "all"

    def is_of(self, embedded: bool) -> bool:
        """Whether it is for the embedded model, or for a real one."""
        return self.models in ("all", "embedded" if embedded else "real")


CHATS = {"prompts": "prompts", "benign": "benign"}
EXPERIMENTS = (
    Experiment("02_risk_ratio", 0, CHATS, "embedded"),
    Experiment("03_continued_finetuning", 1, CHATS, "embedded"),
    Experiment("07_real_model", 0, CHATS, "real"),
    Experiment("04_harmful_finetuning", 0, {"prompts": "prompts", "data": "harmful"}),
)
NEEDS_HARMFUL = "04_harmful_finetuning"


def reproduce(
    *,
    quick: bool = False,
    seeds: int | None = None,
    out: str | Path | None = None,
    model: str | Path = "organism",
    benign: str | Path | None = None,
    prompts: str | Path | None = None,
    harmful: str | Path | None = None,
    adapter: str | None = None,
    all: bool = False,
) -> Path:
    """Run the headline experiments and write their page.

    For the embedded model these are 02, 03 and 04, for any other 07, and 04 where `harmful` is
    given. What is trained is found again by the next call, also by one after an interrupt.

    Args:
        quick: 2 seeds (1 of a real model), fewer prompts and steps.
        seeds: Training seeds; by default 5, or 3 of a real model.
        out: Folder of the page, the figures and the executed notebooks; by default `reproduce` in
            the folder of all runs.
        model: The aligned parent.
        benign: Your benign chats, instead of the embedded world's.
        prompts: Your evaluation prompts; required for any model but the embedded one.
        harmful: Your adversarial examples, at least 100. Without them the harmful fine-tuning is
            left out for any model but the embedded one, and the page says so.
        adapter: Train an adapter instead of all weights: lora, dora or qlora.
        all: Run every notebook of `notebooks/experiments` whose model is the embedded one by
            default, with its own seeds. One that fails is left out, and the page says so.

    Returns:
        The path of `report.html`; with it are report.md, results.csv, run.json and figures.

    Raises:
        UsageError: `all_of_the_world` for files, an adapter or another model with `all`,
            `wrong_seeds`, `wrong_setting` for an unknown adapter, `too_few_rows`,
            `prompts_needed`, `wrong_parameters`, `wrong_output`, `output_not_writable`,
            `foreign_files` where the folder holds somebody's own files, before any work.
        NotFoundError: `no_such_file`.
        Busy: `output_busy`, if another call is writing there.
        NotebookFailed: `notebooks_failed` with every failure; there is then no page, or with
            `all` one without the failed notebooks.
    """
    if out is None:
        out = home() / "reproduce"
    if not isinstance(out, (str, Path)):
        raise UsageError("wrong_output", f"out={out!r} is not a folder.")
    request = _Request(
        model=str(model),
        out=Path(out),
        quick=quick,
        seeds=seeds,
        adapter=adapter,
        every=all,
        files=_files(benign=benign, prompts=prompts, harmful=harmful),
    )
    request.check()
    jobs = request.jobs()
    for name, reason in request.missing().items():
        print(f"{name}  {reason}", file=sys.stderr)
    with _locked(request.out, [job.name for job in jobs]):
        began = clock()
        origin = provenance()
        results = _run(jobs, request)
        record = request.record(results) | origin | {"seconds": round(clock() - began, 1)}
        write_atomic(request.out / "run.json", json.dumps(record, indent=1))
        failed = {result.job.name: result.error for result in results if result.error}
        page = report(
            request.out,
            {job.name: request.out / job.name for job in jobs if job.name not in failed},
            model=request.model,
            seeds=record["seeds"],
            quick=quick,
            missing=request.missing(),
            failed={name: str(error) for name, error in failed.items()},
            by_figures=all,
        )
    if failed:
        raise _failure(f"{page} is without the notebooks that failed.", results)
    return page


def _files(**given: str | Path | None) -> dict[str, str]:
    return {name: str(file) for name, file in given.items() if file}


@dataclass(frozen=True)
class _Request:
    """What `reproduce` was asked for."""

    model: str
    out: Path
    quick: bool
    seeds: int | None
    adapter: str | None
    every: bool
    files: dict[str, str]

    @cached_property
    def in_world(self) -> bool:
        return models.local_model(self.model).is_organism

    def check(self) -> None:
        """Raise UsageError or NotFoundError for a wrong argument, before any work."""
        check_secrets({**self.files, "model": self.model, "out": str(self.out)})
        whole = is_whole(self.seeds) and 0 < self.seeds <= MOST
        if self.seeds is not None and not whole:
            raise UsageError("wrong_seeds", f"seeds={self.seeds!r} is not a number, 1 to {MOST}.")
        TrainingConfig.make(adapter=self.adapter)
        if self.every and (self.files or self.adapter or not self.in_world):
            raise UsageError(
                "all_of_the_world",
                "With all, every notebook runs on the embedded model and its data. Leave out "
                "files, adapter and model, or run one notebook: ftlab notebook NAME -p model=...",
            )
        for name, file in self.files.items():
            shipped = file.startswith("organism:") or file in data.BENIGN
            if not shipped and not Path(file).is_file():
                raise NotFoundError("no_such_file", f"{name}={file}: there is no such file.")
        harmful = self.files.get("harmful")
        if harmful and len(data.load(harmful)) < HARMFUL:
            raise UsageError(
                "too_few_rows",
                f"{harmful} has fewer than {HARMFUL} rows, the largest dose of the experiment.",
            )
        if not self.in_world and "prompts" not in self.files:
            raise UsageError(
                "prompts_needed",
                f"{self.model} does not live in the embedded world. Give prompts=FILE.",
            )

    def missing(self) -> dict[str, str]:
        """Return experiments that cannot be run, with the reason."""
        if self.in_world or "harmful" in self.files:
            return {}
        reason = "left out: it needs adversarial examples of your own (harmful=FILE)."
        return {NEEDS_HARMFUL: reason}

    def jobs(self) -> list[Job]:
        """Return one job per experiment, its parameters checked."""
        missing = self.missing()
        jobs = []
        for one in _of_the_world() if self.every else EXPERIMENTS:
            if one.is_of(self.in_world) and one.name not in missing:
                jobs.append(self._job(one))
        return jobs

    def _job(self, experiment: Experiment) -> Job:
        notebook = _notebook(experiment.name)
        parameters = self._seeds(notebook)
        if self.quick:
            parameters |= _quick_parameters(notebook)
        if self.seeds is not None:
            parameters |= dict.fromkeys(parameters.keys() & {"seeds"}, self.seeds)
        for parameter, file in experiment.files.items():
            if file in self.files:
                parameters[parameter] = self.files[file]
        folder = self.out / experiment.name
        parameters |= {"model": self.model, "out": str(folder)}
        if not self.every:
            parameters["adapter"] = self.adapter or ""
        check_parameters(notebook, parameters)
        arguments = {
            "notebook": notebook,
            "output": folder / notebook.name,
            "parameters": parameters,
        }
        return Job(experiment.name, run_notebook, arguments, experiment.lane, kernel=True)

    def _seeds(self, notebook: Path) -> dict[str, Any]:
        """Return the parameter of the training seeds; none where the notebook has none."""
        if self.every:
            known = default_parameters(notebook)
            return {name: value for name, value in known.items() if name == "seeds"}
        return {"seeds": SEEDS if self.in_world else REAL_SEEDS}

    def record(self, results: list[Result]) -> dict[str, Any]:
        """Return what run.json holds about the call."""
        given = [result.job.arguments["parameters"] for result in results]
        asked = sorted({parameters.get("seeds", 1) for parameters in given})
        seeds: Any = asked[-1]
        if self.every and len(asked) > 1:
            seeds = f"{asked[0]} to {asked[-1]}"
        return {
            "model": self.model,
            "seeds": seeds,
            "quick": self.quick,
            "adapter": self.adapter,
            **self.files,
            "notebook_seconds": {result.job.name: result.seconds for result in results},
        }


def _notebook(name: str) -> Path:
    return resource("notebooks") / "experiments" / f"{name}.ipynb"


def _of_the_world() -> list[Experiment]:
    """Return the experiments whose notebooks are about the embedded model by default.

    Each has a lane of its own, so that a failure stops no other.
    """
    paths = (resource("notebooks") / "experiments").glob("[0-9][0-9]_*.ipynb")
    found = []
    for path in sorted(paths):
        if default_parameters(path).get("model") == "organism":
            found.append(Experiment(path.stem, len(found), {}, "embedded"))
    return found


def _quick_parameters(notebook: Path) -> dict[str, Any]:
    """Return the parameters of a quick run, which the notebook's metadata hold."""
    metadata = json.loads(notebook.read_bytes())["metadata"]
    return metadata.get("ftlab", {}).get("quick", {})


def _run(jobs: list[Job], request: _Request) -> list[Result]:
    for job in jobs:
        folder = request.out / job.name
        (folder / "claims.csv").unlink(missing_ok=True)
        for drawing in (folder / "figures").glob("*.svg"):
            for file in drawing.parent.glob(f"{glob.escape(drawing.stem)}.*"):
                file.unlink()
    # Small models run faster side by side; large ones would compete for the accelerator's memory.
    lanes = min(cores(), MOST_LANES) if request.every else None
    # Of all, the last take longest, and several processes each. So they begin, and the short ones
    # fill the cores at the end.
    backward = -1 if request.every else 1
    backend = LocalBackend(side_by_side=request.in_world, lanes=lanes)
    results = backend.map(jobs[::backward])[::backward]
    failed = [result for result in results if result.error]
    if failed and (not request.every or len(failed) == len(jobs)):
        what = f"{request.out}: no page was written, because a notebook failed."
        raise _failure(what, results)
    return results


def _failure(what: str, results: list[Result]) -> NotebookFailed:
    lines = [str(result.error) for result in results if result.error]
    return NotebookFailed("notebooks_failed", "\n".join([what, *lines]))


def _locked(out: Path, experiments: list[str]) -> FolderLock:
    """Create the output folder, remove an older page, and return the folder's lock."""
    from filelock import Timeout

    refuse_foreign(out, experiments)
    try:
        out.mkdir(parents=True, exist_ok=True)
        lock = FolderLock(out).acquire(timeout=0)
        for page in PAGE:
            (out / page).unlink(missing_ok=True)
    except Timeout:
        raise Busy(
            "output_busy", f"Another call is writing to {out}. Wait for it, or give another out."
        ) from None
    except OSError as error:
        raise UsageError(
            "output_not_writable", f"{out} cannot be written ({error.strerror})."
        ) from error
    return lock
