"""SGLang's own Triton kernel for unquantized experts, through its functions above it."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from gpucheck.library.engines import sglang_stand_ins
from gpucheck.library.engines.base import Facts, Sizes, say
from gpucheck.library.engines.own_kernels import FusedExperts, Share, in_words
from gpucheck.model.errors import Inapplicable

if TYPE_CHECKING:
    from torch import Tensor

    from gpucheck.library.adapters.base import Place

MOE = "sglang.srt.layers.moe"
UTILS = f"{MOE}.moe_runner.triton_utils"


class SglangFusedExperts(FusedExperts):
    """``fused_topk``, then ``fused_experts``: ``fused_moe_kernel`` twice and a kernel that adds up."""

    def __init__(
        self, sizes: Sizes, up: Tensor, down: Tensor, share: Share | None, place: Place, tokens: int, said: list[str]
    ) -> None:
        self.sizes, self.said = sizes, said
        sglang_stand_ins.alignment(import_module(f"{UTILS}.moe_align_block_size"), said)
        sglang_stand_ins.device_name(import_module(f"{UTILS}.fused_moe_triton_config"), said)
        self.functions: Any = import_module(f"{UTILS}.fused_moe")
        sglang_stand_ins.experts(self.functions, said)
        self.local = None if share is None else _local_ids(sizes.experts, share).to(up.device)
        if self.local is not None:
            held = self.local >= 0
            up, down = up[held], down[held]
        self.up, self.down = place(up, "weights of the first product"), place(down, "weights of the second product")
        self.facts = Facts("functions", backend="fused_experts" if up.is_cuda else "fused_experts_impl", stand_ins=said)
        self.facts.configuration = self._configuration(tokens)

    def _configuration(self, tokens: int) -> str:
        """What SGLang launches its kernel with: from a file of tuned ones for this GPU, or by default."""
        config: Any = import_module(f"{UTILS}.fused_moe_triton_config")
        experts, _, inner = self.down.shape
        file = config.get_config_file_name(experts, inner, None)
        tuned = config.get_moe_configs(experts, inner, None)
        shapes = (self.up.shape, self.down.shape, self.sizes.top_k, None, tokens)
        return in_words(file, tuned, config.try_get_optimal_moe_config(*shapes))

    def operands(self) -> dict[str, Tensor]:
        return {"up": self.up, "down": self.down}

    def forward(self, x: Tensor, logits: Tensor) -> dict[str, Tensor]:
        topk: Any = import_module(f"{MOE}.topk")
        weights, ids = self._choice(topk, x, logits)
        local = ids if self.local is None else self.local[ids.long()]
        if x.device.type == "cuda":
            runner = import_module(f"{MOE}.moe_runner").MoeRunnerConfig(
                num_experts=self.sizes.experts, num_local_experts=len(self.up), inplace=False
            )
            chosen = topk.StandardTopKOutput(weights, local, logits)
            y = self.functions.fused_experts(x, self.up, self.down, chosen, runner)
        else:  # the operator that fused_experts calls is registered for GPUs alone; this is what it calls
            y = self.functions.fused_experts_impl(
                x, self.up, self.down, weights, local, filter_expert=self.local is not None
            )
        return {"weights": weights, "ids": ids, "y": y}

    def _choice(self, topk: Any, x: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Weights and ids: by the compiled operator, or where that is not here by SGLang's function in plain torch."""
        if hasattr(topk, "topk_softmax"):
            weights, ids = topk.fused_topk(x, logits, self.sizes.top_k, renormalize=True)[:2]
        else:
            say(self.said, "fused_topk_torch_native in place of fused_topk")
            weights, ids = topk.fused_topk_torch_native(x, logits, self.sizes.top_k, renormalize=True)[:2]
        return weights, ids.int()


def _local_ids(experts: int, share: Share) -> Tensor:
    """(E,) global id of an expert to the one held by a rank, or -1, as SGLang's dispatcher maps them."""
    import torch

    held, left = divmod(experts, share.ranks)
    if share.strategy != "linear" or left:
        raise Inapplicable("sglang places as many experts on each rank, one after the other")
    local = torch.full((experts,), -1, dtype=torch.int32)
    local[share.rank * held : (share.rank + 1) * held] = torch.arange(held, dtype=torch.int32)
    return local
