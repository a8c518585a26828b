"""State that threads of one process share."""

from __future__ import annotations

from gpucheck.diagnose.answers import answers
from gpucheck.diagnose.causes.common import Evidence, error_summary
from gpucheck.diagnose.page import Cause
from gpucheck.model.record import Record
from gpucheck.model.vocabulary import ExperimentName
from gpucheck.records.run_folder import Run

THREADS = Cause(
    "state shared by threads",
    means="Host code of the library or the caller keeps state that several threads of a process share without a "
    "lock: a scratch buffer, an option flag, a half-filled cache, the current allocator.",
    shows="Right with one thread, wrong now and then with several, at other launches each time.",
    confirm="gpucheck run flaky: the same launches by one thread and by many; gpucheck audit lists module state.",
    fix="Give each thread its own state, or take a lock around what is shared; in the caller, launch from one "
    "thread until that is done.",
)
CAUSES = (THREADS,)


def recognise(run: Run, record: Record) -> Evidence | None:
    """Wrong among several threads, right with one."""
    seen = answers(run, record)
    return Evidence(THREADS, error_summary(record)) if seen.separates(ExperimentName.ONE_THREAD) else None
