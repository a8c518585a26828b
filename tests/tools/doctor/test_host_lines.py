"""Memory, shared memory, cores and limits, too small each in turn."""

from __future__ import annotations

import resource

import pytest

from gpucheck.tools.doctor import host_lines
from gpucheck.tools.doctor.line import Status
from tests.tools.doctor.conftest import FakeMachine, Only, space


def test_a_roomy_host(fake: FakeMachine, only: Only) -> None:
    lines = host_lines.look(fake.machine)
    assert {line.status for line in lines} == {Status.OK}
    assert only(lines, "memory").value == "32.0 GiB free of 64.0 GiB"
    assert only(lines, "cores").value == "64"
    assert only(lines, "locked memory").value == "unlimited"


@pytest.mark.parametrize(("free", "status"), [(900 << 10, Status.FAIL), (4 << 20, Status.WARN)])  # kB
def test_little_memory(fake: FakeMachine, only: Only, free: int, status: Status) -> None:
    fake.write("proc/meminfo", f"MemTotal: 67108864 kB\nMemAvailable: {free} kB\n")
    line = only(host_lines.look(fake.machine), "memory")
    assert line.status is status and "more memory" in line.advice


@pytest.mark.parametrize(
    ("group", "files"),
    [
        ("0::/\n", {"memory.max": 2 << 30, "memory.current": 1536 << 20}),
        ("0::/kubepods/pod7\n", {"kubepods/memory.max": 2 << 30, "kubepods/memory.current": 1536 << 20}),
        (
            "5:cpu,memory:/docker/x\n1:name=systemd:/\n",
            {"memory/docker/x/memory.limit_in_bytes": 2 << 30, "memory/docker/x/memory.usage_in_bytes": 1536 << 20},
        ),
    ],
)
def test_a_container_may_use_less_than_the_host_has(
    fake: FakeMachine, only: Only, group: str, files: dict[str, int]
) -> None:
    fake.write("proc/self/cgroup", group)
    for name, number in files.items():
        fake.write(f"cgroup/{name}", f"{number}\n")
    line = only(host_lines.look(fake.machine), "memory")
    assert line.status is Status.FAIL and line.value == "512.0 MiB free, of 2.0 GiB that this container may use"


@pytest.mark.parametrize("text", ["max\n", "9223372036854771712\n"])
def test_a_group_without_a_limit(fake: FakeMachine, only: Only, text: str) -> None:
    fake.write("proc/self/cgroup", "0::/\n")
    fake.write("cgroup/memory.max", text)
    assert only(host_lines.look(fake.machine), "memory").status is Status.OK


def test_the_shared_memory_a_container_has_by_default(fake: FakeMachine, only: Only) -> None:
    fake.extra["statvfs"] = lambda folder: space(64 << 20, 64 << 20) if folder.endswith("shm") else space(1 << 40)
    line = only(host_lines.look(fake.machine), "shared memory")
    assert line.status is Status.WARN and line.value.endswith("64.0 MiB free of 64.0 MiB")
    assert "--shm-size" in line.advice and "emptyDir" in line.advice


def test_no_shared_memory(fake: FakeMachine, only: Only) -> None:
    def missing(_: str) -> None:
        raise FileNotFoundError

    fake.extra["statvfs"] = missing
    line = only(host_lines.look(fake.machine), "shared memory")
    assert line.status is Status.WARN and "there is no" in line.value


def test_cores(fake: FakeMachine, only: Only) -> None:
    fake.gpus(8)
    fake.extra["cores"] = lambda: 8
    line = only(host_lines.look(fake.machine), "cores")
    assert line.status is Status.WARN and line.value == "8 for 8 GPU(s)"


@pytest.mark.parametrize(
    "files", [{"cpu.max": "200000 100000"}, {"cpu/cpu.cfs_quota_us": "200000", "cpu/cpu.cfs_period_us": "100000"}]
)
def test_a_cpu_limit_below_the_cores(fake: FakeMachine, only: Only, files: dict[str, str]) -> None:
    for name, text in files.items():
        fake.write(f"cgroup/{name}", text + "\n")
    line = only(host_lines.look(fake.machine), "CPU quota")
    assert line.status is Status.WARN and line.value == "2 of the 64 cores this process may use"


@pytest.mark.parametrize("text", ["max 100000", "6400000 100000", ""])
def test_a_cpu_limit_that_does_not_bind(fake: FakeMachine, text: str) -> None:
    fake.write("cgroup/cpu.max", text)
    assert not [line for line in host_lines.look(fake.machine) if line.fact == "CPU quota"]


def test_limits_of_the_process(fake: FakeMachine, only: Only) -> None:
    infinity = resource.RLIM_INFINITY
    fake.limits = {resource.RLIMIT_NOFILE: 256, resource.RLIMIT_MEMLOCK: 65536, resource.RLIMIT_CORE: infinity}
    lines = host_lines.look(fake.machine)
    assert only(lines, "open files").status is Status.WARN and "ulimit -n" in only(lines, "open files").advice
    assert only(lines, "locked memory").status is Status.OK
    assert only(lines, "core files").status is Status.WARN and only(lines, "core files").value == "unlimited"
    (fake.folder / "dev/infiniband").mkdir()
    assert only(host_lines.look(fake.machine), "locked memory").status is Status.WARN


@pytest.mark.parametrize(
    ("value", "status"),
    [
        ("8", Status.OK),
        ("64", Status.OK),
        ("65", Status.WARN),
        ("1", Status.WARN),
        ("0", Status.WARN),
        ("x", Status.WARN),
    ],
)
def test_threads(fake: FakeMachine, only: Only, value: str, status: Status) -> None:
    fake.environ["OMP_NUM_THREADS"] = value
    assert only(host_lines.look(fake.machine), "threads").status is status
