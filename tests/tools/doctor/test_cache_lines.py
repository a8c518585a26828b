"""Triton caches in every bad state."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from gpucheck.tools.doctor import cache_lines
from gpucheck.tools.doctor.line import Status
from tests.tools.doctor.conftest import FakeMachine, Only, space


@pytest.fixture
def cache(fake: FakeMachine) -> Path:
    """A cache of two whole entries, where Triton looks for it."""
    for key in ("AAAA", "BBBB"):
        fake.write(f"home/.triton/cache/{key}/kernel.json", json.dumps({"shared": 1024}))
        fake.write(f"home/.triton/cache/{key}/kernel.cubin", b"\x7fELF" + bytes(1020))
        fake.write(f"home/.triton/cache/{key}/__grp__kernel.json", json.dumps({"child_paths": {}}))
    return fake.folder / "home/.triton/cache"


def test_a_sound_cache(fake: FakeMachine, cache: Path, only: Only) -> None:
    lines = cache_lines.look(fake.machine)
    assert {line.status for line in lines} == {Status.OK}
    assert only(lines, "folder").value == str(cache)
    assert only(lines, "entries").value.startswith("2, 2.1 KiB")
    assert only(lines, "storage").value == "on ext4, local"
    assert only(lines, "damage").value == "every JSON file in it parses"


def test_its_place_follows_the_environment(fake: FakeMachine) -> None:
    assert cache_lines.cache_folder(fake.machine) == fake.folder / "home/.triton/cache"
    fake.environ["TRITON_HOME"] = "/t"
    assert cache_lines.cache_folder(fake.machine) == Path("/t/.triton/cache")
    fake.environ["TRITON_CACHE_DIR"] = "/c"
    assert cache_lines.cache_folder(fake.machine) == Path("/c")


@pytest.mark.parametrize(
    ("text", "why"), [('{"shared": 10', "no JSON"), ("", "empty"), (b"\x00" * 64, "no JSON"), (b"\xff\xfe{", "no JSON")]
)
def test_damaged_entries_are_named(fake: FakeMachine, cache: Path, only: Only, text: str | bytes, why: str) -> None:
    damaged = fake.write("home/.triton/cache/AAAA/kernel.json", text)
    line = only(cache_lines.look(fake.machine), "damage")
    assert line.status is Status.FAIL and line.value.startswith(f"{damaged}: {why}")
    assert line.advice.startswith(f"rm -r {cache}/AAAA;")


def test_many_damaged_entries_are_counted(fake: FakeMachine, cache: Path) -> None:
    for number in range(15):
        fake.write(f"home/.triton/cache/C{number:02d}/kernel.json", "{")
    lines = [line for line in cache_lines.look(fake.machine) if line.fact == "damage"]
    assert len(lines) == 11 and lines[-1].value == "5 further damaged files"


def test_what_a_process_is_writing_is_not_damaged(fake: FakeMachine, cache: Path, only: Only) -> None:
    fake.write("home/.triton/cache/AAAA/tmp.pid_7_x/kernel.json", "{")
    assert only(cache_lines.look(fake.machine), "damage").status is Status.OK


def test_a_cache_that_cannot_be_written(fake: FakeMachine, only: Only, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    line = only(cache_lines.look(fake.machine), "folder")
    assert line.status is Status.FAIL and "is not writable" in line.value and "TRITON_CACHE_DIR" in line.advice


def test_a_file_where_the_cache_should_be(fake: FakeMachine, only: Only) -> None:
    fake.write("home/.triton", "")
    line = only(cache_lines.look(fake.machine), "folder")
    assert line.status is Status.FAIL and "is no folder" in line.value


def test_a_cache_that_every_user_may_write_or_others_own(
    fake: FakeMachine, cache: Path, only: Only, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache.chmod(0o777)
    line = only(cache_lines.look(fake.machine), "sharing")
    assert line.status is Status.WARN and line.value == "writable for every user"
    cache.chmod(0o755)
    monkeypatch.setattr(os, "getuid", lambda: os.stat(cache).st_uid + 1)
    line = only(cache_lines.look(fake.machine), "sharing")
    assert line.status is Status.WARN and f"uid {os.stat(cache).st_uid}" in line.value


def test_network_storage(fake: FakeMachine, cache: Path, only: Only) -> None:
    home = fake.folder / "home"
    mounts = f"22 1 0:1 / / rw - ext4 /dev/vda rw\n31 22 0:5 / {home} rw,relatime shared:1 - nfs4 server:/home rw\n"
    fake.write("proc/self/mountinfo", mounts)
    line = only(cache_lines.look(fake.machine), "storage")
    assert line.status is Status.WARN and "nfs4" in line.value and "local folder" in line.advice


MOUNTS = """\
1 0 0:1 / / rw - overlay overlay rw
2 1 0:2 / /data rw - ext4 /dev/a rw
nonsense
3 1 0:3 / /with\\040blank rw - lustre l rw
4 1 0:4 / /shadowed rw - nfs n rw
5 4 0:5 / /shadowed rw - tmpfs t rw
"""


@pytest.mark.parametrize(
    ("folder", "kind"),
    [
        ("/data/x", "ext4"),
        ("/data", "ext4"),
        ("/database", "overlay"),
        ("/with blank/c", "lustre"),
        ("/shadowed", "tmpfs"),
    ],
)
def test_the_innermost_and_last_mount_counts(folder: str, kind: str) -> None:
    assert cache_lines.filesystem(MOUNTS, Path(folder)) == kind
    assert cache_lines.filesystem("", Path(folder)) == ""


def test_little_room(fake: FakeMachine, cache: Path, only: Only) -> None:
    fake.extra["statvfs"] = lambda _: space(5 << 20)
    line = only(cache_lines.look(fake.machine), "space")
    assert line.status is Status.WARN and line.value.startswith("5.0 MiB free")


def test_a_walk_that_takes_too_long_says_so(
    fake: FakeMachine, cache: Path, only: Only, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache_lines.scan, "__defaults__", (-1.0,))
    line = only(cache_lines.look(fake.machine), "entries")
    assert line.status is Status.WARN and not line.looked and line.value.startswith("more than ")
