"""An engine on the file system: found, fetched or named, and never imported here."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from gpucheck.library.engines import MODULES, adapter_class
from gpucheck.library.engines.engine_content import identity
from gpucheck.library.installed import find_spec, spec_folders
from gpucheck.model.plan import PlannedEngine


@dataclass(frozen=True)
class EngineCopy:
    """One copy of an engine."""

    name: str  # import name
    version: str  # "unknown" where its metadata are missing
    root: Path  # folder that contains the package
    origin: str  # "installed", "path" or the file name of a wheel
    packages: Path | None = None  # folder of third-party packages for it; None: those of this Python
    installed: bool = False

    @property
    def words(self) -> str:
        """``vllm 0.33.0``."""
        return f"{self.name} {self.version}"

    def planned(self) -> PlannedEngine:
        """As a plan holds it."""
        return {
            "name": self.name,
            "version": self.version,
            "root": str(self.root),
            "packages": str(self.packages or ""),
            "origin": self.origin,
            "installed": self.installed,
            "identity": identity(self.root, self.name, self.version),
        }


def installed_engines() -> list[EngineCopy]:
    """The engines that this Python would import and that have what a check calls; looks for files only."""
    found = (_installed(name) for name in MODULES)
    return [copy for copy in found if copy]


def _installed(name: str) -> EngineCopy | None:
    for folder in spec_folders(find_spec(name)):  # of an engine that is not there, nothing is imported
        if (folder / adapter_class(name).needed_file).is_file():
            return EngineCopy(name, _installed_version(name), folder.parent, "installed", installed=True)
    return None


def _installed_version(name: str) -> str:
    from importlib import metadata

    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "unknown"


def engine_in(folder: Path) -> tuple[str, str] | None:
    """Name and version of the engine whose package ``folder`` contains; None where it contains none."""
    for name in MODULES:
        if (folder / name / adapter_class(name).needed_file).is_file():
            return name, version_in(folder, name)
    return None


def version_in(folder: Path, name: str) -> str:
    """The version of an engine, from its metadata beside the package."""
    for path in folder.glob(f"{name}-*.dist-info/METADATA"):
        match = re.search(r"^Version: *(\S+)", path.read_text(encoding="utf-8", errors="replace"), re.MULTILINE)
        if match:
            return match[1]
    return "unknown"
