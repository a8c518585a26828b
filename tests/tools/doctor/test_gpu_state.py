"""Reading what drivers of several ages say."""

from __future__ import annotations

import pytest

from gpucheck.host.gpu_state import Process, Reply, parse, snapshot
from gpucheck.host.nvidia_smi import Answer
from tests.tools.doctor.conftest import HEALTHY, OLD, FakeMachine, report


def one(changes: dict[str, str], base: dict[str, str] = HEALTHY):  # type: ignore[no-untyped-def]
    (gpu,) = parse(Answer(Reply.ANSWERED, report(1, {0: changes}, base))).gpus
    return gpu


def test_a_healthy_node() -> None:
    found = parse(Answer(Reply.ANSWERED, report(8)))
    assert (found.driver, found.cuda, len(found.gpus), found.remarks) == ("580.159.04", "13.0", 8, ())
    gpu = found.gpus[3]
    assert (gpu.index, gpu.name, gpu.bus) == (3, "NVIDIA H200", "00000000:03:00.0")
    assert (gpu.memory_total, gpu.memory_used, gpu.sm_clock, gpu.temperature) == (143771, 1, 1980, 30)
    assert gpu.headroom == 56 and gpu.throttle == () and gpu.processes == ()
    assert not gpu.uncorrectable and not gpu.correctable and not gpu.remap_pending and gpu.recovery == ""


def test_an_old_driver_uses_other_names() -> None:
    gpu = one({}, OLD)
    assert gpu.headroom == 46 and gpu.throttle == () and not gpu.uncorrectable and gpu.mig == "" and gpu.fabric == ""
    hot = one({"clocks_throttle_reasons/clocks_throttle_reason_hw_thermal_slowdown": "Active"}, OLD)
    assert hot.throttle == ("hw_thermal_slowdown",)
    assert one({"ecc_errors/volatile/double_bit/total": "2"}, OLD).uncorrectable == {"double_bit": 2}
    assert one({"ecc_errors/volatile/single_bit/total": "7"}, OLD).correctable == 7
    assert one({"retired_pages/pending_blacklist": "Yes"}, OLD).remap_pending


def test_counters_are_told_apart() -> None:
    gpu = one(
        {
            "ecc_errors/volatile/dram_uncorrectable": "2",
            "ecc_errors/volatile/dram_correctable": "5",
            "ecc_errors/aggregate/dram_uncorrectable": "9",
        }
    )
    assert gpu.uncorrectable == {"dram_uncorrectable": 2}
    assert gpu.uncorrectable_ever == {"dram_uncorrectable": 9}
    assert gpu.correctable == 5


@pytest.mark.parametrize("text", ["N/A", "[N/A]", "Not Supported", ""])
def test_what_a_gpu_does_not_have_is_not_known(text: str) -> None:
    gpu = one({"ecc_mode/current_ecc": text, "fabric/state": text, "temperature/gpu_temp": text})
    assert (gpu.ecc, gpu.fabric, gpu.temperature) == ("", "", None)


def test_processes_and_mig_instances() -> None:
    process = "<process_info><pid>41</pid><process_name>python</process_name><used_memory>900 MiB</used_memory>"
    instance = "<mig_device><index>0</index></mig_device>"
    gpu = one({"processes": process + "</process_info>", "mig_devices": instance * 2})
    assert gpu.processes == (Process(41, "python", "900 MiB"),)
    assert gpu.mig_devices == 2


def test_a_warning_beside_the_report_is_kept() -> None:
    warning = "WARNING: infoROM is corrupted at gpu 0000:03:00.0\n"
    found = parse(Answer(Reply.ANSWERED, report(2) + warning))
    assert len(found.gpus) == 2 and found.remarks == (warning.strip(),)


def test_a_report_that_breaks_off_is_not_readable() -> None:
    for text in (report(2)[:900], "Unable to determine the device handle for GPU0000:1B:00.0: Unknown Error\n", ""):
        found = parse(Answer(Reply.ANSWERED, text))
        assert not found.readable and found.gpus == ()


def test_a_tool_that_hangs_is_left_at_its_limit(fake: FakeMachine) -> None:
    fake.nvidia_smi(report(1), seconds=600)
    assert snapshot(fake.environ, limit=0.3).answer.reply is Reply.SILENT


def test_a_tool_that_refuses_and_one_that_is_not_there(fake: FakeMachine) -> None:
    assert snapshot(fake.environ).answer.reply is Reply.ABSENT
    fake.nvidia_smi("no driver\n", code=9)
    assert snapshot(fake.environ).answer == Answer(Reply.REFUSED, "no driver", 9)
