"""Who compiles what, among the processes of a node that compile ahead and those that run cases.

One folder; a file says that a case is taken, another one that its kernels are in the cache. A process that died with a
case leaves it taken: whoever runs out of other cases compiles it again.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from gpucheck.model.case import Case

KEPT = "known"  # name of a file among the claims


def kernels_of(case: Case) -> tuple[Any, ...]:
    """What decides about the kernels of a case: everything but its data."""
    return (case.check, *sorted(case.params.items()))


class Claims:
    """The claims on numbered cases."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        with suppress(OSError):  # without it nothing is taken, and each process compiles for itself
            folder.mkdir(exist_ok=True)

    def take(self, number: int) -> bool:
        """Takes a case; False where another process has it."""
        try:
            (self._folder / str(number)).touch(exist_ok=False)
        except FileExistsError:
            return False
        return True

    def finish(self, number: int) -> None:
        """Says that nothing is left to compile for a case."""
        (self._folder / f"{number}.done").touch()

    def compiled(self, process: int, kernels: int) -> None:
        """Takes down how many kernels a process has compiled ahead so far."""
        (self._folder / f"{process}.compiled").write_text(str(kernels))

    def keep(self, text: str) -> None:
        """Keeps a text for the supervisor: the file that names cases whose kernels are in the cache."""
        partial = self._folder / f"{os.getpid()}.partial"
        partial.write_text(text)
        partial.replace(self._folder / KEPT)

    def kept(self) -> str:
        """The text that was kept last; "" if none was."""
        with suppress(OSError):
            return (self._folder / KEPT).read_text()
        return ""

    def count(self) -> tuple[int, int]:
        """How many processes have compiled ahead on this node, and how many kernels."""
        kernels = [int(path.read_text() or 0) for path in self._folder.glob("*.compiled")]
        return len(kernels), sum(kernels)

    def finished(self, number: int) -> bool:
        """Whether somebody has said so."""
        return (self._folder / f"{number}.done").exists()
