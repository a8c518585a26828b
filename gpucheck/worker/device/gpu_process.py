"""What one process does with its GPUs: it holds one, or all of a node in threads, or all of a node by turns."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from gpucheck.model.errors import UnusableGpu, error_line
from gpucheck.worker.protocol import Reply, Request, Setup, for_one_device

if TYPE_CHECKING:
    from gpucheck.worker.device.case_pass import Library
    from gpucheck.worker.device.executor import CaseExecutor
    from gpucheck.worker.device.launch_observer import Observer
    from gpucheck.worker.device.placements import Binding


class Process(ABC):
    """Answers requests on one GPU or more."""

    @abstractmethod
    def run(self, request: Request) -> list[Reply]:
        """Runs a case on each GPU of the process; replies in the order of ``request.outputs``."""


class OneDevice(Process):
    """The usual process of a rank."""

    def __init__(self, setup: Setup, maker: Maker) -> None:
        self._executor = maker.executor(own_device(setup))
        if setup.collectives:
            from gpucheck.worker.device.joint_group import JointGroup

            one_node = setup.world_size == setup.local_ranks
            in_step = setup.conditions.in_step
            self._executor.joint_group = JointGroup(Path(setup.collectives), one_node=one_node, in_step=in_step)

    def run(self, request: Request) -> list[Reply]:
        return [self._executor.run(request)]


class ThreadPerDevice(Process):
    """All GPUs of a node, a thread for each; a case runs on all of them at once."""

    def __init__(self, setup: Setup, maker: Maker) -> None:
        self._threads = [ThreadPoolExecutor(1, f"cuda:{index}") for index in range(setup.local_ranks)]
        executors = [thread.submit(maker.executor, index) for index, thread in enumerate(self._threads)]
        self._executors = [executor.result() for executor in executors]
        for executor in self._executors[1::2]:
            executor.behind = True

    def run(self, request: Request) -> list[Reply]:
        pending = [
            thread.submit(executor.run, for_one_device(request, index))
            for index, (thread, executor) in enumerate(zip(self._threads, self._executors, strict=True))
        ]
        return [reply.result() for reply in pending]


class DeviceByDevice(Process):
    """All GPUs of a node, one after the other in the main thread."""

    def __init__(self, setup: Setup, maker: Maker) -> None:
        self._maker, self._count = maker, setup.local_ranks
        self._executors: dict[int, CaseExecutor] = {}

    def run(self, request: Request) -> list[Reply]:
        return [self._turn(index).run(for_one_device(request, index)) for index in range(self._count)]

    def _turn(self, index: int) -> CaseExecutor:
        """The executor of a GPU, whose turn it is now."""
        if index in self._executors:
            self._maker.binding.enter(index)
        else:
            self._executors[index] = self._maker.executor(index)
        return self._executors[index]


class Maker:
    """Makes the executors of a process, which share binding, library and observer."""

    def __init__(self, setup: Setup) -> None:
        from gpucheck import checks
        from gpucheck.worker.device.case_pass import Library
        from gpucheck.worker.device.launch_observer import Observer
        from gpucheck.worker.device.placements import BINDINGS
        from gpucheck.worker.launch_journal import Journal

        root, folders = Path(setup.library_root), checks.folders()
        if setup.library_root:
            folders.insert(0, root / "triton_kernels")
        if setup.engine:
            folders.append(Path(setup.engine["root"], setup.engine["name"]))
        self._turns = setup.turns
        self.binding: Binding = BINDINGS["cpu" if setup.device == "cpu" else setup.conditions.placement]()
        self.library: Library = Library(root, setup.generation)
        self.observer: Observer = Observer(
            folders,
            Journal(Path(setup.journal)),
            blocking=os.environ.get("CUDA_LAUNCH_BLOCKING") == "1",
        )
        if setup.device == "cpu":
            self.observer.install_interpreter()
        else:
            from gpucheck.triton_hooks import resource_limits

            resource_limits.install()
            self.observer.install_compiled()

    def executor(self, index: int) -> CaseExecutor:
        """The executor of a GPU, made in the thread that calls."""
        from gpucheck.worker.device.device_turns import DeviceTurns
        from gpucheck.worker.device.executor import CaseExecutor

        try:
            device = self.binding.enter(index)
        except Exception as error:
            message = error_line(error)
            raise UnusableGpu(f"torch cannot use GPU {index} of the visible ones: {message}") from error
        return CaseExecutor(self.binding, device, self.library, self.observer, DeviceTurns(self._turns))


def own_device(setup: Setup) -> int:
    """The GPU of a process that holds one, by its number on the node."""
    return other_local_rank(setup) if setup.conditions.swap == "device" else setup.local_rank


def other_local_rank(setup: Setup) -> int:
    """The rank that one swaps with."""
    return setup.partner if setup.partner >= 0 else (setup.local_rank + 1) % setup.local_ranks
