"""Makes Triton's interpreter faster without changing a result.

Reductions and scans with a custom combine function go slice by slice instead of element by element, what is computed
again for every tensor (numpy types, block shapes) is remembered, operands that fit each other are not converted, and
operations are called without the layers that only a compiler needs.
"""

from __future__ import annotations

import functools
import inspect
from typing import Any

import numpy as np


def install() -> None:
    """Speeds up reductions, scans, the making of tensors, and operations on them; the language is patched already."""
    from triton.language import semantic
    from triton.runtime import interpreter

    _remember_numpy_types(interpreter)
    _combine_slices(interpreter)
    _remember_shapes(interpreter.tl)
    _compare_itself_at_once(interpreter.tl.core)
    _pass_plain_values(interpreter.tl.core)
    _pass_fitting_operands(interpreter.tl, getattr(semantic, "TritonSemantic", None))
    _pass_equal_shapes(getattr(semantic, "TritonSemantic", None))
    _check_sizes_at_once(interpreter)
    _call_operations_directly(interpreter)


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
    shared: dict[tuple[Any, ...], Any] = {}  # sizes -> the one object that stands for them
    shapes: dict[int, tuple[Any, Any, Any]] = {}  # id of such an object, or of None -> it, shape and numel of tensors

    def block_init(self: Any, element_ty: Any, shape: Any) -> None:
        sizes = tuple([getattr(size, "value", size) for size in shape])
        known = blocks.get((element_ty.name, sizes))
        if known is None:
            original_block(self, element_ty, shape)
            known = (shared.setdefault(sizes, self.shape), self.numel, self.name)
            blocks[element_ty.name, sizes] = known
        self.element_ty = element_ty
        self.shape, self.numel, self.name = known

    def tensor_init(self: Any, handle: Any, type: Any) -> None:
        source = type.shape if type.is_block() else None
        known = shapes.get(id(source))
        if known is None or known[0] is not source:
            original_tensor(self, handle, type)
            if set(vars(self)) == {"handle", "shape", "numel", "type", "dtype"}:
                shapes[id(source)] = (source, self.shape, self.numel)
            return
        self.handle, self.type, self.dtype = handle, type, type.scalar
        _, self.shape, self.numel = known

    block_type.__init__ = block_init
    tensor.__init__ = tensor_init


def _compare_itself_at_once(core: Any) -> None:
    """Shapes and types that are one object are equal; Triton unwraps each size first."""

    def quick(kind: Any, equal: Any) -> None:
        original = kind.__eq__

        @functools.wraps(original)
        def compare(self: Any, other: Any) -> Any:
            return equal if self is other else original(self, other)

        kind.__eq__ = compare

    quick(core.dtype, True)
    quick(core.tuple, core.constexpr(True))


def _pass_plain_values(core: Any) -> None:
    """Values of kinds that neither are nor hold constants of the compiler are not searched for these."""
    original = core._unwrap_if_constexpr
    plain = frozenset({core.tensor, core.dtype, int, float, bool, str, type(None)})

    @functools.wraps(original)
    def unwrap(value: Any) -> Any:
        return value if type(value) in plain else original(value)

    core._unwrap_if_constexpr = unwrap


_FLOATS = frozenset({"fp16", "bf16", "fp32", "fp64"})
_INTEGERS = frozenset(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64))
_PLAIN = _FLOATS | _INTEGERS  # what Triton leaves as it is where both operands are of it
_WHOLE = _PLAIN - {"fp16", "bf16"}  # and in divisions
_CHECK = ["self", "lhs", "rhs", "allow_lhs_ptr", "allow_rhs_ptr", "arithmetic_check", "div_or_mod"]


