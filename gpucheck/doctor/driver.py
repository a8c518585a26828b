"""The driver, and which GPUs it leaves to a process."""

from __future__ import annotations

import re

from gpucheck.doctor.line import Line, fail, ok, warn
from gpucheck.doctor.machine import Machine
from gpucheck.doctor.nvidia_smi import Reply, Snapshot
from gpucheck.launch.environment import visible_gpus

NO_GPU = (
    "where there should be one, load the driver and give the container its GPUs (docker run --gpus all; Kubernetes:"
    " resources.limits nvidia.com/gpu); without one, gpucheck run --device cpu interprets the kernels"
)


def look(machine: Machine) -> list[Line]:
    """The lines of the driver."""
    snapshot = machine.smi()
    if not snapshot.gpus:
        return [_nothing(machine, snapshot)]
    cuda = f", runs CUDA up to {snapshot.cuda}" if snapshot.cuda else ""
    lines = [ok("version", f"{snapshot.driver or 'not known'}{cuda}"), *_remarks(snapshot), _visible(machine, snapshot)]
    return [*lines, *_order(machine, snapshot)]


def _nothing(machine: Machine, snapshot: Snapshot) -> Line:
    """Why there is no GPU to list."""
    answer = snapshot.answer
    if answer.reply is Reply.SILENT:
        advice = "a GPU or the driver hangs: look for Xid in the kernel log, reset the GPUs or reboot the node"
        return fail("version", f"nvidia-smi did not answer within {machine.smi_limit:g} s", advice)
    if answer.reply is Reply.REFUSED:
        said = answer.text.splitlines()[-1] if answer.text else "without a word"
        advice = "load the driver of the host (modprobe nvidia), and let user and kernel parts be of one version"
        return fail("version", f"nvidia-smi ended with exit code {answer.code}: {said}", advice)
    if answer.reply is Reply.ABSENT:
        if (machine.proc / "driver/nvidia/version").exists() or (machine.dev / "nvidia0").exists():
            advice = "put nvidia-smi on PATH: in containers the NVIDIA runtime mounts it with the capability 'utility'"
            return fail("version", "the driver is loaded, but there is no nvidia-smi", advice)
        return warn("visible", "no GPU: there is no nvidia-smi", NO_GPU)
    if not snapshot.readable:
        advice = "run nvidia-smi -q -x by hand: the driver or a GPU is in trouble"
        said = snapshot.remarks[0] if snapshot.remarks else "nothing"
        return fail("version", f"nvidia-smi answered without a readable report: {said}", advice)
    return warn("visible", "no GPU: nvidia-smi lists none", NO_GPU)


def _remarks(snapshot: Snapshot) -> list[Line]:
    """Whatever nvidia-smi printed beside its report: it warns of a corrupt infoROM there."""
    advice = "nvidia-smi says so itself; a corrupt infoROM needs a reset or a repair of that GPU"
    return [warn("remark", remark, advice, str(number)) for number, remark in enumerate(snapshot.remarks)]


def _visible(machine: Machine, snapshot: Snapshot) -> Line:
    """What CUDA_VISIBLE_DEVICES leaves."""
    value = machine.environ.get("CUDA_VISIBLE_DEVICES")
    count = len(snapshot.gpus)
    if value is None:
        return ok("visible", f"CUDA_VISIBLE_DEVICES is not set: all {count} GPU(s)")
    left = visible_gpus([(str(gpu.index), gpu.uuid) for gpu in snapshot.gpus], value)
    shown = f"CUDA_VISIBLE_DEVICES={value!r} leaves " + (f"GPU {', '.join(map(str, left))}" if left else "no GPU")
    entries = [entry.strip() for entry in value.split(",") if entry.strip()]
    if any(entry.startswith("MIG-") for entry in entries):
        return warn("visible", f"CUDA_VISIBLE_DEVICES={value!r} names MIG instances", "run one rank: --nproc 1")
    if not left:
        return warn("visible", shown, "unset it, or name GPUs by number or UUID; without one runs need --device cpu")
    if len(left) < len(entries):
        advice = f"{entries[len(left)]!r} names no GPU here; CUDA drops it and everything after it"
        return warn("visible", shown, advice)
    if len(set(left)) < len(left):
        return fail("visible", f"{shown}, one of them twice", "name each GPU once: CUDA takes none of them otherwise")
    return ok("visible", shown)


def _order(machine: Machine, snapshot: Snapshot) -> list[Line]:
    """Whether CUDA counts the GPUs as nvidia-smi does."""
    names = list(dict.fromkeys(gpu.name for gpu in snapshot.gpus))
    if len(names) < 2:
        return []
    if machine.environ.get("CUDA_DEVICE_ORDER") == "PCI_BUS_ID":
        return [ok("order", "unequal GPUs, counted in PCI order")]
    advice = "CUDA puts the fastest first, so its numbers are not nvidia-smi's: export CUDA_DEVICE_ORDER=PCI_BUS_ID"
    return [warn("order", f"unequal GPUs: {', '.join(names)}", advice)]


def major_minor(version: str) -> tuple[int, int] | None:
    """``"13.0"`` as numbers."""
    match = re.match(r"(\d+)\.(\d+)", version)
    return (int(match[1]), int(match[2])) if match else None
