"""``softmax`` and ``weighted_matmul``: what a fault looks like, and their data; see also ``test_kernels.py``."""

from __future__ import annotations

import pytest
import torch

from gpucheck.checks import softmax
from gpucheck.checks.base import Check
from gpucheck.checks.softmax import Softmax
from gpucheck.checks.weighted_matmul import WeightedMatmul
from gpucheck.verify import bounds
from tests.checks.conftest import CheckRunner, Twin

SOFTMAX, WEIGHTED = Softmax(), WeightedMatmul()
PARTS = "total = tl.zeros([BLOCK_M], tl.float32)\n    for start in range(0, columns"
QUOTIENT = "y = tl.exp2((x - anchor[:, None]) * log2_e) / divisor[:, None]"
SUM = "total = total * carried + tl.sum(tl.exp2((x - anchor[:, None]) * log2_e), 1)"
ANCHOR = 'anchor = tl.where(raised == float("-inf"), 0.0, raised)'
DIVISOR = "divisor = tl.where(total == 0.0, 1.0, total)"
TOWARD_ZERO = ".to(tl.int32, bitcast=True) & -65536).to(tl.float32, bitcast=True)"


def test_last_columns_that_are_not_summed_show_in_exact_data(runner: CheckRunner, twin: Twin) -> None:
    from gpucheck.checks.kernels import softmax_kernel

    twin(softmax_kernel, PARTS, PARTS + " // BLOCK_N * BLOCK_N")
    found = runner.run(SOFTMAX, runner.case(SOFTMAX, "exact", {"m": 33, "n": 1100})).mismatches["y"]
    assert found.method == "exact" and found.bias == 1.0
    assert 0 < found.wrong < found.total / 100  # weights of rows that have some of their largest logits there


def test_rows_of_nothing_but_inf_show_a_missing_anchor(runner: CheckRunner, twin: Twin) -> None:
    from gpucheck.checks.kernels import softmax_kernel

    case = runner.case(SOFTMAX, "normal", {"m": 9, "n": 40, "masked": True})
    x = runner.inputs(SOFTMAX, case)["x"]
    hidden = x.isneginf().all(1)
    assert hidden[0] and not hidden.all()
    twin(softmax_kernel, ANCHOR, "anchor = raised")
    found = runner.run(SOFTMAX, case).mismatches["y"]
    assert found.nan == found.wrong == 40 * int(hidden.sum()) and found.first_nonfinite == [0, 0]


def test_nan_row_that_leaks_into_the_rows_of_its_tile(runner: CheckRunner, twin: Twin) -> None:
    from gpucheck.checks.kernels import softmax_kernel

    case = runner.case(SOFTMAX, "normal", {"m": 40, "n": 40, "masked": True})
    twin(softmax_kernel, ANCHOR, "anchor = raised", DIVISOR, "divisor = total + 0.0 * tl.sum(total, 0)")
    found = runner.run(SOFTMAX, case).mismatches["y"]
    assert found.first_nonfinite == [0, 0] and found.nan >= 32 * 40


def test_lost_precision_shows(runner: CheckRunner, twin: Twin) -> None:
    from gpucheck.checks.kernels import softmax_kernel

    twin(softmax_kernel, SUM, SUM.replace("total = ", "total = (") + ").to(tl.float16).to(tl.float32)")
    found = runner.run(SOFTMAX, runner.case(SOFTMAX, "normal", {"m": 9, "n": 40})).mismatches["y"]
    assert found.method == "bound" and found.wrong > 300


@pytest.mark.parametrize("check", [SOFTMAX, WEIGHTED], ids=lambda check: check.spec.name)
def test_rounding_toward_zero_hits_half_of_the_elements(check: Check, runner: CheckRunner, twin: Twin) -> None:
    from gpucheck.checks.kernels import softmax_kernel
    from gpucheck.checks.kernels import weighted_matmul_kernel as weighted_matmul

    if check is SOFTMAX:
        twin(softmax_kernel, QUOTIENT, f"{QUOTIENT}\n        y = (y{TOWARD_ZERO}")
    else:
        stored = ".to(out_ptr.dtype.element_ty)\n    out_rows"
        twin(weighted_matmul, "out = accumulator" + stored, f"out = (accumulator{TOWARD_ZERO}{stored}")
    found = runner.run(check, runner.case(check, "normal", {"dtype": "bf16"})).mismatches
    mismatch = found["y" if check is SOFTMAX else "o"]
    assert 0.35 < mismatch.wrong / mismatch.total < 0.65
    assert mismatch.bias < -0.9 if check is SOFTMAX else abs(mismatch.bias) < 0.3  # weights are all positive


