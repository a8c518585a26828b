"""What is wrong about how outputs came to be, whatever they are."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gpucheck.checks.base import ANY_KERNEL
from gpucheck.diagnose.differing_calls import how_calls_differ
from gpucheck.model.record import Launch, NeededLaunches, Violation
from gpucheck.model.vocabulary import ViolationKind
from gpucheck.worker.memory_fills import depends_on_fill

if TYPE_CHECKING:
    from gpucheck.worker.protocol import Reply


def observed_violations(reply: Reply, launches: list[Launch]) -> list[Violation]:
    """What is wrong about how the outputs came to be, whatever they are."""
    found = [Violation(ViolationKind.GUARD, line) for line in dict.fromkeys(reply.guards)]
    found += _tuning(reply, launches) + _differences(reply)
    found += [Violation(kind, detail) for kind, detail in dict.fromkeys(reply.blamed)]
    for needed in reply.needed:
        found += _missing(needed, max(1, reply.calls), launches)
        otherwise = _otherwise(needed, launches)
        found += otherwise
        if otherwise:  # what further launches are needed follows from the configuration
            break
    for launch in launches:
        if launch.away:
            where = f" ({launch.source})" if launch.source else ""
            words = f"{launch.kernel} launched on cuda:{launch.device}, its tensors on {', '.join(launch.away)}{where}"
            found.append(Violation(ViolationKind.DEVICE, words))
    return found


def _missing(needed: NeededLaunches, calls: int, launches: list[Launch]) -> list[Violation]:
    """That kernels under test were launched never, or less often than the calls need."""
    made = [launch for launch in launches if _counts(launch, needed)]
    if not made and ANY_KERNEL in needed.kernels:
        return [Violation(ViolationKind.FALLBACK, "no Triton kernel was launched")]
    if not made:
        seen = ", ".join(sorted({launch.kernel for launch in launches})) or "none"
        return [
            Violation(ViolationKind.FALLBACK, f"none of {', '.join(needed.kernels)} was launched; launched: {seen}")
        ]
    count = sum(launch.count for launch in made)
    if count >= needed.count * calls:
        return []
    words = f"{' or '.join(needed.kernels)} launched {_times(count)} in {_calls(calls)}, {needed.count * calls} needed"
    return [Violation(ViolationKind.LAUNCHES, f"{words}: something else did the rest")]


def _otherwise(needed: NeededLaunches, launches: list[Launch]) -> list[Violation]:
    """That kernels were launched in another configuration than the case asks for."""
    found = []
    for launch in launches:
        if not _counts(launch, needed):
            continue
        if needed.variants and launch.kernel not in needed.variants:
            found.append(f"asked for {' or '.join(needed.variants)}, launched {launch.kernel}")
        for name, asked in needed.asked.items():
            used = launch.configuration.get(name, asked)  # what a launch does not show is not held against it
            if used != asked:
                found.append(f"{launch.kernel}: asked for {name} {asked}, launched with {used}")
    return [Violation(ViolationKind.CONFIGURATION, words) for words in dict.fromkeys(found)]


def _counts(launch: Launch, needed: NeededLaunches) -> bool:
    return not launch.refused and (launch.kernel in needed.kernels or ANY_KERNEL in needed.kernels)


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"


def _calls(count: int) -> str:
    return "a call" if count == 1 else f"{count} calls"


def _tuning(reply: Reply, launches: list[Launch]) -> list[Violation]:
    """That a call for which an autotuner tried configurations gave other bits than those after it."""
    tuned, digests = reply.digests[: reply.tuned], reply.settled[0]
    if not digests or set(tuned) <= set(digests):
        return []
    tried = {launch.kernel: launch.tried for launch in launches if launch.tried}
    kernels = " and ".join(f"{count} configurations of {kernel}" for kernel, count in tried.items())
    detail = f"the first call, for which the autotuner tried {kernels} on the call's own tensors, gave other bits"
    return [Violation(ViolationKind.TUNING_DIFFERS, f"{detail} than the {len(digests)} after it")]


def _differences(reply: Reply) -> list[Violation]:
    """What it means that passes gave different bits."""
    digests, fills = reply.settled
    if len(set(digests)) < 2:
        return []
    if depends_on_fill(digests, fills):
        where = reply.sensitive or "of a tensor that is not known"
        detail = f"outputs change with the content of memory that is not part of the inputs: it is read {where}"
        return [Violation(ViolationKind.PASSES_DIFFER, detail)]
    return [Violation(ViolationKind.REPEATS_DIFFER, how_calls_differ(digests))]
