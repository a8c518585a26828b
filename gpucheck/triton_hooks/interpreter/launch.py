"""Interpreted kernel launches: argument handling and observation.

Every launch passes :func:`_run`, in each Triton version, so an observer sees all of them.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch

from . import stand_in_driver

Observer = Callable[[str, dict[str, Any]], None]
"""Called before a launch with the kernel's name as written in its source and its arguments by the parameters' names."""

observers: list[Observer] = []
finished: list[Callable[[], None]] = []  # called after a launch
_one_at_a_time = threading.RLock()  # the interpreter keeps the program id of the running kernel for the whole process


def unwrap(argument: Any) -> Any:
    """The torch tensor inside a library's tensor object; any other argument unchanged."""
    if isinstance(argument, torch.Tensor) or not hasattr(argument, "storage"):
        return argument
    data = getattr(argument, "data", None)
    return data if isinstance(data, torch.Tensor) else argument


def install() -> None:
    """Routes every launch of an interpreted function through this module."""
    from triton import testing
    from triton.runtime import interpreter

    function, executor = interpreter.InterpretedFunction, interpreter.GridExecutor
    # Tensors are on the CPU already: no copies to and fro, kernels touch the caller's memory itself.
    executor._init_args_hst = lambda self, args, kwargs: (args, kwargs)
    executor._restore_args_dev = lambda self, *args: None

    def _run(kernel: Any, *args: Any, grid: Any, warmup: bool = False, **kwargs: Any) -> None:
        if warmup:
            return
        args = tuple(map(unwrap, args))
        kwargs = {name: unwrap(value) for name, value in kwargs.items()}
        with _one_at_a_time:
            named = {**dict(zip(kernel.arg_names, args, strict=False)), **kwargs}
            for observer in observers:
                observer(kernel.__name__, named)
            launch = executor(kernel.rewrite(), kernel.arg_names, grid)
            with np.errstate(all="ignore"):
                launch(*args, **kwargs)
            for call in finished:
                call()

    def run_property(kernel: Any) -> Callable[..., None]:
        return partial(_run, kernel)

    def ignore(kernel: Any, value: Any) -> None:
        """Older Triton sets ``run`` on each function; ours stays."""

    testing.do_bench = testing.do_bench_cudagraph = stand_in_driver.measured  # they need the clock of a GPU
    function.run = property(run_property, ignore)
    function.__getitem__ = lambda kernel, grid: partial(_run, kernel, grid=grid)
