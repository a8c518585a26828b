"""The process that tries things: ``python -m gpucheck.doctor.child LIMIT``; started by :mod:`gpucheck.doctor.devices`.

It imports torch once and never touches CUDA; processes forked from it do. Its answers are JSON lines on stdout.
"""

from __future__ import annotations

import ctypes
import functools
import json
import os
import signal
import sys
from typing import Any

from gpucheck.doctor import operations
from gpucheck.doctor.perform import PR_SET_PDEATHSIG, Emit, Operation, Task, perform

ON_A_DEVICE = (
    Operation("allocate", operations.allocate),
    Operation("matmul", operations.matmul),
    Operation("seed", operations.seed),
)


def main(limit: float) -> None:
    """Surveys the devices, then tries every operation on each, then the copies between each two."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)

    def emit(answer: dict[str, Any]) -> None:
        answers.write(json.dumps(answer) + "\n")
        answers.flush()

    try:
        import torch  # noqa: F401 - loaded for the processes forked from here
    except Exception as error:
        emit({"operation": "import", "subject": "", "outcome": "raised", "message": f"{type(error).__name__}: {error}"})
        return
    emit({"operation": "import", "subject": "", "outcome": "done"})
    try_all(limit, emit)


def try_all(limit: float, emit: Emit) -> None:
    """Everything after the import."""
    found: dict[str, Any] = {}

    def keep(answer: dict[str, Any]) -> None:
        found.update(answer)
        emit(answer)

    perform([Task("", [Operation("survey", operations.survey)])], limit, keep)
    count = len(found.get("devices", []))
    subjects = [f"cuda:{number}" for number in range(count)] or ["cpu"]
    perform([Task(subject, ON_A_DEVICE) for subject in subjects], limit, emit)
    pairs = [(a, b) for a in range(count) for b in range(count) if a != b]
    copies = [Operation(f"copy {a} {b}", functools.partial(_copy, (a, b))) for a, b in pairs]
    perform([Task("", copies)] if copies else [], limit, emit)


def _copy(pair: tuple[int, int], _: str) -> dict[str, Any]:
    return operations.copy(pair)


if __name__ == "__main__":
    main(float(sys.argv[1]))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # taking down an interpreter with torch in it takes time
