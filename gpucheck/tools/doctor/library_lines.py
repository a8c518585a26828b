"""The copy of triton_kernels a run would test: what it is, whether it fits the Triton here, what the audit says."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from gpucheck.library.content import triton_problem
from gpucheck.library.copies import LibraryCopy
from gpucheck.library.library_option import DEFAULT_WHEEL, SourceKind
from gpucheck.model.errors import GpucheckError, UsageError
from gpucheck.tools.doctor.line import Line, fail, ok, warn
from gpucheck.tools.doctor.machine import Machine
from gpucheck.tools.doctor.software_lines import folder_of, version_of

if TYPE_CHECKING:
    from gpucheck.tools.audit.hazard import Hazard


def look(machine: Machine) -> list[Line]:
    """The lines of the library; nothing is downloaded unless ``--library`` names a wheel.

    Raises:
        UsageError: ``--library`` names what is not there.
    """
    try:
        copy = _copy(machine)
    except UsageError:
        raise
    except GpucheckError as error:
        first, *more = str(error).splitlines()
        advice = "; ".join(" ".join(line.split()) for line in more) or "give another with --library"
        named = machine.library.kind in (SourceKind.WHEEL, SourceKind.PATH)
        return [fail("copy", first, advice, looked=not named)]
    if copy is None:
        wheel = "wheel:{}=={}".format(*DEFAULT_WHEEL)
        advice = f"a run would fetch {wheel}, and needs a package index; or name a copy with --library path:DIR"
        return [warn("copy", "no triton_kernels is installed, and none is cached", advice)]
    value = (
        f"triton_kernels {copy.name} ({copy.origin}, {copy.content[:8]}), generation {copy.generation}, {copy.package}"
    )
    return [ok("copy", value), *_fit(copy), _audit(machine, copy)]


def _copy(machine: Machine) -> LibraryCopy | None:
    """The copy a run would take, as far as it is at hand."""
    from gpucheck.library.cache import Damaged, library_folder, read_cached
    from gpucheck.library.identity import check_installed_library
    from gpucheck.library.installed import locate_installed
    from gpucheck.library.library_option import resolve

    if machine.library.kind is not SourceKind.DEFAULT:
        return resolve(machine.library)
    check_installed_library()
    try:
        return locate_installed() or read_cached(library_folder(*DEFAULT_WHEEL))
    except Damaged:
        return None


def _fit(copy: LibraryCopy) -> list[Line]:
    triton = folder_of("triton")
    if triton is None:
        return []
    problem = triton_problem(copy.generation, version_of(triton))
    if problem:
        advice = "`gpucheck library list` shows which content fits which Triton; take another with --library"
        return [fail("fit", problem, advice)]
    return [ok("fit", f"fits Triton {version_of(triton)}")]


def _audit(machine: Machine, copy: LibraryCopy) -> Line:
    """How many places answer for the wrong GPU. With one GPU there is no wrong one."""
    from gpucheck.tools.audit.probe import NEEDS, probe
    from gpucheck.tools.audit.scan import scan

    hazards: Sequence[Hazard] = scan(copy.package)
    if hazards and all(folder_of(package) for package in NEEDS):
        hazards = probe(copy, hazards)
    counts = {"confirmed": True, "refuted": False, "not probed": None}
    counted = [(sum(hazard.confirmed is value for hazard in hazards), word) for word, value in counts.items()]
    words = ", ".join(f"{count} {word}" for count, word in counted if count)
    value = f"{len(hazards)} device hazards" + (f": {words}" if words else "")
    if len(machine.smi().gpus) < 2 or not any(hazard.confirmed is not False for hazard in hazards):
        return ok("audit", value)
    advice = "torch.cuda.set_device(local_rank) before the first CUDA call avoids most; `gpucheck audit` lists them"
    return warn("audit", value, advice)
