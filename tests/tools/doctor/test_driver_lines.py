"""The driver's own lines: absent, refusing, silent, and what CUDA_VISIBLE_DEVICES leaves."""

from __future__ import annotations

import pytest

from gpucheck.tools.doctor import driver_lines
from gpucheck.tools.doctor.line import Status
from tests.tools.doctor.conftest import FakeMachine, Only, report

MIG = "MIG-56780000-aaaa-bbbb-cccc-000000000000"


def test_a_healthy_node(fake: FakeMachine, only: Only) -> None:
    fake.gpus(8)
    lines = driver_lines.look(fake.machine)
    assert only(lines, "version").value == "580.159.04, runs CUDA up to 13.0"
    assert only(lines, "visible").value == "CUDA_VISIBLE_DEVICES is not set: all 8 GPU(s)"
    assert {line.status for line in lines} == {Status.OK} and len(lines) == 2


def test_no_gpu_is_a_warning_that_says_how_to_get_one(fake: FakeMachine, only: Only) -> None:
    (line,) = driver_lines.look(fake.machine)
    assert line.status is Status.WARN and line.value == "no GPU: there is no nvidia-smi"
    assert "--gpus all" in line.advice and "--device cpu" in line.advice


def test_a_tool_that_lists_no_gpu_is_a_failure(fake: FakeMachine) -> None:
    fake.gpus(0)
    (line,) = driver_lines.look(fake.machine)
    assert line.status is Status.FAIL and line.value == "no GPU: nvidia-smi lists none"


def test_a_gpu_on_the_bus_without_the_drivers_tool_is_a_failure(fake: FakeMachine) -> None:
    fake.write("sys/bus/pci/devices/0000:4e:00.0/class", "0x030200\n")
    fake.write("sys/bus/pci/devices/0000:4e:00.0/vendor", "0x10de\n")
    (line,) = driver_lines.look(fake.machine)
    assert line.status is Status.FAIL and "0000:4e:00.0 is a 3D controller of NVIDIA" in line.value


def test_a_driver_without_its_tool_is_a_failure(fake: FakeMachine) -> None:
    fake.write("proc/driver/nvidia/version", "NVRM version")
    (line,) = driver_lines.look(fake.machine)
    assert line.status is Status.FAIL and "utility" in line.advice


@pytest.mark.parametrize(
    ("text", "code", "seconds", "value", "advice"),
    [
        ("Failed to initialize NVML: Driver/library version mismatch\n", 18, 0, "exit code 18: Failed", "one version"),
        (
            "Unable to determine the device handle for GPU0000:4E:00.0: GPU is lost.\n",
            15,
            0,
            "exit code 15: U",
            "reset",
        ),
        ("", 9, 0, "exit code 9: it said nothing", "modprobe"),
        ("", 0, 60, "did not answer within 0.3 s", "Xid"),
        (report(2)[:700], 0, 0, "without a readable report", "by hand"),
        ("<nvidia_smi_log><gpu\n", 0, 0, "without a readable report: <nvidia_smi_log><gpu", "by hand"),
        ("", 0, 0, "without a readable report: it said nothing", "by hand"),
    ],
)
def test_a_tool_that_does_not_answer_is_a_failure(
    fake: FakeMachine, text: str, code: int, seconds: float, value: str, advice: str
) -> None:
    fake.nvidia_smi(text, code, seconds)
    fake.extra["smi_limit"] = 0.3 if seconds else 30
    (line,) = driver_lines.look(fake.machine)
    assert line.status is Status.FAIL and value in line.value and advice in line.advice


