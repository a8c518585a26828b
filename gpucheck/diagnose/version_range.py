"""Ranges of versions as pip writes them, ``>=3.6,<3.8``: enough of PEP 440 for releases of what a run stands on."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable
from typing import Any

_COMPARE: dict[str, Callable[[Any, Any], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    "==": operator.eq,
    "!=": operator.ne,
    ">": operator.gt,
    "<": operator.lt,
}
_CLAUSE = re.compile(r"(>=|<=|==|!=|>|<)\s*(\S+)")
_VERSION = re.compile(r"v?(\d+(?:\.\d+)*)[.-]?(a|b|rc|dev|post)?[.-]?(\d*)", re.IGNORECASE)
_EARLY = {"dev": -4, "a": -3, "b": -2, "rc": -1, "": 0, "post": 1}

Key = tuple[tuple[int, ...], int, int]


def release_key(version: str) -> Key:
    """What versions are compared by: the release without trailing zeros, then pre- or post-release. Local parts go.

    Raises:
        ValueError: no version.
    """
    match = _VERSION.fullmatch(version.strip().partition("+")[0])
    if match is None:
        raise ValueError(f"{version!r} is no version such as 3.6.0, 0.4.2.post1 or 3.8.0rc1")
    numbers = [int(part) for part in match[1].split(".")]
    while len(numbers) > 1 and not numbers[-1]:
        numbers.pop()
    return tuple(numbers), _EARLY[(match[2] or "").lower()], int(match[3] or 0)


def clauses(text: str) -> list[tuple[str, Key]]:
    """The parts of a range.

    Raises:
        ValueError: no range.
    """
    found = [_CLAUSE.fullmatch(part.strip()) for part in text.split(",")]
    if not all(found):
        raise ValueError(f"{text!r} is no range of versions such as >=3.6,<3.8")
    return [(match[1], release_key(match[2])) for match in found if match]


def in_range(version: str, text: str) -> bool:
    """Whether a version lies in a range; one that cannot be read lies in none."""
    try:
        key = release_key(version)
    except ValueError:
        return False
    return all(_COMPARE[sign](key, bound) for sign, bound in clauses(text))
