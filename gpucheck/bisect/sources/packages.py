"""Versions of a package that runs import, such as triton, each unpacked into a private folder; nothing is installed."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from gpucheck.bisect.sources.base import Candidate, Unbuildable
from gpucheck.bisect.sources.versions import between
from gpucheck.bisect.step import Prepared
from gpucheck.model.errors import InfrastructureError


@dataclass(frozen=True)
class Packages:
    """The versions of a package between two, with the same library under test."""

    unit: ClassVar[str] = "version"

    name: str  # distribution
    old: str  # version
    new: str
    library: str  # folder that holds the library's package

    def candidates(self) -> list[Candidate]:
        """The final versions, old to new.

        Raises:
            UsageError: no such versions.
            InfrastructureError: no network.
        """
        return [Candidate(version, f"{self.name}=={version}") for version in between(self.name, self.old, self.new)]

    @contextmanager
    def prepared(self, candidate: Candidate, work: Path) -> Iterator[Prepared]:
        """See :class:`gpucheck.bisect.sources.base.Source`; a version is unpacked while it is used."""
        with tempfile.TemporaryDirectory(prefix=".package-", dir=work) as folder:
            self._unpack(candidate.key, folder)
            yield Prepared(Path(self.library), (Path(folder),))

    def details(self, candidate: Candidate) -> list[str]:
        """The version as pip takes it."""
        return [candidate.key]

    def _unpack(self, requirement: str, folder: str) -> None:
        """Lets pip choose the wheel that fits this Python and put its files into a folder."""
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-input"]
        command += ["--no-deps", "--no-compile", "--only-binary=:all:", "--target", folder, requirement]
        answer = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
        if answer.returncode == 0:
            return
        said = [line.strip() for line in answer.stderr.splitlines() if line.startswith("ERROR:")]
        if any("No matching distribution" in line for line in said):
            raise Unbuildable(f"no wheel of {requirement} fits this Python and platform")
        last = (said or answer.stderr.splitlines() or [f"exit code {answer.returncode}"])[-1]
        raise InfrastructureError(f"pip could not unpack {requirement}: {last.removeprefix('ERROR: ')}")
