"""Sees every Triton launch of this process: where it ran, where its arguments live, what was compiled for it."""

from __future__ import annotations

import os
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from traceback import walk_tb
from types import FrameType
from typing import Any

import torch

from gpucheck.host import cuda_driver
from gpucheck.model.record import LargeTensor, Launch
from gpucheck.triton_hooks.compiled_kernel import note_making
from gpucheck.triton_hooks.launch_hooks import replace_compilation, replace_launch, watch_tuning
from gpucheck.worker.launch_journal import Journal

CURRENT_STREAM = torch.cuda.current_stream  # whatever code under test puts in its place
LAUNCH_OPTIONS = ("num_warps", "num_stages")
LARGEST = 2**31 - 1  # what a signed offset of 32 bits reaches, in elements or bytes

Key = tuple[Any, ...]


class Log:
    """What one thread launched and compiled since it started to look."""

    def __init__(self) -> None:
        self.launches: dict[Key, Launch] = {}
        self.counts: dict[Key, int] = {}
        self.compile_seconds = 0.0
        self.compiled = 0  # kernels that no cache had
        self.tried: Counter[str] = Counter()  # kernel -> configurations that its autotuner tried

    def add(self, others: Sequence[Log]) -> None:
        """Takes over what other threads saw side by side; their compilers took as long as the slowest."""
        for other in others:
            for key, launch in other.launches.items():
                self.launches.setdefault(key, launch)
                self.counts[key] = self.counts.get(key, 0) + other.counts[key]
            self.tried.update(other.tried)
        self.compile_seconds += max(other.compile_seconds for other in others)
        self.compiled += sum(other.compiled for other in others)


