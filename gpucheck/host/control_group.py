"""The control groups that limit memory and processors of this process, in both versions."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from gpucheck.host.text_file import text_of

PROC, MOUNT = Path("/proc"), Path("/sys/fs/cgroup")
UNLIMITED = 1 << 60  # "no limit" is written as a number above this
_NAMES = {2: ("memory.max", "memory.current"), 1: ("memory.limit_in_bytes", "memory.usage_in_bytes")}


@dataclass(frozen=True)
class MemoryGroup:
    """This process's group in one hierarchy."""

    version: int  # 2, or 1
    root: Path
    folder: Path  # in a container the group's own folder is the root, and this one is not there


def memory_groups(proc: Path, mount: Path) -> list[MemoryGroup]:
    """The groups that ``/proc/self/cgroup`` names.

    Args:
        proc: the folder that stands for /proc.
        mount: the folder that stands for /sys/fs/cgroup.
    """
    found = []
    for line in text_of(proc / "self/cgroup").splitlines():
        number, controllers, path = [*line.split(":", 2), "", ""][:3]
        if number == "0" or "memory" in controllers.split(","):
            root = mount if number == "0" else mount / "memory"
            found.append(MemoryGroup(2 if number == "0" else 1, root, root / path.strip("/")))
    return found


def memory_limit(proc: Path = PROC, mount: Path = MOUNT) -> tuple[int, int] | None:
    """Bytes that the control group of this process may use and those it does use; None without a limit.

    Args:
        proc: as in :func:`memory_groups`, like the next.
    """
    found = []
    for group in memory_groups(proc, mount):
        above = (folder for folder in group.folder.parents if folder.is_relative_to(group.root))
        for folder in (group.folder, *above):
            allowed, used = (text_of(folder / name).strip() for name in _NAMES[group.version])
            if allowed.isdigit() and int(allowed) < UNLIMITED:
                found.append((int(allowed), int(used) if used.isdigit() else 0))
    return min(found, default=None, key=lambda pair: pair[0] - pair[1])


def cpu_quota(mount: Path = MOUNT) -> float | None:
    """Processors' worth of time that a container may use; None without a limit."""
    fields = text_of(mount / "cpu.max").split()
    if len(fields) == 2 and all(field.isdigit() for field in fields) and int(fields[1]):
        return int(fields[0]) / int(fields[1])
    quota, period = (text_of(mount / f"cpu/cpu.cfs_{name}_us").strip() for name in ("quota", "period"))
    return int(quota) / int(period) if quota.isdigit() and period.isdigit() and int(quota) * int(period) else None
