"""vLLM's expert block of gpt-oss: its model's own block, loader and forward, releases 0.12 to 0.33."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from importlib import import_module
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from gpucheck.library.engines import (
    base,
    vllm_attention_layer,
    vllm_decoder,
    vllm_expert_layer,
    vllm_kernels,
    vllm_parts,
)
from gpucheck.library.engines.absent_extensions import AbsentExtensions
from gpucheck.library.engines.base import GPT_OSS, Engine, Facts, ModelBlock, Sizes, State, place_in_group
from gpucheck.library.engines.cached_attention import AttentionBatch, AttentionSizes, CachedAttention
from gpucheck.library.engines.own_kernels import BlockFp8, FusedExperts, Share
from gpucheck.model.errors import Inapplicable

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from gpucheck.library.adapters.base import Adapter, Place
    from gpucheck.library.engines.served_model import ServedModel
    from gpucheck.model.plan import PlannedEngine

ASKED = ("cutlass_scaled_mm_supports_fp8", "cutlass_scaled_mm_supports_block_fp8", "cutlass_group_gemm_supported")
"""What modules ask of the compiled part while they are imported: whether it has fp8 kernels for a device."""
ONE_LAYER = {
    **GPT_OSS,
    "num_hidden_layers": 1,
    "vocab_size": 128,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "max_position_embeddings": 131072,
    "initial_context_length": 4096,
    "rope_theta": 150000,
    "sliding_window": 128,
    "layer_types": ["full_attention"],
    "swiglu_limit": 7.0,
}
"""The config.json of a gpt-oss checkpoint, but for the sizes of its expert block."""
MODEL_NEEDS = {
    "vllm.model_executor.models.gpt_oss": (
        "MLPBlock",
        "GptOssModel.load_weights",
        "GptOssForCausalLM.hf_to_vllm_mapper",
    ),
    "vllm.model_executor.models.utils": ("AutoWeightsLoader",),
    "vllm.model_executor.model_loader.utils": ("process_weights_after_loading",),
    "vllm.forward_context": ("set_forward_context",),
}
"""Names by module that the model's block is made of."""
RELOAD = "vllm.model_executor.model_loader.reload"
RELOAD_NEEDS = {
    RELOAD: ("record_metadata_for_reloading", "initialize_layerwise_reload", "finalize_layerwise_reload"),
}
"""Names by module that update the weights of a model in place."""
MLP = "model.layers.0.mlp"


