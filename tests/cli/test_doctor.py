from __future__ import annotations

import json
import resource
import subprocess
import sys
from collections.abc import Callable

import pytest

from gpucheck.tools.doctor import examine
from gpucheck.tools.doctor.line import Line, fail, ok, warn
from gpucheck.tools.doctor.machine import Machine
from tests.cli.conftest import Command


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> list[Line]:
    """What the machine says; a test fills it."""
    said: list[Line] = []
    monkeypatch.setattr(examine, "examine", lambda machine: said)
    monkeypatch.setenv("COLUMNS", "100")
    return said


def of(family: str, line: Line) -> Line:
    from dataclasses import replace

    return replace(line, family=family)


def test_one_line_a_fact_and_equal_gpus_share_one(gpucheck: Command, lines: list[Line]) -> None:
    lines += [of("gpu", ok("ecc", "on, no errors", str(n))) for n in (0, 1, 2, 4)]
    lines += [of("gpu", fail("ecc", "2 dram", "drain the node", "3")), of("host", warn("cores", "2", "give more"))]
    answer = gpucheck("doctor")
    assert answer.code == 1 and answer.err == ""
    assert answer.out.splitlines() == [
        "GPUs",
        "  ok    ecc GPUs 0-2, 4  on, no errors",
        "  fail  ecc GPU 3        2 dram",
        "                         do: drain the node",
        "host",
        "  warn  cores  2",
        "               do: give more",
        "",
        "4 ok, 1 warn, 1 fail",
    ]


def test_long_lines_are_wrapped(gpucheck: Command, lines: list[Line]) -> None:
    lines.append(of("host", warn("cores", "word " * 60, "more " * 60)))
    out = gpucheck("doctor").out.splitlines()
    assert max(map(len, out)) <= 100 and len(out) > 8


def test_json_is_a_list_with_ids(gpucheck: Command, lines: list[Line]) -> None:
    lines += [of("gpu", ok("ecc", "on", "7")), of("log", fail("look", "broke", "report it", looked=False))]
    answer = gpucheck("doctor", "--json")
    assert answer.code == 3
    first, second = json.loads(answer.out)
    assert first == {
        "id": "gpu.7.ecc",
        "family": "gpu",
        "subject": "7",
        "fact": "ecc",
        "status": "ok",
        "value": "on",
        "advice": "",
        "looked": True,
    }
    assert second["id"] == "log.look" and second["status"] == "fail" and second["looked"] is False


def test_bad_libraries_end_as_elsewhere(gpucheck: Command) -> None:
    assert gpucheck("doctor", "--library", "what").code == 2
    answer = gpucheck("doctor", "--library", "path:/no/such/folder")
    assert answer.code == 2 and "there is no such folder" in answer.message


def test_the_whole_command_without_a_gpu_takes_less_than_ten_seconds_of_a_core(
    library: str, slowness: Callable[[], float]
) -> None:
    pytest.importorskip("torch")
    if Machine().smi().gpus:
        pytest.skip("there are GPUs here")
    slow, before = slowness(), resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, "-m", "gpucheck", "doctor", "--json", "--library", library],
        capture_output=True,
        text=True,
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    by_id = {line["id"]: line for line in json.loads(done.stdout)}
    assert by_id["driver.visible"]["status"] == "warn" and by_id["device.cpu.matmul"]["status"] == "ok"
    assert done.returncode in (0, 1) and not [line for line in by_id.values() if not line["looked"]]
    assert seconds < 10 * max(slow, slowness())
