"""A case: one check with concrete parameters, data kind and seed, and the stable id people read and type."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

Scalar = int | float | bool | str

DATA_KINDS = ("exact", "normal", "wide")
"""exact: sums cannot round; normal: standard normal values; wide: the ends of the formats, NaN and Inf."""
USUAL_DATA = ("exact", "normal")
"""The data kinds of a scenario that names none."""


@dataclass(frozen=True)
class Param:
    """One parameter of a check, as a scenario may set it."""

    name: str
    default: Scalar
    help: str
    choices: tuple[Scalar, ...] = ()
    label: str = ""  # how the id shows it: "" a path segment (strings) or the name; else the prefix of the value

    def accepts(self, value: object) -> bool:
        """Whether ``value`` has the type of the default and is one of the choices."""
        if isinstance(self.default, bool) or isinstance(value, bool):
            typed = isinstance(value, bool) and isinstance(self.default, bool)
        elif isinstance(self.default, float):
            typed = isinstance(value, (int, float)) and math.isfinite(value)
        else:
            typed = isinstance(value, type(self.default))
        return typed and (not self.choices or value in self.choices)

    def expected(self) -> str:
        """What :meth:`accepts` takes, in words."""
        if self.choices:
            return "one of " + ", ".join(str(choice) for choice in self.choices)
        return {bool: "true or false", int: "a whole number", float: "a number", str: "a string"}[type(self.default)]


def with_defaults(params: Iterable[Param], **defaults: Scalar) -> tuple[Param, ...]:
    """The same parameters, some with other defaults."""
    return tuple(replace(param, default=defaults.get(param.name, param.default)) for param in params)


@dataclass(frozen=True)
class Case:
    """A check with everything that determines its inputs and its launch."""

    check: str
    params: Mapping[str, Scalar]  # every parameter of the check, defaults filled in
    data: str  # one of DATA_KINDS
    id: str
    row: str  # the row of the report's matrix the case counts in
    seed: int  # of the run; the inputs come from seed and id
    rank: int = 0  # whose part of a joint case it is; not in the id, and not in ``plan.json``
    ranks: int = 0  # that run it together; 0: each rank runs the case by itself

    def __getitem__(self, name: str) -> Any:
        return self.params[name]

    @property
    def input_seed(self) -> int:
        """Seed of the inputs: 63 bits of a hash of run seed and id, so cases do not share data by accident."""
        digest = hashlib.blake2b(f"{self.seed}:{self.id}".encode(), digest_size=8).digest()
        return int.from_bytes(digest, "big") >> 1

    def at(self, rank: int, ranks: int) -> Case:
        """The part of one rank in a case that ranks run together."""
        return replace(self, rank=rank, ranks=ranks)

    def to_json(self) -> dict[str, Any]:
        """The plain form written to ``plan.json``."""
        return {
            "id": self.id,
            "check": self.check,
            "row": self.row,
            "params": dict(self.params),
            "data": self.data,
            "seed": self.seed,
        }

    @classmethod
    def from_json(cls, item: Mapping[str, Any]) -> Case:
        """The case that :meth:`to_json` wrote."""
        return cls(item["check"], dict(item["params"]), item["data"], item["id"], item["row"], item["seed"])


@dataclass(frozen=True)
class CheckSpec:
    """What a check is called and takes; known without importing torch."""

    name: str
    summary: str
    params: tuple[Param, ...]
    data_kinds: tuple[str, ...] = USUAL_DATA
    rows: tuple[str, ...] = ()  # parameters whose values split the check into rows of the report's matrix
    sizes: tuple[str, ...] = ()  # parameters that must be at least 1
    defaults: Mapping[str, Scalar] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "defaults", {param.name: param.default for param in self.params})

    @property
    def usual_data(self) -> tuple[str, ...]:
        """The data kinds that a scenario gets if it names none."""
        return tuple(kind for kind in self.data_kinds if kind in USUAL_DATA)

    def too_small(self, params: Mapping[str, Any]) -> str | None:
        """Which size is less than 1, in words, or None."""
        return next((f"{name} must be at least 1, not {params[name]}" for name in self.sizes if params[name] < 1), None)

    def case(self, params: Mapping[str, Scalar], data: str, seed: int) -> Case:
        """The case of these parameters; missing ones take their defaults."""
        whole = {**self.defaults, **params}
        row = " ".join([self.name, *(str(whole[name]) for name in self.rows)])
        return Case(self.name, whole, data, self.case_id(whole, data), row, seed)

    def case_id(self, params: Mapping[str, Scalar], data: str) -> str:
        """``check/segment/.../a64-b128-flag/data``; only sizes show at their default."""
        segments, numbers = [self.name], []
        for param in self.params:
            value = params[param.name]
            if isinstance(value, str) and not param.label:
                segments.append(value)
            elif isinstance(value, bool):
                if value != param.default:
                    numbers.append(param.label or param.name if value else f"no{param.label or param.name}")
            elif isinstance(value, (int, float)) and not isinstance(param.default, bool):
                if value != param.default or (param.label and isinstance(param.default, int) and param.default > 0):
                    text = repr(value).removesuffix(".0")
                    numbers.append(f"{param.label or param.name}{text}")
            elif value != param.default:
                numbers.append(f"{param.label}{value}")
        if numbers:
            segments.append("-".join(numbers))
        return "/".join([*segments, data])
