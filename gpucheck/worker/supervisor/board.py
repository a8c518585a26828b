"""What the supervisors of all ranks, on all nodes, tell each other: through the store that torchrun's agent holds.

Every operation is bounded. Where the store no longer answers, no joint case runs any more.
"""

from __future__ import annotations

import json
import os
import threading
import time
from concurrent.futures import Future
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

from gpucheck.worker.supervisor.node_sync import Node

ANSWER = 30.0  # s within which the store must answer
COMING = 120.0  # s within which a rank of another node must have started
SILENCE = 20.0  # s without a sign of life, after which a rank of another node is gone
SIGN_OF_LIFE = 1.0  # s
POLL = 0.005  # s between two looks at what others have left
GLANCE = 0.2  # s between two looks at who is gone


class NoStore(Exception):
    """The store does not answer."""


class Board:
    """One rank's place among all ranks of the run."""

    def __init__(self, node: Node, rank: int, ranks: int, records: Path) -> None:
        self.node, self.rank, self.ranks = node, rank, ranks
        self._records = records
        self._began = time.monotonic()
        self._lost = ""
        self._pending: threading.Semaphore = threading.Semaphore(1)  # one operation at a time
        self._heard: dict[int, tuple[int, float]] = {}  # rank of another node -> last sign of life, when it changed
        self._looked = 0.0
        self._gone: set[int] = set()
        self._store = self._bounded(self._connected)
        if ranks > node.local_ranks:
            threading.Thread(target=self._live, daemon=True).start()

    def _connected(self) -> Any:
        from gpucheck.worker.rank_store import BOARD, connected

        return connected(BOARD, timedelta(seconds=ANSWER))

    def post(self, name: str, content: Any) -> None:
        """Leaves something of this rank for all."""
        self._bounded(self._store.set, f"{name}/{self.rank}", json.dumps(content))

    def seen(self, name: str, rank: int) -> Any:
        """What a rank has left; None where it has left nothing so far."""
        key = f"{name}/{rank}"
        if not self._bounded(self._store.check, [key]):
            return None
        return json.loads(self._bounded(self._store.get, key))

    def came(self, name: str, seconds: float | None = None) -> dict[int, Any]:
        """What all ranks have left, waiting for it; ranks that are gone, or leave nothing in time, are not in it."""
        found: dict[int, Any] = {}
        begin = time.monotonic()
        for rank in range(self.ranks):
            while (said := self.seen(name, rank)) is None:
                if rank in self.gone() and self.seen(name, rank) is None:
                    break
                if seconds is not None and time.monotonic() - begin > seconds:
                    break
                time.sleep(POLL)
            if said is not None:
                found[rank] = said
        return found

    def gather(self, name: str, content: Any) -> dict[int, Any] | None:
        """What all ranks say under a name that is used once; None where one is gone."""
        self.post(name, content)
        found = self.came(name)
        return found if len(found) == self.ranks else None

    def count(self, name: str, more: int = 0) -> int:
        """How often the ranks have counted something, after this one counts ``more``."""
        return int(self._bounded(self._store.add, name, more))

    def gone(self) -> set[int]:
        """The ranks whose supervisor has ended."""
        if time.monotonic() - self._looked > GLANCE:
            self._looked = time.monotonic()
            self._gone |= {rank for rank in range(self.ranks) if rank not in self._gone and self._is_gone(rank)}
        return self._gone

    def _is_gone(self, rank: int) -> bool:
        number, local_rank = divmod(rank, self.node.local_ranks)
        if rank == self.rank:
            return False
        if number == self.rank // self.node.local_ranks:
            return self.node.gone(local_rank) or self._died(rank)
        sign, since = self._heard.get(rank, (-1, self._began))
        now, beat = time.monotonic(), self.seen("alive", rank)
        if beat is not None and beat != sign:
            self._heard[rank] = beat, now
            return False
        return now - since > (COMING if sign < 0 else SILENCE)

    def _died(self, rank: int) -> bool:
        """Whether the death of a rank's supervisor is in its records: one that never got far was never here."""
        with suppress(OSError, ValueError, AttributeError, IndexError):
            last = (self._records / f"rank-{rank:05d}.jsonl").read_text(encoding="utf-8").splitlines()[-1]
            return bool(json.loads(last).get("event") == "death")
        return False

    def _live(self) -> None:
        """Gives signs of life."""
        with suppress(NoStore):
            for beat in range(1 << 60):
                self.post("alive", beat)
                time.sleep(SIGN_OF_LIFE)

    def _bounded(self, operation: Any, *arguments: Any) -> Any:
        """What an operation of the store returns.

        Raises:
            NoStore: it failed or did not return in time, now or earlier.
        """
        if self._lost:
            raise NoStore(self._lost)
        done: Future[Any] = Future()

        def work() -> None:
            try:
                done.set_result(operation(*arguments))
            except Exception as error:
                done.set_exception(error)

        with self._pending:
            threading.Thread(target=work, daemon=True).start()
            try:
                return done.result(ANSWER)
            except Exception as error:
                where = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
                self._lost = f"torchrun's store at {where} does not answer: {str(error) or type(error).__name__}"
                raise NoStore(self._lost) from None
