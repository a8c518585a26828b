"""What torchrun starts on each rank: ``python -m gpucheck.worker RUN_DIR``."""

from __future__ import annotations

import sys
from pathlib import Path

from gpucheck.worker.rank import outlive
from gpucheck.worker.supervisor import main

if __name__ == "__main__":
    outlive(lambda: main(Path(sys.argv[1])))
