"""Compares outputs with their references, on the CPU; nothing else in gpucheck does."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType

import torch
from torch import Tensor

from gpucheck.model.record import Mismatch, Violation
from gpucheck.model.vocabulary import ViolationKind
from gpucheck.verify import bounds, extremes, regions
from gpucheck.verify.bounds import Estimate
from gpucheck.verify.digest import integers
from gpucheck.verify.error_statistics import character
from gpucheck.verify.expected import Axes, Expected, plain_axes
from gpucheck.verify.heatmap import heat_map
from gpucheck.verify.views import pieces_of

POISON = 0xFF  # fill of the memory that judged outputs are allocated in
MOST_ULPS = 2**32  # from there on the distance says nothing that the values do not
Filled = Mapping[int, Mapping[str, Tensor]]
"""Byte that memory was filled with before a call -> its outputs."""
NONE_FILLED: Filled = MappingProxyType({})


@dataclass
class Judgement:
    """What the comparison of one case found."""

    mismatches: list[Mismatch] = field(default_factory=list)
    violations: list[Violation] = field(default_factory=list)
    tightness: float = 0.0  # largest share of an error bound that right outputs used


def judge(
    outputs: dict[str, Tensor],
    expected: dict[str, Expected],
    axes: dict[str, Axes],
    filled: Filled = NONE_FILLED,
) -> Judgement:
    """Compares every expected output; a missing one, or one of another shape or dtype, is a violation.

    Args:
        axes: how to name places in the outputs; an output without them gets plain names.
        filled: outputs of the same case in memory filled with other bytes. An element that was never written holds the
            fill in each. One that holds POISON here only may be computed: a NaN of these bytes survives sums.
    """
    result = Judgement()
    if not expected:
        result.violations.append(Violation(ViolationKind.NO_REFERENCE, "the check names no output to judge"))
    for name, reference in expected.items():
        if name not in outputs:
            result.violations.append(Violation(ViolationKind.OUTPUT, f"{name} was not returned"))
            continue
        output, shape = outputs[name], tuple(reference.estimate.value.shape)
        if tuple(output.shape) != shape:
            result.violations.append(
                Violation(ViolationKind.OUTPUT, f"{name} has shape {tuple(output.shape)}, the reference {shape}")
            )
        elif output.dtype != reference.dtype:
            result.violations.append(
                Violation(ViolationKind.OUTPUT, f"{name} is {output.dtype}, asked for {reference.dtype}")
            )
        else:
            beside = {fill: others.get(name) for fill, others in filled.items() if fill != POISON}
            _judge_one(name, output, reference, axes.get(name) or plain_axes(output.ndim), beside, result)
    return result


Beside = Mapping[int, Tensor | None]
"""Byte that memory was filled with -> the same output then; None: its elements are known to be written."""


def _judge_one(name: str, output: Tensor, reference: Expected, axes: Axes, beside: Beside, result: Judgement) -> None:
    used = accepted(output, reference)
    if used is not None:
        result.tightness = max(result.tightness, used)
        return
    reference = reference.widened()
    estimate, wrong, ratio = closest(output, reference)
    mismatch = _mismatch(name, output, wrong, ratio, estimate, axes)
    poison, follows = _poisoned(output, wrong, beside), _following(output, beside)
    result.mismatches.append(replace(mismatch, poison=poison, follows=follows))


def accepted(output: Tensor, reference: Expected) -> float | None:
    """The largest share of its error bound that a right output used, see :func:`_used`; None of a wrong one."""
    answers = (_used_of(output, reference, estimate) for estimate in (reference.estimate, *reference.alternatives))
    return next((used for used in answers if used is not None), None)


def _used_of(output: Tensor, reference: Expected, estimate: Estimate) -> float | None:
    """As :func:`accepted`, of one accepted answer; ends at the first piece with a wrong element."""
    used = 0.0
    for piece in pieces_of(output):
        if bool(compared(output, reference, estimate, piece)[0].any()):
            return None
        used = max(used, _used(output[piece], _part(estimate, piece)))
    return used


def closest(output: Tensor, reference: Expected) -> tuple[Estimate, Tensor, Tensor]:
    """The accepted answer with the fewest wrong elements, these elements, and the ratios of :func:`compare`."""
    best: tuple[int, Estimate, Tensor, Tensor] | None = None
    for estimate in (reference.estimate, *reference.alternatives):
        wrong, ratio = (output.new_empty(output.shape, dtype=dtype) for dtype in (torch.bool, torch.float64))
        for piece in pieces_of(output):
            wrong[piece], ratio[piece] = compared(output, reference, estimate, piece)
        count = int(wrong.sum())
        if best is None or count < best[0]:
            best = (count, estimate, wrong, ratio)
        if count == 0:
            break
    assert best is not None
    return best[1:]


Piece = tuple[int | slice, ...]


def _part(estimate: Estimate, piece: Piece) -> Estimate:
    error = None if estimate.error is None else estimate.error[piece]
    return Estimate(estimate.value[piece], error, estimate.unit).widened()


def compared(output: Tensor, reference: Expected, estimate: Estimate, piece: Piece) -> tuple[Tensor, Tensor]:
    """:func:`compare` of a piece; what nothing can be said of is not wrong."""
    also = None if reference.also is None else reference.also[piece]
    wrong, ratio = compare(output[piece], _part(estimate, piece), also)
    return wrong if reference.unknown is None else wrong & ~reference.unknown[piece], ratio


def compare(output: Tensor, estimate: Estimate, also: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Which elements are wrong, and error / bound of each (inf where no error is allowed; NaN outputs count as inf).

    Args:
        also: the values beside these that elements may have, see :class:`Expected`; without it NaN is never right.
    """
    got = output.double()
    right = torch.zeros_like(got, dtype=torch.bool) if also is None else extremes.among(got, also)
    if not output.dtype.is_floating_point or estimate.error is None:
        wrong = (got != target(output.dtype, estimate.value).double()) & ~right  # true for NaN alone
        return wrong, torch.where(wrong, torch.inf, 0.0)
    allowed = bounds.tolerance(output.dtype, estimate.value, estimate.error)
    ratio = (got - estimate.value).abs() / allowed
    right |= got == estimate.value
    if bool(torch.isinf(got).any()):  # right where a right computation may leave the range of the dtype
        furthest = bounds.round_to(output.dtype, estimate.value + estimate.value.sign() * estimate.error)
        right |= torch.isinf(got) & (got == furthest)
    ratio = torch.where(right, 0.0, ratio).nan_to_num(nan=torch.inf, posinf=torch.inf)
    return ~(ratio <= 1), ratio


