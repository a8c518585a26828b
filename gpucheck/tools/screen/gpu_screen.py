"""One GPU under screen as the command sees it: its process, what it sent, and how it ended; never touches CUDA."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from gpucheck.host.forkserver import Child, Forkserver, Unkillable
from gpucheck.host.isolated import python_path, receive, send
from gpucheck.model.record import Outcome
from gpucheck.tools.screen.datapaths import Datapath

if TYPE_CHECKING:
    from gpucheck.tools.screen.known_tiles import Array
    from gpucheck.tools.screen.tally import Tally

MODULE = "gpucheck.tools.screen.screen_process"
BLIND = (
    "the processes on the GPU cannot be seen from here, so none can be given way to: run --idle on the host or in a "
    "container with the host's process ids (hostPID), or leave it out"
)
PATIENCE = 300.0  # s without a word of a process that is no process of an idle-time screen


@dataclass
class Known:
    """What is known of a datapath before anything runs."""

    path: Datapath
    digests: Array | Sequence[int] | None  # None: nobody promises them
    bits: list[Array]


@dataclass
class Ended:
    """How one datapath ended, where it was not screened to the end."""

    outcome: Outcome
    message: str
    traceback: str = ""


@dataclass
class GpuScreen:
    """The screen of one GPU in one process of its own."""

    rank: int
    known: Mapping[str, Known]
    asked: dict[str, Any]  # device, seed, uuid, idle, plant; see screen_process
    state: Callable[[], Mapping[str, Any]]  # of the GPU, now
    facts: dict[str, Any] = field(default_factory=dict)  # its name, capability, number of multiprocessors
    tallies: dict[str, Tally] = field(default_factory=dict)
    ended: dict[str, Ended] = field(default_factory=dict)
    tile_seconds: dict[str, float] = field(default_factory=dict)
    compile_seconds: float = 0.0
    waited: float = 0.0
    done: bool = False
    problem: str = ""  # why its process ended early
    at: str = ""  # the datapath that it compiles or runs
    _child: Child | None = None

    def prepare(self, server: Forkserver) -> None:
        """Starts the process and waits until it has compiled everything; raises nothing."""
        self._guarded(lambda: self._prepare(server), server)

    def run(self, server: Forkserver, seconds: float, tiles: int) -> None:
        """Screens until the process says that it is done; raises nothing."""
        if not self.problem:
            self._guarded(lambda: self._run(seconds, tiles), server)
        self._end(server)

    @property
    def architecture(self) -> str:
        """``sm_90`` for one; "" before its process has told."""
        return "sm_{}{}".format(*self.facts["capability"]) if self.facts and self.asked["device"] == "cuda" else ""

    def agreed(self, name: str) -> list[int] | None:
        """The digests that most multiprocessors gave for a datapath that nobody promises the bits of."""
        tally = self.tallies.get(name)
        return [int(each) for each in tally.known] if tally else None

    def _prepare(self, server: Forkserver) -> None:
        self._child = server.spawn(PATIENCE)
        expected = {
            name: [] if known.digests is None else [int(each) for each in known.digests]
            for name, known in self.known.items()
        }
        send(self._child.connection, {**self.asked, "paths": list(self.known), "expected": expected})
        while (message := self._next())["event"] != "ready":
            if message["event"] == "device":
                self.facts = message
            elif message["event"] == "compiling":
                self.at = message["path"]
            elif message["event"] == "failed":
                failed = Ended(
                    Outcome.HARNESS, message["message"], message["traceback"]
                )  # the kernel is gpucheck's own
                self.ended[message["path"]] = failed
            elif message["event"] == "lacking":
                self.ended[message["path"]] = Ended(Outcome.INAPPLICABLE, "this GPU does not have it")
            elif message["event"] == "blind":
                self.problem = BLIND
                self.ended = dict.fromkeys(self.known, Ended(Outcome.HARNESS, BLIND))
                return
            else:
                self._prepared(message)

    def _prepared(self, message: Mapping[str, Any]) -> None:
        import numpy as np

        from gpucheck.tools.screen.tally import Tally

        name = message["path"]
        known = self.known[name]
        digests = np.array(message["expected"] if known.digests is None else known.digests, np.int64)
        self.tallies[name] = Tally(known.path, digests, known.bits)
        self.tile_seconds[name] = message["tile_seconds"]
        self.compile_seconds += message["seconds"]

    def _run(self, seconds: float, tiles: int) -> None:
        assert self._child is not None
        self.at = ""
        send(self._child.connection, {"seconds": seconds, "tiles": tiles})
        while (message := self._next())["event"] != "done":
            if message["event"] == "waited":
                self.waited += message["seconds"]
                continue
            self.at = message["path"]
            digests = self._child.connection.recv_bytes()
            details = [self._child.connection.recv_bytes() for _ in message["details"]]
            self.tallies[self.at].take(message, digests, details, self.state())
        self.done = True

    def _next(self) -> dict[str, Any]:
        """The next message.

        Raises:
            TimeoutError: none came for long.
            EOFError, OSError, ValueError: as :func:`gpucheck.host.isolated.receive`.
        """
        assert self._child is not None
        if not self._child.connection.poll(None if self.asked["idle"] else PATIENCE):
            raise TimeoutError(f"no word for {PATIENCE:g} s")
        message: dict[str, Any] = receive(self._child.connection)
        return message

    def _guarded(self, work: Callable[[], None], server: Forkserver) -> None:
        try:
            work()
        except TimeoutError as error:
            self._fail(Outcome.HANG, str(error))
        except (EOFError, OSError, ValueError):
            words = server.last_words(self._end(server)) if self._child else "its process could not be started"
            self._fail(Outcome.CRASH, words)

    def _fail(self, outcome: Outcome, words: str) -> None:
        self.problem = words
        if self.at and self.at not in self.ended:
            self.ended[self.at] = Ended(outcome, f"the process of the GPU: {words}")

    def _end(self, server: Forkserver) -> int:
        """Ends the process, whose exit code is given, negative for a signal."""
        child, self._child = self._child, None
        if child is None:
            return 0
        try:
            return server.reap(child) if self.done else server.kill(child)
        except (OSError, Unkillable) as error:
            self.problem = self.problem or str(error)
            return 0


def environment(device: str, entry: str) -> dict[str, str]:
    """Of the processes of one GPU.

    Args:
        entry: what CUDA_VISIBLE_DEVICES is to hold.
    """
    own = {"PYTHONPATH": python_path(), "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    if device == "cuda":
        own["CUDA_VISIBLE_DEVICES"] = entry
    return {**os.environ, **own}


def at_once(works: Sequence[Callable[[], None]], watch: Callable[[], object]) -> None:
    """Runs some functions, each in a thread, and returns when all have ended or ``watch`` says to wait no longer.

    What a function that nobody waits for raises is of no interest: its process was taken from it.
    """

    def run(work: Callable[[], None]) -> None:
        try:
            work()
        except Exception:
            if not watch():
                raise

    threads = [threading.Thread(target=run, args=(work,), daemon=True) for work in works]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads) and not watch():
        time.sleep(0.02)
