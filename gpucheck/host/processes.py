"""Processes: how they end, whose children they are, and that none outlives the command it comes from."""

from __future__ import annotations

import ctypes
import gc
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import IO, Any, NoReturn

from gpucheck.host.resources import available_memory

Process = subprocess.Popen[bytes]

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8  # of malloc.h
_MOST_KEPT = 2**31 - 1  # bytes at the end of the heap that stay with the process; mallopt takes an int
_SHARES = 16  # of free memory, for the processes of a rank; those of all ranks keep a fourth of it or less
_PATIENCE = 2.0  # s for killed processes to end
_POLL = 0.01  # s


def die_with_parent(parent: int, by: int = signal.SIGKILL) -> None:
    """Asks the kernel to send this process a signal when the thread that has started it ends.

    Args:
        parent: id of the parent; where another process has become the parent already, this one ends here.
    """
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, by)
    if os.getppid() != parent:
        os._exit(1)


def code_if_ended(pid: int) -> int | None:
    """The exit code of a child, negative for a signal, 0 where it was waited for elsewhere; None while it runs."""
    try:
        ended, status = os.waitpid(pid, os.WNOHANG)
    except ChildProcessError:
        return 0
    return os.waitstatus_to_exitcode(status) if ended else None


@contextmanager
def on_signals(call: Callable[[int, object], Any]) -> Iterator[None]:
    """Inside, SIGINT and SIGTERM call this; afterwards whoever took them before takes them again."""
    previous = {number: signal.signal(number, call) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def keep_freed_memory() -> None:
    """Makes malloc reuse large blocks instead of taking each anew from the kernel, which clears it page by page.

    References are made of short-lived tensors of many MiB: without this most of their time goes into page faults, most
    of all in virtual machines, and threads wait for each other there. Does nothing where malloc is not glibc's.

    Each rank has several such processes: together they keep no more than part of what is free now.
    """
    free = available_memory()
    share = _MOST_KEPT if free is None else free // (_SHARES * int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    with suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_ARENA_MAX, 1)  # only the heap of the first arena can grow that far
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, min(share, _MOST_KEPT))


@contextmanager
def loading() -> Iterator[None]:
    """Inside, modules are loaded: no garbage is looked for then, nor later among them by processes forked from here.

    To look takes a tenth of the time that torch takes to load, and in each fork copies the memory that is looked at.
    """
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if collects:
            gc.enable()


def adopt() -> None:
    """Makes this process the parent of descendants whose own parents end, however far off they have gone."""
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1)


def outlive_parent() -> None:
    """Takes :func:`die_with_parent` back."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, 0)


def ending(code: int) -> str:
    """How a process ended, in words.

    Args:
        code: its exit code, negative for a signal.
    """
    return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"


def start(command: Sequence[str], environment: Mapping[str, str], log: Path, by: int = signal.SIGKILL) -> Process:
    """Starts a command in a session of its own, so that Ctrl-C does not reach it, that dies with this process.

    Args:
        log: file that it prints to.
        by: signal that it gets when the thread that starts it ends.
    """
    with open(log, "wb") as output:
        return start_into(command, environment, output, by)


def start_into(
    command: Sequence[str],
    environment: Mapping[str, str],
    output: IO[bytes],
    by: int = signal.SIGKILL,
    inherited: Sequence[int] = (),
) -> Process:
    """As :func:`start`, with an open file that it prints to.

    Args:
        inherited: descriptors that it gets too.
    """
    return subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        env=environment,
        start_new_session=True,
        pass_fds=inherited,
        preexec_fn=partial(die_with_parent, os.getpid(), by),
    )


class ForkedProcess:
    """A fork of this process that works with an environment and a log of its own, as :func:`start` starts a command.

    What this process has loaded need not be loaded again. Fork before this process has threads.
    """

    def __init__(self, work: Callable[[], None], environment: Mapping[str, str], log: Path) -> None:
        """Forks.

        Args:
            work: what the fork does; its exit code is 0 where that returns, and 1 where it raises.
            log: file that it prints to.
        """
        self.returncode: int | None = None
        sys.stdout.flush()
        sys.stderr.flush()
        owner, self.pid = os.getpid(), os.fork()
        if not self.pid:
            _as_command(work, owner, environment, log)

    def poll(self) -> int | None:
        """The exit code, negative for a signal; None while it runs."""
        if self.returncode is None:
            self.returncode = code_if_ended(self.pid)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """The exit code, once it has ended.

        Raises:
            subprocess.TimeoutExpired: it has not within so many seconds.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        while (code := self.poll()) is None:
            if deadline is not None and time.monotonic() > deadline:
                raise subprocess.TimeoutExpired("fork", timeout or 0)
            time.sleep(_POLL)
        return code

    def terminate(self) -> None:
        """Asks it to end."""
        self._send(signal.SIGTERM)

    def kill(self) -> None:
        """Ends it."""
        self._send(signal.SIGKILL)

    def _send(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)


