"""Dataclasses back from JSON."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from enum import Enum

import pytest

from gpucheck.model.plain import read


class Colour(str, Enum):
    RED = "red"


@dataclass(frozen=True)
class Inner:
    number: int
    colours: tuple[Colour, ...] = ()


@dataclass(frozen=True)
class Outer:
    one: Inner | None
    several: list[Inner] = field(default_factory=list)
    named: dict[str, tuple[Inner, ...]] = field(default_factory=dict)
    size: int | float | str = 0


WHOLE = Outer(Inner(1, (Colour.RED,)), [Inner(2)], {"x": (Inner(3), Inner(4))}, 1.5)


@pytest.mark.parametrize("value", [WHOLE, Outer(None)])
def test_what_json_has_made_of_a_dataclass_is_read_back(value: Outer) -> None:
    again = read(Outer, json.loads(json.dumps(asdict(value))))
    assert again == value and (not again.one or again.one.colours[0] is Colour.RED)


def test_keys_of_another_version_are_left_out_and_may_lack() -> None:
    assert read(Outer, {"one": {"number": 1, "newer": 2}, "newest": 3}) == Outer(Inner(1))


@pytest.mark.parametrize("item", [[], "one", {}, {"one": {}}, {"one": 3}, {"one": {"number": 1, "colours": ["green"]}}])
def test_what_is_no_such_dataclass_is_refused(item: object) -> None:
    with pytest.raises((TypeError, ValueError)):
        read(Outer, item)
