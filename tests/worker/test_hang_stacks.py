"""The place where a process hangs."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from gpucheck.worker import hang_stacks

REPOSITORY = Path(__file__).parents[2]
SCRIPT = """
import sys, threading, time
from pathlib import Path
from gpucheck.worker import hang_stacks

def idle():
    time.sleep(600)

def turning():
    print("ready", flush=True)
    while True:
        pass

threading.Thread(target=idle, daemon=True).start()
hang_stacks.register(Path(sys.argv[1]))
turning()
"""


def collected(script: Path, file: Path) -> str:
    """What is collected from a script once it hangs."""
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    process = subprocess.Popen([sys.executable, script, file], env=environment, stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        process.stdout.readline()
        return hang_stacks.collect(process.pid, file)
    finally:
        process.kill()
        process.communicate()


def test_hung_process_names_its_innermost_call(tmp_path: Path) -> None:
    (tmp_path / "hangs.py").write_text(SCRIPT)
    text = collected(tmp_path / "hangs.py", tmp_path / "stacks")
    assert "in idle" in text
    assert re.fullmatch(r"hangs\.py:1[0-2] in turning", hang_stacks.innermost(text))


COMPILES = """
import os, sys
from pathlib import Path
from gpucheck.checks.no_launch import stand_in
from gpucheck.triton_hooks.targets import TARGETS
from gpucheck.worker import hang_stacks
from tests.tools.compile.planted import sound

os.environ["TRITON_CACHE_DIR"] = sys.argv[1] + "-cache"
hang_stacks.register(Path(sys.argv[1]))
with stand_in(TARGETS["sm_90"]):
    import torch
    sound.warmup(torch.zeros(64), L=64, grid=(1,))
print("ready", flush=True)
while True:
    pass
"""


def test_a_compiler_that_takes_over_signals_leaves_this_one(tmp_path: Path) -> None:
    pytest.importorskip("triton", reason="needs triton")
    file = tmp_path / "stacks"
    script = tmp_path / "compiles.py"
    script.write_text(COMPILES)
    known = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    process = subprocess.Popen(
        [sys.executable, script, file], env={**known, "PYTHONPATH": str(REPOSITORY)}, stdout=subprocess.PIPE
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        assert re.fullmatch(
            r"compiles\.py:1[4-9] in <module>", hang_stacks.innermost(hang_stacks.collect(process.pid, file))
        )
    finally:
        process.kill()
        process.communicate()


SLOW = """
import signal, sys, time
from gpucheck.worker.hang_stacks import SIGNAL

def write(*_):
    with open(sys.argv[1], "w", buffering=1) as file:
        for part in PARTS:
            file.write(part)
            time.sleep(0.3)

PARTS = 'Thread 0x1:\\n', '  File "a.py", line 1 in idle\\n', 'Current thread 0x2:\\n', '  File "b.py", line 2 in f\\n'
signal.signal(SIGNAL, write)
print("ready", flush=True)
time.sleep(600)
"""


def test_stacks_that_are_written_slowly_are_waited_for(tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text(SLOW)
    (tmp_path / "stacks").touch()
    assert hang_stacks.innermost(collected(tmp_path / "slow.py", tmp_path / "stacks")) == "b.py:2 in f"


def test_process_that_does_not_answer(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    try:
        file = tmp_path / "stacks"
        file.touch()
        assert hang_stacks.collect(process.pid, file) == ""
    finally:
        process.kill()
        process.wait()


def test_no_frame_no_place() -> None:
    made = '  File "<string>", line 5 in __init__\n'
    called = f'Current thread 0x01 (most recent call first):\n{made}  File "/a/b.py", line 2 in f\n'
    assert hang_stacks.innermost(called) == "b.py:2 in f", "code without a file is named by its caller"
    assert hang_stacks.innermost(f"Current thread 0x01 (most recent call first):\n{made}") == "<string>:5 in __init__"
    assert hang_stacks.innermost("") == ""
    assert hang_stacks.innermost("Current thread 0x01 (most recent call first):\n  <no Python frame>") == ""
