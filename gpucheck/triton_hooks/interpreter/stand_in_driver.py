"""Devices that do not exist: what Triton and the library's host code ask a driver and ``torch.cuda`` for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch


@dataclass(frozen=True)
class StandInDevice:
    """What a device says of itself."""

    capability: tuple[int, int]
    sms: int  # multiprocessors
    shared_memory: int  # bytes a block may use
    amd: str = ""  # architecture of an AMD device, for example "gfx942"; such a device has no capability to speak of
    name: str = "Triton interpreter"

    @property
    def target(self) -> Any:
        """What Triton compiles for."""
        from triton.backends.compiler import GPUTarget

        major, minor = self.capability
        return GPUTarget("hip", self.amd, 64) if self.amd else GPUTarget("cuda", 10 * major + minor, 32)

    @property
    def properties(self) -> Any:
        """As ``torch.cuda.get_device_properties`` gives them."""
        major, minor = self.capability
        return SimpleNamespace(
            name=self.name,
            major=major,
            minor=minor,
            multi_processor_count=self.sms,
            shared_memory_per_block_optin=self.shared_memory,
            warp_size=64 if self.amd else 32,
            L2_cache_size=40 << 20,
            gcnArchName=self.amd,
        )


class StandInDriver:
    """The part of a Triton driver that host code and the compiler use where no kernel is launched on a device."""

    def __init__(self, *devices: StandInDevice) -> None:
        self.devices = devices
        self.current = 0

    def device(self, device: Any = None) -> StandInDevice:
        """The device that an argument in torch's manner names; None and a device without an index: the current one."""
        index = torch.device(device).index if isinstance(device, str) else getattr(device, "index", device)
        return self.devices[self.current if index is None else index]

    def get_current_target(self) -> Any:
        return self.devices[self.current].target

    def get_current_device(self) -> int:
        return self.current

    def set_current_device(self, device: int) -> None:
        self.current = device

    def get_current_stream(self, device: int | None = None) -> int:
        return 0

    @property
    def utils(self) -> Any:
        """What kernels' host code asks of Triton's own module for the driver."""

        def properties(device: int) -> dict[str, int]:
            stand_in = self.devices[device]
            return {
                "max_shared_mem": stand_in.shared_memory,
                "multiprocessor_count": stand_in.sms,
                "warpSize": stand_in.properties.warp_size,
            }

        return SimpleNamespace(get_device_properties=properties)

    def get_benchmarker(self) -> Any:
        """What an autotuner measures with."""
        return measured

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")


def measured(call: Callable[[], Any], *_: Any, quantiles: Sequence[float] | None = None, **__: Any) -> Any:
    """Stands in for Triton's benchmarks: calls once and says that it took no time, so that a tuner takes the first."""
    call()
    return 0.0 if quantiles is None else [0.0] * len(quantiles)


def install(*devices: StandInDevice) -> StandInDriver:
    """Activates a driver of these devices; stands in for ``torch.cuda`` queries where there is no CUDA."""
    import triton

    driver = StandInDriver(*devices)
    triton.runtime.driver.set_active(driver)
    if torch.cuda.is_available():
        return driver
    stand_ins = {
        "get_device_capability": lambda device=None: driver.device(device).capability,
        "get_device_properties": lambda device=None: driver.device(device).properties,
        "get_device_name": lambda device=None: driver.device(device).properties.name,
        "current_device": driver.get_current_device,
        "current_stream": lambda device=None: SimpleNamespace(cuda_stream=0, device=torch.device("cpu")),
    }
    for name, function in stand_ins.items():
        setattr(torch.cuda, name, function)
    return driver


@contextmanager
def watched_guards(current: StandInDriver, home: int) -> Iterator[None]:
    """Makes ``torch.cuda.device`` and its like move the stand-in driver.

    Args:
        home: the device that tensors on the CPU, where all of them really are, stand for ones of.
    """

    def index(device: Any) -> int:
        """The device a guard names; that of the tensors where it names the CPU."""
        if isinstance(device, torch.Tensor):
            device = device.device
        if isinstance(device, (str, torch.device)):
            named = torch.device(device)
            return home if named.type == "cpu" or named.index is None else named.index
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
