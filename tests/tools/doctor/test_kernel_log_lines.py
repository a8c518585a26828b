"""Xid lines of a kernel log, as /dev/kmsg gives them."""

from __future__ import annotations

import pytest

from gpucheck.host import kmsg, xid
from gpucheck.tools.doctor import kernel_log_lines
from gpucheck.tools.doctor.line import Status
from tests.tools.doctor.conftest import FakeMachine

LOG = """\
6,1,0,-;Linux version 6.18
4,2201,99,-;NVRM: Xid (PCI:0000:03:00): 31, pid=4112, name=python, Ch 00000008, MMU Fault
4,2202,99,-;NVRM: Xid (PCI:0000:03:00): 31, pid=4113, name=python, Ch 00000008, MMU Fault: the last
4,2300,99,-;NVRM: Xid (PCI:0000:1b:00): 79, GPU has fallen off the bus.
4,2301,99,-;NVRM: Xid (PCI:0000:1b:00): 999
 SUBSYSTEM=pci
"""


def test_errors_are_grouped_by_gpu_and_number(fake: FakeMachine) -> None:
    fake.write("dev/kmsg", LOG)
    software, hardware, unknown = kernel_log_lines.look(fake.machine)
    assert software.status is Status.WARN and software.subject == "31-0000:03:00"
    assert software.value.startswith("2 x Xid 31 on 0000:03:00: a kernel accessed memory")
    assert software.value.endswith("MMU Fault: the last")
    assert hardware.status is Status.FAIL and "fallen off the bus" in hardware.value and "drain" in hardware.advice
    assert unknown.status is Status.WARN and "list of Xid errors" in unknown.value


def test_a_clean_log_is_well(fake: FakeMachine) -> None:
    fake.write("dev/kmsg", "6,1,0,-;Linux version 6.18\n")
    (line,) = kernel_log_lines.look(fake.machine)
    assert line.status is Status.OK


def test_a_log_that_cannot_be_read_matters_where_there_are_gpus(fake: FakeMachine) -> None:
    assert kernel_log_lines.look(fake.machine) == []
    fake.gpus(1)
    (line,) = kernel_log_lines.look(fake.machine)
    assert line.status is Status.WARN and not line.looked and "dmesg" in line.advice


def test_a_log_longer_than_the_limit_is_read_up_to_it(fake: FakeMachine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kmsg, "LARGEST", 1)
    found = xid.xids(fake.write("dev/kmsg", "x\n" * (1 << 17) + LOG))
    assert found == []
