"""Judges the digests of one datapath of one GPU on the CPU, and counts them by multiprocessor."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from gpucheck.model.screened import WrongMultiprocessor
from gpucheck.tools.screen.datapaths import Datapath
from gpucheck.tools.screen.known_tiles import Array

STRIDE = 7  # by which neighbouring programs are apart in the pool, as in the kernels
MOST_BITS = 4  # wrong elements of a multiprocessor that are told
WORD = 0xFFFFFFFF


@dataclass
class Tally:
    """What came of one datapath so far.

    Args:
        known: the right digest of each group of the pool, int64.
        right: the right bits of each group; empty where nobody knows them.
    """

    path: Datapath
    known: Array
    right: list[Array]
    digests: Counter[int] = field(default_factory=Counter)  # of each multiprocessor
    wrong: Counter[int] = field(default_factory=Counter)
    seconds: float = 0.0
    launches: int = 0
    _seen: dict[int, WrongMultiprocessor] = field(default_factory=dict)

    def take(
        self, header: Mapping[str, Any], digests: bytes, details: Sequence[bytes], state: Mapping[str, Any]
    ) -> None:
        """Judges a launch.

        Args:
            header: of its message, as :mod:`gpucheck.tools.screen.screen_process` sends it.
            details: int64 bits of the groups that the header names.
            state: temperature and clock of the GPU.
        """
        groups, owners = header["groups"], header["multiprocessors"]
        got = np.frombuffer(digests, np.int64).reshape(len(owners), groups)
        first = header["start"] + STRIDE * np.arange(len(owners))
        numbers = (first[:, None] + np.arange(groups)) % self.path.numbers
        differing = (got != self.known[numbers]).sum(1).tolist()
        self.seconds += header["seconds"]
        self.launches += 1
        for number, wrong in zip(owners, differing, strict=True):
            self.digests[number] += groups
            if wrong:
                self.wrong[number] += wrong
                self._seen.setdefault(number, WrongMultiprocessor(number, 0, 0, **state))
        for (program, group), bits in zip(header["details"], details, strict=True):
            if not self._seen.get(owners[program], _TOLD).bits:
                self._tell(owners[program], int(numbers[program, group]), np.frombuffer(bits, np.int64))

    def _tell(self, owner: int, number: int, got: Array) -> None:
        """Keeps which bits of a wrong group were wrong."""
        if self.path.kernel == "walk":
            flipped = got & WORD  # the kernel keeps what differs
        elif self.right:
            right = self.right[number]
            flipped = (got ^ right.astype(np.int64)) & (WORD if right.dtype == np.int32 else -1)
        else:
            return
        wrong = flipped[np.nonzero(flipped)]
        known = self._seen.get(owner)
        if known is not None and wrong.size:
            bits = [f"{int(each) & 0xFFFFFFFFFFFFFFFF:#x}" for each in wrong[:MOST_BITS]]
            self._seen[owner] = WrongMultiprocessor(
                owner, 0, 0, bits, int(wrong.size), known.temperature, known.sm_clock
            )

    @property
    def tiles(self) -> dict[int, int]:
        """Tiles that each multiprocessor ran."""
        return {number: count * self.path.tiles for number, count in sorted(self.digests.items())}

    def wrong_multiprocessors(self) -> list[WrongMultiprocessor]:
        """Those that gave a wrong digest."""
        return [
            WrongMultiprocessor(
                number, wrong, self.digests[number], seen.bits, seen.elements, seen.temperature, seen.sm_clock
            )
            for number, wrong in sorted(self.wrong.items())
            for seen in (self._seen[number],)
        ]


_TOLD = WrongMultiprocessor(-1, 0, 0, ["told"])
