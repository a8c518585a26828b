"""What NVML says while a run is under way, from a module that stands in for its binding."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gpucheck.host import nvml_words
from gpucheck.host.kernel_log import KernelLog
from gpucheck.host.nvml_process import State, words
from gpucheck.host.nvml_words import NvmlListener
from gpucheck.host.processes import state_of

STAND_IN = Path(__file__).with_name("pynvml_stand_in.py")
QUIET = {"bus": "00000000:1A:00.0"}
WRONG = {
    "bus": "00000000:3B:00.0",
    "xids": [79, 31],
    "reasons": 0x44,
    "ecc": [[7, 0], [8, 2]],
    "rows": [[0, 1, 0, 0], [0, 3, 1, 1]],
    "links": [[[0] * 5, [4] * 5], [[3, 0, 0, 0, 99], [4, 6, 10**9, 4, 99]]],
}
Says = Callable[..., Path]


@pytest.fixture
def says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Says:
    """Installs the stand-in, and writes down what it says."""
    (tmp_path / "pynvml.py").write_text(STAND_IN.read_text())
    file = tmp_path / "says.json"
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("NVML_SAYS", str(file))
    monkeypatch.setattr(nvml_words, "PATIENCE", 600.0)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))  # without nvidia-smi and journalctl
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    def write(**content: Any) -> Path:
        file.write_text(json.dumps({"gpus": [QUIET, WRONG], **content}))
        return file

    return write


def first_lines(listener: NvmlListener, count: int) -> list[str]:
    """What a listener has said, once it has said so much; they are read ahead of ``finish``, which gets them back."""
    process = listener._process
    assert process.stdout
    lines = [process.stdout.readline() for _ in range(count)]
    whole = process.communicate

    def communicate(**options: Any) -> tuple[bytes, bytes]:
        printed, _ = whole(**options)
        return b"".join(lines) + printed, b""

    process.communicate = communicate  # type: ignore[method-assign, assignment]
    return [line.decode() for line in lines]


@pytest.mark.parametrize("ahead", [False, True])
def test_each_kind_of_word_reaches_the_log_with_the_rank_of_its_gpu(says: Says, tmp_path: Path, ahead: bool) -> None:
    file = says()
    log = KernelLog(gpus=True, kmsg=tmp_path / "none")
    assert log._nvml
    first_lines(log._nvml, 3)  # it listens, and has said both Xid errors
    file.with_name(file.name + ".later").touch()
    for _ in range(2 * ahead):
        log.conclude()
    assert not ahead or log._nvml._process.wait() == 0, "its last words wait in the pipe"
    heard = log.finish()
    looks = heard[-1]["text"].rpartition(" of ")[2]
    assert [(item["kind"], item["local_rank"], item.get("number"), item["text"]) for item in heard] == [
        ("xid of the GPU", 1, 79, "Xid (PCI:00000000:3B:00.0): 79, told by NVML (the GPU has fallen off the bus)"),
        (
            "xid of software",
            1,
            31,
            "Xid (PCI:00000000:3B:00.0): 31, told by NVML (a kernel accessed memory that is not mapped)",
        ),
        ("uncorrected", 1, None, "2 new uncorrected memory errors (ECC), 2 since its reset"),
        ("corrected", 1, None, "1 new corrected memory errors (ECC), 8 since its reset"),
        ("remapped", 1, None, "2 memory rows remapped, 3 in all"),
        ("remap pending", 1, None, "memory rows wait to be remapped at the next reset"),
        ("remap failed", 1, None, "a memory row could not be remapped"),
        ("nvlink", 1, None, "NVLink: 2 new recoveries and 3 new replays on links 0, 1"),
        ("nvlink corrected", 1, None, heard[-2]["text"]),
        ("slowed", 1, None, f"slowed itself down by hw_thermal_slowdown in {looks.split()[0]} of {looks}"),
    ]


def test_a_healthy_machine_is_not_drowned_in_what_its_links_correct() -> None:
    """As two H200 counted in 15 s: a few errors on each of 18 links, which resending and error correction mended."""
    before = State(links={(link, name): 40 for link in range(18) for name in ("CRC errors", "replays")}, at=100.0)
    few = {key: count + (44 if key[1] == "CRC errors" else 0) for key, count in before.links.items()}
    assert words(before, State(links=few, at=115.0)) == []
    many = {**few, (7, "CRC errors"): 40 + 1500, (9, "CRC errors"): 40 + 3000}
    text = "NVLink: up to 200 CRC errors a second, mended by resending, on links 7, 9"
    assert words(before, State(links=many, at=115.0)) == [("nvlink corrected", text)]
    assert words(before, State(links=dict.fromkeys(few, 0), at=115.0)) == [], "the counters were reset"


@pytest.mark.parametrize(
    ("gpus", "visible", "told"),
    [
        ([{**WRONG, "xids": [79]}, {**QUIET, "bus": "00000000:4B:00.0"}], "1", (None, 79)),
        ([QUIET, {**QUIET, "bus": "00000000:3B:00.0", "xids": [48]}], "1,0", (0, 48)),
        ([QUIET, {**QUIET, "bus": "00000000:3B:00.0", "xids": [48]}], "GPU-0", (None, 48)),
    ],
    ids=["without a rank, told of only where it failed", "by number, without nvidia-smi", "by UUID, without it"],
)
def test_ranks_are_told_by_the_visible_gpus(
    says: Says, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gpus: Any, visible: str, told: tuple[Any, int]
) -> None:
    says(gpus=gpus)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    log = KernelLog(gpus=True, kmsg=tmp_path / "none")
    assert log._nvml
    first_lines(log._nvml, 2)
    assert [(item["local_rank"], item["number"]) for item in log.finish()] == [told]


def test_an_xid_that_the_kernels_log_has_is_told_once(says: Says, tmp_path: Path) -> None:
    says(gpus=[{"bus": "00000000:3B:00.0", "xids": [31, 79]}])
    kmsg = tmp_path / "kmsg"
    kmsg.write_text("")
    log = KernelLog(gpus=True, kmsg=kmsg)
    assert log._nvml
    first_lines(log._nvml, 3)
    kmsg.write_text("4,900,123456,-;NVRM: Xid (PCI:0000:3b:00): 31, pid=77, name=python3, MMU Fault\n")
    assert [item["text"][:40] for item in log.finish()] == [
        "NVRM: Xid (PCI:0000:3b:00): 31, pid=77, ",
        "Xid (PCI:00000000:3B:00.0): 79, told by ",
    ]


def test_what_was_there_before_the_run_is_said_as_such_and_quiet_gpus_say_nothing() -> None:
    state = State(uncorrected=3, corrected=9, remapped=2, pending=True, links={(0, "replays"): 5})
    assert words(state, state) == [
        ("remap pending", "memory rows wait to be remapped at the next reset, since before the run")
    ]
    assert words(State(), State()) == []
    assert words(state, State()) == []  # the GPU is gone, or was reset


@pytest.mark.parametrize("trouble", [{"init": "driver not loaded"}, {"hangs": True}, {"gpus": []}])
def test_a_driver_that_refuses_or_hangs_holds_up_nothing(
    says: Says, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trouble: dict[str, Any]
) -> None:
    says(**trouble)
    monkeypatch.setattr(nvml_words, "PATIENCE", 0.2)
    listener = NvmlListener.started()
    assert listener
    assert listener.finish() is None
    assert listener._process.wait() is not None


def test_without_the_binding_no_process_is_started(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvml_words, "BINDING", "no_such_module_here")
    assert NvmlListener.started() is None


def test_it_dies_with_the_command_however_that_ends(says: Says) -> None:
    says()
    code = (
        "from gpucheck.host.nvml_words import NvmlListener; import time; each = NvmlListener();"
        "each._process.stdout.readline(); print(each.pid, flush=True); time.sleep(600)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as command:
        assert command.stdout
        pid = int(command.stdout.readline())
        os.kill(command.pid, signal.SIGKILL)
    while state_of(pid) not in ("gone", "Z"):
        time.sleep(0.01)
