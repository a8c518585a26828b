"""Descendants of a command are found and ended however far off they are; a supervisor reuses its memory."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]


def run(script: str) -> list[str]:
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(
        [sys.executable, "-S", "-c", textwrap.dedent(script)],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_a_daemon_that_left_its_parents_is_ended_and_what_was_there_before_is_not() -> None:
    output = run("""
        import os, subprocess, sys, time
        from pathlib import Path
        from gpucheck.host.processes import Family
        before = subprocess.Popen(["sleep", "60"])
        family = Family()
        # a process in a session of its own, whose parent and grandparent end at once
        fork = "os.fork() and os._exit(0); "
        code = f"import os, time; {fork}os.setsid(); {fork}print(os.getpid()); time.sleep(60)"
        process = subprocess.Popen([sys.executable, "-S", "-u", "-c", code], stdout=subprocess.PIPE, text=True)
        pid = int(process.stdout.readline())
        process.wait()
        print(Path("/proc", str(pid)).exists(), family.end(), Path("/proc", str(pid)).exists(), before.poll())
        before.kill()
    """)
    assert output == ["True", "[]", "False", "None"]


def test_families_within_families_are_ended() -> None:
    output = run("""
        import os, subprocess, sys, time
        from gpucheck.host.processes import Family
        family = Family()
        child = subprocess.Popen(["sh", "-c", "sleep 60 & sleep 60 & echo $!; wait"], stdout=subprocess.PIPE, text=True)
        pid = int(child.stdout.readline())
        family.end()
        print(child.poll() is not None or child.wait() is not None)
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            print("gone")
    """)
    assert output == ["True", "gone"]


def test_a_process_without_its_parent_does_not_begin() -> None:
    output = run("""
        import os
        from gpucheck.host.processes import die_with_parent
        for parent in (os.getpid(), 1 << 22):
            pid = os.fork()
            if not pid:
                die_with_parent(parent)
                os._exit(7)
            print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
    """)
    assert output == ["7", "1"]


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="what it asks is glibc's malloc")
def test_large_blocks_come_from_memory_that_the_process_keeps() -> None:
    output = run("""
        import os
        from gpucheck.host.processes import keep_freed_memory

        def kept():
            block = bytearray(1 << 26)
            block[::4096] = bytes(1 << 14)  # writes to each page
            del block
            return int(open("/proc/self/statm").read().split()[1]) * 4096 > 1 << 26

        print(kept())
        keep_freed_memory()
        print(kept())
        os.environ["LOCAL_WORLD_SIZE"] = str(1 << 20)  # ranks, of which each may keep a share of the memory
        keep_freed_memory()
        print(kept())
    """)
    assert output == ["False", "True", "False"]


def test_garbage_is_looked_for_neither_while_modules_are_loaded_nor_among_them_later() -> None:
    assert run("""
        import gc
        from gpucheck.host.processes import loading
        class Loop:
            def __init__(self): self.itself = self
        with loading():
            print(gc.isenabled())
            loop = Loop()
        print(gc.isenabled(), any(each is loop for each in gc.get_objects()))
        gc.disable()
        try:
            with loading():
                raise KeyError
        except KeyError:
            print(gc.isenabled())
    """) == ["False", "True", "False", "False"]
