"""One GPU under screen: buffers, launches of a known length, and what came of them; judges nothing.

A launch runs on every multiprocessor at once, one program on each, and lasts about LAUNCH seconds, so that another
process never waits longer for the GPU. In the interpreter the number of a program stands for its multiprocessor.
"""

from __future__ import annotations

import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from triton.runtime.errors import OutOfResources

from gpucheck.tools.screen import known_tiles
from gpucheck.tools.screen.datapaths import PANELS, POOL, Datapath
from gpucheck.tools.screen.kernels import arithmetic_kernels, memory_kernels, tensor_core_kernel

LAUNCH = 0.02  # s
TIMED = 8  # groups of the launch that is timed
MOST_GROUPS = 4096  # of a launch
STAND_INS = 4  # multiprocessors of the interpreter
STAGES = {"float64": 3}  # of a product's pipeline; others have 4, and fewer where shared memory is short
KERNELS = {
    "tensor_core": tensor_core_kernel.tensor_core,
    "chain": arithmetic_kernels.chain,
    "walk": memory_kernels.walk,
    "atomics": memory_kernels.atomics,
}


@dataclass(frozen=True)
class Plant:
    """A fault that a self-test makes."""

    path: str
    sm: int
    bits: int  # to flip, in one element of a group
    chance: float  # of a tile
    seed: int = 0
    element: int = -1  # of a group, always the same one; -1: any

    def of_group(self, path: Datapath) -> float:
        """The chance that some tile of a group is wrong."""
        return float(1 - (1 - self.chance) ** path.tiles)


@dataclass
class Buffers:
    """What one launch writes; two are in use in turn."""

    digests: Tensor
    details: Tensor
    wrong: Tensor
    multiprocessors: Tensor


@dataclass
class Ready:
    """A datapath that has compiled."""

    path: Datapath
    arguments: list[Tensor]
    options: dict[str, Any]
    expected: Tensor
    plant: Tensor
    groups: int = 1  # of a launch of LAUNCH seconds
    tile_seconds: float = 0.0  # that a multiprocessor takes for a tile


@dataclass
class Launched:
    """A launch that may still run."""

    ready: Ready
    buffers: Buffers
    start: int
    groups: int
    began: Any
    ended: Any


