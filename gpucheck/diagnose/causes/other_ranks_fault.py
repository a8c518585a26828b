"""Cases that were stopped by a fault of another rank on their GPU.

A process that launches on the GPU of another rank can take that rank's work down with it: the driver resets the GPU's
engines. It names the process at fault by its number, as far as both see the same numbers.
"""

from __future__ import annotations

import re

from gpucheck.diagnose.answers import answers
from gpucheck.diagnose.causes import common
from gpucheck.diagnose.causes.common import Evidence
from gpucheck.diagnose.causes.interference import INTERFERENCE
from gpucheck.diagnose.finding_cases import Key
from gpucheck.diagnose.wording import lines_of
from gpucheck.model.finding import Finding
from gpucheck.model.record import Outcome, Record
from gpucheck.records.run_folder import Run

CAUSES = (INTERFERENCE,)

_AT_FAULT = re.compile(r"\bXid\b.*\bpid=(\d+)")
_FIX = "fix what failed on that rank, then run again: nothing is known of this case here"


def recognise(run: Run, record: Record) -> Evidence | None:
    """A crash or hang that did not come again, on a GPU where the driver saw a fault of another rank's process."""
    seen = answers(run, record)
    stopped = record.outcome in (Outcome.CRASH, Outcome.HANG) and not any(map(seen.wrong, seen.tried))
    culprit = _culprit(run, record) if stopped else None
    if culprit is None:
        return None
    return Evidence(INTERFERENCE, f"stopped by a fault of rank {culprit.rank} on its GPU", _FIX)


def findings(run: Run, evidence: dict[Key, Evidence]) -> list[Finding]:
    """As usual, with the case that was at fault."""
    return common.findings(run, evidence, lambda record: [*lines_of(record), *_blame(run, record)])


def _blame(run: Run, record: Record) -> list[str]:
    culprit = _culprit(run, record)
    return [f"at fault: process {culprit.pid} of rank {culprit.rank}, in {culprit.case}"] if culprit else []


def _culprit(run: Run, record: Record) -> Record | None:
    """The failed record of another rank of the same host whose process the driver blames on this record's GPU."""
    said = (_AT_FAULT.search(item["text"]) for item in run.driver if item.get("rank") == record.rank)
    pids = {int(match[1]) for match in said if match} - {record.pid}
    crashed = (other for _, other in sorted(run.records.items()) if other.outcome is Outcome.CRASH)
    return next(
        (each for each in crashed if each.rank != record.rank and each.host == record.host and each.pid in pids), None
    )
