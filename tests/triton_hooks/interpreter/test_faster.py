"""Operations give what Triton's own way gives, or raise what it raises, whatever the way to them leaves out."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest

np = pytest.importorskip("numpy", reason="needs numpy")
triton = pytest.importorskip("triton", reason="needs triton")

from triton.language import core as tl  # noqa: E402
from triton.runtime import interpreter  # noqa: E402

semantic = interpreter.interpreter_semantic
QUICK: tuple[tuple[Any, str], ...] = (
    (type(semantic), "binary_op_type_checking_impl"),
    (type(semantic), "broadcast_impl_value"),
    (interpreter.TensorHandle, "__post_init__"),
    (tl.dtype, "__eq__"),
    (tl.tuple, "__eq__"),
    (tl, "_unwrap_if_constexpr"),
)
"""What stands in the place of something slower, which it keeps as ``__wrapped__``."""
TYPES = ("int8", "uint8", "int32", "uint32", "int64", "uint64", "float16", "bfloat16", "float32", "float64", "int1")
POINTER = "*float32"
NUMBERS = (0, 1, 3, -2, 127, 128, -129, 2**31, 2**40, -(2**63), 2**64, 0.5, -0.0, 1e-60, math.inf, math.nan, True)
OPERATIONS: dict[str, Callable[[Any, Any], Any]] = {
    "add": lambda a, b: semantic.add(a, b, True),
    "sub": lambda a, b: semantic.sub(a, b, True),
    "mul": lambda a, b: semantic.mul(a, b, True),
    "truediv": lambda a, b: semantic.truediv(a, b),
    "floordiv": lambda a, b: semantic.floordiv(a, b),
    "mod": lambda a, b: semantic.mod(a, b),
    "and": lambda a, b: semantic.and_(a, b),
    "less": lambda a, b: semantic.less_than(a, b),
    "equal": lambda a, b: semantic.equal(a, b),
    "maximum": lambda a, b: semantic.maximum(semantic.to_tensor(a), semantic.to_tensor(b), tl.PropagateNan.NONE),
    "clamp": lambda a, b: semantic.clamp(semantic.to_tensor(a), semantic.to_tensor(b), b, tl.PropagateNan.NONE),
    "shift": lambda a, b: semantic.shl(a, b),
    "where": lambda a, b: semantic.where(block("int1", 4), semantic.to_tensor(a), semantic.to_tensor(b)),
    "broadcast": lambda a, b: semantic.broadcast_impl_value(semantic.to_tensor(a), semantic.to_tensor(b))[0],
    "operator": lambda a, b: block("int32", 2, 4) + a if isinstance(a, tl.tensor) else b - a,
}


def block(name: str, *shape: int) -> Any:
    """Values 1, 2, 3, ...; a shape without sizes is a scalar."""
    dtype = tl.pointer_type(getattr(tl, name[1:])) if name.startswith("*") else getattr(tl, name)
    count = math.prod(shape)
    name = "uint64" if name.startswith("*") else name
    values = np.arange(1, count + 1).reshape(shape or (1,))
    stored = {"bfloat16": np.uint16, "int1": np.int8}.get(name, name)
    data = (values.astype(np.float32).view(np.uint32) >> 16).astype(stored) if name == "bfloat16" else None
    data = (values % 2).astype(bool) if name == "int1" else values.astype(stored) if data is None else data
    handle = interpreter.TensorHandle(data, dtype)
    return tl.tensor(handle, tl.block_type(dtype, list(shape)) if shape else dtype)


def outcome(operation: str, a: Any, b: Any) -> Any:
    """The type and bits of a result, or how it failed."""
    try:
        with np.errstate(all="ignore"):
            result = OPERATIONS[operation](a, b)
    except Exception as error:
        return type(error).__name__, str(error)
    data = result.handle.data
    shape = tuple(getattr(size, "value", size) for size in result.shape)
    full = np.broadcast_to(data, shape) if shape else data
    return str(result.type), shape, data.dtype.str, full.tobytes()


@pytest.mark.parametrize("operation", OPERATIONS)
def test_results_are_those_of_the_slow_way(operation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    shapes: list[tuple[int, ...]] = [(), (1,), (2, 4), (2, 1), (1, 4)]
    tensors = [(name, shape) for name in (*TYPES, POINTER) for shape in shapes]
    pairs = [(block(*a[:1], *a[1]), block(*b[:1], *b[1])) for a, b in itertools.product(tensors, repeat=2)]
    for name, shape in tensors:
        pairs += [(block(name, *shape), number) for number in NUMBERS]
        pairs += [(number, block(name, *shape)) for number in NUMBERS]
    found = [outcome(operation, *pair) for pair in pairs]
    for owner, name in QUICK:
        if hasattr(owner, name):  # the oldest Tritons never look at the size of elements
            monkeypatch.setattr(owner, name, getattr(owner, name).__wrapped__)
    wanted = [outcome(operation, *pair) for pair in pairs]
    assert sum(isinstance(each[0], str) and len(each) == 4 for each in wanted) > 400
    for pair, got, right in zip(pairs, found, wanted, strict=True):
        assert got == right, pair


def test_operands_that_fit_are_left_as_they_are() -> None:
    a, b = block("int32", 4), block("int32", 4)
    assert semantic.binary_op_type_checking_impl(a, b) == (a, b)
    _, number = semantic.binary_op_type_checking_impl(a, 3)
    assert number.type == a.type and number.handle.data.size == 1


def test_shapes_that_fit_are_repeated_by_numpy_alone() -> None:
    tall, wide = semantic.binary_op_type_checking_impl(block("int32", 2, 1), block("int32", 1, 4))
    assert str(tall.type) == str(wide.type) == str(block("int32", 2, 4).type)
    assert (tall.handle.data.shape, wide.handle.data.shape) == ((2, 1), (1, 4))
    assert semantic.add(tall, wide, True).handle.data.tolist() == [[2, 3, 4, 5], [3, 4, 5, 6]]


def test_elements_too_wide_for_their_type_are_refused() -> None:
    if not hasattr(interpreter.TensorHandle, "__post_init__"):
        pytest.skip("this Triton never looks at the size of elements")
    with pytest.raises(ValueError, match="exceeds"):
        interpreter.TensorHandle(np.zeros(2, np.int64), tl.int32)
    assert interpreter.TensorHandle(np.zeros(2, np.bool_), tl.int1).data.itemsize == 1


def test_no_operation_is_reached_through_the_layer_that_filters_arguments() -> None:
    owners = (triton.language, tl, tl.tensor, triton.language.math)
    layers = [name for owner in owners for name, value in vars(owner).items() if "member" in _keywords(value)]
    assert not layers
    assert tl.add(block("int32", 4), 3).handle.data.tolist() == [4, 5, 6, 7]
    with pytest.raises(TypeError):
        tl.add(block("int32", 4), 3, unknown=1)


def _keywords(value: Any) -> Any:
    return getattr(value, "__kwdefaults__", None) or ()
