"""A process that is shut in reaches neither the memory, the files nor the life of the one that judges it."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from gpucheck.host import containment

REPOSITORY = Path(__file__).parents[2]
JUDGE = """
import ctypes, os, sys
from pathlib import Path
from gpucheck.host import containment

containment.hide_memory()
secret = ctypes.create_string_buffer(b"the right answer")
judge, place, folder = os.getpid(), ctypes.addressof(secret), Path(sys.argv[1])
(folder / "own").mkdir()
(folder / "records").write_text("right")
kept, closed = os.pipe()
pid = os.fork()
if not pid:
    containment.show_memory()
    containment.close_files([kept])
    print(containment.contain([folder / "own"], files=sys.argv[2] == "files"))

    def attempt(what):
        try:
            return what() or "done"
        except OSError as error:
            return type(error).__name__
"""


def told(folder: Path, body: str, *, files: bool = True, wall: str = "") -> list[str]:
    """What a process prints that is shut in; skips where a wall cannot be built here."""
    script = JUDGE + textwrap.indent(textwrap.dedent(body), "    ") + "    os._exit(0)\nos.waitpid(pid, 0)\n"
    done = subprocess.run(
        [sys.executable, "-S", "-u", "-c", script, str(folder), "files" if files else ""],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    walls, *lines = done.stdout.splitlines()
    if wall and wall not in walls:
        pytest.skip(f"this kernel does not offer: {wall}")
    return lines


def test_a_judge_without_privileges_is_hidden_too() -> None:
    body = """
        import ctypes
        from gpucheck.host import containment

        for change in (containment.show_memory, containment.hide_memory, containment.show_memory):
            change()
            print(ctypes.CDLL(None).prctl(3, 0, 0, 0, 0))  # PR_GET_DUMPABLE: who has the same user id may look inside
    """
    done = subprocess.run(
        [sys.executable, "-S", "-c", textwrap.dedent(body)],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == ["1", "0", "1"]


@pytest.mark.parametrize("files", [True, False])
def test_the_memory_of_a_judge_and_what_it_has_open_are_closed(tmp_path: Path, files: bool) -> None:
    lines = told(
        tmp_path,
        """
        def read():
            with open(f"/proc/{judge}/mem", "rb") as memory:
                memory.seek(place)
                return memory.read(16)

        print(attempt(read))
        print(attempt(lambda: os.readlink(f"/proc/{judge}/fd/1")))
        print(attempt(lambda: Path(f"/proc/{judge}/environ").read_bytes()))
        print(ctypes.CDLL(None).ptrace(16, judge, None, None))
        print(attempt(lambda: os.write(closed, b"x")))
        """,
        files=files,
        wall=containment.MEMORY,
    )
    assert lines == [*["PermissionError"] * 3, "-1", "OSError"]


def test_files_are_changed_in_its_own_folder_alone(tmp_path: Path) -> None:
    lines = told(
        tmp_path,
        """
        records, own = folder / "records", folder / "own"
        print(attempt(lambda: (own / "answer").write_text("mine")), attempt(lambda: (own / "answer").unlink()))
        print(attempt(lambda: Path("/dev/null").write_text("gone")), attempt(records.read_text))
        for change in (lambda: records.write_text("wrong"), records.unlink, lambda: records.rename(own / "records")):
            print(attempt(change))
        print(attempt((folder / "new").touch), attempt(lambda: os.truncate(records, 0)))
        """,
        wall=containment.FILES,
    )
    assert lines == ["4 done", "4 right", *["PermissionError"] * 3, "PermissionError PermissionError"]
    assert (tmp_path / "records").read_text() == "right"


def test_no_signal_reaches_the_judge_and_its_own_processes_get_theirs(tmp_path: Path) -> None:
    lines = told(
        tmp_path,
        """
        import signal, time

        child = os.fork()
        if not child:
            signal.pause()
        print(attempt(lambda: os.kill(judge, signal.SIGSTOP)), attempt(lambda: os.kill(child, signal.SIGKILL)))
        """,
        wall=containment.SIGNALS,
    )
    assert lines == ["PermissionError done"]
