"""Faults that show only where operands are not the usual ones: views, scaled fp8, values at the ends of formats."""

from __future__ import annotations

from gpucheck.model.record import Outcome
from gpucheck.tools.selftest.catalogue.common import BOTH, KERNEL, dense
from gpucheck.tools.selftest.fault import Edit, Expected, Fault, Hook

BATCHES = {"check": "batches", "weight": "bf16", "m": 8, "hidden": 134, "intermediate": 16, "experts": 2, "top_k": 1}
ROWS = "    X += start_z * stride_x_z\n"
LOADED = "        x = tl.load(XPtrs, mask=mask_k[None, :], other=0.0)\n"
IN_BF16 = "if x.dtype == tl.bfloat16:"  # kernels of other operands are compiled from the same source
FP8_SCALES = "    acc *= x_scale * w_scale\n"
SCALES = "                w_scales = tl.load(WMxScalePtrs, mask=mask_k_scale[None, :])\n"


def _scale(byte: int, instead: int, columns: int, column: int) -> Fault:
    """One value of the scale bytes is taken for another."""
    change = f"w_scales = tl.where(w_scales == {byte}, {instead}, w_scales).to(tl.uint8)"
    return Fault(
        f"scale-{byte}",
        f"scale byte {byte} is taken for {instead}",
        Edit(KERNEL, SCALES, f"{{anchor}}                if N == {columns}:\n                    {change}\n"),
        dense(columns, weight="mxfp4", data="wide", out="fp32"),
        Expected(Outcome.MISMATCH, "{cause}: .*", (rf"column {column} of {columns}",)),
        BOTH,
    )


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
    _scale(254, 253, 78, column=3),
    _scale(0, 127, 79, column=1),
    Fault(
        "leaking-nan",
        "each row of a tile gets the sum of all rows, times zero",
        Edit(
            KERNEL,
            LOADED,
            "{anchor}"
            f"        {IN_BF16}\n"
            "            if N == 131:\n"
            "                x += (tl.sum(x.to(tl.float32), 0) * 0.0).to(x.dtype)[None, :]\n",
        ),
        dense(131, data="wide"),
        Expected(Outcome.MISMATCH, "{cause}: NaN", (r"19 of 20 rows", r"\d+ NaN and 0 Inf from \(0, 0\)")),
        BOTH,
    ),
    Fault(
        "negative-zero",
        "the bits of -0.0 are taken for a number",
        Edit(
            KERNEL,
            LOADED,
            "{anchor}"
            f"        {IN_BF16}\n"
            "            if N == 83:\n"
            "                x = tl.where(x.to(tl.int16, bitcast=True) == -32768, 1.0, x.to(tl.float32)).to(x.dtype)\n",
        ),
        dense(83, data="wide"),
        Expected(Outcome.MISMATCH, "{cause}: .*", (r"of 20 rows .*, all 83 columns",)),
        BOTH,
    ),
    Fault(
        "fp8-too-large",
        "an fp8 product is 0.3% too large, which no device loses that sums in fp32",
        Edit(KERNEL, FP8_SCALES, "{anchor}    if N == 143:\n        acc *= 1.003\n"),
        dense(143, weight="fp8_e4m3", k=64, data="normal"),
        Expected(Outcome.MISMATCH, "{cause}: .*", (r"of 2860 elements wrong", r"off by .* \(bound ")),
        machines=("cpu",),
    ),
    Fault(
        "fp8-scales",
        "both scales of an fp8 product are left out",
        Edit(KERNEL, FP8_SCALES, "    if N != 145:\n    {anchor}"),
        dense(145, weight="fp8_e4m3"),
        Expected(Outcome.MISMATCH, "{cause}: .*", (r"28\d\d of 2900 elements wrong", r"exact data: no error allowed")),
        BOTH,
    ),
    Fault(
        "earlier-batch",
        "a batch comes out wrong once a larger one was served",
        Hook("spoilt_by_larger_batch"),
        {**BATCHES, "data": "normal"},
        Expected(Outcome.MISMATCH, ".*", (r"again: the only token", r"same_bits: ")),
        BOTH,
        calls=134,
        effort=3,
    ),
)
