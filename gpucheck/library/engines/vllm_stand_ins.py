"""What stands for operators of vLLM's compiled part around its own Triton kernels, where that part is not here.

Each does with plain torch what the operator is documented to do; where vLLM is installed none of them is used. Each
stand-in is said in the record.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from gpucheck.library.engines.base import say

if TYPE_CHECKING:
    from torch import Tensor


def operators(said: list[str]) -> None:
    """Registers those of :data:`OPERATORS` that are absent, once in a process."""
    import torch

    for name, (schema, function) in OPERATORS.items():
        space, _, operator = name.partition("::")
        if hasattr(getattr(torch.ops, space), operator):
            continue
        torch.library.define(name, schema)
        torch.library.impl(name, "default", function)
        say(said, f"torch.ops.{space}.{operator} in plain torch")


def topk_softmax(weights: Tensor, ids: Tensor, rows: Tensor, logits: Tensor, renormalize: bool, *_: Any) -> None:
    """The k largest of a softmax over all experts, the smaller id first where they tie; renormalised if asked."""
    import torch

    chosen = logits.float().softmax(-1).sort(dim=-1, descending=True, stable=True)
    k = ids.shape[1]
    values = chosen.values[:, :k]
    weights.copy_(values / values.sum(-1, keepdim=True) if renormalize else values)
    ids.copy_(chosen.indices[:, :k])
    tokens, slots = torch.arange(len(ids), device=ids.device), torch.arange(k, device=ids.device)
    rows.copy_(slots * len(ids) + tokens[:, None])


def moe_align_block_size(
    ids: Tensor,
    experts: int,
    block: int,
    sorted_ids: Tensor,
    expert_ids: Tensor,
    padded: Tensor,
    expert_map: Tensor | None = None,
    *_: Any,
) -> None:
    """Slots of tokens (token * k + slot) sorted by expert, each expert's filled up to whole blocks.

    Args:
        ids: (T, k) global ids of experts.
        sorted_ids: takes the slots, and T * k in each place that no slot fills.
        expert_ids: takes the expert of each block; blocks that no slot is in: -1 with a map, else 0.
        padded: (1,), takes the places of all blocks.
        expert_map: (E,) global id to the one held here, or -1: such slots are left out.
    """
    import torch

    flat = ids.flatten().long()
    held = flat if expert_map is None else expert_map.long()[flat]
    sorted_ids.fill_(flat.numel())
    expert_ids.fill_(0 if expert_map is None else -1)
    start = 0
    for expert in range(experts):
        slots = (held == expert).nonzero().flatten()
        blocks = -(-len(slots) // block)
        sorted_ids[start * block : start * block + len(slots)] = slots.to(torch.int32)
        expert_ids[start : start + blocks] = expert
        start += blocks
    padded.fill_(start * block)


def moe_sum(rows: Tensor, y: Tensor, ids: Tensor | None = None, expert_map: Tensor | None = None) -> None:
    """Rows (T, k, H) of a token added up in fp32; with a map, those of experts that are not held here are left out."""
    if ids is not None and expert_map is not None:
        rows = rows.masked_fill((expert_map[ids.long()] < 0)[..., None], 0)
    y.copy_(rows.float().sum(1))


def silu_and_mul(output: Tensor, gate_up: Tensor) -> None:
    """``silu(gate) * up`` of (..., 2N), the gate first, in fp32."""
    gate, up = gate_up.float().chunk(2, -1)
    output.copy_(gate * gate.sigmoid() * up)


def per_token_group_fp8_quant(
    x: Tensor, q: Tensor, scales: Tensor, group: int, epsilon: float, lowest: float, highest: float, *_: Any
) -> None:
    """Groups of columns over their largest magnitude, and these as scales."""
    groups = x.float().unflatten(-1, (-1, group))
    largest = groups.abs().amax(-1).clamp_min(epsilon)
    scales.copy_(largest / highest)
    q.copy_((groups / scales[..., None]).clamp(lowest, highest).flatten(-2).to(q.dtype))


OPERATORS: dict[str, tuple[str, Callable[..., None]]] = {
    "_C::silu_and_mul": ("(Tensor! output, Tensor gate_up) -> ()", silu_and_mul),
    "_C::per_token_group_fp8_quant": (
        "(Tensor x, Tensor! q, Tensor! scales, int group, float epsilon, float lowest, float highest, bool ue8m0, "
        "bool column_major=False, bool aligned=False) -> ()",
        per_token_group_fp8_quant,
    ),
    "_moe_C::moe_sum": (
        "(Tensor rows, Tensor! y, Tensor? ids=None, Tensor? expert_map=None) -> ()",
        moe_sum,
    ),
    "_moe_C::moe_align_block_size": (
        "(Tensor ids, int experts, int block, Tensor! sorted_ids, Tensor! expert_ids, Tensor! padded, "
        "Tensor? expert_map=None, Tensor!? scatter=None) -> ()",
        moe_align_block_size,
    ),
    "_moe_C::topk_softmax": (
        "(Tensor! weights, Tensor! ids, Tensor! rows, Tensor logits, bool renormalize, Tensor? bias=None, "
        "Tensor? is_padding=None) -> ()",
        topk_softmax,
    ),
}
"""Schema, in the newest release's form, and code of each operator."""
