"""A device that does not exist: what Triton and the library's host code ask a driver and ``torch.cuda`` for."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch


class StandInDriver:
    """The part of a Triton driver that host code uses when kernels are interpreted."""

    def __init__(self, capability: tuple[int, int]) -> None:
        from triton.backends.compiler import GPUTarget

        major, minor = capability
        self._target = GPUTarget("cuda", 10 * major + minor, 32)

    def get_current_target(self) -> Any:
        return self._target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int | None = None) -> int:
        return 0

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")


def install(capability: tuple[int, int], sms: int, shared_memory: int) -> None:
    """Activates the driver; stands in for ``torch.cuda`` queries where there is no CUDA."""
    import triton

    triton.runtime.driver.set_active(StandInDriver(capability))
    if torch.cuda.is_available():
        return
    major, minor = capability
    properties = SimpleNamespace(
        name="Triton interpreter",
        major=major,
        minor=minor,
        multi_processor_count=sms,
        shared_memory_per_block_optin=shared_memory,
        warp_size=32,
        L2_cache_size=40 << 20,
        gcnArchName="",
    )
    stand_ins = {
        "get_device_capability": lambda device=None: capability,
        "get_device_properties": lambda device=None: properties,
        "get_device_name": lambda device=None: properties.name,
        "current_device": lambda: 0,
        "current_stream": lambda device=None: SimpleNamespace(cuda_stream=0, device=torch.device("cpu")),
    }
    for name, function in stand_ins.items():
        setattr(torch.cuda, name, function)
