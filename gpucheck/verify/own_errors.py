"""How much errors change an output, exactly, where each element depends on the errors at that element alone.

Each operation that errs has two runs of its own: in one its errors go up and in the other down, in all elements alike,
while no other operation errs. Their squared changes add up to what runs with errors drawn at random give on average.
The root mean square of SAMPLES drawn errors misses that by a fifth, and for one element of 16 million by a factor of
four. Two runs also show where a function such as relu bends within reach of an error, and where few operations err they
are fewer runs.

A product may come first. Errors drawn for its operands add up to a normal number, whose deviation is theirs times the
root of the sum of x^2 w^2. Operands are the same in all runs, since nothing errs before, so that the product and these
roots are computed once. Neighbours then have errors of their own instead of those of a shared operand, which makes no
difference to elements that never meet.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from gpucheck.verify import bounds
from gpucheck.verify.normal_numbers import Normal
from gpucheck.verify.sampled_bounds import SAMPLES

OPERANDS = {"mm": (0, 1), "bmm": (0, 1), "mv": (0, 1), "convolution": (0, 1), "addmm": (1, 2), "baddbmm": (1, 2)}
BIAS = {"convolution": 2, "addmm": 0, "baddbmm": 0}
IN_ORDER = frozenset(
    {"view", "_unsafe_view", "_reshape_alias", "clone", "detach", "alias", "_to_copy", "squeeze", "unsqueeze"}
)
"""Operations that leave the elements of a contiguous tensor in their order."""
PLACES = SAMPLES  # that err, beyond which their errors are drawn
WATCHED = -1  # number of the run without noise
STEP = 8.0  # deviations, up and down: further than right results err


class OwnErrors:
    """Watches a call without noise, then says what errs by how much in calls with noise."""

    def __init__(self, *, sums: bool = False) -> None:
        """``sums``: of all that errs are kept, for :attr:`finite`."""
        self._keeps_sums = self._finite = sums
        self._seen = False  # an operation that errs
        self._value: Tensor | None = None
        self._roots: Tensor | None = None
        self._elements = 0  # of what the first operation that errs gives
        self._from_product: set[int] = set()  # addresses of what is computed from the product, and maybe of more
        self._erring: set[int] = set()  # of what is computed from anything that errs
        self._mixes = False  # elements, or errs in another way than element by element
        self._sums: list[Tensor] = []
        self._count = 0  # of places that err
        self._run, self._place = WATCHED, 0  # the next place of a run

    @property
    def known(self) -> bool:
        """Whether the first operation that errs is a product whose noise may be had by itself."""
        return self._value is not None

    @property
    def by_element(self) -> bool:
        """Whether all errors stay with their element, and come from a few places."""
        return self._seen and not self._mixes and self._count <= PLACES

    @property
    def finite(self) -> bool:
        """Whether nothing that errs is infinite or NaN, as far as sums tell."""
        sums, self._sums = self._sums, []
        self._finite = self._finite and all(math.isfinite(float(each)) for each in sums)
        return self._finite

    def watch(self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], result: Any, *, errs: bool) -> None:
        """Takes note of an operation of a call without noise."""
        places = _places([args, kwargs])
        own = self._stays(func, result)
        if errs and self._keeps_sums:
            self._sums += [each.sum() for each in _tensors([args, result]) if each.is_floating_point()]
        if errs and not self._seen:
            self._begin(func, args, kwargs, result)
        elif errs or self._erring & places:
            self._mixes |= not own
            self._erring |= _places(result)
        if self._value is not None and self._from_product & places:
            if own:
                self._from_product |= _places(result)
            else:
                self._value = self._roots = None

    def _begin(self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], result: Any) -> None:
        self._seen, self._erring = True, _places(result)
        first = _tensors(result)[0]
        self._elements = first.numel()
        self._roots = _roots(func, args, kwargs)
        if self._roots is not None and first.is_contiguous():
            self._value, self._from_product = first.clone(), _places(result)
        self._mixes = self._value is None and not self._stays(func, result)

    def _stays(self, func: Any, result: Any) -> bool:
        """Whether each element of a result is computed from the same element of what errs."""
        by_element = torch.Tag.pointwise in func.tags or _name(func) in IN_ORDER
        return by_element and all(each.numel() == self._elements and each.is_contiguous() for each in _tensors(result))

    def begins(self) -> bool:
        """Says that the next run with noise begins; False: it would tell nothing that those before it do not."""
        self._run, self._place = self._run + 1, 0
        return self._run < (2 * self._count if self.by_element else SAMPLES * self._seen)

    @property
    def weight(self) -> float:
        """What squared differences of a run count."""
        return SAMPLES / 2 / STEP**2 if self.by_element else 1.0

    def deviations(self) -> float | None:
        """By how many the next place errs in this run, all elements alike; None where errors are to be drawn."""
        if self._run == WATCHED:
            self._count += 1
            return 0.0
        if not self.by_element:
            return None
        place, self._place = self._place, self._place + 1
        return (STEP if self._run % 2 else -STEP) if place == self._run // 2 else 0.0

    def product(self, noise: Normal, deviation: float) -> Tensor:
        """The product with noise in one operand, of a standard deviation relative to its elements."""
        assert self._value is not None and self._roots is not None
        own = self.deviations()
        if own is None:
            return noise.disturbed(self._value, self._roots, deviation, finite=self.finite)
        return torch.add(self._value, self._roots, alpha=deviation * own)


def _roots(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Tensor | None:
    """The roots of the sums of the squared terms of a product, float64; None of another operation."""
    name = _name(func)
    if name not in OPERANDS or kwargs:
        return None
    given = list(args)
    operands = [given[place] for place in OPERANDS[name]]
    if any(operand.dtype != torch.float64 for operand in operands):
        return None
    kept = bounds.holds_squares(*operands)
    for place in OPERANDS[name]:
        given[place] = given[place].to(kept).square()
    bias = given[BIAS[name]] if name in BIAS else None
    if bias is not None:
        given[BIAS[name]] = bias.new_zeros((), dtype=kept).expand(bias.shape)
    roots: Tensor = func(*given)
    return roots.double().sqrt_()


def _name(func: Any) -> str:
    return str(func._schema.name).removeprefix("aten::")


def _tensors(values: Any) -> list[Tensor]:
    return [each for each in tree_leaves(values) if isinstance(each, Tensor)]


def _places(values: Any) -> set[int]:
    return {each.untyped_storage().data_ptr() for each in _tensors(values)}
