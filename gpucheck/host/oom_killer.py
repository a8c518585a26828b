"""The kernel's out-of-memory killer, as its counters tell of it."""

from __future__ import annotations

import re
from pathlib import Path

from gpucheck.host.control_group import memory_groups
from gpucheck.host.text_file import text_of

_COUNT = re.compile(r"^oom_kill (\d+)$", re.MULTILINE)


class OomKills:
    """How many processes the killer has ended where this one counts: in its control group, else on the machine."""

    def __init__(self, root: Path = Path("/")) -> None:
        names = {2: "memory.events", 1: "memory.oom_control"}
        groups = memory_groups(root / "proc", root / "sys/fs/cgroup")
        files = [folder / names[group.version] for group in groups for folder in (group.folder, group.root)]
        candidates = [*((file, "this control group") for file in files), (root / "proc/vmstat", "this machine")]
        found = [(path, where) for path, where in candidates if _read(path) is not None]
        self._path: Path | None = found[0][0] if found else None
        self.where = found[0][1] if found else ""

    def count(self) -> int:
        """The count so far; 0 where no counter can be read."""
        return (_read(self._path) or 0) if self._path else 0


def _read(path: Path) -> int | None:
    match = _COUNT.search(text_of(path))
    return int(match[1]) if match else None
