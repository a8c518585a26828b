"""The verdicts of published rules on outputs, beside our own, so that results can be compared with published ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from gpucheck.verify import bounds
from gpucheck.verify.expected import Expected
from gpucheck.verify.views import pieces_of

_KERNELBENCH = {torch.float16: 1e-2, torch.bfloat16: 1e-2}
_KERNELBENCH_ELSE = 1e-4


def kernelbench(outputs: Mapping[str, Tensor], expected: Mapping[str, Expected]) -> dict[str, Any]:
    """What KernelBench's rule says of one trial: ``allclose`` with one number, absolute and relative.

    It compares with what Model gives in the dtype of the output. Here that is the value in float64, rounded once:
    Model's own rounding errors are far below the number.

    Returns:
        ``close``, the ``tolerance`` and the largest and mean difference; these are None where shapes or dtypes differ.
    """
    close, largest, total, count, used = True, 0.0, 0.0, 0, 0.0
    for name, item in expected.items():
        output = outputs.get(name)
        tolerance = _KERNELBENCH.get(item.dtype, _KERNELBENCH_ELSE)
        used = max(used, tolerance)
        if output is None or (output.shape, output.dtype) != (item.estimate.value.shape, item.dtype):
            return {"close": False, "tolerance": used, "max_difference": None, "avg_difference": None}
        for piece in pieces_of(output):
            got, value = output[piece].double(), item.estimate.value[piece]
            wanted = bounds.round_to(item.dtype, value) if item.dtype.is_floating_point else value
            difference = torch.where(got == wanted, 0.0, (got - wanted).abs())
            close &= bool((difference <= tolerance + tolerance * got.abs()).all())
            largest, total = max(largest, float(difference.max())), total + float(difference.sum())
            count += difference.numel()
    return {"close": close, "tolerance": used, "max_difference": largest, "avg_difference": total / max(count, 1)}