class Vllm(Engine):
    """One adapter serves all releases: the names that it calls are the same from 0.12 on."""

    name = "vllm"
    needed_file = "model_executor/models/gpt_oss.py"
    packages = (
        *("packaging", "regex", "transformers", "psutil", "cachetools", "cloudpickle", "pydantic", "einops", "pyzmq"),
        *("msgspec", "cbor2", "aiohttp", "openai-harmony", "openai", "pillow", "pybase64", "uvloop", "py-cpuinfo"),
        *("prometheus_client", "xgrammar", "fastapi", "partial-json-parser", "llguidance", "compressed-tensors"),
        *("loguru", "blake3", "tqdm", "requests", "pyyaml", "filelock", "six", "setuptools"),
    )
    packages_of_some = ("gguf",)
    ahead = (
        *("torch._dynamo", "torch._inductor.compile_fx", "transformers", "openai", "fastapi", "aiohttp", "xgrammar"),
        "compressed_tensors",
    )
    environment = {"VLLM_NO_USAGE_STATS": "1", "VLLM_DO_NOT_TRACK": "1", "VLLM_LOGGING_LEVEL": "ERROR"}
    on_cpu = {
        "CUDA_VISIBLE_DEVICES": "",  # vLLM then keeps Triton although none of Triton's own drivers is active
        "VLLM_DISABLE_SHARED_EXPERTS_STREAM": "1",  # 0.16 makes a CUDA stream for them; gpt-oss has none
    }

    def __init__(self, planned: PlannedEngine, library: Adapter, device: torch.device) -> None:
        super().__init__(planned, library, device)
        os.environ.setdefault("VLLM_CACHE_ROOT", self.new_folder())
        root = Path(planned["root"])
        try:
            if not planned["installed"]:
                AbsentExtensions(root, self.name, self.stand_ins).install()
                self._answer_no()
            self._import(root)
        except (ImportError, AttributeError, RuntimeError) as error:
            reason = f"vllm {planned['version']} does not import with the software here"
            raise Inapplicable(f"{reason}: {type(error).__name__}: {error}") from error
        self._joined = False
        self._configurations: dict[tuple[Any, ...], Any] = {}

    @classmethod
    def own_library(cls, root: Path) -> str:
        """Its wheel carries a copy."""
        held = root / "vllm" / "third_party"
        return f"path:{held}" if (held / "triton_kernels").is_dir() else ""

    def _import(self, root: Path) -> None:
        self.import_from(root)
        if self.device.type == "cpu":
            self._stand_in_platform()
        if not import_module("vllm.triton_utils").HAS_TRITON:
            raise RuntimeError("vLLM has put placeholders in place of Triton: its own kernels would not run")

    def _stand_in_platform(self) -> None:
        """Without a GPU: vLLM's own class of CUDA platforms, which asks torch.cuda, and so the stand-in there."""
        platforms: Any = import_module("vllm.platforms")
        platform = import_module("vllm.platforms.cuda").NonNvmlCudaPlatform()
        platform.dispatch_key = "CPU"  # where tensors lie, and so where vLLM's own operators are registered
        platforms._current_platform = platform
        self.stand_ins.append("platform NonNvmlCudaPlatform with operators for CPU tensors")

    def _answer_no(self) -> None:
        """Says, for the compiled part that is absent, that it has no fp8 kernels; no other operator of it exists."""
        import torch

        for name in (name for name in ASKED if not hasattr(torch.ops._C, name)):
            torch.library.define(f"_C::{name}", "(int cuda_device_capability) -> bool")
            torch.library.impl(f"_C::{name}", "default", lambda capability: False)
            self.stand_ins.append(f"torch.ops._C.{name} answers no")

    def fused_experts(
        self, sizes: Sizes, up: Tensor, down: Tensor, share: Share | None, place: Place, tokens: int, entry: str
    ) -> FusedExperts:
        facts = Facts(stand_ins=self.stand_ins)
        if entry == "layer":
            missing = base.missing_names(vllm_expert_layer.NEEDS)
            if missing:
                raise Inapplicable(f"vllm {self.planned['version']} lacks {missing}, which its layer is made of")
            config = _configuration(sizes, {"quantization_config": None})
            configured = partial(self.configured, config)
            return vllm_expert_layer.VllmExpertLayer(sizes, up, down, share, place, tokens, facts, config, configured)
        return vllm_kernels.VllmFusedExperts(sizes, up, down, share, place, tokens, facts)

    def block_fp8(self, weight: Tensor, scales: Tensor, block: int, place: Place, tokens: int) -> BlockFp8:
        return vllm_kernels.VllmBlockFp8(weight, scales, block, place, tokens, self.stand_ins)

    def attention(self, sizes: AttentionSizes, batch: AttentionBatch, place: Place) -> CachedAttention:
        config = self._attention_config(sizes)
        facts = Facts("method", stand_ins=self.stand_ins)
        with self.configured(config):
            layer = vllm_attention_layer.VllmAttention(config, sizes, batch, facts, place)
        facts.left_behind = self.left_behind()
        return layer

    def _attention_config(self, sizes: AttentionSizes) -> Any:
        """vLLM's configuration of a gpt-oss with these heads; making one takes longer than a small case."""
        heads = {
            "num_attention_heads": sizes.q_heads,
            "num_key_value_heads": sizes.kv_heads,
            "head_dim": sizes.head_dim,
            "sliding_window": sizes.window or ONE_LAYER["sliding_window"],
        }
        key = tuple(heads.values())
        if key not in self._configurations:
            block = Sizes(sizes.q_heads * sizes.head_dim, 64, 1, 1)
            self._configurations[key] = _configuration(block, heads)
        return self._configurations[key]

    def model(self, config: Mapping[str, Any], state: Mapping[str, Tensor], place: Place) -> ServedModel:
        if missing := base.missing_names({**MODEL_NEEDS, **vllm_decoder.NEEDS}):
            raise Inapplicable(f"vllm {self.planned['version']} has no {missing}, which gpucheck calls a model with")
        facts = Facts("model", stand_ins=self.stand_ins)
        compiled = self.planned["installed"]
        settled = vllm_decoder.whole_configuration(config, compiled=compiled)
        with self.configured(settled):
            model = vllm_decoder.VllmModel(settled, state, facts, self.device, place, compiled=compiled)
        facts.left_behind = self.left_behind()
        return model

    def loaded(self, sizes: Sizes, state: State) -> ModelBlock:
        """The block through the deepest entry whose names this release has; what fails then is the engine's fault."""
        facts = Facts()
        for depth, needed in (("module", MODEL_NEEDS), ("method", vllm_parts.METHOD_NEEDS)):
            missing = base.missing_names(needed)
            if missing:
                facts.lacking.append(missing)
                continue
            facts.depth = depth
            config = _configuration(sizes)
            if depth == "module":
                return _MlpBlock(self, sizes, state, facts, config)
            self._require_whole(sizes, facts)
            return vllm_parts.MethodBlock(sizes, state, facts, self.device, partial(self.configured, config))
        self._require_whole(sizes, facts)
        facts.depth = "functions"
        return vllm_parts.FunctionsBlock(sizes, state, facts)

    def _require_whole(self, sizes: Sizes, facts: Facts) -> None:
        """Raises Inapplicable where ranks share the block: what cuts it is the model's loader."""
        if sizes.ranks > 1:
            release = f"vllm {self.planned['version']}"
            raise Inapplicable(f"{release} cuts a checkpoint in its model's loader, which lacks {facts.lacking[0]}")

    @contextmanager
    def as_rank(self, sizes: Sizes, facts: Facts) -> Iterator[None]:
        """Inside, vLLM is this rank of those that share the block; its groups are there."""
        state = import_module("vllm.distributed.parallel_state")
        with place_in_group(state, ("_TP", "_EP") if sizes.ep > 1 else ("_TP",), sizes, facts):
            yield

    @contextmanager
    def configured(self, config: Any) -> Iterator[None]:
        """Inside, ``config`` is vLLM's current one and bf16 torch's default, as while it loads a model."""
        import torch

        set_dtype = import_module("vllm.utils.torch_utils").set_default_torch_dtype
        with ExitStack() as stack:
            stack.enter_context(import_module("vllm.config").set_current_vllm_config(config))
            stack.enter_context(set_dtype(torch.bfloat16))
            self._join()
            yield

    def _join(self) -> None:
        """vLLM's groups of ranks, once in a process: this rank is a replica, all of its groups have one member.

        Where torch.distributed has a group already, vLLM makes its own beside it. They are made without waiting for
        other ranks, so one that is late or gone stops nobody.
        """
        if self._joined:
            return
        import torch.distributed as distributed

        state: Any = import_module("vllm.distributed.parallel_state")
        local = self.device.index or 0  # vLLM takes the device of its groups from it
        if distributed.is_initialized():
            rank = distributed.get_rank()
            state._WORLD = state.init_world_group([rank], local, "gloo")
            state._NODE_COUNT = 1
        else:
            meeting = os.path.join(self.new_folder(), "meeting")
            state.init_distributed_environment(1, 0, f"file://{meeting}", local, backend="gloo")
        state.initialize_model_parallel(1, 1, backend="gloo")  # one rank never communicates, so gloo serves on GPUs
        self._joined = True


