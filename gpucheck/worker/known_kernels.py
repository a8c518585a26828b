"""Which cases have all their kernels in Triton's cache, by a file in its folder: nobody then starts processes to see.

The file goes when the cache goes. Where it says too much, since part of the cache was removed say, a rank compiles what
is missing by itself: that takes time and changes no result.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from gpucheck.model.case import Case
from gpucheck.model.plan import Plan
from gpucheck.worker.compile_claims import kernels_of

PREFIX = "gpucheck-"  # of the file, among folders of Triton's own


def basis(plan: Plan) -> str:
    """What decides about all kernels of a plan, as far as the plan tells: the GPU and gpucheck itself are missing."""
    software = plan.environment.get("software", {})
    variables = plan.environment.get("variables", {})
    of_triton = {name: value for name, value in variables.items() if name.startswith("TRITON")}
    known = [plan.library["content"], plan.debug, of_triton]
    return json.dumps([*known, *(software.get(name) for name in ("triton_kernels", "triton", "torch", "python"))])


class KnownKernels:
    """The cases that a file names, and those that it is to name."""

    def __init__(self, file: Path) -> None:
        self.file = file

    @classmethod
    def of(cls, cache: Path, *deciding: Any) -> KnownKernels:
        """Those in a folder of Triton's cache.

        Args:
            deciding: all that decides about kernels beside the case; any change of it is a file of its own.
        """
        return cls(cache / f"{PREFIX}{hashlib.sha256(repr(deciding).encode()).hexdigest()[:16]}.json")

    def among(self, cases: Sequence[Case]) -> list[int]:
        """The numbers of the cases that have all their kernels in the cache, as far as the file tells."""
        held = self._read()
        return [number for number, case in enumerate(cases) if _name(case) in held]

    def add(self, cases: Iterable[Case]) -> None:
        """Names further cases; does nothing where the cache cannot be written."""
        held = self._read()
        names = sorted(held | {_name(case) for case in cases})
        if len(names) == len(held):
            return
        partial = self.file.with_name(f"{self.file.name}.{os.getpid()}.partial")
        with suppress(OSError):
            partial.write_text(json.dumps({"entries": self._entries(), "cases": names}))
            partial.replace(self.file)

    def _read(self) -> set[str]:
        """The names in the file; none where it is not what :meth:`add` wrote, or the cache has fewer entries by now."""
        with suppress(OSError, ValueError, KeyError, TypeError):
            held = json.loads(self.file.read_text())
            if self._entries() >= held["entries"]:
                return {str(name) for name in held["cases"]}
        return set()

    def _entries(self) -> int:
        """How many entries of Triton's own the cache has."""
        return sum(not name.startswith(PREFIX) for name in os.listdir(self.file.parent))


def _name(case: Case) -> str:
    return hashlib.sha256(repr(kernels_of(case)).encode()).hexdigest()[:16]
