"""What a call does beside returning numbers: it writes to what it was given, or hands out memory that is not its own.

The contents of all tensors that a call is given are compared with copies made before it, bit by bit and on their
device, in few launches. What a call returns must be its own, on the device under test, and dense. Calls of the library
are watched one by one too, so that a check that makes several and computes in between is not blamed for what one of
them did.
"""

from __future__ import annotations

import functools
import inspect
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from gpucheck.model.vocabulary import ViolationKind
from gpucheck.verify.digest import integers, whole
from gpucheck.verify.regions import index_of
from gpucheck.verify.views import extent, fills_its_memory
from gpucheck.worker.device.held_tensors import tensors_in
from gpucheck.worker.device.tensor_copies import Comparison, Copies, difference

NONE: Mapping[str, Tensor] = MappingProxyType({})
WATCHED = ("matmul", "topk", "route", "routed", "swiglu", "downcast", "upcast")  # launch kernels
FOR_RESULT = "into"  # the argument of an adapter's call that is memory for its result
OWN_FORM = "native"  # begins the way to what a call returns for the library's later calls, laid out as these want it
THE_CALL = "the call"


@dataclass(frozen=True)
class SideEffect:
    """One thing that a call did beside answering."""

    kind: ViolationKind
    name: str  # of the input or output that it is about
    words: str


class _Held:
    """A tensor that a call may read and not write."""

    def __init__(self, name: str, tensor: Tensor, holder: int = 0) -> None:
        self.name, self.tensor = name, tensor.detach()
        self.holder = holder  # number of the object that it was found in, from 1
        self.place = Place(tensor)


