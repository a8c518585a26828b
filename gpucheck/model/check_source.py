"""Check sources: where checks come from that are not gpucheck's own. Plain data, part of ``plan.json``."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

from gpucheck.model.errors import UsageError


class SourceKind(str, Enum):
    """How checks are made from a source."""

    FILE = "file"  # a Python file with subclasses of Check
    ENTRY_POINT = "entry point"  # a class that an installed package offers
    PROBLEM = "problem"  # a file with Model and one with ModelNew


PRECISIONS = ("fp32", "tf32", "bf16")
REFERENCES = ("auto", "cpu", "gpu")
LARGE_PAIR = "GPUCHECK_LARGE_PAIR"
"""Environment variable: bytes of inputs, weights and outputs from which a pair's tensors stay in shared memory."""
LARGE = 128 << 20  # where it says nothing: files of so much take seconds
KERNELBENCH = "kernelbench"
KERNELBENCH_TRIALS = 5
RULES = (KERNELBENCH,)


def large_pair() -> int | None:
    """The bytes that the environment names; None where it names none.

    Raises:
        UsageError: it names something else.
    """
    said = os.environ.get(LARGE_PAIR, "").strip()
    if said and not (said.isascii() and said.isdigit()):
        raise UsageError(f"{LARGE_PAIR} is {said!r}, expected a number of bytes, such as {LARGE}")
    return int(said) if said else None


@dataclass(frozen=True)
class PairOptions:
    """What was asked of a problem and its candidate beside their files."""

    precision: str = ""  # the least that products may be computed in; "": nobody said so
    reference: str = "auto"  # where the float64 reference is computed: cpu, gpu or auto
    own_kernel: bool = False  # a candidate without a kernel of its own fails
    rule: str = ""  # a published rule whose verdict is given beside ours; "": none

    @property
    def options(self) -> dict[str, str | None]:
        """What says so on the command line: values of options, "" of those without one, None of those left out."""
        return {
            "--precision": self.precision or None,
            "--reference": self.reference if self.reference != REFERENCES[0] else None,
            "--own-kernel": "" if self.own_kernel else None,
            "--rule": self.rule or None,
        }


@dataclass(frozen=True)
class CheckSource:
    """Where one or several checks come from, and what was there when the run was planned."""

    kind: SourceKind
    checks: tuple[str, ...]  # their names
    files: tuple[str, ...]  # absolute paths; of a problem first Model's, then ModelNew's
    hashes: tuple[str, ...]  # SHA-256 of the content of each file
    target: str = ""  # of an entry point: "module:Class"
    pair: PairOptions = field(default_factory=PairOptions)  # of a problem and its candidate

    @property
    def options(self) -> list[str]:
        """What names the source on the command line; nothing for an entry point, which is there anyway."""
        words = {SourceKind.FILE: ("--check-file",), SourceKind.PROBLEM: ("--problem", "--candidate")}
        pairs = zip(words.get(self.kind, ()), self.files, strict=False)
        return [word for pair in pairs for word in pair]


def content_hash(content: bytes) -> str:
    """How the content of a file is told from another."""
    return hashlib.sha256(content).hexdigest()


def source_of(kind: SourceKind, checks: tuple[str, ...], files: tuple[Path, ...], target: str = "") -> CheckSource:
    """The source as it is now."""
    paths = tuple(str(path.resolve()) for path in files)
    return CheckSource(kind, checks, paths, tuple(content_hash(path.read_bytes()) for path in files), target)
