"""The process that outlives its supervisor."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]


def start(body: str) -> subprocess.Popen[str]:
    pipe = subprocess.PIPE
    script = f"import os, sys, time\nfrom gpucheck.worker.rank import outlive\noutlive(lambda: {body})\n"
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "RANK": "3"}
    return subprocess.Popen([sys.executable, "-c", script], env=environment, stdout=pipe, stderr=pipe, text=True)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("os.kill(os.getpid(), 9)", "the supervisor of rank 3 was killed by SIGKILL"),
        ("os._exit(4)", "the supervisor of rank 3 ended with exit code 4"),
        ("1 / 0", "the supervisor of rank 3 ended with exit code 1"),
    ],
)
def test_death_of_the_supervisor_does_not_fail_the_rank(body: str, words: str) -> None:
    process = start(body)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 0
    assert words in errors


def test_traceback_of_the_supervisor_is_in_the_log() -> None:
    _, errors = start("1 / 0").communicate(timeout=30)
    assert "ZeroDivisionError" in errors


def test_success_is_silent() -> None:
    process = start("print('done')")
    assert process.communicate(timeout=30) == ("done\n", "")
    assert process.returncode == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_supervisor_dies_with_its_rank(number: signal.Signals) -> None:
    process = start("(print(os.getpid(), flush=True), time.sleep(600))")
    assert process.stdout is not None
    pid = int(process.stdout.readline())
    process.send_signal(number)
    process.wait()
    deadline = time.monotonic() + 5
    while alive(pid) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not alive(pid)
    process.communicate()


def alive(pid: int) -> bool:
    """Whether a process runs; one that has ended and was not waited for does not."""
    try:
        return Path("/proc", str(pid), "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
