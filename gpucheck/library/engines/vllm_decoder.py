"""vLLM's whole model of gpt-oss: ``GptOssForCausalLM`` with its own loading, Triton attention and experts."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, suppress
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpucheck.library.engines.base import HELD, Engine, Facts, layout_of, say, weights_and_scales
from gpucheck.library.engines.cached_attention import AttentionBatch, AttentionSizes
from gpucheck.library.engines.served_model import Seen, ServedModel, engine_places, watching
from gpucheck.library.engines.vllm_attention_layer import common_metadata, empty_cache
from gpucheck.model.errors import Inapplicable

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from gpucheck.library.adapters.base import Place as Placing

NATIVE = ("rms_norm", "rotary_embedding")
"""Operations that vLLM has compiled and in torch; without its compiled parts it is told to take the latter."""

NEEDS = {
    "vllm.config": ("AttentionConfig", "CompilationConfig"),
    "vllm.v1.attention.backends.registry": ("AttentionBackendEnum.TRITON_ATTN",),
    "vllm.v1.worker.utils": ("bind_kv_cache",),
}
"""Names by module that the whole model is called with, beside those of its block."""


def configuration(content: Mapping[str, Any], *, eager: bool = False, **others: Any) -> Any:
    """vLLM's configuration of a gpt-oss, made from a config.json as a checkpoint has it.

    Args:
        content: of the config.json.
        eager: nothing is compiled by torch or captured in graphs.
        others: further parts of the configuration.
    """
    config = import_module("vllm.config")
    model = import_module("vllm.model_executor.models.gpt_oss").GptOssForCausalLM
    # Known beforehand, else vLLM asks a process of its own, which would lack what stands in here.
    import_module("vllm.model_executor.models").ModelRegistry.register_model("GptOssForCausalLM", model)
    with tempfile.TemporaryDirectory(prefix="gpucheck-vllm-", dir=Engine.scratch) as folder:
        Path(folder, "config.json").write_text(json.dumps(content), encoding="utf-8")
        options = {"skip_tokenizer_init": True, "dtype": "bfloat16", "max_model_len": 4096, "enforce_eager": eager}
        model_config = config.ModelConfig(model=folder, tokenizer=folder, **options)
        if "swap_space" in config.CacheConfig.__dataclass_fields__:  # of each rank; no request comes that could use it
            others.setdefault("cache_config", config.CacheConfig(swap_space=0))
        return config.VllmConfig(model_config=model_config, **others)


def whole_configuration(content: Mapping[str, Any], *, compiled: bool) -> Any:
    """The configuration of a whole model, with vLLM's Triton attention.

    Args:
        content: of the config.json.
        compiled: whether vLLM's compiled parts are here.
    """
    config = import_module("vllm.config")
    backend = import_module("vllm.v1.attention.backends.registry").AttentionBackendEnum.TRITON_ATTN
    return configuration(
        content,
        eager=True,
        attention_config=config.AttentionConfig(backend=backend),
        compilation_config=config.CompilationConfig(
            custom_ops=[] if compiled else ["all", *(f"-{name}" for name in NATIVE)]
        ),
    )


class VllmModel(ServedModel):
    """The model, loaded from a checkpoint's tensors, and a cache of pages for its layers."""

    def __init__(
        self,
        config: Any,
        state: Mapping[str, Tensor],
        facts: Facts,
        device: torch.device,
        place: Placing,
        *,
        compiled: bool,
    ) -> None:
        """Args:
        config: vLLM's, which is current now.
        compiled: whether vLLM's compiled parts are here.
        """
        import torch

        self.config, self.facts, self.device, self.place, self.native = config, facts, device, place, not compiled
        gpt_oss = import_module("vllm.model_executor.models.gpt_oss")
        loading = import_module("vllm.model_executor.model_loader.utils")
        with torch.device(device):
            self.whole: Any = gpt_oss.GptOssForCausalLM(vllm_config=config)
        self.whole.load_weights(iter(state.items()))
        loading.process_weights_after_loading(self.whole, config.model_config, torch.device(device))
        self.body = self.whole.model
        self.attention = {layer.attn.attn.layer_name: layer.attn.attn for layer in self.body.layers}
        self._held = dict(self._place())
        self._layers: dict[str, tuple[Any, Tensor, int]] = {}  # builder of metadata, pages of each sequence, page
        backends = {layer.impl.__class__.__name__ for layer in self.attention.values()}
        method = self._experts(self.body.layers[0]).quant_method
        kernel = getattr(getattr(method, "moe_kernel", None), "fused_experts", method)
        facts.backend = ", ".join([type(kernel).__name__, *sorted(backends)])
        if self.native:
            say(facts.stand_ins, "norms and rope by vLLM's forward_native")

    @staticmethod
    def _experts(layer: Any) -> Any:
        return getattr(layer.mlp.experts, "routed_experts", layer.mlp.experts)

    def _place(self) -> Iterator[tuple[str, Tensor]]:
        """Moves what the products of the experts read into memory that is watched."""
        for number, layer in enumerate(self.body.layers):
            experts = self._experts(layer)
            method = experts.quant_method
            if not hasattr(method, "w13_precision_config"):
                chosen = getattr(method, "mxfp4_backend", type(method).__name__)
                raise Inapplicable(f"vllm computes these experts by {chosen} here, not by triton_kernels")
            weights = partial(_weight, experts, method)
            for name, held in weights_and_scales(weights, method).items():
                held.storage.data = self.place(held.storage.data, HELD[name])
                if not number:
                    self.facts.layouts.append(f"{name}: {layout_of(held)}")
                yield f"{name} of layer {number}", held.storage.data

    def begin(self, batch: int, tokens: int) -> None:
        import torch

        caches, self._layers = {}, {}
        for name, layer in self.attention.items():
            spec, backend = layer.get_kv_cache_spec(self.config), layer.get_attn_backend()
            each = -(-tokens // spec.block_size)
            table = torch.arange(batch * each).flip(0).reshape(batch, each)  # pages of a sequence are not in order
            sizes = AttentionSizes(layer.num_heads, layer.num_kv_heads, layer.head_size, spec.block_size)
            caches[name] = empty_cache(backend, sizes, batch * each, torch.bfloat16, self.device)
            builder = backend.get_builder_cls()(spec, [name], self.config, self.device)
            self._layers[name] = builder, table.to(self.device, torch.int32), spec.block_size
        bind = import_module("vllm.v1.worker.utils").bind_kv_cache
        bind(caches, self.config.compilation_config.static_forward_context, [])

    def forward(self, tokens: Tensor, first: int) -> Seen:
        import torch

        batch, steps = tokens.shape
        positions = torch.arange(first, first + steps, device=self.device)
        given = {name: self._scheduled(name, positions, batch) for name in self._layers}
        metadata = {
            name: builder.build(0, common_metadata(given[name])) for name, (builder, *_) in self._layers.items()
        }
        context = import_module("vllm.forward_context").set_forward_context(
            metadata,
            self.config,
            num_tokens=tokens.numel(),
            slot_mapping={name: each.new_places for name, each in given.items()},
        )
        with ExitStack() as stack:
            stack.enter_context(context)
            if self.native:
                _compute_natively(stack)
            seen = stack.enter_context(watching(engine_places(self.body, self.body.embedding, "attn")))
            hidden = self.whole(tokens.flatten(), positions.repeat(batch))
            seen["unembedding"].append(self.whole.compute_logits(hidden))
        return seen

    def _scheduled(self, name: str, positions: Tensor, batch: int) -> AttentionBatch:
        """The tokens at these positions of every sequence, as they are scheduled for one layer."""
        import torch

        _, table, page = self._layers[name]
        lengths = torch.full((batch,), int(positions[-1]) + 1, dtype=torch.int32, device=self.device)
        places = table[:, positions // page].long() * page + positions % page
        unused = torch.empty((batch * len(positions), 0, 0), device=self.device)
        return AttentionBatch(
            *(unused, unused, unused, unused, unused),
            table=table,
            q_lens=torch.full_like(lengths, len(positions)),
            lengths=lengths,
            new_places=places.flatten(),
        )

    def operands(self) -> dict[str, Tensor]:
        return {**dict(self.whole.named_parameters()), **self._held}


def _compute_natively(stack: ExitStack) -> None:
    """Has vLLM compute norms in torch, where it would look for what it has compiled first."""
    with suppress(ModuleNotFoundError):  # releases before 0.20 are told so by their configuration alone
        operations = import_module("vllm.ir").ops
        for name in ("rms_norm", "fused_add_rms_norm"):
            if hasattr(operations, name):
                stack.enter_context(getattr(operations, name).set_priority(["native"]))


def _weight(experts: Any, method: Any, name: str) -> Any:
    """Weights of a product lie in the layer since 0.20 and in its method before."""
    held = getattr(method, f"{name}_weight", None)
    return getattr(experts, f"{name}_weight") if held is None else held
