"""What a process may use is what the machine has, its container allows and whoever started it shares out."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from gpucheck.host.resources import SHARE, available_memory, usable_processors


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(128)))
    monkeypatch.delenv(SHARE, raising=False)


def test_without_limits_all_processors_count(tmp_path: Path) -> None:
    assert usable_processors(tmp_path) == 128
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert usable_processors(tmp_path) == 128


@pytest.mark.parametrize(("content", "count"), [("800000 100000", 8), ("50000 100000", 1), ("99999999 100000", 128)])
def test_a_quota_of_a_container_counts(tmp_path: Path, content: str, count: int) -> None:
    (tmp_path / "cpu.max").write_text(content)
    assert usable_processors(tmp_path) == count


def test_so_does_that_of_the_first_version(tmp_path: Path) -> None:
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu/cpu.cfs_period_us").write_text("100000\n")
    (tmp_path / "cpu/cpu.cfs_quota_us").write_text("-1\n")
    assert usable_processors(tmp_path) == 128
    (tmp_path / "cpu/cpu.cfs_quota_us").write_text("1600000\n")
    assert usable_processors(tmp_path) == 16


def test_runs_that_share_a_machine_use_their_share(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SHARE, "10")
    assert usable_processors(tmp_path) == 10
    (tmp_path / "cpu.max").write_text("400000 100000")
    assert usable_processors(tmp_path) == 4
    monkeypatch.setenv(SHARE, "many")
    assert usable_processors(tmp_path) == 4


def test_memory_is_what_is_available_and_what_the_group_still_grants(tmp_path: Path) -> None:
    proc, mount = tmp_path / "proc", tmp_path / "cgroup"
    (proc / "self").mkdir(parents=True)
    mount.mkdir()
    assert available_memory(proc, mount) is None
    (proc / "meminfo").write_text("MemTotal: 64 kB\nMemAvailable:   32 kB\n")
    assert available_memory(proc, mount) == 32 << 10
    (proc / "self/cgroup").write_text("0::/\n")
    (mount / "memory.max").write_text("20480\n")
    (mount / "memory.current").write_text("4096\n")
    assert available_memory(proc, mount) == 16 << 10
