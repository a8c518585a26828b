"""One expert block through each entry of vLLM, and with faults planted in it: PLANNED and LIBRARY are its arguments.

Prints a line of JSON: entry or fault -> what a record says of it, and what is wrong with its outputs.
"""

from __future__ import annotations

import inspect
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from gpucheck.checks.base import GIVES
from gpucheck.checks.stored_state import loader_words
from gpucheck.library import adapters, engines
from gpucheck.library.copies import describe
from gpucheck.triton_hooks import interpreter
from gpucheck.worker.device.child import HOPPER

LAYERS = "vllm.model_executor.layers"


def main(planned: Any, root: Path, scratch: str) -> None:
    interpreter.install(**HOPPER)
    engines.settle(planned, "cpu", scratch)
    library = adapters.load(root, describe(root / "triton_kernels", "test").generation)
    engine = engines.load(library, torch.device("cpu"))

    from gpucheck.library.engines import vllm_engine, vllm_parts

    told = {}
    for fault, planted in FAULTS.items():
        with planted():
            told[fault] = computed(engine, **PARAMS.get(fault, {}))
    for needs in (vllm_engine.MODEL_NEEDS, vllm_parts.METHOD_NEEDS, {}):
        entry = computed(engine)
        told[entry["depth"]] = entry
        needs["vllm.model_executor"] = ("no_such_name",)  # what this release is then said to lack
    print(json.dumps(told))


SIZES = {"m": 5, "hidden": 320, "intermediate": 320, "experts": 4, "top_k": 2}


def computed(engine: Any, **params: Any) -> dict[str, Any]:
    """What a record would say of one block, and what is wrong with it."""
    from gpucheck.checks.vllm_moe import VllmMoe
    from gpucheck.verify.judge import judge

    check, runtime = VllmMoe(), HereRuntime(engine)
    case = check.spec.case({**SIZES, **params}, "normal", 7)
    inputs = check.inputs(case, torch.Generator().manual_seed(case.input_seed))
    expected, axes = check.reference(case, inputs), check.axes(case, inputs)
    prepared = check.prepare(case, inputs, runtime)
    outputs = check.launch(case, prepared, runtime)
    check.inspect(case, prepared, outputs, runtime)
    found = judge(outputs, expected, axes)
    ordered, said = check.order_mismatches(case, inputs, outputs, expected, found.mismatches)
    wrong = [f"{each.output}: {each.region}" for each in ordered] + [str(each) for each in found.violations]
    told = [said, loader_words(runtime.part, "", [], explained=GIVES in said)]
    return {**vars(runtime.part), "wrong": wrong, "said": "; ".join(filter(None, told)), "placed": runtime.placed}


class HereRuntime:
    """What a check uses of the process that it runs in."""

    def __init__(self, engine: Any) -> None:
        self.library, self.device = engine.library, engine.device
        self.placed: list[str] = []
        self.part: Any = None

    def place(self, tensor: torch.Tensor, name: str = "") -> torch.Tensor:
        self.placed.append(name)
        return tensor

    def engine_part(self, part: Any) -> None:
        self.part = part


@contextmanager
def replaced(name: str, change: Callable[[Any], Any], *modules: str) -> Iterator[None]:
    """Inside, each of these modules (or classes in them) that has a function of this name has a changed one."""
    held = []
    for module in modules:
        with suppress(ModuleNotFoundError):
            place, _, inner = module.partition(":")
            owner = getattr(import_module(place), inner) if inner else import_module(place)
            if hasattr(owner, name):
                held.append((owner, getattr(owner, name)))
    assert held, f"none of {modules} has {name}: nothing would be planted"
    for owner, original in held:
        setattr(owner, name, change(original))
    try:
        yield
    finally:
        for owner, original in held:
            setattr(owner, name, original)


HOLDERS = (
    f"{LAYERS}.fused_moe.oracle.mxfp4",
    f"{LAYERS}.quantization.mxfp4",
    f"{LAYERS}.quantization.utils.mxfp4_utils",
)


def other_experts_scales() -> Any:
    def change(original: Any) -> Any:
        return lambda values, scale, *rest, **named: original(values, scale.roll(1, 0), *rest, **named)

    return replaced("_swizzle_mxfp4", change, *HOLDERS)


def second_bias_dropped() -> Any:
    def change(original: Any) -> Any:
        return lambda *rest, **named: original(*rest, **{**named, "w2_bias": None})

    return replaced("make_mxfp4_moe_quant_config", change, *HOLDERS)


