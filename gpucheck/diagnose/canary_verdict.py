"""Whether the canary of a run was found as it was made, on every rank."""

from __future__ import annotations

from collections import Counter

from gpucheck.diagnose.wording import rank_list
from gpucheck.model.canary import BIT, INDEX
from gpucheck.model.finding import FailedCase, Finding
from gpucheck.model.record import Outcome, Record

TITLE = "the canary was not caught"
NOT_RUN = "the canary did not run"
FIX = (
    "a case that is wrong on purpose was not found on these ranks, so what this run calls right there proves nothing; "
    "look for what stands between kernel and judge, and run gpucheck selftest"
)

RUN_AGAIN = "run again to the end: without the canary nothing shows that this run can find a fault on these ranks"


def caught(records: list[Record]) -> list[int]:
    """The ranks on which the canary was found as it was made.

    That is: the kernel was launched, the one element and the one bit were named and nothing else was, and the wrong
    bits are those of most ranks.
    """
    found = [record for record in records if _as_made(record)]
    common = Counter(str(record.digests) for record in found).most_common(1)
    return [record.rank for record in found if str(record.digests) == common[0][0]]


def findings(records: list[Record], caught: list[int]) -> list[Finding]:
    """The open questions that a canary leaves which was not caught, or which did not run."""
    unseen, absent = _missed(records, caught)
    found = [_finding(TITLE, unseen, FIX)] if unseen else []
    return [*found, _finding(NOT_RUN, absent, RUN_AGAIN)] if absent else found


def _missed(records: list[Record], caught: list[int]) -> tuple[list[Record], list[Record]]:
    """Those that ran and were not caught, and those that did not run."""
    missed = [record for record in records if record.rank not in caught]
    lost = [record for record in missed if record.outcome is Outcome.LOST]
    return [record for record in missed if record not in lost], lost


def _finding(title: str, records: list[Record], fix: str) -> Finding:
    by_line: dict[str, list[Record]] = {}
    for record in records:
        by_line.setdefault(_instead(record), []).append(record)
    cases = [
        FailedCase(alike[0].case, [record.rank for record in alike], [line], "") for line, alike in by_line.items()
    ]
    return Finding(title, False, [record.rank for record in records], [], cases, fix)


def notes(records: list[Record], caught: list[int]) -> list[str]:
    """``canary: caught on ranks 0-7``; nothing without a canary."""
    if not records:
        return []
    unseen, absent = ([record.rank for record in found] for found in _missed(records, caught))
    words = (("caught", caught), ("not caught", unseen), ("did not run", absent))
    ended = [(word, ranks) for word, ranks in words if ranks]
    return ["canary: " + ", ".join(f"{word} on {rank_list(ranks)}" for word, ranks in ended)]


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
