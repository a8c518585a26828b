"""Signs that a machine has, or should have, an accelerator, whether or not anything can use it.

A run that finds no GPU asks here whether that can be true: a node that lost its GPU is no machine without one.
"""

from __future__ import annotations

import ast
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from gpucheck.host.text_file import text_of

DEV, SYS = Path("/dev"), Path("/sys")
TOOLS = ("nvidia-smi", "rocm-smi", "amd-smi")
VARIABLES = ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES")
NO_DEVICE = {
    "NVIDIA_VISIBLE_DEVICES": ("", "void", "none"),  # the container runtime's words for no GPU
}
"""Values of a variable that name no GPU; for those that are not here, an empty one and -1."""
VENDORS = {0x10DE: "NVIDIA", 0x1002: "AMD"}
PCI_CLASSES = {0x0300: "VGA controller", 0x0302: "3D controller", 0x0380: "display controller", 0x1200: "accelerator"}
"""Class and subclass of PCI devices that compute; AMD's Instincts are 0x0380 or 0x1200."""
MOST_LISTED = 8


@dataclass(frozen=True)
class TorchBuild:
    """What an installed torch was built for."""

    version: str
    cuda: str = ""  # "13.0"; "" for none
    hip: str = ""

    @property
    def words(self) -> str:
        """``torch 2.11.0 is built for CUDA 13.0``."""
        target = f"CUDA {self.cuda}" if self.cuda else f"ROCm {self.hip}" if self.hip else "the CPU alone"
        return f"torch {self.version} is built for {target}"


def torch_build(torch: Path) -> TorchBuild | None:
    """Reads what torch says of itself, without importing it.

    Args:
        torch: the folder of the package.

    Returns:
        None where torch does not say what it was built for.
    """
    text = text_of(torch / "version.py")
    if not re.search(r"^cuda\b", text, re.MULTILINE):
        return None
    return TorchBuild(*(assigned(text, name) or "" for name in ("__version__", "cuda", "hip")))


def assigned(source: str, name: str) -> str | None:
    """The string that Python source assigns to a name at its top level."""
    match = re.search(rf"^{name}\s*(?::[^=\n]*)?=\s*(['\"][^'\"\n]*['\"])", source, re.MULTILINE)
    return str(ast.literal_eval(match[1])) if match else None


def hardware_signs(environ: Mapping[str, str], dev: Path = DEV, sys: Path = SYS) -> list[str]:
    """Signs of a device or its driver on this machine, one line each.

    Args:
        environ: where PATH is taken from.
        dev: the folder that stands for /dev.
        sys: the folder that stands for /sys.
    """
    found = [f"{tool} is on PATH ({path})" for tool in TOOLS if (path := shutil.which(tool, path=environ.get("PATH")))]
    nodes = [str(path) for path in sorted([*dev.glob("nvidia*"), *dev.glob("kfd")])]
    return [*found, *_listed(nodes, "device nodes: "), *_listed(list(_pci(sys)), "PCI: ")]


def software_signs(environ: Mapping[str, str], torch: TorchBuild | None) -> list[str]:
    """Signs that programs here are meant to use a GPU, one line each."""
    named = [
        f"{name}={environ[name]!r} names GPUs"
        for name in VARIABLES
        if environ.get(name, "").strip() not in NO_DEVICE.get(name, ("", "-1"))
    ]
    return named + ([torch.words] if torch and (torch.cuda or torch.hip) else [])


def _pci(sys: Path) -> Iterator[str]:
    for device in sorted(sys.glob("bus/pci/devices/*")):
        kind, vendor = _number(device / "class") >> 8, _number(device / "vendor")
        if vendor in VENDORS and kind in PCI_CLASSES:
            yield f"{device.name} is a {PCI_CLASSES[kind]} of {VENDORS[vendor]}"


def _number(path: Path) -> int:
    text = text_of(path).strip()
    return int(text, 16) if re.fullmatch("(0x)?[0-9a-fA-F]+", text) else 0


def _listed(found: list[str], start: str) -> list[str]:
    more = f", and {len(found) - MOST_LISTED} more" if len(found) > MOST_LISTED else ""
    return [start + ", ".join(found[:MOST_LISTED]) + more] if found else []
