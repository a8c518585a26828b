"""One process with torch and a Triton loaded that forks the compiling processes: the loading is most of a small job.

``python -m gpucheck.compile.forkserver MODULE LIFE`` reads one JSON object a line, forks a process that calls
``MODULE.main``, and leaves files beside the answer: ``.pid`` when the process leads a session of its own, ``.exit``
with its exit code when it has ended. All of it ends with the process that holds the other end of the pipe LIFE.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Mapping
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any

POLL = 0.02  # s
PATIENCE = 5.0  # s for a killed process to end


class Forkserver:
    """The server of one Triton, started at once.

    Args:
        module: has ``main(question, answer)`` and may have ``preload()``.
        environment: of all its processes.
    """

    def __init__(self, module: str, environment: Mapping[str, str]) -> None:
        self._lock = threading.Lock()
        self._printed = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the server
        theirs, self._life = os.pipe()
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__, module, str(theirs)],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=self._printed,
            stderr=self._printed,
            pass_fds=[theirs],
            start_new_session=True,
        )
        os.close(theirs)

    def fork(self, question: Path, answer: Path, output: Path, environment: Mapping[str, str]) -> Forked:
        """Starts a process that prints to ``output``; a server that has died shows in what it ends with."""
        order = {"question": str(question), "answer": str(answer), "output": str(output), "env": dict(environment)}
        with self._lock, suppress(OSError):
            assert self._process.stdin is not None
            self._process.stdin.write(json.dumps(order).encode() + b"\n")
            self._process.stdin.flush()
        return Forked(self, answer)

    def died(self) -> int | None:
        """The exit code of the server, where it has ended."""
        return self._process.poll()

    def printed(self) -> str:
        """What the server itself has printed."""
        size = os.fstat(self._printed.fileno()).st_size
        return os.pread(self._printed.fileno(), size, 0).decode(errors="replace")

    def close(self) -> None:
        """Ends the server and all that it has forked."""
        os.close(self._life)
        self._process.kill()
        self._process.wait()
        assert self._process.stdin is not None
        with suppress(OSError):
            self._process.stdin.close()
        self._printed.close()


class Forked:
    """A process that was asked for."""

    def __init__(self, server: Forkserver, answer: Path) -> None:
        self._server, self._answer = server, answer

    def poll(self) -> int | None:
        """Its exit code, or the server's where that has died before; None while it runs."""
        died = self._server.died()  # asked first: what it has still written counts
        code = _number(self._answer.with_suffix(".exit"))
        return died if code is None else code

    def printed(self) -> str:
        """What the server printed, where it has died: the reason that nothing was forked."""
        return "" if self._server.died() is None else self._server.printed()

    def kill(self) -> None:
        """Ends it and the assemblers that it has started, and waits until nothing writes to its folder any more."""
        pid = _number(self._answer.with_suffix(".pid"))
        if pid is None:
            return
        with suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)
        deadline = time.monotonic() + PATIENCE
        while self.poll() is None and time.monotonic() < deadline:
            time.sleep(POLL)


def serve(module: Any, life: int) -> None:
    """Forks until stdin ends."""
    running: dict[int, Path] = {}
    pending = b""
    while True:
        readable, _, _ = select.select([0], [], [], POLL if running else None)
        for pid in list(running):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                _leave(running.pop(pid).with_suffix(".exit"), os.waitstatus_to_exitcode(status))
        if not readable:
            continue
        read = os.read(0, 1 << 16)
        if not read:
            return
        *lines, pending = (pending + read).split(b"\n")
        for line in lines:
            order = json.loads(line)
            pid = os.fork()
            if not pid:
                _run(module, order, life)
            running[pid] = Path(order["answer"])


def _run(module: Any, order: Mapping[str, Any], life: int) -> None:
    """What a forked process does with its life."""
    code = 1
    try:
        os.setsid()
        question, answer = Path(order["question"]), Path(order["answer"])
        output = os.open(order["output"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        for number in (1, 2):
            os.dup2(output, number)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.environ.update(order["env"])
        tempfile.tempdir = None  # asked for again, in the environment as it is now
        threading.Thread(target=_end_with, args=(life,), daemon=True).start()
        _leave(answer.with_suffix(".pid"), os.getpid())
        module.main(question, answer)
        code = 0
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
        if isinstance(error.code, str):
            print(error.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _end_with(life: int) -> None:
    """Ends this process and the assemblers it has started when the other end of a pipe is gone."""
    os.read(life, 1)
    os.killpg(0, signal.SIGKILL)


def _leave(path: Path, number: int) -> None:
    """Writes a number as a whole; where the folder is gone, nobody wants it."""
    partial = path.with_name(path.name + ".partial")
    with suppress(OSError):
        partial.write_text(str(number))
        partial.rename(path)


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except FileNotFoundError:
        return None


if __name__ == "__main__":
    found = import_module(sys.argv[1])
    getattr(found, "preload", lambda: None)()
    serve(found, int(sys.argv[2]))