def _configuration(sizes: Sizes, others: Mapping[str, Any] = MappingProxyType({})) -> Any:
    """vLLM's configuration of a gpt-oss of these sizes, made from a config.json as a checkpoint has it.

    Args:
        others: keys of the config.json that are not those of :data:`ONE_LAYER`; None: it has no such key.
    """
    sized = {
        "hidden_size": sizes.hidden,
        "intermediate_size": sizes.intermediate,
        "num_local_experts": sizes.experts,
        "num_experts_per_tok": sizes.top_k,
    }
    keys = {**ONE_LAYER, **sized, **others}
    shared = {}
    if sizes.ranks > 1:
        shared["parallel_config"] = import_module("vllm.config").ParallelConfig(
            tensor_parallel_size=sizes.ranks,
            enable_expert_parallel=sizes.ep > 1,
            distributed_executor_backend="external_launcher",  # whoever started the ranks, such as torchrun
        )
    return vllm_decoder.configuration({name: value for name, value in keys.items() if value is not None}, **shared)


class _MlpBlock(ModelBlock):
    """``MLPBlock`` of vLLM's gpt-oss: its router and its experts, loaded by the model's own loader."""

    def __init__(self, engine: Vllm, sizes: Sizes, state: State, facts: Facts, config: Any) -> None:
        import torch

        self.model: Any
        self.facts, self.engine, self.config = facts, engine, config
        self.as_rank = partial(engine.as_rank, sizes, facts)
        gpt_oss = import_module("vllm.model_executor.models.gpt_oss")
        with self._loading():
            with torch.device(engine.device):
                self.model = torch.nn.Module()
                self.model.model = _one_block(gpt_oss, self.config)
                if not base.missing_names(RELOAD_NEEDS):
                    import_module(RELOAD).record_metadata_for_reloading(self.model)
            self._load(state)
            loading = import_module("vllm.model_executor.model_loader.utils")
            loading.process_weights_after_loading(self.model, config.model_config, torch.device(engine.device))
        self.block = self.model.model.layers[0].mlp
        self.router = self.block.router
        self.experts = getattr(self.block.experts, "routed_experts", self.block.experts)
        self.method = self.experts.quant_method
        facts.backend = self._backend()

    @contextmanager
    def _loading(self) -> Iterator[None]:
        """Inside, vLLM is as while it loads a model."""
        with self.engine.configured(self.config), self.as_rank():
            yield

    def _load(self, state: State) -> None:
        import torch

        zero = torch.zeros(len(state.router), dtype=torch.bfloat16, device=self.engine.device)
        weights = [
            (f"{MLP}.router.weight", state.router),
            (f"{MLP}.router.bias", zero),
            *((f"{MLP}.experts.{name}", value) for name, value in state.named().items()),
        ]
        loader = import_module("vllm.model_executor.models.utils").AutoWeightsLoader(self.model)
        mapper = import_module("vllm.model_executor.models.gpt_oss").GptOssForCausalLM.hf_to_vllm_mapper
        loader.load_weights(weights, mapper=mapper)

    def load_again(self, state: State) -> str:
        """vLLM's own update of weights layer by layer, as a trainer or a server asks for it."""
        if missing := base.missing_names(RELOAD_NEEDS):
            return f"this release has no {missing}"
        reload = import_module(RELOAD)
        with self._loading():
            reload.initialize_layerwise_reload(self.model)
            self._load(state)
            reload.finalize_layerwise_reload(self.model, self.config.model_config)
        return ""

    def _backend(self) -> str:
        """What vLLM chose to compute the experts by.

        Raises:
            Inapplicable: something else than the library.
        """
        if not hasattr(self.method, "w13_precision_config"):
            chosen = getattr(self.method, "mxfp4_backend", type(self.method).__name__)
            raise Inapplicable(f"vllm computes these experts by {chosen} here, not by triton_kernels")
        kernel = getattr(getattr(self.method, "moe_kernel", None), "fused_experts", self.method)
        return f"{getattr(self.method, 'mxfp4_backend', '')} {type(kernel).__name__}".strip()

    def held(self) -> dict[str, Any]:
        """Weights lie in the layer since 0.20 and in its method before."""

        def weight(name: str) -> Any:
            held = getattr(self.method, f"{name}_weight", None)
            return getattr(self.experts, f"{name}_weight") if held is None else held

        return base.weights_and_scales(weight, self.method)

    def biases(self) -> dict[str, Any]:
        """What the products are given; before 0.20 vLLM puts it together from the layer at the first call."""
        config = self.method.moe_quant_config
        if config is None:
            found = {"up_bias": self.experts.w13_bias, "down_bias": self.experts.w2_bias}
        else:
            found = {"up_bias": config.w1_bias, "down_bias": config.w2_bias}
        return {name: bias for name, bias in found.items() if bias is not None}

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        context = import_module("vllm.forward_context").set_forward_context
        with self.as_rank(), context(None, self.config, num_tokens=len(x)):
            return self.observed(lambda: self.block(x))


def _one_block(gpt_oss: Any, config: Any) -> Any:
    """vLLM's gpt-oss model without what surrounds the block, so that the model's own ``load_weights`` loads it."""
    import torch

    class OneBlock(gpt_oss.GptOssModel):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            torch.nn.Module.__init__(self)
            self.config = config.model_config.hf_config
            self.quant_config = config.quant_config
            self.parallel_config = config.parallel_config
            layer = torch.nn.Module()
            layer.mlp = gpt_oss.MLPBlock(config, 0, prefix=MLP)
            self.layers = torch.nn.ModuleList([layer])

    return OneBlock()
