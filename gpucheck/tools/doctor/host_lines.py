"""The host around the GPUs: memory, shared memory, processors and limits of this process."""

from __future__ import annotations

import resource

from gpucheck.host.control_group import UNLIMITED, cpu_quota, memory_limit
from gpucheck.host.text_file import text_of
from gpucheck.tools.doctor.line import Line, fail, ok, warn
from gpucheck.tools.doctor.machine import Machine, amount

MEMORY_NEEDED = 1 << 30  # bytes below which ranks die while they import torch
MEMORY_WANTED = 8 << 30  # bytes; the large scenarios hold that much of inputs and references
SHM_WANTED = 4 << 30  # bytes in /dev/shm from which on inputs and references are kept there
FILES_WANTED = 1024


def look(machine: Machine) -> list[Line]:
    """The lines of the host."""
    return [_memory(machine), _shm(machine), *_cores(machine), *_limits(machine), *_threads(machine)]


def _memory(machine: Machine) -> Line:
    lines = text_of(machine.proc / "meminfo").splitlines()
    fields = {key: value.split() for key, _, value in (line.partition(":") for line in lines)}
    if "MemAvailable" not in fields:
        advice = f"there should be {machine.proc / 'meminfo'}: mount /proc"
        return warn("memory", "not known", advice, looked=False)
    free = int(fields["MemAvailable"][0]) * 1024
    value = f"{amount(free)} free of {amount(int(fields['MemTotal'][0]) * 1024)}"
    limit = memory_limit(machine.proc, machine.cgroup)
    if limit is not None:
        allowed, used = limit
        free = min(free, max(0, allowed - used))
        value = f"{amount(free)} free, of {amount(allowed)} that this container may use"
    advice = "end other processes, or give the container more memory; each rank needs about 1 GiB before any case"
    if free < MEMORY_NEEDED:
        return fail("memory", value, advice)
    return ok("memory", value) if free >= MEMORY_WANTED else warn("memory", value, advice)


def _shm(machine: Machine) -> Line:
    folder = machine.dev / "shm"
    free = machine.free(folder)
    advice = (
        "give the container more: docker run --shm-size=8g; Kubernetes: an emptyDir with medium Memory at /dev/shm."
        " Inputs go to the run folder instead, which is slower, and NCCL may fail"
    )
    if free is None:
        return warn("shared memory", f"there is no {folder}", advice)
    value = f"{folder}: {amount(free)} free of {amount(machine.size(folder))}"
    return ok("shared memory", value) if free >= SHM_WANTED else warn("shared memory", value, advice)


def _cores(machine: Machine) -> list[Line]:
    cores = machine.cores()
    gpus = len(machine.smi().gpus)
    lines = []
    quota = cpu_quota(machine.cgroup)
    if quota is not None and quota < cores:
        advice = "programs with a thread for each core are throttled: set OMP_NUM_THREADS, or raise the CPU limit"
        lines.append(warn("CPU quota", f"{quota:g} of the {cores} cores this process may use", advice))
        cores = max(1, int(quota))
    if gpus and cores < 2 * gpus:
        advice = "references are computed on the CPU: give two cores or more to each GPU, or expect to wait for them"
        return [warn("cores", f"{cores} for {gpus} GPU(s)", advice), *lines]
    return [ok("cores", str(cores)), *lines]


def _limits(machine: Machine) -> list[Line]:
    files, _ = machine.rlimit(resource.RLIMIT_NOFILE)
    locked, _ = machine.rlimit(resource.RLIMIT_MEMLOCK)
    core, _ = machine.rlimit(resource.RLIMIT_CORE)
    lines = []
    if _least(files, FILES_WANTED):
        lines.append(ok("open files", _limit_text(files)))
    else:
        lines.append(warn("open files", _limit_text(files), "ranks and their caches open more: ulimit -n 65536"))
    if _least(locked, UNLIMITED) or not (machine.dev / "infiniband").exists():
        lines.append(ok("locked memory", _limit_text(locked, "bytes")))
    else:
        advice = "NCCL pins buffers for the InfiniBand here: ulimit -l unlimited"
        lines.append(warn("locked memory", _limit_text(locked, "bytes"), advice))
    if not _least(core, 1):
        return [*lines, ok("core files", "off")]
    advice = "a crashed rank may write a file as large as its memory: ulimit -c 0"
    return [*lines, warn("core files", _limit_text(core, "bytes"), advice)]


def _least(limit: int, needed: int) -> bool:
    """Whether a limit allows as much as is needed."""
    return limit == resource.RLIM_INFINITY or limit >= needed


def _limit_text(limit: int, unit: str = "") -> str:
    if limit == resource.RLIM_INFINITY:
        return "unlimited"
    return amount(limit) if unit else str(limit)


def _threads(machine: Machine) -> list[Line]:
    """Thread settings that torch and numpy follow."""
    value = machine.environ.get("OMP_NUM_THREADS", "")
    if not value:
        return [ok("threads", "OMP_NUM_THREADS is not set: each rank gets its share of the cores")]
    if not value.isdigit() or int(value) < 1:
        return [warn("threads", f"OMP_NUM_THREADS={value}", "expected a number above 0: unset it")]
    if int(value) > machine.cores():
        advice = f"more threads than the {machine.cores()} cores slow each other down: unset it"
        return [warn("threads", f"OMP_NUM_THREADS={value}", advice)]
    if value == "1" and machine.cores() > 2:
        return [warn("threads", "OMP_NUM_THREADS=1", "references are computed on one core a rank: unset it")]
    return [ok("threads", f"OMP_NUM_THREADS={value}")]
