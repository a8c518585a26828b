"""Between the nodes of a run: the plan goes out from node 0 and the records come back, over one connection a node.

What travels are lines of JSON. A further node says hello and is told the plan; it sends what its ranks write, line by
line, a sign of life when they write nothing, and at the end how its torchrun ended. Nobody waits in here: both sides
are polled while the ranks run.
"""

from __future__ import annotations

import json
import os
import selectors
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpucheck.model.errors import InfrastructureError
from gpucheck.records.run_folder import rank_files

SIGN_OF_LIFE = 1.0  # s between messages of a node at most
SILENCE = 15.0  # s without one, after which a node is gone
ANSWER = 10.0  # s that node 0 may take to answer a hello
CHUNK = 1 << 20  # bytes read at once
ENDED, RUNNING, GONE = "ended", "running", "gone"


@dataclass
class Node:
    """A further node as node 0 sees it."""

    number: int
    host: str
    software: dict[str, Any]
    state: str = RUNNING
    code: int | None = None  # of its torchrun

    @property
    def well(self) -> bool:
        """Whether it is at work, or ended as it should."""
        return self.state == RUNNING or (self.state == ENDED and self.code == 0)

    def to_json(self) -> dict[str, Any]:
        """The plain form in ``outcome.json``."""
        return dict(vars(self))


