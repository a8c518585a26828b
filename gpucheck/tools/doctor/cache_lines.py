"""Triton's cache of compiled kernels: where it lies, who shares it, whether its entries are whole."""

from __future__ import annotations

import os
import re
import stat
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from gpucheck.host.text_file import text_of
from gpucheck.tools.doctor.line import Line, fail, ok, warn
from gpucheck.tools.doctor.machine import Machine, amount
from gpucheck.triton_hooks.cache_damage import damage

SCAN_LIMIT = 4.0  # s for walking over the entries; the cache of a busy node may hold a hundred thousand files
MOST_NAMED = 10  # damaged entries that get a line each
ROOM = 1 << 30  # bytes that should be free; a cold run of every scenario writes some hundred MB
NETWORK = re.compile(
    r"9p|afs|beegfs|ceph|cifs|fuse\.(ceph|gcsfuse|glusterfs|juicefs|s3fs|sshfs)|glusterfs|gpfs|lustre|nfs4?|ocfs2|orangefs"
    r"|panfs|smb3|smbfs|virtiofs|weka(fs)?"
)
"""File systems whose storage is elsewhere, by the kernel's name."""


@dataclass
class Contents:
    """What a walk over the cache found."""

    entries: int = 0  # folders, one a compiled kernel
    size: int = 0  # bytes
    damaged: list[tuple[Path, str]] = field(default_factory=list)  # file, what is wrong with it
    owners: set[int] = field(default_factory=set)  # other users whose files lie in it
    complete: bool = True  # the walk came to its end within its time


def cache_folder(machine: Machine) -> Path:
    """Where Triton keeps compiled kernels: ``TRITON_CACHE_DIR``, else ``.triton/cache`` in ``TRITON_HOME`` or home."""
    environ = machine.environ
    if environ.get("TRITON_CACHE_DIR"):
        return Path(environ["TRITON_CACHE_DIR"])
    home = environ.get("TRITON_HOME") or environ.get("HOME") or os.path.expanduser("~")
    return Path(home) / ".triton" / "cache"


def look(machine: Machine) -> list[Line]:
    """The lines of the cache."""
    folder = cache_folder(machine)
    base = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    lines = [_writable(folder, base)]
    free = machine.free(base)
    if free is not None:
        advice = "make room, or put the cache elsewhere with TRITON_CACHE_DIR"
        value = f"{amount(free)} free on its file system"
        lines.append(ok("space", value) if free >= ROOM else warn("space", value, advice))
    lines.append(_storage(machine, base))
    if folder.is_dir():
        lines += _contents(folder)
    return lines


def _writable(folder: Path, existing: Path) -> Line:
    if not existing.is_dir():
        advice = "remove it, or put the cache elsewhere with TRITON_CACHE_DIR"
        return fail("folder", f"{folder}: {existing} is no folder", advice)
    if not os.access(existing, os.W_OK | os.X_OK):
        advice = "no kernel can be compiled: make it writable for this user, or set TRITON_CACHE_DIR"
        return fail("folder", f"{folder}: {existing} is not writable", advice)
    return ok("folder", f"{folder}" if existing == folder else f"{folder}, not made yet")


def _storage(machine: Machine, folder: Path) -> Line:
    kind = filesystem(text_of(machine.proc / "self/mountinfo"), folder.resolve())
    if NETWORK.fullmatch(kind):
        advice = "nodes that share it compile into it at once, and slowly: set TRITON_CACHE_DIR to a local folder"
        return warn("storage", f"on {kind}, shared over the network", advice)
    return ok("storage", f"on {kind}, local" if kind else "not known")


def filesystem(mountinfo: str, folder: Path) -> str:
    """The type of the file system that a folder lies on, by ``/proc/self/mountinfo``; "" where it does not say."""
    best, kind = "", ""
    for line in mountinfo.splitlines():
        left, separator, right = line.partition(" - ")
        fields = left.split()
        if not separator or len(fields) < 5:
            continue
        point = fields[4].encode().decode("unicode_escape")  # a blank is written \040
        if folder.is_relative_to(point) and len(point) >= len(
            best
        ):  # of equal ones the last is mounted over the others
            best, kind = point, right.split()[0]
    return kind


def _contents(folder: Path) -> list[Line]:
    found = scan(folder)
    value = f"{found.entries}, {amount(found.size)}"
    if found.complete:
        lines = [ok("entries", value)]
    else:
        advice = f"the rest was not looked at after {SCAN_LIMIT:g} s; damaged entries may be among it"
        lines = [warn("entries", f"more than {value}", advice, looked=False)]
    lines.append(_sharing(folder, found))
    if not found.damaged:
        return [*lines, ok("damage", "every JSON file in it parses")] if found.entries else lines
    for number, (path, why) in enumerate(found.damaged[:MOST_NAMED]):
        advice = f"rm -r {path.parent}; a killed process or a full disk leaves such files"
        lines.append(fail("damage", f"{path}: {why}", advice, str(number)))
    if len(found.damaged) > MOST_NAMED:
        value = f"{len(found.damaged) - MOST_NAMED} further damaged files"
        lines.append(fail("damage", value, f"remove the whole cache: rm -r {folder}"))
    return lines


def _sharing(folder: Path, found: Contents) -> Line:
    mode = folder.stat().st_mode
    if mode & stat.S_IWOTH and not mode & stat.S_ISVTX:
        advice = "anyone here can put code into it that runs on your GPU: chmod o-w, or set TRITON_CACHE_DIR"
        return warn("sharing", "writable for every user", advice)
    others = found.owners | ({folder.stat().st_uid} - {os.getuid()})
    if others:
        advice = "their kernels run as yours, and of another Triton they may be stale: set TRITON_CACHE_DIR"
        return warn("sharing", f"holds files of other users (uid {', '.join(map(str, sorted(others)))})", advice)
    return ok("sharing", "this user alone")


def scan(folder: Path, limit: float = SCAN_LIMIT) -> Contents:
    """Walks over a cache and parses every JSON file in it, for at most ``limit`` seconds."""
    found, deadline = Contents(), time.monotonic() + limit
    for path, facts in _files(folder, found):
        if time.monotonic() > deadline:
            found.complete = False
            break
        found.size += facts.st_size
        if facts.st_uid != os.getuid():
            found.owners.add(facts.st_uid)
        if path.suffix == ".json":
            why = damage(path)
            if why:
                found.damaged.append((path, why))
    found.damaged.sort()
    return found


def _files(folder: Path, found: Contents) -> Iterator[tuple[Path, os.stat_result]]:
    """The files of every entry; what vanishes meanwhile belongs to a process at work."""
    for entry in os.scandir(folder):
        if not entry.is_dir(follow_symlinks=False):
            continue
        found.entries += 1
        for root, folders, names in os.walk(entry.path):
            folders[:] = [name for name in folders if not name.startswith("tmp.pid_")]  # being written
            for name in names:
                path = Path(root, name)
                try:
                    yield path, path.stat(follow_symlinks=False)
                except OSError:
                    continue
