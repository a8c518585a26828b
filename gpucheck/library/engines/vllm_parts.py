"""Parts of vLLM's expert block, for releases whose model cannot be called: its quantization method or its functions."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from importlib import import_module
from typing import TYPE_CHECKING, Any

from gpucheck.library.engines.base import Facts, ModelBlock, Sizes, State, first_module, weights_and_scales

if TYPE_CHECKING:
    import torch
    from torch import Tensor


LAYERS = "vllm.model_executor.layers"
EXPERTS = (  # since 0.20, before
    f"{LAYERS}.fused_moe.experts.gpt_oss_triton_kernels_moe",
    f"{LAYERS}.fused_moe.gpt_oss_triton_kernels_moe",
)
METHOD_NEEDS = {
    f"{LAYERS}.quantization.mxfp4": ("GptOssMxfp4MoEMethod",),
    f"{LAYERS}.fused_moe.config": ("FusedMoEConfig", "FusedMoEParallelConfig", "RoutingMethodType"),
    f"{LAYERS}.fused_moe.activation": ("MoEActivation",),
}
"""Names by module that the method's block is made of."""


class _Part(ModelBlock):
    """A block whose router is a plain product: the logits are torch's, and what is chosen by them vLLM's."""

    def __init__(self, sizes: Sizes, state: State, facts: Facts) -> None:
        import torch

        self.sizes, self.facts = sizes, facts
        self.router = torch.nn.Linear(sizes.hidden, sizes.experts, bias=False, dtype=torch.bfloat16, device="meta")
        self.router.weight = torch.nn.Parameter(state.router, requires_grad=False)
        self._held: dict[str, Any] = {}
        self._biases: dict[str, Tensor] = {}

    def held(self) -> dict[str, Any]:
        return self._held

    def biases(self) -> dict[str, Any]:
        return self._biases


class MethodBlock(_Part):
    """The quantization method: it makes the parameters, converts them after loading and computes the experts."""

    def __init__(
        self,
        sizes: Sizes,
        state: State,
        facts: Facts,
        device: torch.device,
        configured: Callable[[], AbstractContextManager[None]],
    ) -> None:
        super().__init__(sizes, state, facts)
        self.configured: Any = configured
        with configured():
            self._load(sizes, state, device)
        self.facts.backend = f"{self.method.mxfp4_backend} {type(self.method.moe_kernel.fused_experts).__name__}"
        self._held = weights_and_scales(lambda name: getattr(self.layer, f"{name}_weight"), self.method)
        quantization = self.method.moe_quant_config
        self._biases = {"up_bias": quantization.w1_bias, "down_bias": quantization.w2_bias}

    def _load(self, sizes: Sizes, state: State, device: torch.device) -> None:
        import torch

        config = import_module(f"{LAYERS}.fused_moe.config")
        activation = import_module(f"{LAYERS}.fused_moe.activation").MoEActivation.SWIGLUOAI
        made = config.FusedMoEConfig(
            num_experts=sizes.experts,
            experts_per_token=sizes.top_k,
            hidden_dim=sizes.hidden,
            intermediate_size=sizes.intermediate,
            num_local_experts=sizes.experts,
            num_logical_experts=sizes.experts,
            activation=activation,
            device=device,
            routing_method=config.RoutingMethodType.Renormalize,
            moe_parallel_config=config.FusedMoEParallelConfig.make_no_parallel(),
            in_dtype=torch.bfloat16,
            has_bias=True,
        )
        self.method = import_module(f"{LAYERS}.quantization.mxfp4").GptOssMxfp4MoEMethod(made)
        layer: Any = torch.nn.Module()
        layer._expert_routing_tables = lambda: None
        self.layer = layer
        whole = (sizes.hidden, sizes.intermediate, torch.bfloat16, made.moe_parallel_config)
        with torch.device(device):
            rounded = self.method.maybe_roundup_sizes(*whole)
            self.method.create_weights(self.layer, sizes.experts, *rounded, torch.bfloat16)
        for name, value in _parameters(state).items():
            getattr(self.layer, name).data[tuple(map(slice, value.shape))].copy_(value)
        self.method.process_weights_after_loading(self.layer)
        vars(self.layer).update(_said_of_layer(activation, sizes))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        with self.configured():
            return self.observed(lambda: self.method.apply_monolithic(self.layer, x, self.router(x)))


def _parameters(state: State) -> dict[str, Tensor]:
    """The experts' tensors by the names and forms of the method's parameters."""
    return {
        "w13_weight": state.up_blocks.flatten(-2),
        "w13_weight_scale": state.up_scales,
        "w13_bias": state.up_bias,
        "w2_weight": state.down_blocks.flatten(-2),
        "w2_weight_scale": state.down_scales,
        "w2_bias": state.down_bias,
    }


def _said_of_layer(activation: Any, sizes: Sizes) -> dict[str, Any]:
    """What the method asks its layer for, as the layer of a gpt-oss says it."""
    return {
        "activation": activation,
        "global_num_experts": sizes.experts,
        "apply_router_weight_on_input": False,
        "routed_scaling_factor": 1.0,
        **dict.fromkeys(("expert_map", "num_expert_group", "topk_group", "e_score_correction_bias")),
        **dict.fromkeys(("routing_sink", "hash_indices_table")),
    }


class FunctionsBlock(_Part):
    """The functions that swizzle the weights and compute the experts, with nothing of vLLM around them."""

    def __init__(self, sizes: Sizes, state: State, facts: Facts) -> None:
        super().__init__(sizes, state, facts)
        utils = import_module(f"{LAYERS}.quantization.utils.mxfp4_utils")
        matmul = first_module("triton_kernels.matmul_ogs", "triton_kernels.matmul")
        configs = {}
        for name, blocks, scales in (
            ("up", state.up_blocks, state.up_scales),
            ("down", state.down_blocks, state.down_scales),
        ):
            values, flex, scale = utils._swizzle_mxfp4(blocks.flatten(-2), scales, num_warps=8)
            keywords = utils.mx_scale_kwargs(scale) if hasattr(utils, "mx_scale_kwargs") else {"weight_scale": scale}
            configs[name] = matmul.PrecisionConfig(**keywords, flex_ctx=matmul.FlexCtx(rhs_data=flex))
            self._held |= {name: values, f"{name}_scale": scale}
        self._biases = {"up_bias": state.up_bias.float(), "down_bias": state.down_bias.float()}
        self.quantization = import_module(f"{LAYERS}.fused_moe.config").mxfp4_w4a16_moe_quant_config(
            w1_scale=configs["up"],
            w2_scale=configs["down"],
            w1_bias=self._biases["up_bias"],
            w2_bias=self._biases["down_bias"],
        )
        facts.backend = "triton_kernel_moe_forward"

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        experts = first_module(*EXPERTS)
        return self.observed(
            lambda: experts.triton_kernel_moe_forward(
                hidden_states=x,
                w1=self._held["up"],
                w2=self._held["down"],
                gating_output=self.router(x),
                topk=self.sizes.top_k,
                renormalize=True,
                global_num_experts=self.sizes.experts,
                expert_map=None,
                quant_config=self.quantization,
                apply_router_weight_on_input=False,
            )
        )
