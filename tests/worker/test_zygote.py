"""The forkserver and its children; each test drives one from a process of its own, which has no threads."""

from __future__ import annotations

import builtins
import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]

CHILD = """
import os, signal, sys, time
from gpucheck.worker import zygote as module

module._GRACE = float(sys.argv[1])

def serve(connection):
    while True:
        order = connection.recv()
        if order == "pid":
            connection.send(os.getpid())
        elif order == "family":
            connection.send((os.getppid(), os.getpid()))
        elif order == "close":
            connection.close()
            time.sleep(600)
        elif order == "return":
            return
        else:
            exec(order)

zygote = module.Zygote(serve)

def ask(child, order):
    child.connection.send(order)
    return child.connection.recv()

def die(order):
    child = zygote.spawn()
    child.connection.send(order)
    try:
        child.connection.recv()
    except (EOFError, OSError):
        return zygote.reap(child)
"""


def run(script: str, grace: float = 10.0) -> str:
    """The output of a script that has the helpers above."""
    done = subprocess.run(
        [sys.executable, "-c", CHILD + textwrap.dedent(script), str(grace)],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.strip()


def alive(pid: int) -> bool:
    """Whether a process runs; one that has ended and was not waited for does not."""
    try:
        return Path("/proc", str(pid), "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def assert_gone(pids: list[int]) -> None:
    deadline = time.monotonic() + 60
    while any(map(alive, pids)) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not [pid for pid in pids if alive(pid)]


def test_children_are_fresh_processes_of_the_server() -> None:
    output = run("""
        children = [zygote.spawn() for _ in range(3)]
        families = [ask(child, "family") for child in children]
        print([child.pid for child in children] == [pid for _, pid in families])
        print({parent for parent, _ in families} == {zygote.pid})
        print(len({child.pid for child in children}))
        print([zygote.bury(child) for child in children])
        zygote.close()
    """)
    assert output.splitlines() == ["True", "True", "3", "[-9, -9, -9]"]


@pytest.mark.parametrize(
    ("order", "code"),
    [
        ("return", 0),
        ("os._exit(7)", 7),
        ("sys.exit(5)", 5),
        ("sys.exit()", 0),
        ("sys.exit('why')", 1),
        ("raise RuntimeError('planted')", 1),
        ("os.kill(os.getpid(), signal.SIGKILL)", -9),
        ("os.kill(os.getpid(), signal.SIGSEGV)", -11),
        ("os.abort()", -6),
    ],
)
def test_how_a_child_ended(order: str, code: int) -> None:
    assert run(f"print(die({order!r}))") == str(code)


def test_exception_of_a_child_is_in_its_log() -> None:
    done = subprocess.run(
        [sys.executable, "-c", CHILD + "die(\"raise RuntimeError('planted')\")", "10"],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert "RuntimeError: planted" in done.stderr


def test_server_goes_on_after_a_death() -> None:
    output = run("""
        first, second = zygote.spawn(), zygote.spawn()
        print(die("os._exit(3)"))
        print(ask(first, "pid") == first.pid, ask(second, "pid") == second.pid)
        third = zygote.spawn()
        print(ask(third, "pid") == third.pid)
    """)
    assert output.splitlines() == ["3", "True True", "True"]


def test_child_that_closes_its_connection_and_stays_is_killed() -> None:
    script = """
        child = zygote.spawn()
        child.connection.send("close")
        try:
            child.connection.recv()
        except EOFError:
            print(zygote.reap(child))
    """
    assert run(script, grace=0.2) == "-9"


def test_death_of_the_server_is_an_error_not_a_hang() -> None:
    output = run("""
        child = zygote.spawn()
        os.kill(zygote.pid, signal.SIGKILL)
        os.waitpid(zygote.pid, 0)
        for attempt in (zygote.spawn, lambda: zygote.bury(child)):
            try:
                attempt()
            except OSError as error:
                print(type(error).__name__)
    """)
    assert set(output.splitlines()) <= {"BrokenPipeError", "ChildProcessError", "ConnectionResetError"}
    assert len(output.splitlines()) == 2


def test_closing_ends_server_and_children() -> None:
    pids = run("""
        children = [zygote.spawn() for _ in range(2)]
        print(zygote.pid, *[ask(child, "pid") for child in children])
        zygote.close()
    """)
    assert_gone([int(pid) for pid in pids.split()])


def test_everything_dies_with_its_parent() -> None:
    script = """
children = [zygote.spawn() for _ in range(2)]
print(zygote.pid, *[ask(child, "pid") for child in children], flush=True)
time.sleep(600)
"""
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    pipe = subprocess.PIPE
    process = subprocess.Popen([sys.executable, "-c", CHILD + script, "10"], env=environment, stdout=pipe, text=True)
    assert process.stdout is not None
    pids = [int(pid) for pid in process.stdout.readline().split()]
    assert len(pids) == 3
    assert all(map(alive, pids))
    process.kill()
    process.wait()
    process.stdout.close()
    assert_gone(pids)


def test_child_that_cannot_be_killed_is_told_and_the_server_goes_on() -> None:
    output = run(
        """
        module._kill, module._KILLED = lambda *_: None, 0.2
        zygote = module.Zygote(serve)
        stuck, other = zygote.spawn(), zygote.spawn()
        for end, order in ((zygote.bury, None), (zygote.reap, "close")):
            child = zygote.spawn()
            if order:
                child.connection.send(order)
            else:
                child.connection.send("time.sleep(600)")
            try:
                end(child)
            except module.Undying as undying:
                print(f"process {child.pid} did not end within 0.2 s of SIGKILL (state S)" == str(undying))
        print(ask(other, "pid") == other.pid)
    """,
        grace=0.2,
    )
    assert output.splitlines() == ["True", "True", "True"]


def test_server_that_was_stopped_is_an_error_not_a_hang() -> None:
    output = run("""
        module._FORK = 0.3
        os.kill(zygote.pid, signal.SIGSTOP)
        for _ in range(2):
            try:
                zygote.spawn()
            except OSError as error:
                print(type(error).__name__)
        zygote.close()
    """)
    first, second = output.splitlines()
    assert first == "ChildProcessError" and issubclass(getattr(builtins, second), ConnectionError | ChildProcessError)


def test_child_is_the_one_that_the_kernel_ends_where_memory_runs_out() -> None:
    order = "connection.send(open('/proc/self/oom_score_adj').read())"
    assert run(f"print(ask(zygote.spawn(), {order!r}).strip(), open('/proc/self/oom_score_adj').read())") == "1000 0"
