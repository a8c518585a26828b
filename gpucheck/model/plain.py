"""From what JSON holds back to the dataclasses that ``dataclasses.asdict`` and ``json`` have made it from."""

from __future__ import annotations

import types
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from enum import Enum
from functools import cache
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

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
