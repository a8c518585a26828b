"""A series of patches to the library, of which parts are applied in the order of the series."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from gpucheck.library.copies import LibraryCopy
from gpucheck.library.library_option import Source, SourceKind, resolve
from gpucheck.library.patches import patched_files, write_patched
from gpucheck.model.errors import UsageError
from gpucheck.tools.bisect.minimise import Part
from gpucheck.tools.bisect.run_once import Prepared
from gpucheck.tools.bisect.sources.base import Candidate, Unbuildable, cached_folder

SUFFIXES = (".patch", ".diff")


@dataclass(frozen=True)
class Patches:
    """Patch files and the library that they change."""

    unit: ClassVar[str] = "patch"

    files: tuple[str, ...]  # paths, in the order of the series
    library: str  # folder that holds the library's package

    @classmethod
    def in_folder(cls, folder: Path, library: Path) -> Patches:
        """The series of a folder: its ``.patch`` and ``.diff`` files by name.

        Raises:
            UsageError: no folder, or no such file in it.
        """
        if not folder.is_dir():
            raise UsageError(f"--patches {folder}: there is no such folder")
        files = sorted(path for path in folder.iterdir() if path.suffix in SUFFIXES and path.is_file())
        if not files:
            raise UsageError(f"--patches {folder}: no file there ends in {' or '.join(SUFFIXES)}")
        return cls(tuple(str(path.resolve()) for path in files), str(library))

    def candidate(self, part: Part) -> Candidate:
        """The library with a part of the series; parts that make the same of it have equal keys."""
        files = tuple(self.files[number] for number in part)
        names = ", ".join(Path(file).name for file in files) or "no patch"
        try:
            texts = self._texts(files)
        except UsageError as error:
            said = str(error).splitlines()[0].removeprefix("--patch ")
            return Candidate(names, f"lacks: {part}", lacks=said, patches=files)
        digest = hashlib.sha256(json.dumps(texts, sort_keys=True).encode()).hexdigest()
        return Candidate(names, digest, patches=files)

    @contextmanager
    def prepared(self, candidate: Candidate, work: Path) -> Iterator[Prepared]:
        """See :class:`gpucheck.tools.bisect.sources.base.Source`."""
        if candidate.lacks:
            raise Unbuildable(candidate.lacks)
        texts = self._texts(candidate.patches)
        yield Prepared(cached_folder(work, candidate.key, lambda folder: write_patched(self._copy(), texts, folder)))

    def details(self, candidate: Candidate) -> list[str]:
        """Where the patches lie."""
        return list(candidate.patches)

    def _texts(self, files: Sequence[str]) -> dict[str, str | None]:
        return patched_files(self._copy().package, [Path(file) for file in files])

    def _copy(self) -> LibraryCopy:
        return resolve(Source(SourceKind.PATH, path=Path(self.library)))
