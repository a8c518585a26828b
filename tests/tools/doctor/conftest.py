"""Stand-in machines: a driver's tool that answers as told, and folders in place of /proc, /dev and /sys."""

from __future__ import annotations

import os
import resource
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from gpucheck.tools.doctor.line import Line
from gpucheck.tools.doctor.machine import Machine

HEALTHY: dict[str, str] = {
    "product_name": "NVIDIA H200",
    "persistence_mode": "Enabled",
    "mig_mode/current_mig": "Disabled",
    "pci/pci_bus_id": "00000000:{number:02X}:00.0",
    "uuid": "GPU-{number:08x}-1111-2222-3333-444444444444",
    "clocks_event_reasons/clocks_event_reason_gpu_idle": "Active",
    "clocks_event_reasons/clocks_event_reason_sw_power_cap": "Not Active",
    "clocks_event_reasons/clocks_event_reason_hw_slowdown": "Not Active",
    "clocks_event_reasons/clocks_event_reason_hw_thermal_slowdown": "Not Active",
    "fb_memory_usage/total": "143771 MiB",
    "fb_memory_usage/reserved": "589 MiB",
    "fb_memory_usage/used": "1 MiB",
    "compute_mode": "Default",
    "ecc_mode/current_ecc": "Enabled",
    "ecc_errors/volatile/sram_correctable": "0",
    "ecc_errors/volatile/sram_uncorrectable_parity": "0",
    "ecc_errors/volatile/dram_correctable": "0",
    "ecc_errors/volatile/dram_uncorrectable": "0",
    "ecc_errors/aggregate/dram_uncorrectable": "0",
    "ecc_errors/aggregate/sram_threshold_exceeded": "No",
    "retired_pages/pending_retirement": "N/A",
    "remapped_rows/remapped_row_pending": "No",
    "remapped_rows/remapped_row_failure": "No",
    "gpu_recovery_action": "None",
    "temperature/gpu_temp": "30 C",
    "temperature/gpu_temp_tlimit": "56 C",
    "clocks/sm_clock": "1980 MHz",
    "max_clocks/sm_clock": "1980 MHz",
    "fabric/state": "Completed",
    "processes": "",
}
"""Elements of a healthy GPU by path, as drivers from 535 on name them."""

OLD: dict[str, str] = {
    "product_name": "Tesla V100-SXM2-32GB",
    "persistence_mode": "Enabled",
    "pci/pci_bus_id": "00000000:{number:02X}:00.0",
    "uuid": "GPU-{number:08x}-0000",
    "clocks_throttle_reasons/clocks_throttle_reason_gpu_idle": "Not Active",
    "clocks_throttle_reasons/clocks_throttle_reason_hw_thermal_slowdown": "Not Active",
    "fb_memory_usage/total": "32510 MiB",
    "fb_memory_usage/used": "0 MiB",
    "compute_mode": "Default",
    "ecc_mode/current_ecc": "Enabled",
    "ecc_errors/volatile/single_bit/device_memory": "0",
    "ecc_errors/volatile/single_bit/total": "0",
    "ecc_errors/volatile/double_bit/device_memory": "0",
    "ecc_errors/volatile/double_bit/total": "0",
    "ecc_errors/aggregate/double_bit/total": "0",
    "retired_pages/pending_blacklist": "No",
    "temperature/gpu_temp": "41 C",
    "temperature/gpu_temp_slow_threshold": "87 C",
    "clocks/sm_clock": "1380 MHz",
    "max_clocks/sm_clock": "1530 MHz",
    "processes": "",
}
"""The same for a driver before 450."""

Changes = Mapping[int, Mapping[str, str]]