def _as_command(work: Callable[[], None], owner: int, environment: Mapping[str, str], log: Path) -> NoReturn:
    def begin() -> None:
        os.setsid()
        die_with_parent(owner)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
        for descriptor, opened in ((0, os.open(os.devnull, os.O_RDONLY)), (1, output), (2, output)):
            os.dup2(opened, descriptor)
        os.environ.clear()
        os.environ.update(environment)
        work()

    end_with(begin)


def end_with(work: Callable[[], object], *, trace_exit: bool = False) -> NoReturn:
    """Does the work of this fork and ends it as Python ends, without what its parent registered for its own end.

    Args:
        trace_exit: shows too where the work asked to exit.
    """
    code = 1
    try:
        work()
        code = 0
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
        if trace_exit:
            traceback.print_exc()
    except BaseException:
        traceback.print_exc()
    finally:
        with suppress(BaseException):  # a full disk
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def end(process: Process | ForkedProcess, grace: float) -> int:
    """Asks a process to end, kills it if it does not within ``grace`` seconds, and returns its exit code."""
    if process.poll() is None:
        process.terminate()
    try:
        return process.wait(grace)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()


class Family:
    """The descendants of this process that come into being from now on.

    Those whose parents end become children of this process and not of the system's first one, so that they are found.
    """

    def __init__(self) -> None:
        self._known = children_of(os.getpid())
        adopt()

    def leave(self, pid: int | None) -> None:
        """Leaves a child of this process out: it ends by itself."""
        self._known |= {pid} if pid else set()

    def end(self) -> list[int]:
        """Kills every descendant, generation by generation; returns those that did not end, stuck in the kernel."""
        deadline = time.monotonic() + _PATIENCE
        while (left := children_of(os.getpid()) - self._known) and time.monotonic() < deadline:
            for pid in left:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                with suppress(ChildProcessError):
                    os.waitpid(pid, os.WNOHANG)
            time.sleep(_POLL)
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 0)
        return sorted(left)


def children_of(pid: int) -> set[int]:
    """The children of a process, those that have ended and were not waited for included."""
    return {int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit() and parent_of(entry) == pid}


def descendants_of(pid: int) -> set[int]:
    """The children of a process, their children, and so on."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            children.setdefault(parent_of(entry), []).append(int(entry.name))
    found: set[int] = set()
    left = children.get(pid, [])
    while left:
        found.update(left)
        left = [child for parent in left for child in children.get(parent, []) if child not in found]
    return found


def parent_of(process: Path) -> int:
    """The parent of a process given by its folder in /proc; 0 where it has none or is gone."""
    return int(_after_name(process)[1])


def state_of(pid: int) -> str:
    """The state of a process as the kernel abbreviates it: R, S, D, T, Z, ...; "gone" where there is none."""
    return _after_name(Path("/proc", str(pid)))[0]


def _after_name(process: Path) -> list[str]:
    """The fields of a process's ``stat`` behind its name, which may hold anything."""
    try:
        return (process / "stat").read_text(errors="replace").rpartition(")")[2].split() or ["gone", "0"]
    except OSError:
        return ["gone", "0"]


def resident(pid: int) -> int:
    """Bytes of memory that a process has to itself, or its share of what it has with others; 0 where there is none.

    Source: ``Pss`` of ``/proc/PID/smaps_rollup``; where that cannot be read, the resident pages of ``statm``.
    """
    try:
        text = Path("/proc", str(pid), "smaps_rollup").read_text()
        return int(text.partition("\nPss:")[2].split()[0]) * 1024
    except (OSError, ValueError, IndexError):
        return resident_pages(pid)


def resident_pages(pid: int) -> int:
    """Bytes of memory that a process has, what it shares with others included: quick to ask; 0 where there is none."""
    try:
        return int(Path("/proc", str(pid), "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return 0


def starved(pid: int) -> float:
    """Seconds that the first thread of a process was ready to run and waited for a processor; 0 where unknown.

    Source: the second number of ``/proc/PID/schedstat``, in nanoseconds.
    """
    try:
        return int(Path("/proc", str(pid), "schedstat").read_text().split()[1]) / 1e9
    except (OSError, ValueError, IndexError):
        return 0.0
