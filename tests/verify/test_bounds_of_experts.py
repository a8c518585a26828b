"""Bounds of experts and of fp8 in blocks: right computations stay within, and exact data is refused where it rounds."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from gpucheck.verify import bounds
from gpucheck.verify.bounds import Estimate

E4M3 = torch.float8_e4m3fn


def drawn(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def held(result: Tensor, estimate: Estimate) -> bool:
    assert estimate.error is not None
    allowed = bounds.tolerance(result.dtype, estimate.value, estimate.error)
    return bool(((result.double() - estimate.value).abs() <= allowed).all())


def test_e4m3_rounds_once_and_to_even() -> None:
    every = torch.arange(0, 0x7F, dtype=torch.uint8).view(E4M3).double()
    middle = (every[1:] + every[:-1]) / 2
    even = torch.arange(0, 0x7F) % 2 == 0
    to_even = torch.where(even[:-1], every[:-1], every[1:])
    for sign in (1, -1):
        assert torch.equal(bounds.round_to(E4M3, sign * every), sign * every)
        assert torch.equal(bounds.round_to(E4M3, sign * middle), sign * to_even)
        for shift, nearest in ((1e-12, every[1:]), (-1e-12, every[:-1])):
            assert torch.equal(bounds.round_to(E4M3, sign * middle * (1 + shift)), sign * nearest)
    assert torch.equal(bounds.ulp(E4M3, every[:-1]), every[1:] - every[:-1])


@pytest.mark.parametrize("between", [None, torch.bfloat16])
def test_silu_in_fp32_is_within_its_bound_and_half_precision_is_not(between: torch.dtype | None) -> None:
    x = drawn(64, 512, seed=1) * 4
    estimate = bounds.silu_and_mul(Estimate(x.double(), torch.zeros_like(x).double()), between)
    gate, up = x.chunk(2, -1)
    silu = gate * torch.sigmoid(gate)
    right = (silu if between is None else silu.to(between).float()) * up
    assert held(right, estimate)
    assert not held(silu.half().float() * up, estimate), "silu that is rounded otherwise"


def test_silu_of_exact_data_returns_the_gate_or_refuses() -> None:
    x = torch.tensor([[18.0, 300.0, -3.0, 5.0]]).double()
    estimate = bounds.silu_and_mul(Estimate(x, None))
    assert estimate.exact and estimate.value.tolist() == [[-54.0, 1500.0]]
    single = torch.tensor(18.0)
    assert single * torch.sigmoid(single) == single, "as fp32 has it"
    with pytest.raises(ValueError, match="a gate of 17, under 18"):
        bounds.silu_and_mul(Estimate(torch.tensor([[17.0, 1.0]]).double(), None))


def test_renormalised_weights_in_fp32_are_within_their_bound() -> None:
    logits = drawn(256, 16, seed=2) * 3
    of_all = bounds.softmax(logits.double())
    assert of_all.error is not None
    ids = logits.topk(4).indices
    estimate = bounds.renormalised(Estimate(of_all.value.gather(1, ids), of_all.error.gather(1, ids)))
    weights = logits.softmax(-1).gather(1, ids)
    right = weights / weights.sum(-1, keepdim=True)
    assert held(right, estimate) and held(weights * (1 / weights.sum(-1, keepdim=True)), estimate)
    assert not held(weights, estimate) and not held(right * (1 + 2.0**-16), estimate)


def blocks(seed: int, k: int = 300) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x (8, K), its scales, w (K, 12), its scales."""
    count = -(-k // 128)
    x, w = (drawn(*shape, seed=seed).mul(40).to(E4M3).double() for shape in ((8, k), (k, 12)))
    scales = (torch.exp2(drawn(*shape, seed=seed + 1)).double() for shape in ((8, count), (count, 12)))
    return x, next(scales), w, next(scales)


def test_a_product_in_blocks_is_within_its_bound_in_any_order_and_misplaced_scales_are_not() -> None:
    x, x_scale, w, w_scale = blocks(3)
    estimate = bounds.block_scaled(x, x_scale, w, w_scale, 128, None)

    def computed(x_scale: Tensor, w_scale: Tensor, step: int) -> Tensor:
        total = torch.zeros(8, 12)
        for start in range(0, x.shape[1], step):
            part = x[:, start : start + step].float() @ w[start : start + step].float()
            total += part * x_scale[:, start // 128, None].float() * w_scale[start // 128].float()
        return total

    assert held(computed(x_scale.float(), w_scale.float(), 128), estimate)
    assert held(computed(x_scale.float(), w_scale.float(), 32), estimate)
    assert not held(computed(x_scale.roll(1, 1), w_scale, 128), estimate)
    assert not held(computed(x_scale, w_scale.roll(1, 0), 128), estimate)


def test_exact_blocks_take_one_large_number_each_that_all_devices_add_without_loss() -> None:
    x = torch.ones(2, 256).double()
    x[:, 5] = x[:, 200] = bounds.LARGEST_E4M3
    scales = torch.tensor([[0.5, 2.0], [1.0, 0.25]]).double()
    w, w_scale = torch.ones(256, 1).double(), torch.tensor([[1.0], [4.0]]).double()
    estimate = bounds.block_scaled(x, scales, w, w_scale, 128, 1.0)
    assert estimate.exact and estimate.value.flatten().tolist() == [575 * 0.5 + 575 * 8, 575 + 575.0]
    with pytest.raises(ValueError, match="could round"):
        bounds.block_scaled(x * 4, scales, w, w_scale, 128, 1.0)


def test_what_is_quantised_is_within_its_bound_by_division_and_by_reciprocal() -> None:
    groups = drawn(200, 128, seed=5)
    largest = groups.abs().amax(1)
    estimate = bounds.group_scale(largest.double())
    for scales in (largest / 448, largest * torch.tensor(1 / 448)):
        assert held(scales, estimate)
        of_all = scales[:, None].expand(groups.shape)
        given = bounds.quantised(groups.double(), of_all.double(), exact=False)
        for q in ((groups / of_all).clamp(-448, 448), (groups * (1 / of_all)).clamp(-448, 448)):
            assert held(q.to(E4M3), given)
        assert not held((groups / of_all * 1.03).clamp(-448, 448).to(E4M3), given)
    assert not held(groups.amax(1).abs() / 448, estimate)
