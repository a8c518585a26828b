from __future__ import annotations

from gpucheck.tools.doctor import setting_lines
from gpucheck.tools.doctor.line import Status
from tests.tools.doctor.conftest import FakeMachine, Only


def test_nothing_set_is_well(fake: FakeMachine) -> None:
    (line,) = setting_lines.look(fake.machine)
    assert line.status is Status.OK


def test_each_variable_that_is_set_has_its_line(fake: FakeMachine, only: Only) -> None:
    fake.gpus(1)
    fake.environ |= {"TRITON_INTERPRET": "1", "NVIDIA_TF32_OVERRIDE": "0", "CUDA_LAUNCH_BLOCKING": "0"}
    lines = setting_lines.look(fake.machine)
    assert len(lines) == 2
    assert only(lines, "TRITON_INTERPRET").status is Status.FAIL and "unset" in only(lines, "TRITON_INTERPRET").advice
    assert only(lines, "NVIDIA_TF32_OVERRIDE").status is Status.WARN
    assert only(lines, "NVIDIA_TF32_OVERRIDE").value.startswith("0: ")


def test_interpreting_on_a_machine_without_gpus_is_nothing_to_warn_of(fake: FakeMachine) -> None:
    fake.environ["TRITON_INTERPRET"] = "1"
    assert setting_lines.look(fake.machine)[0].status is Status.OK
