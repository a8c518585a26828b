"""``transformers_model``: a small gpt-oss by transformers' own model, from a prompt to decoded tokens.

The model, its cache, its loading of mxfp4 weights and its forward are transformers' own; only the library that it would
fetch from a hub is the one under test.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module, metadata
from typing import TYPE_CHECKING, Any

from gpucheck.checks.base import Runtime
from gpucheck.checks.engine_model import EngineModel, spec
from gpucheck.checks.on_use import torch
from gpucheck.checks.transformers_moe import constant, from_hub, library_for, load_experts, mxfp4_for, quantization
from gpucheck.library.engines.base import Facts, layout_of
from gpucheck.library.engines.served_model import Place, Seen, ServedModel, given, places_of, result, second, watching
from gpucheck.model.case import Case
from gpucheck.model.errors import Inapplicable
from gpucheck.model.record import EnginePart

if TYPE_CHECKING:
    from torch import Tensor

MODEL = "transformers.models.gpt_oss.modeling_gpt_oss"
IN_FP32 = "norm"  # modules whose name ends so keep their weights in fp32, as transformers loads them


class TransformersModel(EngineModel):
    """transformers' ``GptOssForCausalLM`` with its eager attention, the only one that takes sinks on all devices."""

    scores = True
    spec = spec("transformers_model", "a small gpt-oss by transformers' own model: prompt, cache and greedy decoding")

    def model(self, case: Case, config: dict[str, Any], state: dict[str, Tensor], runtime: Runtime) -> ServedModel:
        model = _Model(config, state, runtime)
        runtime.engine_part(EnginePart("transformers", metadata.version("transformers"), **vars(model.facts)))
        return model

    def twins(self, case: Case) -> tuple[str, ...]:
        return ()


class _Model(ServedModel):
    def __init__(self, config: dict[str, Any], state: dict[str, Tensor], runtime: Runtime) -> None:
        self.facts = Facts("model", backend="Mxfp4GptOssExperts with the library under test, eager_attention_forward")
        try:
            self.code: Any = import_module(MODEL)
            config_class = import_module("transformers.models.gpt_oss.configuration_gpt_oss").GptOssConfig
            self.cache_class = import_module("transformers.cache_utils").DynamicCache
            mxfp4 = mxfp4_for()
        except (ImportError, AttributeError) as error:
            raise Inapplicable(f"needs transformers 5 with its gpt-oss and mxfp4 integration: {error}") from error
        library = library_for(runtime)
        self.config = config_class(**{name: value for name, value in config.items() if name != "quantization_config"})
        self.config._attn_implementation = "eager"
        with torch.device("meta"):
            self.whole: Any = self.code.GptOssForCausalLM(self.config)
        with from_hub(library):
            mxfp4.replace_with_mxfp4_linear(self.whole, quantization_config=quantization())
        self.body = self.whole.model
        self.body.rotary_emb = self.code.GptOssRotaryEmbedding(self.config).to(runtime.device)
        for number, layer in enumerate(self.body.layers):
            prefix = f"model.layers.{number}.mlp.experts."
            held = {name.removeprefix(prefix): state[name] for name in state if name.startswith(prefix)}
            load_experts(layer.mlp.experts, held, runtime)
            if not number:
                self.facts.layouts += [f"{name}: {layout_of(held)}" for name, held in _held(layer.mlp.experts)]
        self._load({name: value for name, value in state.items() if ".mlp.experts." not in name})
        self.whole.eval()
        self.cache: Any = None

    def _load(self, state: dict[str, Tensor]) -> None:
        for name, value in state.items():
            path, _, leaf = name.rpartition(".")
            wide = path.endswith(IN_FP32)
            setattr(self.whole.get_submodule(path), leaf, constant(value.float() if wide else value))

    def begin(self, batch: int, tokens: int) -> None:
        self.cache = self.cache_class(config=self.config)

    def forward(self, tokens: Tensor, first: int) -> Seen:
        with watching(self._places()) as seen, self._watching_rope() as turned:
            self.whole(input_ids=tokens, past_key_values=self.cache, use_cache=True)
        parts = zip(seen["q"], seen["k"], seen["v"], strict=True)
        return {**seen, "qkv": [torch.cat(part, -1) for part in parts], "rope": turned}

    def _places(self) -> Iterator[Place]:
        """A residual shows where the next norm is given it."""
        yield from places_of(self.body, self.body.embed_tokens, _places_of_layer, given)
        yield "unembedding", self.whole.lm_head, result

    @contextmanager
    def _watching_rope(self) -> Iterator[list[Tensor]]:
        """Inside, queries and keys are kept when they were turned, which a function does and no module."""
        turn, seen = self.code.apply_rotary_pos_emb, []

        def keeping(*args: Any, **options: Any) -> Any:
            both = turn(*args, **options)  # each (B, heads, T, D)
            seen.append(torch.cat([part.transpose(1, 2).flatten(2) for part in both], -1))
            return both

        self.code.apply_rotary_pos_emb = keeping
        try:
            yield seen
        finally:
            self.code.apply_rotary_pos_emb = turn

    def operands(self) -> dict[str, Tensor]:
        found = dict(self.whole.named_parameters())
        for number, layer in enumerate(self.body.layers):
            for name, held in _held(layer.mlp.experts):
                found[f"{name} of layer {number}"] = held.storage.data
        return found


def _held(experts: Any) -> Iterator[tuple[str, Any]]:
    """The library's tensors of a block of experts."""
    for name in ("gate_up_proj", "down_proj"):
        yield name, getattr(experts, name)
        yield f"scales of {name}", getattr(experts, f"{name}_precision_config").weight_scale


def _places_of_layer(layer: Any) -> Iterator[Place]:
    for name in ("q", "k", "v"):
        yield name, getattr(layer.self_attn, f"{name}_proj"), result
    yield "attention", layer.self_attn.o_proj, given
    yield "attention out", layer.self_attn.o_proj, result
    yield "router", layer.mlp, second
