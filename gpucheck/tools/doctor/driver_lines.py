"""The driver, and which GPUs it leaves to a process."""

from __future__ import annotations

import re

from gpucheck.host.accelerators import hardware_signs
from gpucheck.host.gpu_state import Reply, Snapshot
from gpucheck.host.processes import ending
from gpucheck.host.visible_gpus import VARIABLE
from gpucheck.launch.gpus import last_line
from gpucheck.tools.doctor.line import Line, fail, ok, warn
from gpucheck.tools.doctor.machine import Machine

BROKEN_GPU = re.compile(r"unable to determine|is lost|unknown error", re.IGNORECASE)
LONGEST = 200  # characters shown of what the tool says
NO_GPU = (
    "where there should be one, load the driver and give the container its GPUs (docker run --gpus all; Kubernetes:"
    " resources.limits nvidia.com/gpu); without one, gpucheck run --device cpu interprets the kernels"
)


def look(machine: Machine) -> list[Line]:
    """The lines of the driver."""
    snapshot = machine.smi()
    if not snapshot.gpus:
        return [_nothing(machine, snapshot), *_expected(machine)]
    cuda = f", runs CUDA up to {snapshot.cuda}" if snapshot.cuda else ""
    lines = [ok("version", f"{snapshot.driver or 'not known'}{cuda}"), *_remarks(snapshot), _visible(machine, snapshot)]
    return [*lines, *_expected(machine), *_order(machine, snapshot)]


def _nothing(machine: Machine, snapshot: Snapshot) -> Line:
    """Why there is no GPU to list."""
    answer = snapshot.answer
    if answer.reply is Reply.SILENT:
        advice = "a GPU or the driver hangs: look for Xid in the kernel log, reset the GPUs or reboot the node"
        return fail("version", f"nvidia-smi did not answer within {machine.smi_limit:g} s", advice)
    if answer.reply is Reply.REFUSED:
        advice = "load the driver of the host (modprobe nvidia), and let user and kernel parts be of one version"
        if BROKEN_GPU.search(answer.text):
            advice = "look for Xid in the kernel log; reset the GPU or reboot the node, and replace it if it comes back"
        return fail("version", f"nvidia-smi {ending(answer.code)}: {last_line(answer)}", advice)
    if answer.reply is Reply.ABSENT:
        if (machine.proc / "driver/nvidia/version").exists() or (machine.dev / "nvidia0").exists():
            advice = "put nvidia-smi on PATH: in containers the NVIDIA runtime mounts it with the capability 'utility'"
            return fail("version", "the driver is loaded, but there is no nvidia-smi", advice)
        if signs := hardware_signs(machine.environ, machine.dev, machine.sys):
            return fail("visible", f"no GPU that torch can use: there is no nvidia-smi, but {'; '.join(signs)}", NO_GPU)
        return warn("visible", "no GPU: there is no nvidia-smi", NO_GPU)
    if not snapshot.readable:
        advice = "run nvidia-smi -q -x by hand: the driver or a GPU is in trouble"
        return fail("version", f"nvidia-smi answered without a readable report: {last_line(answer)[:LONGEST]}", advice)
    return fail("visible", "no GPU: nvidia-smi lists none", NO_GPU)


def _remarks(snapshot: Snapshot) -> list[Line]:
    """Whatever nvidia-smi printed beside its report: it warns of a corrupt infoROM there."""
    advice = "nvidia-smi says so itself; a corrupt infoROM needs a reset or a repair of that GPU"
    return [warn("remark", remark, advice, str(number)) for number, remark in enumerate(snapshot.remarks)]


def _visible(machine: Machine, snapshot: Snapshot) -> Line:
    """What CUDA_VISIBLE_DEVICES leaves."""
    value, left = machine.environ.get(VARIABLE), machine.visible()
    named = ", ".join(device.words for device in left.devices) or "no GPU"
    if left.problem:
        return warn("visible", f"{left.problem}; leaves {named}", left.advice)
    if left.hides_all:
        advice = "unset it, or name GPUs by number or UUID; without one runs need --device cpu"
        return warn("visible", f"{VARIABLE}={value!r} leaves no GPU", advice)
    if any(device.instance for device in left.devices):
        shown = f"{VARIABLE}" + (" is not set: CUDA shows " if value is None else f"={value!r} names ") + named
        return warn("visible", shown, "a process sees one MIG instance, which is all that a run checks: --nproc 1")
    if value is None:
        return ok("visible", f"{VARIABLE} is not set: all {len(snapshot.gpus)} GPU(s)")
    return ok("visible", f"{VARIABLE}={value!r} leaves {named}")


def _expected(machine: Machine) -> list[Line]:
    """Whether as many GPUs can be used as there should be."""
    if machine.expect_gpus is None:
        return []
    left = machine.visible() if machine.smi().gpus else None
    usable = left.devices if left and not left.problem else ()
    value = f"{len(usable)} of {machine.expect_gpus} expected"
    if len(usable) == machine.expect_gpus:
        return [ok("expected", value)]
    seen = ", ".join(device.words for device in usable) or "none that a process can use"
    listed = f"nvidia-smi lists {len(machine.smi().gpus)}, {VARIABLE} is {machine.environ.get(VARIABLE)!r}"
    advice = "give the node or container its GPUs, unset the variable, or fix what the other driver lines name"
    return [fail("expected", f"{value}: {seen}; {listed}", advice)]


def _order(machine: Machine, snapshot: Snapshot) -> list[Line]:
    """Whether CUDA counts the GPUs as nvidia-smi does."""
    names = list(dict.fromkeys(gpu.name for gpu in snapshot.gpus))
    if len(names) < 2:
        return []
    if machine.environ.get("CUDA_DEVICE_ORDER") == "PCI_BUS_ID":
        return [ok("order", "unequal GPUs, counted in PCI order")]
    advice = "CUDA puts the fastest first, so its numbers are not nvidia-smi's: export CUDA_DEVICE_ORDER=PCI_BUS_ID"
    return [warn("order", f"unequal GPUs: {', '.join(names)}", advice)]
