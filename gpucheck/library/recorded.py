"""Finding the copy of the library that a run had under test, told by its content wherever it lies now."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from gpucheck.library.content import content_hash
from gpucheck.library.copies import PACKAGE, LibraryCopy, describe, is_genuine
from gpucheck.library.library_option import Source, resolve
from gpucheck.model.errors import GpucheckError, InfrastructureError, UsageError
from gpucheck.model.plan import PlannedLibrary


def find_recorded(library: PlannedLibrary, run: Path, source: Source | None = None) -> LibraryCopy:
    """The copy with the content that a plan names.

    Args:
        library: of the plan.
        run: the run folder, which holds a patched copy itself.
        source: where to look; None looks where the run had it, in the run folder, and at the release it came from.

    Raises:
        UsageError: the copy that ``source`` names has another content.
        InfrastructureError: no copy of this content is found.
    """
    if source:
        copy = resolve(source)
        if copy.content != library["content"]:
            raise UsageError(
                f"--library {source} has content {copy.content[:12]}, the run had {library['content'][:12]} "
                f"({library['origin']}): a replay needs the same content; use gpucheck run to test another"
            )
        return copy
    looked = []
    for candidate, words in _candidates(library, run):
        if candidate is not None and candidate.content == library["content"]:
            return replace(candidate, origin=library["origin"])
        looked.append(f"  looked at  {words}")
    raise InfrastructureError(
        f"the library of the run, {library['name']} ({library['origin']}) with content {library['content'][:12]}, "
        "is no longer found as it was.\n" + "\n".join(looked) + "\n  try        --library path:DIR with a copy of it"
    )


def _candidates(library: PlannedLibrary, run: Path) -> Iterator[tuple[LibraryCopy | None, str]]:
    """Copies that may be the one, each with what is to be said of it where it is not."""
    for package in dict.fromkeys((Path(library["package"]), run / "library" / PACKAGE)):
        if package == run / "library" / PACKAGE and not package.is_dir():
            continue
        if is_genuine(package):
            found = content_hash(package)
            copy = describe(package, library["origin"]) if found == library["content"] else None
            yield copy, f"{package}: its content is {found[:12]}"
        else:
            yield None, f"{package}: " + ("no copy of the library" if package.is_dir() else "no such folder")
    name, _, version = str(library["origin"]).partition(" ")
    if version and "(" not in version and not library.get("patches"):
        from gpucheck.library.fetch import fetch

        try:
            copy = fetch(name, version)
            yield copy, f"the wheel of {name} {version}: its content is {copy.content[:12]}"
        except GpucheckError as error:
            yield None, f"the wheel of {name} {version}: {str(error).partition(chr(10))[0]}"
