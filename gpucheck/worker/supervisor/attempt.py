"""One attempt of a case, and what further calls of a candidate showed beside it."""

from __future__ import annotations

import os
import shutil
import traceback
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from gpucheck.model.errors import first_line
from gpucheck.model.plan import Step
from gpucheck.model.record import Outcome, Record, Violation
from gpucheck.worker.last_words import raised_from

if TYPE_CHECKING:
    from torch import Tensor

    from gpucheck.worker.protocol import Call, Draw, Inspection, Reply, Taken


ANSWER = "answer"
"""Stage of a call that its supervisor asked for: from the request to the reply, by the supervisor's clock."""


@dataclass(frozen=True)
class Doubt:
    """Outputs that must be held against a reference to know what they mean."""

    outputs: Taken
    inputs: Draw | None = None  # of that call; None: those of the case
    right: Violation | None = None  # what it is where they are right
    wrong: Violation | None = None  # what it is where they are wrong
    optional: bool = False  # the problem may have no answer to these inputs; then they say nothing


@dataclass(frozen=True)
class Examined:
    """What further calls showed."""

    violations: tuple[Violation, ...] = ()
    doubts: tuple[Doubt, ...] = ()
    timings: dict[str, float] = field(default_factory=dict)  # "candidate", "reference" -> s a call
    note: str = ""  # a remark on these times
    unsteady: bool = False  # equal inputs gave other bits
    failed: Record | None = None  # of the call that gave no answer though its kernels ran


@dataclass(frozen=True)
class Attempt:
    """One attempt of a case. Without a reply its record is complete; with one, the outputs are still to be judged."""

    step: Step
    key: str  # of its inputs and references among the case files
    record: Record
    outputs: str  # file of the first outputs
    reply: Reply | None = None
    partner: int = -1  # the local rank whose environment or device its process gets; -1: the next one
    deadline: float | None = None  # s; None takes the plan's
    inspection: Inspection | None = None
    known: dict[str, str] = field(default_factory=dict)  # digests of outputs; a first call that gives these is the last
    call: Call | None = None  # a single call, instead of the passes of a case
    process: str = ""  # name of the process that answers it; "" the usual one
    role: str = ""  # what that process runs, see ``Setup.calls``
    launches: str = "run"  # what launches do there from the start
    taken: str = ""  # digest of its outputs, once they are copied out of shared memory
    examined: Examined | None = None  # what further calls of a candidate showed
    state: str = ""  # how a joint case ended on this rank, see :mod:`gpucheck.worker.supervisor.blame`

    @property
    def output_bytes(self) -> int:
        """Bytes of its outputs, which stay in memory until they are judged."""
        from gpucheck.worker.protocol import outputs_file

        total = 0
        for number in range(len(self.reply.saved) if self.reply else 0):
            with suppress(OSError):  # a process that died wrote less than it said
                total += os.path.getsize(outputs_file(self.outputs, number))
        return total


UNREADABLE = "its process said that it has answered, and its outputs cannot be read"


class NoOutputs(Exception):
    """A process said that it has answered, and its outputs cannot be read."""


def read_outputs(path: str, *, mapped: bool = False) -> dict[str, Tensor]:
    """The outputs in a file that a process wrote, which may hold anything.

    Args:
        mapped: the process runs no candidate, so that nobody changes the file meanwhile.

    Raises:
        NoOutputs: there is none, or it holds something else.
    """
    import torch

    from gpucheck.worker import parcels

    try:
        held = torch.load(path, mmap=True, weights_only=True) if mapped else parcels.written(path)
        if isinstance(held, dict) and all(isinstance(part, torch.Tensor) for part in held.values()):
            return {str(name): value for name, value in held.items()}
        problem = f"the file holds a {type(held).__name__}"
    except Exception as error:
        problem = f"{type(error).__name__}: {first_line(error)}"
    raise NoOutputs(f"{UNREADABLE}: {problem}")


def discard(path: Path) -> None:
    """Removes what lies at a path that another process may write to, and may have put anything at."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def remove_outputs(attempt: Attempt) -> None:
    """Removes the files that the outputs of an attempt were written to."""
    outputs = Path(attempt.outputs)
    discard(outputs)
    with suppress(FileNotFoundError):  # no folder, no files
        for name in os.listdir(outputs.parent):  # a glob takes several times as long, and there are thousands
            if name.startswith(f"{outputs.name}."):
                discard(outputs.with_name(name))


def ended(attempt: Attempt, outcome: Outcome, message: str, traceback: str = "") -> Attempt:
    """The attempt with how it ended."""
    return replace(attempt, record=replace(attempt.record, outcome=outcome, message=message, traceback=traceback))


def harness_failed(attempt: Attempt, error: Exception) -> Attempt:
    """The attempt as one that gpucheck itself could not finish."""
    return ended(attempt, Outcome.HARNESS, words(error), traceback.format_exc())


def words(error: Exception) -> str:
    """An exception in one line."""
    return f"{type(error).__name__}: {error}{raised_from(error)}"
