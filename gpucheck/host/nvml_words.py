"""What NVML tells of the GPUs while something runs, heard by a process of its own, where nvidia-ml-py is installed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec

from gpucheck.host.isolated import python_path
from gpucheck.host.processes import die_with_parent

MODULE = "gpucheck.host.nvml_process"
BINDING = "pynvml"  # the module of the package nvidia-ml-py
PATIENCE = 2.0  # s for the last words


@dataclass(frozen=True)
class Word:
    """Something that NVML said of a GPU."""

    bus: str  # PCI address
    kind: str  # of an Xid its kind, else "uncorrected", "corrected", "remapped", "remap pending", "remap failed", ...
    text: str
    number: int = 0  # of an Xid; 0: it is none


@dataclass(frozen=True)
class Heard:
    """All that NVML said."""

    gpus: list[list[str]]  # number, UUID and PCI address of each GPU
    words: list[Word]


class NvmlListener:
    """A process that listens; it dies with the thread that started it."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", MODULE],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": python_path()},
            start_new_session=True,  # Ctrl-C is not for it
            preexec_fn=partial(die_with_parent, os.getpid()),
        )

    @classmethod
    def started(cls) -> NvmlListener | None:
        """A listener; None where there is no binding to NVML, or no process to be had."""
        with suppress(OSError, ValueError):
            if find_spec(BINDING):
                return cls()
        return None

    @property
    def pid(self) -> int:
        return self._process.pid

    def conclude(self) -> None:
        """Has it say its last words, which :meth:`finish` waits for; there may be something else to do meanwhile."""
        if self._process.stdin:
            with suppress(OSError):
                self._process.stdin.close()
            self._process.stdin = None

    def finish(self) -> Heard | None:
        """What was said; None where NVML could not be listened to, or knows no GPU.

        A process that has not ended by itself after :data:`PATIENCE` is killed, and not waited for: one stuck in the
        driver does not die.
        """
        try:
            printed, _ = self._process.communicate(timeout=PATIENCE)
        except subprocess.TimeoutExpired as late:
            self._process.kill()
            printed = late.output or b""
        heard: Heard | None = None
        for line in printed.decode(errors="replace").splitlines():
            with suppress(ValueError, TypeError, KeyError):  # the last line may be cut
                item = json.loads(line)
                if heard is None:
                    heard = Heard(item["gpus"], [])
                else:
                    heard.words.append(Word(**item))
        return heard if heard and heard.gpus else None

    def close(self) -> None:
        """Ends it at once; after :meth:`finish` there is nothing left to do."""
        if self._process.poll() is None:
            self._process.kill()
            for pipe in (self._process.stdin, self._process.stdout):
                if pipe:
                    pipe.close()
