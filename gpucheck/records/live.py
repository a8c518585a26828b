"""Following the records of a run while it is being written."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gpucheck.model.record import Outcome, Record
from gpucheck.records.run_folder import rank_files


@dataclass
class RankState:
    """How far a rank has come."""

    started: bool = False
    step: int | None = None  # running now
    round: int = 0  # pass over the plan
    experiment: str = ""  # that the step runs for
    building: bool = False  # what its candidate has built by a compiler
    done: int = 0
    failed: int = 0
    ended: bool = False


@dataclass
class Follower:
    """Reads what is new in the records of a run at each call of :meth:`poll`; what cannot be read is passed over."""

    run: Path
    world_size: int
    must_fail: frozenset[int] = frozenset()  # steps whose failure is no news
    built: list[int] = field(default_factory=list)  # steps whose candidates were being built, for who takes them out
    ranks: dict[int, RankState] = field(default_factory=dict)
    _offsets: dict[Path, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.ranks = {rank: RankState() for rank in range(self.world_size)}

    def poll(self) -> list[Record]:
        """The records of planned attempts written since the last call."""
        fresh = []
        for rank, path in rank_files(self.run):
            for item in self._new_lines(path):
                try:
                    record = self._apply(self.ranks.setdefault(rank, RankState()), item)
                except (KeyError, TypeError, ValueError, AttributeError):
                    continue
                if record is not None:
                    fresh.append(record)
        return fresh

    def _new_lines(self, path: Path) -> list[dict[str, Any]]:
        with open(path, "rb") as file:
            file.seek(self._offsets.get(path, 0))
            content = file.read()
        whole = content.rfind(b"\n") + 1  # a line still being written waits for the next call
        self._offsets[path] = self._offsets.get(path, 0) + whole
        items = []
        for line in content[:whole].splitlines():
            try:
                items.append(json.loads(line))
            except ValueError:
                continue
        return items

    def _apply(self, state: RankState, item: dict[str, Any]) -> Record | None:
        event = item.get("event")
        state.started = True
        if event == "begin":
            state.step, state.experiment = item["step"], item.get("experiment", "")
            state.round, state.building = max(state.round, item.get("round", 0)), False
        elif event == "building":
            state.building = True
            self.built.append(int(item["step"]))
        elif event == "end":
            state.ended, state.step = True, None
        elif event == "result":
            record = Record.from_json(item)
            state.building = False
            if record.experiment:
                return None
            state.done += not record.round
            good = (Outcome.PASS, Outcome.INAPPLICABLE)
            state.failed += record.outcome not in good and record.step not in self.must_fail
            return record
        return None