def report(count: int, changes: Changes | None = None, base: Mapping[str, str] = HEALTHY, cuda: str = "13.0") -> str:
    """An XML report of ``count`` GPUs; ``changes`` gives other elements, by GPU and path."""
    gpus = ""
    for number in range(count):
        elements = {**base, **(changes or {}).get(number, {})}
        body = _tree([(path.split("/"), text) for path, text in elements.items()]).format(number=number)
        gpus += f'<gpu id="00000000:{number:02X}:00.0">{body}</gpu>\n'
    head = '<?xml version="1.0" ?>\n<!DOCTYPE nvidia_smi_log SYSTEM "nvsmi_device_v12.dtd">\n<nvidia_smi_log>\n'
    facts = f"<driver_version>580.159.04</driver_version><cuda_version>{cuda}</cuda_version>"
    return f"{head}{facts}<attached_gpus>{count}</attached_gpus>\n{gpus}</nvidia_smi_log>\n"


def _tree(items: Sequence[tuple[list[str], str]]) -> str:
    """Nested elements; a path of which others are the parents keeps its place."""
    names = list(dict.fromkeys(path[0] for path, _ in items))
    text = ""
    for name in names:
        inner = [(path[1:], value) for path, value in items if path[0] == name and len(path) > 1]
        leaf = "".join(value for path, value in items if path == [name])
        text += f"<{name}>{leaf}{_tree(inner)}</{name}>"
    return text


class FakeMachine:
    """A stand-in machine: files in a folder, and a nvidia-smi that answers as told."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environ = {"PATH": str(folder / "bin"), "HOME": str(folder / "home")}
        self.extra: dict[str, Any] = {}
        for name in ("bin", "home", "proc/self", "dev/shm", "cgroup"):
            (folder / name).mkdir(parents=True)
        self.write("proc/meminfo", "MemTotal: 67108864 kB\nMemFree: 1 kB\nMemAvailable: 33554432 kB\n")
        self.write("proc/self/mountinfo", "22 1 0:1 / / rw - ext4 /dev/vda rw\n")
        self.limits = {resource.RLIMIT_NOFILE: 65536, resource.RLIMIT_MEMLOCK: resource.RLIM_INFINITY}

    def write(self, path: str, text: str | bytes) -> Path:
        """Writes a file of the machine."""
        file = self.folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(text.encode() if isinstance(text, str) else text)
        return file

    def nvidia_smi(self, text: str, code: int = 0, seconds: float = 0, listing: str = "") -> None:
        """Puts a nvidia-smi on PATH; ``listing`` is what it says to ``-L``."""
        answer, listed = str(self.write("answer", text)), str(self.write("listing", listing))
        script = f"import sys, time\ntime.sleep({seconds})\n"
        script += f"print(open({listed!r} if '-L' in sys.argv else {answer!r}).read(), end='')\n"
        tool = self.write("bin/nvidia-smi", f"#!{sys.executable} -IS\n{script}sys.exit({code})\n")
        tool.chmod(0o755)

    def gpus(self, count: int, changes: Changes | None = None, listing: str = "", **options: Any) -> None:
        """Gives the machine GPUs."""
        self.nvidia_smi(report(count, changes, **options), listing=listing)

    @property
    def machine(self) -> Machine:
        """The machine, as doctor takes it."""
        return Machine(
            **{
                "environ": self.environ,
                "proc": self.folder / "proc",
                "dev": self.folder / "dev",
                "sys": self.folder / "sys",
                "cgroup": self.folder / "cgroup",
                "rlimit": lambda which: (self.limits.get(which, 0),) * 2,
                "statvfs": _roomy,
                "cores": lambda: 64,
                **self.extra,
            }
        )


def space(free: int, size: int = 1 << 40) -> os.statvfs_result:
    """A file system with so many bytes."""
    return os.statvfs_result((1, 1, size, free, free, 0, 0, 0, 0, 255))


def _roomy(_: str) -> os.statvfs_result:
    return space(1 << 36)


@pytest.fixture
def fake(tmp_path: Path) -> FakeMachine:
    """A healthy machine without a GPU."""
    return FakeMachine(tmp_path / "machine")


Only = Callable[..., Line]


@pytest.fixture
def only() -> Only:
    """The single line about a fact, and a subject where one is given."""

    def find(lines: Sequence[Line], fact: str, subject: str | None = None) -> Line:
        (line,) = [line for line in lines if line.fact == fact and subject in (None, line.subject)]
        return line

    return find