def _used(output: Tensor, estimate: Estimate) -> float:
    """Largest share of the error bound that a right output used beyond its own final rounding."""
    if estimate.error is None or not output.numel() or not output.dtype.is_floating_point:
        return 0.0
    beyond = (output.double() - estimate.value).abs() - bounds.ulp(output.dtype, estimate.value.abs()) / 2
    return float((beyond / estimate.error).nan_to_num(nan=0.0, posinf=0.0, neginf=0.0).max().clamp_min(0.0))


def _mismatch(name: str, output: Tensor, wrong: Tensor, ratio: Tensor, estimate: Estimate, axes: Axes) -> Mismatch:
    floating = output.dtype.is_floating_point
    places = wrong.flatten().nonzero().flatten()
    got, wanted, ratio = output[wrong].double(), estimate.value[wrong], ratio[wrong]  # of the wrong elements, in order
    order = badness(got, Estimate(wanted, None), torch.ones_like(places, dtype=torch.bool), ratio)
    furthest = int(order.argmax())
    worst = regions.index_of(int(places[furthest]), wrong.shape)
    value = estimate.value[worst]
    distance = float((got[furthest] - value).abs().nan_to_num(nan=torch.inf, posinf=torch.inf))
    exact = estimate.error is None or not floating
    limit = 0.0 if exact else float(bounds.tolerance(output.dtype, value, estimate.error[worst]))  # type: ignore[index]
    nonfinite = places[~torch.isfinite(got)]
    finite = torch.isfinite(got) & torch.isfinite(wanted)
    tiles, _, _ = regions.wrong_tiles(wrong, axes)
    wide = output.float() if floating and output.itemsize == 1 else output  # torch compares no fp8
    kind = character(wide if floating else output.double(), estimate.value, wrong, integers=not floating)
    return Mismatch(
        output=name,
        method="integer" if not floating else "exact" if exact else "bound",
        wrong=len(places),
        total=wrong.numel(),
        region=regions.describe(wrong, axes),
        first=list(regions.index_of(int(places[0]), wrong.shape)),
        worst=list(worst),
        expected=float(value),
        got=None if bool(torch.isnan(got[furthest])) else float(got[furthest]),
        bound=limit,
        ulps=ulps(output.dtype, distance, value) if floating else None,
        box=regions.box(wrong),
        tiles=tiles,
        bits=_flipped_bits(integers(output)[wrong], target(output.dtype, wanted)) if exact else [],
        bias=float((got - wanted)[finite].sign().mean()) if bool(finite.any()) else 0.0,
        nan=int(torch.isnan(got).sum()),  # where a reference has some, NaN and Inf may be right
        inf=int(torch.isinf(got).sum()),
        first_nonfinite=list(regions.index_of(int(nonfinite[0]), wrong.shape)) if len(nonfinite) else None,
        poison=0,
        exactly=regions.exactly(wrong, axes),
        **vars(kind),
        heat=heat_map(wrong, axes),
    )


