"""Which messages of the driver stand beside which failure."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from itertools import chain
from typing import Any

from gpucheck.diagnose.causes.out_of_memory import OUT_OF_MEMORY
from gpucheck.model.finding import Finding
from gpucheck.records.run_folder import Run

_PID = re.compile(r"\bpid=(\d+)")


class DriverMessages:
    """What the driver and the kernel said during a run.

    A message that names a process of the run belongs to the cases which that process ran, and one that names another
    process belongs to no failure. Where no message names a process of the run, a container may hide the ids that the
    driver uses: then messages belong to all failures on their GPU.
    """

    def __init__(self, run: Run) -> None:
        self._messages = run.driver
        self._ran: dict[tuple[int, int], set[str]] = defaultdict(set)  # (rank, process) -> labels of cases
        for record in chain(run.records.values(), *chain(*(each.values() for each in run.experiments.values()))):
            self._ran[record.rank, record.pid].add(run.plan.steps[record.step].label)
        self._knows = any(_process(item) in self._ran for item in self._messages)

    def beside(self, finding: Finding) -> Finding:
        """A failure with the messages about its processes or the GPUs of its ranks, or about memory that ran out."""
        lines = [item["text"] for item in self._messages if finding.fails and self._about(item, finding)]
        return replace(finding, driver=lines) if lines else finding

    def others(self, findings: Sequence[Finding]) -> list[str]:
        """The messages that belong to no failure."""
        return [
            f"{'this machine' if item.get('rank') is None else 'GPU of rank {}'.format(item['rank'])}: {item['text']}"
            for item in self._messages
            if not any(finding.fails and self._about(item, finding) for finding in findings)
        ]

    def _about(self, item: dict[str, Any], finding: Finding) -> bool:
        if item.get("rank") is None:
            return finding.cause == OUT_OF_MEMORY.title and "emory" in item["text"]
        if item["rank"] not in finding.ranks:
            return False
        process = _process(item)
        if process is None or not self._knows:
            return True
        return any(case.case in self._ran.get(process, ()) for case in finding.cases)


def _process(item: dict[str, Any]) -> tuple[int, int] | None:
    """The rank and the id of the process that a message names."""
    named = _PID.search(item["text"])
    return (item["rank"], int(named[1])) if named and item.get("rank") is not None else None