class Observer:
    """Collects launches and compile time between :meth:`start` and :meth:`take`, for each thread by itself.

    Args:
        roots: folders whose source is worth naming as the place of a call: the library's, our own kernels'.
        journal: where each launch is written down before it is made.
        blocking: launches return when they have ended.
    """

    def __init__(self, roots: Sequence[Path] = (), journal: Journal | None = None, *, blocking: bool = False) -> None:
        self.journal, self._blocking = journal, blocking
        self._roots = [os.path.join(path, "") for root in roots for path in (str(root), os.path.realpath(root))]
        self._thread = threading.local()

    @property
    def log(self) -> Log:
        """What this thread has seen."""
        try:
            log: Log = self._thread.log
        except AttributeError:
            log = self._thread.log = Log()
        return log

    @property
    def tuned(self) -> bool:
        """Whether an autotuner tried configurations in this thread since :meth:`start`."""
        return bool(self.log.tried)

    @property
    def compile_seconds(self) -> float:
        """Seconds this thread spent in the compiler since :meth:`start`."""
        return self.log.compile_seconds

    def start(self) -> None:
        """Forgets what was seen."""
        self._thread.log = Log()

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Inside, nothing is counted in this thread."""
        log = self.log
        self._thread.log = Log()
        try:
            yield
        finally:
            self._thread.log = log

    def take(self) -> list[Launch]:
        """The distinct launches seen since :meth:`start`, in the order of their first occurrence."""
        log = self.log
        return [
            replace(launch, count=log.counts[key], tried=log.tried[launch.kernel])
            for key, launch in log.launches.items()
        ]

    def add(self, key: Key, describe: Callable[[], Launch]) -> None:
        """Counts one launch; only the first of its key is described, since launches must stay cheap."""
        log = self.log
        if key in log.counts:
            log.counts[key] += 1
            return
        log.launches[key], log.counts[key] = describe(), 1

    def install_interpreter(self) -> None:
        """Observes launches that Triton's interpreter runs."""
        from gpucheck.triton_hooks.interpreter.launch import finished, observers

        def observe(name: str, arguments: dict[str, Any]) -> None:
            self._begin(name)
            devices, configured = _devices(tuple(arguments.values())), configuration((), (), arguments)
            self.add(
                (name, *devices, *configured.items()),
                lambda: Launch(
                    kernel=name,
                    count=1,
                    device=None,
                    argument_devices=devices,
                    stream=None,
                    hash="",
                    arch="interpreter",
                    shared=0,
                    warps=0,
                    grid=[],
                    source=self.source(),
                    large=large_tensors((), (), arguments),
                    configuration=configured,
                ),
            )

        observers.append(observe)
        finished.append(self.settled)
        watch_tuning(self._tried)

    def _tried(self, kernel: str) -> None:
        """Counts a configuration that an autotuner tries: each is launched on the tensors of the call."""
        self.log.tried[kernel] += 1

    def settled(self) -> None:
        """Says that everything launched has ended."""
        if self.journal is not None:
            self.journal.settled()

    def _begin(self, name: str) -> None:
        if self.journal is not None:
            self.journal.launch(name, self.source())

    def install_compiled(self) -> None:
        """Observes launches, refused ones too, and compilations of this process; works from Triton 3.4 on."""
        replace_launch(self._watched)
        watch_tuning(self._tried)
        replace_compilation(self._timed)

    def _watched(self, launch: Callable[..., Any]) -> Callable[..., Any]:
        from gpucheck.triton_hooks import resource_limits

        def run(function: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> Any:
            blocks: list[int] = []
            if not warmup:
                self._begin(function.fn.__name__)
            try:
                compiled = launch(function, *args, grid=_noted(grid, blocks), warmup=warmup, **kwargs)
            except Exception as error:
                if not warmup:
                    with suppress(Exception):  # the error itself matters more
                        self._see(function, None, args, kwargs, blocks, f"{type(error).__name__}: {error}")
                explained = resource_limits.explained(error, function.fn.__name__, blocks)
                if explained is not None:
                    raise explained from error
                raise
            if not warmup and compiled is not None:
                self._see(function, compiled, args, kwargs, blocks, "")
                if self._blocking and self.journal is not None:
                    self.journal.returned()
            return compiled

        return run

    def _timed(self, build: Callable[..., Any]) -> Callable[..., Any]:
        def compile_timed(source: Any, *args: Any, **kwargs: Any) -> Any:
            begin, made = perf_counter(), list[bool]()
            with suppress(AttributeError):  # of a Triton that compiles in another way: then nobody counts
                note_making(source, made)
            try:
                return build(source, *args, **kwargs)
            finally:
                self.log.compile_seconds += perf_counter() - begin
                self.log.compiled += bool(made)

        return compile_timed

    def _see(self, function: Any, compiled: Any, args: Any, kwargs: Any, blocks: list[int], refused: str) -> None:
        """Takes down a launch on the current device; touches no device and changes none."""
        device = torch.cuda.current_device()
        stream = torch._C._cuda_getCurrentRawStream(device)
        devices = _devices((*args, *kwargs.values()))
        key = (id(function), getattr(compiled, "hash", ""), device, stream, refused, *devices, *blocks)

        def describe() -> Launch:
            names = getattr(function, "arg_names", ())
            metadata = getattr(compiled, "metadata", None)
            target = getattr(metadata, "target", None)
            return Launch(
                kernel=function.fn.__name__,
                count=1,
                device=device,
                argument_devices=devices,
                stream=stream,
                hash=str(compiled.hash)[:16] if compiled is not None else "",
                arch="" if target is None else f"sm_{target.arch}" if target.backend == "cuda" else str(target.arch),
                shared=int(getattr(metadata, "shared", 0)),
                warps=int(getattr(metadata, "num_warps", 0)),
                grid=[int(n) for n in blocks],
                source=self.source(),
                context=cuda_driver.context_device(),
                refused=refused.partition("\n")[0],
                large=large_tensors(names, args, kwargs),
                configuration=configuration(names, args, kwargs),
            )

        self.add(key, describe)

    def source(self) -> str:
        """``file:line`` of the innermost frame in one of the roots, its path relative to that root."""
        frame: FrameType | None = sys._getframe(1)
        while frame is not None:
            if place := self._place(frame.f_code.co_filename, frame.f_lineno):
                return place
            frame = frame.f_back
        return ""

    def raised_at(self, error: BaseException) -> str:
        """``file:line`` of the innermost frame in one of the roots that an exception came through."""
        frames = [(frame.f_code.co_filename, line) for frame, line in walk_tb(error.__traceback__)]
        return next((place for file, line in reversed(frames) if (place := self._place(file, line))), "")

    def _place(self, file: str, line: int) -> str:
        return next((f"{file[len(root) :]}:{line}" for root in self._roots if file.startswith(root)), "")


def _noted(grid: Any, blocks: list[int]) -> Any:
    """A grid like the given one; what it comes to is put into ``blocks``, before the launch where it is a function."""
    if not callable(grid):
        blocks[:] = grid if isinstance(grid, (tuple, list)) else ()
        return grid

    def computed(meta: Any) -> Any:
        chosen = grid(meta)
        blocks[:] = chosen if isinstance(chosen, (tuple, list)) else ()
        return chosen

    return computed


def large_tensors(names: Sequence[str], args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[LargeTensor]:
    """The tensors among the arguments of a launch that span more than 2^31 - 1 elements or bytes.

    Args:
        names: of the kernel's parameters, as far as they are known.
    """
    named = {names[place] if place < len(names) else f"argument {place}": value for place, value in enumerate(args)}
    found = []
    for name, value in {**named, **kwargs}.items():
        tensor = _tensor(value)
        if tensor is None or not tensor.numel():
            continue
        extent = 1 + sum((size - 1) * abs(step) for size, step in zip(tensor.shape, tensor.stride(), strict=True))
        if extent * tensor.element_size() > LARGEST:
            dtype = str(tensor.dtype).removeprefix("torch.")
            shape, stride = list(tensor.shape), list(tensor.stride())
            found.append(LargeTensor(name, dtype, tensor.element_size(), shape, stride))
    return found


def configuration(names: Sequence[str], args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, int]:
    """What a launch says of how to compute: its integer arguments in capital letters, its warps and stages.

    Args:
        names: of the kernel's parameters, as far as they are known.
    """
    named = {**dict(zip(names, args, strict=False)), **kwargs}
    return {
        name: value
        for name, value in named.items()
        if (name.isupper() or name in LAUNCH_OPTIONS) and type(value) is int
    }


def _tensor(argument: Any) -> torch.Tensor | None:
    """The tensor that an argument is, or that a descriptor or wrapper holds."""
    if isinstance(argument, torch.Tensor):
        return argument
    held = (getattr(argument, name, None) for name in ("base", "data"))
    return next((value for value in held if isinstance(value, torch.Tensor)), None)


def _devices(arguments: tuple[Any, ...]) -> list[str]:
    """The distinct devices of tensor arguments, those inside tensor descriptors included."""
    found = {str(device) for device in _each_device(arguments)}
    return sorted(found)


def _each_device(arguments: Any) -> Iterator[Any]:
    for argument in arguments:
        if isinstance(argument, (tuple, list)):
            yield from _each_device(argument)
        elif (tensor := _tensor(argument)) is not None:
            yield tensor.device


@contextmanager
def kernel_clock(device: torch.device) -> Iterator[list[float]]:
    """Appends the seconds the device took for what is launched inside; wall time on the CPU."""
    seconds: list[float] = []
    if device.type != "cuda":
        begin = perf_counter()
        yield seconds
        seconds.append(perf_counter() - begin)
        return
    first, last = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    first.record(CURRENT_STREAM(device))
    yield seconds
    last.record(CURRENT_STREAM(device))
    last.synchronize()
    seconds.append(first.elapsed_time(last) / 1000)
