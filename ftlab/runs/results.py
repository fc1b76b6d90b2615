"""Where a notebook's figures and claims go."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ftlab._core.errors import Busy, UsageError
from ftlab._core.files import FolderLock, digest, storage
from ftlab.runs.store import home

_held: dict[Path, FolderLock] = {}  # by folder, until this process ends


def results_folder(name: str, out: str | Path = "", **parameters: Any) -> str:
    """Return where a notebook's figures and claims go.

    A folder that was given belongs to this process until it ends: two notebooks at the same time,
    which may have other parameters, do not mix their results.

    Args:
        name: Name of the notebook.
        out: The folder, if it was given.
        **parameters: The notebook's other parameters. Without `out` the folder's name ends in their
            hash, so that no call writes over the results of another.

    Returns:
        The folder's path.

    Raises:
        Busy: `output_busy`, if another process writes to the folder that was given.
        UsageError: `output_not_writable`.
    """
    if not out:
        return str(home() / f"{name}-{digest(parameters)[:10]}")
    folder = Path(out).absolute()
    if folder not in _held:
        _held[folder] = _taken(folder)
    return str(out)


def _taken(folder: Path) -> FolderLock:
    from filelock import Timeout

    try:
        with storage(folder):
            folder.mkdir(parents=True, exist_ok=True)
            return FolderLock(folder).acquire(timeout=0)
    except Timeout:
        raise Busy(
            "output_busy",
            f"Another notebook is writing to {folder}. End its kernel, or give another out.",
        ) from None
    except OSError as error:
        raise UsageError(
            "output_not_writable",
            f"{folder} cannot be written ({error.strerror}). Give another out.",
        ) from error
