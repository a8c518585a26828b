"""What a compiling process does, see :mod:`gpucheck.tools.compile.combinations`.

It sends a message for each event: ``begin`` of a case, ``kernel`` before and ``built`` after one is
compiled, ``case`` with what came of it. So whoever hears them knows what a process was at when it died.
"""

from __future__ import annotations

import os
import tempfile
import traceback
from dataclasses import asdict
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpucheck import checks
from gpucheck.checks.base import ANY_KERNEL, Runtime
from gpucheck.checks.no_launch import CompileRuntime, stand_in
from gpucheck.host.isolated import receive, send
from gpucheck.model.case import Case
from gpucheck.model.check_source import CheckSource
from gpucheck.model.errors import Inapplicable, error_line
from gpucheck.model.plain import read
from gpucheck.tools.compile.outcome import Built, CaseBuilt, Kernel
from gpucheck.triton_hooks.compiled_kernel import hash_triton
from gpucheck.triton_hooks.targets import TARGETS

if TYPE_CHECKING:
    from gpucheck.tools.compile.capture import Capture
    from gpucheck.tools.compile.source_locations import Sources


def preload() -> None:
    """Loads what all compiling processes need, before they are forked."""
    import torch  # noqa: F401

    from gpucheck.tools.compile import capture  # noqa: F401

    hash_triton()


def main(connection: Connection) -> None:
    """Compiles the cases it is told and tells what it does."""
    asked = receive(connection)
    output = os.open(asked["output"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for number in (1, 2):
        os.dup2(output, number)
    os.environ.update(asked["environment"])
    tempfile.tempdir = None  # asked for again, in the environment as it is now

    def write(**event: Any) -> None:
        send(connection, event)

    target = TARGETS[asked["target"]]
    checks.activate([read(CheckSource, item) for item in asked["sources"]])
    sources = _sources(asked["root"])
    with stand_in(target):
        from gpucheck.tools.compile.capture import Capture, Output

        capture = Capture(
            target,
            sources,
            Output(Path(asked["output"])),
            write,
            {item["key"]: read(Kernel, item) for item in asked["known"]},
        )
        capture.install()
        runtime = CompileRuntime(asked["root"], asked["generation"])
        for item in asked["cases"]:
            case = read(Case, item)
            write(event="begin", case=case.id)
            built = run(case, runtime, capture, sources)
            kernels = [asdict(capture.kernels[key]) for key in built.kernels]
            write(event="case", result=asdict(built), kernels=kernels, compiled=capture.compiled_now)
            capture.compiled_now = 0


def run(case: Case, runtime: Runtime, capture: Capture, sources: Sources) -> CaseBuilt:
    """Sends one case through its host code."""
    import torch

    capture.start()
    reason = place = ""
    wanted: tuple[str, ...] = ()
    try:
        check = checks.load(case.check)
        prepared = check.prepare(case, check.inputs(case, torch.Generator().manual_seed(case.input_seed)), runtime)
        wanted = check.kernels(case, runtime)
        check.launch(case, prepared, runtime)
    except Inapplicable as unfit:
        return CaseBuilt(case.id, Built.INAPPLICABLE, str(unfit), "", capture.launches, tuple(capture.keys))
    except Exception as error:
        at = sources.of_traceback(error.__traceback__)
        reason, place = error_line(error), sources.name(at) if at else ""
        traceback.print_exc()
    else:
        enough = capture.names if ANY_KERNEL in wanted else capture.names & set(wanted)
        if wanted and not enough:
            seen = ", ".join(sorted(capture.names)) or "none"
            reason = f"none of {', '.join(wanted)} was launched; launched: {seen}"
    return _judged(case.id, capture, reason, place)


def _judged(case: str, capture: Capture, reason: str, place: str) -> CaseBuilt:
    """A case whose host code has ended: a kernel that fails counts more than one that was not reached."""
    kernels = [capture.kernels[key] for key in capture.keys]
    lacks = [kernel.problem.hint for kernel in kernels if kernel.built is Built.INAPPLICABLE and kernel.problem]
    built = Built.COMPILED
    if any(kernel.built is Built.FAILED for kernel in kernels):
        built = Built.FAILED
    elif lacks:
        built, reason, place = Built.INAPPLICABLE, lacks[0], ""
    elif reason:
        built = Built.NOT_REACHED
    return CaseBuilt(case, built, reason, place, capture.launches, tuple(capture.keys))


def _sources(root: str) -> Sources:
    import gpucheck
    from gpucheck.tools.compile.source_locations import Sources

    ours = Path(gpucheck.__file__).parent
    library = [Path(root, "triton_kernels")] if root else []
    return Sources([*library, ours / "checks", ours / "library", *checks.folders()])
