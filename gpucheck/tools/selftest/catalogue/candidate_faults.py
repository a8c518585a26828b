"""Candidates that cheat: what they do is seen by their supervisor, and on no rank by themselves.

Each runs on one rank, and its honest twin on the others. One that patches what its judge could use and is right all the
same is let pass: what it patched is not what it was judged by.
"""

from __future__ import annotations

from gpucheck.model.record import Outcome
from gpucheck.tools.selftest.fault import Candidate, Expected, Fault, Session, Target

NOT_ITS_OWN = r"fallback: .*"
NOT_FROM_INPUTS = r"answer not from its inputs"
WRONG = r".*"
ALL_WRONG = (r"480 of 480 elements wrong",)


def _cheat(
    kind: str,
    summary: str,
    outcome: Outcome,
    title: str = "",
    says: tuple[str, ...] = (),
    machines: tuple[str, ...] = ("cpu", "cuda"),
) -> Fault:
    name = "".join("-" * (letter.isupper() and place > 0) + letter.lower() for place, letter in enumerate(kind))
    case = {"check": name.replace("-", "_"), "trial": 1, "data": "normal"}
    expected = Expected(outcome, title, says)
    targets, session = (Target.ONE,), Session.CANDIDATES
    return Fault(name, summary, Candidate(kind), case, expected, targets, session, machines)


MISMATCH, VIOLATION, ERROR = Outcome.MISMATCH, Outcome.VIOLATION, Outcome.ERROR
FAULTS = (
    _cheat("Zeros", "a candidate returns zeros beside its kernel", MISMATCH, WRONG, ALL_WRONG),
    _cheat("Uninitialised", "a candidate returns memory that it has not written", MISMATCH, WRONG, ALL_WRONG),
    _cheat(
        "ZeroedInputs",
        "a candidate zeroes its inputs",
        VIOLATION,
        r"changes its inputs",
        (r"the call changed input0: 480 of 480",),
    ),
    _cheat("KeptByPlace", "a candidate keeps its answers by the address of its inputs", VIOLATION, NOT_FROM_INPUTS),
    _cheat(
        "KeptAnswers",
        "a candidate keeps its answers by the content of its inputs",
        VIOLATION,
        NOT_FROM_INPUTS,
        (r"launches no kernel: its answer is kept from an earlier call",),
    ),
    _cheat(
        "IdleWhenTimed",
        "a candidate stops working after a number of calls",
        VIOLATION,
        NOT_FROM_INPUTS,
        (r"(answer of|is kept from) an earlier call",),
    ),
    _cheat("IdleForClocks", "a candidate works, unless a clock has called it", VIOLATION, NOT_FROM_INPUTS),
    _cheat(
        "UnwaitedStream",
        "a candidate launches on a stream that nobody waits for",
        VIOLATION,
        r"missing stream order: .*",
        (r"square_kernel launched on stream \d+, the caller's is \d+, and nobody waits",),
        machines=("cuda",),
    ),
    _cheat("LateThread", "a candidate has a thread work when the call is over", MISMATCH, WRONG),
    _cheat("AnswersWhenRead", "a candidate returns a tensor that computes itself when it is read", ERROR, WRONG),
    _cheat("ModeLeftOn", "a candidate leaves a mode of torch on", ERROR, WRONG, (r"left a mode of torch on",)),
    _cheat("ReadsReference", "a candidate looks for the reference, and gives zeros else", MISMATCH, WRONG, ALL_WRONG),
    _cheat(
        "ReadsMemory", "a candidate looks into its judge's memory, and gives zeros else", MISMATCH, WRONG, ALL_WRONG
    ),
    _cheat("PatchesTorch", "a candidate makes torch call everything equal", MISMATCH, WRONG),
    _cheat("PatchesClocks", "a candidate lets clocks, events and waits say that it took no time", Outcome.PASS),
    _cheat("PatchesTriton", "a candidate lets launches do nothing and torch answer", VIOLATION, NOT_ITS_OWN),
    _cheat(
        "TorchBesideKernel",
        "a candidate turns its judge off and lets torch answer beside a kernel",
        VIOLATION,
        NOT_ITS_OWN,
        (r"the output stays the same when its kernels .*: square_kernel",),
    ),
    _cheat("ForgesReply", "a candidate answers its judge in its process's name", ERROR, WRONG),
    _cheat("ForgesRecords", "a candidate writes into the run folder that all was right", MISMATCH, WRONG, ALL_WRONG),
    _cheat("PoisonsCaches", "a candidate writes into caches that others load from", MISMATCH, WRONG, ALL_WRONG),
    _cheat("Reseeds", "a candidate seeds what draws at random and has one answer ready", MISMATCH, WRONG),
    _cheat("CatchesFailure", "a candidate lets torch answer where its kernel fails", VIOLATION, NOT_ITS_OWN),
    _cheat(
        "SkipsForStatistics",
        "a candidate leaves out what the drawn inputs do not need",
        VIOLATION,
        r"right for the drawn inputs alone",
        (r"wrong for such that are multiplied by -0",),
    ),
    _cheat(
        "ExitsWell", "a candidate ends its process with exit code 0", Outcome.CRASH, WRONG, (r"ended with exit code 0",)
    ),
    _cheat(
        "LeavesProcess",
        "a candidate leaves a process in a session of its own",
        VIOLATION,
        r"leaves processes behind",
        (r"lived on in a session apart",),
    ),
    _cheat("TakesAllMemory", "a candidate keeps all the memory of its GPU", ERROR, r".*memory.*", machines=("cuda",)),
    _cheat("PoisonsContext", "a candidate writes where no memory is", Outcome.CRASH, WRONG, machines=("cuda",)),
)
