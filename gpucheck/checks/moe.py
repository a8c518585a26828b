"""``moe``: the gpt-oss expert block as a server runs it, two routed products with a fused swiglu between them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from gpucheck.checks.base import Check, Runtime
from gpucheck.checks.matmul import SWIGLU, given
from gpucheck.checks.on_use import bounds, experts, extremes, operands, torch, wide
from gpucheck.model.case import Case, CheckSpec, Param
from gpucheck.model.product import Product
from gpucheck.model.record import Cost, NeededLaunches
from gpucheck.verify.expected import Axes, Expected

if TYPE_CHECKING:
    from torch import Tensor

    from gpucheck.library.adapters.base import KernelConfig, Routing


SPECIAL_ROWS = ("nan", "zero", "subnormal")
"""Of wide data: what the second product makes of Inf in some columns is anybody's guess."""


def block_products(weight: str, layout: str, case: Case | Mapping[str, Any]) -> tuple[str, ...]:
    """The names of both products of an expert block of these sizes, see :meth:`gpucheck.checks.base.Check.twins`."""
    hidden, inner, experts = case["hidden"], case["intermediate"], case["experts"]
    sizes = ((hidden, 2 * inner), (inner, hidden))
    return tuple(Product(weight, layout, k, n, experts).name for k, n in sizes)


