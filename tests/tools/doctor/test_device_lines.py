"""What the trying process answers, turned into lines: synthetic answers of 8 GPUs, and the real process on the CPU."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from gpucheck.host.forkserver import Forkserver
from gpucheck.tools.doctor import device_lines, device_process
from gpucheck.tools.doctor.line import Status
from gpucheck.tools.doctor.perform import try_all
from tests.processes import naming, wait_until
from tests.tools.doctor.conftest import FakeMachine, Only

H200 = {
    "name": "NVIDIA H200",
    "capability": "9.0",
    "multiprocessors": 132,
    "memory": 150_000_000_000,
    "shared memory": 232_448,
}


def answers(count: int, changes: dict[tuple[str, str], dict[str, Any]] | None = None) -> list[dict[str, Any]]:
    """The answers of a healthy node; ``changes`` by operation and subject."""
    pairs = [[a, b] for a in range(count) for b in range(count) if a != b]
    survey = {"value": "", "problem": "", "devices": [dict(H200) for _ in range(count)], "peers": pairs}
    found: list[dict[str, Any]] = [{"operation": "survey", "subject": "", "outcome": "done", **survey}]
    for number in range(count):
        for operation in ("allocate", "matmul", "seed"):
            answer = {
                "operation": operation,
                "subject": f"cuda:{number}",
                "outcome": "done",
                "value": "x",
                "problem": "",
            }
            found.append({**answer, **({"digest": "d"} if operation == "seed" else {})})
    for a, b in pairs:
        found.append({"operation": f"copy {a} {b}", "subject": "", "outcome": "done", "value": "8 MiB", "problem": ""})
    for answer in found:
        answer.update((changes or {}).get((answer["operation"], answer["subject"]), {}))
    return found


def test_a_healthy_node(only: Only) -> None:
    lines = device_lines.lines(answers(8), 8, 60)
    assert {line.status for line in lines} == {Status.OK}
    assert only(lines, "count").value == "torch sees 8 GPU(s)"
    assert only(lines, "peer access").value == "all 56 pairs"
    assert only(lines, "copy").value == "all 56 pairs, 8 MiB each, checksums equal"
    assert only(lines, "seeds agree").value == "one seed, the same numbers on 8 GPUs"
    assert only(lines, "shared memory", "7").value == "232448 bytes a block at most"
    assert only(lines, "equal to device 0").value == "all 8: NVIDIA H200, capability 9.0, 132 multiprocessors"
    assert only(lines, "matmul", "5").status is Status.OK


@pytest.mark.parametrize(
    ("change", "value", "advice"),
    [
        ({"problem": "float32: 3 of 9 elements wrong"}, "3 of 9", "suspect this GPU"),
        ({"outcome": "hung"}, "hung: no answer within 60 s", "try again"),
        ({"outcome": "died", "message": "was killed by SIGBUS"}, "its process was killed by SIGBUS", "try again"),
        ({"outcome": "raised", "message": "RuntimeError: no memory"}, "raised RuntimeError: no memory", "try again"),
    ],
)
def test_an_operation_that_fails_names_its_gpu(only: Only, change: dict[str, Any], value: str, advice: str) -> None:
    lines = device_lines.lines(answers(8, {("matmul", "cuda:5"): change}), 8, 60)
    line = only(lines, "matmul", "5")
    assert line.status is Status.FAIL and line.looked and value in line.value and advice in line.advice
    assert [line.id for line in lines if line.status is not Status.OK] == ["5.matmul"]


def test_what_was_not_tried_says_nothing_of_the_machine(only: Only) -> None:
    line = only(device_lines.lines(answers(2, {("seed", "cuda:1"): {"outcome": "skipped"}}), 2, 60), "seed", "1")
    assert line.status is Status.FAIL and not line.looked


def test_a_copy_that_loses_bytes_names_the_pair(only: Only) -> None:
    lines = device_lines.lines(answers(4, {("copy 2 1", ""): {"problem": "7 of 8388608 bytes differ"}}), 4, 60)
    line = only(lines, "copy")
    assert line.status is Status.FAIL and line.subject == "2-1" and "GPU 2 to 1" in line.advice


def test_a_gpu_with_other_random_numbers_is_the_minority(only: Only) -> None:
    line = only(device_lines.lines(answers(4, {("seed", "cuda:2"): {"digest": "e"}}), 4, 60), "seeds agree")
    assert line.status is Status.FAIL
    assert line.value == "one seed, different numbers: GPU 0, 1, 3 against GPU 2"


def test_unequal_gpus_may_have_other_numbers_and_are_a_warning(only: Only) -> None:
    found = answers(3, {("seed", "cuda:2"): {"digest": "e"}})
    found[0]["devices"][2] = {**H200, "name": "NVIDIA H100", "multiprocessors": 114}
    lines = device_lines.lines(found, 3, 60)
    line = only(lines, "equal to device 0")
    assert line.status is Status.WARN and line.subject == "2"
    assert "multiprocessors 114 against 132" in line.value and "device 0" in line.advice
    assert only(lines, "seeds agree").value == "one seed, the same numbers on 2 GPUs"


def test_peer_access(only: Only) -> None:
    found = answers(4)
    found[0]["peers"] = [[0, 1], [1, 0], [2, 3]]
    line = only(device_lines.lines(found, 4, 60), "peer access")
    assert line.status is Status.WARN and line.value == "3 of 12 pairs: 0 to 1; 1 to 0; 2 to 3"
    found[0]["peers"] = []
    assert only(device_lines.lines(found, 4, 60), "peer access").status is Status.OK


@pytest.mark.parametrize(
    ("change", "visible", "value"),
    [
        ({"problem": "driver too old"}, 2, "CUDA does not start: driver too old"),
        ({"outcome": "hung"}, 2, "CUDA does not start: hung"),
        ({}, 8, "torch sees 2 GPU(s), nvidia-smi and CUDA_VISIBLE_DEVICES leave 8"),
    ],
)
def test_cuda_that_does_not_show_what_it_should(only: Only, change: dict[str, Any], visible: int, value: str) -> None:
    line = only(device_lines.lines(answers(2, {("survey", ""): change}), visible, 60), "count")
    assert line.status is Status.FAIL and value in line.value


def test_a_torch_that_does_not_load(fake: FakeMachine, tmp_path: Path) -> None:
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text("raise OSError('libcudart.so.13: cannot open')")
    fake.environ["PYTHONPATH"] = str(tmp_path)
    (line,) = device_lines.lines(device_lines.ask(fake.machine), 0, 60)
    assert line.status is Status.FAIL and "installation" in line.advice
    assert line.value == "the process that loads torch ended with exit code 1: OSError: libcudart.so.13: cannot open"


@pytest.fixture
def real(fake: FakeMachine) -> FakeMachine:
    """A machine with this Python's torch."""
    pytest.importorskip("torch")
    fake.environ["PYTHONPATH"] = ":".join(path for path in sys.path if path)
    fake.environ["CUDA_VISIBLE_DEVICES"] = ""
    return fake


