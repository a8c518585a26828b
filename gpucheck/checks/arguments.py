"""Arguments of a problem's models as tensors alone, so that they can be stored, guarded and given to another process.

Whatever ``get_inputs`` and ``get_init_inputs`` return keeps its form: lists, tuples, dictionaries, in one another. The
tensors are numbered in their order; the rest is one more tensor, the bytes of a text that says where each tensor goes.
"""

from __future__ import annotations

import ast
import cmath
import inspect
import pickle
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from gpucheck.model.errors import UsageError

LITERAL = ".literal"
PLAIN = (type(None), bool, int, float, complex, str, bytes)
Packed = dict[str, Tensor]


def pack(prefix: str, values: Any, module: str = "") -> Packed:
    """What a function of a problem returned: tensors ``prefix0``, ``prefix1``, ... and the text of its form.

    Args:
        module: name of the problem's module, whose own classes no candidate's process can make.

    Raises:
        UsageError: a part of it can neither be stored nor judged.
    """
    packed: Packed = {}
    form = _form(values, prefix, packed, module, "")
    packed[prefix + LITERAL] = torch.frombuffer(bytearray(repr(form).encode()), dtype=torch.uint8)
    return packed


def unpack(prefix: str, inputs: Mapping[str, Tensor]) -> Any:
    """What :func:`pack` was given, with tensors as they are in ``inputs``; an empty list where there is nothing."""
    text = inputs.get(prefix + LITERAL)
    return [] if text is None else _value(ast.literal_eval(bytes(text.tolist()).decode()), prefix, inputs)


def tensors(prefix: str, inputs: Mapping[str, Tensor]) -> Packed:
    """The tensors that :func:`pack` numbered, without the text of their form."""
    return {name: inputs[name] for number in range(len(inputs)) if (name := f"{prefix}{number}") in inputs}


def call(function: Callable[..., Any], values: Any) -> Any:
    """Calls a function with what ``get_inputs`` or ``get_init_inputs`` returned.

    A list or tuple holds its positions, a mapping its keywords, ``[[...], {...}]`` both where the
    function takes these; None is nothing, and any other value is the only argument.
    """
    positions, keywords = _positions(function, values)
    return function(*positions, **keywords)


def _positions(function: Callable[..., Any], values: Any) -> tuple[Sequence[Any], Mapping[str, Any]]:
    if values is None:
        return (), {}
    if isinstance(values, Mapping):
        return (), values
    if not isinstance(values, (list, tuple)):
        return (values,), {}
    both = len(values) == 2 and isinstance(values[0], (list, tuple)) and _keywords(values[1])
    if both and (values[1] or not values[0]) and _binds(function, *values):
        return values[0], values[1]
    return values, {}


def _keywords(value: Any) -> bool:
    return isinstance(value, Mapping) and all(isinstance(name, str) for name in value)


def _binds(function: Callable[..., Any], positions: Sequence[Any], keywords: Mapping[str, Any]) -> bool:
    try:
        inspect.signature(function).bind(*positions, **keywords)
    except (TypeError, ValueError):
        return False
    return True


def _form(value: Any, prefix: str, packed: Packed, module: str, where: str) -> Any:
    """The form of a value in plain words; its tensors are added to ``packed``."""
    if isinstance(value, Tensor):
        packed[name := f"{prefix}{len(packed)}"] = _stored(value, f"{prefix} {where}".rstrip())
        return "tensor", int(name.removeprefix(prefix))
    if type(value) in PLAIN and (not isinstance(value, (float, complex)) or cmath.isfinite(value)):
        return "plain", value
    if type(value) in (list, tuple):
        return type(value).__name__, [
            _form(part, prefix, packed, module, _within(where, number)) for number, part in enumerate(value)
        ]
    if type(value) is dict:
        parts = [(key, _form(part, prefix, packed, module, _within(where, key))) for key, part in value.items()]
        if all(type(key) in PLAIN for key in value):
            return "dict", parts
    try:
        content = pickle.dumps(value, protocol=4)
        pickle.loads(content)
    except Exception:
        content = b""
    if not content or (module and module.encode() in content):
        kind = type(value).__name__
        raise UsageError(
            f"{prefix} {where or 0} of the problem is a {kind}, expected tensors, plain Python values, or objects that "
            "can be pickled without the problem's own classes"
        )
    return "pickle", content


def _within(where: str, key: Any) -> str:
    return f"{where}.{key}" if where else str(key)


def _stored(value: Tensor, where: str) -> Tensor:
    if value.device.type not in ("cpu", "cuda"):
        raise UsageError(f"{where} of the problem lies on {value.device}, expected the CPU or a GPU")
    if value.layout is not torch.strided or value.is_quantized:
        kind = "quantized" if value.is_quantized else str(value.layout).removeprefix("torch.")
        raise UsageError(f"{where} of the problem is a {kind} tensor; dense ones can be judged")
    if value.is_complex():
        raise UsageError(f"{where} of the problem is {value.dtype}; complex numbers cannot be judged: give their parts")
    return value.detach()


def _value(form: Any, prefix: str, inputs: Mapping[str, Tensor]) -> Any:
    kind, content = form
    if kind == "tensor":
        return inputs[f"{prefix}{content}"]
    if kind == "plain":
        return content
    if kind == "pickle":
        return pickle.loads(content)
    if kind == "dict":
        return {key: _value(part, prefix, inputs) for key, part in content}
    parts = [_value(part, prefix, inputs) for part in content]
    return tuple(parts) if kind == "tuple" else parts
