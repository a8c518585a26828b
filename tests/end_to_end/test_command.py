"""The command under way: interrupted, killed, out of time, out of space. It ends, says so and leaves nothing behind."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from gpucheck.model.record import Outcome
from gpucheck.records.run_folder import read_run
from tests.end_to_end.conftest import Lab, Running, file_system
from tests.processes import naming, wait_until

PROMPTLY = 300.0  # s; the run would go on for 600
SLEEP = "\n\nif os.environ['RANK'] in {ranks!r}:\n    __import__('time').sleep(600)\n"
CASES = ("attention", "m20-n41-")
IMPORT = ("matmul_ogs.py", "import itertools\n", "import itertools\nimport os\n")


@pytest.fixture(scope="module")
def sleeping(lab: Lab) -> str:
    """A library whose import never ends."""
    return str(lab.plant(IMPORT, append=("matmul_ogs.py", SLEEP.format(ranks=["0", "1"]))))


@pytest.fixture
def busy(lab: Lab, sleeping: str) -> Iterator[Running]:
    """A run that never ends, in the middle of a case on both ranks."""
    running = lab.start(library=sleeping, cases=CASES[1:])
    for rank in (0, 1):
        running.wait_for("begin", rank)
    assert len(naming(running.folder)) >= 7, "two ranks have a supervisor, a forkserver and a child each"
    assert scratch_folders(running)
    yield running
    running.process.kill()
    running.process.communicate()


def scratch_folders(running: Running) -> list[Path]:
    """What the run keeps in memory or in its folder for its ranks."""
    pid = running.process.pid
    return [*Path("/dev/shm").glob(f"gpucheck-{pid}-*"), *running.folder.glob("scratch-*")]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interrupted(busy: Running, number: signal.Signals, code: int) -> None:
    begin = time.monotonic()
    busy.process.send_signal(number)
    run = busy.finish()
    assert time.monotonic() - begin < PROMPTLY
    assert run.code == code
    assert run.report["verdict"] == "INCONCLUSIVE"
    assert run.outcomes("m20-n41-") == ["lost", "lost"]
    assert "the rank ended while this case ran" in run.text
    assert naming(run.folder) == []
    assert scratch_folders(busy) == []


def test_killed_command_leaves_no_process(busy: Running) -> None:
    busy.process.kill()
    busy.process.wait()
    wait_until(lambda: not naming(busy.folder))
    shown = subprocess.run(
        [sys.executable, "-m", "gpucheck", "report", str(busy.folder)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
    )
    assert shown.returncode == 3, shown.stdout + shown.stderr
    assert "INCONCLUSIVE" in shown.stdout


def test_killed_supervisor_loses_its_rank_only(lab: Lab) -> None:
    library = lab.plant(IMPORT, append=("matmul_ogs.py", SLEEP.format(ranks=["1"])))
    running = lab.start(library=library, cases=("m20-n4", "attention"))
    os.kill(running.wait_for("start", rank=1)["pid"], signal.SIGKILL)
    run = running.finish()
    assert run.code == 3, run.text
    assert run.report["verdict"] == "INCONCLUSIVE"
    by_rank: dict[int, set[str]] = {0: set(), 1: set()}
    for result in run.report["results"]:
        by_rank[result["rank"]].add(result["outcome"])
    assert by_rank == {0: {"pass"}, 1: {"lost"}}
    assert all(finding["ranks"] == [1] for finding in run.report["findings"])
    logs = "".join(path.read_text() for path in run.folder.glob("logs/**/*.log"))
    assert "the supervisor of rank 1 was killed by SIGKILL" in logs
    assert naming(run.folder) == []
    assert scratch_folders(running) == []


def test_time_limit_of_the_run(lab: Lab, sleeping: str) -> None:
    begin = time.monotonic()
    running = lab.start("--timeout", "3", library=sleeping, nproc=1, cases=CASES[1:])
    run = running.finish()
    assert time.monotonic() - begin < 3 + PROMPTLY
    assert run.code == 3, run.text
    assert run.report["verdict"] == "INCONCLUSIVE"
    assert run.outcomes("m20-n41-") == ["lost"]
    assert re.search(r"stopped after \d+ s, the limit", run.text)
    assert naming(run.folder) == []
    assert scratch_folders(running) == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system that a plan fits on, but not the records."""
    with file_system(tmp_path / "disk", "size=28k") as folder:
        yield folder


def test_full_disk(lab: Lab, small_disk: Path) -> None:
    running = lab.start("--verbose", nproc=1, folder=small_disk / "run", cases=("n4", "n5"))
    run = running.finish()
    assert run.code == 3, run.text
    assert f"{run.folder / 'outcome.json'} cannot be written: No space left on device" in run.text
    assert "the rank did not run this case: [Errno 28] No space left on device" in run.text
    assert "Traceback" not in run.text
    written = read_run(run.folder)
    outcomes = [record.outcome for record in written.records.values()]
    assert Outcome.PASS in outcomes and Outcome.LOST in outcomes and set(outcomes) == {Outcome.PASS, Outcome.LOST}
    assert written.torn == 0, "a line that does not fit is taken back, so that the next one is not lost with it"
    assert naming(run.folder) == []
    assert scratch_folders(running) == []
