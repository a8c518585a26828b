"""A forkserver: one process that has torch and triton loaded, never touches CUDA, and forks children that do.

It is itself forked from the supervisor right after the imports, so a rank pays for them once. Everything dies with
its parent.
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import struct
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection

_PR_SET_PDEATHSIG = 1
_GRACE = 10.0  # s that a child which closed its connection has to end before it is killed


def die_with_parent() -> None:
    """Asks the kernel to kill this process when its parent ends."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() == 1:
        os._exit(1)


@dataclass
class Child:
    """A forked process and the connection to it."""

    pid: int
    connection: Connection


class Zygote:
    """The supervisor's handle on the forkserver."""

    def __init__(self, main: Callable[[Connection], None]) -> None:
        """Forks the server; call it before this process starts a thread.

        Args:
            main: what a child runs.
        """
        self._control, theirs = socket.socketpair()
        sys.stdout.flush()
        self.pid = os.fork()
        if self.pid == 0:
            self._control.close()
            _serve(theirs, main)
        theirs.close()

    def spawn(self) -> Child:
        """A fresh child."""
        ours, theirs = socket.socketpair()
        socket.send_fds(self._control, [b"f" + bytes(4)], [theirs.fileno()])
        theirs.close()
        return Child(self._answer(), Connection(ours.detach()))

    def bury(self, child: Child) -> int:
        """Kills the child if it still runs, waits for it and returns its exit code, negative for a signal."""
        self._control.send(b"k" + struct.pack("i", child.pid))
        code = self._answer()
        child.connection.close()
        return code

    def reap(self, child: Child) -> int:
        """Waits for a child that ends by itself and returns its exit code, negative for a signal."""
        child.connection.close()
        self._control.send(b"w" + struct.pack("i", child.pid))
        return self._answer()

    def close(self) -> None:
        """Ends the server."""
        self._control.close()
        os.waitpid(self.pid, 0)

    def _answer(self) -> int:
        answer = self._control.recv(4)
        if len(answer) < 4:
            raise ChildProcessError("the forkserver of this rank has died")
        return int(struct.unpack("i", answer)[0])


def _serve(control: socket.socket, main: Callable[[Connection], None]) -> None:
    die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    while True:
        message, fds, _, _ = socket.recv_fds(control, 5, 1)
        if not message:
            os._exit(0)
        if message[:1] == b"f":
            pid = os.fork()
            if pid == 0:
                control.close()
                _run(main, fds[0])
            os.close(fds[0])
            control.send(struct.pack("i", pid))
            continue
        (pid,) = struct.unpack("i", message[1:])
        if message[:1] == b"k" or not _ends(pid):
            os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        control.send(struct.pack("i", os.waitstatus_to_exitcode(status)))


def _ends(pid: int) -> bool:
    """Whether a child ends by itself within the grace; it is left to be waited for."""
    deadline = time.monotonic() + _GRACE
    while os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def _run(main: Callable[[Connection], None], fd: int) -> None:
    die_with_parent()
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
