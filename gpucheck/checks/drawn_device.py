"""Where the code of a problem makes its tensors: on the device of whoever runs it, whatever device it names itself."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import cache
from types import ModuleType
from typing import Any

import torch
from torch.overrides import TorchFunctionMode


@contextmanager
def redirected(device: str | torch.device) -> Iterator[None]:
    """Inside, what is made without a device, or on a GPU, is made on ``device``: pairs that name a GPU run without."""
    with _Redirected(torch.device(device)):
        yield


@contextmanager
def without_numbers(*, briefly: bool = True) -> Iterator[None]:
    """Inside, what is made has sizes and no memory.

    Args:
        briefly: without what torch loads to reason about sizes that are not known, which takes a second: here all are.
            Where torch asks for more of it than there is a stand-in for, it raises.
    """
    with redirected("meta"), _stand_ins() if briefly else nullcontext():
        yield


@contextmanager
def _stand_ins() -> Iterator[None]:
    """Inside, modules that torch loads are such as do for known sizes, unless they are loaded already."""
    left_alone: list[Any] = []

    def disable(function: Any, *_: Any, **__: Any) -> Any:
        left_alone.append(function)
        return function

    def true(value: Any) -> bool:
        return bool(value)

    known: dict[str, Any] = dict.fromkeys(
        ("expect_true", "guard_or_false", "guard_or_true", "guard_size_oblivious"), true
    )
    known |= {"statically_known_true": true, "guard_int": lambda value: int(value), "is_nested_int": lambda _: False}
    known |= {"has_guarding_hint": lambda _: True, "guarding_hint_or_throw": lambda value: value}
    known |= {"sym_and": lambda *each: all(each), "sym_or": lambda *each: any(each), "sym_eq": lambda x, y: x == y}
    stand_ins = {
        "torch._dynamo": {"disable": disable},
        "torch.fx.experimental.symbolic_shapes": known,
        "sympy": {name: type(name, (), {}) for name in ("Basic", "Integer", "Float")},
    }
    before = set(sys.modules)
    for name in stand_ins.keys() - before:
        sys.modules[name] = ModuleType(name)
        vars(sys.modules[name]).update(stand_ins[name])
    try:
        yield
    finally:
        ours = {id(value) for each in stand_ins.values() for value in each.values()}
        for name in set(sys.modules) - before:  # and whatever was loaded meanwhile and took hold of one
            if any(id(value) in ours for value in vars(sys.modules[name]).values()):
                del sys.modules[name]
        for function in left_alone:  # where torch keeps what it was told
            vars(function).pop("__dynamo_disable", None)


class _Redirected(TorchFunctionMode):
    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self._device = device

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.Tensor.cuda:
            return args[0].to(self._device)
        named = kwargs.get("device")
        if _names_gpu(named) or (named is None and func in _makers()):
            kwargs["device"] = self._device
        if func is torch.Tensor.to:
            args = tuple(self._device if _names_gpu(value) else value for value in args)
        return func(*args, **kwargs)


def _names_gpu(value: Any) -> bool:
    if isinstance(value, str):
        return value.partition(":")[0] == "cuda"
    return isinstance(value, torch.device) and value.type == "cuda"


@cache
def _makers() -> frozenset[Any]:
    """The functions of torch that make a tensor and take a device."""
    from torch.utils._device import _device_constructors

    return frozenset(_device_constructors())
