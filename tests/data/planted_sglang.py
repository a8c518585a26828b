"""Faults of an engine's own layers, planted into SGLang: which one a block has, its number of experts says.

Put beside a copy of the engine's package and installed at the end of its model's file. It changes SGLang alone; the
library stays as it is.
"""

import importlib
import os
from dataclasses import replace

import torch

FIRST = 5  # experts of the first fault's block; with fewer nothing is planted


def unpadded(experts, original):
    """The scales of the last groups are read past the end of their tensor."""
    return {"_pad_hopper_mxfp4_scale": lambda scale, k_size: scale}


def padded_with_nan(experts, original):
    def pad(scale, k_size):
        padded = original["_pad_hopper_mxfp4_scale"](scale, k_size)
        padded[..., scale.shape[-1] :] = 255
        return padded

    return {"_pad_hopper_mxfp4_scale": pad}


def scales_of_the_next_expert(experts, original):
    return {"_swizzle_mxfp4": lambda values, scale, warps: original["_swizzle_mxfp4"](values, scale.roll(-1, 0), warps)}


def bytes_in_another_order(experts, original):
    def swizzle(values, scale, warps):
        weight, flex, scale = original["_swizzle_mxfp4"](values, scale, warps)
        weight.storage.data.copy_(weight.storage.data.roll(1, -1))
        return weight, flex, scale

    return {"_swizzle_mxfp4": swizzle}


def loaded(change):
    """A fault of the loader: ``change`` gives what is loaded in place of a tensor of a name."""

    def plant(experts, original):
        def load(model, weights):
            changed = [(name, change(name.rpartition(".")[2], weight)) for name, weight in weights]
            return original["_load_mxfp4_experts_weights"](model, changed)

        return {"_load_mxfp4_experts_weights": load}

    return plant


def _pairs_turned(name, weight):
    return weight.unflatten(1, (-1, 2)).flip(2).flatten(1, 2) if name.startswith("gate_up") else weight


def _halves(name, weight):
    return weight.unflatten(1, (-1, 2)).transpose(1, 2).flatten(1, 2) if name.startswith("gate_up") else weight


def _rows_shifted(name, weight):
    return weight.roll(1, 1) if name == "down_proj_blocks" else weight


def _other_weights(name, weight):
    return weight.roll(1, 0) if name == "gate_up_proj_blocks" else weight


def computed(change):
    """A fault of the forward: ``change`` edits the arguments of both products."""

    def plant(experts, original):
        def compute(**arguments):
            return original["triton_kernel_fused_experts_with_bias"](**{**arguments, **change(arguments)})

        return {"triton_kernel_fused_experts_with_bias": compute}

    return plant


def last_choice_left_out(experts, original):
    def compute(**arguments):
        rows = original["triton_kernel_fused_experts_with_bias"](**arguments)
        rows.view(-1, arguments["n_expts_act"], rows.shape[-1])[:, -1] = 0
        return rows

    return {"triton_kernel_fused_experts_with_bias": compute}


def weights_of_all_experts(experts, original):
    return {"routing": lambda logits, n, **options: original["routing"](logits, n, **{**options, "sm_first": True})}


def cut_by_local_rank(experts, original):
    """The loader asks the environment which rank it is, where the group would know."""

    from sglang.srt.runtime_context import get_parallel

    def load(model, weights):
        block = model.model.layers[0].mlp.experts
        held, parallel = block.moe_tp_rank, get_parallel()
        local = int(os.environ["LOCAL_RANK"]) % parallel.moe_tp_size
        block.moe_tp_rank = local
        try:
            with parallel.override(moe_tp_rank=local):
                return original["_load_mxfp4_experts_weights"](model, weights)
        finally:
            block.moe_tp_rank = held

    return {"_load_mxfp4_experts_weights": load}


def second_bias_of_every_rank(experts, original):
    def load(model, weights):
        biases = dict(weights)
        loaded = original["_load_mxfp4_experts_weights"](model, list(biases.items()))
        held = next(weight for name, weight in biases.items() if name.endswith("down_proj_bias"))
        model.model.layers[0].mlp.experts.w2_weight_bias.data.copy_(held)
        return loaded

    return {"_load_mxfp4_experts_weights": load}


def swizzled_once(kept):
    """What is swizzled is kept by its shape: a second checkpoint gets some of the first one's."""

    def plant(experts, original):
        def swizzle(values, scale, warps):
            first = _loaded.setdefault((experts, values.shape), (values.clone(), scale.clone()))
            weight = first[0] if "weights" in kept else values
            return original["_swizzle_mxfp4"](weight, first[1] if "scales" in kept else scale, warps)

        return {"_swizzle_mxfp4": swizzle}

    return plant


