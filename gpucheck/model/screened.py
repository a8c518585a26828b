"""What a screen saw of one datapath on one GPU: how much each multiprocessor ran, and which of them was wrong."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

CHECK = "screen"
"""The check that the cases of a screen name; each is a datapath."""
FOLDER = "screen"
"""The run folder of a screen that a scenario asks for, in the run folder of that scenario."""


@dataclass(frozen=True)
class WrongMultiprocessor:
    """A multiprocessor that gave wrong bits; several tiles share a digest, which is right or wrong as a whole."""

    number: int  # %smid
    wrong: int  # digests that were not the right ones
    digests: int  # that it gave
    bits: list[str] = field(default_factory=list)  # got XOR expected of the first wrong elements, in hexadecimal
    elements: int = 0  # wrong ones of the first wrong digest that was looked at
    temperature: int | None = None  # C, of the GPU when it was first seen; None: not known
    sm_clock: int | None = None  # MHz, likewise


@dataclass(frozen=True)
class Screened:
    """One datapath of one GPU under screen."""

    datapath: str
    tile: str  # what one tile is, in words
    tiles_a_digest: int
    numbers: list[int]  # of the multiprocessors that ran it, ascending
    tiles: list[int]  # that each of them ran, in that order
    multiprocessors: int  # that the GPU has
    seconds: float  # of the GPU
    share: float  # of the time of the screen on this GPU
    rate: float  # achieved, in ``unit`` a second
    unit: str  # "TFLOP", "TOP" or "TB"
    ceiling: float  # of the GPU's data sheet, in the same unit; 0: none is known
    source: str  # who knows the right digests
    gpu: str = ""  # its name
    uuid: str = ""
    bus: str = ""  # PCI address
    architecture: str = ""
    temperature: int | None = None  # C, the highest that was read
    sm_clock: int | None = None  # MHz, the lowest that was read
    waited: float = 0.0  # s that the GPU was left to other processes
    wrong: list[WrongMultiprocessor] = field(default_factory=list)

    @property
    def fewest(self) -> int:
        """Tiles that every multiprocessor ran, at least."""
        return min(self.tiles) if len(self.tiles) == self.multiprocessors else 0

    @classmethod
    def from_json(cls, item: Any) -> Screened | None:
        """As read from a record line; None where it is damaged, and keys of newer versions are left out."""
        try:
            known = {f.name for f in fields(cls)}
            values = {name: value for name, value in item.items() if name in known}
            names = {f.name for f in fields(WrongMultiprocessor)}
            wrong = [{name: each[name] for name in names if name in each} for each in values.get("wrong", [])]
            return cls(**{**values, "wrong": [WrongMultiprocessor(**each) for each in wrong]})
        except (AttributeError, TypeError):
            return None
