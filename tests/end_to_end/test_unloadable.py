"""Copies of the library that do not load: never a pass, and the reason is in the report."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.end_to_end.conftest import Lab

IMPORT = "import itertools\n"  # a line of the module with the matrix product


def test_syntax_error(lab: Lab) -> None:
    library = lab.plant(("matmul_ogs.py", IMPORT, IMPORT + "def broken(:\n"))
    run = lab.forked(library=library, nproc=1, cases=("m20-n41-", "attention"))
    assert run.code == 1, run.text
    assert run.outcomes("m20-n41-") == ["error"]
    assert "SyntaxError: " in run.lines("m20-n41-")
    assert "matmul_ogs.py, line " in run.lines("m20-n41-")
    assert run.outcomes("attention") == ["pass"]


def test_missing_module(lab: Lab) -> None:
    library = lab.plant(("matmul_ogs.py", IMPORT, IMPORT + "import no_such_module\n"))
    run = lab.forked(library=library, nproc=1, cases=("m20-n41-", "attention"))
    assert run.code == 3, run.text
    assert run.report["verdict"] == "INCONCLUSIVE"
    assert run.outcomes("m20-n41-") == ["inapplicable"]
    assert "No module named 'no_such_module'" in run.lines("m20-n41-")


def test_generation_that_needs_an_older_triton(lab: Lab, tmp_path: Path) -> None:
    import triton.language

    if hasattr(triton.language, "constexpr_function"):
        pytest.skip("this Triton runs generation v3.4")
    run = lab.forked(library=f"path:{older_library(tmp_path)}", nproc=1, cases=("m20-n41-",))
    assert run.code == 5, run.text
    assert run.report["verdict"] == "NOTHING RAN"
    assert run.outcomes("m20-n41-") == ["inapplicable"]
    assert "v3.4 needs Triton 3.4, this is Triton" in run.lines("m20-n41-")
    assert "v3.4 needs Triton 3.4" in run.text


def older_library(folder: Path) -> Path:
    """A stand-in with the files by which generation v3.4 is known; it says so if it is imported."""
    package = folder / "triton_kernels"
    (package / "tensor_details").mkdir(parents=True)
    names = ("__init__", "numerics", "specialize", "target_info", "tensor", "testing", "matmul_ogs", "routing")
    for name in names:
        (package / f"{name}.py").write_text("raise RuntimeError('imported')\n")
    (package / "tensor_details" / "layout.py").write_text("class OtherLayout: ...\n")
    return package
