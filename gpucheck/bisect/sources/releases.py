"""Releases of a distribution whose wheels carry the library; only its files are fetched."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from gpucheck.bisect.sources.base import Candidate, Unbuildable, kept
from gpucheck.bisect.sources.versions import between
from gpucheck.bisect.step import Prepared
from gpucheck.library.copies import LibraryCopy
from gpucheck.library.fetch import fetch
from gpucheck.library.patches import write_patched
from gpucheck.model.errors import UsageError

AT_ONCE = 8  # releases fetched


@dataclass(frozen=True)
class Releases:
    """The releases of a distribution between two versions."""

    unit: ClassVar[str] = "release"

    name: str  # distribution
    old: str  # version
    new: str

    def candidates(self) -> list[Candidate]:
        """The contents of the library along the releases, each under the first release that carries it.

        Raises:
            UsageError: no such versions.
            InfrastructureError: no network.
        """
        versions = between(self.name, self.old, self.new)
        with ThreadPoolExecutor(AT_ONCE) as pool:
            fetched = list(pool.map(self._fetch, versions))
        keys = [copy.content if isinstance(copy, LibraryCopy) else f"lacks: {copy}" for copy in fetched]
        starts = [number for number in range(len(keys)) if not number or keys[number] != keys[number - 1]]
        found = []
        for number, following in zip(starts, [*starts[1:], len(keys)], strict=True):
            copy = fetched[number]
            content = f"content {copy.name} ({copy.content[:8]})" if isinstance(copy, LibraryCopy) else ""
            title = ", ".join(filter(None, [content, _range(versions[number:following])]))
            found.append(Candidate(versions[number], keys[number], title, "" if content else str(copy)))
        return found

    @contextmanager
    def prepared(self, candidate: Candidate, work: Path) -> Iterator[Prepared]:
        """See :class:`gpucheck.bisect.sources.base.Source`."""
        if candidate.lacks:
            raise Unbuildable(candidate.lacks)
        copy = fetch(self.name, candidate.name)
        yield Prepared(kept(work, candidate.key, lambda folder: write_patched(copy, {}, folder)))

    def details(self, candidate: Candidate) -> list[str]:
        """The release as ``--library`` takes it."""
        return [f"--library wheel:{self.name}=={candidate.name}"]

    def _fetch(self, version: str) -> LibraryCopy | str:
        """The library of a release, or why it has none that can be driven."""
        try:
            return fetch(self.name, version)
        except UsageError as error:
            return str(error).splitlines()[0]


def _range(versions: Sequence[str]) -> str:
    return "" if len(versions) == 1 else f"{versions[0]} - {versions[-1]} ({len(versions)} releases)"
