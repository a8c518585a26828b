"""torchrun whose ranks are forks of it, so that the ranks of a node import torch once and not each by itself.

``python -m gpucheck.launch.forking_torchrun`` takes torchrun's own command line, the one that ends in
``-m MODULE RUN_DIR``, and is torchrun in all but that:
 each rank calls ``MODULE.__main__.start(RUN_DIR)``. torch touches no GPU before.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from gpucheck.host.containment import hide_memory

IMPORTED = "GPUCHECK_IMPORTED"
"""Environment variable of the ranks: seconds that was imported before they were forked."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs torchrun with some arguments; by default those of this process."""
    hide_memory()
    begin = time.perf_counter()
    torchrun: Any = import_module("torch.distributed.run")
    cuda: Any = import_module("torch.cuda")
    os.environ[IMPORTED] = str(time.perf_counter() - begin)
    read, is_available = torchrun.config_from_args, cuda.is_available

    def rank(module: str, run: str) -> None:
        """A rank, whose environment is what torchrun has made it."""
        cuda.is_available, tempfile.tempdir = is_available, None
        for number in (signal.SIGINT, signal.SIGTERM):  # torchrun's own handlers were inherited
            signal.signal(number, signal.SIG_DFL)
        import_module(f"{module}.__main__").start(Path(run))

    def read_to_fork(arguments: Any) -> Any:
        config, command, words = read(arguments)
        if not _can_fork():
            return config, command, words
        config.start_method = "fork"
        return config, rank, tuple(words[-2:])

    torchrun.config_from_args = read_to_fork
    tempfile.tempdir = os.environ.get("GPUCHECK_SCRATCH")  # torchrun leaves logs and what ranks raised where it pleases
    cuda.is_available = lambda: False  # torchrun asks, and once asked torch takes no fork for fit to use a GPU
    torchrun.main(sys.argv[1:] if arguments is None else list(arguments))


def _can_fork() -> bool:
    """Whether torchrun's ways to hear from forked ranks work here; they need shared memory."""
    try:
        multiprocessing.get_context("fork").Event()
    except OSError:
        return False
    return True


if __name__ == "__main__":
    main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # all ranks ended well, and taking down an interpreter with torch in it takes a second
