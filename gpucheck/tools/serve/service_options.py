"""What a service was started with, and what one evaluation may take."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

MIB, GIB = 1 << 20, 1 << 30
LOOPBACK = ("127.0.0.1", "::1", "localhost")
PORT = 18188  # where clients of TritonForge look
STATE = "serve-{port}"  # folder of a service in the state folder of the user


@dataclass(frozen=True)
class Limits:
    """What one evaluation may take; 0 stands for no limit."""

    seconds: float = 600.0  # wall time from its start; a request may ask for less
    host_memory: int = 0  # bytes of all its processes together
    device_memory: int = 0  # bytes on its device
    processes: int = 256  # at one time
    output: int = 16 * MIB  # bytes that its processes print
    files: int = 4 * GIB  # bytes in its scratch folder


@dataclass(frozen=True)
class ServiceOptions:
    """The options of ``gpucheck serve``."""

    state: Path  # folder with the queue and the scratch folders
    host: str = "127.0.0.1"
    port: int = PORT
    token: str = ""  # "": none is asked for
    limits: Limits = field(default_factory=Limits)
    share: int = 2  # evaluations on one device while only correctness is asked
    queue: int = 1000  # tasks that may wait
    body: int = 4 * MIB  # bytes of a request
    grace: float = 30.0  # s that running evaluations have after SIGTERM
    keep: int = 10_000  # finished tasks and answers that stay on disk

    @property
    def local(self) -> bool:
        """Whether only this machine can connect."""
        return self.host in LOOPBACK


def default_state(port: int) -> Path:
    """The folder of the service of a port, which is the same after a restart."""
    home = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local/state"
    return Path(home) / "gpucheck" / STATE.format(port=port)


def host_memory() -> int:
    """Bytes of memory that this machine, or the control group of this process, has.

    Returns:
        0 where neither says.
    """
    from gpucheck.host.control_group import memory_limit

    try:
        physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (OSError, ValueError):
        physical = 0
    return min(filter(None, (physical, (memory_limit() or (0, 0))[0])), default=0)