@pytest.mark.parametrize(
    ("value", "status", "words", "advice"),
    [
        ("2,0", Status.OK, "leaves GPU 2, GPU 0", ""),
        ("GPU-00000001", Status.OK, "leaves GPU 1", ""),
        ("", Status.WARN, "leaves no GPU", "unset it"),
        ("-1", Status.WARN, "leaves no GPU", "unset it"),
        (
            "0,9,1",
            Status.WARN,
            "entry '9' names no GPU here; CUDA hides it and every entry behind it; leaves GPU 0",
            "GPU 3",
        ),
        ("GPU-0", Status.WARN, "entry 'GPU-0' is the head of 4 UUIDs", "name one of these"),
        ("GPU-9", Status.WARN, "entry 'GPU-9' names no GPU here; leaves no GPU", "name one of these"),
        ("1,1", Status.WARN, "entry '1' names GPU 1 again", "once"),
        ("MIG-1234", Status.WARN, "entry 'MIG-1234' names no MIG instance here", "name one of these"),
        (MIG, Status.WARN, f"CUDA_VISIBLE_DEVICES={MIG!r} names MIG instance 3g.71gb of GPU 3", "--nproc 1"),
    ],
)
def test_visible_devices(fake: FakeMachine, only: Only, value: str, status: Status, words: str, advice: str) -> None:
    listing = "".join(f"GPU {n}: NVIDIA H200 (UUID: GPU-{n:08x}-1111-2222-3333-444444444444)\n" for n in range(4))
    fake.gpus(4, listing=listing + f"  MIG 3g.71gb     Device  0: (UUID: {MIG})\n")
    fake.environ["CUDA_VISIBLE_DEVICES"] = value
    line = only(driver_lines.look(fake.machine), "visible")
    assert line.status is status and words in line.value and advice in line.advice


def test_unequal_gpus_are_counted_in_another_order_by_cuda(fake: FakeMachine, only: Only) -> None:
    fake.gpus(3, {2: {"product_name": "NVIDIA A100"}})
    line = only(driver_lines.look(fake.machine), "order")
    assert line.status is Status.WARN and "NVIDIA H200, NVIDIA A100" in line.value and "PCI_BUS_ID" in line.advice
    fake.environ["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"
    assert only(driver_lines.look(fake.machine), "order").status is Status.OK


def test_what_the_tool_warns_of_is_passed_on(fake: FakeMachine, only: Only) -> None:
    fake.nvidia_smi(report(2) + "WARNING: infoROM is corrupted at gpu 0000:01:00.0\n")
    line = only(driver_lines.look(fake.machine), "remark")
    assert line.status is Status.WARN and "0000:01:00.0" in line.value


def test_a_split_gpu_shows_one_instance(fake: FakeMachine, only: Only) -> None:
    listing = f"GPU 0: NVIDIA H200 (UUID: GPU-0)\n  MIG 3g.71gb     Device  0: (UUID: {MIG})\n"
    fake.gpus(1, {0: {"mig_mode/current_mig": "Enabled", "uuid": "GPU-0"}}, listing=listing)
    line = only(driver_lines.look(fake.machine), "visible")
    assert line.status is Status.WARN and f"is not set: CUDA shows MIG instance 3g.71gb of GPU 0 ({MIG})" in line.value


@pytest.mark.parametrize(
    ("gpus", "value", "expected", "status", "words"),
    [
        (4, None, 4, Status.OK, "4 of 4 expected"),
        (4, None, 8, Status.FAIL, "4 of 8 expected: GPU 0, GPU 1, GPU 2, GPU 3; nvidia-smi lists 4"),
        (4, "0,1", 4, Status.FAIL, "2 of 4 expected: GPU 0, GPU 1; nvidia-smi lists 4, CUDA_VISIBLE_DEVICES is '0,1'"),
        (4, "0,9", 1, Status.FAIL, "0 of 1 expected"),
        (4, None, 2, Status.FAIL, "4 of 2 expected"),
        (0, None, 1, Status.FAIL, "0 of 1 expected: none that a process can use; nvidia-smi lists 0"),
    ],
)
def test_the_number_of_gpus_is_held_against_what_was_expected(
    fake: FakeMachine, only: Only, gpus: int, value: str | None, expected: int, status: Status, words: str
) -> None:
    fake.gpus(gpus)
    fake.environ |= {} if value is None else {"CUDA_VISIBLE_DEVICES": value}
    fake.extra["expect_gpus"] = expected
    line = only(driver_lines.look(fake.machine), "expected")
    assert line.status is status and words in line.value
