"""The forkserver and its children; each test drives one from a process of its own, which has no threads."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from tests.processes import alive, wait_until

REPOSITORY = Path(__file__).parents[2]

CHILD = """
import os, signal, sys, time
from gpucheck.host import forkserver as module

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

server = module.Forkserver(serve)

def ask(child, order):
    child.connection.send(order)
    return child.connection.recv()

def die(order):
    child = server.spawn()
    child.connection.send(order)
    try:
        child.connection.recv()
    except (EOFError, OSError):
        return server.reap(child)
"""


def run(script: str, grace: float = 10.0) -> str:
    """The output of a script that has the helpers above."""
    done = subprocess.run(
        [sys.executable, "-c", CHILD + textwrap.dedent(script), str(grace)],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.strip()


def test_children_are_fresh_processes_of_the_server() -> None:
    output = run("""
        children = [server.spawn() for _ in range(3)]
        families = [ask(child, "family") for child in children]
        print([child.pid for child in children] == [pid for _, pid in families])
        print({parent for parent, _ in families} == {server.pid})
        print(len({child.pid for child in children}))
        print([server.kill(child) for child in children])
        server.close()
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
    )
    assert "RuntimeError: planted" in done.stderr


def test_server_goes_on_after_a_death() -> None:
    output = run("""
        first, second = server.spawn(), server.spawn()
        print(die("os._exit(3)"))
        print(ask(first, "pid") == first.pid, ask(second, "pid") == second.pid)
        third = server.spawn()
        print(ask(third, "pid") == third.pid)
    """)
    assert output.splitlines() == ["3", "True True", "True"]


def test_child_that_closes_its_connection_and_stays_is_killed() -> None:
    script = """
        child = server.spawn()
        child.connection.send("close")
        try:
            child.connection.recv()
        except EOFError:
            print(server.reap(child))
    """
    assert run(script, grace=0.2) == "-9"


def test_death_of_the_server_is_an_error_not_a_hang() -> None:
    output = run("""
        child = server.spawn()
        os.kill(server.pid, signal.SIGKILL)
        for attempt in (server.spawn, lambda: server.kill(child)):
            try:
                attempt()
            except OSError as error:
                print(type(error).__name__, error)
    """)
    assert output.splitlines() == ["ChildProcessError the forkserver was killed by SIGKILL"] * 2


def test_closing_ends_server_and_children() -> None:
    pids = run("""
        children = [server.spawn() for _ in range(2)]
        print(server.pid, *[ask(child, "pid") for child in children])
        server.close()
    """)
    wait_until(lambda: not any(map(alive, [int(pid) for pid in pids.split()])))


def test_what_a_child_has_started_ends_with_it() -> None:
    pids = run("""
        start = "import subprocess; connection.send(subprocess.Popen(['sleep', '600']).pid)"
        children = [server.spawn() for _ in range(2)]
        print(*[ask(child, start) for child in children])
        server.kill(children[0])
        server.close()
    """)
    wait_until(lambda: not any(map(alive, [int(pid) for pid in pids.split()])))


def test_threads_share_a_server() -> None:
    output = run("""
        from concurrent.futures import ThreadPoolExecutor
        def use(number):
            child = server.spawn()
            assert ask(child, "pid") == child.pid
            child.connection.send(f"os._exit({number})")
            return server.reap(child)
        with ThreadPoolExecutor(8) as pool:
            print(list(pool.map(use, range(24))) == list(range(24)))
    """)
    assert output == "True"


