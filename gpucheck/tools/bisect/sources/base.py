"""What there is to try, and how a candidate is made ready to run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Protocol

from gpucheck.library.cache import fresh_folder
from gpucheck.tools.bisect.run_once import Prepared


@dataclass(frozen=True)
class Candidate:
    """One content of the library, or one version of a package."""

    name: str  # how people call it: an abbreviated commit, a version, the patches
    key: str  # candidates with equal keys are equal
    title: str = ""  # subject line, content, further versions
    lacks: str = ""  # why it cannot be tried, where that is known beforehand
    patches: tuple[str, ...] = ()  # files of the patches applied to it


class Unbuildable(Exception):
    """A candidate cannot be made ready; the text says why."""


class Source(Protocol):
    """Where candidates come from."""

    unit: ClassVar[str]  # what one candidate is called

    def prepared(self, candidate: Candidate, work: Path) -> AbstractContextManager[Prepared]:
        """The candidate, ready to run within the context.

        Args:
            work: folder of the search; copies made below it stay there.

        Raises:
            Unbuildable: it cannot be made ready.
        """

    def details(self, candidate: Candidate) -> list[str]:
        """What more there is to say of the candidate that the search ends with."""


class Series(Source, Protocol):
    """A source whose candidates are in order, from old to new."""

    def candidates(self) -> list[Candidate]:
        """All of them, both ends included; neighbours with equal content are one.

        Raises:
            UsageError: the ends do not exist or do not differ.
        """


def stretches(keys: Sequence[str]) -> list[range]:
    """The places of equal neighbours, in order."""
    starts = [place for place in range(len(keys)) if not place or keys[place] != keys[place - 1]]
    return [range(start, stop) for start, stop in zip(starts, [*starts[1:], len(keys)], strict=True)]


def cached_folder(work: Path, key: str, write: Callable[[Path], object]) -> Path:
    """A folder below ``work`` for the content with this key: written once, and there complete or not at all."""
    folder = work / "libraries" / key[:12]
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with fresh_folder(folder) as fresh:
            write(fresh)
    return folder
