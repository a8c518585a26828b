"""Writing a rank's records: one JSON line an event, each on disk before the next thing happens."""

from __future__ import annotations

import json
import os
import threading
import time
from pathlib import Path
from typing import Any

from gpucheck.model.record import SCHEMA, Record


class RecordWriter:
    """Appends to ``records/rank-NNNNN.jsonl``; usable from several threads."""

    def __init__(self, run: Path, rank: int) -> None:
        self._lock = threading.Lock()
        path = run / "records" / f"rank-{rank:05d}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        self._fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)

    def start(self, **facts: Any) -> None:
        """The rank is alive; ``facts`` say where."""
        self._write({"event": "start", "schema": SCHEMA, "time": time.time(), **facts})

    def begin(self, step: int, experiment: str = "") -> None:
        """A case is about to run: without a result line it names the culprit of what happened next."""
        self._write({"event": "begin", "step": step, "experiment": experiment, "time": time.time()})

    def result(self, record: Record) -> None:
        """A case has ended."""
        self._write({**record.to_json(), "time": time.time()})

    def gpu(self, rank: int, **facts: Any) -> None:
        """What the driver says of the GPU of a rank, which need not be this one."""
        self._write({"event": "gpu", "rank": rank, "time": time.time(), **facts})

    def end(self, **facts: Any) -> None:
        """The rank has worked through the plan."""
        self._write({"event": "end", "time": time.time(), **facts})

    def _write(self, item: dict[str, Any]) -> None:
        line = (json.dumps(item, separators=(",", ":"), allow_nan=True) + "\n").encode()
        with self._lock:
            while line:
                line = line[os.write(self._fd, line) :]