class Device:
    """The device that is current in this process, or the interpreter."""

    def __init__(self, seed: int, plants: Sequence[Plant] = ()) -> None:
        self.seed, self._plants = seed, {plant.path: plant for plant in plants}
        self.interpreted = not torch.cuda.is_available()
        self.device = torch.device("cpu" if self.interpreted else "cuda")
        properties = None if self.interpreted else torch.cuda.get_device_properties(0)
        self.programs = properties.multi_processor_count if properties else STAND_INS
        self.capability = (properties.major, properties.minor) if properties else (9, 0)
        self.name = properties.name if properties else "Triton interpreter"
        self.uuid = f"GPU-{properties.uuid}" if properties else ""
        self._copies = None if self.interpreted else torch.cuda.Stream()  # results are read while the next launch runs
        self._count = 0
        self._memory: Tensor | None = None
        self._buffers: list[Buffers] = []

    def touch(self) -> None:
        """Makes this process one of those on the GPU."""
        torch.zeros(1, device=self.device)

    def prepare(self, path: Datapath, expected: Sequence[int]) -> Ready:
        """Compiles the kernel of a datapath and finds how many groups of tiles fill a launch.

        Args:
            expected: the right digest of each group; empty where nobody promises them: then most programs are right.
        """
        arguments, options = self._arguments(path)
        plant = self._plants.get(path.name)
        options |= {"PLANTED": plant is not None, "STAND_IN": self.interpreted}
        known = torch.tensor(list(expected) or [0] * path.numbers, dtype=torch.int64, device=self.device)
        limit = int(plant.of_group(path) * 2**32) if plant else 0
        planted = [plant.sm, plant.bits, limit, plant.seed, plant.element] if plant else [-1, 0, 0, 0, -1]
        ready = Ready(path, arguments, options, known, torch.tensor(planted, dtype=torch.int64, device=self.device))
        self._compile(ready)
        groups = 1 if self.interpreted else TIMED
        seconds = max(self.finish(self.launch(ready, groups))["seconds"] / groups, 1e-6)
        ready.tile_seconds = seconds / path.tiles
        if not self.interpreted:
            ready.groups = max(1, min(MOST_GROUPS, int(LAUNCH / seconds)))
        if not expected:
            ready.expected.copy_(self._agreed(ready))
        return ready

    def _compile(self, ready: Ready) -> None:
        """Launches once, with as many stages as fit into shared memory."""
        if not self.interpreted:
            ready.options |= {"num_warps": ready.path.warps, "num_stages": STAGES.get(ready.path.format, 4)}
        while True:
            try:
                self.finish(self.launch(ready, 1))
                return
            except OutOfResources:
                if ready.options["num_stages"] == 1:
                    raise
                ready.options["num_stages"] -= 1

    def launch(self, ready: Ready, groups: int = 0) -> Launched:
        """Starts a launch and returns at once."""
        path, groups = ready.path, groups or ready.groups
        buffers = self._buffer(path, groups)
        buffers.digests.zero_()
        buffers.wrong.fill_(-1)
        if plant := self._plants.get(path.name):
            ready.plant[3] = random.Random(plant.seed * 1_000_003 + self._count).getrandbits(32)
        began: Any = None if self.interpreted else torch.cuda.Event(True)
        ended: Any = None if self.interpreted else torch.cuda.Event(True)
        start = self._count * 5 % path.numbers
        self._count += 1
        if began is None:
            began = time.perf_counter()
        else:
            began.record()
        KERNELS[path.kernel][(self.programs,)](
            *ready.arguments,
            results=(
                *(buffers.digests, ready.expected, buffers.details),
                *(buffers.wrong, ready.plant, buffers.multiprocessors),
            ),
            groups=groups,
            start=start,
            **ready.options,
        )
        if ended is None:
            ended = time.perf_counter()
        else:
            ended.record()
        return Launched(ready, buffers, start, groups, began, ended)

    def finish(self, launched: Launched) -> dict[str, Any]:
        """Waits for a launch: seconds, digests (programs, groups), multiprocessors, and details of wrong groups."""
        buffers, programs, groups = launched.buffers, self.programs, launched.groups
        if self.interpreted:
            seconds = launched.ended - launched.began
        else:
            launched.ended.synchronize()
            seconds = launched.began.elapsed_time(launched.ended) / 1e3
        elements = launched.ready.path.elements
        with torch.cuda.stream(self._copies):  # None: of the CPU, where there is nothing to choose
            wrong = buffers.wrong.cpu().tolist()
            return {
                "seconds": seconds,
                "digests": buffers.digests[: programs * groups].cpu().numpy().copy(),
                "multiprocessors": buffers.multiprocessors.cpu().numpy().copy(),
                "details": {
                    program: (group, buffers.details[program * elements : (program + 1) * elements].cpu().numpy())
                    for program, group in enumerate(wrong)
                    if group >= 0
                },
            }

    def _agreed(self, ready: Ready) -> Tensor:
        """The digest of each group that most programs gave."""
        path, groups = ready.path, ready.path.numbers
        launched = self.launch(ready, groups)
        digests = self.finish(launched)["digests"].reshape(self.programs, groups)
        numbers = [[(launched.start + g + 7 * p) % path.numbers for g in range(groups)] for p in range(self.programs)]
        found: Mapping[int, list[int]] = {number: [] for number in range(path.numbers)}
        for program, row in enumerate(numbers):
            for group, number in enumerate(row):
                found[number].append(int(digests[program, group]))
        return torch.tensor([max(set(of), key=of.count) for of in found.values()], dtype=torch.int64)

    def _arguments(self, path: Datapath) -> tuple[list[Tensor], dict[str, Any]]:
        """Operands or memory of a kernel, and its constants."""
        if path.kernel == "tensor_core":
            a, b = (self._panels(each, path) for each in known_tiles.operands(path, self.seed))
            sizes = dict(zip(("BLOCK_M", "BLOCK_N", "BLOCK_K"), path.block, strict=True))
            precision = "ieee" if path.format == "float64" else "tf32"
            return [a, b], {"K": path.k, "POOL_A": PANELS, "POOL_B": PANELS, "PRECISION": precision, **sizes}
        options = {"POOL": POOL, "LANES": path.lanes, "STEPS": path.steps}
        if path.kernel == "chain":
            return [], {"TILE": getattr(arithmetic_kernels, path.function), **options}
        words = self.programs * path.words
        if self._memory is None or self._memory.numel() < words:
            self._memory = torch.zeros(words, dtype=torch.int32, device=self.device)
        return [self._memory], options

    def _panels(self, values: Any, path: Datapath) -> Tensor:
        dtype = getattr(torch, path.format)
        numbers = torch.from_numpy(values)
        held = numbers.to(dtype)
        assert torch.equal(held.to(torch.float64), numbers), f"{path.name}: an operand does not fit its format"
        return held.to(self.device).contiguous()

    def _buffer(self, path: Datapath, groups: int) -> Buffers:
        """The buffers whose turn it is, large enough."""
        turn = self._count % 2
        details, digests = self.programs * path.elements, self.programs * groups
        while len(self._buffers) <= turn:
            self._buffers.append(Buffers(*(torch.zeros(0) for _ in range(4))))
        held = self._buffers[turn]
        if held.digests.numel() < digests:
            held.digests = torch.zeros(digests, dtype=torch.int64, device=self.device)
        if held.details.numel() < details:
            held.details = torch.zeros(details, dtype=torch.int64, device=self.device)
        if not held.wrong.numel():
            held.wrong = torch.zeros(self.programs, dtype=torch.int32, device=self.device)
            held.multiprocessors = torch.zeros(self.programs, dtype=torch.int32, device=self.device)
        return held
