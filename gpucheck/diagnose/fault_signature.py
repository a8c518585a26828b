"""What a failure looked like and where, as an accepted fault keeps it, and whether another is the same.

- Region: the same outputs are wrong, in the same groups (``exactly expert 31``) or, where no whole groups are, in the
  same rows, and in the same columns. Spans are compared in whole tiles, and the number of wrong elements may be twice
  or half of what it was: random data is wrong in a few elements more or fewer. Under another seed the router gives an
  expert other rows; there only the groups count, and not how many elements they have.
- Violations: the same words, with numbers up to twice and down to half of what they were.
"""

from __future__ import annotations

import re

from gpucheck.diagnose.error_pattern import error_pattern
from gpucheck.model.accepted import AcceptedFault, Region
from gpucheck.model.plan import Plan
from gpucheck.model.record import Mismatch, Outcome, Record

ABOUT = 2  # times as many, at most, is about as many


def shows(record: Record) -> list[str]:
    """What a failure looks like: the pattern of the wrong output, violations, where it raised or broke."""
    told = [error_pattern(record)] if record.mismatches else []
    told += sorted({re.sub(r"cuda:\d+", "cuda", f"{each.kind}: {each.detail}") for each in record.violations})
    if record.outcome is Outcome.ERROR:
        told.append(" ".join([record.message.partition(":")[0], *filter(None, [record.source])]))
    if record.outcome is Outcome.CRASH:
        told.append(record.message.partition("\n")[0])
    if record.outcome in (Outcome.CRASH, Outcome.HANG) and record.underway:
        told.append(f"in {record.underway.kernel}")
    return told


def regions(record: Record) -> list[Region]:
    """Where the outputs of a record are wrong."""
    return [
        Region(mismatch.output, mismatch.exactly, _spans(mismatch), mismatch.wrong, mismatch.total)
        for mismatch in record.mismatches
    ]


def _spans(mismatch: Mismatch) -> list[list[int]]:
    """The wrong spans of each axis in whole tiles, as far as the record says how large tiles are."""
    tile = [0] * max(0, len(mismatch.box) - 2) + (mismatch.heat.tile if mismatch.heat else [0, 0])
    sizes = tile[-len(mismatch.box) :] if mismatch.box else []
    return [
        [first // size * size, last // size * size + size - 1] if size else [first, last]
        for (first, last), size in zip(mismatch.box, sizes, strict=True)
    ]


def content(plan: Plan, step: int) -> dict[str, str]:
    """Hashes of what a case tests: the library, and the files of a check that was brought along."""
    found = {"triton_kernels": plan.library["content"]} if plan.has_library else {}
    for source in plan.check_sources:
        if plan.steps[step].case.check in source.checks:
            names = (path.rpartition("/")[2] for path in source.files)
            found |= dict(zip(names, source.hashes, strict=True))
    return found


def looks_other(record: Record, fault: AcceptedFault) -> list[str]:
    """How a failure looks different from the accepted one; nothing where it looks the same."""
    now = shows(record)
    same = record.outcome.value == fault.outcome and len(now) == len(fault.shows)
    if same and all(_like(word, was) for word, was in zip(now, fault.shows, strict=True)):
        return []
    was = ", ".join(dict.fromkeys([fault.outcome, *fault.shows]))
    return [f"it showed as {was}"]


def _like(now: str, was: str) -> bool:
    """Whether words are the same and their numbers about the same."""
    numbers = [[int(number) for number in re.findall(r"\d+", text)] for text in (now, was)]
    return re.sub(r"\d+", "#", now) == re.sub(r"\d+", "#", was) and all(map(_about, *numbers))


def _about(now: int, was: int) -> bool:
    return was <= ABOUT * now and now <= ABOUT * was


def lies_elsewhere(record: Record, fault: AcceptedFault, *, same_seed: bool) -> list[str]:
    """How the wrong regions differ from the accepted ones."""
    now = {region.output: region for region in regions(record)}
    was = {region.output: region for region in fault.regions}
    if now.keys() != was.keys():
        return [f"wrong were {', '.join(was) or 'no outputs'}"]
    found = []
    for name, before in was.items():
        after = now[name]
        rows = 1 if before.exactly and after.exactly else 0  # rows of a group move with the inputs
        if before.exactly != after.exactly:
            found.append(f"{name} was wrong in {_groups(before)}")
        elif before.spans[rows:] != after.spans[rows:]:
            found.append(f"{name} was wrong in {_spans_words(before.spans)}, is in {_spans_words(after.spans)}")
        elif (same_seed or not rows) and not _about(after.wrong * before.total, before.wrong * after.total):
            found.append(f"{name} had {before.wrong} of {before.total} elements wrong, has {after.wrong}")
    return found


def _groups(region: Region) -> str:
    named = (f"exactly {word} {', '.join(map(str, groups))}" for word, groups in region.exactly.items())
    return " and ".join(named) or "no whole group"


def _spans_words(spans: list[list[int]]) -> str:
    return "(" + ", ".join(f"{first}-{last}" for first, last in spans) + ")"
