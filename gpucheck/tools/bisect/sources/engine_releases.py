"""Releases of a serving engine, each with the library that it is served with; taken as ``--engine`` takes them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from gpucheck.library.copies import LibraryCopy
from gpucheck.library.engines.engine_fetch import cached_versions, fetch_engine
from gpucheck.library.engines.engine_option import served_with
from gpucheck.library.engines.engine_packages import NoPackages
from gpucheck.library.library_option import parse_source, resolve
from gpucheck.model.errors import InfrastructureError, UsageError
from gpucheck.tools.bisect.run_once import Prepared
from gpucheck.tools.bisect.sources.base import Candidate, Unbuildable
from gpucheck.tools.bisect.sources.package_versions import between

CACHED = "from the cache: no index answers"


@dataclass(frozen=True)
class EngineReleases:
    """The releases of an engine between two versions; each is fetched when it is first run, and never installed."""

    unit: ClassVar[str] = "release"

    name: str  # engine
    old: str  # version
    new: str
    library: str = ""  # folder that holds the library's package; "": each release has the one that it is served with

    def candidates(self) -> list[Candidate]:
        """The releases; where no index answers, those in the cache.

        Raises:
            UsageError: no such versions.
            InfrastructureError: no index answers, and the cache lacks an end.
        """
        title = ""
        try:
            versions = between(self.name, self.old, self.new)
        except InfrastructureError:
            held = cached_versions(self.name)
            if not {self.old, self.new} <= held:
                raise
            versions, title = between(self.name, self.old, self.new, dict.fromkeys(held, False)), CACHED
        return [Candidate(version, f"{self.name}=={version}", title) for version in versions]

    @contextmanager
    def prepared(self, candidate: Candidate, work: Path) -> Iterator[Prepared]:
        """See :class:`gpucheck.tools.bisect.sources.base.Source`; a run then finds all of a release in the cache."""
        try:
            self._served(candidate)
        except (UsageError, NoPackages) as error:
            raise Unbuildable(str(error).splitlines()[0]) from error
        yield Prepared(Path(self.library) if self.library else None, engine=candidate.key)

    def details(self, candidate: Candidate) -> list[str]:
        """The release as ``--engine`` takes it."""
        return [f"--engine {candidate.key}"]

    def notes(self, before: Candidate, after: Candidate) -> list[str]:
        """What else there is to know of the two releases between which a search ends."""
        notes = []
        if after.title == CACHED:
            between_them = f"between {before.name} and {after.name}"
            notes.append(f"no index answers, so only the cache was searched: other releases may lie {between_them}")
        old, new = self._served(before), self._served(after)
        if old.content != new.content:
            words = " and ".join(
                f"content {copy.name} ({copy.content[:8]}) in {candidate.name}"
                for candidate, copy in ((before, old), (after, new))
            )
            notes.append(f"the library differs too, {words}: --library keeps one for all releases and tells them apart")
        return notes

    def _served(self, candidate: Candidate) -> LibraryCopy:
        """The library that runs of a release have; it and the release are in the cache afterwards."""
        copy = fetch_engine(self.name, candidate.name)
        if self.library:
            return resolve(parse_source(f"path:{self.library}"))
        return resolve(served_with(parse_source(None), [copy])[0])
