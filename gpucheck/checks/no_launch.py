"""Host code of a case without a launch: a runtime on the CPU, and a stand-in for the GPU that it compiles for."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from importlib import import_module
from mmap import mmap
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpucheck.checks.on_use import torch
from gpucheck.model.record import EnginePart
from gpucheck.model.vocabulary import ViolationKind
from gpucheck.triton_hooks.targets import Target

if TYPE_CHECKING:
    from torch import Tensor

    from gpucheck.triton_hooks.interpreter.stand_in_driver import StandInDevice


class CompileRuntime:
    """The :class:`gpucheck.checks.base.Runtime` of compiling: tensors lie on the CPU and nothing watches them."""

    def __init__(self, root: str, generation: str) -> None:
        self.device = torch.device("cpu")
        self._root, self._generation = root, generation
        self._library: Any = None

    def place(self, tensor: Any, name: str = "") -> Any:
        return tensor

    def synchronize(self) -> None:
        """Nothing is launched that one would wait for."""

    def report_violation(self, kind: ViolationKind, detail: str) -> None:
        """Violations are for runs to judge."""

    def note(self, text: str) -> None:
        """Nothing is told of how outputs came to be."""

    def engine_part(self, part: EnginePart) -> None:
        """Nothing is computed by an engine."""

    @property
    def library(self) -> Any:
        """The adapter, loaded at first use."""
        if self._library is None:
            from gpucheck.library import adapters

            self._library = _FewWeights(adapters.load(Path(self._root), self._generation))
        return self._library


class _FewWeights:
    """An adapter that lays out one weight of each form, and of many experts two.

    Compilers do not look at values, and layouts take seconds, and gigabytes of the host.
    """

    def __init__(self, adapter: Any) -> None:
        self._adapter = adapter
        self._weights: dict[Any, Any] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._adapter, name)

    def weight(self, kind: str, data: Any, scale: Any, layout: str, place: Any) -> Any:
        """:meth:`gpucheck.library.adapters.base.Adapter.weight`."""
        form = (kind, layout, *(part for held in (data, scale) if held is not None for part in _form(held)))
        if form not in self._weights:
            large = kind.startswith("mx") and data.ndim == 3 and len(data) > 2 and data.nbytes >= LARGE
            made = self._of_two(kind, data, scale, layout, place) if large else None
            self._weights[form] = made or self._adapter.weight(kind, data, scale, layout, place)
        return self._weights[form]

    def _of_two(self, kind: str, data: Any, scale: Any, layout: str, place: Any) -> Any:
        """A weight of many experts with the layout of two, in memory that holds nothing; None where that is no layout.

        Args:
            data: (E, K, N).
        """
        experts, own = len(data), layout != "strided"
        few = self._adapter.weight(kind, data[:2].clone(), scale[:2].clone(), layout, place)  # which keep no others

        def enlarged(tensor: Any) -> Any:
            held = tensor.storage.data
            zeros = _zeros((experts, *held.shape[1:]), held.stride(), held.dtype)
            shape = [experts, *tensor.shape[1:]]
            return self._adapter.wrapped(zeros, shape, tensor.dtype, tensor.storage.layout if own else None)

        laid_out = few.operand.storage.data, few.fresh_scale().storage.data
        if any(len(held) != 2 or held.stride(0) < held[0].numel() for held in laid_out):
            return None
        return replace(few, operand=enlarged(few.operand), fresh_scale=lambda: enlarged(few.fresh_scale()))


def _form(tensor: Any) -> tuple[Any, ...]:
    return tuple(tensor.shape), tensor.stride(), tensor.dtype


_standing_in = False  # in this process
LARGE = 1 << 26  # bytes that the host does not hold if it need not


def free_memory(device: torch.device) -> int:
    """Bytes that are free on a device; on the CPU none, where it stands for a GPU more than any case asks for."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return 1 << 50 if _standing_in else 0


def stand_in_device(target: Target) -> StandInDevice:
    """What stands in for a device of the target."""
    from gpucheck.triton_hooks.interpreter.stand_in_driver import StandInDevice

    amd = target.name if target.amd else ""
    return StandInDevice(target.capability, target.sms, target.shared_memory, amd, target.card)


@contextmanager
def stand_in(target: Target) -> Iterator[None]:
    """The target as the only device of this process; memory that host code allocates is zero, so runs repeat."""
    from gpucheck.triton_hooks.interpreter import stand_in_driver

    global _standing_in
    device, _standing_in = stand_in_device(target), True
    for owner, name in ((torch, "empty"), (torch, "empty_like"), (torch, "empty_strided"), (torch.Tensor, "new_empty")):
        setattr(owner, name, _zeroed(getattr(owner, name)))
    everywhere: Any = import_module("torch")
    before = everywhere.empty_strided
    everywhere.empty_strided = _with_gaps(before)
    try:
        with stand_in_driver.watched_guards(stand_in_driver.install(device), home=0):
            yield
    finally:
        everywhere.empty_strided, _standing_in = before, False


def _zeroed(allocate: Any) -> Any:
    return lambda *args, **kwargs: allocate(*args, **kwargs).zero_()


def _with_gaps(allocate: Any) -> Any:
    """Takes what has large gaps from :func:`_zeros`."""

    def allocated(size: Sequence[int], stride: Sequence[int], **kwargs: Any) -> Any:
        dtype = kwargs.get("dtype") or torch.get_default_dtype()
        gaps = (_reach(size, stride) - math.prod(size)) * dtype.itemsize
        return allocate(size, stride, **kwargs) if gaps < LARGE else _zeros(size, stride, dtype)

    return allocated


def _reach(size: Sequence[int], stride: Sequence[int]) -> int:
    """Elements from the first to the last."""
    return 1 + sum((length - 1) * step for length, step in zip(size, stride, strict=True))


def _zeros(size: Sequence[int], stride: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Zeros in a mapping of which the host holds no more than what is touched."""
    zeros = torch.frombuffer(mmap(-1, _reach(size, stride) * dtype.itemsize), dtype=torch.uint8)
    return zeros.view(dtype).as_strided(tuple(size), tuple(stride))
