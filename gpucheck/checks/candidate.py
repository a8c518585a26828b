"""A candidate on the device under test, and what it may do beside giving right numbers."""

from __future__ import annotations

import statistics
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from types import ModuleType
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from gpucheck.checks.base import Runtime
from gpucheck.checks.torch_model import build, named, unpack, weights
from gpucheck.verify import digest

WARM_UP, REPEATS = 3, 20  # calls of a race
_muting = threading.Lock()  # kinds of kernels belong to the whole process


class Candidate:
    """``ModelNew`` with the weights of ``Model``.

    It answers other inputs first: whatever it keeps from that call is wrong for those that are judged.
    """

    def __init__(self, module: ModuleType, inputs: dict[str, Tensor], seed: int, runtime: Runtime) -> None:
        self.inputs = inputs
        self._runtime = runtime
        self._model = build(module, inputs, seed, "ModelNew").to(runtime.device)
        self._take_weights()
        self._values, self._others = unpack("input", inputs), unpack("other", inputs)
        self._real = _copies(self._values)
        self._first = self._bits(self._others)

    def _take_weights(self) -> None:
        """Gives each weight the value that ``Model`` has under its name; others stay as they were drawn.

        Both models are made under one seed, so weights that bear other names are equal where they are drawn alike.
        """
        given, own = weights(self.inputs), self._model.state_dict()
        unknown = [name for name in own if name not in given or not _alike(own[name], given[name])]
        taken = {name: self._runtime.place(own[name]) if name in unknown else given[name] for name in own}
        self._model.load_state_dict(taken, assign=True)  # so that the weights lie between guards too
        if unknown:
            self._runtime.note(f"ModelNew drew weights itself that Model does not have alike: {', '.join(unknown)}")

    def answer(self) -> dict[str, Tensor]:
        """Its outputs for the inputs that are judged."""
        return self._call(self._values)

    def weights(self) -> dict[str, Tensor]:
        """Its parameters; buffers and whatever else it holds are its own to write to, unless ``Model`` has them too."""
        return dict(self._model.named_parameters())

    def inspect(self, outputs: dict[str, Tensor]) -> None:
        """Blames what shows only beside the outputs, which are copied to the CPU."""
        answered = {name: digest.whole(output) for name, output in outputs.items()}  # further calls may overwrite them
        varies = any(_varies(output) for output in outputs.values())
        _restore(self._values, self._real)
        if self._bits(self._values) != answered:
            self._runtime.blame("repeats differ", "a second call with equal inputs gave other bits")
        _restore(self._values, self._real)
        if varies:  # what nobody wrote, or is one value everywhere, stays the same without being kept
            if answered == self._first:
                self._runtime.blame("cached", "the answer is bit for bit the one that other inputs got a call before")
            self._inspect_memory(answered)
            self._inspect_kernels(answered)
        _restore(self._values, self._real)

    def _inspect_memory(self, answered: dict[str, str]) -> None:
        """Puts the other inputs where the judged ones lie: a candidate that knows inputs by place is wrong then."""
        if not all(_alike(value, other) for value, other in zip(self._values, self._others, strict=True)):
            return
        _restore(self._values, self._others)
        if self._bits(self._values) == answered != self._first:
            self._runtime.blame("cached", "with other inputs in the same memory the answer is still the one before")

    def _inspect_kernels(self, answered: dict[str, str]) -> None:
        """Lets the kernels do nothing: an output that stays right does not come from them.

        The call before was for other inputs, so what lies in reused memory is not the answer either.
        """
        self._call(self._others)
        _restore(self._values, self._real)
        with muted() as called:
            try:
                silent = self._bits(self._values)
            except Exception:
                return  # it cannot do without them
        if called and silent == answered != self._first:
            words = "the output stays the same when its kernels do nothing: " + ", ".join(dict.fromkeys(called))
            self._runtime.blame("idle", words)

    def race(self, model: torch.nn.Module) -> None:
        """Notes the time of a call of the candidate and of ``model``, which is plain torch, on the same GPU."""
        model = model.to(self._runtime.device)
        model.load_state_dict(weights(self.inputs))
        for what, racer in (("candidate", self._model), ("reference", model)):
            self._runtime.timed(what, median_seconds(racer, self._values, self._runtime.device))

    def _call(self, values: list[Any]) -> dict[str, Tensor]:
        with torch.no_grad():
            return named(self._model(*values))

    def _bits(self, values: list[Any]) -> dict[str, str]:
        """Hashes of the outputs of a call."""
        outputs = self._call(values)
        return {name: digest.whole(output.detach().to("cpu").contiguous()) for name, output in outputs.items()}


@torch.no_grad()
def median_seconds(model: Callable[..., Any], values: list[Any], device: torch.device) -> float:
    """Median time that a GPU takes for a call, by its own clock."""
    for _ in range(WARM_UP):
        model(*values)
    stream = torch.cuda.current_stream(device)
    times = []
    for _ in range(REPEATS):
        first, last = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        first.record(stream)
        model(*values)
        last.record(stream)
        last.synchronize()
        times.append(first.elapsed_time(last) / 1000)
    return statistics.median(times)


@contextmanager
def muted() -> Iterator[list[str]]:
    """Inside, Triton kernels that this thread launches do nothing; yields the names of those."""
    from triton.runtime.interpreter import InterpretedFunction
    from triton.runtime.jit import JITFunction

    called: list[str] = []
    with _muting, ExitStack() as stack:
        for kind in (JITFunction, InterpretedFunction):
            run = _silent(kind, called)
            item = _item_of(run)
            stack.enter_context(mock.patch.object(kind, "run", run))
            stack.enter_context(mock.patch.object(kind, "__getitem__", item))
        yield called


def _silent(kind: Any, called: list[str]) -> Callable[..., Any]:
    """Stands in for ``run`` of a kind of kernel; other threads go on to launch."""
    launch, owner = vars(kind)["run"], threading.get_ident()

    def run(kernel: Any, *args: Any, **kwargs: Any) -> Any:
        if threading.get_ident() != owner:
            return launch.__get__(kernel, kind)(*args, **kwargs)
        called.append(kernel.fn.__name__)
        return None

    return run


def _item_of(run: Callable[..., Any]) -> Callable[[Any, Any], Callable[..., Any]]:
    """Stands in for ``__getitem__``, which gives what launches a kernel over a grid."""
    return lambda kernel, grid: partial(run, kernel, grid=grid, warmup=False)


def _copies(values: list[Any]) -> list[Any]:
    return [value.clone() if isinstance(value, Tensor) else value for value in values]


def _restore(values: list[Any], contents: list[Any]) -> None:
    for value, content in zip(values, contents, strict=True):
        if isinstance(value, Tensor):
            value.copy_(content)


def _alike(value: Any, other: Any) -> bool:
    if isinstance(value, Tensor):
        return isinstance(other, Tensor) and (value.shape, value.dtype) == (other.shape, other.dtype)
    return bool(value == other)


def _varies(output: Tensor) -> bool:
    """Whether an output is more than one value, NaN say, written everywhere."""
    bits = _raw(output).flatten()
    return bool((bits != bits[:1]).any())


def _raw(tensor: Tensor) -> Tensor:
    """The bits of each element, so that NaN equals itself."""
    kinds: Mapping[int, torch.dtype] = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    return tensor.view(kinds[tensor.element_size()])
