"""Wrong results of ranks that work together which another rank's fault explains: those ranks are its victims."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from gpucheck.model.plan import Plan
from gpucheck.model.record import Outcome, Record, Transfer


def followers(plan: Plan, records: Iterable[Record]) -> list[Record]:
    """The records that follow from a fault of another rank's part, with that rank as the one at fault.

    A sum over ranks is wrong on each of them if one gave a wrong part. The rank that did has its own part as wrong.
    """
    by_step: dict[int, list[Record]] = {}
    for record in records:
        if plan.steps[record.step].together and record.outcome is Outcome.MISMATCH and record.transfers:
            by_step.setdefault(record.step, []).append(record)
    found = []
    for alike in by_step.values():
        guilty = [record.rank for record in alike if any(each.fault.own for each in record.transfers)]
        for record in alike if guilty else ():
            if all(each.fault.may_follow or (_came(each) and each.sender in guilty) for each in record.transfers):
                found.append(replace(record, victim_of=guilty[0]))
    return found


def _came(transfer: Transfer) -> bool:
    return not transfer.fault.own and transfer.sender != transfer.receiver
