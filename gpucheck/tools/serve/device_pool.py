"""The devices of a service and what each is doing; a device that does not prove itself leaves the pool."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from gpucheck.host.gpu_memory import memory_used
from gpucheck.host.node_gpus import listing
from gpucheck.host.nvidia_smi import table
from gpucheck.host.visible_gpus import VARIABLE, visible
from gpucheck.model.errors import UsageError

CPU = "cpu"


class DeviceState(str, Enum):
    """Whether a device takes work."""

    PROVING = "proving"  # it has not computed an exact product yet, or not since something went wrong on it
    READY = "ready"
    FAILED = "error"  # it has left the pool


@dataclass
class Device:
    """A GPU, or the CPU."""

    number: int  # as clients name it
    name: str
    uuid: str = ""  # "" for the CPU
    memory: int = 0  # bytes
    capability: str = ""  # "9.0"
    state: DeviceState = DeviceState.PROVING
    problem: str = ""  # why it left the pool
    faults: int = 0  # crashes, hangs and exceeded limits since the last reset
    running: dict[str, bool] = field(default_factory=dict)  # task id -> whether times are taken

    @property
    def kind(self) -> str:
        """What ``gpucheck run --device`` takes."""
        return "cuda" if self.uuid else CPU

    def takes(self, timed: bool, share: int) -> bool:
        """Whether an evaluation can start now: one at a time while times are taken, else as many as share it."""
        if self.state is not DeviceState.READY:
            return False
        if timed or any(self.running.values()):
            return not self.running
        return len(self.running) < share

    def facts(self) -> dict[str, Any]:
        """What ``/health`` and ``/gpu_status`` say of it."""
        return {
            "device_id": self.number,
            "name": self.name,
            "uuid": self.uuid,
            "available": self.state is DeviceState.READY and not self.running,
            "status": "healthy" if self.state is DeviceState.READY else self.state.value,
            "total_memory": self.memory,
            "memory_allocated": (memory_used(self.uuid) or 0) if self.uuid else 0,
            "compute_capability": [int(part) for part in self.capability.split(".")] if self.capability else None,
            "busy": len(self.running),
            "fault_count": self.faults,
            **({"error": self.problem} if self.problem else {}),
        }


def asked(option: str) -> str:
    """What an option asks for in the words of ``gpucheck run --device``: auto, cuda or cpu."""
    return option if option in ("auto", CPU) else "cuda"


def find(option: str, kind: str, environ: Mapping[str, str] = os.environ) -> list[Device]:
    """The devices that ``--devices`` names.

    Args:
        option: "auto" for all GPUs, or the CPU where nothing speaks of a GPU; "cpu"; or numbers as CUDA counts them.
        kind: "cuda" or "cpu", what there is to use.

    Raises:
        UsageError: it names something else, or a device twice.
    """
    if kind == CPU:
        return [Device(0, "CPU (Triton's interpreter)")]
    known = _gpus(environ)
    if option == "auto":
        return known
    words = [word.strip() for word in option.split(",")]
    if not all(word.isascii() and word.isdigit() for word in words) or len(set(words)) < len(words):
        raise UsageError(f"--devices is {option!r}, expected auto, cpu, or numbers of GPUs such as 0,1")
    missing = [word for word in words if int(word) >= len(known)]
    if missing:
        raise UsageError(f"--devices names {', '.join(missing)}, and there are {len(known)} GPU(s), counted from 0")
    return [known[int(word)] for word in words]


def _gpus(environ: Mapping[str, str]) -> list[Device]:
    """The GPUs and MIG instances that CUDA shows, in its order."""
    shown = visible(listing(environ)[1].gpus, environ.get(VARIABLE)).devices
    _, rows = table(["uuid", "memory.total", "compute_cap"], environ)
    facts = {row[0]: row[1:] for row in rows}
    found = []
    for number, device in enumerate(shown):
        memory, capability = facts.get(device.gpu.uuid, ["", ""])
        size = _mebibytes(memory.split()) if not device.instance else 0
        found.append(
            Device(number, device.name, device.instance.uuid if device.instance else device.gpu.uuid, size, capability)
        )
    return found


def _mebibytes(words: Sequence[str]) -> int:
    return int(words[0]) << 20 if words and words[0].isdigit() else 0
