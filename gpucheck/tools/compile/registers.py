"""Registers and spills of compiled kernels, read from what the compilers leave behind."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TIMEOUT = 60.0  # seconds; reading one kernel takes milliseconds


@dataclass(frozen=True)
class Usage:
    """What a thread of a kernel uses; None where it is not known."""

    registers: int | None = None  # AMD: vector registers, accumulation registers included
    spilled: int | None = None  # bytes of local memory; on AMD of scratch


def usage(binaries: Mapping[str, Any], tools: Path) -> Usage:
    """The use of registers of a compiled kernel.

    Args:
        binaries: what Triton's compiled kernel holds under ``asm``.
        tools: folder of the CUDA tools in Triton's wheel.
    """
    if binaries.get("amdgcn"):
        return from_amdgcn(str(binaries["amdgcn"]))
    cubin, tool = binaries.get("cubin"), tools / "cuobjdump"
    if not cubin or not tool.is_file():
        return Usage()
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        try:
            answer = subprocess.run(
                [str(tool), "--dump-resource-usage", file.name], capture_output=True, text=True, timeout=TIMEOUT
            )
        except (OSError, subprocess.TimeoutExpired):
            return Usage()
    return from_cuobjdump(answer.stdout)


def from_cuobjdump(text: str) -> Usage:
    """Reads ``cuobjdump --dump-resource-usage``; a kernel's own stack holds what it has spilled."""
    match = re.search(r"\bREG:(\d+) STACK:(\d+)", text)
    return Usage(int(match[1]), int(match[2])) if match else Usage()


def from_amdgcn(text: str) -> Usage:
    """Reads the metadata at the end of AMD assembly."""

    def value(name: str) -> int | None:
        match = re.search(rf"^\s*(?:- )?\.{name}:\s*(\d+)", text, re.MULTILINE)
        return int(match[1]) if match else None

    return Usage(value("vgpr_count"), value("private_segment_fixed_size"))
