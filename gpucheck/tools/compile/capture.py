"""Turns every Triton launch of this process into a compilation and takes down what comes of it."""

from __future__ import annotations

import hashlib
import inspect
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import triton

from gpucheck.tools.compile import registers
from gpucheck.tools.compile.outcome import Built, Kernel, Kind, Problem
from gpucheck.tools.compile.problems import FEWER_BLOCKS, Problems, chain
from gpucheck.tools.compile.source_locations import Sources
from gpucheck.triton_hooks.compiled_kernel import constants, excess, grid_excess, note_making
from gpucheck.triton_hooks.launch_hooks import replace_compilation, replace_launch, replace_tuning
from gpucheck.triton_hooks.targets import Target

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"


class Output:
    """The file that this process and the compilers it starts print to; read back where something went wrong."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def mark(self) -> int:
        """How much has been printed so far."""
        sys.stdout.flush()
        sys.stderr.flush()
        return self.path.stat().st_size

    def since(self, mark: int) -> str:
        """What has been printed after a mark."""
        self.mark()
        with open(self.path, "rb") as file:
            file.seek(mark)
            return file.read().decode(errors="replace")


class Capture:
    """The launches of one case at a time.

    Args:
        announce: called with an event before and after a kernel is compiled, since that may take the process down.
        known: kernels that failed before, by key; they are not compiled again.
    """

    def __init__(
        self,
        target: Target,
        sources: Sources,
        output: Output,
        announce: Callable[..., None],
        known: Mapping[str, Kernel],
    ) -> None:
        self._target, self._sources, self._output, self._announce = target, sources, output, announce
        self._problems = Problems(target, sources)
        self._failure: BaseException | None = None  # the last one of a compilation
        self.kernels: dict[str, Kernel] = dict(known)  # all that were seen, by key
        self.compiled_now = 0  # kernels that no cache had
        self.start()

    def start(self) -> None:
        """Forgets the launches seen."""
        self.launches = 0
        self.names: set[str] = set()  # of the kernels launched, as written in the source
        self.keys: list[str] = []  # of the kernels launched, each once

    def install(self) -> None:
        """Takes the place of launching and compiling in this process; works from Triton 3.1 on."""
        replace_launch(self._taken_down)
        replace_tuning(lambda tuner, *args, **kwargs: self._autotune(tuner, args, kwargs))
        replace_compilation(self._noted)

    def _taken_down(self, launch: Callable[..., Any]) -> Callable[..., Any]:
        def run(function: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> Any:
            self.launches += 1
            self.names.add(function.fn.__name__)
            try:
                compiled = launch(function, *args, grid=grid, warmup=True, **kwargs)
            except Exception as error:  # host code goes on: what it launches next is to be compiled as well
                if self._failure not in chain(error):
                    self._refuse(function, error)
                return None
            self._see(self.kernels[compiled.hash])
            if not warmup:
                self._check_grid(function, compiled, grid, args, kwargs)
            return compiled

        return run

    def _noted(self, build: Callable[..., Any]) -> Callable[..., Any]:
        return lambda src, *args, **kwargs: self._compile(build, src, args, kwargs)

    def _autotune(self, tuner: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Compiles all configurations; those that a tuner passes over do not count where another one is left."""
        before = list(self.keys)
        tuner.nargs = dict(zip(tuner.arg_names, args, strict=False))
        for config in tuner.prune_configs(kwargs):
            tuner.fn.run(*args, **{**kwargs, **config.all_kwargs()})
        tuner.nargs = None
        tried = [self.kernels[key] for key in self.keys if key not in before]
        if any(kernel.built is Built.COMPILED for kernel in tried):
            passed = {kernel.key for kernel in tried if kernel.problem and _passed_over(kernel.problem)}
            self.keys = [key for key in self.keys if key not in passed]

    def _see(self, kernel: Kernel) -> None:
        self.kernels[kernel.key] = kernel
        if kernel.key not in self.keys:
            self.keys.append(kernel.key)

    def _refuse(self, function: Any, error: Exception) -> None:
        launched = self._sources.of_stack(sys._getframe(2))
        problem = self._problems.of_launch(function, error, launched)
        key = _digest("refused", function.fn.__module__, function.fn.__qualname__, problem)
        self._see(Kernel(key, function.fn.__name__, Built.FAILED, problem=problem))

    def _check_grid(
        self, function: Any, compiled: Any, grid: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> None:
        """Takes down a launch with more blocks than the target allows, or whose grid cannot be computed."""
        launched = self._sources.of_stack(sys._getframe(2))
        try:
            blocks = [int(count) for count in (grid(bound(function, args, kwargs)) if callable(grid) else grid)]
        except Exception as error:
            self._refuse(function, error)
            return
        found = grid_excess(blocks, self._target.limits, compiled.metadata)
        if found:
            problem = self._problems.of_grid(found, launched)
            key = _digest("grid", compiled.hash, problem)
            self._see(Kernel(key, function.fn.__name__, Built.FAILED, problem=problem))

    def _compile(self, build: Callable[..., Any], src: Any, args: Any, kwargs: Any) -> Any:
        key = _key(src, kwargs)
        if key in self.kernels:
            self._see(self.kernels[key])
            self._failure = _FailedBefore()
            raise self._failure
        made: list[bool] = []
        note_making(src, made)
        launched = self._sources.of_stack(sys._getframe(1))
        options = kwargs.get("options") or {}
        facts: dict[str, Any] = {
            "warps": options.get("num_warps"),
            "stages": options.get("num_stages"),
            "config": constants(src),
            "launched": self._sources.name(launched) if launched else "",
        }
        self._announce(event="kernel", key=key, name=src.name, place=facts["launched"])
        mark, begin = self._output.mark(), time.perf_counter()
        try:
            compiled = build(src, *args, **kwargs)
        except Exception as error:
            self._failure, seconds = error, time.perf_counter() - begin
            problem, lacking = self._problems.of_compilation(src.fn, error, self._output.since(mark))
            built = Built.INAPPLICABLE if lacking else Built.FAILED
            self._see(Kernel(key, src.name, built, seconds, problem=problem, **facts))
            raise
        finally:
            self._announce(event="built", key=key)
        self.compiled_now += bool(made)
        self.kernels[compiled.hash] = self._compiled(
            compiled, src, time.perf_counter() - begin if made else None, facts
        )
        return compiled

    def _compiled(self, compiled: Any, src: Any, seconds: float | None, facts: dict[str, Any]) -> Kernel:
        metadata, used = compiled.metadata, registers.usage(compiled.asm, TOOLS)
        too_much = excess(metadata, self._target.limits, used.registers)
        actual = {  # the compiler may have changed what was asked for
            "warps": getattr(metadata, "num_warps", facts["warps"]),
            "stages": getattr(metadata, "num_stages", facts["stages"]),
        }
        return Kernel(
            compiled.hash,
            src.name,
            Built.FAILED if too_much else Built.COMPILED,
            seconds,
            int(metadata.shared),
            used.registers,
            used.spilled,
            problem=self._problems.of_excess(src.fn, too_much) if too_much else None,
            **{**facts, **actual},
        )


def bound(function: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a launch by name, defaults among them: what a grid that is a function is called with."""
    parameters = function.signature.parameters.values()
    defaults = {entry.name: entry.default for entry in parameters if entry.default is not inspect.Parameter.empty}
    return {**defaults, **dict(zip(function.arg_names, args, strict=False)), **kwargs}


class _FailedBefore(Exception):
    """The kernel failed when it was launched before."""


def _passed_over(problem: Problem) -> bool:
    """Whether Triton's autotuner tries the next configuration after this problem."""
    if problem.kind is Kind.RESOURCE:
        return problem.hint != FEWER_BLOCKS  # the driver's own error for that is none that the autotuner knows
    return "CompileTimeAssertionFailure" in problem.error or "ptxas" in problem.error


def _key(src: Any, kwargs: Mapping[str, Any]) -> str:
    """What tells kernels that have not been compiled apart."""
    options = sorted((name, str(value)) for name, value in (kwargs.get("options") or {}).items())
    try:
        source = src.hash()
    except Exception:  # it needs the source of all that the kernel calls, some of which may not exist
        source = _digest(src.fn.src, src.signature, constants(src))
    return _digest(source, kwargs.get("target"), options)


def _digest(*parts: Any) -> str:
    return hashlib.sha256("\0".join(map(str, parts)).encode()).hexdigest()
