"""Kernels that Triton does not compile, and kernels and launches that ask for more than the GPU has."""

from __future__ import annotations

import re

from gpucheck.diagnose.causes.common import Evidence
from gpucheck.diagnose.page import Cause
from gpucheck.model.record import Outcome, Record
from gpucheck.records.run_folder import Run

COMPILE_ERROR = Cause(
    "compile error on this Triton",
    means="The installed Triton does not compile the kernel: the language changed between its version and the one "
    "the kernel was written for.",
    shows="The same compile error on every rank, before any launch.",
    confirm="gpucheck compile --triton shows which versions take the kernel.",
    fix="Use a Triton that the library supports (gpucheck library show), or a library made for this Triton.",
)
NOT_BUILT = Cause(
    "candidate does not build",
    means="A compiler refuses the CUDA or C++ source of the candidate.",
    shows="The compiler's errors with file and line, before any call; it is built once for all ranks and trials.",
    confirm="The finding names file and line; cuda.cu and main.cpp are the sources that load_inline is given.",
    fix="Fix the source at that line; look at the installed nvcc and at the C++ standard that torch asks for.",
)
RESOURCE_LIMIT = Cause(
    "resource limit",
    means="The kernel's configuration asks for more shared memory, registers or threads than the GPU has, or the "
    "launch for more blocks than a grid may have: 2,147,483,647 on axis 0, 65,535 on axes 1 and 2.",
    shows="An error that names what is needed and what is there, on every GPU of that kind.",
    confirm="gpucheck compile --target shows the demand of each kernel and launch against each GPU's limit.",
    fix="Smaller tiles, fewer pipeline stages or fewer warps for this GPU; a grid with its long extent on axis 0.",
)
CAUSES = (
    COMPILE_ERROR,
    NOT_BUILT,
    RESOURCE_LIMIT,
)

COMPILER = ("CompilationError", "UnsupportedLanguageConstruct", "CompileTimeAssertionFailure", "PTXASError")
RESOURCES = ("OutOfResources", "ResourceLimit")  # Triton's own, and the one of gpucheck.triton_hooks.resource_limits
BUILD_ERROR = "BuildError"  # of gpucheck.worker.device.build_process
GRID = "GridLimit"  # of gpucheck.triton_hooks.resource_limits too
FEWER_BLOCKS = "put the long extent on axis 0 of the grid, fold axes into one, or launch in parts"
LANGUAGE = re.compile(r"module 'triton\.language[.\w]*' has no attribute")  # the interpreter raises it at the call


def recognise(run: Run, record: Record) -> Evidence | None:
    """An error of Triton's own kinds, or a function that its language lacks."""
    if record.outcome is not Outcome.ERROR:
        return None
    kind = record.message.partition(":")[0]
    if kind == BUILD_ERROR:
        return Evidence(NOT_BUILT)
    if kind in RESOURCES:
        return Evidence(RESOURCE_LIMIT)
    if kind == GRID:
        return Evidence(RESOURCE_LIMIT, fix=FEWER_BLOCKS)
    return Evidence(COMPILE_ERROR) if kind in COMPILER or LANGUAGE.search(record.message) else None
