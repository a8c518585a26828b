"""Cases that have no result: how far their rank came, and what ended it."""

from __future__ import annotations

import signal
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from gpucheck.model.plan import Plan
from gpucheck.model.record import Outcome, Record


@dataclass
class Traces:
    """What the lines of a rank tell, other than results."""

    started: bool = False
    ended: bool = False
    begun: list[tuple[int, int]] = field(default_factory=list)  # (pass, step) without a result so far
    stop: str = ""  # the signal that ended it
    death: str = ""  # how its supervisor died, in words
    said: list[str] = field(default_factory=list)  # what that printed, see Record
    log: str = ""
    skip: str = ""  # why it ran no further case

    def see(self, item: Mapping[str, Any]) -> None:
        """Takes in one line of the rank's records."""
        event, key = item.get("event"), (item.get("round", 0), item.get("step", -1))
        self.started |= event == "start"
        self.ended |= event == "end"
        if event == "begin" and not item.get("experiment"):
            self.begun = [*(other for other in self.begun if other != key), key]
        elif event == "result" and not item.get("experiment") and key in self.begun:
            self.begun.remove(key)
        elif event == "stop":
            self.stop = signal.Signals(item["signal"]).name if item.get("signal") in [*signal.Signals] else "a signal"
        elif event == "death":
            self.death, self.log = str(item.get("how", "")), str(item.get("log", ""))
            self.said = [str(line) for line in item.get("said", [])]
        elif event == "skip":
            self.skip = str(item.get("reason", ""))

    @property
    def open_steps(self) -> set[int]:
        """Steps that the rank was at when it ended."""
        return {step for _, step in self.begun}

    @property
    def died(self) -> bool:
        """Whether the rank died by itself, as far as the records tell."""
        return not self.ended and not self.stop


def lost(plan: Plan, number: int, rank: int, traces: Mapping[int, Traces], *, by_itself: bool) -> Record:
    """The record of a case that its rank left without a result.

    Args:
        traces: of all ranks.
        by_itself: torchrun ended without being told to by the command.
    """
    own = traces[rank]
    step = plan.steps[number]
    record = Record(number, step.case.id, rank, Outcome.LOST, placement=step.conditions.placement)
    reason = _reason(number, own)
    if own.death:
        there = number in own.open_steps or not own.open_steps
        said = own.said if there else []
        return replace(record, message=f"{reason}: its supervisor {own.death}", said=said, log=own.log)
    if not own.stop:
        return replace(record, message=reason)
    dead = next((other for other, seen in traces.items() if seen.died), None) if by_itself else None
    if dead is None:
        return replace(record, message=f"{reason}: it was ended with {own.stop}")
    words = f"{reason}: torchrun ended it with {own.stop} since rank {dead} had died"
    return replace(record, message=words, victim_of=dead)


def _reason(number: int, own: Traces) -> str:
    if not own.started:
        return "the rank never started"
    if own.skip and number not in own.open_steps:
        return f"the rank did not run this case: {own.skip}"
    if own.begun and own.begun[-1][1] == number:
        again = f", in pass {own.begun[-1][0] + 1}" if own.begun[-1][0] else ""
        return f"the rank ended while this case ran{again}"
    if number in own.open_steps:
        return "the rank ended before it had judged this case"
    return "the rank ended before this case"
