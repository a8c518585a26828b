"""From what JSON holds back to the dataclasses that ``dataclasses.asdict`` and ``json`` have made it from."""

from __future__ import annotations

import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from enum import Enum
from functools import cache
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints, is_typeddict

T = TypeVar("T")


def read(kind: type[T], item: Any) -> T:
    """The dataclass whose plain form is given; keys that it does not have, of another version, are left out.

    Raises:
        TypeError: the item is no mapping, or lacks a field without a default.
        ValueError: a word that is no member of an enum.
    """
    if not isinstance(item, Mapping):
        raise TypeError(f"expected a mapping for {kind.__name__}, found {item!r}")
    return kind(**{name: _read(hint, item[name]) for name, hint in _fields(kind).items() if name in item})  # type: ignore[arg-type]


@cache
def _fields(kind: Any) -> dict[str, Any]:
    hints = get_type_hints(kind)
    return {field.name: hints[field.name] for field in fields(kind) if field.init}


def _read(hint: Any, value: Any) -> Any:
    origin, arguments = get_origin(hint), get_args(hint)
    if value is None or hint is Any:
        return value
    if origin in (Union, types.UnionType):
        return _read(arguments[0], value)  # the others are None, or written alike
    if origin in (list, tuple):
        return origin(_read(arguments[0], part) for part in value)
    if origin is dict:
        return {key: _read(arguments[1], part) for key, part in value.items()}
    if is_dataclass(hint):
        return read(hint, value)  # type: ignore[arg-type]
    return hint(value) if isinstance(hint, type) and issubclass(hint, Enum) else value


def misfit(item: Any) -> str:
    """The first field of a dataclass that holds something of another type than it says, in words; "" where all fit."""
    kind: Any = type(item)
    for name, fits in _field_checks(kind):
        value = getattr(item, name)
        if not fits(value):
            parts = value if isinstance(value, (list, tuple)) else (value,)
            inner = next(filter(None, (misfit(part) for part in parts if is_dataclass(part))), "")
            return f"{name}: {inner}" if inner else f"{name} is {_shown(value)}"
    return ""


def matches(hint: Any, value: Any) -> bool:
    """Whether a value is what a type hint says; of hints that this function does not know everything is."""
    return _check_of(hint)(value)


@cache
def _field_checks(kind: Any) -> tuple[tuple[str, Callable[[Any], bool]], ...]:
    hints = get_type_hints(kind)
    return tuple((field.name, _check_of(hints[field.name])) for field in fields(kind))


def _check_of(hint: Any) -> Callable[[Any], bool]:
    """What tells whether a value fits."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        checks = [_check_of(argument) for argument in arguments]
        return lambda value: any(check(value) for check in checks)
    if origin in (list, tuple, Sequence):
        inner = _check_of(arguments[0])
        return lambda value: isinstance(value, (list, tuple)) and all(map(inner, value))
    if origin in (dict, Mapping):
        inner = _check_of(arguments[1])
        return lambda value: isinstance(value, Mapping) and all(map(inner, value.values()))
    if is_typeddict(hint):
        keys = {name: _check_of(kind) for name, kind in get_type_hints(hint).items()}
        return lambda value: (
            isinstance(value, Mapping) and all(check(value[name]) for name, check in keys.items() if name in value)
        )
    if is_dataclass(hint):
        return lambda value: isinstance(value, hint) and not misfit(value)  # type: ignore[arg-type]
    if hint is float:
        return lambda value: isinstance(value, (float, int))
    if hint is Any or not isinstance(hint, type):
        return lambda value: True
    return lambda value: isinstance(value, hint)


def _shown(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= 60 else f"{shown[:57]}..."
