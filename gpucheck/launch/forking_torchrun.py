"""torchrun whose ranks are forks of it, so that the ranks of a node import torch once and not each by itself.

``python -m gpucheck.launch.forking_torchrun`` takes torchrun's own command line, the one that ends in
``-m MODULE RUN_DIR``, and is torchrun in all but that: each rank calls ``MODULE.__main__.start(RUN_DIR)``. torch
touches no GPU before. With ``--told-by DESCRIPTOR`` in place of a command line it loads torch and waits until it can
read that there, see :mod:`gpucheck.launch.early_torchrun`.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from gpucheck.host.bytecode import Bytecode
from gpucheck.host.containment import hide_memory
from gpucheck.host.processes import loading
from gpucheck.launch.early_torchrun import LOADED, TOLD_BY
from gpucheck.library.cache_folder import cache_root

IMPORTED = "GPUCHECK_IMPORTED"
"""Environment variable of the ranks: seconds that was imported before they were forked."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs torchrun with some arguments; by default those of this process."""
    hide_memory()
    words = sys.argv[1:] if arguments is None else list(arguments)
    command = _Command(int(words[1])) if words[:1] == [TOLD_BY] else None
    begin = time.monotonic()
    try:
        with loading(), Bytecode("torch", cache_root):
            torchrun: Any = import_module(LOADED)
            cuda: Any = import_module("torch.cuda")
            import_module(f"{sys.argv[-2] if command else words[-2]}.__main__")  # what ranks begin with
    finally:  # what goes wrong is raised where there is a log to tell of it
        end = time.monotonic()
        if command:
            words, since = command.received()
            begin, sys.argv[1:] = max(begin, min(since, end)), words
    os.environ[IMPORTED] = str(end - begin)
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
    torchrun.main(words)


class _Command:
    """The command line that another process will tell this one; from then on this one prints to the log it was told."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._message: dict[str, Any] = {}
        self._thread = threading.Thread(target=self._receive)  # what dies while it loads torch dies with its log
        self._thread.start()

    def received(self) -> tuple[list[str], float]:
        """Waits for it, and gives it with the time at which the run began; environment variables are set then.

        Ends this process where nothing will come.
        """
        self._thread.join()
        if not self._message:
            os._exit(1)
        os.environ.update(self._message["environment"])
        return self._message["arguments"], self._message["since"]

    def _receive(self) -> None:
        with open(self._descriptor, "rb") as pipe:
            line = pipe.readline()
        if not line:
            return
        message = json.loads(line)
        early, log = os.dup(1), os.open(message["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
        for standard in (1, 2):
            os.dup2(log, standard)
        os.write(log, os.pread(early, os.fstat(early).st_size, 0))
        os.close(early)
        os.close(log)
        self._message = message


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
