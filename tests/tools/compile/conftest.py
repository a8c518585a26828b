"""Results as compiling gives them, without a compiler."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gpucheck.model.case import Case
from gpucheck.tools.compile.outcome import Built, CaseBuilt, Combination, Kernel, Kind, Problem, Result
from gpucheck.tools.compile.tritons import Triton

PROBLEM = Problem(Kind.ERROR, "ValueError: sizes 32 and 64", "lib/k.py:7", "x + y", "a hint")

Make = Callable[..., Result]


def make_kernel(key: str = "k1", built: Built = Built.COMPILED, **changes: Any) -> Kernel:
    values: dict[str, Any] = {"shared": 1000, "registers": 64, "spilled": 0, "warps": 4, "stages": 3, "seconds": 0.5}
    if built is Built.FAILED:
        values = {"problem": PROBLEM, "warps": 4, "stages": 3}
    return Kernel(key, changes.pop("name", "_kernel"), built, **{**values, **changes})


def make_result(
    library: str = "B", triton: str = "3.6.0", target: str = "sm_90", kernels: list[Kernel] | None = None, **cases: Any
) -> Result:
    """A combination of one case with these kernels, and further cases ``name=CaseBuilt``."""
    kernels = [make_kernel()] if kernels is None else kernels
    built = Built.FAILED if any(kernel.built is Built.FAILED for kernel in kernels) else Built.COMPILED
    result = Result(Combination(library, triton, target), compiled_now=len(kernels))
    if kernels:
        result.cases["a/case"] = CaseBuilt("a/case", built, "", "", 1, tuple(kernel.key for kernel in kernels))
    result.cases |= cases
    result.kernels = {kernel.key: kernel for kernel in kernels}
    return result


def make_case(name: str = "swiglu/a", seed: int = 0) -> Case:
    return Case("swiglu", {"m": 1}, "normal", name, "swiglu", seed)


def shipped(cache: Path) -> dict[str, str]:
    """The environment of a process that imports gpucheck and compiles, whatever other tests have set for Triton."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("TRITON_")}
    return {**kept, "PYTHONPATH": str(Path(__file__).parents[3]), "TRITON_CACHE_DIR": str(cache)}


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of this test's own."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("GPUCHECK_CACHE_DIR", str(folder))
    return folder


@pytest.fixture
def triton(tmp_path: Path) -> Triton:
    """One that says that it is 3.6.0, in a folder of its own."""
    package = tmp_path / "side" / "triton"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("__version__ = '3.6.0'\n")
    return Triton("3.6.0", package.parent, package)
