"""A search on disk: what was asked for and every run so far, complete at any moment."""

from __future__ import annotations

import functools
import json
import sys
from dataclasses import asdict, dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

from gpucheck import __version__
from gpucheck.host.software import PACKAGES, installed_version
from gpucheck.model.errors import UsageError
from gpucheck.model.plain import read
from gpucheck.records.run_folder import write_json
from gpucheck.tools.bisect import sources
from gpucheck.tools.bisect.observation import Observation
from gpucheck.tools.bisect.sources import AnySource
from gpucheck.tools.bisect.sources.base import Candidate
from gpucheck.tools.bisect.target import Target

SCHEMA = 1
FILE = "state.json"


class Find(str, Enum):
    """What is looked for."""

    BAD = "bad"  # the first bad candidate, or the patches that break the case
    FIX = "fix"  # the first good one after bad ones, or the patches that fix the case


@dataclass
class State:
    """Everything a search needs to go on, and what it has learnt."""

    work: Path  # folder of the search
    source: AnySource
    target: Target
    find: Find
    bits: bool = False  # an output's bits are searched for instead of a failure
    repeat: int | None = None  # runs a candidate; None: as the failure rate asks for
    candidates: list[Candidate] = field(default_factory=list)  # of a history, in order
    observations: dict[str, list[Observation]] = field(default_factory=dict)  # by the candidate's key
    result: dict[str, Any] | None = None

    @property
    def file(self) -> Path:
        return self.work / FILE

    @property
    def runs(self) -> int:
        return sum(len(observations) for observations in self.observations.values())

    def of(self, candidate: Candidate) -> list[Observation]:
        """What the runs of a candidate showed so far."""
        return self.observations.setdefault(candidate.key, [])

    def save(self) -> None:
        """Writes the state so that it appears complete or not at all."""
        content = {"schema": SCHEMA, "made_with": made_with(), **asdict(self), "source": sources.to_json(self.source)}
        del content["work"]
        write_json(self.file, content)


def load(path: Path) -> State:
    """Reads the state of a search.

    Args:
        path: the file, or the folder of the search.

    Raises:
        UsageError: no such file, not the state of a search, or one that other software made.
    """
    file = path / FILE if path.is_dir() else path
    try:
        item = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UsageError(f"--resume {path}: cannot be read: {reason}") from None
    if not isinstance(item, dict) or "observations" not in item or not isinstance(item.get("schema"), int):
        raise UsageError(f"--resume {path} is not the state of a search")
    if item["schema"] > SCHEMA:
        raise UsageError(f"--resume {path} has schema {item['schema']}, this gpucheck reads up to {SCHEMA}")
    changed = [
        f"{name} was {was}, is {made_with().get(name)}"
        for name, was in item.get("made_with", {}).items()
        if made_with().get(name) != was
    ]
    if changed:
        raise UsageError(f"--resume {path}: runs of unlike software cannot be compared: {'; '.join(changed)}")
    try:
        return _read(file, item)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UsageError(f"--resume {path} is damaged: {error!r}") from None


@functools.cache
def made_with() -> dict[str, str | None]:
    """The software that the runs of a search share; a package under search takes its own place."""
    packages = {name: installed_version(name) for name in PACKAGES}
    return {"gpucheck": __version__, "python": sys.executable, **packages}


def _read(file: Path, item: dict[str, Any]) -> State:
    return State(
        work=file.resolve().parent,
        source=sources.from_json(item["source"]),
        target=read(Target, item["target"]),
        find=Find(item["find"]),
        bits=item["bits"],
        repeat=item["repeat"],
        candidates=[read(Candidate, part) for part in item["candidates"]],
        observations={
            key: [read(Observation, observation) for observation in observations]
            for key, observations in item["observations"].items()
        },
        result=item["result"],
    )
