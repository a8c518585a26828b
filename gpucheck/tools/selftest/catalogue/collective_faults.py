"""Faults of what ranks send each other: planted in the calls of one rank, found from sender, receiver and bytes."""

from __future__ import annotations

from typing import Any

from gpucheck.model.record import Outcome
from gpucheck.tools.selftest.fault import COLLECTIVE_CALLS, Edit, Expected, Fault

REDUCED = (
    "    return [distributed.all_reduce(each.received, _reduction(each), each.group, async_op=each.asynchronous)]\n"
)
SCATTERED = (
    "    function = distributed.reduce_scatter_tensor\n"
    "    return [function(each.received, each.sent, _reduction(each), each.group, async_op=each.asynchronous)]\n"
)
GATHERED = "    return [function(each.received, each.sent, each.group, async_op=each.asynchronous)]\n"
EXCHANGED = "    return [function(each.received, each.sent, *sizes, each.group, async_op=each.asynchronous)]\n"
NEXT = "other = (each.place + 1) % len(each.members)"


def _case(operation: str, n: int) -> dict[str, Any]:
    """A case that is told by its number of elements; two ranks run it, or more."""
    return {"check": "collectives", "operation": operation, "dtype": "int32", "n": n, "data": "exact"}


def _fault(name: str, summary: str, operation: str, anchor: str, n: int, title: str, *says: str, **more: Any) -> Fault:
    """A fault right after the call, on the case with ``n`` elements; ``more["before"]`` comes before the call."""
    before, after = more.pop("before", "pass"), more.pop("after", "pass")
    call = anchor.rstrip().replace("    return ", "    works = ").replace("\n", "\n    ")
    lines = f"    if each.receives[0] == {n}:\n        {before}\n    {call}\n"
    lines += f"        [work.wait() for work in works if work]\n        {after}\n        return []\n{{anchor}}"
    edit = Edit(COLLECTIVE_CALLS, anchor, lines)
    expected = Expected(Outcome.MISMATCH, title, says)
    return Fault(name, summary, edit, _case(operation, n), expected, fewest_ranks=2, **more)


FAULTS = (
    _fault(
        "wrong-reduction",
        "a rank adds too much to a few elements of a sum over ranks",
        "all_reduce",
        REDUCED,
        201,
        r"wrong reduction: on rank \d",
        r"rank (\d) to rank \1: reduced wrongly: bytes 12 to 27 of out0, 4 of 201 elements",
        after="each.received[3:7] += 1",
    ),
    _fault(
        "missing-contribution",
        "a rank takes what it gave itself for the sum over ranks",
        "reduce_scatter",
        SCATTERED,
        202,
        r"missing contribution: rank \d lacks rank \d",
        r"missing: bytes 0 to 807 of out0, 202 of 202 elements: the result without what this rank gave",
        after="each.received.copy_(each.to(each.place))",
    ),
    _fault(
        "early-buffer",
        "a rank reads its buffer before what was sent to it has come",
        "all_gather",
        GATHERED,
        203,
        r"stale or early buffer: early, read by rank \d",
        r"early: bytes \d+ to \d+ of out0, 203 of 203 elements: the receiver's buffer as it was before",
        before="early = each.received.clone()",
        after="each.received.copy_(early)",
    ),
    _fault(
        "swapped-chunk",
        "the halves of what one rank sent arrive in each other's place",
        "all_to_all",
        EXCHANGED,
        204,
        r"chunk swapped or dropped: rank \d to rank \d",
        r"swapped: bytes \d+ to \d+ of out0, 102 of 204 elements: what belongs 408 bytes further on",
        after=f"{NEXT}; each.of(other)[:102] = each.of(other)[102:].clone()",
    ),
    _fault(
        "dropped-chunk",
        "what one rank sent to another does not arrive",
        "all_to_all",
        EXCHANGED,
        205,
        r"chunk swapped or dropped: rank \d to rank \d",
        r"dropped: bytes \d+ to \d+ of out1, 205 of 205 elements: zeros",
        after=f"{NEXT}; each.of(other).zero_()",
    ),
    _fault(
        "link-error",
        "bits of what one rank sends to another arrive changed",
        "all_to_all",
        EXCHANGED,
        206,
        r"link error: rank \d to rank \d",
        r"corrupt: bytes \d+ to \d+ of out0, 3 of 206 elements",
        after=f"{NEXT}; each.of(other)[60:63] ^= 0x10100",
    ),
)
