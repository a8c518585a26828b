"""What kernels need at capability 9.0: swizzled scales ask for the warps, tensor descriptors concatenate shapes."""

from __future__ import annotations

from typing import Any

from . import launch

THREADS_PER_WARP = 32
DEFAULT_WARPS = 4  # of a launch that does not say


def install() -> None:
    """Reports the warps of each launch to its kernel; lets a list and a shape be added."""
    from triton.runtime import interpreter

    _report_warps(interpreter.tl.extra.cuda)
    _add_lists_and_shapes(interpreter.tl.core.tuple)


def _report_warps(cuda: Any) -> None:
    warps = DEFAULT_WARPS

    def observe(name: str, arguments: dict[str, Any]) -> None:
        nonlocal warps
        warps = arguments.get("num_warps", DEFAULT_WARPS)

    launch.observers.append(observe)
    cuda.num_warps = lambda: warps
    cuda.num_threads = lambda: warps * THREADS_PER_WARP


def _add_lists_and_shapes(shape: Any) -> None:
    if "__radd__" not in vars(shape):
        shape.__radd__ = lambda self, other: shape([*other, *self.values])
