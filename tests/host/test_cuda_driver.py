"""Which GPU a number names, from a library that stands in for the driver's."""

from __future__ import annotations

import ctypes
from typing import Any

import pytest

from gpucheck.host import cuda_driver

UUID = bytes.fromhex("0badc0de112233445566778899aabbcc")


class Driver:
    """Two GPUs; the first is a MIG instance, which the older question does not tell from its GPU."""

    def cuInit(self, flags: int) -> int:
        return 0

    def cuDeviceGet(self, device: Any, number: int) -> int:
        device._obj.value = number + 10
        return 0 if number < 2 else 101

    def cuDeviceGetUuid(self, raw: Any, device: Any) -> int:
        ctypes.memmove(raw, UUID, 16)
        return 0 if device.value == 11 else 1

    def cuDeviceGetPCIBusId(self, text: Any, size: int, device: Any) -> int:
        text.value = b"0000:3B:00.0"
        return 0 if size >= 13 else 1


def test_a_gpu_is_told_by_uuid_and_address_as_nvidia_smi_writes_them(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = Driver()
    monkeypatch.setattr(cuda_driver, "_library", lambda: driver)
    assert cuda_driver.identity(1) == ("0badc0de-1122-3344-5566-778899aabbcc", "0000:3B:00.0")
    assert cuda_driver.identity(0) == ("", "0000:3B:00.0")
    assert cuda_driver.identity(7) == ("", "")
    driver.cuDeviceGetUuid_v2 = lambda raw, device: int(ctypes.memmove(raw, bytes(16), 16) is None)  # type: ignore[attr-defined]
    assert cuda_driver.identity(0)[0] == "00000000-0000-0000-0000-000000000000"
    monkeypatch.setattr(cuda_driver, "_library", lambda: None)
    assert cuda_driver.identity(0) == ("", "")
