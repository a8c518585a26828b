"""A copy of the library under test: where it lies, what it holds, where it came from. Nothing here imports it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from gpucheck.library import content

PACKAGE = "triton_kernels"
"""Import name of the library; its modules import each other by it."""

GENUINE_FILES = ("numerics.py", "specialize.py", "target_info.py", "tensor.py", "testing.py")
"""Files that every genuine copy has; an unrelated package of the same name on PyPI has none of them."""

PLACES = (
    PACKAGE,
    f"vllm/third_party/{PACKAGE}",
    f"third_party/{PACKAGE}",
    f"python/{PACKAGE}/{PACKAGE}",  # a checkout of the triton repository
)
"""Where a folder may hold the library, relative to the folder."""


@dataclass(frozen=True)
class LibraryCopy:
    """One copy of the library on the file system."""

    root: Path  # the folder that contains triton_kernels/; goes first on sys.path where the copy is to be imported
    package: Path  # root / "triton_kernels"
    origin: str  # "installed", "installed (vllm 0.33.0)", "path" or "vllm 0.33.0"
    content: str  # SHA-256 of its Python files, see gpucheck.library.content.content_hash
    name: str  # "A" to "F" for the known contents, else "unknown"
    generation: str  # "v3.4" to "v3.8": which adapter speaks its API
    installed: bool = False  # root then belongs to the interpreter and holds unrelated packages too


def missing_files(package: Path) -> list[str]:
    """Names of the genuine files that ``package`` lacks, sorted; empty for a genuine copy."""
    return [name for name in GENUINE_FILES if not (package / name).is_file()]


def is_genuine(package: Path) -> bool:
    """Whether the folder ``package`` is a copy of the library, told by its files."""
    return not missing_files(package)


def describe(package: Path, origin: str, *, installed: bool = False) -> LibraryCopy:
    """Reads a copy: its content hash, its name among the known ones and its generation.

    Args:
        package: the ``triton_kernels`` folder, as a genuine copy.
        origin: where it came from, in words.
        installed: whether it lies among the packages of this interpreter.

    Raises:
        UsageError: the generation is none of the supported ones.
    """
    package = Path(os.path.abspath(package))  # keeps a link's own name, which the import needs
    digest = content.content_hash(package)
    known = content.known(digest)
    return LibraryCopy(
        root=package.parent,
        package=package,
        origin=origin,
        content=digest,
        name=known.name if known else "unknown",
        generation=known.generation if known else content.detect_generation(package),
        installed=installed,
    )
