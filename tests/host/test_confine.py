"""What a process that was confined can still do, tried in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from gpucheck.host.containment import landlock_version

TRIED = """
import json, os, sys
from pathlib import Path
from gpucheck.host.containment import confine
hidden, own, beside, outside = map(Path, sys.argv[1:])
assert confine([own, Path("/dev")], hidden)
def able(do):
    try:
        do()
    except PermissionError:
        return False
    return True
print(json.dumps({
    "reads hidden": able(lambda: (hidden / "queue").read_text()),
    "lists hidden": able(lambda: list(hidden.iterdir())),
    "reads its neighbour": able(lambda: (beside / "source").read_text()),
    "reads by a link": able(lambda: (own / "link").read_text()),
    "writes outside": able(lambda: (outside / "file").write_text("x")),
    "signals": able(lambda: os.kill(os.getppid(), 0)),
    "writes its own": able(lambda: (own / "file").write_text("x")),
    "reads its own": able(lambda: (own / "file").read_text()),
    "reads outside": able(lambda: (outside / "known").read_text()),
    "starts a program": able(lambda: os.posix_spawn(sys.executable, [sys.executable, "-c", ""], os.environ)),
}))
"""


@pytest.mark.skipif(landlock_version() < 6, reason="this kernel keeps signals of confined processes from no one")
def test_a_confined_process_has_its_own_folder_and_reaches_neither_its_keeper_nor_its_neighbour(tmp_path: Path) -> None:
    hidden, outside = tmp_path / "hidden", tmp_path / "outside"
    own, beside = hidden / "work" / "own", hidden / "work" / "beside"
    for folder in (own, beside, outside):
        folder.mkdir(parents=True)
    for file in (hidden / "queue", beside / "source", outside / "known"):
        file.write_text("told")
    (own / "link").symlink_to(beside / "source")
    done = subprocess.run(
        [sys.executable, "-c", TRIED, *map(str, (hidden, own, beside, outside))], capture_output=True, text=True
    )
    able = json.loads(done.stdout or done.stderr)
    allowed = {"writes its own", "reads its own", "reads outside", "starts a program"}
    assert {name for name, can in able.items() if can} == allowed
