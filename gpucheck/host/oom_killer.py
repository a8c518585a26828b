"""The kernel's out-of-memory killer, as its counters tell of it."""

from __future__ import annotations

import re
from pathlib import Path

_COUNT = re.compile(r"^oom_kill (\d+)$", re.MULTILINE)


class OomKills:
    """How many processes the killer has ended where this one counts: in its control group, else on the machine."""

    def __init__(self, root: Path = Path("/")) -> None:
        candidates = [*_of_control_group(root), (root / "proc/vmstat", "this machine")]
        found = [(path, where) for path, where in candidates if _read(path) is not None]
        self._path: Path | None = found[0][0] if found else None
        self.where = found[0][1] if found else ""

    def count(self) -> int:
        """The count so far; 0 where no counter can be read."""
        return (_read(self._path) or 0) if self._path else 0


def _of_control_group(root: Path) -> list[tuple[Path, str]]:
    """Files of versions 2 and 1 that may hold the counter; in a container its own group is the root."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return []
    found = []
    for _, controllers, group in (line.split(":", 2) for line in lines if line.count(":") >= 2):
        if not controllers:
            folder, name = root / "sys/fs/cgroup", "memory.events"
        elif "memory" in controllers.split(","):
            folder, name = root / "sys/fs/cgroup/memory", "memory.oom_control"
        else:
            continue
        found += [(path / name, "this control group") for path in (folder / group.strip("/"), folder)]
    return found


def _read(path: Path) -> int | None:
    try:
        match = _COUNT.search(path.read_text())
    except OSError:
        return None
    return int(match[1]) if match else None
