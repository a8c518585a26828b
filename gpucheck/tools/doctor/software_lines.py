"""The software a run would use: found on disk, never imported here."""

from __future__ import annotations

import platform
import re
import shutil
import sys
import sysconfig
from importlib import metadata
from pathlib import Path

from gpucheck.host.accelerators import assigned, torch_build
from gpucheck.host.text_file import text_of
from gpucheck.library.installed import find_spec, spec_folders
from gpucheck.model.versions import major_minor
from gpucheck.tools.doctor.line import Line, fail, ok, warn
from gpucheck.tools.doctor.machine import Machine

INSTALL = (
    "run gpucheck with the Python that serves the model, or install the CPU set: pip install '.[cpu]' in a checkout"
)


def look(machine: Machine) -> list[Line]:
    """The lines of Python, torch, Triton and what Triton needs to build kernels."""
    lines = [ok("python", f"{platform.python_version()}, {sys.executable}")]
    torch, triton = folder_of("torch"), folder_of("triton")
    if torch is None:
        lines.append(fail("torch", "not installed in this Python", INSTALL))
    else:
        lines += [ok("torch", f"{version_of(torch)}, {torch}"), *_build(machine, torch)]
    if triton is None:
        lines.append(fail("triton", "not installed in this Python", INSTALL))
        return lines
    lines += [ok("triton", f"{version_of(triton)}, {triton}"), *_wanted(torch, triton), *_numpy(triton)]
    return lines + (_compilers(machine, triton) if machine.smi().gpus else [])


def folder_of(package: str) -> Path | None:
    """The folder of an installed package; nothing is imported."""
    return next(iter(spec_folders(find_spec(package))), None)


def version_of(folder: Path) -> str:
    """The version a package gives itself, else the one of its distribution, else "of unknown version"."""
    for file in ("version.py", "__init__.py"):
        version = assigned(text_of(folder / file), "__version__")
        if version:
            return version
    for distribution in metadata.distributions(name=folder.name, path=[str(folder.parent)]):
        return distribution.version
    return "of unknown version"


def _build(machine: Machine, torch: Path) -> list[Line]:
    """Whether torch's CUDA and the driver fit."""
    build, snapshot = torch_build(torch), machine.smi()
    if build is None:
        return []
    if not snapshot.gpus and (build.cuda or build.hip):
        advice = "where that is right, say so: gpucheck run --device cpu; else see what the driver lines say"
        return [warn("cuda", f"{build.words}, and there is no GPU that it can use", advice)]
    if not snapshot.gpus:
        return [ok("cuda", build.words)]
    if not build.cuda:
        advice = "install a torch built for CUDA, or check without the GPUs: --device cpu"
        return [fail("cuda", f"{build.words}, and there are {len(snapshot.gpus)} GPU(s)", advice)]
    needed, has = major_minor(build.cuda), major_minor(snapshot.cuda)
    value = f"{build.words}, the driver runs up to {snapshot.cuda or 'an unknown one'}"
    if needed and has and needed[0] > has[0]:
        advice = "install a newer driver, CUDA's forward compatibility package, or a torch built for an older CUDA"
        return [fail("cuda", value, advice)]
    return [ok("cuda", value)]


def _wanted(torch: Path | None, triton: Path) -> list[Line]:
    """Whether Triton is the release that torch asks for."""
    if torch is None:
        return []
    for distribution in metadata.distributions(name="torch", path=[str(torch.parent)]):
        for requirement in distribution.requires or []:
            match = re.match(r"(?:pytorch-)?triton\s*\(?==\s*([\w.+]+)", requirement)
            if match and match[1].split("+")[0] != version_of(triton).split("+")[0]:
                advice = "torch is tested with that one; expect other kernels, and errors from torch.compile"
                return [warn("triton for torch", f"torch asks for {match[1]}", advice)]
    return []


def _numpy(triton: Path) -> list[Line]:
    """Triton's interpreter calculates with numpy; releases before 3.7 break on numpy 2.4."""
    folder = folder_of("numpy")
    if folder is None:
        return [warn("numpy", "not installed", "only runs with --device cpu need it: pip install numpy")]
    version, ours = major_minor(version_of(folder)), major_minor(version_of(triton))
    if version and ours and version >= (2, 4) and ours < (3, 7):
        advice = "for runs with --device cpu: pip install 'numpy<2.4'"
        return [warn("numpy", f"{version_of(folder)} breaks the interpreter of Triton {version_of(triton)}", advice)]
    return [ok("numpy", version_of(folder))]


def _compilers(machine: Machine, triton: Path) -> list[Line]:
    """What Triton starts to build a kernel and its launcher on a GPU."""
    search = machine.environ.get("PATH", "")
    wanted = machine.environ.get("CC")
    compiler = shutil.which(wanted, path=search) if wanted else shutil.which("gcc", path=search)
    compiler = compiler or (None if wanted else shutil.which("clang", path=search))
    missing = f"CC={wanted} is not there" if wanted else "neither gcc nor clang"
    c_module = "install gcc, or name a compiler in CC: Triton builds a small C module before its first launch"
    headers = Path(sysconfig.get_paths()["include"])
    package = "install the headers of this Python (python3-dev): Triton's C module includes them"
    ptxas = Path(machine.environ.get("TRITON_PTXAS_PATH") or triton / "backends/nvidia/bin/ptxas")
    wheel = "unset TRITON_PTXAS_PATH, or install the Triton wheel again: it brings a ptxas of its own"
    return [
        ok("C compiler", compiler) if compiler else fail("C compiler", missing, c_module),
        ok("Python headers", str(headers))
        if (headers / "Python.h").is_file()
        else fail("Python headers", f"no Python.h in {headers}", package),
        ok("ptxas", str(ptxas)) if ptxas.is_file() else fail("ptxas", f"there is no {ptxas}", wheel),
    ]
