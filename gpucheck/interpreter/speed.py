"""Makes Triton's interpreter faster without changing a result.

Reductions and scans with a custom combine function go slice by slice instead of element by element, what is computed
again for every tensor (numpy types, block shapes) is remembered, and operands that fit each other are not converted.
"""

from __future__ import annotations

import functools
import inspect
from typing import Any

import numpy as np


def install() -> None:
    """Speeds up reductions, scans, the making of tensors and operations on two of them."""
    from triton.language import semantic
    from triton.runtime import interpreter

    _remember_numpy_types(interpreter)
    _combine_slices(interpreter)
    _remember_shapes(interpreter.tl)
    _pass_fitting_operands(interpreter.tl, getattr(semantic, "TritonSemantic", None))


def _remember_numpy_types(interpreter: Any) -> None:
    original = interpreter._get_np_dtype
    known: dict[str, Any] = {}

    def numpy_type(dtype: Any) -> Any:
        # Pointers have names of their own; a block is stored like its elements.
        name = dtype.scalar.name
        if name not in known:
            known[name] = original(dtype.scalar)
        return known[name]

    interpreter._get_np_dtype = numpy_type


def _combine_slices(interpreter: Any) -> None:
    """Combine functions are element-wise, so a whole slice across the axis can be combined at once."""

    def combine(operation: Any, left: tuple[Any, ...], right: tuple[Any, ...]) -> tuple[Any, ...]:
        result = operation.combine_fn.fn(*left, *right)
        return result if isinstance(result, tuple) else (result,)

    def slice_at(operation: Any, arrays: list[Any], dtypes: list[Any], axis: int, index: int) -> tuple[Any, ...]:
        pairs = zip(arrays, dtypes, strict=True)
        return tuple(operation.to_tensor(array.take(index, axis=axis), dtype) for array, dtype in pairs)

    def data_of(value: Any, like: Any) -> Any:
        data = np.asarray(getattr(getattr(value, "handle", None), "data", value))
        return data.astype(like.dtype, copy=False)

    def generic_reduce(self: Any, inputs: tuple[Any, ...]) -> list[Any]:
        arrays = [value.handle.data for value in inputs]
        dtypes = [value.dtype for value in inputs]
        rank, axis = arrays[0].ndim, self.axis
        if axis is None:
            arrays, axis = [array.reshape(-1) for array in arrays], 0
        state = slice_at(self, arrays, dtypes, axis, 0)
        for index in range(1, arrays[0].shape[axis]):
            state = combine(self, state, slice_at(self, arrays, dtypes, axis, index))
        shape = arrays[0].shape[:axis] + arrays[0].shape[axis + 1 :]
        if self.keep_dims:
            shape = (1,) * rank if self.axis is None else (*shape[:axis], 1, *shape[axis:])
        results = []
        for value, array, dtype in zip(state, arrays, dtypes, strict=True):
            data = data_of(value, array).reshape(shape)
            results.append(self.to_tensor(data if shape else data.item(), dtype))
        return results

    def generic_scan(self: Any, inputs: tuple[Any, ...]) -> list[Any]:
        arrays = [value.handle.data for value in inputs]
        dtypes = [value.dtype for value in inputs]
        axis = self.axis
        state = slice_at(self, arrays, dtypes, axis, 0)
        steps = [state]
        for index in range(1, arrays[0].shape[axis]):
            state = combine(self, state, slice_at(self, arrays, dtypes, axis, index))
            steps.append(state)
        slice_shape = arrays[0].shape[:axis] + arrays[0].shape[axis + 1 :]
        results = []
        for position, (array, dtype) in enumerate(zip(arrays, dtypes, strict=True)):
            slices = [data_of(step[position], array).reshape(slice_shape) for step in steps]
            results.append(self.to_tensor(np.stack(slices, axis=axis), dtype))
        return results

    interpreter.ReduceOps.generic_reduce = generic_reduce
    interpreter.ScanOps.generic_scan = generic_scan


