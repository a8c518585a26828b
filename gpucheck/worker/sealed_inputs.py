"""Inputs under a seal, bits that mean nothing until the key is known; and sums that bind outputs before they are sent.

A supervisor sends the inputs of a timed call ahead of the call, which then need not be copied while time runs. Under a
seal nobody can work on them before it does. The answer that a call has ended holds the sum of its outputs, so that
nobody can work on those any more.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gpucheck.verify.digest import integers
from gpucheck.verify.views import is_dense

KEY_BITS = 62
_add = Tensor.sum
xor = torch.bitwise_xor  # taken now: code under test may put something else in its place


def seal(inputs: dict[str, Tensor], key: int) -> dict[str, Tensor]:
    """Sealed copies of inputs; those whose elements share memory or leave gaps stay as they are."""
    sealed = {}
    for name, value in inputs.items():
        sealed[name] = torch.empty_like(value) if sealable(value) else value
        if sealable(value):
            xor(integers(value), mask_of(value, key), out=integers(sealed[name]))
    return sealed


def sealable(value: Tensor) -> bool:
    """Whether a tensor can be sealed and keeps its form."""
    return value.numel() > 0 and is_dense(value)


def mask_of(value: Tensor, key: int) -> int:
    """What the integers of a tensor's elements are sealed with; a bool stays one."""
    return key & (1 if value.dtype == torch.bool else (1 << (8 * integers(value).element_size() - 1)) - 1)


def bit_sum(outputs: dict[str, Tensor]) -> int:
    """The sum of all elements' bits, taken as integers, of 64 bits."""
    return sum(int(_add(integers(value), dtype=torch.int64)) for value in outputs.values() if value.numel()) % (1 << 64)
