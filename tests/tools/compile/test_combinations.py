"""Processes that compile, die, hang or say nothing, and what is made of them; none of them compiles anything here."""

from __future__ import annotations

import json
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from gpucheck.library.copies import LibraryCopy
from gpucheck.model.check_source import CheckSource, SourceKind
from gpucheck.tools.compile import combinations as building
from gpucheck.tools.compile.combinations import Job, build
from gpucheck.tools.compile.outcome import Built, Combination, Kind, Result
from gpucheck.tools.compile.tritons import Triton
from gpucheck.triton_hooks.targets import TARGETS
from tests.processes import naming, wait_until
from tests.tools.compile.conftest import make_case


@pytest.fixture(autouse=True)
def fake(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(building, "CHILD", "tests.tools.compile.fake_child")
    monkeypatch.setattr(building, "STALL", 60.0)


def job(triton: Triton, *cases: str, target: str = "sm_90", library: LibraryCopy | None = None) -> Job:
    combination = Combination("own" if library is None else "E", triton.version, target)
    return Job(combination, triton, library, TARGETS[target], tuple(make_case(name) for name in cases))


def result(work: Job) -> Result:
    (found,) = build([work], 1)
    return found


def built(found: Result) -> dict[str, str]:
    return {name: case.built.value for name, case in found.cases.items()}


def test_what_was_compiled_is_not_compiled_again(triton: Triton) -> None:
    first, again = result(job(triton, "a", "b")), result(job(triton, "a", "b"))
    assert built(first) == built(again) == {"a": "compiled", "b": "compiled"}
    assert first.kernels == again.kernels
    assert (first.compiled_now, again.compiled_now) == (2, 0)
    assert result(job(triton, "a", "c")).compiled_now == 1
    assert result(job(triton, "a", target="sm_80")).compiled_now == 1


def test_a_kernel_that_kills_the_compiler_is_one_failure_among_others(triton: Triton) -> None:
    found = result(job(triton, "a", "dies", "b"))
    assert built(found) == {"a": "compiled", "dies": "failed", "b": "compiled"}
    kernel = found.kernels["key of dies"]
    assert kernel.problem is not None and kernel.problem.kind is Kind.CRASH
    assert "killed by SIGSEGV: Assertion" in kernel.problem.error and kernel.problem.place == "lib/host.py:5"
    assert "older than the target" in kernel.problem.hint
    assert built(result(job(triton, "dies"))) == {"dies": "failed"}
    assert result(job(triton, "a", "b")).compiled_now == 0, "only what killed its process is tried again"


def test_a_kernel_that_the_compiler_hangs_on_ends_with_the_deadline(
    triton: Triton, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The clock stands still but for a jump once that kernel has begun."""
    now, looks = 0.0, 0  # until the jump
    hear = building._Process._hear

    def heard(process: Any, event: dict[str, Any]) -> None:
        nonlocal looks
        hear(process, event)
        looks = 2 * (event.get("key") == "key of hangs")

    def monotonic() -> float:
        nonlocal now, looks
        now += 1000.0 * (looks == 1)
        looks -= looks > 0
        return now

    monkeypatch.setattr(building._Process, "_hear", heard)
    monkeypatch.setattr(building, "time", SimpleNamespace(monotonic=monotonic, perf_counter=time.perf_counter))
    found = result(job(triton, "hangs", "b"))
    assert built(found) == {"hangs": "failed", "b": "compiled"}
    problem = found.kernels["key of hangs"].problem
    assert problem is not None and problem.kind is Kind.HANG and "without an end" in problem.error


def test_host_code_that_kills_the_process_costs_its_case_only(triton: Triton) -> None:
    found = result(job(triton, "a", "host", "b"))
    assert built(found) == {"a": "compiled", "host": "not reached", "b": "compiled"}
    assert found.cases["host"].reason == "its process ended with exit code 3: MemoryError: too much"


def test_a_process_that_does_not_start_reaches_nothing(triton: Triton) -> None:
    found = result(job(triton, "before", "b"))
    assert built(found) == {"before": "not reached", "b": "not reached"}
    assert "no such library" in found.cases["b"].reason and not found.kernels
    assert built(result(job(triton, "b"))) == {"b": "compiled"}, "such an answer is not kept"


def test_a_server_that_does_not_start_says_why(triton: Triton, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(building, "CHILD", "tests.tools.compile.no_such_child")
    found = result(job(triton, "a", "b"))
    assert built(found) == {"a": "not reached", "b": "not reached"}
    assert "ended with exit code 1: ModuleNotFoundError" in found.cases["a"].reason


def test_one_server_forks_for_all_jobs_of_a_triton(triton: Triton, tmp_path: Path) -> None:
    other = Triton("3.7.0", tmp_path, tmp_path)
    jobs = [job(triton, "environment", target=target) for target in ("sm_80", "sm_90")]
    jobs.append(job(other, "environment"))
    seen = [json.loads(found.cases["environment"].reason) for found in build(jobs, 2)]
    assert len({process["pid"] for process in seen}) == 3
    assert len({process["parent"] for process in seen}) == 2
    assert len({process["TRITON_CACHE_DIR"] for process in seen}) == 2


def test_a_server_that_died_is_replaced(triton: Triton) -> None:
    found = list(build([job(triton, "server"), job(triton, "a")], 1))
    assert {name: case.built.value for each in found for name, case in each.cases.items()} == {
        "server": "not reached",
        "a": "compiled",
    }
    assert "killed by SIGKILL" in found[0].cases["server"].reason


def test_the_process_sees_no_gpu_and_its_own_triton_as_it_is_shipped(
    triton: Triton, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setenv("DISABLE_PTXAS_OPT", "1")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    found = result(job(triton, "environment"))
    seen: dict[str, Any] = json.loads(found.cases["environment"].reason)
    assert seen["PYTHONPATH"].startswith(f"{triton.folder}:")
    assert seen["CUDA_VISIBLE_DEVICES"] == seen["HIP_VISIBLE_DEVICES"] == ""
    assert "TRITON_INTERPRET" not in seen and "DISABLE_PTXAS_OPT" not in seen


def test_checks_from_elsewhere_are_never_kept_since_they_may_import_anything(triton: Triton) -> None:
    theirs = CheckSource(SourceKind.FILE, ("swiglu",), ("/mine.py",), ("0" * 64,))
    for _ in range(2):
        assert result(replace(job(triton, "a"), sources=(theirs,))).compiled_now == 1


def test_a_library_that_does_not_go_with_the_triton_starts_no_process(triton: Triton, tmp_path: Path) -> None:
    copy = LibraryCopy(tmp_path, tmp_path / "triton_kernels", "path", "f" * 64, "E", "v3.8")
    found = result(job(triton, "before", library=copy))
    assert "3.8" in found.inapplicable and not found.cases


def test_a_target_that_the_triton_does_not_know_starts_no_process(triton: Triton) -> None:
    found = result(job(replace(triton, version="3.5.1"), "before", target="sm_121"))
    assert "Triton 3.5.1 does not know sm_121" in found.inapplicable and not found.cases
    assert built(result(job(triton, "a", target="sm_121"))) == {"a": "compiled"}


def test_who_stops_reading_leaves_no_process_behind(
    triton: Triton, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("OF_THIS_TEST", str(tmp_path))
    running = build([job(triton, "environment"), job(triton, "environment", "hangs", target="sm_80")], 2)
    first = next(running)
    assert first.cases["environment"].built is Built.COMPILED
    assert naming(tmp_path)
    running.close()
    wait_until(lambda: not naming(tmp_path))
    assert not list(tmp_path.glob("gpucheck-compile-*"))
