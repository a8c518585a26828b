"""Which programs of which kernel write an element of an output, found by leaving programs out.

Of a kernel's programs along one axis of its grid, only the first n are launched. The smallest n with which the element
has its usual value names the program that completes it. Kernels that ask for the number of programs share their work
by it, so on a GPU, where a smaller grid is another number, nothing is said about them.
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from functools import wraps
from pathlib import Path
from typing import Any

from torch import Tensor

from gpucheck.triton_hooks.launch_hooks import program_at_work, replace_launch, replaced_programs
from gpucheck.verify.digest import raw

SECONDS = 20.0  # spent on all elements of a case
NOBODY = "no program writes it"
ELSEWHERE = "no Triton program alone"
Element = tuple[str, tuple[int, ...]]
Outputs = dict[str, Tensor]


@dataclass(frozen=True)
class Limit:
    """Only the first programs of a kernel along one axis run."""

    kernel: str
    axis: int
    programs: int


@dataclass
class Seen:
    """How often a kernel was launched, with which grid, and whether its source asks for the number of programs."""

    launches: int = 0
    grid: tuple[int, ...] = ()
    counts_programs: bool = False


@dataclass
class Grids:
    """Watches launches and, where there is a limit, cuts them."""

    limit: Limit | None = None
    seen: dict[str, Seen] = field(default_factory=dict)  # by kernel, in the order of their first launch

    def see(self, function: Any, grid: tuple[int, ...]) -> None:
        """Takes down a launch."""
        seen = self.seen.setdefault(function.__name__, Seen())
        seen.launches, seen.grid = seen.launches + 1, grid
        seen.counts_programs = "num_programs" in Path(function.__code__.co_filename).read_text(encoding="utf-8")

    def allows(self, kernel: str, place: Sequence[int]) -> bool:
        """Whether a program runs, by its place in the grid."""
        limit = self.limit
        return limit is None or limit.kernel != kernel or place[limit.axis] < limit.programs

    def cut(self, kernel: str, grid: tuple[int, ...]) -> tuple[int, ...]:
        """The grid of the programs that run."""
        limit = self.limit
        if limit is None or limit.kernel != kernel:
            return grid
        return tuple(min(size, limit.programs) if axis == limit.axis else size for axis, size in enumerate(grid))


def find(run: Callable[[int], Outputs], elements: Sequence[Element], fills: Sequence[int], cpu: bool) -> list[str]:
    """The writer of each element in words; "" where it could not be found.

    Both passes count: what no program has written is the fill.

    Args:
        run: runs the case in memory filled with a byte and returns the outputs on the host.
        fills: what memory is filled with.
        cpu: whether the interpreter runs the kernels.
    """
    search = _Search(run, elements, fills)
    with (_interpreted if cpu else _compiled)(search.grids):
        return search.work(cpu)


class _Search:
    def __init__(self, run: Callable[[int], Outputs], elements: Sequence[Element], fills: Sequence[int]) -> None:
        self.run, self.elements, self.fills, self.end = run, elements, fills, time.monotonic() + SECONDS
        self.grids = Grids()
        self._usual: list[tuple[bytes, ...]] = []
        self._known: dict[Limit, list[bool]] = {}

    def work(self, cpu: bool) -> list[str]:
        self._usual = self._values()
        kernels = {name: seen for name, seen in self.grids.seen.items() if seen.grid}
        return [self._writer(number, kernels, cpu) for number in range(len(self.elements))]

    def _writer(self, number: int, kernels: dict[str, Seen], cpu: bool) -> str:
        if all(set(value) == {fill} for value, fill in zip(self._usual[number], self.fills, strict=True)):
            return NOBODY
        try:
            for kernel, seen in reversed(kernels.items()):
                if self._complete(Limit(kernel, 0, 0), number):
                    continue
                if seen.launches > 1 or (seen.counts_programs and not cpu):
                    return kernel
                place = [self._first(kernel, axis, size, number) for axis, size in enumerate(seen.grid)]
                return f"{kernel} {_program_id(place)} of {_program_id(seen.grid)}"
        except TimeoutError:
            return ""
        return ELSEWHERE if kernels else ""

    def _first(self, kernel: str, axis: int, size: int, number: int) -> int:
        """The place along an axis of the program that completes an element."""
        least, most = 1, size
        while least < most:
            middle = (least + most) // 2
            if self._complete(Limit(kernel, axis, middle), number):
                most = middle
            else:
                least = middle + 1
        return least - 1

    def _complete(self, limit: Limit, number: int) -> bool:
        """Whether an element has its usual value under a limit."""
        if limit not in self._known:
            if time.monotonic() > self.end:
                raise TimeoutError
            self.grids.limit = limit
            values = self._values()
            self.grids.limit = None
            self._known[limit] = [a == b for a, b in zip(values, self._usual, strict=True)]
        return self._known[limit][number]

    def _values(self) -> list[tuple[bytes, ...]]:
        """The bytes of each element, with each fill."""
        passes = []
        for fill in self.fills:
            self.grids.seen.clear()
            outputs = self.run(fill)
            passes.append([bytes(raw(outputs[name][index])) for name, index in self.elements])
        return list(zip(*passes, strict=True))


def _program_id(place: Sequence[int]) -> str:
    return f"({', '.join(map(str, place))})"


def _interpreted(grids: Grids) -> AbstractContextManager[None]:
    """Programs beyond the limit are passed over; the others do not notice."""

    def made(make: Callable[..., None]) -> Callable[..., None]:
        def making(self: Any, function: Any, *args: Any, **kwargs: Any) -> None:
            @wraps(function)
            def program(*args: Any, **kwargs: Any) -> Any:
                return function(*args, **kwargs) if grids.allows(function.__name__, program_at_work()) else None

            make(self, function, *args, **kwargs)
            program.__signature__ = inspect.signature(function)  # type: ignore[attr-defined]
            self.seen, self.fn = function, program

        return making

    def called(call: Callable[..., Any]) -> Callable[..., Any]:
        def calling(self: Any, *args: Any, **kwargs: Any) -> Any:
            grid = self.grid

            def observed(*values: Any) -> tuple[int, ...]:
                whole = grid(*values) if callable(grid) else grid
                grids.see(self.seen, tuple(whole))
                return tuple(whole)

            self.grid = observed
            return call(self, *args, **kwargs)

        return calling

    return replaced_programs(made, called)


@contextmanager
def _compiled(grids: Grids) -> Iterator[None]:
    """Launches get a smaller grid, or are left out."""

    def cut_short(launch: Callable[..., Any]) -> Callable[..., Any]:
        def run(function: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> Any:
            if warmup:
                return launch(function, *args, grid=grid, warmup=warmup, **kwargs)

            def cut(*values: Any) -> tuple[int, ...]:
                whole = tuple(grid(*values)) if callable(grid) else tuple(grid)
                grids.see(function.fn, whole)
                return grids.cut(function.fn.__name__, whole)

            return launch(function, *args, grid=cut, warmup=warmup, **kwargs)  # of no program nothing is launched

        return run

    put_back = replace_launch(cut_short)
    try:
        yield
    finally:
        put_back()
