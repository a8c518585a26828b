"""What usual GPU tests would see of planted faults, beside the screen: copies of their judgement on the same outputs.

``first iteration``: each multiprocessor computes the same products again and again, and each result is compared with
its own first one. ``finite sum``: the sum of a result is neither NaN nor infinite. On a machine with a GPU
``python tests/tools/screen/peers.py SECONDS PLANTS`` prints the table for it, elsewhere for Triton's interpreter.
"""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from gpucheck.tools.screen import known_tiles
from gpucheck.tools.screen.datapaths import DATAPATHS, Datapath

NAN = 0x7FC00000  # bits of a NaN in fp32
PATH = next(path for path in DATAPATHS if path.name == "tensor bf16")


@dataclass
class Seen:
    """Who saw a fault."""

    screen: bool = False  # and on the right multiprocessor alone
    first_iteration: bool = False
    finite_sum: bool = False


def kinds(right: list[Any]) -> dict[str, Callable[[random.Random], dict[str, Any]]]:
    """The faults of the table: name -> what makes one of its plants.

    Args:
        right: the known bits of each group, of which one kind makes a NaN.
    """

    def bit(made: random.Random) -> int:
        return 1 << made.randrange(31)

    def element(made: random.Random) -> int:
        return made.randrange(right[0].size)

    def nan(made: random.Random) -> dict[str, Any]:
        place = element(made)
        return {"bits": int(right[0][place]) ^ NAN, "chance": 0.2, "element": place}

    return {
        "one bit of one element, in every tile": lambda m: {"bits": bit(m), "chance": 1.0, "element": element(m)},
        "several bits of one element, in every tile": lambda m: {
            "bits": bit(m) | bit(m) | bit(m),
            "chance": 1.0,
            "element": element(m),
        },
        "one bit of some element, in every tile": lambda m: {"bits": bit(m), "chance": 1.0},
        "one bit of some element, in 1 of 5 tiles": lambda m: {"bits": bit(m), "chance": 0.2},
        "a value that becomes NaN, in 1 of 5 tiles": nan,
    }


def seen_of(launches: Any, path: Datapath, right: list[Any], plant: Any, more: Callable[[int], bool], sm: int) -> Seen:
    """Runs a planted fault and judges every output in all three ways.

    Args:
        launches: :mod:`gpucheck.tools.screen.tile_launches`.
        more: whether to go on after so many launches.
        sm: the multiprocessor that the fault is on.
    """
    device = launches.Device(0, [plant])
    known = known_tiles.known_digests(right)
    ready = device.prepare(path, [int(each) for each in known])
    first: dict[tuple[int, int], Any] = {}
    seen, wrong, made = Seen(), set[int](), 0
    while more(made):
        launched = device.launch(ready, 1)
        came, made = device.finish(launched), made + 1
        for program in range(device.programs):
            number = (launched.start + 7 * program) % path.numbers
            owner = int(came["multiprocessors"][program])
            if came["digests"][program] != known[number]:
                wrong.add(owner)
            details = came["details"].get(program)
            bits = right[number] if details is None else details[1].astype(np.int32)
            seen.first_iteration |= not np.array_equal(first.setdefault((owner, number), bits), bits)
            with np.errstate(all="ignore"):
                seen.finite_sum |= not np.isfinite(bits.view(np.float32).sum(dtype=np.float32))
    seen.screen = wrong == {sm}
    return seen


def table(
    launches: Any, path: Datapath, more: Callable[[int], bool], plants: int, seed: int = 0
) -> dict[str, list[int]]:
    """Kind of fault -> how many of its plants the screen, the first iteration and the finite sum saw."""
    right, made = known_tiles.known_bits(path, 0), random.Random(seed)
    found = {}
    for name, make in kinds(right).items():
        counts = [0, 0, 0]
        for _ in range(plants):
            sm = made.randrange(launches.Device(0).programs)
            plant = launches.Plant(path.name, sm, seed=made.randrange(1 << 30), **make(made))
            seen = seen_of(launches, path, right, plant, more, sm)
            counts = [count + each for count, each in zip(counts, vars(seen).values(), strict=True)]
        found[name] = counts
    return found


def main(seconds: float, plants: int) -> None:
    """Prints the table; each plant runs for so many seconds."""
    import torch

    path = PATH
    if not torch.cuda.is_available():
        from gpucheck.triton_hooks import interpreter

        interpreter.install()
        path = PATH.small()
    from gpucheck.tools.screen import tile_launches

    def more(made: int) -> bool:
        nonlocal begin
        begin = time.monotonic() if not made else begin
        return time.monotonic() - begin < seconds

    begin = 0.0
    print(f"{tile_launches.Device(0).name}, {path.name}, {seconds:g} s a plant")
    for name, counts in table(tile_launches, path, more, plants).items():
        print(f"{name:45}", *(f"{count} of {plants}" for count in counts), sep=" | ")


if __name__ == "__main__":
    main(float(sys.argv[1]), int(sys.argv[2]))
