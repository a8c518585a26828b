"""Unquantized experts by vLLM's own layer: a Mixtral's block with its loader, choice of experts and kernels."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from importlib import import_module
from typing import TYPE_CHECKING, Any

from gpucheck.library.engines import vllm_kernels, vllm_stand_ins
from gpucheck.library.engines.base import Facts, Sizes
from gpucheck.library.engines.own_kernels import FusedExperts, Share
from gpucheck.model.errors import Inapplicable

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from gpucheck.library.adapters.base import Place

BLOCK = "layers.0.block_sparse_moe"
NEEDS = {
    "vllm.model_executor.models.mixtral": ("MixtralMoE", "MixtralModel.load_weights"),
    "vllm.model_executor.model_loader.utils": ("process_weights_after_loading",),
    "vllm.forward_context": ("set_forward_context",),
}
"""Names by module that the layer is made of; they are the same from 0.12 on."""
WORKSPACE = "vllm.v1.worker.workspace"  # memory that layers share; a worker makes it, since 0.14


class VllmExpertLayer(FusedExperts):
    """``MixtralMoE`` as vLLM loads and computes it, but for its gate: router logits are given.

    With a share it is the first of several ranks, whose sum of all ranks has one part.
    """

    def __init__(
        self,
        sizes: Sizes,
        up: Tensor,
        down: Tensor,
        share: Share | None,
        place: Place,
        tokens: int,
        facts: Facts,
        config: Any,
        configured: Callable[[], AbstractContextManager[None]],
    ) -> None:
        import torch

        self.facts, self.config = facts, config
        if share is not None:
            config.parallel_config.enable_expert_parallel = True
        facts.depth = "module"
        vllm_stand_ins.operators(facts.stand_ins)
        vllm_stand_ins.accelerator(up.device, facts.stand_ins)
        loading: Any = import_module("vllm.model_executor.model_loader.utils")
        with configured():
            _share_memory(up.device)
            with torch.device(up.device):
                model: Any = torch.nn.Module()
                model.model = _one_block(sizes, config, 1 if share is None else share.ranks)
            model.model.load_weights(_checkpoint(up, down))
            loading.process_weights_after_loading(model, config.model_config, up.device)
        self.layer = model.model.layers[0].block_sparse_moe.experts
        self.held = getattr(self.layer, "routed_experts", self.layer)
        facts.backend = self._backend() + ("" if share is None else f" on rank 0 of {share.ranks}")
        self.held.w13_weight.data = place(self.held.w13_weight.data, "weights of the first product")
        self.held.w2_weight.data = place(self.held.w2_weight.data, "weights of the second product")
        shapes = self.held.w13_weight.shape, self.held.w2_weight.shape
        facts.configuration = vllm_kernels.configuration(*shapes, sizes.top_k, tokens)

    def _backend(self) -> str:
        """What vLLM chose to compute the experts by.

        Raises:
            Inapplicable: something else than its own kernel.
        """
        method = self.held.quant_method
        chosen = getattr(method, "unquantized_backend", None)
        name = type(method).__name__ if chosen is None else str(getattr(chosen, "value", chosen))
        if chosen is not None and getattr(chosen, "name", "") != "TRITON":
            raise Inapplicable(f"vllm computes unquantized experts by {name} here, not by its own kernel")
        kernel = getattr(getattr(method, "moe_kernel", None) or getattr(method, "kernel", None), "fused_experts", None)
        return f"{name} {type(kernel).__name__}" if kernel is not None else name

    def operands(self) -> dict[str, Tensor]:
        return {"up": self.held.w13_weight, "down": self.held.w2_weight}

    def forward(self, x: Tensor, logits: Tensor) -> dict[str, Tensor]:
        context: Any = import_module("vllm.forward_context")
        with context.set_forward_context(None, self.config, num_tokens=len(x)), self._choice_seen() as seen:
            y = self.layer(x, logits)
        weights, ids = seen[0]
        return {"weights": weights, "ids": ids, "y": y}

    @contextmanager
    def _choice_seen(self) -> Iterator[list[tuple[Tensor, Tensor]]]:
        """Inside, weights and ids of the experts that the layer chooses are kept."""
        parts = [self.layer, *(getattr(self.layer, name, None) for name in ("router", "runner"))]
        parts.append(getattr(parts[-1], "router", None))
        router: Any = next(part for part in parts if hasattr(part, "select_experts"))
        original, seen = router.select_experts, list[tuple[Any, Any]]()

        def select_experts(*given: Any, **named: Any) -> Any:
            chosen = original(*given, **named)
            seen.append((chosen[0], chosen[1]))
            return chosen

        router.select_experts = select_experts
        try:
            yield seen
        finally:
            del router.select_experts


def _share_memory(device: torch.device) -> None:
    """Makes the memory anew that layers share: so that each loaded layer computes in memory that is watched."""
    try:
        workspace: Any = import_module(WORKSPACE)
    except ModuleNotFoundError:
        return
    workspace.reset_workspace_manager()
    workspace.init_workspace_manager(device)


def _one_block(sizes: Sizes, config: Any, ranks: int) -> Any:
    """vLLM's Mixtral without what surrounds the block, so that the model's own ``load_weights`` loads it.

    Args:
        ranks: that the layer takes the experts to be divided among; it is the first of them, and the only one here.
    """
    import torch

    mixtral: Any = import_module("vllm.model_executor.models.mixtral")

    class OneBlock(mixtral.MixtralModel):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            torch.nn.Module.__init__(self)
            self.config = config.model_config.hf_config
            self.quant_config = None
            self.num_redundant_experts = 0
            layer = torch.nn.Module()
            layer.block_sparse_moe = mixtral.MixtralMoE(
                sizes.experts,
                sizes.top_k,
                sizes.hidden,
                sizes.intermediate,
                params_dtype=torch.bfloat16,
                tp_size=ranks,
                prefix=f"model.{BLOCK}",
            )
            self.layers = torch.nn.ModuleList([layer])

    return OneBlock()


def _checkpoint(up: Tensor, down: Tensor) -> Iterator[tuple[str, Tensor]]:
    """The experts by the names that they have in a checkpoint of a Mixtral: w1 the gate, w3 up, w2 down."""
    for expert, both in enumerate(up):
        gate, values = both.chunk(2)
        name = f"{BLOCK}.experts.{expert}"
        yield f"{name}.w1.weight", gate
        yield f"{name}.w3.weight", values
        yield f"{name}.w2.weight", down[expert]
