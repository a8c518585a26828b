"""Environment variables that change what kernels compute, how they are built or how fast they are."""

from __future__ import annotations

from dataclasses import dataclass

from gpucheck.tools.doctor.line import Line, Status, ok
from gpucheck.tools.doctor.machine import Machine


@dataclass(frozen=True)
class Setting:
    """A variable that should be unset, or at least known about."""

    name: str
    means: str
    advice: str
    status: Status = Status.WARN  # where it is set to something other than ``harmless``
    harmless: tuple[str, ...] = ("", "0")
    on_gpus_only: bool = False  # means nothing on a machine without


SETTINGS = (
    Setting(
        "TRITON_INTERPRET",
        "kernels are interpreted on the CPU, not compiled",
        "unset it: gpucheck sets it itself with --device cpu",
        Status.FAIL,
        on_gpus_only=True,
    ),
    Setting("NVIDIA_TF32_OVERRIDE", "overrules what a program asks for in fp32 products", "unset it", harmless=("",)),
    Setting("TRITON_F32_DEFAULT", "changes the precision of tl.dot on fp32", "unset it", harmless=("", "ieee")),
    Setting("TRITON_OVERRIDE_ARCH", "kernels are compiled for another GPU", "unset it", Status.FAIL, harmless=("",)),
    Setting("TRITON_KERNEL_OVERRIDE", "compiled kernels are replaced from a folder", "unset it", Status.FAIL),
    Setting("TRITON_ALWAYS_COMPILE", "every process compiles every kernel again", "unset it: runs become slow"),
    Setting("TRITON_DEFAULT_BACKEND", "chooses Triton's backend", "unset it", harmless=("", "nvidia", "amd")),
    Setting("CUDA_LAUNCH_BLOCKING", "every launch is waited for: hides races", "unset it to find races"),
    Setting(
        "CUDA_DEVICE_MAX_CONNECTIONS",
        "changes how streams overlap",
        "races may show differently with it",
        harmless=("", "8"),
    ),
    Setting("PYTORCH_NO_CUDA_MEMORY_CACHING", "every allocation asks the driver", "unset it: runs become slow"),
    Setting(
        "CUDA_MPS_PIPE_DIRECTORY",
        "processes share GPUs through MPS",
        "a crash of one process fails all that share its GPU",
        harmless=("",),
    ),
    Setting("LD_PRELOAD", "puts libraries into every process", "it may change what is tested", harmless=("",)),
)


def look(machine: Machine) -> list[Line]:
    """A line for each variable that is set to something that matters, or one that none is."""
    lines = [line for setting in SETTINGS for line in _line(machine, setting)]
    return lines or [ok("variables", "none is set that changes kernels")]


def _line(machine: Machine, setting: Setting) -> list[Line]:
    value = machine.environ.get(setting.name, "").strip()
    if value in setting.harmless or (setting.on_gpus_only and not machine.smi().gpus):
        return []
    return [Line(setting.name, setting.status, f"{value}: {setting.means}", setting.advice)]
