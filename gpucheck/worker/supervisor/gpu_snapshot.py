"""What the driver says of the GPUs of a node: how they add up, and evidence for a rank that is slower than others."""

from __future__ import annotations

import os
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from gpucheck.host.nvidia_smi import LIMIT as LISTING_LIMIT
from gpucheck.launch.gpus import ARCHITECTURES, FREE_MEMORY
from gpucheck.model.plan import Plan
from gpucheck.records.writer import RecordWriter

if TYPE_CHECKING:
    from gpucheck.verify.bounds import Arithmetic

LIMIT = 5.0  # s that nvidia-smi gets to answer
UNTOLD = "GPUs that nvidia-smi does not describe"


class Gpus:
    """Asks once, from the first rank of a node for all of them, beside everything else; no answer is no evidence."""

    def __init__(self, plan: Plan, rank: int, local_rank: int, writer: RecordWriter) -> None:
        self._first_rank, self._ranks, self._writer = rank, plan.nproc, writer
        self._wanted = plan.device == "cuda" and plan.world_size > 1 and local_rank == 0
        self._asking: threading.Thread | None = None

    def start(self) -> None:
        """Starts to ask, and returns at once."""
        if self._wanted and self._asking is None:
            self._asking = threading.Thread(target=self._ask, daemon=True)
            self._asking.start()

    def close(self) -> None:
        """Waits until what was asked for is written, or given up."""
        if self._asking is not None:
            self._asking.join(LIMIT + 1)

    def _ask(self) -> None:
        from gpucheck.host.gpu_state import snapshot
        from gpucheck.host.node_gpus import places

        with suppress(Exception):
            gpus = snapshot(os.environ, LIMIT).gpus
            used = places([(str(gpu.index), gpu.uuid) for gpu in gpus])
            for local_rank, place in enumerate(used[: self._ranks]):
                gpu = gpus[place]
                self._writer.gpu(
                    self._first_rank + local_rank,
                    uuid=gpu.uuid,
                    sm_clock=gpu.sm_clock,
                    sm_clock_max=gpu.sm_clock_max,
                    temperature=gpu.temperature,
                    throttle=list(gpu.throttle),
                )


def free_memory(scratch: Path, local_rank: int) -> int:
    """Bytes that were free on a rank's GPU when the run began; 0 if it takes one process, or while nobody knows."""
    try:
        return int((scratch / FREE_MEMORY).read_text().split()[local_rank])
    except (OSError, IndexError):
        return 0


class Adders:
    """How the devices of this node add up, all of them together: references are made once for all its ranks.

    Without a word about the GPUs the bounds are the widest of all known ones, and their name says so.
    """

    def __init__(self, plan: Plan, scratch: Path, limit: float = LISTING_LIMIT) -> None:
        self._interpreted, self._file, self._limit = plan.device == "cpu", scratch / ARCHITECTURES, limit
        self._lock = threading.Lock()
        self._found: Arithmetic | None = None

    def arithmetic(self) -> Arithmetic:
        """Waits for the launcher's word where it is not there yet."""
        from gpucheck.verify.bounds import arithmetic

        with self._lock:
            if self._found is None:
                self._found = arithmetic(["interpreter"] if self._interpreted else self._architectures() or [UNTOLD])
            return self._found

    def _architectures(self) -> list[str]:
        deadline = time.monotonic() + self._limit
        while not self._file.exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        return self._file.read_text().split() if self._file.exists() else []
