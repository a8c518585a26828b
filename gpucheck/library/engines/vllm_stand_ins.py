"""What stands for operators of vLLM's compiled part around its own Triton kernels, where that part is not here.

Each does with plain torch what the operator is documented to do; where vLLM is installed none of them is used. Each
stand-in is said in the record.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from gpucheck.library.engines.base import say
from gpucheck.library.engines.plain_operators import into_blocks, softmax_of_largest

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


def accelerator(device: Any, said: list[str]) -> None:
    """Lets what frees the memory of a GPU do nothing where there is none."""
    import torch

    if device.type == "cpu" and not torch.accelerator.is_available():
        torch.accelerator.empty_cache = lambda: None
        say(said, "torch.accelerator.empty_cache does nothing")


def topk_softmax(weights: Tensor, ids: Tensor, rows: Tensor, logits: Tensor, renormalize: bool, *_: Any) -> None:
    """See :func:`softmax_of_largest`."""
    import torch

    values, chosen = softmax_of_largest(logits, ids.shape[1], renormalised=renormalize)
    weights.copy_(values)
    ids.copy_(chosen)
    tokens, slots = (torch.arange(size, device=ids.device) for size in ids.shape)
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
    """See :func:`into_blocks`; with a map of global ids to those held here, or -1, all ids are of those held here."""
    held = ids if expert_map is None else expert_map[ids.long()]
    into_blocks(held, range(experts), block, sorted_ids, expert_ids, padded, 0 if expert_map is None else -1)


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
