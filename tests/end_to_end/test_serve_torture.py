"""Hundreds of evaluations, one in five bad, a server killed at random moments, and a thousand connections."""

from __future__ import annotations

import os
import random
import signal
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fastapi  # noqa: F401 - what the server needs
import pytest

from gpucheck.host.processes import descendants_of, resident
from tests.end_to_end.serve_client import CRASHES, EXITS, HANGS, HOARDS, KEEPS, KILLS, LEAVES, RIGHT, WRONG, Served
from tests.processes import alive, wait_until

pytestmark = pytest.mark.torture
SEED = os.environ["GPUCHECK_TEST_SEED"]  # see the head of pytest's output
EVALUATIONS = int(os.environ.get("GPUCHECK_TEST_EVALUATIONS", "500"))
KILLED = int(os.environ.get("GPUCHECK_TEST_KILLED_SERVERS", "20"))
BAD = (CRASHES, HANGS, HOARDS, KILLS, KEEPS, EXITS, LEAVES)
FLAT = 24 << 20  # bytes that the server may grow by: answers that SQLite keeps in memory, threads of the pool


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    served = Served(tmp_path / "state", ("--host-memory", "2", "--share", "2"))
    served.start()
    yield served
    if served.process is not None and served.process.poll() is None:
        served.end()


def below(served: Served) -> set[int]:
    assert served.process is not None
    return descendants_of(served.process.pid)


def test_hundreds_in_a_row_one_in_five_bad_harm_neither_their_neighbours_nor_the_server(served: Served) -> None:
    assert served.process is not None
    assert served.eval(RIGHT)[1]["correctness"] is True
    before, shm = resident(served.process.pid), set(os.listdir("/dev/shm"))

    def one(number: int) -> str:
        """What is wrong with an answer."""
        bad = number % 5 == 4
        source = BAD[number // 5 % len(BAD)] if bad else (RIGHT, WRONG)[number % 2]
        status, answer = served.eval(f"{source}\n# {number}\n", timeout=20 if bad else 300, measure_performance=False)
        verdict = answer["metadata"].get("verdict")
        right = answer.get("correctness") is True and verdict == "PASS"
        fits = right if source is RIGHT else verdict == "FAIL" and not answer.get("correctness")
        return "" if fits else f"{number}: {status} {str(answer)[:2000]}"

    begin = time.monotonic()
    with ThreadPoolExecutor(2) as pool:
        wrong = list(filter(None, pool.map(one, range(EVALUATIONS))))
    took = time.monotonic() - begin
    grown = resident(served.process.pid) - before
    print(f"\n{60 * EVALUATIONS / took:.1f} evaluations a minute; the server grew by {grown / 2**20:.1f} MiB")
    assert not wrong, "\n".join(wrong)
    assert grown < FLAT
    wait_until(lambda: not list((served.state / "work").iterdir()))  # the device is proved after the last one
    assert set(os.listdir("/dev/shm")) <= shm
    names = [Path("/proc", str(pid), "cmdline").read_text() for pid in below(served) if alive(pid)]
    assert all("evaluator_process" in name for name in names), names


def test_a_server_killed_at_random_moments_loses_nothing_and_its_queue_goes_on(served: Served) -> None:
    chance = random.Random(SEED)
    sent: dict[str, bool] = {}
    told: dict[str, object] = {}
    for turn in range(KILLED):
        for number in range(2):
            id, right = f"{turn}-{number}", bool(number)
            status, _ = served.evaluate(id, f"{RIGHT if right else WRONG}\n# {id}\n", measure_performance=False)
            assert status == 200
            sent[id] = right
        time.sleep(chance.uniform(0, 6))
        for id in sent:
            answer = served.ask("GET", f"/results/{id}")[1]
            if answer["status"] == "completed":
                assert told.setdefault(id, answer) == answer
        left = below(served)
        served.end(signal.SIGKILL)
        wait_until(lambda left=left: not any(alive(pid) for pid in left))  # type: ignore[misc]
        served.start()
    for id, right in sent.items():
        answer = served.results(id)
        assert answer["status"] == "completed" and answer["correctness"] is right, answer
        assert told.get(id, answer) == answer
    print(f"\n{KILLED} servers were killed; {len(sent)} evaluations were asked for, {len(told)} answered before a kill")


def test_a_thousand_connections_and_slow_ones_keep_nobody_out(served: Served) -> None:
    address = ("127.0.0.1", served.port)
    idle = [socket.create_connection(address) for _ in range(1000)]
    head = (
        f"POST /eval HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {1 << 20}\r\n\r\n"
    )
    for number, connection in enumerate(idle):
        if number % 3:
            connection.sendall(head.encode()[: 40 if number % 3 == 1 else None])
    assert served.eval(RIGHT)[1]["correctness"] is True
    assert served.health() == "healthy"
    wait_until(lambda: all(_closed(connection) for connection in idle))
    assert served.eval(WRONG)[1]["correctness"] is False


def _closed(connection: socket.socket) -> bool:
    """Whether the server has closed it, with an answer or without."""
    connection.setblocking(False)
    try:
        return not connection.recv(1 << 16)
    except BlockingIOError:
        return False
    except OSError:
        return True
