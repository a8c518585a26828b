"""``transformers_moe``: the gpt-oss expert block as transformers calls it, with its own choice of routing.

The kernels can be right and their caller wrong: a released forward sliced the experts by rank as soon as a process
group existed, though every rank held all of them. So the module, its loading of mxfp4 weights and its forward are
transformers' own; only the library that it would fetch from a hub is the one under test.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from typing import TYPE_CHECKING, Any

from gpucheck.checks.base import Check, Runtime
from gpucheck.checks.matmul import SWIGLU
from gpucheck.model.case import Case, CheckSpec, Param
from gpucheck.model.errors import Inapplicable
from gpucheck.model.record import NeededLaunches
from gpucheck.verify.expected import Axes, Expected

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from gpucheck.verify.bounds import Estimate

USED = ("matmul_ogs", "routing", "swiglu", "tensor", "tensor_details.layout", "numerics_details.mxfp")
"""Modules of the library that transformers reaches into."""
VOTES = 8  # coordinates of a token that an expert's router logit is the sum of
UNIT = 0.25  # of activations: what an expert is given; router weights are half


class TransformersMoe(Check):
    """Router, choice of experts, both products and the sum, by transformers' gpt-oss module."""

    late_inputs = ("x",)

    spec = CheckSpec(
        name="transformers_moe",
        summary="the gpt-oss expert block by transformers' own mxfp4 forward and routing",
        data_kinds=("normal",),
        params=(
            Param("m", 16, "tokens", label="m"),
            Param("hidden", 256, "width of a token", label="h"),
            Param("intermediate", 256, "width between the two products", label="i"),
            Param("experts", 32, "experts", label="e"),
            Param("top_k", 4, "experts per token", label="top"),
        ),
    )

    def validate(self, params: Mapping[str, Any], data: str) -> str | None:
        for name in ("m", "hidden", "intermediate"):
            if params[name] < 1:
                return f"{name} must be at least 1, not {params[name]}"
        if params["hidden"] % 32 or params["intermediate"] % 32:
            return "hidden and intermediate must be multiples of 32, the block of mxfp4"
        if not 1 <= params["top_k"] <= params["experts"]:
            return f"needs 1 <= top_k <= experts, not {params['top_k']} and {params['experts']}"
        return None

    def inputs(self, case: Case, generator: torch.Generator) -> dict[str, Tensor]:
        """Router logits are sums of a few small multiples of UNIT / 2: exact in bf16 whatever the order of summing."""
        import torch

        from gpucheck.checks import operands

        hidden, inner, count = case["hidden"], case["intermediate"], case["experts"]
        x = operands.signed_integers((case["m"], hidden), 1, 8, generator) * UNIT
        votes = torch.rand((count, hidden), generator=generator).topk(VOTES, -1).indices
        signs = operands.signed_integers(tuple(votes.shape), 1, 1, generator)
        router = torch.zeros((count, hidden)).scatter(1, votes, signs / 2)
        made = {"x": x.to(torch.bfloat16), "router": router.to(torch.bfloat16)}
        for name, terms, columns in (("up", hidden, 2 * inner), ("down", inner, hidden)):
            weight = operands.weights("mxfp4", (count, terms, columns), "normal", generator)
            made |= {name: weight["w"], f"{name}_scale": weight["w_scale"]}
            made[f"{name}_bias"] = torch.randn((count, columns), generator=generator)
        return made

    def reference(self, case: Case, inputs: dict[str, Tensor]) -> dict[str, Expected]:
        import torch

        from gpucheck.checks import experts, operands
        from gpucheck.checks.routing import reference_topk
        from gpucheck.verify import bounds

        k, count = case["top_k"], case["experts"]
        logits = inputs["x"].double() @ inputs["router"].double().T
        chosen, ids = reference_topk(logits, k)
        gates = bounds.rounded(bounds.softmax(chosen), torch.bfloat16)
        tables = experts.tables(ids, gates.value, count)
        order, places = tables["to_flat"].long(), tables["to_sorted"].long()

        def weight(name: str, expert: int) -> Estimate:
            held = operands.decode_weight("mxfp4", inputs[name][expert], inputs[f"{name}_scale"][expert])
            return operands.as_estimate(held, "normal")

        def block(expert: int, rows: Estimate) -> Estimate:
            up = bounds.add(bounds.product(rows, weight("up", expert)), inputs["up_bias"][expert].double())
            inner = bounds.rounded(bounds.swiglu(up, *SWIGLU), torch.bfloat16)
            return bounds.add(bounds.product(inner, weight("down", expert)), inputs["down_bias"][expert].double())

        x = experts.take(operands.as_estimate(inputs["x"], "normal"), order // k)
        rows = experts.each_expert(x, tables, case["hidden"], block)
        rows = bounds.times(rows, experts.take(gates.flat(), order, (-1, 1)))
        rounded, whole = (  # a product split along its terms leaves its rows unrounded, and transformers lets it be
            bounds.summed(experts.take(each, places, (-1, k, case["hidden"])), dim=1)
            for each in (bounds.rounded(rows, torch.bfloat16), rows)
        )
        return {
            "router_logits": Expected(bounds.Estimate(logits, None, UNIT / 2), torch.bfloat16),
            "y": Expected(rounded, torch.bfloat16, alternatives=(whole,)),
        }

    def prepare(self, case: Case, inputs: dict[str, Tensor], runtime: Runtime) -> Any:
        return inputs["x"], _block(case, inputs, runtime)

    def launch(self, case: Case, prepared: Any, runtime: Runtime) -> dict[str, Tensor]:
        import torch

        x, block = prepared
        with torch.no_grad():
            y, logits = block(x[None])
        return {"router_logits": logits, "y": y[0]}

    def kernels(self, case: Case, runtime: Runtime) -> tuple[str, ...]:
        return runtime.library.kernels["matmul"]

    def needed_launches(self, case: Case, runtime: Runtime) -> tuple[NeededLaunches, ...]:
        """Both products; which kernels choose the experts and add up rows is transformers' own affair."""
        return (NeededLaunches(self.kernels(case, runtime), 2),)

    def axes(self, case: Case, inputs: dict[str, Tensor]) -> dict[str, Axes]:
        from gpucheck.checks.routing import reference_topk

        _, ids = reference_topk(inputs["x"].double() @ inputs["router"].double().T, case["top_k"])
        return {
            "router_logits": Axes(("token", "expert"), (0, 0)),
            "y": Axes(("token", "column"), (128, 128), {"expert": ids}),
        }


def _block(case: Case, inputs: dict[str, Tensor], runtime: Runtime) -> Any:
    """transformers' module for one expert block, its mxfp4 experts loaded as transformers loads them.

    Raises:
        Inapplicable: transformers is not installed, or calls another generation of the library.
    """
    import torch

    try:
        mxfp4 = import_module("transformers.integrations.mxfp4")
        load = mxfp4.swizzle_mxfp4_convertops
        config_class = import_module("transformers.models.gpt_oss.configuration_gpt_oss").GptOssConfig
        module_class = import_module("transformers.models.gpt_oss.modeling_gpt_oss").GptOssMLP
    except (ImportError, AttributeError) as error:
        raise Inapplicable(f"needs transformers 5 with its mxfp4 integration of gpt-oss: {error}") from error
    library = _library(runtime)
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
    with _from_hub(library):
        mxfp4.replace_with_mxfp4_linear(model, quantization_config=_quantization())
    block: Any = model.mlp
    zero = torch.zeros(case["experts"], dtype=inputs["router"].dtype, device=runtime.device)
    block.router.weight, block.router.bias = _constant(inputs["router"]), _constant(zero)
    for name, projection in (("up", "gate_up_proj"), ("down", "down_proj")):
        setattr(block.experts, f"{projection}_bias", _constant(inputs[f"{name}_bias"]))
        codes = inputs[name].mT.unflatten(-1, (-1, 16))  # (experts, columns, blocks, bytes of a block)
        load(codes, inputs[f"{name}_scale"].mT, block.experts, projection, runtime.device, library)
        scale = getattr(block.experts, f"{projection}_precision_config").weight_scale
        for held in (getattr(block.experts, projection), scale):
            held.storage.data = runtime.place(held.storage.data)
    return block


def _constant(value: Tensor) -> Any:
    import torch

    return torch.nn.Parameter(value, requires_grad=False)


def _quantization() -> Any:
    return import_module("transformers.utils.quantization_config").Mxfp4Config(dequantize=False)


def _library(runtime: Runtime) -> Any:
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
def _from_hub(library: Any) -> Iterator[None]:
    """Inside, the package that transformers fetches from its kernel hub is ``library``."""
    hub: Any = import_module("transformers.integrations.hub_kernels")
    fetch = hub.get_kernel
    hub.get_kernel = lambda *names, **options: library
    try:
        yield
    finally:
        hub.get_kernel = fetch
