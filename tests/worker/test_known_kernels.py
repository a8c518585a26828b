"""The kernel cache says whose kernels it holds, for as long as it is the same cache of the same software."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gpucheck import checks
from gpucheck.worker.known_kernels import KnownKernels, basis

SPEC = checks.load("matmul").spec
CASES = [SPEC.case({"m": 4, "n": columns, "k": 32}, data, 0) for columns in (8, 9) for data in ("exact", "normal")]


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """A cache of two kernels."""
    for name in "AB":
        (tmp_path / "cache" / name).mkdir(parents=True)
    return tmp_path / "cache"


def test_cases_are_known_by_all_but_their_data_and_further_ones_are_added(cache: Path) -> None:
    known = KnownKernels.of(cache, "this")
    assert known.among(CASES) == []
    known.add(CASES[:1])
    assert KnownKernels.of(cache, "this").among(CASES) == [0, 1]
    KnownKernels.of(cache, "this").add(CASES[2:])
    assert known.among(CASES) == [0, 1, 2, 3]
    assert KnownKernels.of(cache, "that").among(CASES) == []
    assert not list(cache.glob("*partial"))


@pytest.mark.parametrize("content", ["", "[]", "{", '{"entries": "x", "cases": []}', '{"entries": 0}', "\udcff"])
def test_a_damaged_file_names_nothing_and_is_written_anew(cache: Path, content: str) -> None:
    known = KnownKernels.of(cache, "this")
    known.file.write_bytes(content.encode(errors="surrogateescape"))
    assert known.among(CASES) == []
    known.add(CASES)
    assert known.among(CASES) == [0, 1, 2, 3]


def test_what_a_cache_held_that_was_removed_in_part_is_compiled_ahead_again(cache: Path) -> None:
    known = KnownKernels.of(cache, "this")
    known.add(CASES)
    shutil.rmtree(cache / "A")
    assert known.among(CASES) == []
    shutil.rmtree(cache)
    known.add(CASES)  # nothing to note, and nothing raised
    assert known.among(CASES) == []


def test_what_decides_about_kernels_is_the_library_triton_and_its_variables(synthetic: Any) -> None:
    plan = replace(synthetic.plan(), environment={"software": {"triton": "a"}, "variables": {"TRITON_X": "1"}})
    for changed in (
        {"software": {"triton": "b"}, "variables": {"TRITON_X": "1"}},
        {"software": {"triton": "a", "triton_kernels": "c"}, "variables": {"TRITON_X": "1"}},
        {"software": {"triton": "a"}, "variables": {}},
    ):
        assert basis(replace(plan, environment=changed)) != basis(plan)
    assert basis(replace(plan, library={**plan.library, "content": "other"})) != basis(plan)
    assert basis(replace(plan, debug=True)) != basis(plan), "assertions inside of kernels are compiled"
    others = {"software": {"triton": "a", "driver": "1"}, "variables": {"TRITON_X": "1", "NCCL_DEBUG": "INFO"}}
    assert basis(replace(plan, environment=others)) == basis(plan)
    assert basis(replace(plan, environment={})), "a plan of an older version"
