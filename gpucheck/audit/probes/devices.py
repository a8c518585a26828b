"""Pairs of stand-in devices that differ in all that host code asks for, and how to be on one of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from gpucheck.interpreter import driver
from gpucheck.interpreter.driver import StandInDevice, StandInDriver

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
    current = driver.install(*pair)
    torch.cuda.is_available = lambda: True
    try:
        yield current
    finally:
        torch.cuda.is_available = available


@contextmanager
def watched_guards(current: StandInDriver) -> Iterator[None]:
    """Makes ``torch.cuda.device`` and its like move the stand-in driver; tensors stand for ones on device 1."""

    def index(device: Any) -> int:
        """The device a guard names; that of the tensors where it names the CPU, on which they really are."""
        if isinstance(device, torch.Tensor):
            device = device.device
        if isinstance(device, (str, torch.device)):
            named = torch.device(device)
            return 1 if named.type == "cpu" or named.index is None else named.index
        return int(device)

    class Guard:
        def __init__(self, device: Any) -> None:
            self.device = index(device)

        def __enter__(self) -> None:
            self.before, current.current = current.current, self.device

        def __exit__(self, *_: object) -> None:
            current.current = self.before

    def set_device(device: Any) -> None:
        current.current = index(device)

    stand_ins = {"device": Guard, "device_of": Guard, "set_device": set_device}
    saved = {name: getattr(torch.cuda, name) for name in stand_ins}
    for name, stand_in in stand_ins.items():
        setattr(torch.cuda, name, stand_in)
    try:
        yield
    finally:
        for name, original in saved.items():
            setattr(torch.cuda, name, original)