def first_product_loaded(otherwise: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """The loader takes rows of the first product otherwise: weights, scales and bias."""

    def change(original: Any) -> Any:
        def load(model: Any, end: Any, start: Any, weights: Any, stacked: Any) -> Any:
            pairs = ((name, otherwise(value) if ".w13_" in name else value) for name, value in weights)
            return original(model, end, start, pairs, stacked)

        return load

    return replaced("_load_weights_mxfp4", change, "vllm.model_executor.models.gpt_oss:GptOssModel")


def gate_and_up_swapped() -> Any:
    """The loader takes gate and up in the other order: rows 1 0 3 2 ... of the first product."""

    def swapped(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.unflatten(1, (-1, 2)).flip(2).flatten(1, 2)

    return first_product_loaded(swapped)


def cut_by_local_rank() -> Any:
    """vLLM asks the environment for its place among the ranks that share the experts' width."""
    return replaced("get_tensor_model_parallel_rank", lambda original: local_rank, f"{LAYERS}.fused_moe.config")


def local_rank() -> int:
    return int(os.environ["LOCAL_RANK"])


def first_scales_stay() -> Any:
    """What a second load swizzles takes the scales that the first one gave."""
    first: dict[Any, torch.Tensor] = {}

    def change(original: Any) -> Any:
        def swizzle(values: torch.Tensor, scale: torch.Tensor, *rest: Any, **named: Any) -> Any:
            kept = first.setdefault(tuple(values.shape), scale.clone())
            return original(values, kept, *rest, **named)

        return swizzle

    return replaced("_swizzle_mxfp4", change, *HOLDERS)


def second_scales_turned() -> Any:
    """The scales of the second product, whose weights have as many rows as a token is wide, are taken as (K, N)."""

    def change(original: Any) -> Any:
        def swizzle(values: torch.Tensor, scale: torch.Tensor, *rest: Any, **named: Any) -> Any:
            second = values.shape[1] == SIZES["hidden"]
            return original(values, scale.mT.reshape(scale.shape) if second else scale, *rest, **named)

        return swizzle

    return replaced("_swizzle_mxfp4", change, *HOLDERS)


def gate_and_up_as_halves() -> Any:
    return first_product_loaded(halves)


def halves(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.unflatten(1, (-1, 2)).transpose(1, 2).flatten(1, 2)


def first_checkpoint_stays() -> Any:
    """A second load gets the tensors of the first one."""
    first: dict[str, torch.Tensor] = {}

    def change(original: Any) -> Any:
        def load(model: Any, end: Any, start: Any, weights: Any, stacked: Any) -> Any:
            pairs = [(name, first.setdefault(name, value.clone())) for name, value in weights]
            return original(model, end, start, pairs, stacked)

        return load

    return replaced("_load_weights_mxfp4", change, "vllm.model_executor.models.gpt_oss:GptOssModel")


def map_shifted() -> Any:
    """Which expert of all is which of this rank's: each takes the number of the one before."""

    def change(original: Any) -> Any:
        def determine(*rest: Any, **named: Any) -> Any:
            count, held, *others = original(*rest, **named)
            return (count, held.roll(1), *others)

        return determine

    return replaced("determine_expert_map", change, f"{LAYERS}.fused_moe.expert_map_manager")


def forward_with(name: str, **changed: Callable[[Any, dict[str, Any]], Any]) -> Callable[[], Any]:
    """A function of the experts' forward gets other arguments, each made of what it was and all others."""

    def change(original: Any) -> Any:
        def compute(*rest: Any, **named: Any) -> Any:
            given = inspect.signature(original).bind(*rest, **named)
            given.apply_defaults()
            held = dict(given.arguments)
            return original(**{**held, **{key: edit(held[key], held) for key, edit in changed.items()}})

        return compute

    return lambda: replaced(name, change, f"{LAYERS}.fused_moe.experts.gpt_oss_triton_kernels_moe")


FORWARD, EXPERTS = "triton_kernel_moe_forward", "triton_kernel_fused_experts"
FAULTS = {
    "scales of the second product turned": second_scales_turned,
    "gate and up as halves": gate_and_up_as_halves,
    "first checkpoint after a second load": first_checkpoint_stays,
    "map of experts shifted": map_shifted,
    "not renormalised where ranks share experts": forward_with(
        FORWARD, renormalize=lambda value, all_given: value and all_given["expert_map"] is None
    ),
    "logits in eight bits": forward_with(
        FORWARD, gating_output=lambda value, _: value.to(torch.float8_e5m2).to(value.dtype)
    ),
    "another alpha": forward_with(EXPERTS, swiglu_alpha=lambda value, _: 1.5),
    "another clamp": forward_with(EXPERTS, swiglu_limit=lambda value, _: 6.0),
    "weights of the router on the first product": forward_with(
        EXPERTS, apply_router_weight_on_input=lambda value, _: True
    ),
    "scales of another expert": other_experts_scales,
    "second bias dropped": second_bias_dropped,
    "gate and up swapped": gate_and_up_swapped,
    "slice by LOCAL_RANK": cut_by_local_rank,
    "stale scales after a second load": first_scales_stay,
}
SHARED = {"ep": 2, "hidden": 256, "intermediate": 128}
PARAMS: dict[str, dict[str, Any]] = {  # what the case of a fault has beside the usual sizes
    "first checkpoint after a second load": {"reload": True},
    "map of experts shifted": SHARED,
    "not renormalised where ranks share experts": SHARED,
    "weights of the router on the first product": {"intermediate": 128},
    "slice by LOCAL_RANK": {"tp": 2, "intermediate": 256},
    "stale scales after a second load": {"reload": True},
}

if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        main(json.loads(sys.argv[1]), Path(sys.argv[2]), scratch)