def _remember_shapes(tl: Any) -> None:
    """Blocks of equal shape share the objects that describe it; nothing in an interpreted kernel changes them."""
    block_type, tensor = tl.core.block_type, tl.core.tensor
    if set(vars(block_type(tl.int32, [2]))) != {"element_ty", "shape", "numel", "name"}:
        return
    original_block, original_tensor = block_type.__init__, tensor.__init__
    blocks: dict[Any, tuple[Any, Any, str]] = {}
    shapes: dict[int, tuple[Any, Any, Any]] = {}

    def block_init(self: Any, element_ty: Any, shape: Any) -> None:
        key = (element_ty.name, *[getattr(size, "value", size) for size in shape])
        if key not in blocks:
            original_block(self, element_ty, shape)
            blocks[key] = (self.shape, self.numel, self.name)
            return
        self.element_ty = element_ty
        self.shape, self.numel, self.name = blocks[key]

    def tensor_init(self: Any, handle: Any, type: Any) -> None:
        source = type.shape if type.is_block() else None
        known = shapes.get(id(source))
        if known is None or known[0] is not source:
            original_tensor(self, handle, type)
            if set(vars(self)) == {"handle", "shape", "numel", "type", "dtype"}:
                shapes[id(source)] = (source, self.shape, self.numel)
            return
        self.handle, self.type, self.dtype = handle, type, type.scalar
        self.shape, self.numel = known[1:]

    block_type.__init__ = block_init
    tensor.__init__ = tensor_init


_FLOATS = frozenset({"fp16", "bf16", "fp32", "fp64"})
_INTEGERS = frozenset(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64))
_CHECK = ["self", "lhs", "rhs", "allow_lhs_ptr", "allow_rhs_ptr", "arithmetic_check", "div_or_mod"]


def _pass_fitting_operands(tl: Any, semantic: Any) -> None:
    """Leaves operands as they are that fit each other: of one type, or a pointer and a distance, or one number's.

    Where one is a block and the other a scalar or a number of Python's, the one element of that says it is a block:
    numpy repeats it, since the other operand has all elements.
    """
    original = getattr(semantic, "binary_op_type_checking_impl", None)
    if original is None or list(inspect.signature(original).parameters) != _CHECK:
        return
    tensor = tl.core.tensor
    known: dict[tuple[Any, str], Any] = {}

    def fits(number: Any, dtype: Any) -> bool:
        if type(number) is float:
            return dtype.name in _FLOATS
        if type(number) is not int or not -(2**31) <= number < 2**31:
            return False
        return dtype.name in _FLOATS or dtype.get_int_min_value() <= number <= dtype.get_int_max_value()

    def number_like(self: Any, number: Any, other: Any) -> Any:
        key = number, other.dtype.name
        if key not in known:
            known[key] = self.scalar_constant(number, other.dtype).handle
        return tensor(known[key], other.type)

    @functools.wraps(original)
    def check(
        self: Any,
        lhs: Any,
        rhs: Any,
        allow_lhs_ptr: bool = False,
        allow_rhs_ptr: bool = False,
        arithmetic_check: bool = True,
        div_or_mod: bool = False,
    ) -> tuple[Any, Any]:
        one = lhs if isinstance(lhs, tensor) else rhs
        name = one.dtype.name if isinstance(one, tensor) else ""
        plain = name in _INTEGERS or (name in _FLOATS and not (div_or_mod and name in ("fp16", "bf16")))
        if isinstance(lhs, tensor) and isinstance(rhs, tensor):
            apart = allow_lhs_ptr and lhs.dtype.is_ptr() and rhs.dtype.name in _INTEGERS
            if apart or (plain and rhs.dtype.name == name):
                if lhs.type.is_block() == rhs.type.is_block():
                    if lhs.shape == rhs.shape:
                        return lhs, rhs
                elif rhs.type.is_block():
                    return tensor(lhs.handle, rhs.type.with_element_ty(lhs.dtype)), rhs
                else:
                    return lhs, tensor(rhs.handle, lhs.type.with_element_ty(rhs.dtype))
        elif plain and one is rhs and fits(lhs, rhs.dtype):
            return number_like(self, lhs, rhs), rhs
        elif plain and one is lhs and fits(rhs, lhs.dtype):
            return lhs, number_like(self, rhs, lhs)
        checked: tuple[Any, Any] = original(self, lhs, rhs, allow_lhs_ptr, allow_rhs_ptr, arithmetic_check, div_or_mod)
        return checked

    semantic.binary_op_type_checking_impl = check
