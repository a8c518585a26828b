"""Arithmetic of Triton's interpreter on types that numpy lacks.

The interpreter keeps bf16 and fp8 as bit patterns and in places computes with the patterns themselves; its casts
truncate. Here operands are decoded to fp32, the operation is done in fp32 and the result rounded to nearest even.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from . import number_formats
from .number_formats import Array, decode, encode, is_packed

_UNSIGNED = {8: np.uint8, 16: np.uint16, 32: np.uint32, 64: np.uint64}


def install() -> None:
    """Replaces casts, element-wise operations and matrix products of the interpreter."""
    from triton.runtime import interpreter

    builder = interpreter.InterpreterBuilder
    _repair_casts(interpreter, builder)
    _repair_elementwise(interpreter, builder)
    _repair_products(interpreter, builder)
    # Overflow checks are a debugging aid that compiled kernels do not carry; they triple the cost of index arithmetic.
    options = interpreter.interpreter_builder.options
    if getattr(options, "sanitize_overflow", False):
        interpreter.interpreter_builder.options = replace(options, sanitize_overflow=False)


def _as_numbers(handle: Any) -> Array:
    return decode(handle.data, handle.dtype.scalar.name)


def _as_float32(handle: Any) -> Array:
    return _as_numbers(handle).astype(np.float32, copy=False)


def _repair_casts(interpreter: Any, builder: Any) -> None:
    from triton._C.libtriton import ir

    original_convert, original_cast = interpreter._convert_float, builder.cast_impl
    handle_type, numpy_type = interpreter.TensorHandle, interpreter._get_np_dtype
    ieee = {"fp16", "fp32", "fp64"}

    def known(dtype: Any) -> bool:
        return dtype.name in ieee or is_packed(dtype.name)

    def convert_float(data: Array, source: Any, target: Any, rounding: Any) -> Array:
        if not (known(source) and known(target)):
            return original_convert(data, source, target, rounding)
        if source.name in ieee:
            data = data.view(numpy_type(source))
        values = decode(data, source.name)
        if is_packed(target.name):
            bits = encode(values, target.name)
        else:
            bits = values.astype(numpy_type(target)).view(_UNSIGNED[target.primitive_bitwidth])
        if rounding == ir.ROUNDING_MODE.RTZ:
            if target.name in ieee:
                rounded = bits.view(numpy_type(target)).astype(np.float64)
                return bits - (np.abs(rounded) > np.abs(values)).astype(bits.dtype)
            return number_formats.toward_zero(values, bits, target.name)
        return bits

    def cast_impl(self: Any, source: Any, target: Any) -> Any:
        source_type, target_type = source.dtype.scalar, target.scalar
        if not (is_packed(source_type.name) or is_packed(target_type.name)):
            return original_cast(self, source, target)
        values = decode(source.data, source_type.name)
        if is_packed(target_type.name):
            return handle_type(encode(values, target_type.name), target_type)
        return handle_type(values.astype(numpy_type(target_type)), target_type)

    def get_bf16(self: Any, value: float) -> Any:
        return handle_type(encode(np.array([value]), "bf16"), interpreter.tl.bfloat16)

    interpreter._convert_float = convert_float
    builder.cast_impl = cast_impl
    builder.get_bf16 = get_bf16


def _repair_elementwise(interpreter: Any, builder: Any) -> None:
    handle_type = interpreter.TensorHandle
    int1 = interpreter.tl.int1

    original_binary, original_unary = builder.binary_op, builder.unary_op

    def binary_op(self: Any, first: Any, second: Any, function: Any) -> Any:
        dtype = first.dtype.scalar
        if not is_packed(dtype.name):
            result = original_binary(self, first, second, function)
            if result.data.dtype == np.bool_ and dtype != int1:
                result.dtype = int1  # else a comparison counts as a number when it is broadcast
            return result
        output = function(_as_numbers(first), _as_numbers(second))
        if output.dtype == np.bool_:
            return handle_type(output, int1)
        return handle_type(encode(output, dtype.name), dtype)

    def unary_op(self: Any, argument: Any, function: Any) -> Any:
        dtype = argument.dtype.scalar
        if not is_packed(dtype.name):
            return original_unary(self, argument, function)
        return handle_type(encode(function(_as_numbers(argument)), dtype.name), dtype)

    builder.binary_op = binary_op
    builder.unary_op = unary_op

    original_ternary, original_fma = builder.ternary_op, builder.create_fma

    def ternary_op(self: Any, first: Any, second: Any, third: Any, function: Any) -> Any:
        dtype = third.dtype.scalar
        if function is np.where or not is_packed(dtype.name):
            return original_ternary(self, first, second, third, function)
        numbers = [_as_numbers(handle) for handle in (first, second, third)]
        return handle_type(encode(function(*numbers), dtype.name), dtype)

    def create_fma(self: Any, x: Any, y: Any, z: Any) -> Any:
        dtype = z.dtype.scalar
        if not is_packed(dtype.name):
            return original_fma(self, x, y, z)
        exact = _as_numbers(x).astype(np.float64) * _as_numbers(y) + _as_numbers(z)
        return handle_type(encode(exact, dtype.name), dtype)

    builder.ternary_op = ternary_op
    builder.create_fma = create_fma


def _repair_products(interpreter: Any, builder: Any) -> None:
    from triton._C.libtriton import ir

    handle_type = interpreter.TensorHandle
    e2m1 = ir.ScaleDotElemTypeTY.E2M1

    def create_dot(self: Any, a: Any, b: Any, d: Any, input_precision: Any, max_num_imprecise_acc: Any) -> Any:
        dtype = d.dtype.scalar
        if dtype.is_int():
            # Products of 8-bit integers are exact in float64.
            product = np.matmul(a.data.astype(np.float64), b.data.astype(np.float64)).astype(d.data.dtype)
            return handle_type(product + d.data, dtype)
        if d.data.dtype == np.float64:
            return handle_type(np.matmul(a.data, b.data) + d.data, dtype)
        output = np.matmul(_as_float32(a), _as_float32(b)) + _as_float32(d)
        if is_packed(dtype.name):
            return handle_type(encode(output, dtype.name), dtype)
        return handle_type(output.astype(d.data.dtype, copy=False), dtype)

    def operand(handle: Any, scale: Any, format_: Any, packed_along_k: bool, is_left: bool) -> Array:
        """(..., M, K) of the left or (..., K, N) of the right operand in fp32; scales are (..., M or N, K / block)."""
        k_axis = -1 if is_left else -2
        if format_ == e2m1:
            other_axis = -3 - k_axis
            values = number_formats.unpack_e2m1(handle.data.view(np.uint8), k_axis if packed_along_k else other_axis)
        else:
            values = _as_float32(handle)
        if scale is None:
            return values
        block = values.shape[k_axis] // scale.data.shape[-1]
        factors = np.repeat(number_formats.decode_e8m0(scale.data), block, axis=-1)
        return values * (factors if is_left else np.swapaxes(factors, -1, -2))

    def create_dot_scaled(
        self: Any,
        a: Any,
        a_scale: Any,
        a_format: Any,
        b: Any,
        b_scale: Any,
        b_format: Any,
        fast_math: Any,
        a_packed_along_k: bool,
        b_packed_along_k: bool,
        d: Any,
    ) -> Any:
        left = operand(a, a_scale, a_format, a_packed_along_k, is_left=True)
        right = operand(b, b_scale, b_format, b_packed_along_k, is_left=False)
        return handle_type(np.matmul(left, right) + d.data, d.dtype.scalar)

    builder.create_dot = create_dot
    builder.create_dot_scaled = create_dot_scaled
