"""The tensors that an object holds, each with the way to it: operands hide in dataclasses, wrappers and closures."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from types import FunctionType, MethodType, ModuleType
from typing import Any

import torch
from torch import Tensor

from gpucheck.library.adapters.base import Adapter

MOST = 20_000  # objects looked into; one that holds more is no operand
FOREIGN = ("builtins", "triton", "torch", "numpy", "threading")  # packages whose objects hold no operands
OURS = "gpucheck.worker"  # what runs the case, not what it is given

Child = tuple[str, Any]
"""How a part is reached from its holder, and the part."""


def tensors_in(name: str, value: Any) -> Iterator[tuple[str, Tensor]]:
    """Each tensor that can be reached from ``value``, once, led by how to get there: ``weight.operand.storage.data``.

    Looks into containers, dataclasses, objects, modules of torch, partial functions and the variables that functions
    keep. Not into classes, Python modules, the adapter of the library, or whatever runs the case.
    """
    seen: set[int] = set()
    left: list[Child] = [(name, value)]
    while left and len(seen) < MOST:
        path, held = left.pop()
        if id(held) in seen or isinstance(held, (type, ModuleType, Adapter)):
            continue
        seen.add(id(held))
        if isinstance(held, Tensor):
            if held.layout is torch.strided:
                yield path, held
            continue
        left += [(_joined(path, step), part) for step, part in reversed(list(_parts(held)))]


def _parts(held: Any) -> Iterable[Child]:
    if isinstance(held, Mapping):
        return [(str(key), part) for key, part in list(held.items())]
    if isinstance(held, (list, tuple, set, frozenset)):
        return [(f"[{number}]", part) for number, part in enumerate(held)]
    if isinstance(held, partial):
        return [("func", held.func), ("args", held.args), ("keywords", held.keywords)]
    if isinstance(held, MethodType):
        return [("", held.__self__)]
    if isinstance(held, FunctionType):
        return _kept_by(held)
    package = type(held).__module__
    if package.startswith(OURS) or (package.partition(".")[0] in FOREIGN and not isinstance(held, torch.nn.Module)):
        return []
    return _attributes(held)


def _kept_by(function: Callable[..., Any]) -> list[Child]:
    """The variables of a function that outlive the call it was made in, and its defaults."""
    assert isinstance(function, FunctionType)
    kept: list[Child] = [("", default) for default in function.__defaults__ or ()]
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            kept.append((name, cell.cell_contents))
        except ValueError:  # not bound yet
            continue
    return kept


def _attributes(held: Any) -> list[Child]:
    slots = [name for kind in type(held).__mro__ for name in _slots(kind)]
    attributes = {name: getattr(held, name) for name in slots if hasattr(held, name)} | getattr(held, "__dict__", {})
    if isinstance(held, torch.nn.Module):  # parameters, buffers and parts by the names that torch has for them
        for inner in ("_parameters", "_buffers", "_modules"):
            attributes |= attributes.pop(inner, {})
    return list(attributes.items())


def _slots(kind: type) -> tuple[str, ...]:
    slots = vars(kind).get("__slots__", ())
    return (slots,) if isinstance(slots, str) else tuple(slots)


def _joined(path: str, step: str) -> str:
    return path + step if step.startswith("[") else ".".join(filter(None, (path, step)))
