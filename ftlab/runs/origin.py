"""Where and with what a run was made: versions, commit, hardware."""

from __future__ import annotations

import os
import platform
import subprocess
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from ftlab import __version__
from ftlab._core.calls import outermost
from ftlab._core.files import PACKAGE

PACKAGES = (
    "torch",
    "transformers",
    "trl",
    "peft",
    "bitsandbytes",
    "datasets",
    "accelerate",
    "numpy",
    "scipy",
)


def now() -> str:
    """Return the time in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def provenance() -> dict[str, Any]:
    """Return what is worth noting of this process, machine and call."""
    return {
        "started": now(),
        "python": platform.python_version(),
        "versions": dict(versions()),
        "commit": _commit(),
        "call": outermost(),
        "hardware": {
            "machine": platform.machine(),
            "system": platform.system(),
            "cores": os.cpu_count(),
        },
    }


@cache
def versions() -> dict[str, str]:
    """Return the versions of ftlab and of the libraries that decide its numbers, read once."""
    found = {"ftlab": __version__}  # installed metadata may be older than an editable checkout
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


@cache
def _commit() -> str:
    """Return the commit of a checkout when it was first asked for, "" outside one."""
    command = ["git", "-C", str(PACKAGE), "rev-parse", "HEAD"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=5)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()
