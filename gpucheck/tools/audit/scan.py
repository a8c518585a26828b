"""Runs every detector over the source of a package."""

from __future__ import annotations

from pathlib import Path

from gpucheck.tools.audit.detectors import DETECTORS
from gpucheck.tools.audit.hazard import Hazard, Kind
from gpucheck.tools.audit.package import Package


def scan(folder: Path) -> list[Hazard]:
    """Hazards in the package folder, by kind, file and line; nothing is imported.

    Raises:
        InfrastructureError: a file cannot be read or is no Python.
    """
    package = Package(folder)
    order = list(Kind)
    found = {
        (order.index(hazard.kind), hazard.file, hazard.line): hazard
        for detect in DETECTORS
        for hazard in detect(package)
    }
    return [found[key] for key in sorted(found)]
