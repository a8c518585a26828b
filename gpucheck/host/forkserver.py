"""A forkserver: one process that has loaded what is slow to load, never touches CUDA, and forks children that do.

It is forked from a process that has loaded all that (:class:`Forkserver`), or it is a Python of its own with another
environment (:meth:`Forkserver.started`). A child costs a fork; one that crashes or hangs costs itself alone.
"""

from __future__ import annotations

import os
import signal
import socket
import struct
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from multiprocessing.connection import Connection
from pathlib import Path
from typing import IO, NoReturn

from gpucheck.host.containment import show_memory
from gpucheck.host.processes import (
    adopt,
    children_of,
    code_if_ended,
    die_with_parent,
    end_with,
    ending,
    loading,
    outlive_parent,
    state_of,
)

_GRACE = 10.0  # s that a child which closed its connection has to end before it is killed
_KILLED = 30.0  # s that a killed child has to end; taking down a GPU with a busy kernel takes its time
_ANSWER = 60.0  # s that the server has to answer
_POLL = 0.005  # s
_RUNNING = 1 << 30  # answered in place of an exit code

Main = Callable[[Connection], None]


class Unkillable(Exception):
    """A process that SIGKILL does not end, since it is stuck in the kernel: mostly in the driver of its GPU."""

    def __init__(self, pid: int, seconds: float = _KILLED) -> None:
        super().__init__(f"process {pid} did not end within {seconds:g} s of SIGKILL (state {state_of(pid)})")


@dataclass
class Child:
    """A forked process and the connection to it."""

    pid: int
    connection: Connection


class Forkserver:
    """The handle on a forkserver; threads may share it.

    Every method raises OSError where the server has died or does not answer; it is not used any more then.
    """

    def __init__(self, main: Main, load: Callable[[], None] | None = None) -> None:
        """Forks the server from this process; call it before this process starts a thread.

        Args:
            main: what a child runs.
            load: called once in the server, which forks nothing before it returns. Where it raises, the server ends.
        """
        ours, theirs = socket.socketpair()
        sys.stdout.flush()
        owner, pid = os.getpid(), os.fork()
        if not pid:
            die_with_parent(owner)
            ours.close()
            if load and not _loaded(load):
                os._exit(1)
            _serve(theirs, main)
        theirs.close()
        self._hold(pid, ours)

    @classmethod
    def started(cls, module: str, environment: Mapping[str, str]) -> Forkserver:
        """Starts a Python with another environment; a child of it runs ``main`` of this module.

        The module may have a function ``preload()``, which loads there what all children need. What is printed there
        is kept for :meth:`last_words`. Ctrl-C does not reach it: it ends with the handle, or with this process.
        """
        ours, theirs = socket.socketpair()
        printed = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the server
        fds = (theirs.fileno(), printed.fileno(), printed.fileno())
        files = [(os.POSIX_SPAWN_DUP2, fd, number) for number, fd in enumerate(fds)]
        command = [sys.executable, "-m", __name__, module]
        pid = os.posix_spawn(sys.executable, command, dict(environment), file_actions=files)
        theirs.close()
        server = cls.__new__(cls)
        server._hold(pid, ours, printed)
        return server

    def _hold(self, pid: int, control: socket.socket, printed: IO[bytes] | None = None) -> None:
        self.pid, self._control, self._printed = pid, control, printed
        self._lock = threading.Lock()
        self._code: int | None = None  # of the server, once it has ended
        self._serves = False  # it has answered

    def __enter__(self) -> Forkserver:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def spawn(self, seconds: float | None = None) -> Child:
        """A fresh child.

        Args:
            seconds: that the server may take, which loads everything first.
        """
        ours, theirs = socket.socketpair()
        with theirs:
            return Child(self._ask(b"f", 0, seconds, [theirs.fileno()]), Connection(ours.detach()))

    def kill(self, child: Child, seconds: float | None = None) -> int:
        """Kills the child and all that it has started, waits for it and returns its exit code, negative for a signal.

        Args:
            seconds: that it may take to end.

        Raises:
            Unkillable: it does not end.
        """
        seconds = _KILLED if seconds is None else seconds
        try:
            self._ask(b"k", child.pid)
            code = self._end_of(child, seconds)
        finally:
            child.connection.close()
        if code is None:
            raise Unkillable(child.pid, seconds)
        return code

    def reap(self, child: Child) -> int:
        """Waits for a child that ends by itself and returns its exit code, negative for a signal.

        Raises:
            Unkillable: it does not end, not even when it is killed.
        """
        child.connection.close()
        code = self._end_of(child, _GRACE)
        return self.kill(child) if code is None else code

    def end_leftovers(self, seconds: float) -> int:
        """Ends what children that have ended left behind in other sessions, and says how many processes that were.

        Args:
            seconds: that they have to end by themselves, as helpers do that watch over their parent.
        """
        deadline = time.monotonic() + seconds
        while self._ask(b"l", 0) and time.monotonic() < deadline:
            time.sleep(_POLL)
        count, deadline = self._ask(b"e", 0), time.monotonic() + _KILLED
        while self._ask(b"e", 0) and time.monotonic() < deadline:  # what those had started in turn
            time.sleep(_POLL)
        return count

    def last_words(self, code: int) -> str:
        """How a process ended, and the last line printed in this server or its children."""
        lines = []
        if self._printed is not None:
            size = os.fstat(self._printed.fileno()).st_size
            lines = os.pread(self._printed.fileno(), size, 0).decode(errors="replace").strip().splitlines()
        return ending(code) + (f": {lines[-1].strip()}" if lines else "")

    def died(self) -> bool:
        """Whether the server has ended."""
        with self._lock:
            if self._code is None:
                self._code = code_if_ended(self.pid)
            return self._code is not None

    def close(self) -> None:
        """Ends the server and all that it has forked."""
        self._control.close()
        if not self._serves:  # it loads, and has nothing to end
            self._kill()
        self._wait()
        if self._printed is not None:
            self._printed.close()

    def _kill(self) -> None:
        with suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)

    def _wait(self) -> None:
        """Waits for a server that has closed its connection, or sees that this one is closed."""
        deadline = time.monotonic() + _GRACE
        while not self.died():
            if time.monotonic() > deadline:
                self._kill()
            time.sleep(_POLL)

    def _end_of(self, child: Child, seconds: float) -> int | None:
        """The exit code of a child; None where it does not end within a time."""
        deadline = time.monotonic() + seconds
        while (code := self._ask(b"w", child.pid)) == _RUNNING:
            if time.monotonic() > deadline:
                return None
            time.sleep(_POLL)
        return code

    def _ask(self, order: bytes, pid: int, seconds: float | None = None, fds: Sequence[int] = ()) -> int:
        seconds = _ANSWER if seconds is None else seconds
        with self._lock:
            try:
                self._control.settimeout(seconds)
                socket.send_fds(self._control, [order + struct.pack("i", pid)], fds)
                answer = self._control.recv(4)
            except TimeoutError:
                self._kill()
                raise TimeoutError(f"the forkserver did not answer within {seconds:g} s") from None
            except ConnectionError:
                answer = b""
        if len(answer) < 4:
            self._wait()
            raise ChildProcessError(f"the forkserver {self.last_words(self._code or 0)}")
        self._serves = True
        return int(struct.unpack("i", answer)[0])


