"""Fills Triton's kernel cache with what the ranks will launch soon, in processes that share the GPUs' idle hosts.

Such a process sends cases through their host code on the CPU, under a stand-in with the properties of the GPU that is
there, and compiles in place of launching. It touches no GPU and proves nothing: whatever it gets wrong or has not done
yet, a rank compiles itself.
"""

from __future__ import annotations

import os
import re
import resource
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch

import gpucheck
from gpucheck import checks
from gpucheck.checks.base import Runtime
from gpucheck.checks.no_launch import CompileRuntime, stand_in
from gpucheck.host import cuda_driver
from gpucheck.host.processes import die_with_parent
from gpucheck.host.software import stat_fingerprint
from gpucheck.library.identity import OUR_DISTRIBUTION
from gpucheck.model.case import Case
from gpucheck.triton_hooks.compiled_kernel import note_making
from gpucheck.triton_hooks.launch_hooks import kernel_cache, replace_compilation, replace_launch
from gpucheck.triton_hooks.targets import Target
from gpucheck.worker.compile_claims import Claims
from gpucheck.worker.known_kernels import KnownKernels
from gpucheck.worker.protocol import Ahead

MEMORY = 1 << 30  # bytes each may take; larger cases are left to the ranks
WARM = 10  # cases in a row that needed no compiler, after which nothing is left to do


def work(ahead: Ahead) -> None:
    """Compiles until every case is claimed, or several in a row needed no compiler; at once where all are known.

    Further processes are forked from here, once the library is loaded: they share what it took to load it.
    """
    gpu = cuda_driver.gpu(ahead.device)
    if gpu is None:
        return
    os.nice(10)
    limit = _data_in_use() + MEMORY
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    torch.set_num_threads(1)
    torch.cuda.is_available = lambda: False  # so that the stand-in answers in its place
    claims = Claims(Path(ahead.claims))
    left = len(ahead.cases) - _skip_known(ahead, gpu, claims)
    if not left:
        return
    major, minor = gpu.capability
    with stand_in(Target(f"sm_{major}{minor}", gpu.capability, gpu.sms, gpu.shared_memory, gpu.name)):
        runtime = CompileRuntime(ahead.library_root, ahead.generation)
        with suppress(Exception):  # a rank meets it as well, and reports it
            _ = runtime.library
        others = [
            _forked(partial(_compile, ahead.cases, runtime, claims)) for _ in range(1, min(ahead.processes, left))
        ]
        _compile(ahead.cases, runtime, claims)
        for other in others:
            os.waitpid(other, 0)


def _skip_known(ahead: Ahead, gpu: cuda_driver.Gpu, claims: Claims) -> int:
    """Claims the cases whose kernels an earlier run left in the cache, and says how many they are."""
    ours = stat_fingerprint(Path(gpucheck.__file__).parent, OUR_DISTRIBUTION)
    known = KnownKernels.of(kernel_cache(), ahead.basis, gpu, ours)
    claims.keep(str(known.file))
    numbers = known.among(ahead.cases)
    for number in numbers:
        claims.take(number)
        claims.finish(number)
    return len(numbers)


def _forked(work: Callable[[], None]) -> int:
    """A process that works and ends, at the latest with this one."""
    owner, pid = os.getpid(), os.fork()
    if not pid:
        with suppress(BaseException):
            die_with_parent(owner)
            work()
        os._exit(0)
    return pid


def _compile(cases: Sequence[Case], runtime: Runtime, claims: Claims) -> None:
    built, idle, kernels = _compile_only(), 0, 0
    for number, case in claimed(cases, claims):
        built.clear()
        try:
            _launch(case, runtime)
        except Exception:  # a rank meets it as well, and reports it
            continue
        finally:
            kernels += len(built)
            claims.compiled(os.getpid(), kernels)
            claims.finish(number)
        idle = 0 if built else idle + 1
        if idle == WARM:
            return


def claimed(cases: Sequence[Case], claims: Claims) -> Iterator[tuple[int, Case]]:
    """The cases that no other process has begun, with their numbers, each from now on this one's."""
    for number, case in enumerate(cases):
        if claims.take(number):
            yield number, case


def _launch(case: Case, runtime: Runtime) -> None:
    check = checks.load(case.check)
    inputs = check.inputs(case, torch.Generator().manual_seed(case.input_seed))
    check.launch(case, check.prepare(case, inputs, runtime), runtime)


def _compile_only() -> list[bool]:
    """From now on launches compile and do no more; gives a list that grows with each kernel that no cache had."""
    built: list[bool] = []

    def only_compiled(launch: Callable[..., Any]) -> Callable[..., Any]:
        def run(function: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> Any:
            with suppress(Exception):  # host code goes on: what it launches next is wanted as well
                kernel = launch(function, *args, grid=grid, warmup=True, **kwargs)
                with suppress(Exception):
                    _make_launcher(kernel)
                return kernel

        return run

    def noted(build: Callable[..., Any]) -> Callable[..., Any]:
        def compile_noted(source: Any, *args: Any, **kwargs: Any) -> Any:
            note_making(source, built)
            return build(source, *args, **kwargs)

        return compile_noted

    replace_launch(only_compiled)
    replace_compilation(noted)
    return built


def _make_launcher(kernel: Any) -> None:
    """Builds the C module that some Tritons make for each signature of a kernel and keep in the cache as well."""
    from triton.backends.nvidia.driver import CudaLauncher

    CudaLauncher(kernel.src, kernel.metadata)


def _data_in_use() -> int:
    """Bytes of this process that count for RLIMIT_DATA."""
    found = re.search(r"^VmData:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
    return int(found[1]) << 10 if found else 0