def test_the_real_thing_on_the_cpu(real: FakeMachine, only: Only) -> None:
    lines = device_lines.look(real.machine)
    assert [(line.fact, line.subject, line.status) for line in lines] == [
        ("count", "", Status.WARN),
        ("allocate", "cpu", Status.OK),
        ("matmul", "cpu", Status.OK),
        ("seed", "cpu", Status.OK),
    ]
    assert "no GPU is visible" in only(lines, "count").value


def test_a_machine_on_which_everything_hangs_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    def hang(_: str) -> dict[str, Any]:
        time.sleep(600)
        return {}

    for name in ("survey", "allocate", "matmul", "seed"):
        monkeypatch.setattr(device_process.operations, name, hang)
    with Forkserver(device_process.main) as server:
        lines = device_lines.lines(list(try_all(server, 0.2)), 8, 0.2)
    assert [line.fact for line in lines] == ["count", "allocate", "matmul", "seed"]
    assert all(line.status is Status.FAIL and "hung: no answer within 0.2 s" in line.value for line in lines)


def test_nothing_outlives_doctor(real: FakeMachine, tmp_path: Path) -> None:
    script = (
        "from gpucheck.tools.doctor import device_lines as devices, machine; import os\n"
        "devices.ask(machine.Machine(environ=os.environ))"
    )
    doctor = subprocess.Popen([sys.executable, "-c", script], env={**real.environ, "MARK": str(tmp_path)})
    try:
        wait_until(lambda: set(naming(tmp_path)) - {doctor.pid})
        doctor.kill()
        doctor.wait()
        wait_until(lambda: not naming(tmp_path))
    finally:
        doctor.kill()


def test_without_torch_nothing_is_tried(fake: FakeMachine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_lines, "folder_of", lambda name: None)
    monkeypatch.setattr(device_lines, "ask", lambda machine: pytest.fail("started a process"))
    assert device_lines.look(fake.machine) == []


def test_everything_is_tried_on_each_device_and_pair(monkeypatch: pytest.MonkeyPatch) -> None:
    """The order of things, with stand-ins for two GPUs in place of the operations."""

    def survey(_: str) -> dict[str, Any]:
        return {"value": "", "problem": "", "devices": [H200, H200], "peers": []}

    def arrive(pair: list[int]) -> dict[str, Any]:
        return {"value": "", "problem": f"{pair[0]} to {pair[1]}" if pair == [1, 0] else ""}

    monkeypatch.setattr(device_process.operations, "survey", survey)
    monkeypatch.setattr(device_process.operations, "copy", arrive)
    for name in ("allocate", "matmul", "seed"):
        monkeypatch.setattr(device_process.operations, name, lambda device: {"value": device, "problem": ""})
    with Forkserver(device_process.main) as server:
        found = list(try_all(server, 20.0))
    tried = [(operation, device) for device in ("cuda:0", "cuda:1") for operation in ("allocate", "matmul", "seed")]
    assert [(answer["operation"], answer["subject"]) for answer in found] == [
        ("survey", ""),
        *tried,
        ("copy 0 1", ""),
        ("copy 1 0", ""),
    ]
    assert [answer["value"] for answer in found[1:7]] == [device for _, device in tried]
    assert [answer["problem"] for answer in found[-2:]] == ["", "1 to 0"]
