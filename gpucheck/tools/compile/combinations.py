"""Compiles combinations of library, Triton and target, each in a process of its own, several at a time.

Processes with the same Triton are forked from one that has it loaded.
"""

from __future__ import annotations

import os
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from gpucheck.host.forkserver import Child, Forkserver, Unkillable
from gpucheck.host.isolated import python_path, receive, send
from gpucheck.host.processes import ending
from gpucheck.library.content import triton_problem
from gpucheck.library.copies import LibraryCopy
from gpucheck.model.case import Case
from gpucheck.model.check_source import CheckSource
from gpucheck.model.plain import read
from gpucheck.tools.compile.hints import hint
from gpucheck.tools.compile.outcome import Built, CaseBuilt, Combination, Kernel, Kind, Problem, Result
from gpucheck.tools.compile.result_cache import ResultCache
from gpucheck.tools.compile.tritons import Triton
from gpucheck.triton_hooks.targets import Target

CHILD = "gpucheck.tools.compile.compile_process"
STALL = 300.0  # seconds that one kernel or the host code before it may take
POLL = 0.05  # seconds
COMPILER_FAULT = "a fault of the compiler, whatever the kernel: try another Triton"

_HIDDEN = ("TRITON_", "MLIR_", "LLVM_", "DISABLE_LLVM_OPT", "DISABLE_PTXAS_OPT", "DISABLE_MMA_V3")
"""Prefixes of variables that change what a compiler does; a result must not depend on them."""


@dataclass(frozen=True)
class Job:
    """One combination and the cases to compile with it."""

    combination: Combination
    triton: Triton
    library: LibraryCopy | None  # None for our own kernels
    target: Target
    cases: tuple[Case, ...]
    sources: tuple[CheckSource, ...] = ()  # of checks that are not gpucheck's own


def build(jobs: Sequence[Job], parallel: int) -> Iterator[Result]:
    """Compiles all jobs, ``parallel`` at a time, and gives their results as they come.

    Raises:
        InfrastructureError: the cache cannot be written.
    """
    stop = threading.Event()
    with _Servers(parallel) as servers, ThreadPoolExecutor(parallel) as pool:
        pending: list[Future[Result]] = [pool.submit(_job, job, servers, stop) for job in jobs]
        try:
            for done in as_completed(pending):
                yield done.result()
        finally:
            stop.set()
            for future in pending:
                future.cancel()


