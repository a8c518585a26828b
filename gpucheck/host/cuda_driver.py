"""Questions to the CUDA driver that create no context and change no current device, which torch's own calls may."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from functools import cache
from uuid import UUID

_CAPABILITY_MAJOR, _CAPABILITY_MINOR, _SMS, _SHARED_MEMORY = 75, 76, 16, 97  # CUdevice_attribute in cuda.h


@dataclass(frozen=True)
class Gpu:
    """What the driver says of a GPU."""

    name: str
    capability: tuple[int, int]
    sms: int  # multiprocessors
    shared_memory: int  # bytes that a block may use when it asks for them


@cache
def _library() -> ctypes.CDLL | None:
    try:
        return ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None


class SharedMemory(ctypes.Structure):
    """A handle by which another process opens memory of a GPU."""

    _fields_ = (("reserved", ctypes.c_char * 64),)


def share(size: int) -> tuple[int, bytes]:
    """Memory on the device of this thread's context, which lives as long as this process; its address and handle.

    Raises:
        OSError: there is not so much, or the driver shares none.
    """
    driver, address, handle = _library(), ctypes.c_uint64(), SharedMemory()
    if driver is None:
        raise OSError("there is no CUDA driver")
    _require(driver.cuMemAlloc_v2(ctypes.byref(address), ctypes.c_size_t(size)), f"no {size} bytes")
    _require(driver.cuIpcGetMemHandle(ctypes.byref(handle), address), "memory is not shared")
    return address.value, bytes(handle)


def free(address: int) -> None:
    """Gives memory of :func:`share` back."""
    driver = _library()
    if driver is not None:
        driver.cuMemFree_v2(ctypes.c_uint64(address))


def open_shared(handle: bytes) -> int:
    """The address here of memory that another process shares.

    Raises:
        OSError: it cannot be opened.
    """
    driver, address = _library(), ctypes.c_uint64()
    if driver is None:
        raise OSError("there is no CUDA driver")
    held = SharedMemory.from_buffer_copy(handle)
    _require(driver.cuIpcOpenMemHandle_v2(ctypes.byref(address), held, ctypes.c_uint(1)), "memory cannot be opened")
    return address.value


def _require(code: int, words: str) -> None:
    if code:
        raise OSError(f"the CUDA driver answers {code}: {words}")


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


def identity(number: int) -> tuple[str, str]:
    """UUID and PCI address of a GPU, by its number among those that are visible; "" for what is not to be had.

    The UUID is written as by nvidia-smi, but without the word GPU or MIG ahead of it: of a MIG instance it is its own.
    """
    driver, device = _library(), ctypes.c_int()
    if driver is None or driver.cuInit(0) or driver.cuDeviceGet(ctypes.byref(device), number):
        return "", ""
    raw, bus = ctypes.create_string_buffer(16), ctypes.create_string_buffer(32)
    known = getattr(driver, "cuDeviceGetUuid_v2", None) or driver.cuDeviceGetUuid  # the former since CUDA 11.4
    uuid = "" if known(raw, device) else str(UUID(bytes=raw.raw))
    return uuid, "" if driver.cuDeviceGetPCIBusId(bus, len(bus), device) else bus.value.decode()


def gpu(number: int) -> Gpu | None:
    """The GPU of a number among those that are visible; None without it, or without a driver."""
    driver, device, value, name = _library(), ctypes.c_int(), ctypes.c_int(), ctypes.create_string_buffer(256)
    if driver is None or driver.cuInit(0) or driver.cuDeviceGet(ctypes.byref(device), number):
        return None
    driver.cuDeviceGetName(name, len(name), device)
    found = []
    for attribute in (_CAPABILITY_MAJOR, _CAPABILITY_MINOR, _SMS, _SHARED_MEMORY):
        if driver.cuDeviceGetAttribute(ctypes.byref(value), attribute, device):
            return None
        found.append(value.value)
    major, minor, sms, shared_memory = found
    return Gpu(name.value.decode(), (major, minor), sms, shared_memory)
