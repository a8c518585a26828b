"""``generation``: a small transformer in the shape of gpt-oss decodes greedily; every operation on the way is judged.

Roundings add up over layers and steps to more than any useful bound. So each operation is compared with what the
reference makes of the very numbers that the operation was given on the device: if all are right, the whole is, and
what is wrong is the first operation and nothing after it. Logits and tokens are also compared with a reference that
computes everything by itself; there a token counts as wrong where another one is better by more than roundings.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from gpucheck.checks.base import Check, Runtime
from gpucheck.model.case import Case, CheckSpec, Param
from gpucheck.model.record import NeededLaunches
from gpucheck.verify.expected import Axes, Expected

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from gpucheck.checks.decoder.shape import Shape
    from gpucheck.model.record import Mismatch


PRODUCTS = 5  # of a layer: qkv, attention out, router, experts up and down
SIZES = (
    Param("layers", 4, "blocks of attention and experts; the even ones have a sliding window", label="l"),
    Param("batch", 2, "sequences decoded side by side", label="b"),
    Param("tokens", 64, "tokens decoded of each sequence, one a step", label="t"),
    Param("hidden", 256, "width of the residual stream", label="h"),
    Param("heads", 4, "query heads"),
    Param("kv_heads", 2, "key and value heads, each shared by as many query heads", label="kv"),
    Param("head_dim", 64, "coordinates of a head", (64, 128), label="d"),
    Param("window", 16, "keys that the even layers see at most"),
    Param("experts", 32, "experts of a layer", label="e"),
    Param("top_k", 4, "experts per token", label="top"),
    Param("intermediate", 128, "width between the two products of an expert", label="i"),
    Param("vocabulary", 512, "tokens to choose from", label="v"),
)
"""Of the transformer, whoever computes it."""


class Generation(Check):
    """Norms, rope, attention with sinks and sliding windows, routed mxfp4 experts, and the next token."""

    late_inputs: ClassVar[tuple[str, ...]] = ("embedding",)

    spec = CheckSpec(
        name="generation",
        summary="greedy decoding by a small gpt-oss; names the first wrong step, layer and operation",
        data_kinds=("normal",),
        sizes=tuple(param.name for param in SIZES),
        params=(
            *SIZES,
            Param("layout", "default", "how mx weights lie in memory", ("strided", "default"), label="layout-"),
            Param("guard", False, "launch our own attention under a device guard; the library is called without"),
        ),
    )

    def validate(self, params: Mapping[str, Any], data: str) -> str | None:
        if params["heads"] % params["kv_heads"]:
            return f"heads {params['heads']} is not a multiple of kv_heads {params['kv_heads']}"
        if params["top_k"] > params["experts"]:
            return f"needs top_k <= experts, not {params['top_k']} and {params['experts']}"
        if params["hidden"] % 32 or params["intermediate"] % 32:
            return "hidden and intermediate must be multiples of 32, the block of mxfp4"
        if params["batch"] > params["vocabulary"]:
            return "each sequence starts with a token of its own: batch is at most vocabulary"
        return None

    def takes_long(self, case: Case) -> bool:
        return True

    def shape(self, case: Case) -> Shape:
        """The transformer that a case asks for."""
        from gpucheck.checks.decoder.shape import OF_RANKS, OWN, Shape

        return Shape.of(case, OF_RANKS if case.ranks else OWN)

    def inputs(self, case: Case, generator: torch.Generator) -> dict[str, Tensor]:
        from gpucheck.checks.decoder.shape import weights

        return weights(self.shape(case), generator)

    def reference(self, case: Case, inputs: dict[str, Tensor]) -> dict[str, Expected]:
        from gpucheck.checks.decoder.passes import decode, judge_by

        shape = self.shape(case)
        whose = case.rank, case.ranks
        return judge_by(shape, inputs, decode(shape, inputs, *whose), *whose)

    def references_given_outputs(
        self, case: Case, inputs: dict[str, Tensor], outputs: dict[str, Tensor], expected: dict[str, Expected]
    ) -> dict[str, Expected]:
        from gpucheck.checks.decoder.passes import judge_by

        def fits(name: str, reference: Expected) -> bool:
            held = outputs.get(name)
            return held is not None and held.shape == reference.estimate.value.shape and held.dtype == reference.dtype

        whole = all(fits(name, reference) for name, reference in expected.items())
        return judge_by(self.shape(case), inputs, outputs, case.rank, case.ranks) if whole else expected

    def order_mismatches(
        self,
        case: Case,
        inputs: dict[str, Tensor],
        outputs: dict[str, Tensor],
        expected: dict[str, Expected],
        mismatches: list[Mismatch],
    ) -> tuple[list[Mismatch], str]:
        from gpucheck.checks.decoder.words import first_wrong, in_order

        ordered = in_order(mismatches, case["layers"])
        return ordered, first_wrong(ordered, outputs, expected, case.ranks)

    def prepare(self, case: Case, inputs: dict[str, Tensor], runtime: Runtime) -> Any:
        from gpucheck.checks.decoder.device import Decoder, TorchRanks
        from gpucheck.checks.decoder.tensor_parallel import inputs_of_one, reason_against, shape_of_one
        from gpucheck.model.errors import Inapplicable

        shape, ranks = self.shape(case), None
        if case.ranks:
            if reason := reason_against(shape, case.ranks):
                raise Inapplicable(reason)
            inputs = inputs_of_one(shape, inputs, case.rank, case.ranks)
            shape, ranks = shape_of_one(shape, case.ranks), TorchRanks()
        return Decoder(shape, inputs, runtime, layout=case["layout"], guard=case["guard"], ranks=ranks)

    def launch(self, case: Case, prepared: Any, runtime: Runtime) -> dict[str, Tensor]:
        outputs: dict[str, Tensor] = prepared.decode()
        return outputs

    def kernels(self, case: Case, runtime: Runtime) -> tuple[str, ...]:
        return runtime.library.kernels["matmul"]

    def needed_launches(self, case: Case, runtime: Runtime) -> tuple[NeededLaunches, ...]:
        """Of a step: five products, one choice of experts and one attention a layer, and the product of the logits."""
        from gpucheck.library.adapters.base import KernelConfig

        kernels, steps, layers = runtime.library.kernels, case["tokens"], case["layers"]
        sums = steps * layers if case["top_k"] > 1 else 0
        return (
            *runtime.library.products(KernelConfig(), steps * (PRODUCTS * layers + 1), sums=sums),
            NeededLaunches(kernels["topk"], steps * layers),
            NeededLaunches(kernels["route"], steps * layers),
            NeededLaunches(("_flash_attention_forward",), steps * layers),
        )

    def axes(self, case: Case, inputs: dict[str, Tensor]) -> dict[str, Axes]:
        from gpucheck.checks.decoder.shape import LOGITS, TOKENS, axes_of

        names = (*self.shape(case).caller.operations, LOGITS, TOKENS)
        return {name: Axes(axes_of(name), (0,) * len(axes_of(name))) for name in names}
