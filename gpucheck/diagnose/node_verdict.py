"""What a cluster wants to know of a run: for each GPU whether to go on using it, why, and what to do.

It is never better than the verdict of the run: a run that fails without naming a rank makes the node CRITICAL, and one
that is open makes it UNKNOWN.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Any

from gpucheck.diagnose.causes import absent_rank, crash, hang, straggler, suspect_gpu, undetermined, wrong_link
from gpucheck.diagnose.causes.faulty_multiprocessor import FAULTY_GPU, FAULTY_MULTIPROCESSOR, NOT_AGAIN
from gpucheck.model.finding import Conclusion, Finding
from gpucheck.model.record import Outcome, Verdict
from gpucheck.records.run_folder import Run

NO_GPU = "no GPU was checked"
SHOWN_ROWS = 3  # of those that a finding is about


class NodeState(str, Enum):
    """Whether to go on using a GPU."""

    PASS = "PASS"  # it computed everything right
    WARNING = "WARNING"  # likewise, but something is worth a look
    UNKNOWN = "UNKNOWN"  # it was not checked to the end
    CRITICAL = "CRITICAL"  # it, or the software on it, computes wrong, or it reports an error that costs data


ORDER = tuple(NodeState)
"""From best to worst; the worst of its GPUs is that of a node."""

GPU, SOFTWARE, UNDECIDED = "gpu", "software", "undecided"
"""What is to blame: replacing the GPU helps against the first, and not against the second."""

_OF_GPUS = {
    cause.title for cause in (suspect_gpu.SUSPECT_GPU, wrong_link.LINK_ERROR, FAULTY_MULTIPROCESSOR, FAULTY_GPU)
}
_SAYS_LITTLE = {NOT_AGAIN.title} | {
    cause.title for file in (absent_rank, crash, hang, straggler, undetermined) for cause in file.CAUSES
}


@dataclass(frozen=True)
class Reason:
    """One thing that is known of a GPU."""

    state: NodeState
    blames: str  # GPU, SOFTWARE or UNDECIDED; "" for a pass
    reason: str  # in a line
    fix: str = ""


RIGHT = Reason(NodeState.PASS, "", "every case was right")


@dataclass(frozen=True)
class GpuVerdict:
    """What is known of the GPU of a rank, the worst first."""

    rank: int
    reasons: tuple[Reason, ...]

    @property
    def worst(self) -> Reason:
        return self.reasons[0] if self.reasons else RIGHT


@dataclass(frozen=True)
class NodeVerdict:
    """What is known of all GPUs of a run."""

    gpus: list[GpuVerdict]  # by rank; those that ran nothing on a GPU included
    whole: tuple[Reason, ...]  # what concerns the run and no rank of it

    @property
    def worst(self) -> Reason:
        """The worst of all, whose reason names the rank."""
        named = [
            Reason(gpu.worst.state, gpu.worst.blames, f"rank {gpu.rank}: {gpu.worst.reason}", gpu.worst.fix)
            for gpu in self.gpus
            if gpu.reasons
        ]
        return next(iter(_sorted([*named, *self.whole])), RIGHT)


_WORDS = {
    "xid of the GPU": (
        NodeState.CRITICAL,
        GPU,
        "Reset the GPU, or restart the node; replace the GPU if the error comes back.",
    ),
    "xid dealt with": (NodeState.WARNING, GPU, "Reset the GPU when no job runs on it; replace it if more come."),
    "xid of software": (NodeState.WARNING, SOFTWARE, "Look at the process that used the GPU: a kernel of it failed."),
    "uncorrected": (
        NodeState.CRITICAL,
        GPU,
        "Reset the GPU: results of the process that met the error cannot be trusted.",
    ),
    "remap failed": (NodeState.CRITICAL, GPU, "Replace the GPU."),
    "remap pending": (NodeState.WARNING, GPU, "Reset the GPU when no job runs on it, so that the rows go out of use."),
    "remapped": (
        NodeState.WARNING,
        GPU,
        "Reset the GPU when no job runs on it; replace it if rows go on being remapped.",
    ),
    "corrected": (
        NodeState.WARNING,
        GPU,
        "Watch the GPU: a growing count of corrected errors ends in uncorrected ones.",
    ),
    "nvlink": (
        NodeState.WARNING,
        GPU,
        "Watch the links: where they go on repeating or starting anew, reseat or replace the GPU.",
    ),
    "slowed": (NodeState.WARNING, GPU, "Look at cooling and power of the node: the GPU ran below its clocks."),
}
"""Kind of a driver message -> what it makes of the GPU, what is to blame, and what to do; others are notes alone."""


def node_verdict(run: Run, conclusion: Conclusion) -> NodeVerdict:
    """The verdict for each GPU of a run."""
    by_rank = {rank: list(_of_rank(run, conclusion, rank)) for rank in run.ranks}
    whole = [_of_finding(finding) for finding in conclusion.findings if not finding.ranks]
    reached = max((ORDER.index(each.state) for each in [*whole, *sum(by_rank.values(), [])]), default=0)
    least = {
        Verdict.PASS: NodeState.PASS,
        Verdict.FAIL: NodeState.CRITICAL,
        Verdict.INCONCLUSIVE: NodeState.UNKNOWN,
        Verdict.NOTHING_RAN: NodeState.UNKNOWN,
    }[conclusion.verdict]
    if reached < ORDER.index(least):
        whole.append(Reason(least, UNDECIDED, f"the run ended with {conclusion.verdict.value}", "Look at its report."))
    return NodeVerdict([GpuVerdict(rank, _sorted(found)) for rank, found in by_rank.items()], _sorted(whole))


def _of_rank(run: Run, conclusion: Conclusion, rank: int) -> Iterator[Reason]:
    yield from (_of_finding(finding) for finding in conclusion.findings if rank in finding.ranks)
    yield from (reason for item in run.driver if item.get("rank") == rank for reason in _of_word(item))
    records = [run.records[(step, rank)] for step in range(len(run.plan.steps))]
    if not any(record.outcome is Outcome.PASS and record.device not in ("", "cpu") for record in records):
        ran = any(record.device not in ("", "cpu") for record in records)
        words = "no case passed on it" if ran else NO_GPU
        yield Reason(NodeState.UNKNOWN, UNDECIDED, words, "" if ran else "Run gpucheck doctor on the node.")


def _of_finding(finding: Finding) -> Reason:
    state = NodeState.CRITICAL if finding.fails else NodeState.WARNING if finding.warns else NodeState.UNKNOWN
    blames = GPU if finding.cause in _OF_GPUS else SOFTWARE
    if not finding.cause or finding.cause in _SAYS_LITTLE:
        blames = UNDECIDED
    rows = ", ".join(finding.rows[:SHOWN_ROWS]) + ", ..." * (len(finding.rows) > SHOWN_ROWS)
    words = finding.title + (f" in {rows}" if rows else "") + (f" ({finding.excuse})" if finding.excuse else "")
    return Reason(state, blames, words, finding.fix)


def _of_word(item: dict[str, Any]) -> Iterator[Reason]:
    """What a message of the driver makes of its GPU; one of an unknown kind says nothing."""
    if known := _WORDS.get(item.get("kind", "")):
        state, blames, fix = known
        yield Reason(state, blames, str(item["text"]), fix)


def _sorted(reasons: Iterable[Reason]) -> tuple[Reason, ...]:
    """The worst first; of equally bad ones those that blame the GPU, then in the order they were found."""
    return tuple(sorted(reasons, key=lambda each: (-ORDER.index(each.state), each.blames != GPU)))
