"""What adapters of several generations share: plain-torch helpers and the mapping of refusals to ``Inapplicable``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
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


def device_capability() -> tuple[int, int]:
    """Compute capability of the current device; of the stand-in under the interpreter."""
    major, minor = torch.cuda.get_device_capability()
    return major, minor


def k_contiguous(data: torch.Tensor) -> torch.Tensor:
    """Copy of (..., K, N) whose stride along K is 1, also where a dimension has size 1."""
    *lead, k, n = data.shape
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
    """``data`` where one of its last two dimensions has stride 1, else a contiguous copy."""
    return data if 1 in data.stride()[-2:] else data.contiguous()


def ascending_experts(values: torch.Tensor, experts: torch.Tensor) -> TopK:
    """Top-k with the columns of each row ordered by expert id."""
    experts, order = experts.to(torch.int32).sort(dim=1)
    return TopK(values.gather(1, order), experts)


def raised_in(error: BaseException, module: ModuleType) -> bool:
    """Whether ``error`` was raised by code of ``module`` or of a ``<module>_details`` package beside it."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None or module.__file__ is None:
        return False
    origin, source = Path(trace.tb_frame.f_code.co_filename), Path(module.__file__)
    return origin == source or source.with_name(source.stem + "_details") in origin.parents


@contextmanager
def restored_allocator() -> Iterator[None]:
    """Puts back Triton's scratch allocator, which the library replaces when a kernel uses tensor descriptors."""
    import triton
    from triton.runtime import _allocation

    holder = _allocation._allocator
    saved = holder.get() if hasattr(holder, "get") else holder
    try:
        yield
    finally:
        triton.set_allocator(saved)


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
    saved = dict(current())
    try:
        opt_flags.update_opt_flags_constraints(dict(constraints))
        with restored_allocator():
            yield
    except opt_flags.InapplicableConstraint as error:
        raise Inapplicable(f"the library refused {constraints}: {error}") from error
    except NotImplementedError as error:
        raise Inapplicable(f"the library does not implement this: {error}") from error
    except (AssertionError, ValueError) as error:
        if constraints and raised_in(error, opt_flags):
            raise Inapplicable(f"the library cannot choose a kernel under {constraints}: {error}") from error
        raise
    finally:
        opt_flags.reset_opt_flags_constraints()
        opt_flags.update_opt_flags_constraints(saved)