def _serve(control: socket.socket, main: Main) -> NoReturn:
    """Forks, kills and waits as told, at once each time, until the other end of the connection is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    adopt()
    children: set[int] = set()
    while True:
        message, fds, _, _ = socket.recv_fds(control, 5, 1)
        if not message:
            for child in children:
                _kill(child)
            _leftovers(children, end=True)
            os._exit(0)
        order, (pid,) = message[:1], struct.unpack("i", message[1:])
        answer = 0
        if order == b"f":
            server, answer = os.getpid(), os.fork()
            os.setpgid(answer, answer)  # what a child starts, a compiler say, is to end with it
            if not answer:
                die_with_parent(server)
                control.close()
                _run(main, fds[0])
            os.close(fds[0])
            children.add(answer)
        elif order == b"k":
            _kill(pid)
        elif order in (b"l", b"e"):
            answer = len(_leftovers(children, end=order == b"e"))
        elif os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            answer = _RUNNING
        else:
            answer = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            children.discard(pid)
        control.send(struct.pack("i", answer))


def _leftovers(children: set[int], *, end: bool) -> set[int]:
    """The processes that children which have ended left behind, each with what it has started in turn.

    Args:
        children: that were forked here and not waited for.
        end: kills them.
    """
    found: set[int] = set()
    for pid in children_of(os.getpid()) - children:
        with suppress(ChildProcessError):
            if os.waitpid(pid, os.WNOHANG)[0]:
                continue
        found.add(pid)
        if end:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    return found


def _loaded(load: Callable[[], None]) -> bool:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # that of the process it was forked from speaks for that one
    try:
        with loading():
            load()
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        return False
    return True


def _kill(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)


def _run(main: Main, fd: int) -> NoReturn:
    show_memory()  # that of a server may be hidden; this process is one under test like any other
    with suppress(OSError):  # where memory runs out, the kernel shall end this process and not its supervisor
        Path("/proc/self/oom_score_adj").write_text("1000")
    end_with(lambda: main(Connection(fd)), trace_exit=True)


def _main(module: str) -> NoReturn:
    os.setsid()
    die_with_parent(os.getppid())
    control = socket.socket(fileno=os.dup(0))
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    loaded = import_module(module)
    getattr(loaded, "preload", lambda: None)()
    outlive_parent()  # it ends its children itself, and what they have started, when the connection is gone
    _serve(control, loaded.main)


if __name__ == "__main__":
    _main(sys.argv[1])