class _Peer:
    """A connection, its unread bytes and who is at the other end."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self.unread = b""
        self.node: Node | None = None
        self.heard = time.monotonic()


class RecordServer:
    """Takes the records of the other nodes on node 0; use it as a context manager and poll it often.

    Args:
        port: to listen on; 0 takes any.
        meeting: what the nodes must name.
        nodes: how many there are.
        plan: as written to ``plan.json``.
        folder: the run folder, which gets the records of the other nodes.

    Raises:
        InfrastructureError: the port is taken.
    """

    def __init__(self, port: int, meeting: str, nodes: int, plan: Mapping[str, Any], folder: Path) -> None:
        self.meeting, self.plan, self.folder = meeting, plan, folder
        self.expected = range(1, nodes)
        self.nodes: dict[int, Node] = {}
        self._owners: dict[int, int] = {}  # rank -> node whose records came from there
        try:
            both = socket.has_dualstack_ipv6()
            family = socket.AF_INET6 if both else socket.AF_INET
            self._listener = socket.create_server(("", port), family=family, backlog=nodes, dualstack_ipv6=both)
        except OSError as error:
            raise InfrastructureError(
                f"cannot listen on port {port}, where records of other nodes arrive: {error.strerror}; it is "
                "the port after the one of --rdzv-endpoint: choose another endpoint"
            ) from None
        self._listener.setblocking(False)
        self.port: int = self._listener.getsockname()[1]
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ)

    def __enter__(self) -> RecordServer:
        return self

    def __exit__(self, *_: object) -> None:
        for key in list((self._selector.get_map() or {}).values()):  # nothing is left of it once closed
            key.fileobj.close()  # type: ignore[union-attr]
        self._selector.close()

    def poll(self) -> bool:
        """Takes what has arrived; says whether a node is gone that others might wait for."""
        for key, _ in self._selector.select(0):
            if key.data is None:
                connection, _ = self._listener.accept()
                connection.setblocking(False)
                self._selector.register(connection, selectors.EVENT_READ, _Peer(connection))
            else:
                self._read(key.data)
        for peer in self._peers():
            if time.monotonic() - peer.heard > SILENCE:
                self._drop(peer)
        return not all(node.well for node in self.nodes.values())

    def finish(self, seconds: float) -> list[Node]:
        """Waits, at most for a time, until every node has ended; gives them all, those that never came as gone."""
        deadline = time.monotonic() + seconds
        while any(node.state == RUNNING for node in self.nodes.values()) and time.monotonic() < deadline:
            self.poll()
            time.sleep(0.02)
        for number in self.expected:
            node = self.nodes.setdefault(number, Node(number, "", {}, GONE))
            if node.state == RUNNING:
                node.state = GONE
        return [self.nodes[number] for number in self.expected]

    def _peers(self) -> list[_Peer]:
        return [key.data for key in self._selector.get_map().values() if key.data is not None]

    def _read(self, peer: _Peer) -> None:
        try:
            content = peer.connection.recv(CHUNK)
        except BlockingIOError:
            return
        except OSError:
            content = b""
        if not content:
            self._drop(peer)
            return
        peer.heard = time.monotonic()
        *lines, peer.unread = (peer.unread + content).split(b"\n")
        for line in lines:
            try:
                message = json.loads(line)
                self._take(peer, message)
            except (ValueError, KeyError, TypeError, AttributeError):
                self._drop(peer)  # it is no node of ours
                return

    def _take(self, peer: _Peer, message: dict[str, Any]) -> None:
        if peer.node is None:
            self._welcome(peer, message)
        elif "rank" in message:
            self._append(peer.node, int(message["rank"]), str(message["lines"]))
        elif "ended" in message:
            peer.node.state, peer.node.code = ENDED, message["ended"]

    def _welcome(self, peer: _Peer, message: dict[str, Any]) -> None:
        number = int(message["hello"])
        refusal = ""
        if message["meeting"] != self.meeting:
            refusal = f"node 0 is at meeting {self.meeting!r}: give the same --rdzv-id on every node"
        elif number not in self.expected:
            refusal = f"node 0 expects nodes {', '.join(map(str, self.expected))}, not {number}"
        elif number in self.nodes:
            refusal = f"there is a node {number} already"
        answer = {"refused": refusal} if refusal else {"plan": self.plan}
        try:
            peer.connection.setblocking(True)
            peer.connection.settimeout(ANSWER)
            peer.connection.sendall(json.dumps(answer).encode() + b"\n")
            peer.connection.setblocking(False)
        except OSError:
            refusal = "it does not listen"
        if refusal:
            self._drop(peer)
            return
        peer.node = self.nodes[number] = Node(number, str(message["host"]), dict(message["software"]))

    def _append(self, node: Node, rank: int, lines: str) -> None:
        """Adds lines to the records of a rank, which must be of this node and of no other."""
        path = self.folder / "records" / f"rank-{rank:05d}.jsonl"
        if rank not in self._owners and path.exists():
            raise ValueError(f"rank {rank} runs here")
        if self._owners.setdefault(rank, node.number) != node.number:
            raise ValueError(f"rank {rank} runs on another node")
        with open(path, "a", encoding="utf-8") as file:
            file.write(lines)

    def _drop(self, peer: _Peer) -> None:
        self._selector.unregister(peer.connection)
        peer.connection.close()
        if peer.node and peer.node.state == RUNNING:
            peer.node.state = GONE


class RecordClient:
    """Sends the records of a run folder from a further node to node 0.

    Attributes:
        plan: that node 0 answered the hello with.
        cut: whether the connection broke; records then stay in the run folder here.
    """

    def __init__(self, connection: socket.socket, plan: dict[str, Any]) -> None:
        self.plan, self.cut = plan, False
        self._connection = connection
        self._folder: Path | None = None
        self._sent: dict[Path, int] = {}
        self._spoke = time.monotonic()

    @classmethod
    def connect(
        cls, address: tuple[str, int], meeting: str, node: int, software: Mapping[str, Any], seconds: float
    ) -> RecordClient:
        """Says hello to node 0, which may not be there yet, and waits for the plan.

        Raises:
            TimeoutError: nobody answers in time.
            InfrastructureError: node 0 refuses.
        """
        hello = {"hello": node, "meeting": meeting, "host": socket.gethostname(), "software": software}
        deadline = time.monotonic() + seconds
        while True:
            try:
                with socket.create_connection(address, timeout=1.0) as connection:
                    connection.settimeout(ANSWER)
                    connection.sendall(json.dumps(hello).encode() + b"\n")
                    answer = json.loads(connection.makefile("rb").readline() or b"{}")
                    if "plan" in answer:
                        return cls(connection.dup(), answer["plan"])
                if "refused" in answer:
                    raise InfrastructureError(f"node 0 at {address[0]}:{address[1]} refuses: {answer['refused']}")
            except (OSError, ValueError):
                pass
            if time.monotonic() > deadline:
                raise TimeoutError
            time.sleep(0.1)

    def follow(self, folder: Path) -> None:
        """Follows the records of this folder: from now on :meth:`poll` sends what is new."""
        self._folder = folder

    def poll(self) -> bool:
        """Sends what is new; says whether node 0 is gone."""
        for rank, path in rank_files(self._folder) if self._folder else ():
            for lines in _new_lines(path, self._sent):
                self._send({"rank": rank, "lines": lines})
        if time.monotonic() - self._spoke > SIGN_OF_LIFE:
            self._send({})
        return self.cut

    def close(self, code: int | None) -> None:
        """Sends the rest and how the ranks ended here, and closes the connection."""
        self.poll()
        self._send({"ended": code})
        self._connection.close()

    def _send(self, message: Mapping[str, Any]) -> None:
        if self.cut:
            return
        try:
            self._connection.sendall(json.dumps(message).encode() + b"\n")
        except OSError:
            self.cut = True
        self._spoke = time.monotonic()


def _new_lines(path: Path, sent: dict[Path, int]) -> list[str]:
    """Whole lines written since the last call, in parts that are not too long for a message."""
    parts: list[str] = []
    with open(path, "rb") as file:
        while True:
            file.seek(sent.get(path, 0))
            content = file.read(CHUNK)
            if len(content) == CHUNK and b"\n" not in content:
                content += file.readline()
            whole = content.rfind(b"\n") + 1
            if not whole:
                return parts
            sent[path] = sent.get(path, 0) + whole
            parts.append(content[:whole].decode("utf-8", "replace"))


def address_of(endpoint: str) -> tuple[str, int]:
    """Where node 0 takes records: the host of the rendezvous, one port on."""
    host, _, port = endpoint.rpartition(":")
    return host.strip("[]") or "localhost", int(port) + 1


def has_children(pid: int) -> bool:
    """Whether a process has started others that still run."""
    try:
        tasks = os.listdir(f"/proc/{pid}/task")
        return any(Path(f"/proc/{pid}/task/{task}/children").read_text().strip() for task in tasks)
    except OSError:
        return False
