"""The small transformer as a checkpoint of gpt-oss holds it: names and layouts of its tensors, and its config.json."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gpucheck.checks.decoder.shape import EPSILON, ROPE_BASE, SWIGLU, YARN, Shape
from gpucheck.library.engines.base import GPT_OSS


def tensors(shape: Shape, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights of :func:`gpucheck.checks.decoder.shape.weights` by their names in a checkpoint, in bf16 or bytes.

    Columns of the first product of an expert alternate between gate and up, as they do in the inputs.
    """
    found = {
        "model.embed_tokens.weight": inputs["embedding"],
        "model.norm.weight": _stored(inputs["final_norm"]),
        "lm_head.weight": inputs["unembedding"].mT.contiguous(),
    }
    for layer in range(shape.layers):
        named = _layer(shape, {name: value[layer] for name, value in inputs.items() if name in _BY_LAYER})
        found |= {f"model.layers.{layer}.{name}": value for name, value in named.items()}
    return found


_BY_LAYER = (
    *("norms", "qkv", "qkv_bias", "sinks", "out", "out_bias", "router", "router_bias"),
    *("up", "up_scale", "up_bias", "down", "down_scale", "down_bias"),
)
"""Inputs with an axis of layers."""


def _layer(shape: Shape, held: dict[str, Tensor]) -> dict[str, Tensor]:
    own = shape.kv_heads * shape.head_dim
    sizes = [shape.heads * shape.head_dim, own, own]
    found = {
        "input_layernorm.weight": _stored(held["norms"][0]),
        "post_attention_layernorm.weight": _stored(held["norms"][1]),
        "self_attn.sinks": _stored(held["sinks"]),
    }
    for name, weight, bias in (
        *zip(
            ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
            held["qkv"].split(sizes, 1),
            held["qkv_bias"].split(sizes),
            strict=True,
        ),
        ("self_attn.o_proj", held["out"], held["out_bias"]),
        ("mlp.router", held["router"], held["router_bias"]),
    ):
        found |= {f"{name}.weight": weight.mT.contiguous(), f"{name}.bias": _stored(bias)}
    for name, projection in (("up", "gate_up_proj"), ("down", "down_proj")):
        found |= {
            f"mlp.experts.{projection}_blocks": held[name].mT.unflatten(-1, (-1, 16)).contiguous(),
            f"mlp.experts.{projection}_scales": held[f"{name}_scale"].mT.contiguous(),
            f"mlp.experts.{projection}_bias": _stored(held[f"{name}_bias"]),
        }
    return found


def _stored(value: Tensor) -> Tensor:
    return value.to(torch.bfloat16)


def config(shape: Shape) -> dict[str, Any]:
    """What stands in its config.json."""
    kinds = ("sliding_attention", "full_attention")
    return {
        **GPT_OSS,
        "num_hidden_layers": shape.layers,
        "hidden_size": shape.hidden,
        "intermediate_size": shape.intermediate,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "num_local_experts": shape.experts,
        "num_experts_per_tok": shape.top_k,
        "vocab_size": shape.vocabulary,
        "sliding_window": shape.window,
        "layer_types": [kinds[layer % 2] for layer in range(shape.layers)],
        "attention_bias": True,
        "hidden_act": "silu",
        "swiglu_limit": SWIGLU[1],
        "rms_norm_eps": EPSILON,
        "rope_theta": ROPE_BASE,
        "rope_scaling": {"rope_type": "yarn", "truncate": False, **YARN},
        "initial_context_length": YARN["original_max_position_embeddings"],
        "max_position_embeddings": int(YARN["original_max_position_embeddings"] * YARN["factor"]),
        "tie_word_embeddings": False,
    }
