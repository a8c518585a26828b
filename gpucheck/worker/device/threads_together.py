"""Threads that start together, so that what is not safe among them shows."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


def at_once(work: Callable[[int], T], count: int) -> list[T]:
    """Runs ``work(0)`` to ``work(count - 1)`` in threads that are let go at once.

    Raises:
        Exception: what the first of them raised, in the order of their numbers, after all have ended.
    """
    gate = threading.Barrier(count)

    def enter(number: int) -> T:
        gate.wait()
        return work(number)

    with ThreadPoolExecutor(count, "launcher") as pool:
        futures = [pool.submit(enter, number) for number in range(count)]
    return [future.result() for future in futures]
