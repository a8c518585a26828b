"""Before and after as two commands: a patched copy of the library is what runs, and the library stays as it is."""

from __future__ import annotations

import difflib
from pathlib import Path

import pytest

from tests.end_to_end.conftest import Lab
from tests.guard_patch import guard_patch

SCENARIO = """
title = "one product, one routing"
[[cases]]
check = "matmul"
data = "exact"
repeat = 3
m = 20
n = 40
k = 32
[[cases]]
check = "routing"
data = "exact"
"""
STORE = "    mask = mask_m[:, None] & mask_n[None, :]\n"


@pytest.fixture
def scenario(tmp_path: Path) -> Path:
    path = tmp_path / "mine.toml"
    path.write_text(SCENARIO)
    return path


def test_a_guard_patch_applies_to_the_library_and_changes_no_number(lab: Lab, scenario: Path, tmp_path: Path) -> None:
    patch = tmp_path / "guard.patch"
    patch.write_text(guard_patch(lab.library.package))
    run = lab.forked("--patch", str(patch), scenario=scenario)
    assert run.code == 0, run.text
    assert " + guard.patch" in run.text
    guarded = (run.folder / "library" / "triton_kernels" / "matmul_ogs.py").read_text()
    assert guarded.count("@on_device\n") >= 1
    assert not (lab.library.package / "device_guard.py").exists()
    assert sorted(result["repeats"] for result in run.results(1).values()) == [1, 3]


def test_what_a_patch_breaks_is_found(lab: Lab, scenario: Path, tmp_path: Path) -> None:
    name = "matmul_ogs_details/_matmul_ogs.py"
    old = (lab.library.package / name).read_text()
    assert old.count(STORE) == 1
    new = old.replace(STORE, STORE.replace("mask_n[None, :]", "mask_n[None, :] & (offs_y_n < 39)[None, :]"))
    patch = tmp_path / "break.patch"
    lines = [text.splitlines(keepends=True) for text in (old, new)]
    patch.write_text("".join(difflib.unified_diff(*lines, f"a/triton_kernels/{name}", f"b/triton_kernels/{name}")))
    run = lab.forked("--patch", str(patch), "--experiments", "0", scenario=scenario)
    assert run.code == 1, run.text
    assert run.outcomes("matmul") == ["mismatch", "mismatch"] and run.outcomes("routing") == ["pass", "pass"]
    assert "8 of 8 repeats wrong" in run.lines("matmul")
