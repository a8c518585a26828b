"""The self-test: real runs with planted faults, and what their reports make of them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gpucheck.host.isolated import python_path
from gpucheck.host.processes import start
from gpucheck.host.resources import SHARE, usable_processors
from gpucheck.model.errors import InfrastructureError
from gpucheck.tools.selftest import cache_faults
from gpucheck.tools.selftest.assess import Assessment, Cell, assess, label_of
from gpucheck.tools.selftest.catalogue.controls import OTHER_CONFIG
from gpucheck.tools.selftest.effort import Effort, effort_of
from gpucheck.tools.selftest.fault import CacheDamage, Fault, Session
from gpucheck.tools.selftest.injection import Injector, Planted, reason_against, write_scenario
from gpucheck.tools.selftest.schedule import NO_STRAGGLER, FaultRun, fault_runs

RUN_LIMIT = 900.0  # s for one run
GRACE = 8.0  # s that a run has to end and to report after it was interrupted
SIDE_BY_SIDE = 4  # runs that lose a rank at a time, beside all others: they need no GPU, and mostly wait
MOST_ON_GPUS = 12  # runs with GPUs at a time; as many as there are processors for, one a rank
FEW = 3  # processors of each rank on GPUs, at most: a rank then runs one case at a time, since runs share the GPUs
POLL = 0.1  # s
QUEUES = "CUDA_DEVICE_MAX_CONNECTIONS"  # environment variable: queues of the GPU that all streams of a process share


@dataclass(frozen=True)
class Done:
    """A run that has ended."""

    run: FaultRun
    seconds: float
    found: Assessment
    effort: Effort = field(default_factory=Effort)


@dataclass
class Summary:
    """What the self-test found."""

    device: str
    ranks: int
    library: str  # its content's name and hash
    faults: list[str]
    done: list[Done] = field(default_factory=list)
    inapplicable: dict[str, str] = field(default_factory=dict)  # fault -> why it cannot be shown here
    planned: int = 0  # runs
    cut_short: dict[str, Effort] = field(default_factory=dict)  # runs that were ended early, by name
    at_once: int = 1  # runs
    seconds: float = 0.0
    folder: str = ""

    @property
    def cells(self) -> list[Cell]:
        """One for each fault and target that was planted and could run."""
        return [cell for done in self.done for cell in done.found.cells if not cell.inapplicable]

    @property
    def alarms(self) -> list[str]:
        return [f"{done.run.name}: {alarm}" for done in self.done for alarm in done.found.alarms]

    @property
    def clean(self) -> int:
        """Cases that ran on ranks with nothing planted in them."""
        return sum(done.found.clean for done in self.done)

    @property
    def problems(self) -> list[str]:
        """Everything that is not as it should be, false alarms aside."""
        whole = [f"{done.run.name}: {problem}" for done in self.done for problem in done.found.problems]
        places = {True: "on all ranks", False: "on rank {}"}
        return whole + [
            f"{cell.fault} {places[cell.column == 'all'].format(cell.column)}: {problem}"
            for cell in self.cells
            for problem in cell.problems or (() if cell.detected else ("not detected",))
        ]

    @property
    def complete(self) -> bool:
        return len(self.done) == self.planned

    @property
    def right(self) -> bool:
        """Whether everything was planted, found and told as it should be, and nothing else was."""
        return self.complete and bool(self.cells) and not self.alarms and not self.problems


class SelfTest:
    """Makes the runs; :meth:`stop` ends those under way."""

    def __init__(self, faults: Sequence[Fault], library: Path, device: str, ranks: int, folder: Path) -> None:
        """Plans the runs.

        Args:
            library: package folder of the library.
            device: "cuda" or "cpu".
            folder: where everything is planted and written.
        """
        self.library, self.device, self.folder = library, device, folder
        self.inapplicable = {
            fault.name: reason
            for fault in faults
            if (reason := fault.reason_against(device, ranks) or reason_against(fault, library))
        }
        able = [fault for fault in faults if fault.name not in self.inapplicable]
        self.at_once = at_once(device, ranks)
        self.fault_runs = fault_runs(able, device, ranks, split=self.at_once > 1) if able else []
        self.cut_short: dict[str, Effort] = {}  # runs that :meth:`stop` ended, by name
        self._running: set[subprocess.Popen[bytes]] = set()
        self._lock = threading.Lock()
        self._stopped = 0

    def run(self, summary: Summary, began: Callable[[FaultRun], None], ended: Callable[[Done], None]) -> None:
        """Makes all runs, those that take longest first, and takes them down in a summary.

        Args:
            summary: gains each run as it ends.
            began: called when a run starts, from any thread.
            ended: called when it has been assessed, from this one.
        """
        summary.inapplicable |= self.inapplicable
        summary.planned, summary.at_once = len(self.fault_runs), self.at_once
        summary.cut_short = self.cut_short
        beside = [run for run in self.fault_runs if run.session is Session.LOST]
        order = list(enumerate(self.fault_runs))
        if self.at_once > 1:
            order.sort(key=lambda item: item[1].size, reverse=True)
        with ThreadPoolExecutor(self.at_once) as lane, ThreadPoolExecutor(SIDE_BY_SIDE) as side:
            pending: set[Future[Done | None]] = {
                (side if run in beside else lane).submit(self._run_one, number, run, began) for number, run in order
            }
            try:
                while pending:
                    finished, pending = wait(pending, POLL)
                    for done in filter(None, (future.result() for future in finished)):
                        summary.done.append(done)
                        summary.inapplicable |= {c.fault: c.inapplicable for c in done.found.cells if c.inapplicable}
                        ended(done)
            except BaseException:
                self.stop(signal.SIGTERM)
                raise
        summary.done.sort(key=lambda done: self.fault_runs.index(done.run))

    def stop(self, number: int) -> None:
        """Passes a signal on to the runs under way and starts no more."""
        self._stopped = number
        with self._lock:
            for process in self._running:
                process.send_signal(number)

    def _run_one(self, number: int, run: FaultRun, began: Callable[[FaultRun], None]) -> Done | None:
        if self._stopped:
            return None
        began(run)
        begin = time.monotonic()
        folder = self.folder / f"{number:02d}-{'-'.join(run.name.replace(',', '').split())}"
        folder.mkdir(parents=True)
        planted = [item for item in run.planted if self._can_be_planted(item)]
        injector = Injector(folder / "planted", self.library, run.ranks)
        scenario = folder / "scenario.toml"
        limits = {"case_timeout": run.case_timeout, "experiments": run.experiments}
        limits |= {"straggler": NO_STRAGGLER} if self.at_once > 1 else {}
        write_scenario(scenario, run.groups, title=run.name, **limits)
        library, startup = injector.library_with(planted), injector.startup_with(planted)
        environment = _environment(startup, self.folder / "kernel-cache")
        if run.device == "cuda":
            environment[SHARE] = str(max(1, min(usable_processors() // self.at_once, FEW * run.ranks)))
            if run.one_queue:
                environment.setdefault(QUEUES, "1")
        if run.session is Session.CACHE:
            environment["TRITON_CACHE_DIR"] = str(folder / "kernel-cache")
            self._command(folder / "first", run, scenario, library, environment)
            self._damage(run, folder)
        candidates = injector.candidates_with(planted)
        code, text = self._command(folder, run, scenario, library, environment, candidates)
        effort = effort_of(folder / "run")
        if self._stopped:
            self.cut_short[run.name] = effort
            return None
        found = assess(run, _report(folder, text), text, code)
        return Done(run, time.monotonic() - begin, found, effort)

    def _can_be_planted(self, item: Planted) -> bool:
        """Whether the library has a place for it; the control that is none is left out elsewhere."""
        return item.fault is not OTHER_CONFIG or not reason_against(item.fault, self.library)

    def _damage(self, run: FaultRun, folder: Path) -> None:
        if self._stopped:
            return
        kernels = cache_faults.hashes(folder / "first" / "run")
        for item in run.planted:
            assert isinstance(item.fault.plant, CacheDamage)
            damage = {"swap": cache_faults.swap, "truncate": cache_faults.truncate}[item.fault.plant.name]
            damage(folder / "kernel-cache", label_of(item.fault), kernels)

    def _command(
        self,
        folder: Path,
        run: FaultRun,
        scenario: Path,
        library: Path,
        environment: Mapping[str, str],
        candidates: Sequence[str] = (),
    ) -> tuple[int, str]:
        """Runs ``gpucheck run`` to its end; its exit code and what it printed."""
        folder.mkdir(exist_ok=True)
        command = [sys.executable, "-m", "gpucheck", "run", str(scenario), "--nproc", str(run.ranks)]
        command += ["--device", run.device, "--seed", str(run.seed), "--timeout", str(RUN_LIMIT), "--verbose"]
        command += ["--library", f"path:{library}", "--out", str(folder / "run"), "--json", str(folder / "report.json")]
        command += candidates
        log = folder / "printed.txt"
        process = start(command, environment, log)
        with self._lock:
            self._running.add(process)
            if self._stopped:
                process.send_signal(self._stopped)
        try:
            while process.poll() is None and not self._stopped:
                time.sleep(POLL)
            code = process.wait(GRACE if self._stopped else None)
        except subprocess.TimeoutExpired:
            process.kill()
            code = process.wait()
        finally:
            with self._lock:
                self._running.discard(process)
        return code, log.read_text(errors="replace")


def at_once(device: str, ranks: int) -> int:
    """How many runs are made at a time: on the CPU one, since its processors are what runs take all of."""
    return max(1, min(MOST_ON_GPUS, usable_processors() // ranks)) if device == "cuda" else 1


def _environment(startup: Path | None, kernel_cache: Path) -> dict[str, str]:
    """Of a planted run: its startup code first, this gpucheck behind it, and a kernel cache that is nobody else's."""
    return {
        **os.environ,
        "PYTHONPATH": python_path(*[startup] if startup else []),
        "TRITON_CACHE_DIR": str(kernel_cache),
    }


def _report(folder: Path, text: str) -> dict[str, Any]:
    path = folder / "report.json"
    if not path.is_file():
        last = next((line for line in reversed(text.splitlines()) if line.strip()), "nothing")
        raise InfrastructureError(f"a run of the self-test wrote no report; it said: {last}\n  see  {folder}")
    content: dict[str, Any] = json.loads(path.read_text())
    return content
