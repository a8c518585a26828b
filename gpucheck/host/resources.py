"""What of this machine a process may use: processors and memory, as its control group and whoever started it allow."""

from __future__ import annotations

import os
from pathlib import Path

from gpucheck.host.control_group import MOUNT, PROC, cpu_quota, memory_limit
from gpucheck.host.text_file import text_of

SHARE = "GPUCHECK_PROCESSORS"
"""Environment variable: processors that a run may use at most, where several runs share the machine."""


def usable_processors(mount: Path = MOUNT) -> int:
    """Those this process may run on, or as many as its control group or :data:`SHARE` grants, if those are fewer."""
    cores = len(os.sched_getaffinity(0))
    quota, share = cpu_quota(mount), os.environ.get(SHARE, "")
    return max(1, int(min(cores, cores if quota is None else quota, int(share) if share.isdigit() else cores)))


def available_memory(proc: Path = PROC, mount: Path = MOUNT) -> int | None:
    """Bytes that this process and its children can still have; None where nothing tells."""
    lines = (line.partition(":") for line in text_of(proc / "meminfo").splitlines())
    found = [int(value.split()[0]) * 1024 for key, _, value in lines if key == "MemAvailable"]
    limit = memory_limit(proc, mount)
    return min([*found, *([max(0, limit[0] - limit[1])] if limit else [])], default=None)
