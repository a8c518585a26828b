"""The interpreter's arithmetic seen through small kernels, against torch on integer-exact or directly rounded data."""

from __future__ import annotations

import pytest
import torch
import triton

tl = triton.language


@triton.jit
def dot_kernel(a, b, out, M: tl.constexpr, N: tl.constexpr, K: tl.constexpr):
    rows, cols, inner = tl.arange(0, M), tl.arange(0, N), tl.arange(0, K)
    left = tl.load(a + rows[:, None] * K + inner[None, :])
    right = tl.load(b + inner[:, None] * N + cols[None, :])
    tl.store(out + rows[:, None] * N + cols[None, :], tl.dot(left, right))


@triton.jit
def cast_kernel(x, out, N: tl.constexpr):
    index = tl.arange(0, N)
    tl.store(out + index, tl.load(x + index).to(out.dtype.element_ty))


@triton.jit
def arithmetic_kernel(x, y, out, less, N: tl.constexpr):
    index = tl.arange(0, N)
    a, b = tl.load(x + index), tl.load(y + index)
    tl.store(out + index, a * b + a)
    tl.store(less + index, (a < b).to(tl.int8))


@triton.jit
def larger_magnitude(a, b):
    return tl.where(tl.abs(a) >= tl.abs(b), a, b)


@triton.jit
def custom_reduce_kernel(x, out, scanned, M: tl.constexpr, N: tl.constexpr):
    offsets = tl.arange(0, M)[:, None] * N + tl.arange(0, N)[None, :]
    values = tl.load(x + offsets)
    tl.store(out + tl.arange(0, M), tl.reduce(values, 1, larger_magnitude))
    tl.store(scanned + offsets, tl.associative_scan(values, 0, larger_magnitude))


@triton.jit
def scaled_dot_kernel(x, codes, scales, out, M: tl.constexpr, N: tl.constexpr, K: tl.constexpr):
    rows, cols = tl.arange(0, M), tl.arange(0, N)
    left = tl.load(x + rows[:, None] * K + tl.arange(0, K)[None, :])
    right = tl.load(codes + tl.arange(0, K // 2)[:, None] * N + cols[None, :])
    scale = tl.load(scales + cols[:, None] * (K // 32) + tl.arange(0, K // 32)[None, :])
    product = tl.dot_scaled(left, None, "bf16", right, scale, "e2m1")
    tl.store(out + rows[:, None] * N + cols[None, :], product)


@pytest.mark.parametrize(
    "dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float8_e4m3fn, torch.float8_e5m2]
)
def test_dot_of_integers_is_exact(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(1)
    a, b = (torch.randint(-7, 8, shape, generator=generator).float() for shape in ((16, 64), (64, 32)))
    out = torch.zeros(16, 32)
    dot_kernel[(1,)](a.to(dtype), b.to(dtype), out, 16, 32, 64)
    # e5m2 has two mantissa bits, so multiply what it really holds.
    assert torch.equal(out.double(), a.to(dtype).double() @ b.to(dtype).double())


@pytest.mark.parametrize("target", [torch.bfloat16, torch.float16])
def test_casts_from_fp32_round_to_nearest_even(target: torch.dtype) -> None:
    steps = torch.arange(256).float()
    x = torch.cat([1 + steps / 256, -(1 + steps / 4096), steps * 1e-6, torch.tensor([float("inf")] * 256)])
    out = torch.zeros(1024, dtype=target)
    cast_kernel[(1,)](x, out, 1024)
    assert torch.equal(out, x.to(target))


def test_integers_become_bf16_by_value() -> None:
    x = torch.arange(-8, 8, dtype=torch.int32)
    out = torch.zeros(16, dtype=torch.bfloat16)
    cast_kernel[(1,)](x, out, 16)
    assert torch.equal(out, x.to(torch.bfloat16))


def test_bf16_operations_work_on_values_and_not_on_bit_patterns() -> None:
    x = torch.tensor([1.5, -2.0, 3.0, -0.25]).to(torch.bfloat16)
    y = torch.tensor([2.0, 4.0, -1.0, 8.0]).to(torch.bfloat16)
    out, less = torch.zeros(4, dtype=torch.bfloat16), torch.zeros(4, dtype=torch.int8)
    arithmetic_kernel[(1,)](x, y, out, less, 4)
    assert torch.equal(out, x * y + x)
    assert less.bool().tolist() == (x < y).tolist()


def test_custom_reductions_and_scans() -> None:
    x = torch.tensor([[1.0, -5.0, 2.0, 4.0], [-3.0, 0.0, 2.0, -6.0]])
    out, scanned = torch.zeros(2), torch.zeros(2, 4)
    custom_reduce_kernel[(1,)](x, out, scanned, 2, 4)
    assert out.tolist() == [-5.0, -6.0]
    assert scanned.tolist() == [[1.0, -5.0, 2.0, 4.0], [-3.0, -5.0, 2.0, -6.0]]


def test_scaled_dot_decodes_codes_and_scales() -> None:
    generator = torch.Generator().manual_seed(2)
    x = torch.randint(-4, 5, (16, 64), generator=generator).to(torch.bfloat16)
    codes = torch.randint(0, 256, (32, 16), generator=generator, dtype=torch.uint8)
    scales = torch.randint(126, 129, (16, 2), generator=generator, dtype=torch.uint8)
    out = torch.zeros(16, 16)
    scaled_dot_kernel[(1,)](x, codes, scales, out, 16, 16, 64)
    table = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6], dtype=torch.float64)
    table = torch.cat([table, -table])
    nibbles = torch.stack([codes & 15, codes >> 4], dim=1).reshape(64, 16)
    weight = table[nibbles.long()] * 2.0 ** (scales.double().T - 127).repeat_interleave(32, dim=0)
    assert torch.equal(out.double(), x.double() @ weight)
