"""What is wrong about how outputs came to be, whatever they are."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gpucheck.checks.base import ANY_KERNEL
from gpucheck.model.record import Launch, Violation
from gpucheck.worker.passes import depends_on_fill, how_calls_differ

if TYPE_CHECKING:
    from gpucheck.worker.protocol import Reply


def observed_violations(reply: Reply, launches: list[Launch]) -> list[Violation]:
    """What is wrong about how the outputs came to be, whatever they are."""
    found = [Violation("guard", line) for line in dict.fromkeys(reply.guards)]
    found += _differences(reply)
    found += [Violation(kind, detail) for kind, detail in dict.fromkeys(reply.blamed)]
    wanted = reply.expected_kernels
    if ANY_KERNEL in wanted and not launches:
        found.append(Violation("fallback", "no Triton kernel was launched"))
    elif wanted and ANY_KERNEL not in wanted and not any(launch.kernel in wanted for launch in launches):
        seen = ", ".join(sorted({launch.kernel for launch in launches})) or "none"
        found.append(Violation("fallback", f"none of {', '.join(wanted)} was launched; launched: {seen}"))
    for launch in launches:
        if launch.away:
            where = f" ({launch.source})" if launch.source else ""
            words = f"{launch.kernel} launched on cuda:{launch.device}, its tensors on {', '.join(launch.away)}{where}"
            found.append(Violation("device", words))
    return found


def _differences(reply: Reply) -> list[Violation]:
    """What it means that passes gave different bits."""
    if len(set(reply.digests)) < 2:
        return []
    if depends_on_fill(reply.digests, reply.fills):
        where = reply.sensitive or "of a tensor that is not known"
        detail = f"outputs change with the content of memory that is not part of the inputs: it is read {where}"
        return [Violation("passes differ", detail)]
    return [Violation("repeats differ", how_calls_differ(reply.digests))]
