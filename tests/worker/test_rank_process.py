"""The process that outlives its supervisor."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gpucheck.host.containment import UNWALLED
from tests.processes import alive, wait_until

REPOSITORY = Path(__file__).parents[2]


def start(body: str, stopped: float = 0.5) -> subprocess.Popen[str]:
    pipe = subprocess.PIPE
    script = (
        f"import os, sys, time\nfrom gpucheck.worker import rank_process as rank\nrank.STOPPED = {stopped}\n"
        f"rank.outlive(lambda: {body}, lambda how: print('told:', how))\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "RANK": "3"}
    return subprocess.Popen(
        [sys.executable, "-c", script],
        env=environment,
        stdout=pipe,
        stderr=pipe,
        text=True,
        preexec_fn=os.setpgrp,  # SIGTSTP does nothing in a group whose parents are all of another session
    )


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
    told, errors = process.communicate()
    assert process.returncode == 0
    assert words in errors
    assert told == f"told: {words.removeprefix('the supervisor of rank 3 ')}\n"


def test_it_fails_where_a_candidate_could_write_records_that_nobody_watches_over(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(UNWALLED, "1")
    process = start("os.kill(os.getpid(), 9)")
    assert process.communicate()[0] == "told: was killed by SIGKILL\n" and process.returncode == 1


def test_traceback_of_the_supervisor_is_in_the_log() -> None:
    _, errors = start("1 / 0").communicate()
    assert "ZeroDivisionError" in errors


def test_success_is_silent() -> None:
    process = start("print('done')")
    assert process.communicate() == ("done\n", "")
    assert process.returncode == 0


@pytest.mark.parametrize("number", [signal.SIGSTOP, signal.SIGTSTP])
def test_a_supervisor_that_stays_stopped_is_ended(number: signal.Signals) -> None:
    process = start(f"os.kill(os.getpid(), {int(number)})")
    told, errors = process.communicate()
    assert process.returncode == 0
    words = f"was stopped by {number.name}, did not go on within 0.5 s and was killed"
    assert told == f"told: {words}\n" and words in errors


def test_a_supervisor_that_goes_on_is_let_be() -> None:
    process = start("(print(os.getpid(), flush=True), time.sleep(1.5), print('done'))", stopped=300)
    assert process.stdout is not None
    pid = int(process.stdout.readline())
    for _ in range(2):
        os.kill(pid, signal.SIGSTOP)
        time.sleep(0.2)
        os.kill(pid, signal.SIGCONT)
        time.sleep(0.2)
    assert process.communicate() == ("done\n", "")


def test_the_out_of_memory_killer_is_named(tmp_path: Path) -> None:
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc" / "vmstat").write_text("oom_kill 1\n")
    oom = f"rank.OomKills = lambda known=rank.OomKills: known(pathlib.Path({str(tmp_path)!r}))"
    vmstat = f"pathlib.Path({str(tmp_path / 'proc' / 'vmstat')!r})"
    script = (
        f"import os, pathlib\nfrom gpucheck.worker import rank_process as rank\n{oom}\n"
        f"rank.outlive(lambda: ({vmstat}.write_text('oom_kill 2\\n'), os.kill(os.getpid(), 9)), print)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "RANK": "3"}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
    words = "was killed by SIGKILL, while the kernel's out-of-memory killer was at work in this machine\n"
    assert done.stdout == words, done.stderr


def test_a_rank_whose_command_has_ended_does_not_begin() -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    script = "from gpucheck.worker import rank_process as rank\nrank.outlive(lambda: print('ran', flush=True))\n"
    for launcher, output in ((ended.pid, ""), (os.getpid(), "ran\n")):
        known = {"PYTHONPATH": str(REPOSITORY), "RANK": "3", "GPUCHECK_LAUNCHER": str(launcher)}
        environment = {**os.environ, **known}
        done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
        assert (done.returncode, done.stdout) == (int(not output), output)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_supervisor_dies_with_its_rank(number: signal.Signals) -> None:
    process = start("(print(os.getpid(), flush=True), time.sleep(600))")
    assert process.stdout is not None
    pid = int(process.stdout.readline())
    process.send_signal(number)
    process.wait()
    wait_until(lambda: not alive(pid))
    process.communicate()
