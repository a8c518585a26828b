"""Each state of a GPU gives its line, with what to do."""

from __future__ import annotations

import pytest

from gpucheck.tools.doctor import gpu_lines
from gpucheck.tools.doctor.line import Status
from tests.tools.doctor.conftest import FakeMachine, Only

FACTS = (
    "identity", "answers", "memory", "processes", "clocks", "temperature", "ecc", "repairs", "mig", "compute mode",
    "persistence", "fabric",
)  # fmt: skip


def test_a_healthy_node_is_well_in_everything(fake: FakeMachine) -> None:
    fake.gpus(8)
    lines = gpu_lines.look(fake.machine)
    assert [(line.fact, line.subject) for line in lines] == [(fact, str(n)) for fact in FACTS for n in range(8)]
    assert {line.status for line in lines} == {Status.OK}
    assert lines[3].value == "NVIDIA H200, GPU-00000003-1111-2222-3333-444444444444, 00000000:03:00.0"


def test_no_gpu_no_line(fake: FakeMachine) -> None:
    assert gpu_lines.look(fake.machine) == []


PROCESS = (
    "<process_info><pid>41</pid><process_name>vllm</process_name><used_memory>90000 MiB</used_memory></process_info>"
)


@pytest.mark.parametrize(
    ("fact", "changes", "status", "value", "advice"),
    [
        ("memory", {"fb_memory_usage/used": "90000 MiB"}, Status.WARN, "90000 MiB used", "nvidia-smi"),
        ("processes", {"processes": PROCESS}, Status.WARN, "1: 41 vllm 90000 MiB", "end them"),
        (
            "clocks",
            {"clocks_event_reasons/clocks_event_reason_hw_thermal_slowdown": "Active", "clocks/sm_clock": "345 MHz"},
            Status.WARN,
            "SM 345 of 1980 MHz, held down by heat (hw_thermal_slowdown)",
            "cooling",
        ),
        (
            "clocks",
            {"clocks_event_reasons/clocks_event_reason_sw_power_cap": "Active"},
            Status.WARN,
            "the power limit",
            "power supply",
        ),
        (
            "clocks",
            {"clocks_event_reasons/clocks_event_reason_applications_clocks_setting": "Active"},
            Status.OK,
            "set by applications_clocks_setting",
            "",
        ),
        ("temperature", {"temperature/gpu_temp_tlimit": "2 C"}, Status.WARN, "2 C below slowing down", "fans"),
        ("ecc", {"ecc_errors/volatile/dram_uncorrectable": "2"}, Status.FAIL, "2 dram_uncorrectable", "drain the node"),
        ("ecc", {"ecc_errors/aggregate/sram_threshold_exceeded": "Yes"}, Status.FAIL, "SRAM error threshold", "drain"),
        ("ecc", {"ecc_errors/aggregate/dram_uncorrectable": "1"}, Status.WARN, "over its life", "suspect it first"),
        ("ecc", {"ecc_errors/volatile/sram_correctable": "3"}, Status.WARN, "3 correctable", "right results"),
        ("ecc", {"ecc_mode/current_ecc": "Disabled"}, Status.WARN, "off", "nvidia-smi -e 1"),
        ("ecc", {"ecc_mode/current_ecc": "N/A"}, Status.OK, "this GPU has none", ""),
        ("repairs", {"remapped_rows/remapped_row_pending": "Yes"}, Status.FAIL, "wait to be remapped", "reset the GPU"),
        ("repairs", {"remapped_rows/remapped_row_failure": "Yes"}, Status.FAIL, "could not be remapped", "replaced"),
        ("repairs", {"gpu_recovery_action": "Reboot"}, Status.FAIL, "the driver asks for: Reboot", "out of service"),
        (
            "mig",
            {"mig_mode/current_mig": "Enabled", "mig_devices": "<mig_device/><mig_device/>"},
            Status.WARN,
            "on, 2 instance(s)",
            "CUDA_VISIBLE_DEVICES",
        ),
        ("compute mode", {"compute_mode": "Exclusive_Process"}, Status.WARN, "Exclusive_Process", "-c DEFAULT"),
        ("compute mode", {"compute_mode": "Prohibited"}, Status.FAIL, "Prohibited", "-c DEFAULT"),
        ("persistence", {"persistence_mode": "Disabled"}, Status.WARN, "off", "nvidia-persistenced"),
        ("fabric", {"fabric/state": "In Progress"}, Status.WARN, "In Progress", "nvidia-fabricmanager"),
        (
            "answers",
            {"ecc_mode/current_ecc": "Unknown Error", "product_brand": "[GPU is lost]"},
            Status.FAIL,
            "errors in place of 2 values: current_ecc, product_brand",
            "reset the GPU",
        ),
    ],
)
def test_what_is_not_well_names_the_gpu_and_the_fix(
    fake: FakeMachine, only: Only, fact: str, changes: dict[str, str], status: Status, value: str, advice: str
) -> None:
    fake.gpus(4, {2: changes})
    lines = gpu_lines.look(fake.machine)
    line = only(lines, fact, "2")
    assert line.status is status and value in line.value and advice in line.advice
    others = [line for line in lines if line.subject != "2" or line.fact != fact]
    assert {line.status for line in others} == {Status.OK}
