"""What adapters of several generations share: plain-torch helpers and the mapping of refusals to ``Inapplicable``."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from gpucheck.library.adapters.base import TopK
from gpucheck.model.errors import Inapplicable

FLOAT8_KINDS = {"fp8_e4m3": torch.float8_e4m3fn, "fp8_e5m2": torch.float8_e5m2}
MX_KINDS = {"mxfp4": torch.uint8, "mxfp8_e4m3": torch.float8_e4m3fn, "mxfp8_e5m2": torch.float8_e5m2}


def require(condition: bool, reason: str) -> None:
    """Raises :class:`Inapplicable` with ``reason`` unless ``condition`` holds."""
    if not condition:
        raise Inapplicable(reason)


def require_power_of_two(k: int) -> None:
    """Every generation's top-k kernel needs k to be a power of two."""
    require(k > 0 and k & (k - 1) == 0, f"the library's top-k needs k to be a power of two, not {k}")


def require_dense_rows(x: torch.Tensor) -> None:
    """Every generation's standalone swiglu reads row after row, whatever the strides are."""
    require(x.is_contiguous(), f"the library's swiglu reads dense rows only, not strides {x.stride()}")


def device_capability() -> tuple[int, int]:
    """Compute capability of the current device; of the stand-in under the interpreter."""
    major, minor = torch.cuda.get_device_capability()
    return major, minor


def k_contiguous(data: torch.Tensor) -> torch.Tensor:
    """(..., K, N) with stride 1 along K, as the library takes fp8 and mx weights: itself where it has it, else a copy.

    A copy has that stride also where a dimension has size 1.
    """
    *lead, k, n = data.shape
    if k > 1 and data.stride(-2) == 1:
        return data
    strides = [1, max(k, 1)]
    extent = max(k, 1) * max(n, 1)
    for size in reversed(lead):
        strides.insert(0, extent)
        extent *= max(size, 1)
    copy = torch.empty_strided(data.shape, strides, dtype=data.dtype, device=data.device)
    # Byte copies work for every dtype, float8 included.
    if data.element_size() == 1:
        copy.view(torch.uint8).copy_(data.view(torch.uint8))
    else:
        copy.copy_(data)
    return copy


def unit_stride(data: torch.Tensor) -> torch.Tensor:
    """``data`` as it is.

    Raises:
        Inapplicable: neither of its last two dimensions has stride 1, which the library's kernels need.
    """
    strides = data.stride()[-2:]
    require(1 in strides, f"the library takes weights with stride 1 along K or N, not {tuple(strides)}")
    return data


def ascending_experts(values: torch.Tensor, experts: torch.Tensor) -> TopK:
    """Top-k with the columns of each row ordered by expert id."""
    experts, order = experts.to(torch.int32).sort(dim=1)
    return TopK(values.gather(1, order), experts)


def bit_matrix(ids: torch.Tensor, experts: int) -> torch.Tensor:
    """Which experts each token uses, as the library's sorting wants it; plain torch, as servers pack it themselves.

    Args:
        ids: (T, k) int32 experts; -1 is none.
        experts: E.

    Returns:
        (T, ceil(E/32)) uint32: bit ``e % 32`` of word ``e // 32`` stands for expert e.
    """
    words = -(-experts // 32)
    used = torch.zeros((len(ids), 32 * words + 1), dtype=torch.bool, device=ids.device)
    used.scatter_(1, torch.where(ids < 0, 32 * words, ids).long(), True)
    bits = used[:, :-1].reshape(len(ids), words, 32).long() << torch.arange(32, device=ids.device)
    return bits.sum(-1).to(torch.int32).view(torch.uint32)


def raised_in(error: BaseException, module: ModuleType) -> bool:
    """Whether ``error`` was raised by code of ``module`` or of a ``<module>_details`` package beside it."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None or module.__file__ is None:
        return False
    origin, source = Path(trace.tb_frame.f_code.co_filename), Path(module.__file__)
    return origin == source or source.with_name(source.stem + "_details") in origin.parents


Undo = Callable[[], None]


class SharedSetting:
    """A setting of the whole process that threads may hold at once as long as they ask for the same value."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._holders = 0
        self._value: Any = None
        self._undo: Undo = lambda: None

    @contextmanager
    def held(self, value: Any, apply: Callable[[], Undo]) -> Iterator[None]:
        """Waits until nobody holds another value; the first holder applies it, the last one undoes it."""
        with self._changed:
            self._changed.wait_for(lambda: not self._holders or self._value == value)
            if not self._holders:
                self._undo, self._value = apply(), value
            self._holders += 1
        try:
            yield
        finally:
            with self._changed:
                self._holders -= 1
                if not self._holders:
                    self._undo()
                    self._changed.notify_all()


_ALLOCATOR, _CONSTRAINTS = SharedSetting(), SharedSetting()


@contextmanager
def of_this_thread(apply: Callable[[], Undo]) -> Iterator[None]:
    """Applies a setting that each thread has for itself, and undoes it."""
    undo = apply()
    try:
        yield
    finally:
        undo()


def restored_allocator() -> AbstractContextManager[None]:
    """Puts back Triton's scratch allocator, which the library replaces when a kernel uses tensor descriptors."""
    import triton
    from triton.runtime import _allocation

    holder = _allocation._allocator
    each_thread = hasattr(holder, "get")

    def remember() -> Undo:
        saved = holder.get() if each_thread else _allocation._allocator
        return lambda: triton.set_allocator(saved)

    return of_this_thread(remember) if each_thread else _ALLOCATOR.held(None, remember)


@contextmanager
def kernel_choice(
    opt_flags: ModuleType,
    constraints: dict[str, Any],
    current: Callable[[], dict[str, Any]],
) -> Iterator[None]:
    """Calls into the library under constraints on its kernel choice and restores the earlier ones.

    Args:
        opt_flags: the library's module with ``update_``/``reset_opt_flags_constraints``.
        constraints: name -> value; empty leaves the choice to the library.
        current: returns the constraints in force.

    Raises:
        Inapplicable: the library refused the combination.
    """

    def constrain() -> Undo:
        saved = dict(current())

        def undo() -> None:
            opt_flags.reset_opt_flags_constraints()
            opt_flags.update_opt_flags_constraints(saved)

        opt_flags.update_opt_flags_constraints(dict(constraints))
        return undo

    each_thread = hasattr(opt_flags, "scoped_opt_flags_constraints")
    constrained = of_this_thread(constrain) if each_thread else _CONSTRAINTS.held(constraints, constrain)
    try:
        with constrained, restored_allocator():
            yield
    except opt_flags.InapplicableConstraint as error:
        raise Inapplicable(f"the library refused {constraints}: {error}") from error
    except NotImplementedError as error:
        raise Inapplicable(f"the library does not implement this: {error}") from error
    except (AssertionError, ValueError) as error:
        if constraints and raised_in(error, opt_flags):
            raise Inapplicable(f"the library cannot choose a kernel under {constraints}: {error}") from error
        raise
