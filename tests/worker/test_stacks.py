"""The place where a process hangs."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path

from gpucheck.worker import stacks

REPOSITORY = Path(__file__).parents[2]
SCRIPT = """
import sys, threading, time
from pathlib import Path
from gpucheck.worker import stacks

def idle():
    time.sleep(600)

def turning():
    print("ready", flush=True)
    while True:
        pass

threading.Thread(target=idle, daemon=True).start()
stacks.register(Path(sys.argv[1]))
turning()
"""


def test_hung_process_names_its_innermost_call(tmp_path: Path) -> None:
    script, file = tmp_path / "hangs.py", tmp_path / "stacks"
    script.write_text(SCRIPT)
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    process = subprocess.Popen([sys.executable, script, file], env=environment, stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        process.stdout.readline()
        text = stacks.collect(process.pid, file)
    finally:
        process.kill()
        process.communicate()
    assert "in idle" in text
    assert re.fullmatch(r"hangs\.py:1[0-2] in turning", stacks.innermost(text))


def test_process_that_does_not_answer(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    begin = time.monotonic()
    try:
        file = tmp_path / "stacks"
        file.touch()
        assert stacks.collect(process.pid, file) == ""
    finally:
        process.kill()
        process.wait()
    assert time.monotonic() - begin < 10


def test_no_frame_no_place() -> None:
    assert stacks.innermost("") == ""
    assert stacks.innermost("Current thread 0x01 (most recent call first):\n  <no Python frame>") == ""
