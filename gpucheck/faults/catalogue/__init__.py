"""The faults, by name."""

from __future__ import annotations

from collections.abc import Sequence

from gpucheck.faults.catalogue import calls, candidates, kernels, machine, operands, routing
from gpucheck.faults.fault import Fault
from gpucheck.model.errors import UsageError

FAULTS: tuple[Fault, ...] = (
    *machine.FAULTS,
    calls.SPOILED_BY_BIAS,
    *kernels.FAULTS,
    *operands.FAULTS,
    *routing.FAULTS,
    *calls.FAULTS,
    *candidates.FAULTS,
)


def choose(names: Sequence[str]) -> tuple[Fault, ...]:
    """The faults of these names; all of them for no name.

    Raises:
        UsageError: a fault that does not exist.
    """
    known = {fault.name: fault for fault in FAULTS}
    for name in names:
        if name not in known:
            raise UsageError(f"--faults: unknown fault {name!r}; known: {', '.join(known)}")
    return tuple(known[name] for name in dict.fromkeys(names)) if names else FAULTS