_loaded = {}


def pinned(**constraints):
    """The engine pins what the library then takes for every product."""

    def plant(experts, original):
        def swizzle(values, scale, warps):
            made = original["_swizzle_mxfp4"](values, scale, warps)
            _opt_flags().update_opt_flags_constraints(constraints)
            return made

        return {"_swizzle_mxfp4": swizzle}

    return plant


def _opt_flags():
    from triton_kernels.matmul_details import opt_flags

    return opt_flags


def launches_changed(**values):
    """The library's choice of a launch is replaced by one that changes some of its values."""

    def plant(experts, original):
        return {
            "make_opt_flags": lambda *given, **named: replace(original["make_opt_flags"](*given, **named), **values)
        }

    return plant


def choice_without_softmax(experts, original):
    """The library's choice of experts is replaced by one that forgets what it was asked for."""

    def choose(x, k, apply_softmax=True, *given, **named):
        return original["topk_forward"](x, k, False, *given, **named)

    return {"topk_forward": choose}


def other_experts_chosen(experts, original):
    return {"routing": lambda logits, n, **options: original["routing"](-logits, n, **options)}


PLANTED = {
    "missing pad": unpadded,
    "pad of another value": padded_with_nan,
    "scales of another expert": scales_of_the_next_expert,
    "wrong swizzle": bytes_in_another_order,
    "gate and up exchanged": loaded(_pairs_turned),
    "gate and up not interleaved": loaded(_halves),
    "rows shifted by one": loaded(_rows_shifted),
    "weights of another expert": loaded(_other_weights),
    "first bias dropped": computed(lambda given: {"b1": torch.zeros_like(given["b1"])}),
    "second bias dropped": computed(lambda given: {"b2": torch.zeros_like(given["b2"])}),
    "clamp left out": computed(lambda given: {"gemm1_clamp_limit": 1e30}),
    "another alpha": computed(lambda given: {"gemm1_alpha": 1.0}),
    "weights of experts left out": computed(lambda given: {"gate_scal": torch.ones_like(given["gate_scal"])}),
    "weights of other rows": computed(lambda given: {"gate_scal": given["gate_scal"].roll(1)}),
    "rows of other tokens": computed(lambda given: {"gather_indx": given["gather_indx"].flip(0)}),
    "last choice left out": last_choice_left_out,
    "not renormalised": weights_of_all_experts,
    "other experts chosen": other_experts_chosen,
    "slice by LOCAL_RANK": cut_by_local_rank,
    "second bias on every rank": second_bias_of_every_rank,
    "stale weights after a second load": swizzled_once(("weights", "scales")),
    "stale scales after a second load": swizzled_once(("scales",)),
    "split pinned": pinned(split_k=2),
    "block pinned": pinned(block_k=32),
    "library's choice of a launch replaced": launches_changed(split_k=2),
    "library's choice of experts replaced": choice_without_softmax,
}


def install(gpt_oss):
    """Plants the fault of a block's number of experts while it is made, loaded and computed."""
    from sglang.srt.layers.moe import topk
    from sglang.srt.layers.moe.fused_moe_triton import triton_kernels_moe
    from sglang.srt.layers.quantization import mxfp4
    from triton_kernels import matmul

    places = {
        "_pad_hopper_mxfp4_scale": mxfp4,
        "_swizzle_mxfp4": mxfp4,
        "_load_mxfp4_experts_weights": gpt_oss.GptOssForCausalLM,
        "triton_kernel_fused_experts_with_bias": triton_kernels_moe,
        "routing": topk,
        "make_opt_flags": matmul,
        "topk_forward": importlib.import_module("triton_kernels.topk"),
    }
    original = {name: getattr(place, name) for name, place in places.items()}
    block = gpt_oss.GptOssSparseMoeBlock
    make, forward = block.__init__, block.forward

    def plant(experts):
        found = dict(enumerate(PLANTED.values(), FIRST)).get(experts)
        for name, value in {**original, **(found(experts, original) if found else {})}.items():
            setattr(places[name], name, value)

    def made(self, layer_id, config, *arguments, **options):
        _opt_flags().reset_opt_flags_constraints()  # what another block had pinned
        plant(config.num_local_experts)
        make(self, layer_id, config, *arguments, **options)

    def computed(self, *arguments, **options):
        plant(self.experts.num_experts)
        return forward(self, *arguments, **options)

    block.__init__, block.forward = made, computed
