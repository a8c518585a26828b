"""What `gpucheck bisect` can search: commits, releases, engines, patches; one file a source."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from gpucheck.library.library_option import Source, SourceKind, resolve
from gpucheck.library.patches import write_patched
from gpucheck.model.plain import read
from gpucheck.tools.bisect.sources.base import cached_folder
from gpucheck.tools.bisect.sources.commits import Commits
from gpucheck.tools.bisect.sources.engine_releases import EngineReleases
from gpucheck.tools.bisect.sources.packages import Packages
from gpucheck.tools.bisect.sources.patch_series import Patches
from gpucheck.tools.bisect.sources.releases import Releases

__all__ = [
    "AnySource",
    "Commits",
    "EngineReleases",
    "Packages",
    "Patches",
    "Releases",
    "from_json",
    "own_library",
    "to_json",
]

AnySource = Commits | Releases | EngineReleases | Packages | Patches

KINDS: dict[str, type[AnySource]] = {
    "commits": Commits,
    "releases": Releases,
    "engines": EngineReleases,
    "packages": Packages,
    "patches": Patches,
}


def to_json(source: AnySource) -> dict[str, Any]:
    """The plain form, for the state of a search."""
    kind = next(name for name, known in KINDS.items() if type(source) is known)
    return {"kind": kind, **asdict(source)}


def from_json(item: dict[str, Any]) -> AnySource:
    """The source that :func:`to_json` wrote."""
    return read(KINDS[item["kind"]], item)


def own_library(source: AnySource, work: Path) -> AnySource:
    """The source with a copy of its one library in the folder of the search, where nobody changes it meanwhile."""
    if not isinstance(source, (EngineReleases, Packages, Patches)) or not source.library:
        return source
    copy = resolve(Source(SourceKind.PATH, path=Path(source.library)))
    return replace(source, library=str(cached_folder(work, "base", lambda folder: write_patched(copy, {}, folder))))
