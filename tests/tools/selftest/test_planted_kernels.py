"""Planted source compiles for a GPU with the operands of every other case of its run, not only with those of its own.

``GPUCHECK_TEST_TRITONS`` names a folder with a folder for each Triton: with these all cases are compiled, which takes
minutes; without it one case of each kind of operand, with the Triton at hand, where ``make torture`` asks for it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from gpucheck.library.library_option import LibraryCopy, parse_source, resolve
from gpucheck.model.errors import InfrastructureError
from gpucheck.model.record import Outcome
from gpucheck.tools.selftest.assess import label_of
from gpucheck.tools.selftest.catalogue import FAULTS
from gpucheck.tools.selftest.fault import Edit, Session
from gpucheck.tools.selftest.injection import Injector, Planted, write_scenario
from gpucheck.tools.selftest.schedule import FaultRun, fault_runs

pytest.importorskip("triton")

REPOSITORY = Path(__file__).parents[3]
TRITONS = os.environ.get("GPUCHECK_TEST_TRITONS", "")
FITTING = ["t3.6.0", "t3.7.1"]  # of those in that folder, what the library needs
OPERANDS = ("check", "mode", "weight", "gammas")
OWN = ("matmul", None, "bf16", None)  # what most edits are made for
SHORT = {"layers": 1, "tokens": 1}  # the same kernels as a longer decoding


@pytest.fixture(scope="module")
def library() -> LibraryCopy:
    try:
        return resolve(parse_source("wheel:vllm==0.33.0"))
    except InfrastructureError as error:
        pytest.skip(f"the library is neither cached nor to be had: {error}")


@pytest.fixture(scope="module")
def everything(library: LibraryCopy) -> FaultRun:
    """A run with every fault of GPUs planted on one rank, so that all edits of the source stand in one copy."""
    able = [fault for fault in FAULTS if not fault.reason_against("cuda", 1)]
    (run,) = [run for run in fault_runs(able, "cuda", 1) if run.session is Session.SHARED and run.column == "each"]
    assert sum(isinstance(item.fault.plant, Edit) for item in run.planted) > 25
    return run


def kinds(run: FaultRun) -> list[Mapping[str, Any]]:
    """One case of each kind of operands that planted kernels are compiled for beside those that they are made for."""
    found: dict[tuple[Any, ...], Mapping[str, Any]] = {}
    for case in run.groups:
        kind = tuple(case.get(name) for name in OPERANDS)
        if case["check"] in ("matmul", "generation", "moe") and kind != OWN:
            found.setdefault(kind, {**case, **(SHORT if case["check"] == "generation" else {})})
    return list(found.values())


def compiled(run: FaultRun, cases: list[Mapping[str, Any]], library: LibraryCopy, folder: Path, triton: str) -> Any:
    """What ``gpucheck compile`` reports of cases with the planted copy of the library."""
    injector = Injector(folder, library.package, 1)
    planted = [Planted(item.fault, (0,)) for item in run.planted if isinstance(item.fault.plant, Edit)]
    package = folder / "own" / library.package.name
    package.parent.mkdir()
    (injector.library_with(planted) / "_planted" / "0").rename(package)
    write_scenario(folder / "cases.toml", cases)
    command = [sys.executable, "-m", "gpucheck", "compile", str(folder / "cases.toml"), "--library", f"path:{package}"]
    command += ["--target", "sm_90", "--triton", triton, "--json", str(folder / "report.json")]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "GPUCHECK_CACHE_DIR": str(folder / "cache")}
    done = subprocess.run(command, env=environment, cwd=folder, text=True, capture_output=True)
    assert (folder / "report.json").is_file(), done.stdout + done.stderr
    return json.loads((folder / "report.json").read_text())


def not_built(report: Any) -> dict[str, str]:
    """Case -> what kept it from being compiled."""
    assert report["compiled"] > 20, "kernels, in all"
    found = {case["case"]: case for combination in report["combinations"] for case in combination["cases"]}
    return {name: case["reason"] or case["built"] for name, case in found.items() if case["built"] != "compiled"}


@pytest.mark.torture
def test_planted_kernels_compile_with_operands_of_every_kind(
    everything: FaultRun, library: LibraryCopy, tmp_path: Path
) -> None:
    cases = kinds(everything)
    assert {case.get("weight") for case in cases} >= {"fp8_e5m2", "fp8_e4m3", "fp32", "fp16", "mxfp4"}
    report = compiled(everything, cases, library, tmp_path, "installed")
    assert not_built(report) == {}, report["findings"]


@pytest.mark.skipif(not TRITONS, reason="GPUCHECK_TEST_TRITONS names no folder")
@pytest.mark.parametrize("triton", FITTING)
def test_all_planted_kernels_compile_but_those_that_must_not(
    triton: str, everything: FaultRun, library: LibraryCopy, tmp_path: Path
) -> None:
    if not Path(TRITONS, triton).is_dir():
        pytest.skip(f"{TRITONS} has no {triton}")
    edited = [item.fault for item in everything.planted if isinstance(item.fault.plant, Edit)]
    broken = {label_of(fault) for fault in edited if fault.expected.outcome is Outcome.ERROR}
    report = compiled(everything, everything.groups, library, tmp_path, f"path:{Path(TRITONS, triton)}")
    assert not_built(report).keys() == broken, report["findings"]
