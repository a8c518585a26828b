"""What a copy of the library holds: its content hash, the contents known by hash, its API generation.

Releases are compared by content, not by version: dozens of releases carry the same few contents, and none of them
says a version of its own.
"""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass
from pathlib import Path

from gpucheck.model.errors import InfrastructureError, UsageError
from gpucheck.model.versions import major_minor

GENERATIONS = ("v3.4", "v3.5", "v3.6", "v3.7", "v3.8")


@dataclass(frozen=True)
class TritonRange:
    """The Triton releases on which a generation of the library imports and compiles."""

    minimum: tuple[int, int]  # first (major, minor)
    maximum: tuple[int, int] | None  # last (major, minor); None where no end is known
    need: str  # what the library takes from Triton that others lack

    def __str__(self) -> str:
        first = "{}.{}".format(*self.minimum)
        if self.maximum == self.minimum:
            return f"{first}.x only"
        if self.maximum is None:
            return f"{first} or later"
        return "{} to {}.{}".format(first, *self.maximum)


_SINCE_3_5 = TritonRange((3, 5), None, "triton.constexpr_function, triton.language.target_info")

TRITON_RANGES: dict[str, TritonRange] = {
    "v3.4": TritonRange((3, 4), (3, 4), "triton.language.constexpr_function, which Triton 3.5 moved"),
    "v3.5": _SINCE_3_5,
    "v3.6": _SINCE_3_5,
    "v3.7": _SINCE_3_5,
    "v3.8": TritonRange((3, 8), None, "is_hip_gfx1250 in triton.language.target_info"),
}


@dataclass(frozen=True)
class Carrier:
    """A range of releases, both ends included, whose wheels carry a content."""

    distribution: str
    first: str
    last: str

    def __str__(self) -> str:
        releases = self.first if self.first == self.last else f"{self.first} - {self.last}"
        return f"{self.distribution} {releases}"


@dataclass(frozen=True)
class KnownContent:
    """A content met in public wheels."""

    name: str  # "A" to "F"
    generation: str
    content: str  # content_hash of the package
    carriers: tuple[Carrier, ...]
    example: str  # NAME==VERSION of one release that carries it

    @property
    def triton(self) -> TritonRange:
        """The Triton releases it imports on."""
        return TRITON_RANGES[self.generation]


KNOWN: tuple[KnownContent, ...] = (
    KnownContent(
        "A",
        "v3.4",
        "33d0994da3ebbe5dc6f084d65f634913d6d1276fa3ca3f260984649a02f3a59f",
        (Carrier("sgl-kernel", "0.3.1", "0.3.18"),),
        "sgl-kernel==0.3.18",
    ),
    KnownContent(
        "B",
        "v3.5",
        "234956ddd20ca3459a93e649225717db81bcca7225e00e4b0d7d567384239e4c",
        (
            Carrier("vllm", "0.12.0", "0.16.0"),
            Carrier("vllm", "0.22.0", "0.33.0"),
            Carrier("sgl-kernel", "0.3.18.post1", "0.3.21"),
            Carrier("sglang-kernel", "0.4.0", "0.4.2.post1"),
        ),
        "vllm==0.33.0",
    ),
    KnownContent(
        "C",
        "v3.6",
        "ec6987240b4de4d45fdfaf36ab6c686ec20c68b8cf563d07b4f8e02c6f4e03b1",
        (Carrier("vllm", "0.17.0", "0.21.0"), Carrier("sglang-kernel", "0.4.2.post2", "0.4.6")),
        "vllm==0.21.0",
    ),
    KnownContent(
        "D",
        "v3.7",
        "c1a04ae0735449d40cb810c55a176cf36c87eb755b73babb66d892bb7d610d03",
        (Carrier("sglang-kernel", "0.4.6.post1", "0.4.8"),),
        "sglang-kernel==0.4.8",
    ),
    KnownContent(
        "E",
        "v3.8",
        "362adb5ac8ca0a22f4b7d06358ee19b7203fbd2984945fd28700675d1295b225",
        (Carrier("sglang-kernel", "0.4.9", "0.4.10"),),
        "sglang-kernel==0.4.10",
    ),
    KnownContent(
        "F",
        "v3.8",
        "3b997c5662ec613fb3029aaadf392bfa48a04786f89a4ede1fbae90a8efe3bdc",
        (Carrier("tokenspeed-triton-kernels", "1.0.0.post20260510", "1.0.0.post20260510"),),
        "tokenspeed-triton-kernels==1.0.0.post20260510",
    ),
)


