"""Installed packages as files: nothing is imported to describe them."""

from __future__ import annotations

import sys
import sysconfig
from pathlib import Path

import pytest

from gpucheck.tools.doctor import software_lines
from gpucheck.tools.doctor.line import Status
from tests.tools.doctor.conftest import FakeMachine, Only


@pytest.fixture
def site(fake: FakeMachine, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only place packages are found in: a torch for CUDA 13 with the Triton it asks for, and numpy."""
    fake.write("site/torch/__init__.py", "raise RuntimeError('imported')\n")
    fake.write("site/torch/version.py", "__version__ = '2.11.0+cu130'\ncuda: Optional[str] = '13.0'\n")
    fake.write("site/torch-2.11.0.dist-info/METADATA", "Name: torch\nVersion: 2.11.0\nRequires-Dist: triton==3.6.0\n")
    fake.write("site/triton/__init__.py", '"""Text."""\n__version__ = "3.6.0"\nraise RuntimeError("imported")\n')
    fake.write("site/triton/backends/nvidia/bin/ptxas", "")
    fake.write("site/numpy/__init__.py", "raise RuntimeError('imported')\n")
    fake.write("site/numpy-2.2.6.dist-info/METADATA", "Name: numpy\nVersion: 2.2.6\n")
    for name in ("torch", "triton", "numpy"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    fake.write("bin/gcc", "#!/bin/sh\n").chmod(0o755)
    fake.write("include/Python.h", "")
    monkeypatch.setattr(sysconfig, "get_paths", lambda: {"include": str(fake.folder / "include")})
    folder = fake.folder / "site"
    monkeypatch.setattr(sys, "path", [str(folder), *(p for p in sys.path if "packages" not in p)])
    return folder


def test_what_fits_together(fake: FakeMachine, site: Path, only: Only) -> None:
    fake.gpus(2)
    lines = software_lines.look(fake.machine)
    assert {line.status for line in lines} == {Status.OK}
    assert only(lines, "torch").value == f"2.11.0+cu130, {site / 'torch'}"
    assert only(lines, "triton").value.startswith("3.6.0, ")
    assert only(lines, "numpy").value == "2.2.6"
    assert only(lines, "cuda").value == "torch 2.11.0+cu130 is built for CUDA 13.0, the driver runs up to 13.0"
    assert only(lines, "C compiler").value == str(fake.folder / "bin/gcc")


def test_without_gpus_no_compiler_is_needed(fake: FakeMachine, site: Path) -> None:
    (site / "triton/backends/nvidia/bin/ptxas").unlink()
    fake.write("site/torch/version.py", "__version__ = '2.11.0+cpu'\ncuda: Optional[str] = None\n")
    lines = software_lines.look(fake.machine)
    assert {line.status for line in lines} == {Status.OK} and "ptxas" not in [line.fact for line in lines]


def test_a_torch_for_gpus_without_one_is_a_warning_that_names_the_option(
    fake: FakeMachine, site: Path, only: Only
) -> None:
    line = only(software_lines.look(fake.machine), "cuda")
    assert line.status is Status.WARN and "is built for CUDA 13.0" in line.value and "--device cpu" in line.advice


@pytest.mark.parametrize("package", ["torch", "triton"])
def test_a_missing_package_is_a_failure(fake: FakeMachine, site: Path, only: Only, package: str) -> None:
    (site / package).rename(site / "away")
    line = only(software_lines.look(fake.machine), package)
    assert line.status is Status.FAIL and line.value == "not installed in this Python" and "pip install" in line.advice


def test_a_driver_older_than_the_cuda_of_torch(fake: FakeMachine, site: Path, only: Only) -> None:
    fake.gpus(1, cuda="12.8")
    line = only(software_lines.look(fake.machine), "cuda")
    assert line.status is Status.FAIL and "CUDA 13.0" in line.value and "12.8" in line.value and "driver" in line.advice


def test_a_minor_difference_is_compatible(fake: FakeMachine, site: Path, only: Only) -> None:
    fake.write("site/torch/version.py", "cuda: Optional[str] = '13.2'\n")
    fake.gpus(1)
    assert only(software_lines.look(fake.machine), "cuda").status is Status.OK


def test_a_torch_for_the_cpu_beside_gpus(fake: FakeMachine, site: Path, only: Only) -> None:
    fake.write("site/torch/version.py", "__version__ = '2.11.0+cpu'\ncuda: Optional[str] = None\n")
    fake.gpus(4)
    line = only(software_lines.look(fake.machine), "cuda")
    assert line.status is Status.FAIL and "4 GPU(s)" in line.value


def test_another_triton_than_torch_asks_for(fake: FakeMachine, site: Path, only: Only) -> None:
    fake.write("site/triton/__init__.py", "__version__ = '3.9.0'\n")
    line = only(software_lines.look(fake.machine), "triton for torch")
    assert line.status is Status.WARN and line.value == "torch asks for 3.6.0"


def test_a_numpy_that_breaks_the_interpreter(fake: FakeMachine, site: Path, only: Only) -> None:
    (site / "numpy-2.2.6.dist-info").rename(site / "numpy-2.4.0.dist-info")
    fake.write("site/numpy-2.4.0.dist-info/METADATA", "Name: numpy\nVersion: 2.4.0\n")
    line = only(software_lines.look(fake.machine), "numpy")
    assert line.status is Status.WARN and "3.6.0" in line.value and "numpy<2.4" in line.advice


@pytest.mark.parametrize(
    ("path", "fact", "advice"),
    [
        ("bin/gcc", "C compiler", "install gcc"),
        ("include/Python.h", "Python headers", "python3-dev"),
        ("site/triton/backends/nvidia/bin/ptxas", "ptxas", "TRITON_PTXAS_PATH"),
    ],
)
def test_what_triton_needs_to_compile(
    fake: FakeMachine, site: Path, only: Only, path: str, fact: str, advice: str
) -> None:
    fake.gpus(1)
    (fake.folder / path).unlink()
    line = only(software_lines.look(fake.machine), fact)
    assert line.status is Status.FAIL and advice in line.advice


def test_a_compiler_that_is_named_and_not_there(fake: FakeMachine, site: Path, only: Only) -> None:
    fake.gpus(1)
    fake.environ["CC"] = "icc"
    assert only(software_lines.look(fake.machine), "C compiler").value == "CC=icc is not there"


def test_the_real_packages_here() -> None:
    torch = pytest.importorskip("torch")
    assert software_lines.version_of(Path(torch.__file__).parent) == str(torch.__version__)
    build = software_lines.torch_build(Path(torch.__file__).parent)
    assert build and (build.cuda, build.hip) == (torch.version.cuda or "", torch.version.hip or "")
