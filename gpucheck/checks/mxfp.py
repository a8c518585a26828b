"""``mxfp``: the library's microscaling codec, judged byte for byte in both directions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from gpucheck.checks.base import Check, Runtime
from gpucheck.checks.on_use import bounds, extremes, operands, torch, wide
from gpucheck.model.case import DATA_KINDS, Case, CheckSpec, Param
from gpucheck.verify.expected import Axes, Expected

if TYPE_CHECKING:
    from torch import Tensor

FORMATS = ("mxfp4", "mxfp8_e4m3", "mxfp8_e5m2")


class Mxfp(Check):
    """Values -> codes and scales (down), codes and scales -> values (up)."""

    late_inputs = ("x", "values")

    spec = CheckSpec(
        name="mxfp",
        summary="the library's mx codec, both ways, byte for byte",
        data_kinds=DATA_KINDS,
        rows=("direction",),
        sizes=("batch", "rows", "columns"),
        params=(
            Param("direction", "down", "quantise or dequantise", ("down", "up")),
            Param("format", "mxfp4", "the mx format", FORMATS),
            Param("dtype", "bf16", "dtype of the plain values", ("bf16", "fp16", "fp32")),
            Param("batch", 1, "leading axis", label="b"),
            Param("rows", 64, "middle axis", label="r"),
            Param("columns", 64, "last axis", label="c"),
            Param("axis", 1, "axis that blocks of 32 run along", (0, 1, 2), label="axis"),
        ),
    )

    def validate(self, params: Mapping[str, Any], data: str) -> str | None:
        length = (params["batch"], params["rows"], params["columns"])[params["axis"]]
        if params["format"] == "mxfp4" and length % 2:
            return f"mxfp4 packs two values a byte: the quantised axis must be even, not {length}"
        return None

    def inputs(self, case: Case, generator: torch.Generator) -> dict[str, Tensor]:
        if case.data == "wide":
            return wide.mx_values(case, generator)
        shape, axis = [case["batch"], case["rows"], case["columns"]], case["axis"]
        if case["direction"] == "down":
            if case.data == "exact":  # quarters up to 6: codes, and every tie between two codes
                x = torch.randint(-24, 25, shape, generator=generator) / 4
                x.index_fill_(axis, torch.arange(0, shape[axis], operands.BLOCK), 6.0)
            else:
                x = torch.randn(shape, generator=generator) * torch.exp2(
                    torch.randint(-9, 5, shape, generator=generator).float()
                )
            return {"x": x.to(operands.DTYPES[case["dtype"]])}
        blocks = [*shape]
        blocks[axis] = -(-shape[axis] // operands.BLOCK)
        scales = torch.randint(120, 130, blocks, generator=generator, dtype=torch.uint8)
        if case["format"] == "mxfp4":
            shape[axis] //= 2
            return {"values": torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8), "scales": scales}
        values = torch.randn(shape, generator=generator) * 4
        if case.data == "exact":
            values = operands.signed_integers(tuple(shape), 0, 8, generator)
        return {"values": values.to(operands.DTYPES[case["format"].removeprefix("mx")]), "scales": scales}

    def reference(self, case: Case, inputs: dict[str, Tensor]) -> dict[str, Expected]:
        from gpucheck.checks import codec

        if case["direction"] == "up":
            decoded = codec.decode(inputs["values"], inputs["scales"], case["axis"])
            dtype = operands.DTYPES[case["dtype"]]
            if case.data == "wide":
                return {"x": _wide(decoded, inputs["scales"], case["axis"], dtype)}
            return {"x": Expected(bounds.Estimate(bounds.round_to(dtype, decoded), None), dtype)}
        answers = [
            codec.encode(inputs["x"].double(), case["format"], case["axis"], rounding)
            for rounding in ("half-away", "even")
        ]
        values = [bounds.Estimate(codes.double(), None) for codes, _ in answers]
        return {
            "values": Expected(values[0], torch.uint8, alternatives=tuple(values[1:])),
            "scales": Expected(bounds.Estimate(answers[0][1].double(), None), torch.uint8),
        }

    def launch(self, case: Case, prepared: Any, runtime: Runtime) -> dict[str, Tensor]:
        if case["direction"] == "down":
            values, scales = runtime.library.downcast(prepared["x"], case["format"], case["axis"])
            return {"values": values.view(torch.uint8), "scales": scales}
        dtype = operands.DTYPES[case["dtype"]]
        return {"x": runtime.library.upcast(prepared["values"], prepared["scales"], dtype, case["axis"])}

    def kernels(self, case: Case, runtime: Runtime) -> tuple[str, ...]:
        return runtime.library.kernels["downcast" if case["direction"] == "down" else "upcast"]

    def axes(self, case: Case, inputs: dict[str, Tensor]) -> dict[str, Axes]:
        axes = Axes(("batch", "row", "column"), (0, 128, 128))
        return dict.fromkeys(("values", "scales") if case["direction"] == "down" else ("x",), axes)


def _wide(decoded: Tensor, scales: Tensor, axis: int, dtype: torch.dtype) -> Expected:
    """Decoded values over the whole range of scale bytes.

    What leaves the range of the dtype is Inf or its largest number; blocks with byte 0, a subnormal scale, may be zero
    throughout, see SUBNORMAL of :mod:`gpucheck.verify.extremes`.
    """
    most = torch.finfo(dtype).max
    value = bounds.round_to(dtype, decoded)
    also = extremes.infinite(value)
    value = value.clamp(-most, most)
    zero = (scales == 0).repeat_interleave(operands.BLOCK, dim=axis).narrow(axis, 0, value.shape[axis])
    return Expected(
        bounds.Estimate(value, None), dtype, (bounds.Estimate(value.masked_fill(zero, 0.0), None),), also=also
    )
