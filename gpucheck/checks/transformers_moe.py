"""``transformers_moe``: the gpt-oss expert block as transformers calls it, with its own choice of routing.

The kernels can be right and their caller wrong: a released forward sliced the experts by rank as soon as a process
group existed, though every rank held all of them. So the module, its loading of mxfp4 weights and its forward are
transformers' own; only the library that it would fetch from a hub is the one under test.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import TYPE_CHECKING, Any

from gpucheck.checks.base import Runtime
from gpucheck.checks.gpt_oss_block import GptOssBlock, spec
from gpucheck.checks.on_use import torch
from gpucheck.model.case import Case
from gpucheck.model.errors import Inapplicable

if TYPE_CHECKING:
    from torch import Tensor


USED = ("matmul_ogs", "routing", "swiglu", "tensor", "tensor_details.layout", "numerics_details.mxfp")
"""Modules of the library that transformers reaches into."""


class TransformersMoe(GptOssBlock):
    """Router, choice of experts, both products and the sum, by transformers' gpt-oss module."""

    spec = spec("transformers_moe", "the gpt-oss expert block by transformers' own mxfp4 forward and routing")

    def prepare(self, case: Case, inputs: dict[str, Tensor], runtime: Runtime) -> Any:
        return inputs["x"], _block(case, inputs, runtime)

    def launch(self, case: Case, prepared: Any, runtime: Runtime) -> dict[str, Tensor]:
        x, block = prepared
        with torch.no_grad():
            y, logits = block(x[None])
        return {"router_logits": logits, "y": y[0]}


def _block(case: Case, inputs: dict[str, Tensor], runtime: Runtime) -> Any:
    """transformers' module for one expert block, its mxfp4 experts loaded as transformers loads them.

    Raises:
        Inapplicable: transformers is not installed, or calls another generation of the library.
    """
    try:
        mxfp4 = mxfp4_for()
        config_class = import_module("transformers.models.gpt_oss.configuration_gpt_oss").GptOssConfig
        module_class = import_module("transformers.models.gpt_oss.modeling_gpt_oss").GptOssMLP
    except (ImportError, AttributeError) as error:
        raise Inapplicable(f"needs transformers 5 with its mxfp4 integration of gpt-oss: {error}") from error
    library = library_for(runtime)
    config = config_class(
        hidden_size=case["hidden"],
        intermediate_size=case["intermediate"],
        num_local_experts=case["experts"],
        num_experts_per_tok=case["top_k"],
    )
    model = torch.nn.Module()
    model.config = config
    with torch.device("meta"):
        model.mlp = module_class(config)
    with from_hub(library):
        mxfp4.replace_with_mxfp4_linear(model, quantization_config=quantization())
    block: Any = model.mlp
    zero = torch.zeros(case["experts"], dtype=inputs["router"].dtype, device=runtime.device)
    block.router.weight, block.router.bias = constant(inputs["router"]), constant(zero)
    held: dict[str, Tensor] = {}
    for name, projection in (("up", "gate_up_proj"), ("down", "down_proj")):
        held[f"{projection}_bias"] = inputs[f"{name}_bias"]
        held[f"{projection}_blocks"] = inputs[name].mT.unflatten(-1, (-1, 16))
        held[f"{projection}_scales"] = inputs[f"{name}_scale"].mT
    load_experts(block.experts, held, runtime)
    return block


def load_experts(experts: Any, held: dict[str, Tensor], runtime: Runtime) -> None:
    """Loads a block's mxfp4 experts from a checkpoint's tensors by their names in it, as transformers does.

    What the products read then lies in memory that is watched.
    """
    for projection in ("gate_up_proj", "down_proj"):
        setattr(experts, f"{projection}_bias", constant(held[f"{projection}_bias"].float()))
        blocks, scales = held[f"{projection}_blocks"], held[f"{projection}_scales"]
        mxfp4_for().swizzle_mxfp4_convertops(blocks, scales, experts, projection, runtime.device, library_for(runtime))
        scale = getattr(experts, f"{projection}_precision_config").weight_scale
        for tensor in (getattr(experts, projection), scale):
            tensor.storage.data = runtime.place(tensor.storage.data)


def mxfp4_for() -> Any:
    """transformers' own integration of mxfp4.

    Raises:
        ImportError: transformers is not installed, or has none.
        AttributeError: it is that of another generation.
    """
    module = import_module("transformers.integrations.mxfp4")
    assert module.swizzle_mxfp4_convertops
    return module


def constant(value: Tensor) -> Any:
    """A parameter that nothing trains."""
    return torch.nn.Parameter(value, requires_grad=False)


def quantization() -> Any:
    """transformers' configuration of mxfp4 that is computed with as it is stored."""
    return import_module("transformers.utils.quantization_config").Mxfp4Config(dequantize=False)


def library_for(runtime: Runtime) -> Any:
    """The package under test, with the modules imported that transformers takes as its attributes."""
    generation = runtime.library.generation
    package = import_module("triton_kernels")
    try:
        for module in USED:
            import_module(f"triton_kernels.{module}")
    except ImportError as error:
        reason = f"transformers calls matmul_ogs and routing, which triton_kernels {generation} does not have"
        raise Inapplicable(f"{reason}: {error}") from error
    return package


@contextmanager
def from_hub(library: Any) -> Iterator[None]:
    """Inside, the package that transformers fetches from its kernel hub is ``library``."""
    hub: Any = import_module("transformers.integrations.hub_kernels")
    fetch = hub.get_kernel
    hub.get_kernel = lambda *names, **options: library
    try:
        yield
    finally:
        hub.get_kernel = fetch
