"""Asks the library itself: runs its host code in a process of its own under two stand-in devices."""

from __future__ import annotations

import importlib.util
import os
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from gpucheck.host.isolated import ask, python_path
from gpucheck.library.copies import LibraryCopy
from gpucheck.tools.audit.hazard import Hazard

CHILD = "gpucheck.tools.audit.probe_process"
TIMEOUT = 120.0  # seconds; a probe takes about five

NEEDS = ("triton", "torch")


def probe(copy: LibraryCopy, hazards: Sequence[Hazard]) -> list[Hazard]:
    """The hazards with what a probe says of each; unchanged but for the reason where none could be made."""
    for package in NEEDS:
        if importlib.util.find_spec(package) is None:
            return not_probed(hazards, f"no {package} here")
    answer = _ask(copy, hazards)
    if "problem" in answer:
        return not_probed(hazards, answer["problem"])
    return [
        replace(hazard, confirmed=confirmed, evidence=evidence)
        for hazard, (confirmed, evidence) in zip(hazards, answer["answers"], strict=True)
    ]


def not_probed(hazards: Sequence[Hazard], reason: str) -> list[Hazard]:
    """The hazards with the reason why no probe was made."""
    return [replace(hazard, confirmed=None, evidence=f"not probed: {reason}") for hazard in hazards]


def _ask(copy: LibraryCopy, hazards: Sequence[Hazard]) -> dict[str, Any]:
    """Runs the child; its answer, or a dictionary with ``problem``."""
    question = {
        "root": str(copy.root),
        "package": str(copy.package),
        "generation": copy.generation,
        "hazards": [asdict(hazard) for hazard in hazards],
    }
    with tempfile.TemporaryDirectory(prefix="gpucheck-audit-") as folder:
        try:
            answer: dict[str, Any] = ask(CHILD, question, _environment(folder), TIMEOUT)
        except TimeoutError:
            return {"problem": f"the library's host code ran past {TIMEOUT:.0f} s"}
        except OSError as error:
            return {"problem": f"the probing process {error}"}
    return answer


def _environment(folder: str) -> dict[str, str]:
    """No GPU is visible to a probe and nothing that it writes stays."""
    return {
        **os.environ,
        "PYTHONPATH": python_path(),
        "CUDA_VISIBLE_DEVICES": "",
        "HIP_VISIBLE_DEVICES": "",
        "TRITON_INTERPRET": "1",
        "TRITON_CACHE_DIR": str(Path(folder, "triton")),
    }
