"""The first product of a computation with noise, without a multiplication in each run.

A run multiplies operands, one of which has noise: a sum of normal numbers, whose deviation is that of the noise times
the root of the sum of x^2 w^2. Before the first operation that errs, operands are the same in all runs, so that the
product and these roots are computed once, and each run draws what it adds. The noise of neighbours hangs together in
the first way and not in the second; so the second is taken only where all that follows works on each element by itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from gpucheck.verify import bounds
from gpucheck.verify.normal_numbers import Normal

OPERANDS = {"mm": (0, 1), "bmm": (0, 1), "mv": (0, 1), "convolution": (0, 1), "addmm": (1, 2), "baddbmm": (1, 2)}
BIAS = {"convolution": 2, "addmm": 0, "baddbmm": 0}
IN_ORDER = frozenset(
    {"view", "_unsafe_view", "_reshape_alias", "clone", "detach", "alias", "_to_copy", "squeeze", "unsqueeze"}
)
"""Operations that leave the elements of a contiguous tensor in their order."""


class FirstProduct:
    """Watches a call without noise, then stands in for its first product in calls with noise."""

    def __init__(self) -> None:
        self._seen = False  # an operation that errs
        self._value: Tensor | None = None
        self._roots: Tensor | None = None
        self._derived: set[int] = set()  # addresses of what is computed from the product, and maybe of more

    @property
    def known(self) -> bool:
        """Whether the first operation that errs is a product whose noise may be drawn by itself."""
        return self._value is not None

    def watch(self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], result: Any, *, errs: bool) -> None:
        """Takes note of an operation of a call without noise."""
        if self._value is not None:
            if self._derived & _places([args, kwargs]):
                self._follow(func, result)
        elif errs and not self._seen:
            self._seen = True
            self._roots = _roots(func, args, kwargs)
            if self._roots is not None and result.is_contiguous():
                self._value, self._derived = result.clone(), _places(result)

    def _follow(self, func: Any, result: Any) -> None:
        assert self._value is not None
        by_element = torch.Tag.pointwise in func.tags or _name(func) in IN_ORDER
        alike = all(
            each.numel() == self._value.numel() and each.is_contiguous() and each.dtype == torch.float64
            for each in _tensors(result)
        )
        if by_element and alike:
            self._derived |= _places(result)
        else:
            self._value = self._roots = None

    def draw(self, noise: Normal, deviation: float) -> Tensor:
        """The product with noise in one operand, of a standard deviation relative to its elements."""
        assert self._value is not None and self._roots is not None
        return noise.disturbed(self._value, self._roots, deviation)


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
        given[BIAS[name]] = torch.zeros((), dtype=kept).expand(bias.shape)
    roots: Tensor = func(*given)
    return roots.double().sqrt_()


def _name(func: Any) -> str:
    return str(func._schema.name).removeprefix("aten::")


def _tensors(values: Any) -> Iterable[Tensor]:
    return [each for each in tree_leaves(values) if isinstance(each, Tensor)]


def _places(values: Any) -> set[int]:
    return {each.untyped_storage().data_ptr() for each in _tensors(values)}
