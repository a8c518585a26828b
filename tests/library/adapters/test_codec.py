"""What every adapter's quantisation must do, against plain torch in float64."""

from __future__ import annotations

import pytest
import torch

from gpucheck.library.adapters.base import Adapter
from gpucheck.model.errors import Inapplicable
from tests.library.adapters.conftest import E2M1, block_factors, decode_mxfp4


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(1)


def encode_mxfp4(x: torch.Tensor, ties: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes and scale bytes of (M, K) along K: scales rounded up to a power of two, codes to the nearest value."""
    blocks = x.double().view(x.shape[0], -1, 32)
    largest = blocks.abs().amax(-1)
    exponent = torch.ceil(torch.log2(largest / 6)) if largest.all() else None
    assert exponent is not None, "the test data has no block of zeros"
    scaled = blocks * torch.pow(2.0, -exponent)[..., None]
    distance = (scaled.abs()[..., None] - torch.tensor(E2M1)).abs()
    nearest = distance == distance.amin(-1, keepdim=True)
    code = torch.arange(8).expand_as(nearest)
    lowest, highest = code.where(nearest, 8).amin(-1), code.where(nearest, -1).amax(-1)
    tied = lowest if ties == "down" else highest if ties == "half-away" else lowest + (lowest & 1 & (highest - lowest))
    signed = (tied | torch.where(torch.signbit(scaled), 8, 0)).view(x.shape[0], -1, 2)
    return (signed[..., 0] | signed[..., 1] << 4).to(torch.uint8), (exponent + 127).to(torch.uint8)


@pytest.mark.parametrize("axis", [0, 1, -1])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_downcast_to_mxfp4(adapter: Adapter, axis: int, dtype: torch.dtype) -> None:
    x = (torch.randint(-24, 25, (40, 64)) / 4 + 0.0).to(dtype)  # a multiple of 1/4: many ties
    x[:, ::32] = 6
    codes, scales = encode_mxfp4(x.float(), adapter.mx_rounding)
    given = x if axis else x.mT.contiguous()
    if dtype == torch.float32 and adapter.generation == "v3.4":
        with pytest.raises(Inapplicable, match="bf16 and fp16"):
            adapter.downcast(given, "mxfp4", axis)
        return
    found_codes, found_scales = adapter.downcast(given, "mxfp4", axis)
    if not axis:
        found_codes, found_scales = found_codes.mT, found_scales.mT
    assert torch.equal(found_scales, scales)
    zero = decode_mxfp4(codes, scales, 1) == 0
    assert torch.equal(decode_mxfp4(found_codes, found_scales, 1), decode_mxfp4(codes, scales, 1))
    assert not zero.all()


@pytest.mark.parametrize("kind", ["mxfp8_e4m3", "mxfp8_e5m2"])
def test_downcast_to_mxfp8(adapter: Adapter, kind: str) -> None:
    dtype, largest = {"mxfp8_e4m3": (torch.float8_e4m3fn, 448), "mxfp8_e5m2": (torch.float8_e5m2, 57344)}[kind]
    x = torch.randn(40, 64).bfloat16()
    values, scales = adapter.downcast(x, kind, 1)
    exponent = torch.ceil(torch.log2(x.double().view(40, 2, 32).abs().amax(-1) / largest))
    assert torch.equal(scales.double(), exponent + 127)
    scaled = (x.double() / block_factors(scales, 64, 1)).float()
    assert torch.equal(values.float(), scaled.to(dtype).float())


@pytest.mark.parametrize("kind", ["mxfp4", "mxfp8_e4m3", "mxfp8_e5m2"])
@pytest.mark.parametrize("axis", [0, 1])
def test_upcast(adapter: Adapter, kind: str, axis: int) -> None:
    values, scales = adapter.downcast(torch.randn(64, 96).bfloat16(), kind, axis)
    if kind == "mxfp4":
        expected = decode_mxfp4(values, scales, axis)
    else:
        expected = values.double() * block_factors(scales, values.shape[axis], axis)
    output = adapter.upcast(values, scales, torch.bfloat16, axis)
    assert output.dtype == torch.bfloat16
    assert torch.equal(output.double(), expected)