def test_everything_dies_with_its_parent() -> None:
    script = """
children = [server.spawn() for _ in range(2)]
print(server.pid, *[ask(child, "pid") for child in children], flush=True)
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
    wait_until(lambda: not any(map(alive, pids)))


def test_child_that_cannot_be_killed_is_told_and_the_server_goes_on() -> None:
    output = run(
        """
        module._kill, module._KILLED = lambda pid: None, 0.2
        server = module.Forkserver(serve)
        stuck, other = server.spawn(), server.spawn()
        for end, order in ((server.kill, None), (server.reap, "close")):
            child = server.spawn()
            if order:
                child.connection.send(order)
            else:
                child.connection.send("time.sleep(600)")
            try:
                end(child)
            except module.Unkillable as unkillable:
                print(str(unkillable).startswith(f"process {child.pid} did not end within 0.2 s of SIGKILL (state "))
        print(ask(other, "pid") == other.pid)
    """,
        grace=0.2,
    )
    assert output.splitlines() == ["True", "True", "True"]


def test_server_that_was_stopped_is_an_error_not_a_hang() -> None:
    output = run("""
        module._ANSWER = 0.3
        os.kill(server.pid, signal.SIGSTOP)
        for _ in range(2):
            try:
                server.spawn()
            except OSError as error:
                print(type(error).__name__)
        server.close()
    """)
    assert output.splitlines() == ["TimeoutError", "ChildProcessError"]


def test_child_is_the_one_that_the_kernel_ends_where_memory_runs_out() -> None:
    order = "connection.send(open('/proc/self/oom_score_adj').read())"
    assert run(f"print(ask(server.spawn(), {order!r}).strip(), open('/proc/self/oom_score_adj').read())") == "1000 0"


STARTED = """
import os, sys, time
from gpucheck.host.forkserver import Forkserver
from gpucheck.host.isolated import receive, send
server = Forkserver.started("loads", {**os.environ, "MARK": "set"})
child = server.spawn()
send(child.connection, 1)
pids = [server.pid, child.pid, receive(child.connection)]
print(*pids, flush=True)
"""
LOADS = """
import os, subprocess
from gpucheck.host.isolated import receive, send
def preload():
    global loaded
    loaded = os.environ["MARK"]
def main(connection):
    receive(connection)
    assert loaded == "set"
    send(connection, subprocess.Popen(["sleep", "600"]).pid)
    receive(connection)
"""


@pytest.mark.parametrize("end", ["server.close()", "os.kill(os.getpid(), 9)"])
def test_a_server_with_its_own_environment_ends_with_all_that_its_children_started(end: str, tmp_path: Path) -> None:
    """Whether it is closed, or the process that has started it dies."""
    (tmp_path / "loads.py").write_text(LOADS)
    done = subprocess.run(
        [sys.executable, "-c", STARTED + end],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(REPOSITORY), str(tmp_path)])},
        stdout=subprocess.PIPE,
        text=True,
    )
    pids = [int(pid) for pid in done.stdout.split()]
    assert len(pids) == 3
    wait_until(lambda: not any(map(alive, pids)))


LOADING = """
loads = []

def load():
    loads.append(os.getpid())

server = module.Forkserver(serve, load)
"""


def test_what_a_server_loads_it_loads_once_and_every_child_has_it() -> None:
    output = run(
        LOADING
        + textwrap.dedent("""
        children = [server.spawn() for _ in range(2)]
        for child in children:
            child.connection.send("connection.send(__import__('__main__').loads)")
        print([child.connection.recv() for child in children] == [[server.pid]] * 2, loads)
        server.close()
    """)
    )
    assert output == "True []", "one process has loaded it: the server"


@pytest.mark.parametrize("what", ["raise ImportError('no such module')", "raise SystemExit(0)"])
def test_a_server_that_cannot_load_forks_nothing_and_its_owner_is_told(what: str) -> None:
    output = run(
        LOADING.replace("loads.append(os.getpid())", what)
        + textwrap.dedent("""
        for _ in range(2):
            try:
                print("forked", server.spawn())
            except OSError as error:
                print(type(error).__name__)
        server.close()
        """)
    )
    assert output.split() == ["ChildProcessError"] * 2


def test_a_server_that_still_loads_ends_with_its_owners_wish() -> None:
    assert (
        run(LOADING.replace("loads.append(os.getpid())", "time.sleep(600)") + "server.close(); print('closed')")
        == "closed"
    )


def test_what_a_child_left_behind_in_another_session_is_counted_and_ended_and_helpers_that_end_are_not() -> None:
    daemon = "os.fork() or (os.setsid(), os.fork() and os._exit(0), connection.send(os.getpid()), signal.pause())"
    helper = "os.fork() or (os.setsid(), time.sleep(0.2), os._exit(0)); connection.send(1)"
    lines = run(
        f"""
        for order in ({daemon!r}, {helper!r}):
            child = server.spawn()
            pid = ask(child, order)
            server.kill(child)
            print(server.end_leftovers(0.0 if pid > 1 else 60.0), pid > 1 and os.path.exists(f"/proc/{{pid}}"))
        """
    )
    assert lines.split("\n")[:2] == ["1 False", "0 False"]
