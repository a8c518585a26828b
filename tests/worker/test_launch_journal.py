"""The last word of a process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from gpucheck.model.record import Underway
from gpucheck.worker.launch_journal import SIZE, Entry, Journal, read


def test_what_is_under_way(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j")
    assert read(tmp_path / "j") == Entry()
    journal.case(("a", "b"))
    assert read(tmp_path / "j") == Entry(("a", "b"))
    journal.launch("a", "m.py:7")
    journal.launch("b" * 20, "")
    assert read(tmp_path / "j") == Entry(("a", "b"), Underway("b" * 20, "", 2))
    journal.settled()
    assert read(tmp_path / "j") == Entry(("a", "b"))
    journal.launch("c", "m.py:9")
    journal.returned()
    assert read(tmp_path / "j").underway == Underway("c", "m.py:9", 0)
    journal.case(("d",))
    assert read(tmp_path / "j") == Entry(("d",)), "a shorter entry leaves nothing of a longer one"


def test_entries_outlive_their_writer(tmp_path: Path) -> None:
    code = (
        "import os, sys, pathlib; from gpucheck.worker.launch_journal import Journal;"
        "j = Journal(pathlib.Path(sys.argv[1]));"
        "j.case(('k',)); j.launch('k', 's.py:1'); os.kill(os.getpid(), 9)"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2]), *sys.path])}
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "j")], env=environment)
    assert done.returncode == -9 and read(tmp_path / "j") == Entry(("k",), Underway("k", "s.py:1", 1))


def test_what_cannot_be_read_is_empty(tmp_path: Path) -> None:
    assert read(tmp_path / "none") == Entry()
    for content in (b"", b"{", b"[]", b'{"kernels": 3}', b"\xff" * SIZE):
        (tmp_path / "j").write_bytes(content)
        assert read(tmp_path / "j") == Entry()
    journal = Journal(tmp_path / "j")
    journal.launch("x" * 2 * SIZE, "")
    assert read(tmp_path / "j") == Entry(), "an entry that was cut is none"
