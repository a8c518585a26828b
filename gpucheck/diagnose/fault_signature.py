"""What a failure looked like and where, as an accepted fault keeps it, and whether another is the same.

Of the same inputs, a fault that shows every time shows the same:

- The same outputs are wrong, in the same groups (``exactly expert 31``), in elements of the same number and within the
  same rows and columns; violations have the same words.
- Where random data is judged, which elements lie just beyond their bound depends on the GPU too: spans are the same
  where they share at least half of what they cover together, and numbers where none is more than twice the other.

Under another seed that is so for all data, and for the numbers in the words of violations. The router then gives an
expert other rows: where whole groups are wrong, these are compared, and neither rows nor how many elements are wrong.
"""

from __future__ import annotations

import re

from gpucheck.diagnose.error_pattern import error_pattern
from gpucheck.model.accepted import AcceptedFault, Region
from gpucheck.model.plan import Plan
from gpucheck.model.record import Mismatch, Outcome, Record

ABOUT = 2  # times as many, at most, is about as many
REWORDED = {
    r"it is read in or outside of, before it was written, the (.*)": r"it is read within or next to the \1, before "
    r"anything was written there"
}
"""Words of violations as earlier versions wrote them into records and files of accepted faults -> as they are now."""


def shows(record: Record) -> list[str]:
    """What a failure looks like: the pattern of the wrong output, violations, where it raised or broke."""
    signs = [error_pattern(record)] if record.mismatches else []
    signs += sorted({re.sub(r"cuda:\d+", "cuda", f"{each.kind}: {each.detail}") for each in record.violations})
    if record.outcome is Outcome.ERROR:
        signs.append(" ".join([record.message.partition(":")[0], *filter(None, [record.source])]))
    if record.outcome is Outcome.CRASH:
        signs.append(record.message.partition("\n")[0])
    if record.outcome in (Outcome.CRASH, Outcome.HANG) and record.underway:
        signs.append(f"in {record.underway.kernel}")
    return signs


def regions(record: Record) -> list[Region]:
    """Where the outputs of a record are wrong."""
    return [
        Region(mismatch.output, mismatch.exactly, mismatch.box, mismatch.wrong, mismatch.total)
        for mismatch in record.mismatches
    ]


def content(plan: Plan, step: int) -> dict[str, str]:
    """What a case tests: hashes of the library and of the files of a check of the user's, the version of an engine."""
    found = {"triton_kernels": plan.library["content"]} if plan.has_library else {}
    for source in plan.check_sources:
        if plan.steps[step].case.check in source.checks:
            for path, digest in zip(source.files, source.hashes, strict=True):
                name = path.rpartition("/")[2]
                found[name] = found.get(name, "") + digest  # two files of a pair may have one name
    engine = plan.engine(plan.steps[step].conditions.engine)
    return {**found, engine["name"]: engine["version"]} if engine else found


def looks_other(record: Record, fault: AcceptedFault, *, same_seed: bool) -> list[str]:
    """How a failure looks different from the accepted one; nothing where it looks the same."""
    now, was = ([*map(_reworded, signs)] for signs in (shows(record), fault.shows))
    like = now == was or (not same_seed and len(now) == len(was) and all(map(_like, now, was)))
    if like and record.outcome.value == fault.outcome:
        return []
    return [f"it showed as {', '.join([fault.outcome, *was])}"]


def _reworded(sign: str) -> str:
    """What a failure looks like, in the words of today."""
    for before, today in REWORDED.items():
        sign = re.sub(before, today, sign)
    return sign


def _like(now: str, was: str) -> bool:
    """Whether words are the same and their numbers about the same."""
    numbers = [[int(number) for number in re.findall(r"\d+", text)] for text in (now, was)]
    return re.sub(r"\d+", "#", now) == re.sub(r"\d+", "#", was) and all(map(_about, *numbers))


def _about(now: int, was: int) -> bool:
    return was <= ABOUT * now and now <= ABOUT * was


def lies_elsewhere(record: Record, fault: AcceptedFault, *, same_seed: bool) -> list[str]:
    """How the wrong regions differ from the accepted ones."""
    was = {region.output: region for region in fault.regions}
    if {mismatch.output for mismatch in record.mismatches} != was.keys():
        return [f"wrong were {', '.join(was) or 'no outputs'}"]
    differing = (
        _elsewhere(mismatch, was[mismatch.output], same_seed=same_seed, equal=same_seed and mismatch.method != "bound")
        for mismatch in record.mismatches
    )
    return [words for words in differing if words]


def _elsewhere(now: Mismatch, was: Region, *, same_seed: bool, equal: bool) -> str:
    """How a region differs; "" where it is the same.

    Args:
        same_seed: of the inputs.
        equal: the same spans and numbers are asked for, not similar ones.
    """
    if now.exactly != was.exactly:
        return f"{was.output} was wrong in {_groups(was)}"
    moved = bool(was.exactly) and not same_seed  # the rows of its groups
    spans = list(zip(now.box, was.spans, strict=False))[moved:]
    if len(now.box) != len(was.spans) or not all(a == b or (not equal and _overlap(a, b)) for a, b in spans):
        return f"{was.output} was wrong in {_span_list(was.spans)}, is in {_span_list(now.box)}"
    shares = (now.wrong * was.total, was.wrong * now.total)
    if not moved and not (shares[0] == shares[1] if equal else _about(*shares)):
        return f"{was.output} had {was.wrong} of {was.total} elements wrong, has {now.wrong}"
    return ""


def _overlap(one: list[int], other: list[int]) -> bool:
    shared = min(one[1], other[1]) - max(one[0], other[0]) + 1
    return max(one[1], other[1]) - min(one[0], other[0]) + 1 <= ABOUT * shared


def _groups(region: Region) -> str:
    named = (f"exactly {word} {', '.join(map(str, groups))}" for word, groups in region.exactly.items())
    return " and ".join(named) or "no whole group"


def _span_list(spans: list[list[int]]) -> str:
    return "(" + ", ".join(f"{first}-{last}" for first, last in spans) + ")"