class _Servers:
    """The forkservers of one build, one for each Triton, started when first asked for and ended together."""

    def __init__(self, parallel: int) -> None:
        self._parallel, self._lock = parallel, threading.Lock()
        self._started: list[Forkserver] = []
        self._current: dict[Path | None, Forkserver] = {}

    def __enter__(self) -> _Servers:
        return self

    def __exit__(self, *error: object) -> None:
        for server in self._started:
            server.close()

    def of(self, triton: Triton) -> Forkserver:
        """The server of a Triton; one that has died is replaced."""
        with self._lock:
            server = self._current.get(triton.folder)
            if server is None or server.died():
                server = self._current[triton.folder] = Forkserver.started(CHILD, self._environment(triton))
                self._started.append(server)
            return server

    def _environment(self, triton: Triton) -> dict[str, str]:
        """No GPU is visible to the processes, and their Triton is the wanted one, as it is shipped."""
        cores = len(os.sched_getaffinity(0))
        return {
            **{name: value for name, value in os.environ.items() if not name.startswith(_HIDDEN)},
            "PYTHONPATH": python_path(*[triton.folder] if triton.folder else []),
            "CUDA_VISIBLE_DEVICES": "",
            "HIP_VISIBLE_DEVICES": "",
            "OMP_NUM_THREADS": str(max(1, cores // self._parallel)),
        }


def _job(job: Job, servers: _Servers, stop: threading.Event) -> Result:
    begin = time.perf_counter()
    result = Result(job.combination)
    result.inapplicable = job.target.unknown_to(job.triton.version)
    if job.library and not result.inapplicable:
        result.inapplicable = triton_problem(job.library.generation, job.triton.version) or ""
    if result.inapplicable:
        return result
    cache = ResultCache.of(job.triton, job.library.content if job.library else "", job.target)
    foreign = {name for source in job.sources for name in source.checks}  # may import anything: never kept
    ours = tuple(case for case in job.cases if case.check not in foreign)
    missing = cache.load(ours, result) + [case for case in job.cases if case not in ours]
    if missing:
        seen = _compile(job, missing, result, cache, servers, stop)
        cache.save([case for case in seen if case in ours], result)
    result.seconds = time.perf_counter() - begin
    return result


def _compile(
    job: Job, cases: list[Case], result: Result, cache: ResultCache, servers: _Servers, stop: threading.Event
) -> list[Case]:
    """Runs children until every case has a result; a kernel that takes its process down is not tried again.

    Returns:
        The cases whose results are worth keeping.
    """
    worth_keeping: list[Case] = []
    deadly: dict[str, Kernel] = {}
    while cases and not stop.is_set():
        with tempfile.TemporaryDirectory(prefix="gpucheck-compile-") as folder:
            process = _Process(job, cases, deadly, Path(folder), cache.kernels)
            process.run(servers.of(job.triton), stop)
        result.compiled_now += process.compiled
        result.kernels |= process.kernels
        result.cases |= process.cases
        done = process.cases
        worth_keeping += [case for case in cases if case.id in done and not deadly.keys() & done[case.id].kernels]
        cases = [case for case in cases if case.id not in done]
        kernel = process.culprit
        if kernel is not None and kernel.key not in deadly:
            deadly[kernel.key] = kernel
            continue
        # Without a culprit it is the case at hand that cannot be reached; before the first case it is all of them.
        lost = [case for case in cases if process.at in (None, case.id)]
        result.cases |= {case.id: CaseBuilt(case.id, Built.NOT_REACHED, process.death) for case in lost}
        cases = [case for case in cases if case not in lost]
    return worth_keeping


@dataclass
class _Process:
    """One compiling process and what it has told."""

    job: Job
    todo: list[Case]
    deadly: dict[str, Kernel]  # kernels that took an earlier process down, by key
    folder: Path  # for its files; removed afterwards
    cache: Path
    cases: dict[str, CaseBuilt] = field(default_factory=dict)
    kernels: dict[str, Kernel] = field(default_factory=dict)
    compiled: int = 0
    at: str | None = None  # the case it was at when it ended; None before the first and after the last one
    open: dict[str, Any] | None = None  # the last kernel that it began to compile in this case
    death: str = ""  # how it ended, where it did not end well
    hung: bool = False

    def run(self, server: Forkserver, stop: threading.Event) -> None:
        """Starts the process and takes down what it tells until it ends."""
        output = self.folder / "output.txt"
        output.touch()
        try:
            child = server.spawn(STALL)
        except OSError as error:
            self.death = f"its process did not start: {error}"
            return
        try:
            ended = self._listen(child, stop, output)
            code = server.reap(child) if ended else server.kill(child)
        except (OSError, Unkillable) as error:
            self.death = str(error)
            return
        said = [line.strip() for line in output.read_text(encoding="utf-8", errors="replace").splitlines()]
        if self.hung:
            self.death = f"stopped after {STALL:.0f} s without an end"
        elif code:
            self.death = ": ".join([f"its process {ending(code)}", *[line for line in said if line][-1:]])

    def _listen(self, child: Child, stop: threading.Event, output: Path) -> bool:
        """Whether the process ends by itself; not where it is silent for too long, or nobody waits for it any more."""
        since = time.monotonic()
        try:
            send(child.connection, self._question(output))
            while not stop.is_set():
                if child.connection.poll(POLL):
                    self._hear(receive(child.connection))
                    since = time.monotonic()
                elif time.monotonic() - since > STALL:
                    self.hung = True
                    return False
        except (EOFError, OSError, ValueError):
            return True
        return False

    def _hear(self, event: dict[str, Any]) -> None:
        if event["event"] == "begin":
            self.at, self.open = event["case"], None
        elif event["event"] == "kernel":
            self.open = event
        elif event["event"] == "built":
            self.open = None
        else:
            built = read(CaseBuilt, event["result"])
            self.cases[built.case], self.at = built, None
            self.compiled += event["compiled"]
            self.kernels |= {kernel["key"]: read(Kernel, kernel) for kernel in event["kernels"]}

    @property
    def culprit(self) -> Kernel | None:
        """The kernel that the process died of, where it died of one."""
        if self.open is None:
            return None
        kind = Kind.HANG if self.hung else Kind.CRASH
        problem = Problem(kind, self.death, self.open["place"], hint=hint(self.death) or COMPILER_FAULT)
        return Kernel(self.open["key"], self.open["name"], Built.FAILED, launched=self.open["place"], problem=problem)

    def _question(self, output: Path) -> dict[str, Any]:
        library = self.job.library
        return {
            "root": str(library.root) if library else "",
            "generation": library.generation if library else "",
            "target": self.job.target.name,
            "output": str(output),
            "environment": {"TRITON_CACHE_DIR": str(self.cache), "TMPDIR": str(self.folder)},
            "known": [asdict(kernel) for kernel in self.deadly.values()],
            "sources": [asdict(source) for source in self.job.sources],
            "cases": [asdict(case) for case in self.todo],
        }
