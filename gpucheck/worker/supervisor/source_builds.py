"""Extensions of candidates, built once for each content before a process that is judged loads them.

One process builds, whatever ranks, trials and further calls there are; its files stay in gpucheck's cache, so that the
next run builds nothing. Processes under test then load what is there.
"""

from __future__ import annotations

import fcntl
import json
import platform
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from hashlib import blake2b
from pathlib import Path

import torch

from gpucheck.checks.declared_kernels import declared_kernels
from gpucheck.library.cache_folder import cache_root
from gpucheck.model.errors import UsageError

TIMEOUT = 900.0  # s for one build
BUILT, FAILED = "built.json", "failed-{}.json"
DRIVER = Path("/proc/driver/nvidia/gpus")

Build = Callable[[], str]
"""Builds and returns what the compiler says of it, "" if it is built."""


def has_triton(candidate: Path) -> bool:
    """Whether a candidate has functions that Triton compiles; True where it cannot be read, which is told elsewhere."""
    with suppress(OSError, UsageError):
        return bool(declared_kernels(candidate).triton)
    return True


def has_torch_compile(file: Path) -> bool:
    """Whether the code of a pair says that torch is to compile something; False where it cannot be read."""
    with suppress(OSError):
        return bool(re.search(r"\btorch\s*\.\s*(compile|_dynamo)\b", file.read_text(errors="replace")))
    return False


def folder_of(candidate: Path) -> Path | None:
    """Where the extensions of a candidate lie: another content, torch or GPU has another folder.

    None where no compiler has to build any, or the file cannot be read, which whoever loads it says.
    """
    try:
        own = declared_kernels(candidate)
        if not own.built:
            return None
        content = [(path.name.encode(), path.read_bytes()) for path in (candidate, *own.neighbours)]
    except (OSError, UsageError):
        return None
    key = blake2b(digest_size=12)
    for part in content:
        key.update(b"\0".join((*part, b"")))
    key.update(f"{torch.__version__} {torch.version.cuda} {platform.python_version()} {sorted(_gpus())}".encode())
    return cache_root() / "extensions" / f"{candidate.stem}-{key.hexdigest()}"


def _gpus() -> Iterator[str]:
    """The models of the GPUs of this machine, as the driver's own files name them."""
    for path in DRIVER.glob("*/information"):
        try:
            yield path.read_text().partition("\n")[0]
        except OSError:
            continue


def ensure(folder: Path, run: str, build: Build) -> str:
    """Has a candidate's extensions built if they are not; returns what the compiler says of it, "" if they are there.

    Args:
        folder: see :func:`folder_of`.
        run: id of the run; what failed in it is not tried again in it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if (folder / BUILT).exists():
        return ""
    with _locked(folder / "lock"):
        failed = folder / FAILED.format(run)
        if (folder / BUILT).exists():
            return ""
        if failed.exists():
            return str(json.loads(failed.read_text())["said"])
        begin = time.monotonic()
        said = build()
        (failed if said else folder / BUILT).write_text(json.dumps({"said": said, "seconds": time.monotonic() - begin}))
        return said


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with open(path, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
