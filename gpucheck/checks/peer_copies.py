"""Copies between the devices of ranks on one node: over the link between them, through the host, symmetric memory."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed


@dataclass(frozen=True)
class Copies:
    """What one rank gives to its neighbours and gets from them: (neighbour, flight, element)."""

    source: Tensor
    received: Tensor
    neighbours: Sequence[int]
    rank: int
    synchronize: Callable[[], None]

    @property
    def place(self) -> int:
        """Which of its neighbours this rank is."""
        return self.neighbours.index(self.rank)

    def make(self, way: str) -> None:
        """Makes all copies and returns when no rank is at one any more."""
        with self.opened(way) as copy:
            copy()

    @contextmanager
    def opened(self, way: str) -> Iterator[Callable[[], None]]:
        """Gives what makes all copies of this rank, as often as wanted; at the end no rank is at one any more."""
        ways = {"pull": self._pull, "push": self._push, "staged": self._staged, "symmetric": self._symmetric}
        with ways[way]() as copy:
            yield copy
            self._meet()

    @contextmanager
    def _pull(self) -> Iterator[Callable[[], None]]:
        """Each rank reads what is for it from the memory of the others."""
        sources = self._shared(self.source)
        yield self._side_by_side(
            lambda sender, flight: (self.received[sender, flight], sources[sender][self.place, flight])
        )

    @contextmanager
    def _push(self) -> Iterator[Callable[[], None]]:
        """Each rank writes what it gives into the memory of the others."""
        places = self._shared(self.received)
        yield self._side_by_side(lambda to, flight: (places[to][self.place, flight], self.source[to, flight]))

    @contextmanager
    def _staged(self) -> Iterator[Callable[[], None]]:
        """Each rank copies to memory of the host that all ranks of the node map, and from it."""
        with self._mapped() as staged:
            fetch = self._side_by_side(lambda at, flight: (self.received[at, flight], staged[at][self.place, flight]))

            def copy() -> None:
                staged[self.place].copy_(self.source)
                self._meet()
                fetch()

            yield copy

    @contextmanager
    def _symmetric(self) -> Iterator[Callable[[], None]]:
        """Each rank reads what is for it out of torch's symmetric memory."""
        from gpucheck.model.errors import Inapplicable

        try:
            from torch.distributed import _symmetric_memory as symmetric
        except ImportError:
            raise Inapplicable("this torch has no symmetric memory") from None
        group = distributed.group.WORLD
        assert group is not None
        if len(self.neighbours) != distributed.get_world_size():
            raise Inapplicable("symmetric memory is for the ranks of one node")
        held = symmetric.empty(self.source.shape, dtype=self.source.dtype, device=self.source.device)
        handle = symmetric.rendezvous(held, group.group_name)
        held.copy_(self.source)
        self._meet()
        there = [handle.get_buffer(sender, held.shape, held.dtype) for sender in range(len(self.neighbours))]
        yield self._side_by_side(
            lambda sender, flight: (self.received[sender, flight], there[sender][self.place, flight])
        )

    def _side_by_side(self, pair: Callable[[int, int], tuple[Tensor, Tensor]]) -> Callable[[], None]:
        """What makes one copy for each neighbour and flight; each flight has a stream of its own where there are any.

        Args:
            pair: where to and where from, by place of the neighbour and flight.
        """
        device, flights = self.source.device, range(self.source.shape[1])
        pairs = [(*pair(place, flight), flight) for place in range(len(self.neighbours)) for flight in flights]
        streams = [torch.cuda.Stream(device) for _ in flights] if device.type == "cuda" else []

        def copy() -> None:
            for stream in streams:
                stream.wait_stream(torch.cuda.current_stream(device))
            for target, source, flight in pairs:
                with torch.cuda.stream(streams[flight]) if streams else nullcontext():
                    target.copy_(source, non_blocking=True)
            for stream in streams:
                torch.cuda.current_stream(device).wait_stream(stream)

        return copy

    def _meet(self) -> None:
        """Waits until the work of all ranks is done."""
        self.synchronize()
        distributed.barrier(device_ids=[self.source.device.index] if self.source.device.type == "cuda" else None)

    def _told(self, word: Any) -> list[Any]:
        """What each neighbour says."""
        words: list[Any] = [None] * distributed.get_world_size()
        distributed.all_gather_object(words, word)
        return [words[rank] for rank in self.neighbours]

    def _shared(self, tensor: Tensor) -> list[Tensor]:
        """The tensor of each neighbour, mapped into this process; its own is the tensor itself."""
        from torch.multiprocessing.reductions import reduce_tensor

        told = self._told(reduce_tensor(tensor))  # type: ignore[no-untyped-call]
        return [tensor if at == self.place else make(*given) for at, (make, given) in enumerate(told)]

    @contextmanager
    def _mapped(self) -> Iterator[list[Tensor]]:
        """Memory of the host for what each neighbour gives, which all of them map."""
        count, folder = self.source.numel(), os.environ.get("GPUCHECK_SCRATCH")
        file, name = tempfile.mkstemp(prefix="peer-", dir=folder if folder and Path(folder).is_dir() else None)
        os.close(file)
        try:
            os.truncate(name, count * self.source.element_size())
            names = self._told(name)
            yield [
                torch.from_file(each, shared=True, size=count, dtype=self.source.dtype).view(self.source.shape)
                for each in names
            ]
        finally:
            Path(name).unlink(missing_ok=True)
