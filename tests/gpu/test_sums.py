"""Sums that the GPU here makes, in every order and by its tensor cores, against its bounds."""

from __future__ import annotations

import pytest

from gpucheck.host.node_gpus import architectures
from tests.gpu.conftest import NEEDS_GPU

pytestmark = NEEDS_GPU


@pytest.mark.parametrize("spread", ["normal", "positive", "mean"])
@pytest.mark.parametrize("kind", ["bf16", "fp16", "fp32", "e4m3", "e5m2", "mxfp4"])
@pytest.mark.parametrize("terms", [64, 512, 2880])
def test_sums_on_this_gpu_stay_within_its_bounds(kind: str, spread: str, terms: int) -> None:
    """Over 1e8 elements of each: ``python tests/gpu/measure_sums.py``."""
    import torch

    from gpucheck.verify import bounds
    from tests.gpu import measure_sums as measured

    x, w = measured.operands(kind, spread, 2048, 2048, terms, torch.Generator("cuda").manual_seed(terms))
    stored = measured.FORMATS["bf16" if kind == "mxfp4" else kind]
    known = (bounds.Estimate(part.cpu().double(), torch.zeros(part.shape, dtype=torch.float64)) for part in (x, w))
    with bounds.computed_by(bounds.arithmetic(architectures())):
        estimate = bounds.product(*known, operands=stored)
    assert estimate.error is not None
    ways = dict(zip(measured.ORDERS, measured.in_orders(x, w), strict=True))
    ways |= {name: measured.by_tensor_cores(x, w, kind, kept) for name, kept in measured.cores(kind)}
    used = {
        name: float(((got.cpu().double() - estimate.value).abs() / estimate.error).nan_to_num(nan=0.0).max())
        for name, got in ways.items()
    }
    print(kind, spread, terms, {name: round(share, 3) for name, share in used.items()})
    assert max(used.values()) < 1