def badness(output: Tensor, estimate: Estimate, wrong: Tensor, ratio: Tensor) -> Tensor:
    """A score of each element, highest at the worst one; -1 for elements that cannot be the worst.

    Where the ratio is infinite (exact data, NaN), the element furthest from its reference is the worst.
    """
    order = torch.where(wrong, ratio, -1.0)
    if wrong.numel() and bool(torch.isinf(order.max())):
        distance = (output.double() - estimate.value).abs().nan_to_num(nan=torch.inf, posinf=torch.inf)
        order = torch.where(torch.isinf(order), distance, -1.0)
    return order


def ulps(dtype: torch.dtype, distance: float, value: Tensor) -> int | None:
    count = distance / float(bounds.ulp(dtype, value.abs()))
    return round(count) if count < MOST_ULPS else None


def target(dtype: torch.dtype, value: Tensor) -> Tensor:
    """A reference as the dtype of its output holds it."""
    return (bounds.round_to(dtype, value) if dtype.is_floating_point else value).to(dtype)


def _flipped_bits(got: Tensor, wanted: Tensor) -> list[int]:
    """Bit positions in which wrong elements, as integers, differ from the right ones, if each differs in one alone."""
    size = 8 * got.element_size()
    difference = (got ^ integers(wanted)).to(torch.int64)
    if size < 64:
        difference &= 2**size - 1  # the sign bit was carried up
    if not bool(((difference & (difference - 1)) == 0).all()):
        return []
    return sorted((bits % 2**size).bit_length() - 1 for bits in difference.unique().tolist() if bits)


def _poisoned(output: Tensor, wrong: Tensor, beside: Beside) -> int:
    """Number of wrong elements that hold the fill here and in every output made in memory filled otherwise."""
    held = _filled_with(integers(output)[wrong], POISON)
    for fill, other in beside.items():
        if not bool(held.any()):
            return 0
        if other is None or other.shape != output.shape or other.dtype != output.dtype:
            return 0
        held &= _filled_with(integers(other)[wrong], fill)
    return int(held.sum())


def _following(output: Tensor, beside: Beside) -> int:
    """Number of elements that are otherwise in an output made in memory filled otherwise."""
    others = [other for other in beside.values() if other is not None and other.shape == output.shape]
    counts = (
        sum(int((integers(output[piece]) != integers(other[piece])).sum()) for piece in pieces_of(output))
        for other in others
        if other.dtype == output.dtype
    )
    return max(counts, default=0)


def _filled_with(elements: Tensor, fill: int) -> Tensor:
    """Which of some elements, as integers, consist of the byte ``fill`` alone."""
    return (elements.view(torch.uint8).reshape(-1, elements.element_size()) == fill).all(1)
