"""The control groups that limit the memory of this process, in both versions."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from gpucheck.host.text_file import text_of


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
