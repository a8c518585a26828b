"""Candidates that cheat: what they do is seen by their supervisor, and on no rank by themselves."""

from __future__ import annotations

from gpucheck.model.record import Outcome
from gpucheck.tools.selftest.fault import Candidate, Expected, Fault, Session

NOT_ITS_OWN = r"fallback: answer not made by the kernels launched"
NOT_FROM_INPUTS = r"answer not from its inputs"


def _cheat(kind: str, summary: str, expected: Expected, machines: tuple[str, ...] = ("cpu", "cuda")) -> Fault:
    name = "".join("-" * (letter.isupper() and place > 0) + letter.lower() for place, letter in enumerate(kind))
    case = {"check": name.replace("-", "_"), "trial": 1, "data": "normal"}
    return Fault(name, summary, Candidate(kind), case, expected, session=Session.CANDIDATES, machines=machines)


FAULTS = (
    _cheat(
        "TorchBesideKernel",
        "a candidate turns its judge off and lets torch answer beside a kernel",
        Expected(Outcome.VIOLATION, NOT_ITS_OWN, (r"the output stays the same when its kernels .*: square_kernel",)),
    ),
    _cheat(
        "KeptAnswers",
        "a candidate keeps its answers by the content of its inputs",
        Expected(Outcome.VIOLATION, NOT_FROM_INPUTS, (r"launches no kernel: its answer is kept from an earlier call",)),
    ),
    _cheat(
        "IdleWhenTimed",
        "a candidate stops working while its calls are timed",
        Expected(Outcome.VIOLATION, NOT_FROM_INPUTS, (r"(answer of|is kept from) an earlier call",)),
    ),
    _cheat(
        "ReadsReference",
        "a candidate looks for the reference, and gives zeros where it finds none",
        Expected(Outcome.MISMATCH, r"{cause}: zero instead of the result", (r"480 of 480 elements wrong",)),
    ),
    _cheat(
        "UnwaitedStream",
        "a candidate launches on a stream that nobody waits for",
        Expected(
            Outcome.VIOLATION,
            r"missing stream order: .*",
            (r"square_kernel launched on stream \d+, the caller's is \d+, and nobody waits",),
        ),
        machines=("cuda",),
    ),
)
