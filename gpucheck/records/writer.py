"""Writing a rank's records: one JSON line an event, each on disk before the next thing happens."""

from __future__ import annotations

import json
import os
import shutil
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from gpucheck.model.record import SCHEMA, Record

LONGEST_BEGIN = 512  # bytes


class RecordWriter:
    """Appends to ``records/rank-NNNNN.jsonl``; usable from several threads.

    A line that cannot be written whole (full disk) is removed again: the lines before and after it stay readable.
    """

    def __init__(self, run: Path, rank: int, *, guarded: bool = False) -> None:
        """Args:
        guarded: code under test may be able to write the file: if it holds something else in the end than what was
            written here, it is written anew.
        """
        self._lock = threading.Lock()
        self._path = path = run / "records" / f"rank-{rank:05d}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        self._fd = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
        self._written: list[bytes] | None = [path.read_bytes()] if guarded else None
        size = os.fstat(self._fd).st_size
        if size and os.pread(self._fd, 1, size - 1) != b"\n":
            os.write(self._fd, b"\n")  # the last line was cut off by the death of its writer

    def start(self, **facts: Any) -> None:
        """The rank is alive; ``facts`` say where."""
        self._write({"event": "start", "schema": SCHEMA, "time": time.time(), **facts})

    def begin(self, step: int, experiment: str = "", round: int = 0) -> None:
        """A case is about to run: without a result line it names the culprit of what happened next."""
        self._write({"event": "begin", "step": step, "experiment": experiment, "round": round, "time": time.time()})

    def result(self, record: Record) -> None:
        """A case has ended."""
        self._write({**record.to_json(), "time": time.time()})

    def skip(self, reason: str) -> None:
        """The rank runs no further case; on a full disk this line replaces the last begin line."""
        while True:
            try:
                self._write({"event": "skip", "reason": reason})  # no time: it must be no longer than a begin
                return
            except OSError:
                if not self._take_back_begin():
                    raise

    def building(self, step: int) -> None:
        """The extensions of a step's candidate are being built, which may take a minute or more."""
        self._write({"event": "building", "step": step, "time": time.time()})

    def gpu(self, rank: int, **facts: Any) -> None:
        """State of the GPU of a rank, as the driver reports it; the rank may be another one."""
        self._write({"event": "gpu", "rank": rank, "time": time.time(), **facts})

    def end(self, **facts: Any) -> None:
        """The rank has worked through the plan, and no code under test runs any more."""
        if self._restored():
            facts["restored"] = True
        self._write({"event": "end", "time": time.time(), **facts})

    def death(self, how: str, **facts: Any) -> None:
        """The rank's supervisor has died; written by the process that outlives it, with what was printed."""
        self._write({"event": "death", "how": how, "time": time.time(), **facts})

    def stop(self, number: int) -> None:
        """The rank ends after a signal; the signal handler calls this, possibly in the middle of a write."""
        line = json.dumps({"event": "stop", "signal": number, "time": time.time()})
        torn = "\n" if self._lock.locked() else ""
        os.write(self._fd, f"{torn}{line}\n".encode())

    def _restored(self) -> bool:
        """Writes the file anew from memory if it does not hold what was written; says whether that was needed."""
        with self._lock:
            if self._written is None:
                return False
            content = b"".join(self._written)
            with suppress(OSError):
                if self._path.read_bytes() == content:
                    return False
            if self._path.is_dir() and not self._path.is_symlink():
                shutil.rmtree(self._path)
            self._path.parent.mkdir(parents=True, exist_ok=True)
            partial = self._path.with_name(f"{self._path.name}.{os.getpid()}")
            partial.unlink(missing_ok=True)
            partial.write_bytes(content)
            partial.replace(self._path)
            os.close(self._fd)
            self._fd = os.open(self._path, os.O_RDWR | os.O_APPEND)
            return True

    def _take_back_begin(self) -> bool:
        """Removes the last line if it begins a case; says whether it did."""
        with self._lock:
            size = os.fstat(self._fd).st_size
            last = os.pread(self._fd, LONGEST_BEGIN, max(0, size - LONGEST_BEGIN)).rstrip(b"\n").rpartition(b"\n")[2]
            if not last.startswith(b'{"event":"begin"'):
                return False
            os.ftruncate(self._fd, size - len(last) - 1)
            if self._written:
                self._written.pop()
            return True

    def _write(self, item: dict[str, Any]) -> None:
        line = (json.dumps(item, separators=(",", ":"), allow_nan=True) + "\n").encode()
        with self._lock:
            before, left = os.fstat(self._fd).st_size, line
            try:
                while left:
                    left = left[os.write(self._fd, left) :]
                if self._written is not None:
                    self._written.append(line)
            except OSError:
                os.ftruncate(self._fd, before)
                raise
