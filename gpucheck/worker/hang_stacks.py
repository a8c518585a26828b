"""Where a hung child stands: it writes the stacks of its threads when signalled, even from inside a CUDA call."""

from __future__ import annotations

import faulthandler
import os
import re
import signal
import time
from pathlib import Path

from gpucheck.host.processes import starved, state_of

SIGNAL = signal.SIGRTMIN + 4  # LLVM, once it has compiled something, has taken over SIGUSR1 and others
_WAIT = 5.0  # s for the stacks to appear; as long again where the process waits for a processor meanwhile
_MAIN = "Current thread"  # begins the part that comes last, all of it line by line
_FRAME = re.compile(r'File "(?P<file>.*)", line (?P<line>\d+) in (?P<function>.*)')


def register(path: Path) -> None:
    """In the child: from now on the signal writes the stacks to ``path``."""
    faulthandler.register(SIGNAL, file=open(path, "w"), all_threads=True)  # noqa: SIM115 - open as long as the process


def collect(pid: int, path: Path) -> str:
    """The stacks of the process, the most recent call first; "" where it does not answer."""
    begin, before, text = time.monotonic(), starved(pid), ""
    os.kill(pid, SIGNAL)
    while time.monotonic() - begin < _WAIT + min(_WAIT, starved(pid) - before) and state_of(pid) not in ("Z", "gone"):
        time.sleep(0.05)
        seen, text = text, path.read_text(errors="replace")
        if text == seen and _FRAME.search(text.rpartition(_MAIN)[2]) and _MAIN in text:
            break
    return text


def innermost(text: str) -> str:
    """``file.py:12 in function`` of the thread that took the signal, the main one; "" where there is none.

    Code without a file, such as the ``__init__`` of a dataclass, tells a reader nothing: its caller is named.
    """
    _, _, current = text.rpartition(_MAIN)
    frames = list(_FRAME.finditer(current))
    frame = next((each for each in frames if not each["file"].startswith("<")), frames[0] if frames else None)
    return f"{Path(frame['file']).name}:{frame['line']} in {frame['function']}" if frame else ""
