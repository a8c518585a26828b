"""The library is executed from its source, whatever byte code lies beside it."""

from __future__ import annotations

import importlib.util
import os
import py_compile
import subprocess
import sys
from pathlib import Path

import pytest

from gpucheck.library import source_import
from gpucheck.library.copies import PACKAGE

REPOSITORY = Path(__file__).parents[2]
PROGRAM = """
import sys
sys.path.insert(0, sys.argv[1])
from gpucheck.library import source_import
source_import.install()
source_import.install()
assert sum(type(finder).__module__ == source_import.__name__ for finder in sys.meta_path) == 1
from triton_kernels import inner
from triton_kernels.details import deep
import inspect, json
print(inner.VALUE, deep.VALUE, json.dumps(inspect.getsource(inner)))
"""


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A library of two modules whose values are right."""
    folder = tmp_path / PACKAGE
    (folder / "details").mkdir(parents=True)
    for file in ("__init__.py", "details/__init__.py"):
        (folder / file).write_text("")
    for file in ("inner.py", "details/deep.py"):
        (folder / file).write_text("VALUE = 'right'\n")
    return folder


def imported(package: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, "-c", PROGRAM, str(package.parent)]
    return subprocess.run(command, capture_output=True, text=True, env=environment)


def stale(source: Path, mode: py_compile.PycInvalidationMode) -> None:
    """Byte code of other source, which Python takes for that of this one."""
    cached = importlib.util.cache_from_source(str(source))
    other = source.with_name("other.py")
    other.write_text("VALUE = 'WRONG'\n")
    was = source.stat()
    os.utime(other, ns=(was.st_atime_ns, was.st_mtime_ns))
    py_compile.compile(str(other), cached, str(source), invalidation_mode=mode)
    other.unlink()


@pytest.mark.parametrize("mode", ["TIMESTAMP", "UNCHECKED_HASH"])
def test_stale_byte_code_is_not_executed(package: Path, mode: str) -> None:
    for file in ("inner.py", "details/deep.py"):
        stale(package / file, py_compile.PycInvalidationMode[mode])
    plain = [sys.executable, "-c", "from triton_kernels import inner; print(inner.VALUE)"]
    taken = subprocess.run(plain, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(package.parent)})
    assert taken.stdout == "WRONG\n", "Python itself does execute it"
    done = imported(package)
    assert done.stdout.startswith("right right"), done.stderr
    assert "VALUE = 'right'" in done.stdout, "what reads source, as Triton does, finds it"


def test_no_byte_code_is_written(package: Path) -> None:
    assert imported(package).returncode == 0
    assert list(package.rglob("*.pyc")) == []


def test_byte_code_without_source_is_refused(package: Path) -> None:
    py_compile.compile(str(package / "inner.py"), str(package / "inner.pyc"))
    (package / "inner.py").unlink()
    done = imported(package)
    assert "triton_kernels.inner would be loaded from" in done.stderr and "expected Python source" in done.stderr


def test_what_was_compiled_ahead_is_executed_only_for_the_very_source(
    package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(source_import, "_compiled", {})
    (package / "broken.py").write_text("not Python\n")
    source_import.compile_ahead(package.parent)
    path = package / "details" / "deep.py"
    loader = source_import._FromSource(f"{PACKAGE}.details.deep", str(path))
    ahead = loader.get_code(loader.name)
    assert ahead is loader.get_code(loader.name) and ahead.co_filename == str(path)
    was = path.stat()
    path.write_text("VALUE = 'other'\n")
    os.utime(path, ns=(was.st_atime_ns, was.st_mtime_ns))
    assert "other" in loader.get_code(loader.name).co_consts, "same size, same time, other bytes"
    other = package / "details" / "inner.py"
    other.write_bytes((package / "inner.py").read_bytes())
    assert source_import._FromSource("x", str(other)).get_code("x").co_filename == str(other)
