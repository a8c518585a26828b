"""Operators around the kernels of experts in plain torch: what engines' compiled parts do, where these are not here."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def softmax_of_largest(logits: Tensor, k: int, *, renormalised: bool) -> tuple[Tensor, Tensor]:
    """Weights and ids (T, k) of the largest of a softmax over all experts; the smaller id comes first in a tie."""
    chosen = logits.float().softmax(-1).sort(dim=-1, descending=True, stable=True)
    weights = chosen.values[:, :k]
    return weights / weights.sum(-1, keepdim=True) if renormalised else weights, chosen.indices[:, :k]


def into_blocks(
    ids: Tensor, experts: Iterable[int], block: int, sorted_ids: Tensor, expert_ids: Tensor, padded: Tensor, rest: int
) -> None:
    """Slots of tokens (token * k + slot) sorted by expert, each expert's filled up to whole blocks.

    Args:
        ids: (T, k); slots of an expert that is not among ``experts`` are left out.
        sorted_ids: takes the slots, and T * k in each place that no slot fills.
        expert_ids: takes the expert of each block, and ``rest`` for blocks after the last one.
        padded: (1,), takes the places of all blocks.
    """
    import torch

    flat = ids.flatten().long()
    sorted_ids.fill_(flat.numel())
    expert_ids.fill_(rest)
    start = 0
    for expert in experts:
        slots = (flat == expert).nonzero().flatten()
        blocks = -(-len(slots) // block)
        sorted_ids[start * block : start * block + len(slots)] = slots.to(torch.int32)
        expert_ids[start : start + blocks] = expert
        start += blocks
    padded.fill_(start * block)
