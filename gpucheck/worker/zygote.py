"""A forkserver: one process that has torch and triton loaded, never touches CUDA, and forks children that do.

It is itself forked from the supervisor right after the imports, so a rank pays for them once. Everything dies with
its parent.
"""

from __future__ import annotations

import os
import signal
import socket
import struct
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

from gpucheck.launch.family import die_with_parent, state_of

_GRACE = 10.0  # s that a child which closed its connection has to end before it is killed
_KILLED = 30.0  # s that a killed child has to end; taking down a GPU with a busy kernel takes its time
_FORK = 60.0  # s that the server has to fork
_STUCK = 1 << 30  # answered in place of an exit code
_kill = os.kill


class Undying(Exception):
    """A process that SIGKILL does not end, since it is stuck in the kernel: mostly in the driver of its GPU."""

    def __init__(self, pid: int) -> None:
        super().__init__(f"process {pid} did not end within {_KILLED:g} s of SIGKILL (state {state_of(pid)})")


@dataclass
class Child:
    """A forked process and the connection to it."""

    pid: int
    connection: Connection


class Zygote:
    """The supervisor's handle on the forkserver.

    Every method raises OSError where the server has died or does not answer; it is not used any more then.
    """

    def __init__(self, main: Callable[[Connection], None]) -> None:
        """Forks the server; call it before this process starts a thread.

        Args:
            main: what a child runs.
        """
        self._control, theirs = socket.socketpair()
        sys.stdout.flush()
        supervisor = os.getpid()
        self.pid = os.fork()
        if self.pid == 0:
            die_with_parent(supervisor)
            self._control.close()
            _serve(theirs, main)
        theirs.close()

    def spawn(self) -> Child:
        """A fresh child."""
        ours, theirs = socket.socketpair()
        socket.send_fds(self._control, [b"f" + bytes(4)], [theirs.fileno()])
        theirs.close()
        return Child(self._answer(_FORK), Connection(ours.detach()))

    def bury(self, child: Child) -> int:
        """Kills the child if it still runs, waits for it and returns its exit code, negative for a signal.

        Raises:
            Undying: it does not end.
        """
        self._control.send(b"k" + struct.pack("i", child.pid))
        try:
            return self._exit_code(child)
        finally:
            child.connection.close()

    def reap(self, child: Child) -> int:
        """Waits for a child that ends by itself and returns its exit code, negative for a signal.

        Raises:
            Undying: it does not end, not even when it is killed.
        """
        child.connection.close()
        self._control.send(b"w" + struct.pack("i", child.pid))
        return self._exit_code(child)

    def close(self) -> None:
        """Ends the server."""
        self._control.close()
        os.waitpid(self.pid, 0)

    def _exit_code(self, child: Child) -> int:
        code = self._answer(_GRACE + 2 * _KILLED)
        if code == _STUCK:
            raise Undying(child.pid)
        return code

    def _answer(self, seconds: float) -> int:
        self._control.settimeout(seconds)
        try:
            answer = self._control.recv(4)
        except TimeoutError:
            os.kill(self.pid, signal.SIGKILL)
            raise ChildProcessError(f"the forkserver of this rank did not answer within {seconds:g} s") from None
        if len(answer) < 4:
            raise ChildProcessError("the forkserver of this rank has died")
        return int(struct.unpack("i", answer)[0])


def _serve(control: socket.socket, main: Callable[[Connection], None]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    while True:
        message, fds, _, _ = socket.recv_fds(control, 5, 1)
        if not message:
            os._exit(0)
        if message[:1] == b"f":
            server = os.getpid()
            pid = os.fork()
            if pid == 0:
                die_with_parent(server)
                control.close()
                _run(main, fds[0])
            os.close(fds[0])
            control.send(struct.pack("i", pid))
            continue
        (pid,) = struct.unpack("i", message[1:])
        control.send(struct.pack("i", _end(pid, at_once=message[:1] == b"k")))


def _end(pid: int, *, at_once: bool) -> int:
    """The exit code of a child, which is killed now or where it does not end by itself within the grace."""
    if at_once or not _ends(pid, _GRACE):
        _kill(pid, signal.SIGKILL)
        if not _ends(pid, _KILLED):
            return _STUCK
    _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status)


def _ends(pid: int, seconds: float) -> bool:
    """Whether a child ends within a time; it is left to be waited for."""
    deadline = time.monotonic() + seconds
    while os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.005)
    return True


def _run(main: Callable[[Connection], None], fd: int) -> None:
    with suppress(OSError):  # where memory runs out, the kernel shall end this process and not its supervisor
        Path("/proc/self/oom_score_adj").write_text("1000")
    code = 1
    try:
        main(Connection(fd))
        code = 0
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
        traceback.print_exc()
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
