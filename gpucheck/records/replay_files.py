"""What a replay leaves in its run folder beside records."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

FOLDER = "replay"
DETAIL = (
    "detail.json"  # worst elements by output, see gpucheck.verify.worst_elements, each with its "writer" where known
)
PROGRAM = "program.json"  # the calls of the case, see gpucheck.worker.device.call_recorder
TENSORS = ("inputs", "arguments", "output", "reference")  # .safetensors, those that there are

Element = dict[str, Any]


def read_detail(run: Path) -> tuple[dict[str, list[Element]], list[str]]:
    """The worst elements of each output that could be compared, and what went wrong in looking."""
    try:
        content = json.loads((run / FOLDER / DETAIL).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}, []
    return content["outputs"], content["notes"]


def read_program(run: Path) -> dict[str, Any]:
    """The calls of the case; empty where none was made."""
    try:
        content: dict[str, Any] = json.loads((run / FOLDER / PROGRAM).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    return content
