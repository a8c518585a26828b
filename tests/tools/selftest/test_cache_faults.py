"""Damage to a kernel cache: the entries of the right kernels, and no others."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gpucheck.model.errors import InfrastructureError
from gpucheck.tools.selftest import cache_faults
from gpucheck.tools.selftest.assess import label_of
from gpucheck.tools.selftest.catalogue import choose

CASE = label_of(choose(["mixed-cache"])[0])
DONOR = CASE.replace("/causal/", "/full/")
KERNELS = {CASE: "aaaa", DONOR: "bbbb"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A cache with three kernels."""
    for name, digest, shared in (("one", "aaaa11", 10), ("two", "bbbb22", 20), ("three", "cccc33", 30)):
        (tmp_path / name).mkdir()
        description = {"hash": digest, "shared": shared, "num_warps": 4}
        (tmp_path / name / f"{cache_faults.KERNEL}.json").write_text(json.dumps(description))
        (tmp_path / name / f"{cache_faults.KERNEL}.cubin").write_bytes(name.encode())
    return tmp_path


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*.*")) if path.is_file()}


def changed(before: dict[str, bytes], folder: Path) -> set[str]:
    after = contents(folder)
    return {name for name in before if before[name] != after[name]}


def test_truncated_is_the_description_of_the_case(folder: Path) -> None:
    before = contents(folder)
    cache_faults.truncate(folder, CASE, KERNELS)
    assert changed(before, folder) == {f"one/{cache_faults.KERNEL}.json"}
    with pytest.raises(ValueError):
        json.loads((folder / "one" / f"{cache_faults.KERNEL}.json").read_text())


def test_swapped_in_is_the_binary_of_the_other_specialisation(folder: Path) -> None:
    before = contents(folder)
    cache_faults.swap(folder, CASE, KERNELS)
    assert changed(before, folder) == {f"one/{cache_faults.KERNEL}.json", f"one/{cache_faults.KERNEL}.cubin"}
    assert (folder / "one" / f"{cache_faults.KERNEL}.cubin").read_bytes() == b"two"
    assert json.loads((folder / "one" / f"{cache_faults.KERNEL}.json").read_text()) == {
        "hash": "aaaa11",
        "shared": 20,
        "num_warps": 4,
    }


def test_a_kernel_that_is_not_there_is_named(folder: Path) -> None:
    with pytest.raises(InfrastructureError, match="launched no kernel for attention/causal"):
        cache_faults.truncate(folder, CASE, {})
    with pytest.raises(InfrastructureError, match="holds no kernel _flash_attention_forward"):
        cache_faults.truncate(folder, CASE, {CASE: "dddd"})


def test_hashes_are_read_from_the_records_of_the_first_rank(tmp_path: Path) -> None:
    (tmp_path / "records").mkdir()
    launches = [{"kernel": "other", "hash": "x"}, {"kernel": cache_faults.KERNEL, "hash": "aaaa"}]
    lines = [{"event": "start"}, {"event": "result", "case": CASE, "launches": launches}]
    lines.append({"event": "result", "case": "matmul", "launches": launches[:1]})
    (tmp_path / "records" / "rank-00000.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert cache_faults.hashes(tmp_path) == {CASE: "aaaa"}
