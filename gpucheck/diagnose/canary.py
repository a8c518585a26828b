"""Whether the canary of a run was found as it was made, on every rank."""

from __future__ import annotations

from collections import Counter

from gpucheck.diagnose.words import rank_list
from gpucheck.model.canary import BIT, INDEX
from gpucheck.model.finding import Finding, Sighting
from gpucheck.model.record import Outcome, Record

TITLE = "the canary was not caught"
REMEDY = (
    "what this run calls right on these ranks proves nothing: a case that is wrong on purpose went unseen; look for "
    "what stands between kernel and judge, and run gpucheck selftest"
)


def caught(records: list[Record]) -> list[int]:
    """The ranks on which the canary was found as it was made.

    That is: the kernel was launched, the one element and the one bit were named and nothing else was, and the wrong
    bits are those of most ranks.
    """
    found = [record for record in records if _as_made(record)]
    common = Counter(str(record.digests) for record in found).most_common(1)
    return [record.rank for record in found if str(record.digests) == common[0][0]]


def findings(records: list[Record], caught: list[int]) -> list[Finding]:
    """The open question that a canary leaves which was not caught."""
    missed = [record for record in records if record.rank not in caught]
    if not missed:
        return []
    by_line: dict[str, list[Record]] = {}
    for record in missed:
        by_line.setdefault(_instead(record), []).append(record)
    sightings = [
        Sighting(alike[0].case, [record.rank for record in alike], [line], "") for line, alike in by_line.items()
    ]
    return [Finding(TITLE, False, [record.rank for record in missed], [], sightings, REMEDY)]


def notes(records: list[Record], caught: list[int]) -> list[str]:
    """``canary: caught on ranks 0-7``; nothing without a canary."""
    if not records:
        return []
    missed = [record.rank for record in records if record.rank not in caught]
    told = [(word, ranks) for word, ranks in (("caught", caught), ("not caught", missed)) if ranks]
    return ["canary: " + ", ".join(f"{word} on {rank_list(ranks)}" for word, ranks in told)]


def _as_made(record: Record) -> bool:
    if record.outcome is not Outcome.MISMATCH or record.violations or len(record.mismatches) != 1:
        return False
    (mismatch,) = record.mismatches
    named = (mismatch.wrong, tuple(mismatch.first), mismatch.bits) == (1, INDEX, [BIT])
    return named and bool(record.launches)


def _instead(record: Record) -> str:
    if record.outcome is Outcome.PASS:
        return "judged right, though one of its elements is wrong: the detector is blind"
    if record.outcome is Outcome.MISMATCH:
        return "wrong otherwise than it was made"
    return f"{record.outcome.value}: {record.message}" if record.message else record.outcome.value