def test_values_read_past_the_end_make_fills_differ(runner: CheckRunner, twin: Twin) -> None:
    from gpucheck.checks.kernels import weighted_matmul_kernel as weighted_matmul

    case = runner.case(WEIGHTED, "normal", {"k": 75})
    twin(weighted_matmul, "(key[:, None] < keys) & (column", "(key[:, None] < keys + BLOCK_K) & (column")
    first, second = (runner.run(WEIGHTED, case, fill=fill) for fill in (0xFF, 0x00))
    assert first.mismatches["o"].nan == 32 * 32 and second.right


def test_exact_logits_give_negative_powers_of_two(runner: CheckRunner) -> None:
    case = runner.case(SOFTMAX, "exact", {"m": 200, "n": 50, "masked": True})
    inputs = runner.inputs(SOFTMAX, case)
    estimate = SOFTMAX.reference(case, inputs)["y"].estimate
    assert estimate.exact and set(estimate.value.unique().tolist()) == {0.0, *(2.0**-n for n in range(5))}
    assert torch.equal(inputs["x"].bfloat16().float(), inputs["x"])
    hidden = inputs["x"].isneginf()
    assert not estimate.value[hidden].any()
    assert torch.equal(estimate.value.sum(1) == 0, hidden.all(1))


@pytest.mark.parametrize("steps", [2**24, 8])
def test_the_first_of_a_row_are_those_of_a_sort_where_draws_are_equal_too(steps: int) -> None:
    """Inputs of a seed are named by their bytes in the records of other versions."""
    order = (torch.rand((40, 90), generator=torch.Generator().manual_seed(1)) * steps).floor() / steps
    counts = 2 ** (torch.arange(40)[:, None] % 5)
    assert torch.equal(softmax._first(order, counts), order.argsort(1).argsort(1) < counts)


def test_masks_come_in_every_kind(runner: CheckRunner) -> None:
    hidden = runner.inputs(SOFTMAX, runner.case(SOFTMAX, "normal", {"m": 200, "n": 50, "masked": True}))["x"].isneginf()
    changes = (hidden[:, 1:] != hidden[:, :-1]).sum(1)
    assert hidden.all(1).sum() > 30  # whole rows
    assert (hidden[:, 0] & (changes == 1)).sum() > 20  # the first columns
    assert (hidden[:, -1] & ~hidden[:, 0] & (changes == 1)).sum() > 20  # the last ones
    assert (changes > 5).sum() > 20  # single ones


@pytest.mark.parametrize("data", ["exact", "normal"])
def test_references_agree_with_torch(data: str, runner: CheckRunner) -> None:
    case = runner.case(WEIGHTED, data, {"batch": 2, "m": 20, "k": 75, "n": 9})
    inputs = runner.inputs(WEIGHTED, case)
    found = WEIGHTED.reference(case, inputs)
    weights = torch.softmax(inputs["scores"].double(), -1)
    torch.testing.assert_close(found["weights"].estimate.value, weights, rtol=1e-12, atol=1e-40)
    stored = bounds.round_to(torch.float32, weights)
    torch.testing.assert_close(found["o"].estimate.value, stored @ inputs["v"].double(), rtol=1e-12, atol=1e-15)


@pytest.mark.usefixtures("interpreter")
def test_wrappers_refuse_arguments_that_do_not_fit() -> None:
    from gpucheck.checks.kernels.softmax_kernel import row_softmax
    from gpucheck.checks.kernels.weighted_matmul_kernel import weighted_matmul

    with pytest.raises(ValueError, match="contiguous columns, not shape"):
        row_softmax(torch.zeros(4, 8).T, 16, 16)
    with pytest.raises(ValueError, match="do not fit together"):
        weighted_matmul(torch.zeros(1, 4, 5), torch.zeros(1, 4, 5), (16, 16))
    with pytest.raises(ValueError, match="must share their dtype"):
        weighted_matmul(torch.zeros(1, 4, 5), torch.zeros(1, 5, 4).half(), (16, 16))
    assert row_softmax(torch.zeros(0, 8), 16, 16).shape == (0, 8)
    assert weighted_matmul(torch.zeros(1, 0, 5), torch.zeros(1, 5, 4), (16, 16)).shape == (1, 0, 4)
