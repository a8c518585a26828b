"""Which GPUs CUDA_VISIBLE_DEVICES leaves to a process: the one reader of that variable.

CUDA takes its entries in their order: numbers, UUIDs or heads of UUIDs that name one GPU, and UUIDs of MIG instances.
An entry that names nothing hides itself and all entries behind it without a word, so what is wrong with one is told
here by name. Source: CUDA programming guide, environment variables; MIG user guide, device enumeration.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

VARIABLE = "CUDA_VISIBLE_DEVICES"
HIDES_ALL = ("", "-1")
"""Values that hide every GPU on purpose."""

_GPU = re.compile(r"GPU (\d+): (.*) \(UUID: (.+)\)$")
_INSTANCE = re.compile(r"MIG (\S+)\s+Device\s+\d+: \(UUID: (MIG-.+)\)$")
_OLD_INSTANCE = re.compile(r"MIG-(GPU-[^/]+)/(\d+)/(\d+)")


@dataclass(frozen=True)
class Instance:
    """A MIG instance of a GPU."""

    profile: str  # "3g.71gb"
    uuid: str  # "MIG-<uuid>", from drivers before 470 "MIG-GPU-<uuid>/<GPU instance>/<compute instance>"


@dataclass(frozen=True)
class Gpu:
    """A GPU as nvidia-smi lists it."""

    index: str  # nvidia-smi's number
    uuid: str
    name: str = ""
    instances: tuple[Instance, ...] = ()  # not empty: MIG is on, and CUDA shows these in place of the GPU


@dataclass(frozen=True)
class Listing:
    """What ``nvidia-smi -L`` says."""

    gpus: tuple[Gpu, ...]
    remarks: tuple[str, ...] = ()  # its other lines: warnings, and errors of GPUs that it cannot list


@dataclass(frozen=True)
class Device:
    """What CUDA shows a process as one device."""

    gpu: Gpu
    instance: Instance | None = None

    @property
    def name(self) -> str:
        """``NVIDIA H200``, ``NVIDIA H200 MIG 3g.71gb``."""
        return self.gpu.name + (f" MIG {self.instance.profile}" if self.instance else "")

    @property
    def words(self) -> str:
        """``GPU 0``, ``MIG instance 3g.71gb of GPU 0 (MIG-...)``."""
        gpu = f"GPU {self.gpu.index}"
        return f"MIG instance {self.instance.profile} of {gpu} ({self.instance.uuid})" if self.instance else gpu


@dataclass(frozen=True)
class Visible:
    """What a value of the variable leaves."""

    devices: tuple[Device, ...]  # in the order CUDA counts them
    problem: str = ""  # what is wrong with an entry, with the variable and the entry
    advice: str = ""  # what to do about it
    hides_all: bool = False  # the value hides every GPU on purpose


def parse_listing(text: str) -> Listing:
    """Reads the answer of ``nvidia-smi -L``."""
    gpus: list[Gpu] = []
    remarks: list[str] = []
    for line in (line.strip() for line in text.splitlines()):
        if match := _GPU.match(line):
            gpus.append(Gpu(match[1], match[3], match[2]))
        elif gpus and (match := _INSTANCE.match(line)):
            last = gpus[-1]
            found = (*last.instances, Instance(match[1], match[2]))
            gpus[-1] = Gpu(last.index, last.uuid, last.name, found)
        elif line:
            remarks.append(line)
    return Listing(tuple(gpus), tuple(remarks))


def entries(value: str) -> list[str]:
    """The entries of a value; commas behind the last one mean nothing."""
    return [entry.strip() for entry in value.strip().rstrip(", ").split(",")]


def visible(gpus: Sequence[Gpu], value: str | None) -> Visible:
    """The devices that a value of CUDA_VISIBLE_DEVICES leaves.

    Args:
        gpus: all that nvidia-smi lists, with their MIG instances.
        value: None where the variable is not set.
    """
    if value is None:
        return Visible(_shown([Device(gpu) for gpu in gpus]))
    if value.strip() in HIDES_ALL:
        return Visible((), hides_all=True)
    devices: list[Device] = []
    for number, entry in enumerate(entries(value)):
        found = _named(gpus, entry)
        if isinstance(found, Device) and found in devices:
            first = entries(value)[devices.index(found)]
            twice = f"entry {entry!r}" + (f" names {found.words} again" if entry == first else f" is {first!r} again")
            return _refused((), value, twice, "name each GPU once: CUDA shows none of them otherwise")
        if isinstance(found, str):
            behind = "; CUDA hides it and every entry behind it" if number + 1 < len(entries(value)) else ""
            return _refused(_shown(devices), value, f"entry {entry!r} {found}{behind}", _advice(gpus, entry))
        devices.append(found)
    shown = _shown(devices)
    if len(shown) < len(devices):
        several = f"names {len(devices)} devices, {shown[0].words} among them" if shown else "names no MIG instance"
        return _refused(shown, value, several, "CUDA shows a process one MIG instance: name one, and run one rank")
    return Visible(shown)


def alone(value: str | None, place: int) -> str:
    """The value that leaves a process only one of the devices that another value leaves.

    Args:
        value: None where the variable is not set.
        place: the device's number as CUDA counts them under ``value``.
    """
    if value is None or value.strip() in HIDES_ALL:
        return str(place)
    named = entries(value)
    return named[place] if place < len(named) else str(place)


def _shown(devices: Sequence[Device]) -> tuple[Device, ...]:
    """What CUDA shows of the devices named: whole GPUs, or the first MIG instance."""
    split = [device for device in devices if device.instance or device.gpu.instances]
    whole = tuple(device for device in devices if device not in split)
    if whole or not split:
        return whole
    return (Device(split[0].gpu, split[0].instance or split[0].gpu.instances[0]),)


def _named(gpus: Sequence[Gpu], entry: str) -> Device | str:
    """What an entry names, or what is wrong with it."""
    if entry.startswith("MIG-"):
        return _instance(gpus, entry)
    if entry.startswith("GPU-"):
        found = [gpu for gpu in gpus if gpu.uuid.startswith(entry)]
        exact = [gpu for gpu in found if gpu.uuid == entry] or found
        if len(exact) > 1:
            return f"is the head of {len(found)} UUIDs, of GPUs {', '.join(gpu.index for gpu in found)}"
    else:
        exact = [gpu for gpu in gpus if gpu.index == entry]
    return Device(exact[0]) if exact else "names no GPU here" if entry else "is empty"


def _instance(gpus: Sequence[Gpu], entry: str) -> Device | str:
    for gpu in gpus:
        for instance in gpu.instances:
            if instance.uuid == entry:
                return Device(gpu, instance)
    old = _OLD_INSTANCE.fullmatch(entry)
    here = [gpu for gpu in gpus if old and gpu.uuid == old[1]]
    if here and here[0].instances:
        return f"names GPU {here[0].index}'s instance by numbers, which nvidia-smi -L does not list"
    return "names no MIG instance here"


def _advice(gpus: Sequence[Gpu], entry: str) -> str:
    if entry == "NoDevFiles":
        return "Slurm sets this for a job without GPUs: ask for them with --gpus-per-node"
    shown = [Device(gpu, instance).words for gpu in gpus for instance in gpu.instances]
    shown += [f"GPU {gpu.index} ({gpu.uuid})" for gpu in gpus if not gpu.instances]
    listed = f"nvidia-smi lists {', '.join(shown)}" if shown else "nvidia-smi lists no GPU"
    return f"{listed}: name one of these, or unset the variable"


def _refused(devices: tuple[Device, ...], value: str, problem: str, advice: str) -> Visible:
    return Visible(devices, f"{VARIABLE}={value!r}: {problem}", advice)
