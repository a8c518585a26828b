"""vLLM's own Triton kernels through its functions above them: unquantized experts and the block-scaled fp8 product."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any

from gpucheck.library.engines import vllm_stand_ins
from gpucheck.library.engines.base import Facts, Sizes, first_module
from gpucheck.library.engines.own_kernels import BlockFp8, FusedExperts, Share, in_words

if TYPE_CHECKING:
    from torch import Tensor

    from gpucheck.library.adapters.base import Place

LAYERS = "vllm.model_executor.layers"
FUSED_MOE = f"{LAYERS}.fused_moe"
ROUTER = (f"{FUSED_MOE}.router.fused_topk_router", f"{FUSED_MOE}.fused_moe")  # since 0.16, before
MAPS = (f"{FUSED_MOE}.expert_map_manager", f"{FUSED_MOE}.layer")  # newer, older


class VllmFusedExperts(FusedExperts):
    """``fused_topk``, then ``fused_experts``, which launches ``fused_moe_kernel`` twice."""

    def __init__(
        self, sizes: Sizes, up: Tensor, down: Tensor, share: Share | None, place: Place, tokens: int, facts: Facts
    ) -> None:
        vllm_stand_ins.operators(facts.stand_ins)
        self.sizes = sizes
        self.functions: Any = import_module(f"{FUSED_MOE}.fused_moe")
        self.map = None if share is None else _expert_map(sizes.experts, share).to(up.device)
        if self.map is not None:
            held = (self.map >= 0).nonzero().flatten()
            held = held[self.map[held].argsort()]
            up, down = up[held], down[held]
            self.map = place(self.map, "the map of experts")
        self.up, self.down = place(up, "weights of the first product"), place(down, "weights of the second product")
        self.facts, facts.depth, facts.backend = facts, "functions", "fused_experts"
        self.facts.configuration = configuration(self.up.shape, self.down.shape, sizes.top_k, tokens)

    def operands(self) -> dict[str, Tensor]:
        held = {"up": self.up, "down": self.down}
        return held if self.map is None else {**held, "expert_map": self.map}

    def forward(self, x: Tensor, logits: Tensor) -> dict[str, Tensor]:
        router: Any = first_module(*ROUTER)
        weights, ids, *_ = router.fused_topk(x, logits, self.sizes.top_k, renormalize=True)
        y = self.functions.fused_experts(
            x,
            self.up,
            self.down,
            weights,
            ids,
            global_num_experts=self.sizes.experts,
            expert_map=self.map,
        )
        return {"weights": weights, "ids": ids, "y": y}


def configuration(up: Sequence[int], down: Sequence[int], top_k: int, tokens: int) -> str:
    """What vLLM launches its kernel for experts with: from a file of tuned values for this GPU, or by default.

    Args:
        up: shape (E, 2I, H).
        down: shape (E, H, I).
    """
    functions: Any = import_module(f"{FUSED_MOE}.fused_moe")
    experts, _, inner = down
    file = functions.get_config_file_name(experts, inner, None)
    tuned = functions.get_moe_configs(experts, inner, None)
    return in_words(file, tuned, functions.try_get_optimal_moe_config(up, down, top_k, None, tokens))


def _expert_map(experts: int, share: Share) -> Tensor:
    """(E,) global id of an expert to the one held by a rank, or -1, as vLLM's layer is given it."""
    maps: Any = first_module(*MAPS)
    found: Tensor = maps.determine_expert_map(share.ranks, share.rank, experts, share.strategy)[1]
    return found


class VllmBlockFp8(BlockFp8):
    """``per_token_group_quant_fp8``, then ``w8a8_triton_block_scaled_mm``.

    The first is a Triton kernel where rows lie apart, and an operator of the compiled part where they do not.
    """

    def __init__(self, weight: Tensor, scales: Tensor, block: int, place: Place, tokens: int, said: list[str]) -> None:
        vllm_stand_ins.operators(said)
        self.functions: Any = import_module(f"{LAYERS}.quantization.utils.fp8_utils")
        self.block = block
        self.weight, self.scales = place(weight, "the weight"), place(scales, "scales of the weight")
        self.facts = Facts("functions", backend="w8a8_triton_block_scaled_mm", stand_ins=said)
        self.facts.configuration = self._configuration(tokens)

    def _configuration(self, tokens: int) -> str:
        """What vLLM launches the product with; it is not asked for it, but chooses so between values of a file."""
        n, k = self.weight.shape
        tuned = self.functions.get_w8a8_block_fp8_configs(n, k, self.block, self.block)
        file = f"N={n},K={k},dtype=fp8_w8a8,block_shape=[{self.block},{self.block}] for this GPU"
        return in_words(file, tuned, tuned[min(tuned, key=lambda count: abs(count - tokens))] if tuned else {})

    def operands(self) -> dict[str, Tensor]:
        return {"weight": self.weight, "scales": self.scales}

    def quantise(self, x: Tensor) -> tuple[Tensor, Tensor]:
        made: tuple[Tensor, Tensor] = self.functions.per_token_group_quant_fp8(x, self.block, use_ue8m0=False)
        return made

    def multiply(self, x: Tensor, scales: Tensor) -> Tensor:
        import torch

        block = [self.block, self.block]
        y: Tensor = self.functions.w8a8_triton_block_scaled_mm(
            x, self.weight, scales, self.scales, block, torch.bfloat16
        )
        return y
