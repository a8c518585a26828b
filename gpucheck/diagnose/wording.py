"""Records in words: what a mismatch or violation looked like, with its numbers."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from types import MappingProxyType

from gpucheck.diagnose.error_pattern import flipped, of_flags
from gpucheck.model.record import Launch, Mismatch, Outcome, Record

MOST_OUTPUTS = 4  # told in full
MOST_TRANSFERS = 6  # likewise


def rank_list(ranks: Iterable[int]) -> str:
    """``rank 1`` or ``ranks 0, 2-7``."""
    ordered = sorted(set(ranks))
    spans: list[list[int]] = []
    for rank in ordered:
        if spans and rank == spans[-1][1] + 1:
            spans[-1][1] = rank
        else:
            spans.append([rank, rank])
    text = ", ".join(str(a) if a == b else f"{a}-{b}" if b > a + 1 else f"{a}, {b}" for a, b in spans)
    return f"rank {text}" if len(ordered) == 1 else f"ranks {text}"


def counted(count: int, word: str) -> str:
    """``1 case``, ``2 cases``."""
    return f"{count} {word}{'s' * (count != 1)}"


def number(value: float) -> str:
    """A value of an output; whole numbers with all of their digits, as far as float64 holds these."""
    return str(int(value)) if value.is_integer() and abs(value) < 2**53 else f"{value:.9g}"


def took(seconds: float) -> str:
    """A time: ``12.3 us``, ``1.23 ms``, ``1.23 s``."""
    for unit, size in (("us", 1e-6), ("ms", 1e-3)):
        if seconds < 999.5 * size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds:.3g} s"


def lines_of(record: Record) -> list[str]:
    """What one record says, region first; of what is wrong by another rank's fault no more than where."""
    if record.victim_of is not None and record.mismatches:
        follows = f"wrong by what {rank_list([record.victim_of])} gave"
        return [f"{follows}: {each.output}: {each.region}" for each in record.mismatches[:MOST_OUTPUTS]]
    lines = [record.message] if record.message else []
    if record.repeats > 1 and record.wrong:
        lines.append(f"{record.wrong} of {record.repeats} repeats wrong")
    lines += mismatches_lines(record.mismatches, record.bounds)
    lines += transfer_lines(record)
    lines += [f"{violation.kind}: {violation.detail}" for violation in record.violations]
    if record.mismatches and record.launches:
        lines.append("launched " + launches_words(record.launches))
    lines += _remarks(record.launches)
    if record.outcome is Outcome.CRASH:
        far = dict.fromkeys(f"{launch.kernel}: {each.words}" for launch in record.launches for each in launch.large)
        lines += [f"offsets of 32 bits do not reach all of an argument of {words}" for words in far]
    return lines + ([] if record.victim_of is not None else progress_lines(record)) + output_lines(record)


def transfer_lines(record: Record) -> list[str]:
    """From which rank which wrong bytes came, and what they are instead."""
    lines = [
        f"rank {each.sender} to rank {each.receiver}: {each.fault}: bytes {each.first} to {each.last} of "
        f"{each.output}, {each.wrong} of {each.total} elements" + (f": {each.detail}" if each.detail else "")
        for each in record.transfers[:MOST_TRANSFERS]
    ]
    more = len(record.transfers) - MOST_TRANSFERS
    return lines + ([f"and {more} more wrong transfers"] if more > 0 else [])


def progress_lines(record: Record) -> list[str]:
    """How far each rank came in a case that ranks run together, ranks that came equally far in one line."""
    alike: dict[str, list[int]] = {}
    for each in record.progress:
        where = f"{'in' if each.inside else 'past'} {each.signature}, number {each.number}" if each.signature else ""
        words = f"{each.state}{f', {where}' if where else ''}{f': {each.message}' if each.message else ''}"
        alike.setdefault(words, []).append(each.rank)
    return [f"{rank_list(ranks)} {words}" for words, ranks in alike.items()]


def raised_lines(record: Record) -> list[str]:
    """The same, with the place that raised."""
    raised = record.outcome is Outcome.ERROR and record.source
    return lines_of(record) + ([f"raised at {record.source}"] if raised else [])


def output_lines(record: Record) -> list[str]:
    """What the process of a record printed before it ended, and where all of it is."""
    return [f"printed  {line}" for line in record.said] + ([f"log      {record.log}"] if record.log else [])


