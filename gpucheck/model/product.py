"""A product of the library by its operands: what a check calls it, so that cases of several checks can be compared."""

from __future__ import annotations

import re
from dataclasses import dataclass

COUNTED = {"routed": "e", "batched": "b"}
"""Mode -> the letter before how many weights there are; a dense product has one."""
_NAME = re.compile(r"(\w+) (\w+)(?: (dense|batched))? k(\d+)-n(\d+)(?:-[eb](\d+))?")


@dataclass(frozen=True)
class Product:
    """Sizes are numbers of values: the weights are ``count`` matrices of k rows and n columns."""

    weight: str  # format: "mxfp4"
    layout: str  # how mx weights lie in memory: "default" or "strided"
    k: int
    n: int
    count: int = 1  # experts of a routed product, or products of a batched one
    mode: str = "routed"

    @property
    def name(self) -> str:
        """``mxfp4 default k2880-n5760-e32``; modes but the routed one are named: ``mxfp4 strided dense k64-n32``."""
        return f"{self.each}-{COUNTED[self.mode]}{self.count}" if self.mode in COUNTED else self.each

    @property
    def each(self) -> str:
        """The name without how many weights there are."""
        mode = "" if self.mode == "routed" else f"{self.mode} "
        return f"{self.weight} {self.layout} {mode}k{self.k}-n{self.n}"

    @property
    def form(self) -> tuple[str, str, str]:
        """All but the sizes."""
        return self.weight, self.layout, self.mode

    @classmethod
    def parse(cls, name: str) -> Product | None:
        """The product of a name; None where it is none, as of a check of another version."""
        found = _NAME.fullmatch(name)
        if found is None:
            return None
        weight, layout, mode, k, n, count = found.groups()
        return cls(weight, layout, int(k), int(n), int(count or 1), mode or "routed")
