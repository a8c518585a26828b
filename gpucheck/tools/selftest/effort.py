"""Where the time of a planted run went, from the lines that its ranks wrote."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gpucheck.records.run_folder import rank_files

CASES = "cases"  # stands for the name of an experiment: the cases as the plan has them, start of the rank included
WAITING = "waiting"  # nothing is under way: another rank is to be done first


@dataclass
class Effort:
    """What all ranks did, and how long the rank that worked longest was at each of it."""

    attempts: dict[str, int] = field(default_factory=dict)  # by experiment, of all ranks
    seconds: dict[str, float] = field(default_factory=dict)  # by experiment, of the rank that worked longest
    processes: int = 0  # started to own a device, by all ranks
    starting: float = 0.0  # s that starting them took, summed
    compiling: float = 0.0  # s that they compiled, summed

    @property
    def words(self) -> str:
        """One line, what took longest first."""
        longest = sorted(self.seconds.items(), key=lambda item: -item[1])
        often = {name: f" ({self.attempts.get(name, 0)})" for name in self.seconds if name != WAITING}
        parts = [f"{name} {seconds:.0f} s{often.get(name, '')}" for name, seconds in longest]
        each = f", {self.starting / self.processes:.2f} s each" if self.processes else ""
        return f"{', '.join(parts)}; {self.processes} processes{each}; compiling {self.compiling:.0f} s"


def effort_of(run: Path) -> Effort:
    """Reads the records of a run folder; a line that breaks off is passed over, as in a run that was killed."""
    effort = Effort()
    for _, path in rank_files(run):
        seconds = _read(path, effort)
        if _worked(seconds) > _worked(effort.seconds):
            effort.seconds = seconds
    return effort


def _worked(seconds: dict[str, float]) -> float:
    return sum(each for name, each in seconds.items() if name != WAITING)


def _read(path: Path, effort: Effort) -> dict[str, float]:
    """Adds a rank to what all ranks did; gives the seconds between its lines, by what it was at."""
    seconds, now, at, under_way = dict[str, float](), None, CASES, set[tuple[int, str]]()
    for item in _lines(path):
        if now is not None and "time" in item:
            seconds[at] = seconds.get(at, 0.0) + item["time"] - now
        now = item.get("time", now)
        if item["event"] == "begin":
            at = item["experiment"] or CASES
            under_way.add((item["step"], at))
        elif item["event"] == "result":
            name = item["experiment"] or CASES
            effort.attempts[name] = effort.attempts.get(name, 0) + 1
            under_way.discard((item["step"], name))
            at = at if under_way else WAITING
            effort.compiling += item["seconds"].get("compile", 0.0)
        elif item["event"] == "end":
            effort.processes += item["children"]
            effort.starting += item["child_seconds"]
    return seconds


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            item = json.loads(line)
        except ValueError:
            continue
        if isinstance(item, dict) and "event" in item:
            yield item
