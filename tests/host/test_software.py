from __future__ import annotations

import os
from pathlib import Path

import pytest

from gpucheck.host import software


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stand-ins for torch and triton on the import path, and a library."""
    site = tmp_path / "site"
    for name, version in (("torch", "9.1"), ("triton", "8.2")):
        (site / name / "sub").mkdir(parents=True)
        (site / name / "__init__.py").write_text("raise RuntimeError('imported')\n")
        (site / name / "sub" / "lib.so").write_bytes(b"abc")
        (site / f"{name}-{version}.dist-info").mkdir()
        (site / f"{name}-{version}.dist-info" / "METADATA").write_text(f"Name: {name}\nVersion: {version}\n")
        (site / f"{name}-{version}.dist-info" / "RECORD").write_text("x\n")
    (tmp_path / "triton_kernels").mkdir()
    (tmp_path / "triton_kernels" / "matmul.py").write_text("x = 1\n")
    monkeypatch.setattr(software.importlib.util, "find_spec", lambda name: spec(site / name))
    return tmp_path


def spec(folder: Path) -> object:
    import importlib.machinery

    if not folder.is_dir():
        return None
    made = importlib.machinery.ModuleSpec(folder.name, None, is_package=True)
    made.submodule_search_locations = [str(folder)]
    return made


def test_versions_and_paths_are_found_without_importing(installed: Path) -> None:
    found = software.software(installed / "triton_kernels")
    assert (found["torch"]["version"], found["triton"]["version"]) == ("9.1", "8.2")
    assert found["torch"]["path"] == str(installed / "site" / "torch")
    assert software.changes(found, software.software(installed / "triton_kernels")) == []
    assert software.missing_packages() == []


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("triton_kernels/matmul.py", "triton_kernels"),
        ("site/torch/sub/lib.so", "torch"),
        ("site/torch-9.1.dist-info/RECORD", "torch"),
        ("site/triton/__init__.py", "triton"),
    ],
)
@pytest.mark.parametrize("change", ["edit", "remove"])
def test_every_change_is_noticed(installed: Path, path: str, name: str, change: str) -> None:
    before = software.software(installed / "triton_kernels")
    target = installed / path
    if change == "remove":
        target.unlink()
    else:
        old = target.stat()
        target.write_bytes(target.read_bytes()[::-1])
        os.utime(target, ns=(old.st_atime_ns, old.st_mtime_ns + 1))
    (line,) = software.changes(before, software.software(installed / "triton_kernels"))
    assert line.startswith(f"{name} changed during the run: was ")


def test_a_new_file_is_noticed_and_bytecode_is_not(installed: Path) -> None:
    before = software.software(installed / "triton_kernels")
    for folder in ("triton_kernels", "site/torch"):
        (installed / folder / "__pycache__").mkdir()
        (installed / folder / "__pycache__" / "x.pyc").write_bytes(b"x")
    assert software.changes(before, software.software(installed / "triton_kernels")) == []
    (installed / "triton_kernels" / "new.py").write_text("")
    assert len(software.changes(before, software.software(installed / "triton_kernels"))) == 1


def test_what_is_missing_is_said(installed: Path) -> None:
    import shutil

    shutil.rmtree(installed / "site" / "triton")
    assert software.missing_packages() == ["triton"]
    assert software.software(installed / "triton_kernels")["triton"] is None


def test_the_driver(tmp_path: Path) -> None:
    facts = tmp_path / "version"
    facts.write_text(
        "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  570.124.06  Release Build  (dvs@x)  Feb 26 2026\n"
        "GCC version:  gcc version 12.2.0 (Debian 12.2.0-14)\n"
    )
    assert software.driver_version(facts) == "570.124.06"
    facts.write_text("something else")
    assert software.driver_version(facts) is None
    assert software.driver_version(tmp_path / "gone") is None
