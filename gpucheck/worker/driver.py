"""Questions to the CUDA driver that create no context and change no current device, which torch's own calls may."""

from __future__ import annotations

import ctypes
from functools import cache


@cache
def _library() -> ctypes.CDLL | None:
    try:
        return ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None


def context_device() -> int | None:
    """The device of the context that is current in this thread; None without one, or without a driver."""
    driver, device = _library(), ctypes.c_int()
    if driver is None or driver.cuCtxGetDevice(ctypes.byref(device)):
        return None
    return device.value


def has_context(device: int) -> bool:
    """Whether this process has a primary context on a device."""
    driver, flags, active = _library(), ctypes.c_uint(), ctypes.c_int()
    if driver is None or driver.cuDevicePrimaryCtxGetState(device, ctypes.byref(flags), ctypes.byref(active)):
        return False
    return bool(active.value)
