"""A rank, as torchrun starts it: ``python -m gpucheck.worker RUN_DIR``, or by a call of :func:`start`."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from pathlib import Path

from gpucheck.host import log_excerpt
from gpucheck.records.writer import RecordWriter
from gpucheck.worker.device.child import import_ahead, serve
from gpucheck.worker.last_words import keep_what_is_printed
from gpucheck.worker.rank_process import outlive
from gpucheck.worker.supervisor.supervisor import main


def start(run: Path) -> None:
    """Works through the plan of a run folder as the rank that the environment names."""

    def died(how: str) -> None:
        """Appends the death of the supervisor to its records."""
        with suppress(OSError):
            logs = log_excerpt.ends(log_excerpt.marks())
            said, log = log_excerpt.printed(logs), log_excerpt.paths(logs, run)
            RecordWriter(run, int(os.environ["RANK"])).death(how, said=said, log=log)

    def work() -> None:
        keep_what_is_printed()
        main(run, serve, import_ahead)

    outlive(work, died)


if __name__ == "__main__":
    start(Path(sys.argv[1]))
