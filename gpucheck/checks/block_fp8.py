"""A product in fp8 with scales for blocks, as engines compute it by Triton kernels of their own.

Activations are quantised for each token and group of its columns, then multiplied with a weight that has a scale for
each block of rows and columns. What was quantised is judged by itself, and the product by what was quantised.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from gpucheck.checks.base import GIVES, Check, Runtime
from gpucheck.checks.engine_block import by_engine
from gpucheck.checks.on_use import bounds, operands, torch
from gpucheck.model.case import Case, CheckSpec, Param
from gpucheck.model.record import Mismatch, NeededLaunches
from gpucheck.verify.expected import Axes, Expected

if TYPE_CHECKING:
    from torch import Tensor

    from gpucheck.verify.bounds import Estimate

    Inputs = dict[str, Tensor]

BLOCK = 128  # rows and columns of the weight that share a scale
UNIT = 1.0  # of exact operands without their scales


def spec(name: str, summary: str) -> CheckSpec:
    """The parameters of the product, for the check of one engine."""
    return CheckSpec(
        name=name,
        summary=summary,
        sizes=("m", "n", "k"),
        params=(
            Param(
                "activations",
                "strided",
                "given in fp8 with scales, or quantised by the engine from rows that lie apart or side by side",
                ("strided", "contiguous", "given"),
            ),
            Param("m", 16, "tokens", label="m"),
            Param("n", 256, "columns of the result", label="n"),
            Param("k", 512, "terms", label="k"),
        ),
    )


class BlockFp8Check(Check):
    """A check of one engine names it as :attr:`engine`, its kernels, and has a spec."""

    late_inputs = ("x",)
    product: ClassVar[str]
    quantiser: ClassVar[str]  # of rows that lie apart

    def validate(self, params: Mapping[str, Any], data: str) -> str | None:
        if params["activations"] != "given" and params["k"] % BLOCK:
            return f"k must be a multiple of {BLOCK} where activations are quantised, not {params['k']}"
        if params["activations"] == "strided" and params["m"] < 2:
            return "rows that lie apart are at least 2"
        return None

    def inputs(self, case: Case, generator: torch.Generator) -> Inputs:
        m, n, k = case["m"], case["n"], case["k"]
        make = _exact if case.data == "exact" else _normal
        x, x_scale = make((m, k), (1, BLOCK), generator, largest=True)
        w, w_scale = make((n, k), (BLOCK, BLOCK), generator, largest=False)
        made = {"w": w.to(torch.float8_e4m3fn), "w_scale": w_scale}
        if case["activations"] == "given":
            return {**made, "x": x.to(torch.float8_e4m3fn), "x_scale": x_scale}
        return {**made, "x": (x * _spread(x_scale, (1, BLOCK), (m, k))).to(torch.bfloat16)}

    def reference(self, case: Case, inputs: Inputs) -> dict[str, Expected]:
        exact, expected = case.data == "exact", {}
        x, scales = inputs["x"].double(), inputs.get("x_scale")
        if scales is None:
            largest = x.abs().unflatten(1, (-1, BLOCK)).amax(2)
            expected["scales"] = Expected(bounds.group_scale(largest), torch.float32)
            scales = expected["scales"].estimate.value
            of_all = _spread(scales, (1, BLOCK), tuple(x.shape))
            expected["quantised"] = Expected(bounds.quantised(x, of_all, exact), torch.float8_e4m3fn)
            x = expected["quantised"].estimate.value
        return {**expected, "y": Expected(product(inputs, x, scales.double(), exact), torch.bfloat16)}

    def references_given_outputs(
        self, case: Case, inputs: Inputs, outputs: Inputs, expected: dict[str, Expected]
    ) -> dict[str, Expected]:
        """What is quantised follows from the scales, and the product from both; it is exact if these are as made."""
        names = ("scales", "quantised")
        if not all(name in expected for name in names) or not all(_fits(outputs, expected, name) for name in names):
            return expected
        scales, x = (outputs[name].double() for name in names)
        of_all = _spread(scales, (1, BLOCK), tuple(x.shape))
        if not bool((scales > 0).all()):
            return expected
        exact = case.data == "exact" and bool((expected["scales"].estimate.value == scales).all())
        given = bounds.quantised(inputs["x"].double(), of_all, exact)
        return {
            "scales": expected["scales"],
            "quantised": Expected(given, torch.float8_e4m3fn),
            "y": Expected(product(inputs, x, scales, exact), torch.bfloat16),
        }

    def order_mismatches(
        self,
        case: Case,
        inputs: Inputs,
        outputs: Inputs,
        expected: dict[str, Expected],
        mismatches: list[Mismatch],
    ) -> tuple[list[Mismatch], str]:
        """As they were computed; a known fault may explain the first one."""
        order = ["scales", "quantised", "y"]
        ordered = sorted(mismatches, key=lambda each: order.index(each.output))
        first = ordered[0].output if ordered else ""
        if first == "scales":
            return ordered, f"quantisation: {_scales_fault(inputs, outputs, expected)}"
        if first == "quantised":
            return ordered, "quantisation: the scales are right and the values are not"
        return ordered, _product_fault(case, inputs, outputs, expected) if first else ""

    def prepare(self, case: Case, inputs: Inputs, runtime: Runtime) -> Any:
        x = inputs["x"]
        if case["activations"] == "strided":
            x = runtime.place(operands.within(x), "the activations")
        weight = by_engine(
            runtime, lambda engine: engine.block_fp8(inputs["w"], inputs["w_scale"], BLOCK, runtime.place, len(x))
        )
        return x, inputs.get("x_scale"), weight

    def operands(self, case: Case, prepared: Any) -> Any:
        x, scales, weight = prepared
        return {"x": x, **({} if scales is None else {"x_scale": scales}), **weight.operands()}

    def launch(self, case: Case, prepared: Any, runtime: Runtime) -> dict[str, Tensor]:
        x, scales, weight = prepared
        with torch.no_grad():
            if scales is not None:
                return {"y": weight.multiply(x, scales)}
            quantised, scales = weight.quantise(x)
            return {"scales": scales, "quantised": quantised, "y": weight.multiply(quantised, scales)}

    def kernels(self, case: Case, runtime: Runtime) -> tuple[str, ...]:
        return (self.product,)

    def needed_launches(self, case: Case, runtime: Runtime) -> tuple[NeededLaunches, ...]:
        quantiser = (NeededLaunches((self.quantiser,)),) if case["activations"] == "strided" else ()
        return (*quantiser, NeededLaunches((self.product,)))

    def axes(self, case: Case, inputs: Inputs) -> dict[str, Axes]:
        return {
            "scales": Axes(("token", "group"), (0, 0)),
            "quantised": Axes(("token", "column"), (0, BLOCK)),
            "y": Axes(("token", "column"), (64, BLOCK)),
        }


def product(inputs: Inputs, x: Tensor, scales: Tensor, exact: bool) -> Estimate:
    """The result of activations (M, K) without their scales (M, K / BLOCK)."""
    return _scaled(exact, inputs["w"].double(), inputs["w_scale"].double(), x, scales)


def _scaled(exact: bool, w: Tensor, w_scale: Tensor, x: Tensor, scales: Tensor) -> Estimate:
    columns = w_scale.repeat_interleave(BLOCK, 0)[: len(w)].mT
    return bounds.block_scaled(x, scales, w.mT, columns, BLOCK, UNIT if exact else None)


def _spread(scales: Tensor, block: tuple[int, int], shape: tuple[int, ...]) -> Tensor:
    """The scale of each element."""
    for axis, size in enumerate(block):
        scales = scales.repeat_interleave(size, axis)
    return scales[: shape[0], : shape[1]]


def _exact(
    shape: tuple[int, int], block: tuple[int, int], generator: torch.Generator, *, largest: bool
) -> tuple[Tensor, Tensor]:
    """Small whole numbers, and powers of two as scales that differ between neighbours.

    Args:
        largest: each block has a number of the largest magnitude of e4m3, so that its scale follows from it.
    """
    values = operands.signed_integers(shape, 1, 2 if largest else 1, generator)
    rows, columns = (torch.arange(-(-size // part)) for size, part in zip(shape, block, strict=True))
    if largest:
        for start in range(0, shape[1], block[1]):
            place = torch.randint(start, min(start + block[1], shape[1]), (shape[0], 1), generator=generator)
            values.scatter_(1, place, values.gather(1, place).sign() * bounds.LARGEST_E4M3)
    first = int(torch.randint(0, 5, (1,), generator=generator))
    return values, torch.exp2(((2 * rows[:, None] + columns + first) % 5 - 2).float())


def _normal(
    shape: tuple[int, int], block: tuple[int, int], generator: torch.Generator, *, largest: bool
) -> tuple[Tensor, Tensor]:
    """Standard normal values over the scales that fit them; blocks differ in size by a factor of up to 4."""
    sizes = torch.exp2(
        2 * torch.rand([-(-size // part) for size, part in zip(shape, block, strict=True)], generator=generator)
    )
    values = torch.randn(shape, generator=generator) * _spread(sizes, block, shape)
    filled = torch.nn.functional.pad(values, (0, -shape[1] % block[1], 0, -shape[0] % block[0]))
    blocks = filled.unflatten(1, (-1, block[1])).unflatten(0, (-1, block[0]))
    scales = blocks.abs().amax((1, 3)) / bounds.LARGEST_E4M3
    return values / _spread(scales, block, shape), scales


def _fits(outputs: Inputs, expected: dict[str, Expected], name: str) -> bool:
    """Whether further references can be made of an output."""
    if name not in outputs or outputs[name].dtype != expected[name].dtype:
        return False
    return outputs[name].shape == expected[name].estimate.value.shape and bool(outputs[name].double().isfinite().all())


def _scales_fault(inputs: Inputs, outputs: Inputs, expected: dict[str, Expected]) -> str:
    from gpucheck.verify.judge import accepted

    right = expected["scales"].estimate
    groups = inputs["x"].double().unflatten(1, (-1, BLOCK))
    for words, largest in (
        ("a scale is of the largest value, not of the largest magnitude", groups.amax(2)),
        ("a scale is of the group after", groups.abs().amax(2).roll(-1, 1)),
        ("a scale is of the group before", groups.abs().amax(2).roll(1, 1)),
        ("a scale is of the token after", groups.abs().amax(2).roll(-1, 0)),
    ):
        estimate = bounds.group_scale(largest)
        if accepted(outputs["scales"], Expected(estimate, expected["scales"].dtype)) is not None:
            return f"{words} ({GIVES})"
    return f"{right.value.shape[1]} scales a token, which are wrong before anything is multiplied"


def _product_fault(case: Case, inputs: Inputs, outputs: Inputs, expected: dict[str, Expected]) -> str:
    from gpucheck.verify.judge import accepted

    given = inputs if "x_scale" in inputs else {"x": outputs["quantised"], "x_scale": outputs["scales"]}
    x, scales = given["x"].double(), given["x_scale"].double()
    for words, arguments in _faults(inputs["w"].double(), inputs["w_scale"].double(), x, scales):
        answer = Expected(_scaled(False, *arguments), expected["y"].dtype)
        if accepted(outputs["y"], answer) is not None:
            return f"product: {words} ({GIVES})"
    return ""


def _faults(w: Tensor, w_scale: Tensor, x: Tensor, scales: Tensor) -> Iterator[tuple[str, tuple[Tensor, ...]]]:
    """Words and what is multiplied, of each known fault: weight, its scales, activations, their scales."""
    if w_scale.shape[0] == w_scale.shape[1]:
        yield "rows and columns of the weight's scales are exchanged", (w, w_scale.mT, x, scales)
    for places, words in ((-1, "after"), (1, "before")):
        yield f"a block of the weight has the scale of that {words} along n", (w, w_scale.roll(places, 0), x, scales)
        yield f"a block of the weight has the scale of that {words} along k", (w, w_scale.roll(places, 1), x, scales)
        yield f"a group of a token has the scale of that {words}", (w, w_scale, x, scales.roll(places, 1))
        yield f"a token has the scales of that {words}", (w, w_scale, x, scales.roll(places, 0))
    yield "scales of the weight are not applied", (w, w_scale * 0 + 1, x, scales)
    yield "scales of activations are not applied", (w, w_scale, x, scales * 0 + 1)
    left = x.shape[1] % BLOCK or BLOCK
    shorter = x.clone()
    shorter[:, -left:] = 0
    yield f"the last {left} terms are left out", (w, w_scale, shorter, scales)
