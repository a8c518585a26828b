"""Walls around a process that runs code under test, so that it reaches neither its judge nor what is not its own.

Who judges calls :func:`hide_memory`: no process of the same user can then read or change its memory, nor open what it
has open. Who runs code under test calls :func:`contain` before it loads that code: files can be written in a few places
only, its judge cannot be sent signals, and root is root no more. Each wall is built where the kernel offers it, and
what stood is told, so that a report can say what did not.
"""

from __future__ import annotations

import ctypes
import os
import stat
import struct
from collections.abc import Collection, Iterable, Iterator
from contextlib import suppress
from pathlib import Path

_PR_SET_DUMPABLE, _PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS = 4, 24, 38
_CAPABILITIES_V3 = 0x20080522
_LAST_CAPABILITY = 63
_OF_FILES = (0, 1, 2, 3, 4)  # CHOWN, DAC_OVERRIDE, DAC_READ_SEARCH, FOWNER, FSETID: paths are Landlock's matter
_KEPT = (*_OF_FILES, 14, 23)  # IPC_LOCK and SYS_NICE, which drivers ask for

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446  # the same numbers on every architecture
_VERSION, _PATH_BENEATH, _SCOPE_SIGNAL = 1, 1, 1 << 1
_WRITE_FILE, _READ_FILE, _READ_FOLDER, _REFER, _TRUNCATE = 1 << 1, 1 << 2, 1 << 3, 1 << 13, 1 << 14
_READS = _READ_FILE | _READ_FOLDER
_CHANGES = _WRITE_FILE | sum(1 << bit for bit in range(4, 13))  # remove and make entries of folders too

UNWALLED = "GPUCHECK_UNWALLED"
"""Environment variable of ranks that run candidates where no wall keeps these from other files of the same user."""
MEMORY, FILES, SIGNALS, PRIVILEGES = WALLS = ("MEMORY", "FILES", "SIGNALS", "PRIVILEGES")
"""What :func:`contain` builds where the kernel offers it; in words: ``gpucheck.model.vocabulary.Wall``."""


def hide_memory() -> None:
    """Closes the memory and the open files of this process, and of those forked from it, to others of the same user.

    A process with CAP_SYS_PTRACE is not kept out, so :func:`contain` takes that from those that it is called in.
    """
    ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)


def show_memory() -> None:
    """Takes :func:`hide_memory` back for this process: debuggers and the process itself find its files in /proc."""
    ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 1, 0, 0, 0)


def close_files(kept: Collection[int]) -> None:
    """Closes every file that this process has inherited, but for the standard ones and these."""
    for name in os.listdir("/proc/self/fd"):
        if int(name) > 2 and int(name) not in kept:
            with suppress(OSError):  # the folder that was listed
                os.close(int(name))


def contain(writable: Iterable[Path], *, files: bool = True) -> tuple[str, ...]:
    """Shuts this process, and all that it starts from now on, in; returns which of ``WALLS`` stand.

    Call it while the process has one thread: the walls around files hold for the thread that asks for them and for
    those that it starts.

    Args:
        writable: folders with all that is in them, and files, that may be written beside devices.
        files: whether a wall around files is wanted; with it go those of Landlock's others.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    standing = [MEMORY, PRIVILEGES] if _without_privileges(libc) else []
    version = landlock_version() if files else 0
    if version >= 1 and _restrict(libc, version, [*writable, *_devices()]):
        standing += [FILES, MEMORY] + [SIGNALS] * (version >= 6)
    return tuple(wall for wall in WALLS if wall in standing)


def confine(writable: Iterable[Path], hidden: Path) -> bool:
    """Lets this process, and all that it starts from now on, write in a few places, and read nothing of a folder.

    It sends no signal to other processes, where the kernel can keep it from that. Call it as :func:`contain`.

    Args:
        writable: as there; they may lie in the next, and can then be read.
        hidden: a folder.

    Returns:
        Whether the kernel has built the wall.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    version = landlock_version()
    return version >= 1 and _restrict(libc, version, writable, hidden.resolve())


def files_are_walled() -> bool:
    """Whether :func:`contain` keeps a process of this machine from files that are not its own."""
    return landlock_version() >= 1


def landlock_version() -> int:
    """The version of Landlock in this kernel; 0 without it."""
    return max(0, ctypes.CDLL(None, use_errno=True).syscall(_CREATE_RULESET, None, 0, _VERSION))


def _without_privileges(libc: ctypes.CDLL) -> bool:
    """Gives up all capabilities but those that files of other users take."""
    for capability in range(_LAST_CAPABILITY + 1):
        if capability not in _KEPT:
            libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0)
    header = struct.pack("Ii", _CAPABILITIES_V3, 0)
    held = ctypes.create_string_buffer(24)
    if libc.capget(header, held):
        return False
    words = list(struct.unpack("6I", held.raw))  # effective, permitted, inheritable; then the same, higher bits
    kept = sum(1 << capability for capability in _KEPT)
    lower = [word & kept for word in words[:3]]
    return libc.capset(header, struct.pack("6I", *lower, 0, 0, 0)) == 0


def _restrict(libc: ctypes.CDLL, version: int, writable: Iterable[Path], hidden: Path | None = None) -> bool:
    """Landlock: changes in these places only. Kernels know more of it the higher the version is."""
    handled = (
        _CHANGES | (_REFER if version >= 2 else 0) | (_TRUNCATE if version >= 3 else 0) | (_READS if hidden else 0)
    )
    attributes = struct.pack("QQQ", handled, 0, _SCOPE_SIGNAL if version >= 6 else 0)
    size = 24 if version >= 6 else 16 if version >= 4 else 8
    ruleset = libc.syscall(_CREATE_RULESET, attributes[:size], size, 0)
    if ruleset < 0:
        return False
    try:
        for path in writable:
            _allow(libc, ruleset, path, handled)
        for path in _beside(hidden) if hidden else ():
            _allow(libc, ruleset, path, _READS, os.O_NOFOLLOW)  # what a link leads to has a rule where it lies
        return libc.syscall(_RESTRICT_SELF, ruleset, 0) == 0
    finally:
        os.close(ruleset)


def _allow(libc: ctypes.CDLL, ruleset: int, path: Path, rights: int, flags: int = 0) -> None:
    with suppress(OSError):  # what is not there needs no rule
        held = os.open(path, os.O_PATH | os.O_CLOEXEC | flags)
        try:
            mode = os.fstat(held).st_mode
            allowed = rights if stat.S_ISDIR(mode) else rights & (_WRITE_FILE | _READ_FILE | _TRUNCATE)
            if not stat.S_ISLNK(mode):
                libc.syscall(_ADD_RULE, ruleset, _PATH_BENEATH, struct.pack("=Qi", allowed, held), 0)
        finally:
            os.close(held)


def _beside(hidden: Path) -> Iterator[Path]:
    """All that does not lie in a folder, in as few paths as there are."""
    for folder in hidden.parents:
        inside = hidden.relative_to(folder).parts[0]
        with suppress(OSError):  # a folder above that cannot be listed
            yield from (Path(entry.path) for entry in os.scandir(folder) if entry.name != inside)


def _devices() -> Iterator[Path]:
    """The device files of this machine, without disks and shared memory, and what the process may say of itself."""
    yield Path("/proc", str(os.getpid()))
    with suppress(OSError):
        for entry in os.scandir("/dev"):
            with suppress(OSError):
                if stat.S_ISCHR(entry.stat().st_mode) or entry.name.startswith(("nvidia", "dri", "pts")):
                    yield Path(entry.path)
