"""What torchrun starts on each rank: ``python -m gpucheck.worker RUN_DIR``."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from pathlib import Path

from gpucheck.records.writer import RecordWriter
from gpucheck.worker.rank import outlive
from gpucheck.worker.supervisor import main

RUN = Path(sys.argv[1])


def died(how: str) -> None:
    """Writes down the death of the supervisor behind its records."""
    with suppress(OSError):
        RecordWriter(RUN, int(os.environ["RANK"])).death(how)


if __name__ == "__main__":
    outlive(lambda: main(RUN), died)
