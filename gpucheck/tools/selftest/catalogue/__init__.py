"""The faults that the self-test plants, by name; one file a kind of fault."""

from __future__ import annotations

from collections.abc import Sequence

from gpucheck.model.errors import UsageError
from gpucheck.tools.selftest.catalogue import (
    call_faults,
    candidate_faults,
    collective_faults,
    kernel_faults,
    machine_faults,
    operand_faults,
    routing_faults,
    sharded_faults,
)
from gpucheck.tools.selftest.fault import Fault

FAULTS: tuple[Fault, ...] = (
    *machine_faults.FAULTS,
    call_faults.SPOILED_BY_BIAS,
    *kernel_faults.FAULTS,
    *operand_faults.FAULTS,
    *routing_faults.FAULTS,
    *sharded_faults.FAULTS,
    *call_faults.FAULTS,
    *candidate_faults.FAULTS,
    *collective_faults.FAULTS,
)


def choose(names: Sequence[str], beside: Sequence[str] = ()) -> tuple[Fault, ...]:
    """The faults of these names; all of them for no name.

    Args:
        beside: names of faults that are planted elsewhere, for the message.

    Raises:
        UsageError: a fault that does not exist.
    """
    known = {fault.name: fault for fault in FAULTS}
    for name in names:
        if name not in known:
            raise UsageError(f"--faults: unknown fault {name!r}; known: {', '.join([*known, *beside])}")
    return tuple(known[name] for name in dict.fromkeys(names)) if names else FAULTS