class Place:
    """Where a tensor lies; the tensor lives as long as this, so that no other gets its memory."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor, self.device, self.start = tensor, tensor.device, tensor.data_ptr()
        self.form = (tensor.dtype, tensor.shape, tensor.stride())  # a call may change a tensor's own
        self.end = self.start + extent(tensor.shape, tensor.stride()) * tensor.element_size()

    @functools.cached_property
    def dense(self) -> bool:
        return fills_its_memory(*self.form[1:])

    def overlaps(self, other: Place) -> bool:
        return self.device == other.device and self.start < other.end and other.start < self.end

    def covers(self, other: Place) -> bool:
        """Whether what is seen of this memory says all about the other one."""
        if self.device != other.device or not self.start <= other.start <= other.end <= self.end:
            return False
        return self.dense or (self.start == other.start and self.form == other.form)


class _Watched:
    """Tensors that are watched from one moment on, with copies of what they held then."""

    def __init__(self, held: Sequence[_Held], originals: Mapping[str, Tensor] = NONE) -> None:
        of_held = {number: originals[each.name] for number, each in enumerate(held) if each.name in originals}
        self.held, self.copies = held, Copies([each.tensor for each in held], of_held)


@dataclass(frozen=True)
class _Look:
    """One comparison of watched tensors with their copies."""

    held: Sequence[_Held]
    who: str
    comparison: Comparison


class CallWatch:
    """Watches the calls of one pass over a case, which may come from several threads."""

    def __init__(self, device: torch.device, earlier: Sequence[Place] = (), *, one_by_one: bool = True) -> None:
        """Args:
        earlier: where that lies which calls returned before.
        one_by_one: calls of the library are watched too. What that takes comes between launches, so it is not for
            cases in which their order is held back.
        """
        self.device, self.returned_before = device, list(earlier)
        self.returned: list[Place] = []  # what the calls of this pass returned
        self.calls = 0
        self._one_by_one = one_by_one
        self._within: list[Place] = []  # what calls of the library returned within the call under way
        self._given: list[Any] = []
        self._before: list[tuple[str, Place]] = []  # memory that is no operand and there before the calls
        self._held: list[_Held] = []
        self._watched: list[_Watched] = []  # the same, by what they were handed in with
        self._looks: list[_Look] = []
        self._seen: list[SideEffect] = []
        self._calls: dict[str, int] = {}
        self._active = False
        self._lock = threading.Lock()

    def hand_in(self, given: Any, originals: Mapping[str, Tensor] = NONE) -> None:
        """Copies every tensor that can be reached from here; memory that an earlier one covers is not copied again.

        Args:
            originals: what these tensors were copied from, by name; in host memory no further copy is made of them.
        """
        self._given.append(given)
        known = len(self._held)
        for path, tensor in tensors_in("", given):
            if tensor.numel() and not self._known(tensor):
                self._held.append(_Held(path, tensor, len(self._given)))
        self._watched.append(_Watched(self._held[known:], originals))

    def own(self, prepared: Any) -> None:
        """Takes down what memory an object holds before the calls, which may write to it and not return it."""
        for path, tensor in tensors_in("", prepared):
            if tensor.numel() and not self._known(tensor):
                self._before.append((path, Place(tensor)))

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Inside, calls of the library are watched."""
        self._within, self._active = [], self._one_by_one
        try:
            yield
        finally:
            self._within, self._active = [], False

    def library(self, adapter: Any) -> Any:
        """The adapter; its calls are watched while :meth:`watching`."""
        return _WatchedLibrary(self, adapter)

    def call(self, name: str, function: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """One call of the library. Whatever it damages is put right again: what follows is judged by itself."""
        if not self._active:
            return function(*args, **kwargs)
        arguments = _signature(function).bind(*args, **kwargs).arguments
        given = [
            _Held(f"{path} of {name}", tensor)
            for argument, value in arguments.items()
            if argument != FOR_RESULT
            for path, tensor in tensors_in(argument, value)
            if tensor.numel() and not self._known(tensor)
        ]
        watched = _Watched(given)
        number = self._calls[name] = self._calls.get(name, 0) + 1
        result = function(*args, **kwargs)
        who = f"call {number} of the library's {name}"
        if self._differ(watched, who):
            watched.copies.restore()
        found = {path or "the result": tensor for path, tensor in tensors_in("", result) if tensor.numel()}
        held, earlier = [*self._held, *given], [*self.returned_before, *self.returned, *self._within]
        for path, tensor in found.items():
            self._seen += self._of_output(f"{path} of {name}", tensor, who, held, earlier)
        self._within += map(Place, found.values())
        return result

    def outputs(self, outputs: Mapping[str, Tensor]) -> None:
        """Looks at where the outputs of a call lie, and keeps them alive so that no other gets their memory."""
        with self._lock:
            self.calls += 1
            earlier = [*self.returned_before, *self.returned]
            for name, output in outputs.items():
                self._seen += self._of_output(name, output, THE_CALL, self._held, earlier)
            self.returned += [Place(output) for output in outputs.values() if output.numel()]

    def _of_output(
        self, name: str, output: Tensor, who: str, held: list[_Held], earlier: list[Place]
    ) -> list[SideEffect]:
        if output.device != self.device:
            return [
                SideEffect(
                    ViolationKind.OUTPUT, name, f"{who} returned {name} on {output.device}, expected {self.device}"
                )
            ]
        if not output.numel():
            return []
        place = Place(output)
        right = place.dense or name.startswith(OWN_FORM)
        found = [] if right else [SideEffect(ViolationKind.LAYOUT, name, f"{who} returned {name} {_strides(output)}")]
        owner = next((each.name for each in held if each.place.overlaps(place)), "")
        if owner:
            found.append(
                SideEffect(ViolationKind.ALIAS, name, f"{name}, as {who} returned it, shares the memory of {owner}")
            )
        elif buffer := next((path for path, memory in self._before if memory.overlaps(place)), ""):
            words = (
                f"{name}, as {who} returned it, lies in {buffer}, which was there before: a later call overwrites it"
            )
            found.append(SideEffect(ViolationKind.REUSED, name, words))
        elif any(other.overlaps(place) for other in earlier):
            words = f"{name}, as {who} returned it, lies in memory that an earlier call returned, and overwrites that"
            found.append(SideEffect(ViolationKind.REUSED, name, words))
        return found

    def compare(self) -> None:
        """Compares what the calls were given with the copies, once all of them have ended."""
        now = {
            (number, path): tensor
            for number, given in enumerate(self._given, start=1)
            for path, tensor in tensors_in("", given)
        }
        for watched in self._watched:
            self._differ(watched, THE_CALL)
            for number, held in enumerate(watched.held):
                other = now.get((held.holder, held.name))
                if other is not None and not held.place.covers(Place(other)):
                    self._replaced(held.name, watched.copies.copy(number), other.detach())

    def _replaced(self, name: str, before: Tensor, other: Tensor) -> None:
        """Another tensor stands where a held one was: the same content is fine, in whatever form."""
        if (other.dtype, other.shape, other.device) == (before.dtype, before.shape, before.device):
            self._looks.append(_Look([_Held(name, other)], THE_CALL, difference(before, other)))
        elif _content(other) != _content(before):
            words = f"{THE_CALL} put other content in the place of {name}: {_form(other)}, was {_form(before)}"
            self._seen.append(SideEffect(ViolationKind.INPUTS, name, words))

    def _differ(self, watched: _Watched, who: str) -> bool:
        """Notes where tensors differ from their copies; False where it is known at once that none does."""
        found = watched.copies.compare()
        self._looks += [_Look(watched.held, who, comparison) for comparison in found]
        return bool(found)

    def side_effects(self) -> list[SideEffect]:
        """What was seen, the first of a kind for each input or output."""
        flags = [look.comparison.any.to(self.device) for look in self._looks]
        differ = torch.stack(flags).tolist() if flags else []
        changes = []
        for look in (look for look, any in zip(self._looks, differ, strict=True) if any):
            for change in look.comparison.changes():
                name, total = look.held[change.number].name, torch.Size(change.shape).numel()
                index = ", ".join(str(part) for part in index_of(change.first, change.shape))
                words = f"{look.who} changed {name}: {change.elements} of {total} elements, first at ({index})"
                changes.append(SideEffect(ViolationKind.INPUTS, name, words))
        firsts: dict[tuple[str, str], SideEffect] = {}
        for effect in (*changes, *self._seen):
            firsts.setdefault((effect.kind, effect.name), effect)
        return list(firsts.values())

    def _known(self, tensor: Tensor) -> bool:
        place = Place(tensor)
        return any(held.place.covers(place) for held in self._held)


_signature = functools.lru_cache(maxsize=64)(inspect.signature)


class _WatchedLibrary:
    """The adapter of the library under test, whose calls go through a :class:`CallWatch`."""

    def __init__(self, watch: CallWatch, adapter: Any) -> None:
        self._watch, self._adapter = watch, adapter

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._adapter, name)
        if name not in WATCHED:
            return value
        return lambda *args, **kwargs: self._watch.call(name, value, args, kwargs)


def _content(tensor: Tensor) -> str:
    """A hash of all bytes, row by row; only for what looks replaced."""
    return whole(integers(tensor).cpu().contiguous().view(torch.uint8).flatten())


def _form(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} of shape {tuple(tensor.shape)}"


def _strides(tensor: Tensor) -> str:
    shared = any(size > 1 and stride == 0 for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    words = "elements share memory" if shared else "its elements do not lie side by side"
    return f"with strides {tensor.stride()} for shape {tuple(tensor.shape)}: {words}"