def content_hash(package: Path) -> str:
    """SHA-256 (hex) over the Python files of ``package``.

    For each ``*.py`` file, sorted by its path relative to the package (POSIX form, compared as text): the path, a NUL
    byte, the length in bytes as decimal text, a NUL byte, the bytes. Compiled caches and other files do not count.

    Raises:
        InfrastructureError: a file cannot be read.
    """
    digest = hashlib.sha256()
    try:
        for relative, path in sorted(_python_files(package)):
            data = path.read_bytes()
            digest.update(relative.encode() + b"\0" + str(len(data)).encode() + b"\0" + data)
    except OSError as error:
        raise InfrastructureError(f"cannot read {error.filename} of the library: {error.strerror}") from error
    return digest.hexdigest()


def python_file_count(package: Path) -> int:
    """Number of files that :func:`content_hash` covers."""
    return sum(1 for _ in _python_files(package))


def known(digest: str) -> KnownContent | None:
    """The known content with this hash, if any."""
    return next((entry for entry in KNOWN if entry.content == digest), None)


def detect_generation(package: Path) -> str:
    """Tells the API generation of a copy from features of its source, so that modified copies are recognised too.

    Raises:
        UsageError: no supported generation has these features.
    """
    old, new = (package / "matmul_ogs.py").is_file(), (package / "matmul.py").is_file()
    if old and not new:
        return _detect_old(package)
    if new and not old:
        return _detect_new(package)
    raise _unsupported(package, "both matmul_ogs.py and matmul.py" if old else "neither matmul_ogs.py nor matmul.py")


def triton_problem(generation: str, triton_version: str) -> str | None:
    """Why this generation cannot be imported on that Triton; None where it can.

    Args:
        generation: one of :data:`GENERATIONS`.
        triton_version: as in ``triton.__version__``, for example ``"3.6.0"`` or ``"3.7.0+git1234"``.
    """
    needed = TRITON_RANGES[generation]
    version = major_minor(triton_version)
    if version is None:
        return f"cannot read the Triton version {triton_version!r}; triton_kernels {generation} needs Triton {needed}"
    if version >= needed.minimum and (needed.maximum is None or version <= needed.maximum):
        return None
    return f"triton_kernels {generation} needs Triton {needed} ({needed.need}); found Triton {triton_version}"


def _python_files(package: Path) -> list[tuple[str, Path]]:
    """(relative POSIX path, path) of every Python file, in no particular order."""
    found = []
    for folder, _, names in os.walk(package):
        for name in names:
            if name.endswith(".py"):
                path = Path(folder, name)
                found.append((path.relative_to(package).as_posix(), path))
    return found


def _detect_old(package: Path) -> str:
    """Generations whose entry point is ``matmul_ogs``."""
    if _has(package / "tensor.py", r"^class SparseMatrix\b"):
        return "v3.6"
    if not (package / "routing.py").is_file():
        raise _unsupported(package, "matmul_ogs.py without routing.py and without SparseMatrix in tensor.py")
    return "v3.5" if _has(package / "tensor_details/layout.py", r"\bBlackwellMXValueLayout\b") else "v3.4"


def _detect_new(package: Path) -> str:
    """Generations whose entry point is ``matmul``."""
    if _has(package / "matmul.py", r"^\s+b_microblock_size\s*:"):
        return "v3.8"
    if _has(package / "matmul.py", r"^\s+b_mx_scale\s*:"):
        return "v3.7"
    if _has(package / "tensor.py", r"\bscale_mx\b"):
        raise _unsupported(
            package, "matmul.py whose tensors carry their own scales (scale_mx in tensor.py): newer than v3.8"
        )
    raise _unsupported(package, "matmul.py whose PrecisionConfig has no field b_mx_scale")


def _has(path: Path, pattern: str) -> bool:
    """Whether a line of the file matches; a file that is not there has no matching line."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return False
    except OSError as error:
        raise InfrastructureError(f"cannot read {path} of the library: {error.strerror}") from error
    return re.search(pattern, text, re.MULTILINE) is not None


def _unsupported(package: Path, found: str) -> UsageError:
    return UsageError(
        f"{package} is no generation of triton_kernels that gpucheck can drive.\n"
        f"  found     {found}\n"
        f"  expected  the features of one of {', '.join(GENERATIONS)}\n"
        "  try       --library wheel:NAME==VERSION; `gpucheck library list` shows releases that carry each generation"
    )
