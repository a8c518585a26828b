"""Faults that show only where operands are not the usual ones: views, and values at the ends of their formats."""

from __future__ import annotations

from gpucheck.faults.catalogue.common import BOTH, KERNEL, dense
from gpucheck.faults.fault import Edit, Expected, Fault
from gpucheck.model.record import Outcome

ROWS = "    X += start_z * stride_x_z\n"

FAULTS = (
    Fault(
        "dense-rows",
        "rows of activations are taken for neighbours in memory",
        Edit(KERNEL, ROWS, "{anchor}    if N == 77:\n        stride_x_m = K\n"),
        dense(77, operands="views"),
        Expected(
            Outcome.MISMATCH,
            "access outside of tensors: reads",
            (r"outside of, or between the elements of, the bfloat16 tensor of shape \(20, 96\)",),
        ),
        BOTH,
    ),
)