def _pass_fitting_operands(tl: Any, semantic: Any) -> None:
    """Leaves operands as they are that fit each other: of one type, or a pointer and a distance, or one number's.

    Where one has to be repeated to get the shape of the other, or both have, only their types say so: numpy repeats
    them, and together they span the whole shape.
    """
    original = getattr(semantic, "binary_op_type_checking_impl", None)
    if original is None or list(inspect.signature(original).parameters) != _CHECK:
        return
    tensor, block_type = tl.core.tensor, tl.core.block_type
    known: dict[tuple[Any, str], Any] = {}
    joined: dict[tuple[int, int], tuple[Any, Any, list[int]]] = {}  # ids of two shapes -> these, and what both span

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

    def span(left: Any, right: Any) -> list[int]:
        """The sizes of what two shapes span; none where Triton has to say what is wrong, or adds axes."""
        found = joined.get((id(left), id(right)))
        if found is None or found[0] is not left or found[1] is not right:
            pairs = list(zip(left, right, strict=False))
            fit = len(left) == len(right) and all(a == b or 1 in (a, b) for a, b in pairs)
            found = left, right, [max(pair) for pair in pairs] if fit else []
            joined[id(left), id(right)] = found
        return found[2]

    def spread(lhs: Any, rhs: Any) -> tuple[Any, Any] | None:
        """Operands of fitting types and different shapes."""
        left, right = lhs.type, rhs.type
        if not left.is_block() and not right.is_block():
            return lhs, rhs
        if not left.is_block():
            return tensor(lhs.handle, right.with_element_ty(lhs.dtype)), rhs
        if not right.is_block():
            return lhs, tensor(rhs.handle, left.with_element_ty(rhs.dtype))
        sizes = span(left.shape, right.shape)
        if not sizes:
            return None
        return tuple(tensor(each.handle, block_type(each.dtype, sizes)) for each in (lhs, rhs))  # type: ignore[return-value]

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
        found, usual = None, _WHOLE if div_or_mod else _PLAIN
        if not isinstance(rhs, tensor):
            if isinstance(lhs, tensor) and lhs.dtype.name in usual and fits(rhs, lhs.dtype):
                found = lhs, number_like(self, rhs, lhs)
        elif not isinstance(lhs, tensor):
            if rhs.dtype.name in usual and fits(lhs, rhs.dtype):
                found = number_like(self, lhs, rhs), rhs
        else:
            left, right = lhs.dtype.name, rhs.dtype.name
            if left in usual if left == right else allow_lhs_ptr and right in _INTEGERS and lhs.dtype.is_ptr():
                found = (lhs, rhs) if lhs.shape is rhs.shape else spread(lhs, rhs)
        if found is not None:
            return found
        checked: tuple[Any, Any] = original(self, lhs, rhs, allow_lhs_ptr, allow_rhs_ptr, arithmetic_check, div_or_mod)
        return checked

    semantic.binary_op_type_checking_impl = check


def _pass_equal_shapes(semantic: Any) -> None:
    """Leaves operands as they are that have one shape, or are both scalars: there is nothing to broadcast."""
    original = getattr(semantic, "broadcast_impl_value", None)
    if original is None or list(inspect.signature(original).parameters) != ["self", "lhs", "rhs"]:
        return

    @functools.wraps(original)
    def broadcast(self: Any, lhs: Any, rhs: Any) -> tuple[Any, Any]:
        if lhs.shape is rhs.shape and lhs.type.is_block() == rhs.type.is_block():
            return lhs, rhs
        spread: tuple[Any, Any] = original(self, lhs, rhs)
        return spread

    semantic.broadcast_impl_value = broadcast


def _check_sizes_at_once(interpreter: Any) -> None:
    """Whether the elements of an array fit their type is seen at a glance; whatever does not is left to Triton."""
    handle, dtype = interpreter.TensorHandle, interpreter.tl.core.dtype
    original = getattr(handle, "__post_init__", None)
    if original is None:
        return

    @functools.wraps(original)
    def check(self: Any) -> None:
        held = self.dtype
        if type(held) is not dtype or self.data.itemsize * 8 > held.primitive_bitwidth:
            original(self)

    handle.__post_init__ = check


def _call_operations_directly(interpreter: Any) -> None:
    """Operations get what runs them without two layers in between: one that filters arguments, one that counts them."""
    core, semantic = interpreter.tl.core, interpreter.interpreter_semantic
    asked = core.builtin(lambda _semantic=None: None).__code__  # of the layer that asks whether there is one

    def direct(member: Any) -> Any:
        function = member.__wrapped__ if getattr(member, "__code__", None) is asked else member

        def operation(*args: Any, **kwargs: Any) -> Any:
            kwargs["_semantic"] = semantic
            return function(*args, **kwargs)

        return operation

    for owner in (interpreter.tl, interpreter.tl.math, core, core.tensor, core.tensor_descriptor_base):
        for name, patched in list(vars(owner).items()):
            kept = getattr(patched, "__kwdefaults__", None) or {}
            if list(kept) == ["member"]:
                setattr(owner, name, direct(kept["member"]))
