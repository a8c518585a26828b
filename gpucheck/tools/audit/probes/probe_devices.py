"""Pairs of stand-in devices that differ in all that host code asks for, and how to be on one of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from gpucheck.triton_hooks.interpreter import stand_in_driver
from gpucheck.triton_hooks.interpreter.stand_in_driver import StandInDevice, StandInDriver

HOPPER = StandInDevice((9, 0), 132, 232_448)
PAIRS = (
    (HOPPER, StandInDevice((10, 0), 148, 233_472)),
    (StandInDevice((8, 0), 108, 166_912), HOPPER),
    (StandInDevice((9, 4), 304, 65_536, amd="gfx942"), StandInDevice((9, 5), 256, 163_840, amd="gfx950")),
    (StandInDevice((11, 0), 96, 65_536, amd="gfx1100"), StandInDevice((12, 0), 64, 65_536, amd="gfx1201")),
    (StandInDevice((9, 5), 256, 163_840, amd="gfx950"), StandInDevice((12, 5), 256, 327_680, amd="gfx1250")),
)
"""Host code that looks at an architecture answers differently on the two devices of at least one pair."""


@contextmanager
def two_devices(pair: tuple[StandInDevice, StandInDevice]) -> Iterator[StandInDriver]:
    """Two devices for as long as it lasts, which torch calls available; device 0 is current at first."""
    available = torch.cuda.is_available
    torch.cuda.is_available = lambda: False  # lets the stand-in answer, also where it is nested
    current = stand_in_driver.install(*pair)
    torch.cuda.is_available = lambda: True
    try:
        yield current
    finally:
        torch.cuda.is_available = available
