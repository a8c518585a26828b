"""Memory in use on a GPU, asked of NVIDIA's management library by ctypes: no process is started and no context made.

Source: nvml.h of CUDA: nvmlInit_v2, nvmlDeviceGetHandleByUUID, nvmlDeviceGetMemoryInfo.
"""

from __future__ import annotations

import ctypes
from functools import cache


class _Memory(ctypes.Structure):
    _fields_ = [("total", ctypes.c_ulonglong), ("free", ctypes.c_ulonglong), ("used", ctypes.c_ulonglong)]


@cache
def _library() -> ctypes.CDLL | None:
    try:
        library = ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        return None
    return None if library.nvmlInit_v2() else library


def memory_used(uuid: str) -> int | None:
    """Bytes in use on the GPU, or MIG instance, of a UUID; None where the library or the GPU does not say."""
    library, handle, memory = _library(), ctypes.c_void_p(), _Memory()
    if library is None or library.nvmlDeviceGetHandleByUUID(uuid.encode(), ctypes.byref(handle)):
        return None
    if library.nvmlDeviceGetMemoryInfo(handle, ctypes.byref(memory)):
        return None
    return int(memory.used)
