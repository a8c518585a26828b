"""Inline assembly of the library's kernels and functions of CUDA's libdevice, as numpy functions.

Only what kernels use at capabilities 8.0 and 9.0 is here; other assembly raises and is named in the message.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from . import number_formats
from .number_formats import Array

Operation = Callable[..., "Array | tuple[Array, ...]"]
"""Takes the arrays of the operands and gives the array of each result, in the storage of the interpreter."""

_ONE_INSTRUCTION = re.compile(r"\{?\s*(?P<name>[\w.]+)\s+\$0(,\s*\$\d)+\s*;\s*\}?")
_TF32_DROPPED = 13  # low mantissa bits of fp32 that tf32 lacks
_SMALLEST_NORMAL = np.float32(np.finfo(np.float32).tiny)
_MAGNITUDE = np.uint32(0x7FFFFFFF)
_E2M1_IN_BF16 = np.uint32(0x81C081C0)  # sign, exponent and mantissa of two e2m1 values inside two bf16 values
_E2M1_TO_BF16 = np.float32(2.0**126)  # the difference of the exponent biases


def install() -> None:
    """Replaces ``tl.inline_asm_elementwise`` and ``libdevice.ffs`` for interpreted kernels."""
    from triton.language.extra import libdevice
    from triton.runtime import interpreter

    tl = interpreter.tl
    to_tensor = interpreter.interpreter_semantic.to_tensor

    def inline_asm_elementwise(asm: Any, constraints: Any, args: Any, dtype: Any, *_: Any, **__: Any) -> Any:
        operation = operation_of(getattr(asm, "value", asm))
        operands = [to_tensor(argument) for argument in args]
        results = operation(*(operand.handle.data for operand in operands))

        def tensor(data: Array, element: Any) -> Any:
            shape = operands[0].type.shape if operands[0].type.is_block() else None
            return tl.tensor(
                interpreter.TensorHandle(data, element), tl.block_type(element, shape) if shape else element
            )

        if not isinstance(results, tuple):
            return tensor(results, getattr(dtype, "value", dtype))
        elements = dtype if isinstance(dtype, Sequence) else tuple(dtype)
        return tuple(
            tensor(data, getattr(element, "value", element)) for data, element in zip(results, elements, strict=True)
        )

    def ffs(x: Any) -> Any:
        return tl.tensor(interpreter.TensorHandle(find_first_set(x.handle.data), tl.int32), x.type)

    tl.inline_asm_elementwise = tl.core.inline_asm_elementwise = inline_asm_elementwise
    libdevice.ffs = ffs


def find_first_set(x: Array) -> Array:
    """1 more than the lowest bit that is set in int32 numbers; 0 where none is."""
    bits = x.view(np.uint32).astype(np.int64)
    _, exponent = np.frexp((bits & -bits).astype(np.float64))
    return np.asarray(exponent, np.int32)


def operation_of(asm: str) -> Operation:
    """What a piece of assembly computes.

    Raises:
        NotImplementedError: this assembly has no counterpart on the CPU.
    """
    match = _ONE_INSTRUCTION.fullmatch(asm.strip())
    if match and match["name"] in _INSTRUCTIONS:
        return _INSTRUCTIONS[match["name"]]
    for marks, operation in _BLOCKS.items():
        if all(mark in asm for mark in marks):
            return operation
    raise NotImplementedError(f"inline assembly without a counterpart on the CPU: {asm.strip()}")


def _flushed(values: Array) -> Array:
    """Subnormal numbers become zeros of their sign."""
    zero = np.copysign(np.float32(0), values)
    return np.where(np.abs(values) < _SMALLEST_NORMAL, zero, values).astype(np.float32, copy=False)


def _exp2(values: Array) -> Array:
    return _flushed(np.exp2(_flushed(values)))


def _bits(values: Array) -> Array:
    return np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)


def _to_tf32(values: Array, carry: Array) -> Array:
    """Adds ``carry`` to the bits of each magnitude and cuts the bits that tf32 lacks; NaN stays NaN."""
    rounded = ((_bits(values) + carry) >> np.uint32(_TF32_DROPPED)) << np.uint32(_TF32_DROPPED)
    return np.where(np.isnan(values), values, rounded.view(np.float32))


def _tf32_half_away(values: Array) -> Array:
    return _to_tf32(values, np.uint32(1 << (_TF32_DROPPED - 1)))


def _tf32_half_even(values: Array) -> Array:
    last_kept = (_bits(values) >> np.uint32(_TF32_DROPPED)) & np.uint32(1)
    return _to_tf32(values, last_kept + np.uint32((1 << (_TF32_DROPPED - 1)) - 1))


def _of_magnitudes(choose: Callable[[Array, Array], Array]) -> Operation:
    """``choose`` of the magnitudes, with the exclusive or of the signs; NaN comes through."""

    def operation(left: Array, right: Array) -> Array:
        sign = (_bits(left) ^ _bits(right)) & ~_MAGNITUDE
        return (_bits(choose(np.abs(left), np.abs(right))) & _MAGNITUDE | sign).view(np.float32)

    return operation


def _bf16_product(left: Array, right: Array) -> Array:
    return number_formats.encode(number_formats.decode(left, "bf16") * number_formats.decode(right, "bf16"), "bf16")


def _unpack_e2m1(packed: Array) -> tuple[Array, Array]:
    """Bytes of Hopper's value layout -> bf16 patterns: each four bytes hold eight e2m1 values, four for each result."""
    words = np.ascontiguousarray(packed).view(np.uint32)
    fourth = (words << np.uint32(1)) & np.uint32(0x80008000)
    fourth |= (words >> np.uint32(3)) & np.uint32(0x01800180)
    fourth |= (words >> np.uint32(7)) & np.uint32(0x00400040)
    pairs = [words & _E2M1_IN_BF16, (words << np.uint32(3)) & _E2M1_IN_BF16, (words << np.uint32(6)) & _E2M1_IN_BF16]
    pairs.append(fourth)

    def numbers(first: Array, second: Array) -> Array:
        patterns = np.stack([first, second], axis=-1).reshape(*words.shape[:-1], -1).view(np.uint16)
        return number_formats.encode(number_formats.decode(patterns, "bf16") * _E2M1_TO_BF16, "bf16")

    return numbers(pairs[0], pairs[1]), numbers(pairs[2], pairs[3])


def _e8m0_to_bf16(scales: Array) -> Array:
    return scales.view(np.uint8).astype(np.uint16) << np.uint16(7)


_INSTRUCTIONS: dict[str, Operation] = {
    "ex2.approx.ftz.f32": _exp2,
    "cvt.rna.tf32.f32": _tf32_half_away,
    "cvt.rn.tf32.f32": _tf32_half_even,
    "max.NaN.xorsign.abs.f32": _of_magnitudes(np.maximum),
    "min.NaN.xorsign.abs.f32": _of_magnitudes(np.minimum),
    "mul.bf16x2": _bf16_product,
}
_BLOCKS: dict[tuple[str, ...], Operation] = {
    ("and.b32 $0, $4, 0b10000001110000001000000111000000", "mul.bf16x2 $3, $3, bias"): _unpack_e2m1,
    ("prmt.b32 $0, $2, 0, 0x5140", "prmt.b32 $1, $2, 0, 0x7362", "shl.b32 $1, $1, 7"): _e8m0_to_bf16,
}
