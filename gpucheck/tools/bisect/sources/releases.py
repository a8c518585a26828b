"""Releases of a distribution whose wheels carry the library; only its files are fetched."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from gpucheck.library.copies import LibraryCopy
from gpucheck.library.fetch import fetch
from gpucheck.library.patches import write_patched
from gpucheck.model.errors import UsageError
from gpucheck.tools.bisect.run_once import Prepared
from gpucheck.tools.bisect.sources.base import Candidate, Unbuildable, cached_folder, stretches
from gpucheck.tools.bisect.sources.package_versions import between, range_words

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
        found = []
        for places in stretches(keys):
            copy, alike = fetched[places[0]], [versions[place] for place in places]
            content = f"content {copy.name} ({copy.content[:8]})" if isinstance(copy, LibraryCopy) else ""
            title = ", ".join(filter(None, [content, range_words(alike)]))
            found.append(Candidate(alike[0], keys[places[0]], title, "" if content else str(copy)))
        return found

    def carries(self) -> bool:
        """Whether one of the ends carries the library at all."""
        return any(isinstance(self._fetch(version), LibraryCopy) for version in (self.new, self.old))

    @contextmanager
    def prepared(self, candidate: Candidate, work: Path) -> Iterator[Prepared]:
        """See :class:`gpucheck.tools.bisect.sources.base.Source`."""
        if candidate.lacks:
            raise Unbuildable(candidate.lacks)
        copy = fetch(self.name, candidate.name)
        yield Prepared(cached_folder(work, candidate.key, lambda folder: write_patched(copy, {}, folder)))

    def details(self, candidate: Candidate) -> list[str]:
        """The release as ``--library`` takes it."""
        return [f"--library wheel:{self.name}=={candidate.name}"]

    def _fetch(self, version: str) -> LibraryCopy | str:
        """The library of a release, or why it has none that can be driven."""
        try:
            return fetch(self.name, version)
        except UsageError as error:
            return str(error).splitlines()[0]
