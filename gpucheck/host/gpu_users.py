"""Which processes have a context on a GPU, asked of NVIDIA's management library within about a millisecond."""

from __future__ import annotations

import ctypes

_TOO_SMALL = 7  # NVML_ERROR_INSUFFICIENT_SIZE of nvml.h
_MOST = 256  # processes that are asked for
_CALLS = (
    "nvmlDeviceGetComputeRunningProcesses_v3",
    "nvmlDeviceGetGraphicsRunningProcesses_v3",
)


class _Process(ctypes.Structure):
    """``nvmlProcessInfo_t`` of nvml.h."""

    _fields_ = [
        ("pid", ctypes.c_uint),
        ("memory", ctypes.c_ulonglong),
        ("gpu_instance", ctypes.c_uint),
        ("compute_instance", ctypes.c_uint),
    ]


class GpuUsers:
    """The processes of one GPU; a container sees those of others only where it shares their process ids or the host's.

    Args:
        uuid: of the GPU.

    Raises:
        OSError: there is no libnvidia-ml.so.1, or it does not know the GPU.
    """

    def __init__(self, uuid: str) -> None:
        self._library = ctypes.CDLL("libnvidia-ml.so.1")
        self._device = ctypes.c_void_p()
        if code := self._library.nvmlInit_v2():
            raise OSError(f"NVML cannot be used, error {code}")
        if code := self._library.nvmlDeviceGetHandleByUUID(uuid.encode(), ctypes.byref(self._device)):
            raise OSError(f"NVML does not know the GPU {uuid}, error {code}")

    def pids(self) -> set[int]:
        """Their process ids.

        Raises:
            OSError: NVML does not tell.
        """
        found: set[int] = set()
        for name in _CALLS:
            processes, count = (_Process * _MOST)(), ctypes.c_uint(_MOST)
            code = getattr(self._library, name)(self._device, ctypes.byref(count), processes)
            if code not in (0, _TOO_SMALL):
                raise OSError(f"NVML does not list the processes of the GPU, error {code}")
            found |= {process.pid for process in processes[: min(count.value, _MOST)]}
        return found
