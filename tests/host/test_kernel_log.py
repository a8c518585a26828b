"""What the driver says while a run is under way, from logs and tools that stand in for its own."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from gpucheck.host import kernel_log
from gpucheck.host.kernel_log import KernelLog, bus_id

XID = "4,900,123456,-;NVRM: Xid (PCI:0000:3b:00): 31, pid=77, name=python3, MMU Fault\n"
SMI = """import sys
counts = open({path!r}).read().split()
for index, (bus, count) in enumerate(zip(("00000000:1A:00.0", "00000000:3B:00.0"), counts)):
    print(f"{{index}}, GPU-{{index}}, {{bus}}, {{count}}, [N/A]")
"""


@pytest.fixture
def counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Uncorrected errors of two GPUs, as a stand-in for nvidia-smi tells them."""
    tool, counts = tmp_path / "nvidia-smi", tmp_path / "counts"
    tool.write_text(f"#!{sys.executable} -S\n" + SMI.format(path=str(counts)))
    tool.chmod(0o755)
    counts.write_text("0 5")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return counts


@pytest.fixture
def kmsg(tmp_path: Path) -> Path:
    path = tmp_path / "kmsg"
    path.write_text("4,1,1,-;NVRM: Xid (PCI:0000:3b:00): 79, from before\n")
    return path


def say(kmsg: Path, text: str) -> None:
    with open(kmsg, "a") as file:
        file.write(text)


@pytest.mark.parametrize("visible", [None, "1,0", "0"])
def test_messages_since_the_start_with_the_rank_of_their_gpu(
    counts: Path, kmsg: Path, visible: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if visible:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    log = KernelLog(gpus=True, kmsg=kmsg)
    say(kmsg, "6,2,2,-;eth0: link up\n" + XID + " SUBSYSTEM=pci\n")
    say(kmsg, "4,9,8,-;NVRM: GPU at PCI:0000:3b:00: GPU-1\n4,9,8,-;NVRM: GPU Board Serial Number: 16540\n")
    say(kmsg, "4,9,9,-;Out of memory: Killed process 12 (python3) total-vm:1kB\n")
    heard = log.finish()
    assert [item["local_rank"] for item in heard] == [{None: 1, "1,0": 0, "0": None}[visible], None]
    assert heard[0]["text"].startswith("NVRM: Xid (PCI:0000:3b:00): 31, pid=77")
    assert heard[0]["text"].endswith("(a kernel accessed memory that is not mapped)")
    assert heard[1]["text"] == "Out of memory: Killed process 12 (python3) total-vm:1kB"


def test_memory_errors_that_came_meanwhile(counts: Path, kmsg: Path) -> None:
    log = KernelLog(gpus=True, kmsg=kmsg)
    assert log.finish() == []
    log = KernelLog(gpus=True, kmsg=kmsg)
    counts.write_text("0 8")
    text = "3 new uncorrected memory errors (ECC), 8 since its reset"
    assert log.finish() == [{"local_rank": 1, "text": text, "kind": "uncorrected", "bus": "0:3b:00"}]


def test_counters_that_were_reset_or_are_gone_tell_nothing(counts: Path, kmsg: Path) -> None:
    for later in ("0 0", "0", "x y"):
        counts.write_text("0 5")
        log = KernelLog(gpus=True, kmsg=kmsg)
        counts.write_text(later)
        assert log.finish() == []


def test_without_log_and_tools_nothing_is_heard_and_nothing_raised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert KernelLog(gpus=True, kmsg=tmp_path / "none").finish() == []
    (tmp_path / "folder").mkdir()
    assert KernelLog(gpus=False, kmsg=tmp_path / "folder").finish() == []


def test_the_journal_is_asked_where_the_log_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = tmp_path / "journalctl"
    tool.write_text(
        f"#!{sys.executable} -S\nimport sys\n"
        "if '--show-cursor' in sys.argv:\n    print('-- cursor: s=abc;i=1')\n"
        "elif '--after-cursor=s=abc;i=1' in sys.argv:\n    print('noise\\nNVRM: Xid (PCI:0000:01:00): 79, fell off')\n"
    )
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    (heard,) = KernelLog(gpus=False, kmsg=tmp_path / "none").finish()
    assert heard["text"] == "NVRM: Xid (PCI:0000:01:00): 79, fell off (the GPU has fallen off the bus)"


def test_tools_that_hang_are_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("journalctl", "nvidia-smi"):
        (tmp_path / name).write_text(f"#!{sys.executable} -S\nimport time\ntime.sleep(600)\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(kernel_log, "PATIENCE", 0.2)
    assert KernelLog(gpus=True, kmsg=tmp_path / "none").finish() == []


def test_a_real_log_can_be_listened_to() -> None:
    if not os.access(kernel_log.KMSG, os.R_OK):
        pytest.skip("needs a readable /dev/kmsg")
    assert isinstance(KernelLog(gpus=False).finish(), list)


@pytest.mark.parametrize("text", ["00000000:3B:00.0", "0000:3b:00", "0000:3b:00.0", "3b:00", "0:3B:00"])
def test_addresses_are_alike_however_written(text: str) -> None:
    assert bus_id(text) == "0:3b:00"
    assert bus_id("0001:3b:00") != bus_id(text)
