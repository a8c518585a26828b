"""Takes the place of what Triton does at a launch: the one file that knows where Triton, from 3.1 on, keeps that.

What is handed in gets what was there before, and gives what takes its place. The interpreter's own launches are in
:mod:`gpucheck.triton_hooks.interpreter.launch`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

Function = Callable[..., Any]
Around = Callable[[Function], Function]
"""Makes of what was there what takes its place."""


def kernel_kinds() -> tuple[Any, Any]:
    """The classes of compiled and of interpreted kernels; a launch is their method ``run``."""
    from triton.runtime.interpreter import InterpretedFunction
    from triton.runtime.jit import JITFunction

    return JITFunction, InterpretedFunction


def replace_launch(around: Around) -> Callable[[], None]:
    """Goes around each launch of a compiled kernel: ``launch(kernel, *args, grid, warmup, **kwargs)``.

    Returns:
        What puts back the launch before.
    """
    compiled, _ = kernel_kinds()
    before = compiled.run
    compiled.run = around(before)
    return partial(setattr, compiled, "run", before)


def replace_compilation(around: Around) -> None:
    """Goes around the compilation of each kernel: ``build(source, *args, **kwargs)``."""
    import triton

    triton.compiler.compile = triton.compiler.compiler.compile = around(triton.compiler.compile)


def replace_tuning(run: Function) -> None:
    """Has ``run(tuner, *args, **kwargs)`` launch what an autotuner is called for."""
    from triton.runtime.autotuner import Autotuner

    Autotuner.run = run


def watch_tuning(note: Callable[[str], None]) -> None:
    """Calls ``note`` with the name of the kernel before an autotuner tries a configuration."""
    from triton.runtime.autotuner import Autotuner

    bench = Autotuner._bench

    def bench_seen(tuner: Any, *args: Any, **kwargs: Any) -> Any:
        note(tuner.base_fn.__name__)
        return bench(tuner, *args, **kwargs)

    Autotuner._bench = bench_seen


@contextmanager
def replaced_programs(around_make: Around, around_call: Around) -> Iterator[None]:
    """Inside, goes around making, and calling, what runs the programs of an interpreted launch."""
    from triton.runtime import interpreter

    executor = interpreter.GridExecutor
    make, call = executor.__init__, executor.__call__
    executor.__init__, executor.__call__ = around_make(make), around_call(call)
    try:
        yield
    finally:
        executor.__init__, executor.__call__ = make, call


def program_at_work() -> tuple[int, int, int]:
    """The place in its grid of the program that the interpreter runs now."""
    from triton.runtime import interpreter

    place: tuple[int, int, int] = interpreter.interpreter_builder.grid_idx
    return place


def kernel_cache() -> Path:
    """The folder of Triton's kernel cache that this process uses."""
    import triton

    return Path(triton.knobs.cache.dir)
