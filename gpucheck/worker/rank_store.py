"""The store in which the ranks of a run find each other: torchrun's agent on node 0 holds it, and outlives them all."""

from __future__ import annotations

import os
from datetime import timedelta
from typing import Any


def connected(name: str, timeout: timedelta) -> Any:
    """A part of the store that nobody else uses; its port is one that the system chose.

    Args:
        timeout: of each operation that waits.
    """
    from torch import distributed

    c10d: Any = distributed
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    shared = os.environ.get("TORCHELASTIC_USE_AGENT_STORE", "True") == "True"
    holds = not shared and os.environ["RANK"] == "0" and name == BOARD
    store = c10d.TCPStore(host, port, is_master=holds, timeout=timeout, wait_for_workers=False)
    return c10d.PrefixStore(f"gpucheck/{name}", store)


BOARD = "board"
"""The part in which supervisors leave each other word; rank 0's holds the store where torchrun's agent does not."""