def mismatches_lines(mismatches: list[Mismatch], bounds: Mapping[str, str] = MappingProxyType({})) -> list[str]:
    """The first few outputs; in most checks that is all there are.

    Args:
        bounds: output -> where its bound comes from, in words, where that is worth saying.
    """
    lines = []
    for mismatch in mismatches[:MOST_OUTPUTS]:
        lines += mismatch_lines(mismatch)
        if mismatch.method == "bound" and mismatch.output in bounds:
            lines.append(f"bound of {mismatch.output}: {bounds[mismatch.output]}")
    further = [mismatch.output for mismatch in mismatches[MOST_OUTPUTS:]]
    return lines + ([f"wrong too: {', '.join(further)}"] if further else [])


def mismatch_lines(mismatch: Mismatch) -> list[str]:
    """Region, then numbers, then what marks the error."""
    share = mismatch.wrong / mismatch.total
    lines = [
        f"{mismatch.output}: {mismatch.region}",
        f"{mismatch.wrong} of {mismatch.total} elements wrong ({share:.2%}), first at {_index(mismatch.first)}; "
        + worst_words(mismatch),
    ]
    marks = []
    if mismatch.nan or mismatch.inf:
        start = f" from {_index(mismatch.first_nonfinite)}" if mismatch.first_nonfinite else ""
        marks.append(f"{mismatch.nan} NaN and {mismatch.inf} Inf{start}")
    if mismatch.poison:
        marks.append(f"{mismatch.poison} wrong elements still hold the poison they were allocated with")
    if flipped(mismatch):
        marks.append(f"each differs in one bit: {', '.join(str(bit) for bit in mismatch.bits)}")
    if not of_flags(mismatch):  # whose title says all there is
        marks += _values(mismatch)
    lines += ["; ".join(marks)] if marks else []
    return lines + ([f"hint: {mismatch.wraps}"] if mismatch.wraps else [])


def _values(mismatch: Mismatch) -> list[str]:
    """What the values of the wrong elements have in common."""
    marks = []
    if mismatch.moved:
        far = f", all by {abs(mismatch.shift)}" if mismatch.shift is not None else ""
        marks.append(f"{mismatch.moved} of {mismatch.sampled} wrong rows looked up are another row's reference{far}")
    if mismatch.zeros > 1:
        marks.append(f"{mismatch.zeros} wrong elements are zero")
    elif mismatch.ratio is not None and abs(mismatch.ratio - 1) > 0.01:
        marks.append(f"nearly all are {mismatch.ratio:.4g} times the reference")
    if mismatch.outside:
        low, high = (f"{bound:.0f}" for bound in mismatch.span)
        lie = "lies" if mismatch.outside == 1 else "lie"
        marks.append(f"{mismatch.outside} {lie} outside of all right values, {low} to {high}")
    if mismatch.step is not None:
        marks.append(f"all are {abs(mismatch.step):g} too {'large' if mismatch.step > 0 else 'small'}")
    elif mismatch.wrong > 16 and abs(mismatch.bias) > 0.9 and not flipped(mismatch):
        marks.append("nearly all " + ("above" if mismatch.bias > 0 else "below") + " the reference")
    if mismatch.reordered:
        marks.append("the right values are there, in another order")
    return marks


def worst_words(mismatch: Mismatch) -> str:
    """The worst element against its bound."""
    got = "NaN" if mismatch.got is None else number(mismatch.got)
    wanted = "NaN" if math.isnan(mismatch.expected) else number(mismatch.expected)
    where = f"worst at {_index(mismatch.worst)}: expected {wanted}, got {got}"
    if mismatch.method == "bound":
        off = "" if "NaN" in (got, wanted) else f", off by {abs(mismatch.got - mismatch.expected):.3g}"  # type: ignore[operator]
        return f"{where}{off} (bound {mismatch.bound:.3g})"
    exactness = "integers" if mismatch.method == "integer" else "exact data"
    ulps = f", {mismatch.ulps} ulp" if mismatch.ulps is not None else ""
    return f"{where}{ulps} ({exactness}: no error allowed)"


def launches_words(launches: list[Launch]) -> str:
    """Kernels and how often each was launched, in the order of their first launch."""
    counts: dict[str, int] = {}
    for launch in launches:
        counts[launch.kernel] = counts.get(launch.kernel, 0) + launch.count
    return ", ".join(kernel + (f" x{count}" if count > 1 else "") for kernel, count in counts.items())


def _remarks(launches: list[Launch]) -> list[str]:
    """What about launches may matter for a failure, whatever caused it."""
    lines = [
        f"{launch.kernel} is autotuned: {launch.tried} configurations were tried on the tensors of the first call"
        for launch in launches
        if launch.tried
    ]
    lines += [f"{launch.kernel} was launched with an empty grid" for launch in launches if 0 in launch.grid]
    return list(dict.fromkeys(lines))


def _index(index: list[int] | None) -> str:
    return "(" + ", ".join(str(i) for i in index or []) + ")"
