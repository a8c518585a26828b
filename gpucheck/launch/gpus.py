"""What a run's ranks run on: the GPUs that CUDA shows and this torch can use, or the CPU where that is said or certain.

A machine without a usable GPU is taken for one that has none only if nothing on it speaks of a GPU. Everything is read
without touching CUDA and without importing torch.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from gpucheck.host import node_gpus
from gpucheck.host.accelerators import DEV, SYS, TorchBuild, hardware_signs, software_signs, torch_build
from gpucheck.host.nvidia_smi import LIMIT, Answer, Reply
from gpucheck.host.processes import ending
from gpucheck.host.resources import available_memory
from gpucheck.host.visible_gpus import VARIABLE, Listing, Visible, visible
from gpucheck.library.installed import find_spec, spec_folders
from gpucheck.model.errors import InfrastructureError, UsageError

DEVICES = ("auto", "cuda", "cpu")
ARCHITECTURES = "architectures"  # file in the scratch folder of a run: those of the node's GPUs, where they are known
FREE_MEMORY = "free-memory"  # likewise: bytes on the GPU of each rank that are free for several processes
BROKEN = re.compile(r"unable to determine|is lost|unknown error|failed to initialize|ERR!", re.IGNORECASE)
"""What nvidia-smi says of a GPU that it cannot read, in lines beside those of others."""
AMD = re.compile(r"rocm|amd-smi|kfd|AMD|HIP_|ROCR_", re.IGNORECASE)
OF_A_RANK = 256 << 20  # bytes of host memory that a rank on the CPU takes at least, with all of its processes
ON_CPU = "without a GPU: --device cpu (make run ARGS='--device cpu') interprets the kernels, and says so in its report"


@dataclass(frozen=True)
class Found:
    """What there is to run on."""

    gpus: tuple[str, ...] = ()  # names of the devices that CUDA shows, in its order
    problem: str = ""  # why they cannot be taken as they are; "" also where there are none and no sign of any
    seen: tuple[str, ...] = ()  # what was seen of GPUs, tools and torch, one line each
    advice: str = ""  # what to do about the problem
    hidden: bool = False  # CUDA_VISIBLE_DEVICES hides every GPU on purpose


@dataclass(frozen=True)
class Choice:
    """What the ranks of this node run on."""

    device: str  # "cuda" or "cpu"
    nproc: int
    why: str = ""  # why on the CPU


def find(environ: Mapping[str, str] = os.environ, dev: Path = DEV, sys: Path = SYS) -> Found:
    """Looks for GPUs that this Python's torch can use.

    Args:
        dev: the folder that stands for /dev.
        sys: the folder that stands for /sys.
    """
    answer, listing = node_gpus.listing(environ)
    value, build = environ.get(VARIABLE), _torch()
    left = visible(listing.gpus, value)
    if left.hides_all:
        return Found(seen=(f"{VARIABLE}={value!r} hides every GPU",), hidden=True)
    problem, advice = _problem(answer, listing, left, build)
    named = [device.words for device in left.devices]
    if problem and not named:
        signs = hardware_signs(environ, dev, sys) + software_signs(environ, build)
        if answer.reply is Reply.ABSENT and not signs:
            return Found()
        if any(AMD.search(sign) for sign in signs) and not any("nvidia" in sign.lower() for sign in signs):
            advice = "gpucheck runs kernels on GPUs of NVIDIA; for those of AMD it builds them: gpucheck compile"
        return Found((), problem, tuple(signs), advice)
    of_variable = "" if value is None else f" with {VARIABLE}={value!r}"
    seen = [f"nvidia-smi{of_variable} leaves {', '.join(named)}", *([build.words] if build else [])]
    hidden = sum(max(1, len(gpu.instances)) for gpu in listing.gpus) - len(named)
    if hidden > 0 and left.devices[0].instance:
        seen.append(f"CUDA shows a process one MIG instance: {hidden} more listed here cannot be seen beside it")
    return Found(tuple(device.name for device in left.devices), problem, tuple(seen), advice)


def choose(device: str, nproc: int | None, *, expected: int | None = None, made_for_gpus: str = "") -> Choice:
    """Decides what the ranks run on.

    Args:
        device: one of ``DEVICES``, as the user said.
        nproc: ranks that the user asked for.
        expected: GPUs that must be usable on this node; None asks for no number.
        made_for_gpus: what must not run on the CPU unless that was said: the name of a scenario, or "".

    Raises:
        UsageError: ``device`` is none of them, or this machine has no memory for so many ranks on its CPU.
        InfrastructureError: there should be GPUs and there are none, or others than asked for.
    """
    if device not in DEVICES:
        raise UsageError(f"--device is {device!r}, expected auto, cuda or cpu")
    if device == "cpu":
        if expected:
            raise InfrastructureError(f"--expect-gpus {expected}: --device cpu uses 0 GPUs; leave one of the two out")
        return _on_cpu(nproc, "--device cpu")
    found = find()
    asked = "--device cuda: " if device == "cuda" else ""
    if found.problem:
        counted = "" if expected is None else f"--expect-gpus {expected}, 0 can be used: "
        raise InfrastructureError(_error_text(f"{asked}{counted}{found.problem}; nothing was checked", found))
    if expected is not None and expected != len(found.gpus):
        words = f"{asked}--expect-gpus {expected}, {len(found.gpus)} can be used; nothing was checked"
        raise InfrastructureError(_error_text(words, found, "give the node or container its GPUs, see gpucheck doctor"))
    if not found.gpus:
        none = f"{VARIABLE} hides every GPU" if found.hidden else "no GPU is visible and nothing here speaks of one"
        if asked or made_for_gpus:
            subject = asked or f"scenario {made_for_gpus} is made for GPUs: "
            raise InfrastructureError(_error_text(f"{subject}{none}; nothing was checked", found))
        return _on_cpu(nproc, none)
    if nproc and nproc > len(found.gpus):
        raise InfrastructureError(
            f"--nproc {nproc} asks for more ranks than the {len(found.gpus)} GPU(s) that are visible; "
            f"use --nproc {len(found.gpus)}, or look at nvidia-smi and {VARIABLE}"
        )
    return Choice("cuda", nproc or len(found.gpus))


def _on_cpu(nproc: int | None, why: str) -> Choice:
    """So many ranks on the CPU, each of which takes host memory that a GPU would have."""
    count, memory = nproc or 1, available_memory()
    if memory is not None and count > (most := max(1, memory // OF_A_RANK)):
        raise UsageError(
            f"--nproc {count} asks for more ranks than this machine has memory for: {memory / (1 << 30):.1f} GiB are "
            f"free, and each on the CPU takes {OF_A_RANK >> 20} MiB or more; use --nproc {most} or fewer"
        )
    return Choice("cpu", count, why)


def last_line(answer: Answer) -> str:
    """What nvidia-smi said at the end, or that it said nothing."""
    return (answer.text.strip().splitlines() or ["it said nothing"])[-1].strip()


def _torch() -> TorchBuild | None:
    folders = spec_folders(find_spec("torch"))
    return torch_build(folders[0]) if folders else None


def _problem(answer: Answer, listing: Listing, left: Visible, build: TorchBuild | None) -> tuple[str, str]:
    """Why the GPUs cannot be taken as they are, and what to do; two empty strings where they can."""
    broken = [remark for remark in listing.remarks if BROKEN.search(remark)]
    broken += [f"GPU {gpu.index}: {gpu.name}, {gpu.uuid}" for gpu in listing.gpus if BROKEN.search(gpu.name + gpu.uuid)]
    driver = "look at the kernel log and gpucheck doctor; reload the driver, reset the GPU or reboot the node"
    if answer.reply is Reply.ABSENT:
        tool = "where there is a GPU, give the container it and its tools (docker run --gpus all; nvidia.com/gpu)"
        return "no GPU that torch can use: there is no nvidia-smi, which lists them", tool
    if answer.reply is Reply.SILENT:
        return f"nvidia-smi did not answer within {LIMIT:g} s", driver
    if answer.reply is Reply.REFUSED:
        return f"nvidia-smi {ending(answer.code)}: {last_line(answer)}", driver
    if broken:
        return f"nvidia-smi lists {len(listing.gpus)} GPU(s) and says: {'; '.join(broken)}", driver
    if not listing.gpus:
        return f"nvidia-smi lists no GPU: {last_line(answer)}", driver
    if left.problem:
        return left.problem, left.advice
    if not left.devices:
        return "nvidia-smi lists GPUs, and CUDA shows none of them", driver
    if build and not build.cuda:
        return f"{build.words} and cannot use the GPU(s) here", "run gpucheck with the Python that serves the model"
    return "", ""


def _error_text(problem: str, found: Found, advice: str = "") -> str:
    """A message: what is wrong, what was seen, what to do."""
    do = [advice or found.advice, ON_CPU]
    seen = [line for line in found.seen if line not in problem]
    return "\n".join([problem, *(f"  seen  {line}" for line in seen), *(f"  do    {line}" for line in do if line)])
