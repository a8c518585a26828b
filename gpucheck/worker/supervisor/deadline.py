"""How long a process may take to answer: time in which others kept it from a processor does not count."""

from __future__ import annotations

import time

from gpucheck.host.processes import starved, state_of

STOPPED = 10.0  # s within which a process that a signal stopped must continue
MOST_STARVED = 3.0  # deadlines that a process may wait for a processor without that being counted


class Deadline:
    """So many seconds from now on, for one process: a busy machine makes no hang."""

    def __init__(self, pid: int, seconds: float) -> None:
        self._pid, self._seconds = pid, seconds
        self._begin = self._going = time.monotonic()
        self._starved = starved(pid)

    @property
    def left(self) -> float:
        """Seconds that it still has; at most 0 once it is overdue."""
        kept_waiting = min(starved(self._pid) - self._starved, MOST_STARVED * self._seconds)
        return self._begin + self._seconds + kept_waiting - time.monotonic()

    @property
    def past(self) -> bool:
        """Whether even a process that got no processor at all has had its time."""
        return time.monotonic() - self._begin > (1 + MOST_STARVED) * self._seconds

    def stopped(self) -> bool:
        """Whether a signal has stopped the process for good; to be asked again and again while it is waited for."""
        if state_of(self._pid) != "T":
            self._going = time.monotonic()
        return time.monotonic() - self._going > STOPPED
