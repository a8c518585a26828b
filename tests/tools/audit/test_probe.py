"""The probing process, on real contents, on one that is fixed, and where it cannot work."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from gpucheck.library.content import triton_problem
from gpucheck.library.copies import LibraryCopy
from gpucheck.tools.audit import probe as probing
from gpucheck.tools.audit.hazard import Hazard, Kind
from gpucheck.tools.audit.probe import probe
from gpucheck.tools.audit.scan import scan

Content = Callable[[str], LibraryCopy]


def runnable(content: Content, name: str = "B") -> LibraryCopy:
    triton = pytest.importorskip("triton", reason="needs triton")
    copy = content(name)
    problem = triton_problem(copy.generation, triton.__version__)
    if problem:
        pytest.skip(problem)
    return copy


def patched(copy: LibraryCopy, folder: Path, edits: dict[str, tuple[str, str]]) -> LibraryCopy:
    """A private copy with one replacement in each of some files, lines kept."""
    package = folder / "triton_kernels"
    shutil.copytree(copy.package, package)
    for name, (old, new) in edits.items():
        text = (package / name).read_text()
        assert text.count(old) == 1 and old.count("\n") == new.count("\n")
        (package / name).write_text(text.replace(old, new))
    return replace(copy, root=folder, package=package)


@pytest.mark.parametrize("name", "ABCDEF")
def test_hazards_of_a_content_are_confirmed(content: Content, name: str) -> None:
    copy = runnable(content, name)
    probed = probe(copy, scan(copy.package))
    by_kind: dict[Kind, list[Hazard]] = {}
    for hazard in probed:
        by_kind.setdefault(hazard.kind, []).append(hazard)
        assert hazard.evidence
        assert hazard.confirmed is not False, hazard
    unprobed = (Kind.METADATA_SYNC, Kind.ENVIRONMENT, Kind.ALLOCATION)  # all of these are in code for tests
    for kind, hazards in by_kind.items():
        assert any(hazard.confirmed for hazard in hazards) is (kind not in unprobed), kind
    assert all(hazard.confirmed for hazard in by_kind[Kind.FIXED_DEVICE])
    guards = {hazard.file for hazard in by_kind[Kind.NO_DEVICE_GUARD] if hazard.confirmed}
    assert {"swiglu.py", "topk.py", "numerics_details/mxfp.py"} <= guards
    assert guards & {"matmul.py", "matmul_ogs.py"}


def test_a_mended_library_is_acquitted(content: Content, tmp_path: Path) -> None:
    copy = runnable(content)
    before = scan(copy.package)
    fixed = patched(
        copy,
        tmp_path,
        {
            "swiglu.py": ("        _swiglu[grid](", "        torch.cuda.set_device(a.device); _swiglu[grid]("),
            "target_info.py": ("get_device_properties(0)", "get_device_properties(torch.cuda.current_device())"),
            "matmul_ogs.py": (
                "    key = (fused_activation.name, epilogue.name)",
                "    key = (fused_activation.name, epilogue.name, f'cuda{torch.cuda.current_device()}')",
            ),
        },
    )
    asked = {(hazard.file, hazard.kind): hazard for hazard in probe(fixed, before)}
    assert asked["swiglu.py", Kind.NO_DEVICE_GUARD].confirmed is False
    assert asked["swiglu.py", Kind.FIXED_DEVICE_USER].confirmed is False
    assert asked["matmul_ogs.py", Kind.KERNEL_CACHE].confirmed is False
    assert asked["matmul_ogs.py", Kind.MODULE_REGISTRATION].confirmed is False
    assert asked["numerics_details/mxfp.py", Kind.NO_DEVICE_GUARD].confirmed is True  # left as it was

    kinds = {(hazard.file, hazard.kind) for hazard in scan(fixed.package)}
    assert ("swiglu.py", Kind.NO_DEVICE_GUARD) not in kinds and ("topk.py", Kind.NO_DEVICE_GUARD) in kinds
    assert ("target_info.py", Kind.FIXED_DEVICE) not in kinds
    assert ("matmul_ogs.py", Kind.KERNEL_CACHE) not in kinds


@pytest.mark.parametrize(
    ("allocation", "confirmed"),
    [
        ('torch.zeros(a.shape, dtype=a.dtype, device="cuda")', True),
        ('torch.zeros(a.shape, dtype=a.dtype).to("cuda:1")', False),
    ],
)
def test_an_allocation_is_watched_with_the_tensors_on_another_device(
    content: Content, tmp_path: Path, allocation: str, confirmed: bool
) -> None:
    copy = runnable(content)
    launch = "        _swiglu[grid]("
    spoilt = patched(copy, tmp_path, {"swiglu.py": (launch, f"        {allocation}; {launch.strip()}")})
    found = [hazard for hazard in scan(spoilt.package) if hazard.kind is Kind.ALLOCATION]
    (probed,) = (hazard for hazard in probe(spoilt, found) if hazard.file == "swiglu.py")
    assert probed.confirmed is confirmed, probed.evidence


HAZARD = Hazard("matmul.py", 1, Kind.FIXED_DEVICE, "code", expression="1")
COPY = LibraryCopy(Path("/nowhere"), Path("/nowhere/triton_kernels"), "path", "f" * 64, "unknown", "v3.7")


def reason(hazards: list[Hazard]) -> str:
    assert [hazard.confirmed for hazard in hazards] == [None]
    return hazards[0].evidence


def test_without_triton_nothing_is_confirmed_and_it_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "triton" else find_spec(name))
    assert reason(probe(COPY, [HAZARD])) == "not probed: no triton here"


def test_a_library_that_does_not_load_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton", reason="needs triton")
    assert "holds no folder triton_kernels" in reason(probe(COPY, [HAZARD]))


@pytest.mark.parametrize(
    ("code", "seconds", "expected"),
    [
        ("raise RuntimeError('broken')", 600.0, "ended with exit code 1: RuntimeError: broken"),
        ("import os; os.abort()", 600.0, "was killed by SIGABRT"),
        ("import time; time.sleep(600)", 1.0, "ran past 1 s"),
    ],
)
def test_a_probing_process_that_fails_is_a_reason(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, code: str, seconds: float, expected: str
) -> None:
    (tmp_path / "failing_child.py").write_text(code)
    monkeypatch.setattr(probing, "CHILD", "failing_child")
    monkeypatch.setattr(probing, "NEEDS", ())
    monkeypatch.setattr(probing, "TIMEOUT", seconds)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert expected in reason(probe(COPY, [HAZARD]))