class Moe(Check):
    """Token rows -> experts (w1, bias, swiglu) -> experts (w2, bias, gate) -> sum over the experts of a token."""

    late_inputs = ("x",)

    spec = CheckSpec(
        name="moe",
        summary="the gpt-oss expert block: gather, w1, swiglu, w2, gates, scatter",
        data_kinds=("normal", "wide"),
        rows=("weight",),
        sizes=("m", "hidden", "intermediate"),
        params=(
            Param("weight", "mxfp4", "format of both weights", ("bf16", "mxfp4")),
            Param("m", 16, "tokens", label="m"),
            Param("hidden", 64, "width of a token", label="h"),
            Param("intermediate", 64, "width between the two products", label="i"),
            Param("experts", 8, "experts", label="e"),
            Param("top_k", 4, "experts per token", label="top"),
            Param("load", "random", "how tokens spread over experts", ("random", "skewed", "one"), label="load-"),
            Param("elsewhere", 0, "further experts, held by other ranks: their rows are left out", label="else"),
            Param("layout", "strided", "how mx weights lie in memory", ("strided", "default"), label="layout-"),
            Param("into", False, "the caller gives the memory of both results"),
        ),
    )

    def validate(self, params: Mapping[str, Any], data: str) -> str | None:
        if not 1 <= params["top_k"] <= params["experts"]:
            return f"needs 1 <= top_k <= experts, not {params['top_k']} and {params['experts']}"
        if params["elsewhere"] < 0:
            return f"elsewhere cannot be negative, it is {params['elsewhere']}"
        if params["weight"] == "mxfp4" and (params["hidden"] % 2 or params["intermediate"] % 2):
            return "mxfp4 packs two values a byte: hidden and intermediate must be even"
        if params["weight"] == "bf16" and params["layout"] != "strided":
            return "layout default goes with mx weights"
        return None

    def inputs(self, case: Case, generator: torch.Generator) -> dict[str, Tensor]:
        kind, hidden, inner, count = case["weight"], case["hidden"], case["intermediate"], case["experts"]
        ids = experts.choose(case["m"], count + case["elsewhere"], case["top_k"], case["load"], generator)
        ids = experts.own_choices(ids, count)
        gates = torch.softmax(torch.randn(ids.shape, generator=generator), -1)
        made = experts.choices(ids, gates, count)
        made["x"] = operands.activations("bf16", (case["m"], hidden), "normal", generator)
        for name, shape in (("1", (count, hidden, 2 * inner)), ("2", (count, inner, hidden))):
            weight = operands.weights(kind, shape, "normal", generator)
            if kind == "bf16":
                weight["w"] = (weight["w"].float() * shape[1] ** -0.5).to(torch.bfloat16)
            made |= {key.replace("w", "w" + name, 1): value for key, value in weight.items()}
            made["bias" + name] = torch.randn((count, shape[2]), generator=generator)
        if case.data == "wide":
            exponent = wide.exponents(kind, hidden, generator)
            made["x"] = wide.activations("bf16", (case["m"], hidden), exponent, generator, SPECIAL_ROWS)
            first = wide.weights(kind, (count, hidden, 2 * inner), exponent, generator, ends=False)
            made |= {key.replace("w", "w1", 1): value for key, value in first.items()}
        return made

    def reference(self, case: Case, inputs: dict[str, Tensor]) -> dict[str, Expected]:
        def weight(name: str, expert: int) -> bounds.Estimate:
            scales = inputs[f"w{name}_scale"][expert] if case["weight"] == "mxfp4" else None
            return operands.as_estimate(
                operands.decode_weight(case["weight"], inputs["w" + name][expert], scales), "normal"
            )

        def block(expert: int, rows: bounds.Estimate, clamp: int) -> bounds.Estimate:
            inner = bounds.add(bounds.product(rows, weight("1", expert)), inputs["bias1"][expert].double())
            if case.data == "wide":  # NaN before the activation: as NAN_CLAMPED of extremes
                assert inner.error is not None
                value = extremes.nan_clamped(inner.value, SWIGLU[1])[clamp]
                inner = bounds.Estimate(value, inner.error.masked_fill(torch.isnan(inner.value), 0.0))
            inner = bounds.rounded(bounds.swiglu(inner, *SWIGLU), torch.bfloat16)
            return bounds.add(bounds.product(inner, weight("2", expert)), inputs["bias2"][expert].double())

        def answer(clamp: int) -> bounds.Estimate:
            rows = experts.each_expert(x, inputs, case["hidden"], partial(block, clamp=clamp))
            y = bounds.rounded(bounds.scale(rows, gates[:, None]), torch.bfloat16)
            return bounds.summed(experts.to_tokens(y, inputs, case["top_k"]), dim=1)

        x = experts.rows_of(operands.as_estimate(inputs["x"], "normal"), inputs, case["top_k"], gather=True)
        gates = inputs["gates"][: experts.served(inputs)].double()
        y = answer(0)
        if case.data != "wide":
            return {"y": Expected(y, torch.bfloat16)}
        of_nan = torch.isnan(inputs["x"]).any(1, keepdim=True).expand(y.value.shape)
        also = torch.where(of_nan, extremes.NAN, 0).to(torch.uint8)
        return {"y": Expected(y, torch.bfloat16, (answer(1),), also=also)}

    def prepare(self, case: Case, inputs: dict[str, Tensor], runtime: Runtime) -> Any:
        weights = [
            runtime.library.weight(
                case["weight"], inputs[name], inputs.get(f"{name}_scale"), case["layout"], runtime.place
            )
            for name in ("w1", "w2")
        ]
        return {
            "weights": weights,
            "routing": experts.routing(inputs, runtime.library, case["experts"], "library", case["elsewhere"] > 0),
            "into": case["into"],
            **inputs,
        }

    def launch(self, case: Case, prepared: Any, runtime: Runtime) -> dict[str, Tensor]:
        return {"y": self.block(prepared, prepared["x"], prepared["routing"](), runtime)}

    def block(self, prepared: Any, x: Tensor, routing: Routing, runtime: Runtime) -> Tensor:
        """One call of the expert block for tokens (T, hidden) with a routing of as many."""
        config = launch_config()
        first, second = prepared["weights"]
        shapes = (routing.to_flat.numel(), prepared["bias1"].shape[-1] // 2), x.shape
        room = [x.new_empty(shape) if prepared["into"] else None for shape in shapes]
        inner = runtime.library.matmul(
            x,
            first,
            out_dtype=torch.bfloat16,
            bias=prepared["bias1"],
            routing=routing,
            gather=True,
            swiglu=SWIGLU,
            into=room[0],
            config=config,
        )
        inner = inner if room[0] is None else given(room[0], inner, runtime)
        y = runtime.library.matmul(
            inner,
            second,
            out_dtype=torch.bfloat16,
            bias=prepared["bias2"],
            routing=routing,
            scatter=True,
            gammas=routing.gates,
            into=room[1],
            config=config,
        )
        return y if room[1] is None else given(room[1], y, runtime)

    def twins(self, case: Case) -> tuple[str, ...]:
        return block_products(case["weight"], case["layout"], case)

    def kernels(self, case: Case, runtime: Runtime) -> tuple[str, ...]:
        return runtime.library.kernels["matmul"]

    def needed_launches(self, case: Case, runtime: Runtime) -> tuple[NeededLaunches, ...]:
        """Two products, of which the second adds up the rows of a token."""
        return runtime.library.products(launch_config(), 2, sums=int(case["top_k"] > 1))

    def cost(self, case: Case, inputs: dict[str, Tensor]) -> Cost | None:
        """What lies between the two products could stay on the chip and does not count."""
        rows = case["m"] * case["top_k"]
        weights = (inputs[name] for name in inputs if name.startswith(("w1", "w2", "bias")))
        moved = sum(experts.used_bytes(weight, inputs["histogram"]) for weight in weights)
        moved += operands.size(*(inputs[name] for name in ("histogram", "to_flat", "gates")))
        flops = 2.0 * rows * case["hidden"] * 3 * case["intermediate"]
        return Cost(flops, moved + 2 * operands.size(inputs["x"]))  # the result is as large as the tokens

    def plain(self, case: Case, inputs: dict[str, Tensor]) -> Callable[[], Tensor] | None:
        """Two products an expert, of operands dequantised ahead."""
        from gpucheck.checks.swiglu import plain_swiglu

        x, served = inputs["x"], experts.spans(inputs)
        first, second = (experts.plain_weights(case["weight"], inputs, name) for name in ("w1", "w2"))
        token = experts.tokens_of(inputs, case["top_k"])

        def call() -> Tensor:
            rows = x[token]
            y = torch.empty_like(rows)
            for expert, span in served:
                inner = plain_swiglu(rows[span] @ first[expert] + inputs["bias1"][expert], *SWIGLU).to(x.dtype)
                y[span] = (inner @ second[expert] + inputs["bias2"][expert]).to(x.dtype)
            y = y * inputs["gates"][: len(token), None]
            return experts.in_token_order(y, inputs, case["top_k"]).sum(1).to(x.dtype)

        return call

    def axes(self, case: Case, inputs: dict[str, Tensor]) -> dict[str, Axes]:
        owners = experts.by_token(experts.owners(inputs), inputs, case["top_k"])[..., 0]
        return {"y": Axes(("token", "column"), (128, 128), {"expert": owners})}


def launch_config() -> KernelConfig:
    """How both products are asked to compute."""
    from gpucheck.library.adapters.base import KernelConfig

    return KernelConfig(split_k=1)  # split sums would leave rows unrounded, which the reference must know
