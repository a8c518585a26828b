"""Devices that do not exist: what Triton and the library's host code ask a driver and ``torch.cuda`` for."""

from __future__ import annotations

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
            name="Triton interpreter",
            major=major,
            minor=minor,
            multi_processor_count=self.sms,
            shared_memory_per_block_optin=self.shared_memory,
            warp_size=64 if self.amd else 32,
            L2_cache_size=40 << 20,
            gcnArchName=self.amd,
        )


class StandInDriver:
    """The part of a Triton driver that host code uses when kernels are interpreted."""

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

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")


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
