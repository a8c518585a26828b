"""Kernels that Triton or the device refuses: they do not compile, or ask for more than there is."""

from __future__ import annotations

import re

from gpucheck.diagnose.causes import COMPILE_ERROR, RESOURCE_LIMIT
from gpucheck.diagnose.rules import common
from gpucheck.diagnose.rules.common import Evidence
from gpucheck.diagnose.sightings import Key
from gpucheck.diagnose.words import lines_of
from gpucheck.model.finding import Finding
from gpucheck.model.record import Outcome, Record
from gpucheck.records.folder import Run

COMPILER = ("CompilationError", "UnsupportedLanguageConstruct", "CompileTimeAssertionFailure", "PTXASError")
RESOURCES = ("OutOfResources", "ResourceLimit")  # Triton's own, and the one of gpucheck.worker.demands
LANGUAGE = re.compile(r"module 'triton\.language[.\w]*' has no attribute")  # the interpreter raises it at the call
DEMAND = re.compile(r"out of resource: (?P<what>.+?), Required: (?P<needed>\d+), Hardware limit: (?P<limit>\d+)")


def recognise(run: Run, record: Record) -> Evidence | None:
    """An error of Triton's own kinds, or a function that its language lacks."""
    if record.outcome is not Outcome.ERROR:
        return None
    kind = record.message.partition(":")[0]
    if kind in RESOURCES:
        return Evidence(RESOURCE_LIMIT)
    return Evidence(COMPILE_ERROR) if kind in COMPILER or LANGUAGE.search(record.message) else None


def findings(run: Run, evidence: dict[Key, Evidence]) -> list[Finding]:
    """As usual, with the demand, what there is, and the configuration that asked for it."""
    return common.findings(run, evidence, _lines)


def _lines(record: Record) -> list[str]:
    return [*lines_of(record), *_demand(record), *_configurations(record)]


def _demand(record: Record) -> list[str]:
    found = DEMAND.search(record.message)
    if not found:
        return []
    return [f"{found['what']}: needed {int(found['needed']):,}, available {int(found['limit']):,}"]


def _configurations(record: Record) -> list[str]:
    """The refused launches with what they were compiled for."""
    return [
        f"{launch.kernel}{f' ({launch.source})' if launch.source else ''} with "
        + ", ".join(f"{name}={value}" for name, value in launch.config.items())
        for launch in record.launches
        if launch.refused and launch.config
    ]
