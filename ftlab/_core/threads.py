"""How many cores this process has, and how its threads wait for one another."""

from __future__ import annotations

import math
import os
from pathlib import Path

QUOTA = Path("/sys/fs/cgroup/cpu.max")  # of a container: "microseconds period", or "max period"


def cores() -> int:
    """Return the number of cores that this process may use, within its container's quota."""
    allowed = os.cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):
        allowed = len(os.sched_getaffinity(0))
    try:
        quota, period = QUOTA.read_text().split()
        granted = math.ceil(int(quota) / int(period))
    except (OSError, ValueError):  # no quota
        granted = allowed
    return max(1, min(allowed, granted))


def settle() -> None:
    """Set how the threads of torch wait, before it loads; what the user has set stays.

    OpenMP's threads spin while they wait, which takes the cores from whatever else runs, and from
    one another: on a busy machine everything then takes many times longer.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    os.environ.setdefault("OMP_NUM_THREADS", str(cores()))
