"""The files of a run folder that a statement rests on, and their digests."""

from __future__ import annotations

import hashlib
import os
import stat
from pathlib import Path

from gpucheck.model.errors import UsageError
from gpucheck.model.screened import FOLDER

PLAN = "plan.json"
PATTERNS = (PLAN, "outcome.json", "driver-*.json", "records/rank-*.jsonl")
"""What the verdict is made of, in the folder of a run and in that of its screen; logs and what else lies there are
no part of it."""


def digests(folder: Path) -> dict[str, str]:
    """Name, relative to the folder, and SHA-256 of each file, sorted by name.

    Raises:
        UsageError: one is no regular file, or leads out of the folder: it could change behind the statement's back.
    """
    found = sorted(path for part in ("", f"{FOLDER}/") for pattern in PATTERNS for path in folder.glob(part + pattern))
    return {str(path.relative_to(folder)): _digest(folder, path) for path in found}


def combined(files: dict[str, str]) -> str:
    """One digest of all: SHA-256 of what ``sha256sum`` prints for the names in their order."""
    return hashlib.sha256("".join(f"{digest}  {name}\n" for name, digest in files.items()).encode()).hexdigest()


def _digest(folder: Path, path: Path) -> str:
    between = [parent for parent in path.parents if folder in parent.parents]  # the folder itself may be a link
    if any(each.is_symlink() for each in (path, *between)):
        raise UsageError(f"{path} is or lies under a link, expected a regular file: copy the run folder with its files")
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        with os.fdopen(descriptor, "rb") as file:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise UsageError(f"{path} is no regular file; a run folder holds nothing else under this name")
            digest = hashlib.sha256()
            while block := file.read(1 << 20):
                digest.update(block)
            return digest.hexdigest()
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from None
