"""Kernels that Triton does not compile, and kernels and launches that ask for more than the GPU has."""

from __future__ import annotations

import re

from gpucheck.diagnose.causes.common import Evidence, findings
from gpucheck.diagnose.causes.pages import COMPILE_ERROR, RESOURCE_LIMIT
from gpucheck.model.record import Outcome, Record
from gpucheck.records.run_folder import Run

__all__ = ["findings", "recognise"]

COMPILER = ("CompilationError", "UnsupportedLanguageConstruct", "CompileTimeAssertionFailure", "PTXASError")
RESOURCES = ("OutOfResources", "ResourceLimit")  # Triton's own, and the one of gpucheck.triton_hooks.resource_limits
GRID = "GridLimit"  # of gpucheck.triton_hooks.resource_limits too
FEWER_BLOCKS = "put the long extent on axis 0 of the grid, fold axes into one, or launch in parts"
LANGUAGE = re.compile(r"module 'triton\.language[.\w]*' has no attribute")  # the interpreter raises it at the call


def recognise(run: Run, record: Record) -> Evidence | None:
    """An error of Triton's own kinds, or a function that its language lacks."""
    if record.outcome is not Outcome.ERROR:
        return None
    kind = record.message.partition(":")[0]
    if kind in RESOURCES:
        return Evidence(RESOURCE_LIMIT)
    if kind == GRID:
        return Evidence(RESOURCE_LIMIT, remedy=FEWER_BLOCKS)
    return Evidence(COMPILE_ERROR) if kind in COMPILER or LANGUAGE.search(record.message) else None
