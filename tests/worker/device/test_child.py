"""The process that is forked for a candidate, before it is asked for anything."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")

WAITS = """
import os, sys
from pathlib import Path
from gpucheck.host import containment
from gpucheck.host.forkserver import Forkserver
from gpucheck.model.case import Case
from gpucheck.model.conditions import Conditions
from gpucheck.worker.device.child import serve
from gpucheck.worker.protocol import CANDIDATE, Call, Request, Setup

folder = Path(sys.argv[1])
(folder / "own").mkdir()
files = [str(folder / name) for name in ("stacks", "journal")]
setup = Setup(
    Conditions("cpu").lifelong, "cpu", 0, 1, 0, 1, "", "", *files,
    calls=CANDIDATE, candidate="none", own_folder=str(folder / "own"), files_walled=False,
)
server = Forkserver(serve)
child = server.spawn()
child.connection.send(setup)
assert isinstance(child.connection.recv(), tuple)

def look():
    if not (pid := os.fork()):
        containment.contain([folder], files=False)
        try:
            open(f"/proc/{child.pid}/mem", "rb")
        except OSError as error:
            print(type(error).__name__, flush=True)
        else:
            print("open", flush=True)
        os._exit(0)
    os.waitpid(pid, 0)

look()
case = Case("none", {}, "normal", "none", "none", 0)
child.connection.send(Request(case, Conditions("cpu"), "", ("x",), call=Call("")))
(reply,) = child.connection.recv()
assert reply.status == "error"
look()
server.close()
"""


def test_a_process_that_waits_for_its_first_call_is_closed_to_others_of_its_candidate_without_landlock_too(
    tmp_path: Path,
) -> None:
    command = [sys.executable, "-c", WAITS, str(tmp_path)]
    done = subprocess.run(command, cwd=Path(__file__).parents[3], capture_output=True, text=True)
    assert done.stdout.split() == ["PermissionError", "open"], done.stderr
