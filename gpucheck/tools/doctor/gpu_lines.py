"""Each GPU as the driver sees it: what it is, how it is set, how healthy it says it is, who uses it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from gpucheck.host.gpu_state import Gpu
from gpucheck.tools.doctor.line import Line, fail, ok, warn
from gpucheck.tools.doctor.machine import Machine

USED_LIMIT = 1024  # MiB; a context or two, more is somebody's data
HOT = 5  # C below the temperature at which the GPU slows itself down
SLOWING = {
    "hw_slowdown": "the hardware",
    "hw_thermal_slowdown": "heat",
    "sw_thermal_slowdown": "heat",
    "hw_power_brake_slowdown": "the power brake of the server",
    "sw_power_cap": "the power limit",
}
"""Reasons for a lower clock that nobody has asked for, by the driver's name."""


def look(machine: Machine) -> list[Line]:
    """The lines of every GPU that nvidia-smi lists, visible to CUDA or not."""
    found = [(gpu, fact(gpu)) for fact in FACTS for gpu in machine.smi().gpus]
    return [replace(line, subject=str(gpu.index)) for gpu, line in found if line]


def identity(gpu: Gpu) -> Line:
    return ok("identity", f"{gpu.name}, {gpu.uuid}, {gpu.bus}")


def answers(gpu: Gpu) -> Line:
    """A GPU that is lost gives errors in place of values."""
    if not gpu.errors:
        return ok("answers", "every question")
    named = ", ".join(gpu.errors[:4]) + ", ..." * (len(gpu.errors) > 4)
    advice = "the GPU is lost or its driver is: look for Xid in the kernel log, reset the GPU or reboot the node"
    return fail("answers", f"errors in place of {len(gpu.errors)} values: {named}", advice)


def memory(gpu: Gpu) -> Line | None:
    if gpu.memory_total is None or gpu.memory_used is None:
        return None
    value = f"{gpu.memory_total} MiB, {gpu.memory_used} MiB used"
    if gpu.memory_used <= USED_LIMIT:
        return ok("memory", value)
    return warn("memory", value, "see who holds it with nvidia-smi; a container does not show others' processes")


def processes(gpu: Gpu) -> Line:
    if not gpu.processes:
        return ok("processes", "none")
    shown = ", ".join(f"{one.pid} {one.name} {one.memory}".strip() for one in gpu.processes[:4])
    more = ", ..." if len(gpu.processes) > 4 else ""
    advice = "end them before a run whose times or memory matter; its results do not depend on them"
    return warn("processes", f"{len(gpu.processes)}: {shown}{more}", advice)


def clocks(gpu: Gpu) -> Line | None:
    if gpu.sm_clock is None:
        return None
    value = f"SM {gpu.sm_clock} of {gpu.sm_clock_max or '?'} MHz"
    slowing = list(dict.fromkeys(SLOWING[reason] for reason in gpu.throttle if reason in SLOWING))
    asked = [reason for reason in gpu.throttle if reason not in SLOWING]
    value += f", set by {', '.join(asked)}" if asked else ""
    if not slowing:
        return ok("clocks", value)
    value += f", held down by {' and '.join(slowing)} ({', '.join(gpu.throttle)})"
    advice = "look at cooling, power supply and nvidia-smi -q -d PERFORMANCE; expect times that differ between ranks"
    return warn("clocks", value, advice)


def temperature(gpu: Gpu) -> Line | None:
    if gpu.temperature is None:
        return None
    value = f"{gpu.temperature} C" + ("" if gpu.headroom is None else f", {gpu.headroom} C below slowing down")
    if gpu.headroom is None or gpu.headroom > HOT:
        return ok("temperature", value)
    return warn("temperature", value, "look at fans, air flow and what else runs on this GPU")


def ecc(gpu: Gpu) -> Line:
    if gpu.uncorrectable or gpu.sram_threshold_exceeded:
        errors = [f"{count} {name}" for name, count in gpu.uncorrectable.items()]
        errors += ["the SRAM error threshold is exceeded"] * gpu.sram_threshold_exceeded
        advice = (
            "trust no result of this GPU: drain the node, reset the GPU (nvidia-smi -r), have it replaced if it returns"
        )
        return fail("ecc", ", ".join(errors) + " since the driver was loaded", advice)
    if gpu.uncorrectable_ever:
        errors = [f"{count} {name}" for name, count in gpu.uncorrectable_ever.items()]
        advice = "none since the driver was loaded; watch this GPU, and suspect it first when it alone fails"
        return warn("ecc", ", ".join(errors) + " over its life", advice)
    if gpu.correctable:
        advice = "correctable errors give right results; watch whether the number grows"
        return warn("ecc", f"{gpu.correctable} correctable since the driver was loaded", advice)
    if gpu.ecc == "Disabled":
        advice = "memory errors go unnoticed: switch it on with nvidia-smi -e 1 and reboot"
        return warn("ecc", "off", advice)
    return ok("ecc", "on, no errors" if gpu.ecc else "this GPU has none")


def repairs(gpu: Gpu) -> Line:
    """What the driver says must be done to a GPU."""
    if gpu.remap_failed:
        return fail("repairs", "a memory row could not be remapped", "have this GPU replaced")
    if gpu.recovery:
        advice = "take the node out of service and do what the driver asks for"
        return fail("repairs", f"the driver asks for: {gpu.recovery}", advice)
    if gpu.remap_pending:
        advice = "reset the GPU (nvidia-smi -r with nothing running on it) or reboot"
        return fail("repairs", "memory rows wait to be remapped or pages to be retired", advice)
    return ok("repairs", "none pending")


def mig(gpu: Gpu) -> Line:
    if gpu.mig != "Enabled":
        return ok("mig", "off" if gpu.mig else "this GPU has none")
    advice = (
        "a process sees one instance at a time, without peer access: put the instance's UUID (nvidia-smi -L) into"
        " CUDA_VISIBLE_DEVICES and run one rank, or switch MIG off with nvidia-smi -mig 0"
    )
    return warn("mig", f"on, {gpu.mig_devices} instance(s)", advice)


def compute_mode(gpu: Gpu) -> Line:
    if gpu.compute_mode == "Prohibited":
        return fail("compute mode", "Prohibited", "no process may use it: nvidia-smi -c DEFAULT")
    if gpu.compute_mode.startswith("Exclusive"):
        advice = (
            "only one process may use it at a time: no second rank, and no placement that touches device 0 from every"
            " rank; nvidia-smi -c DEFAULT"
        )
        return warn("compute mode", gpu.compute_mode, advice)
    return ok("compute mode", gpu.compute_mode or "not known")


def persistence(gpu: Gpu) -> Line:
    if gpu.persistence != "Disabled":
        return ok("persistence", "on" if gpu.persistence else "not known")
    advice = (
        "the first process on an idle GPU waits seconds for the driver: run nvidia-persistenced or nvidia-smi -pm 1"
    )
    return warn("persistence", "off", advice)


def fabric(gpu: Gpu) -> Line | None:
    """GPUs behind NVSwitch take no work before the fabric manager has set it up; a lone one in a guest may."""
    if not gpu.fabric:
        return None
    if gpu.fabric == "Completed":
        return ok("fabric", "ready")
    advice = "where CUDA fails with error 802, start nvidia-fabricmanager, of exactly the driver's version"
    return warn("fabric", gpu.fabric, advice)


FACTS: tuple[Callable[[Gpu], Line | None], ...] = (
    identity,
    answers,
    memory,
    processes,
    clocks,
    temperature,
    ecc,
    repairs,
    mig,
    compute_mode,
    persistence,
    fabric,
)
