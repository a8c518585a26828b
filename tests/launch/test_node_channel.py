"""Node 0 and further nodes, over real sockets in this process."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from threading import Thread
from types import SimpleNamespace
from typing import Any

import pytest

from gpucheck.launch import node_channel
from gpucheck.launch.node_channel import RecordClient, RecordServer, address_of, has_children
from gpucheck.model.errors import InfrastructureError
from tests.processes import wait_until

PLAN = {"id": "abc", "steps": [1, 2]}


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RecordServer]:
    (tmp_path / "server" / "records").mkdir(parents=True)
    with RecordServer(0, "mine", 3, PLAN, tmp_path / "server") as server:
        yield server


@pytest.fixture
def here(tmp_path: Path) -> Path:
    (tmp_path / "here" / "records").mkdir(parents=True)
    return tmp_path / "here"


def connect(server: RecordServer, node: int = 1, meeting: str = "mine", seconds: float = 120.0) -> RecordClient:
    """A node that has met node 0."""
    answer: list[Any] = []

    def hello() -> None:
        try:
            answer.append(RecordClient.connect(("127.0.0.1", server.port), meeting, node, {"torch": None}, seconds))
        except Exception as error:
            answer.append(error)

    thread = Thread(target=hello)
    thread.start()
    wait_until(lambda: server.poll() is None or not thread.is_alive())
    if isinstance(answer[0], Exception):
        raise answer[0]
    return answer[0]


def write(folder: Path, rank: int, text: str) -> None:
    with open(folder / "records" / f"rank-{rank:05d}.jsonl", "a") as file:
        file.write(text)


def received(server: RecordServer, rank: int) -> str:
    server.poll()
    path = server.folder / "records" / f"rank-{rank:05d}.jsonl"
    return path.read_text() if path.exists() else ""


def test_the_plan_goes_out_and_records_come_back_line_by_line(server: RecordServer, here: Path) -> None:
    client = connect(server)
    assert client.plan == PLAN and server.nodes[1].host == socket.gethostname()
    client.follow(here)
    write(here, 4, '{"a":1}\n{"b":')
    assert client.poll() is False
    wait_until(lambda: received(server, 4) == '{"a":1}\n')
    write(here, 4, "2}\n")
    write(here, 5, '{"c":3}\n')
    client.close(0)
    wait_until(lambda: received(server, 4) == '{"a":1}\n{"b":2}\n' and received(server, 5) == '{"c":3}\n')
    assert server.poll() is False
    one, two = server.finish(0.1)
    assert (one.state, one.code, one.well) == ("ended", 0, True)
    assert (two.number, two.state, two.host) == (2, "gone", ""), "the node that never came"


def test_lines_longer_than_a_message_arrive_whole(
    server: RecordServer, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(node_channel, "CHUNK", 64)
    client = connect(server)
    client.follow(here)
    text = "".join(json.dumps({"n": n, "x": "ü" * (n % 90)}) + "\n" for n in range(40))
    write(here, 1, text)
    client.poll()
    wait_until(lambda: received(server, 1) == text)


def test_a_node_that_dies_is_gone_at_once_and_one_that_says_nothing_after_a_while(
    server: RecordServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = connect(server, 1), connect(server, 2)
    assert server.poll() is False
    first._connection.close()
    wait_until(server.poll)
    assert [server.nodes[number].state for number in (1, 2)] == ["gone", "running"]
    monkeypatch.setattr(node_channel, "SILENCE", 0.05)
    time.sleep(0.1)
    server.poll()
    assert server.nodes[2].state == "gone"
    del second


def test_signs_of_life_keep_a_quiet_node(server: RecordServer, monkeypatch: pytest.MonkeyPatch) -> None:
    client, clock = connect(server), [time.monotonic()]
    monkeypatch.setattr(node_channel, "time", SimpleNamespace(monotonic=lambda: clock[-1]))
    for _ in range(20):
        clock.append(clock[-1] + 0.2 * node_channel.SILENCE)
        client.poll()
        wait_until(lambda: server.poll() or all(peer.heard == clock[-1] for peer in server._peers()))
        assert [node.state for node in server.nodes.values()] == ["running"]


def test_a_node_whose_torchrun_failed_is_not_well(server: RecordServer) -> None:
    connect(server).close(-9)
    wait_until(server.poll)
    assert (server.nodes[1].state, server.nodes[1].code) == ("ended", -9)


def test_a_node_notices_that_node_0_is_gone(server: RecordServer, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node_channel, "SIGN_OF_LIFE", 0.0)
    client = connect(server)
    client.follow(here)
    server.__exit__()
    wait_until(client.poll)
    client.close(0)


@pytest.mark.parametrize(
    ("node", "meeting", "words"),
    [(1, "other", "--rdzv-id"), (3, "mine", "expects nodes 1, 2, not 3"), (0, "mine", "not 0")],
)
def test_whoever_does_not_belong_is_refused(server: RecordServer, node: int, meeting: str, words: str) -> None:
    with pytest.raises(InfrastructureError, match=words):
        connect(server, node, meeting)
    assert not server.nodes


def test_a_number_is_taken_once(server: RecordServer) -> None:
    first = connect(server, 1)
    with pytest.raises(InfrastructureError, match="a node 1 already"):
        connect(server, 1)
    assert first.poll() is False


def test_nobody_there(server: RecordServer) -> None:
    port = server.port
    server.__exit__()
    with pytest.raises(TimeoutError):
        RecordClient.connect(("127.0.0.1", port), "mine", 1, {}, 0.2)


@pytest.mark.parametrize("content", [b"GET / HTTP/1.1\r\n\r\n", b"[1]\n", b'{"rank":1}\n', b"\xff\n"])
def test_strangers_are_dropped(server: RecordServer, content: bytes) -> None:
    with socket.create_connection(("127.0.0.1", server.port)) as stranger:
        stranger.sendall(content)
        wait_until(lambda: server.poll() is False and not stranger_waits(stranger))
    assert not server.nodes and not os.listdir(server.folder / "records")


def stranger_waits(stranger: socket.socket) -> bool:
    stranger.settimeout(0.01)
    try:
        return stranger.recv(1) != b""
    except TimeoutError:
        return True
    except OSError:
        return False


def test_nobody_writes_to_the_records_of_others(server: RecordServer, here: Path) -> None:
    write(server.folder, 0, "ours\n")
    client = connect(server)
    client.follow(here)
    write(here, 0, "theirs\n")
    client.poll()
    wait_until(server.poll)
    assert received(server, 0) == "ours\n"


def test_a_port_that_is_taken_is_named(server: RecordServer) -> None:
    with pytest.raises(InfrastructureError, match=f"port {server.port}.*choose another endpoint"):
        RecordServer(server.port, "mine", 2, PLAN, server.folder)


def test_records_come_in_one_port_after_the_rendezvous() -> None:
    assert address_of("node-a:29500") == ("node-a", 29501)
    assert address_of("[::1]:29500") == ("::1", 29501)


def test_children_are_seen() -> None:
    code = "import subprocess, sys; p = subprocess.Popen(['sleep', '600']); print(1, flush=True); sys.stdin.read(1);"
    code += "p.kill(); p.wait(); print(2, flush=True); sys.stdin.read()"
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-S", "-c", code], stdin=pipe, stdout=pipe, bufsize=0) as process:
        assert process.stdin and process.stdout
        process.stdout.readline()
        assert has_children(process.pid)
        process.stdin.write(b"x")
        process.stdout.readline()
        assert not has_children(process.pid)
        process.stdin.close()
    assert not has_children(process.pid)
