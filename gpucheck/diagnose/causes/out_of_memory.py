"""Memory that ran out: the GPU's or the host's."""

from __future__ import annotations

from gpucheck.diagnose.answers import answers
from gpucheck.diagnose.causes import common
from gpucheck.diagnose.causes.common import Evidence
from gpucheck.diagnose.finding_cases import Key
from gpucheck.diagnose.page import Cause
from gpucheck.diagnose.wording import lines_of
from gpucheck.model.finding import Finding
from gpucheck.model.record import OOM_KILLER, Outcome, Record
from gpucheck.model.vocabulary import ExperimentName
from gpucheck.records.run_folder import Run

OUT_OF_MEMORY = Cause(
    "out of memory",
    means="Memory ran out: an allocation on the GPU failed, or the operating system killed the process because host "
    "memory ran out. Neither harms the GPU, and the next case gets a fresh process.",
    shows="torch.OutOfMemoryError, MemoryError, or SIGKILL while the counter of the out-of-memory killer rose.",
    confirm="Run the case alone in a fresh process (--case, --isolate case): if it is right there, others held the "
    "memory.",
    fix="End what else holds the memory (nvidia-smi lists processes), take smaller shapes, or grant the "
    "container more host memory.",
)
CAUSES = (OUT_OF_MEMORY,)

HELD = (
    "a fresh process had enough: an earlier case or another process held the memory; nvidia-smi names processes, "
    "--isolate case gives every case a process of its own"
)


def recognise(run: Run, record: Record) -> Evidence | None:
    """An error that says so, or a process that the kernel killed for it."""
    message = record.message
    if record.outcome is Outcome.CRASH and OOM_KILLER in message:
        return Evidence(OUT_OF_MEMORY, "host memory", across=False)
    if record.outcome not in (Outcome.ERROR, Outcome.CRASH):
        return None
    if message.startswith("MemoryError"):
        return Evidence(OUT_OF_MEMORY, "host memory", across=False)
    if "out of memory" not in message.lower():
        return None
    held = HELD if answers(run, record).right(ExperimentName.REPEAT) else ""
    return Evidence(OUT_OF_MEMORY, "GPU memory", fix=held, across=False)


def findings(run: Run, evidence: dict[Key, Evidence]) -> list[Finding]:
    """As usual, with the place and the kernels under test."""
    return common.findings(run, evidence, lambda record: [*lines_of(record), *_place(record)])


def _place(record: Record) -> list[str]:
    words = [f"asked for at {record.source}"] if record.source else []
    words += [f"under test: {', '.join(record.kernels)}"] if record.kernels else []
    return ["; ".join(words)] if words else []
