"""Reading what drivers of several ages say."""

from __future__ import annotations

import pytest

from gpucheck.host.gpu_state import Reply, parse, snapshot
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


@pytest.mark.parametrize("text", ["N/A", "[N/A]", "Not Supported", ""])
def test_what_a_gpu_does_not_have_is_not_known(text: str) -> None:
    gpu = one({"ecc_mode/current_ecc": text, "fabric/state": text, "temperature/gpu_temp": text})
    assert (gpu.ecc, gpu.fabric, gpu.temperature) == ("", "", None)


def test_a_tool_that_hangs_is_left_at_its_limit(fake: FakeMachine) -> None:
    fake.nvidia_smi(report(1), seconds=600)
    assert snapshot(fake.environ, limit=0.3).answer.reply is Reply.SILENT
