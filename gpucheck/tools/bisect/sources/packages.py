"""Versions of a package that runs import, such as triton, each unpacked into a private folder; nothing is installed."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from gpucheck.library.fetch import recorded_content
from gpucheck.library.pip_settings import unpack
from gpucheck.model.errors import InfrastructureError
from gpucheck.tools.bisect.run_once import Prepared
from gpucheck.tools.bisect.sources.base import Candidate, Unbuildable, stretches
from gpucheck.tools.bisect.sources.package_versions import between, range_words, suitability

AT_ONCE = 8  # wheels asked for their content
MISFIT = "no wheel fits this Python and platform"


@dataclass(frozen=True)
class Packages:
    """The versions of a package between two, with the same library under test."""

    unit: ClassVar[str] = "version"

    name: str  # distribution
    old: str  # version
    new: str
    library: str  # folder that holds the library's package; "": no case needs it

    def candidates(self) -> list[Candidate]:
        """The contents of the package along the final versions, each under the first version that has it.

        Raises:
            UsageError: no such versions.
            InfrastructureError: no network.
        """
        versions, suits = between(self.name, self.old, self.new), suitability()
        with ThreadPoolExecutor(AT_ONCE) as pool:
            contents = list(pool.map(lambda version: self._content(version, suits), versions))
        found = []
        for places in stretches([content or f"{MISFIT}: {self.name}" for content in contents]):
            alike, content = [versions[place] for place in places], contents[places[0]]
            lacks = "" if content else f"{MISFIT}: {self.name}=={alike[0]}"
            found.append(Candidate(alike[0], content or lacks, range_words(alike), lacks))
        return found

    @contextmanager
    def prepared(self, candidate: Candidate, work: Path) -> Iterator[Prepared]:
        """See :class:`gpucheck.tools.bisect.sources.base.Source`; a version is unpacked while it is used."""
        if candidate.lacks:
            raise Unbuildable(candidate.lacks)
        with tempfile.TemporaryDirectory(prefix=".package-", dir=work) as folder:
            self._unpack(f"{self.name}=={candidate.name}", folder)
            yield Prepared(Path(self.library) if self.library else None, (Path(folder),))

    def details(self, candidate: Candidate) -> list[str]:
        """The version as pip takes it."""
        return [f"{self.name}=={candidate.name}"]

    def _content(self, version: str, suits: Callable[[str], int | None]) -> str | None:
        """Tells equal versions apart from others; by number where the wheel cannot be read without downloading it."""
        try:
            return recorded_content(self.name, version, suits)
        except InfrastructureError:
            return f"{self.name}=={version}"

    def _unpack(self, requirement: str, folder: str) -> None:
        """Lets pip choose the wheel that fits this Python and put its files into a folder."""
        said = unpack(requirement, Path(folder), "--no-compile").splitlines()
        errors = [line for line in said if line.startswith("ERROR:")]
        if any("No matching distribution" in line for line in errors):
            raise Unbuildable(f"{MISFIT}: {requirement}")
        if said:
            last = (errors or said)[-1].removeprefix("ERROR: ")
            raise InfrastructureError(f"pip could not unpack {requirement}: {last}")
