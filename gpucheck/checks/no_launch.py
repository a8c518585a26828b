"""Host code of a case without a launch: a runtime on the CPU, and a stand-in for the GPU that it compiles for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpucheck.checks.on_use import torch
from gpucheck.model.record import EnginePart
from gpucheck.model.vocabulary import ViolationKind
from gpucheck.triton_hooks.targets import Target

if TYPE_CHECKING:
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
    """An adapter that lays out one weight of each form: compilers do not look at values, and layouts take seconds."""

    def __init__(self, adapter: Any) -> None:
        self._adapter = adapter
        self._weights: dict[Any, Any] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._adapter, name)

    def weight(self, kind: str, data: Any, scale: Any, layout: str, place: Any) -> Any:
        """:meth:`gpucheck.library.adapters.base.Adapter.weight`."""
        form = (kind, layout, *(part for held in (data, scale) if held is not None for part in _form(held)))
        if form not in self._weights:
            self._weights[form] = self._adapter.weight(kind, data, scale, layout, place)
        return self._weights[form]


def _form(tensor: Any) -> tuple[Any, ...]:
    return tuple(tensor.shape), tensor.stride(), tensor.dtype


def stand_in_device(target: Target) -> StandInDevice:
    """What stands in for a device of the target."""
    from gpucheck.triton_hooks.interpreter.stand_in_driver import StandInDevice

    amd = target.name if target.amd else ""
    return StandInDevice(target.capability, target.sms, target.shared_memory, amd, target.card)


@contextmanager
def stand_in(target: Target) -> Iterator[None]:
    """The target as the only device of this process; memory that host code allocates is zero, so runs repeat."""
    from gpucheck.triton_hooks.interpreter import stand_in_driver

    device = stand_in_device(target)
    for owner, name in ((torch, "empty"), (torch, "empty_like"), (torch, "empty_strided"), (torch.Tensor, "new_empty")):
        setattr(owner, name, _zeroed(getattr(owner, name)))
    with stand_in_driver.watched_guards(stand_in_driver.install(device), home=0):
        yield


def _zeroed(allocate: Any) -> Any:
    return lambda *args, **kwargs: allocate(*args, **kwargs).zero_()
