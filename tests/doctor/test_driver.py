"""The driver's own lines: absent, refusing, silent, and what CUDA_VISIBLE_DEVICES leaves."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from gpucheck.doctor import driver
from gpucheck.doctor.line import Status
from tests.doctor.conftest import report

if TYPE_CHECKING:
    from tests.doctor.conftest import Bench, Only


def test_a_healthy_node(bench: Bench, only: Only) -> None:
    bench.gpus(8)
    lines = driver.look(bench.machine)
    assert only(lines, "version").value == "580.159.04, runs CUDA up to 13.0"
    assert only(lines, "visible").value == "CUDA_VISIBLE_DEVICES is not set: all 8 GPU(s)"
    assert {line.status for line in lines} == {Status.OK} and len(lines) == 2


def test_no_gpu_is_a_warning_that_says_how_to_get_one(bench: Bench, only: Only) -> None:
    (line,) = driver.look(bench.machine)
    assert line.status is Status.WARN and line.value == "no GPU: there is no nvidia-smi"
    assert "--gpus all" in line.advice and "--device cpu" in line.advice
    bench.gpus(0)
    assert driver.look(bench.machine)[0].value == "no GPU: nvidia-smi lists none"


def test_a_driver_without_its_tool_is_a_failure(bench: Bench) -> None:
    bench.write("proc/driver/nvidia/version", "NVRM version")
    (line,) = driver.look(bench.machine)
    assert line.status is Status.FAIL and "utility" in line.advice


@pytest.mark.parametrize(
    ("text", "code", "seconds", "value", "advice"),
    [
        ("Failed to initialize NVML: Driver/library version mismatch\n", 18, 0, "exit code 18: Failed", "one version"),
        ("", 9, 0, "exit code 9: without a word", "modprobe"),
        ("", 0, 60, "did not answer within 0.3 s", "Xid"),
        (report(2)[:700], 0, 0, "without a readable report", "by hand"),
    ],
)
def test_a_tool_that_does_not_answer_is_a_failure(
    bench: Bench, text: str, code: int, seconds: float, value: str, advice: str
) -> None:
    bench.nvidia_smi(text, code, seconds)
    bench.extra["smi_limit"] = 0.3 if seconds else 30
    (line,) = driver.look(bench.machine)
    assert line.status is Status.FAIL and value in line.value and advice in line.advice


@pytest.mark.parametrize(
    ("value", "status", "words", "advice"),
    [
        ("2,0", Status.OK, "leaves GPU 2, 0", ""),
        ("GPU-00000001", Status.OK, "leaves GPU 1", ""),
        ("", Status.WARN, "leaves no GPU", "unset it"),
        ("-1", Status.WARN, "leaves no GPU", "unset it"),
        ("0,9,1", Status.WARN, "leaves GPU 0", "'9' names no GPU here"),
        ("1,1", Status.FAIL, "one of them twice", "once"),
        ("MIG-1234", Status.WARN, "names MIG instances", "--nproc 1"),
    ],
)
def test_visible_devices(bench: Bench, only: Only, value: str, status: Status, words: str, advice: str) -> None:
    bench.gpus(4)
    bench.environ["CUDA_VISIBLE_DEVICES"] = value
    line = only(driver.look(bench.machine), "visible")
    assert line.status is status and words in line.value and advice in line.advice


def test_unequal_gpus_are_counted_in_another_order_by_cuda(bench: Bench, only: Only) -> None:
    bench.gpus(3, {2: {"product_name": "NVIDIA A100"}})
    line = only(driver.look(bench.machine), "order")
    assert line.status is Status.WARN and "NVIDIA H200, NVIDIA A100" in line.value and "PCI_BUS_ID" in line.advice
    bench.environ["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"
    assert only(driver.look(bench.machine), "order").status is Status.OK


def test_what_the_tool_warns_of_is_passed_on(bench: Bench, only: Only) -> None:
    bench.nvidia_smi(report(2) + "WARNING: infoROM is corrupted at gpu 0000:01:00.0\n")
    line = only(driver.look(bench.machine), "remark")
    assert line.status is Status.WARN and "0000:01:00.0" in line.value
