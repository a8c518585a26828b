"""The supervisor of a rank: drives a child through the plan and judges what comes back on the CPU.

It never touches CUDA. A dead or hung child costs a fresh child, not the run.
"""

from __future__ import annotations

import itertools
import os
import signal
import socket
import sys
import threading
import time
import traceback
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from gpucheck.model.plan import Plan, Step
from gpucheck.model.record import Launch, Outcome, Record
from gpucheck.records.folder import read_plan
from gpucheck.records.writer import RecordWriter

if TYPE_CHECKING:
    from torch import Tensor

    from gpucheck.worker.child import Reply
    from gpucheck.worker.store import Store
    from gpucheck.worker.zygote import Child, Zygote

STARTUP_TIMEOUT = 120.0  # s for a child to create its CUDA context
STORE_LIMIT = 8 << 30  # bytes of inputs and references made ahead of their use
WINDOW = 4  # steps a local rank, within which ranks take steps in different order
JUDGE_THREADS = max(1, min(4, len(os.sched_getaffinity(0)) // 2))  # its operations are small
PENDING_JUDGEMENTS = 2  # outputs that wait for the judge while the child goes on


def main(run: Path) -> None:
    """Runs the plan of a run folder as the rank that torchrun's environment names."""
    began = time.perf_counter()
    from gpucheck import checks
    from gpucheck.worker.zygote import Zygote, die_with_parent

    die_with_parent()
    signal.signal(signal.SIGTERM, lambda *_: os._exit(128 + signal.SIGTERM))
    plan = read_plan(run)
    checks.activate(plan.check_sources)
    if plan.device == "cpu":
        os.environ["TRITON_INTERPRET"] = "1"
    import torch
    import triton  # noqa: F401 - loaded for the children, which are forked from here

    from gpucheck.worker import child

    zygote = Zygote(child.serve)
    imported = time.perf_counter() - began
    torch.set_num_threads(fair_threads())
    Supervisor(run, plan, zygote, imported).work()
    zygote.close()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # taking down an interpreter with torch in it lasts longer than many a case


def fair_threads() -> int:
    """This rank's share of the processors it may use."""
    return max(1, len(os.sched_getaffinity(0)) // int(os.environ["LOCAL_WORLD_SIZE"]))


class Supervisor:
    """One rank's way through the plan."""

    def __init__(self, run: Path, plan: Plan, zygote: Zygote, import_seconds: float) -> None:
        from gpucheck.worker.store import Store

        self.plan, self.zygote = plan, zygote
        self.rank = int(os.environ["RANK"])
        self.local_rank = int(os.environ["LOCAL_RANK"])
        local_ranks = int(os.environ["LOCAL_WORLD_SIZE"])
        scratch = Path(os.environ["GPUCHECK_SCRATCH"])
        self.store: Store = Store(scratch, local_ranks)
        self._order = rotated_order(plan, self.local_rank, local_ranks)
        self.writer = RecordWriter(run, self.rank)
        self.host = socket.gethostname()
        self.writer.start(
            rank=self.rank, local_rank=self.local_rank, host=self.host, pid=os.getpid(), import_seconds=import_seconds
        )
        self._child: Child | None = None
        self._placement = ""
        self._stopped = threading.Event()
        self._child_seconds = 0.0

    def work(self) -> None:
        """Runs every step; judging overlaps with the next case."""
        import torch

        maker = threading.Thread(target=self._make_ahead, daemon=True)
        maker.start()
        pending: list[Future[None]] = []
        with ThreadPoolExecutor(1, "judge", initializer=torch.set_num_threads, initargs=(JUDGE_THREADS,)) as judges:
            for number in self._order:
                step = self.plan.steps[number]
                while len(pending) >= PENDING_JUDGEMENTS:
                    pending.pop(0).result()
                record, reply = self._run(number, step)
                pending.append(judges.submit(self._finish, number, step, record, reply))
        for future in pending:
            future.result()
        self._stopped.set()
        self._retire()
        self.writer.end(child_seconds=self._child_seconds)

    def _make_ahead(self) -> None:
        import torch

        from gpucheck.worker.store import wait_for_room

        torch.set_num_threads(fair_threads())  # holds for the thread that calls it
        for number in self._order:
            wait_for_room(self.store, STORE_LIMIT, self._stopped.is_set)
            if self._stopped.is_set():
                return
            step = self.plan.steps[number]
            try:
                if not step.inapplicable and not self._judged(number):
                    self.store.make_ahead(number, step.case)
            except Exception:
                continue  # the rank that needs it meets the error itself and reports it

    def _judged(self, number: int) -> bool:
        return (self.store.folder / f"{number}.done{self.rank}").exists()

    def _run(self, number: int, step: Step) -> tuple[Record, Reply | None]:
        """One case in the child; the record is complete unless there is a reply to judge.

        Whatever goes wrong here is written down: a supervisor that ends early loses the cases to come.
        """
        record = Record(
            number,
            step.case.id,
            self.rank,
            Outcome.HARNESS,
            placement=step.placement,
            host=self.host,
            pid=os.getpid(),
        )
        self.writer.begin(number)
        if step.inapplicable:
            return replace(record, outcome=Outcome.INAPPLICABLE, message=step.inapplicable), None
        begin = time.perf_counter()
        try:
            inputs = self.store.inputs(number, step.case)
            waited = time.perf_counter() - begin
            child = self._ready(step.placement)
        except Exception as error:
            return replace(record, message=_words(error), traceback=traceback.format_exc()), None
        record = replace(record, seconds={"inputs": waited, "child": time.perf_counter() - begin - waited})
        if isinstance(child, str):
            return replace(record, outcome=Outcome.CRASH, message=child), None
        try:
            return self._execute(record, step, child, inputs)
        except Exception as error:
            self._child = None
            return replace(record, message=_words(error), traceback=traceback.format_exc()), None

    def _execute(self, record: Record, step: Step, child: Child, inputs: Path) -> tuple[Record, Reply | None]:
        from gpucheck.worker.child import Request

        record = replace(record, pid=child.pid)
        try:
            outputs = str(self._outputs(record.step))
            child.connection.send(Request(step.case, str(inputs), outputs, step.late, step.repeat))
            if not child.connection.poll(self.plan.case_timeout):
                return self._hung(record, child), None
            reply: Reply = child.connection.recv()
        except (EOFError, OSError):
            code = self.zygote.reap(child)
            self._child = None
            return replace(record, outcome=Outcome.CRASH, message=_death(code)), None
        if reply.fatal:
            self._retire()
        return record, reply

    def _hung(self, record: Record, child: Child) -> Record:
        from gpucheck.worker import stacks

        text = stacks.collect(child.pid, self._stacks())
        self._retire()
        place = stacks.innermost(text)
        message = f"no result within {self.plan.case_timeout:g} s" + (f", at {place}" if place else "")
        return replace(record, outcome=Outcome.HANG, message=message + "; the process was killed", traceback=text)

    def _stacks(self) -> Path:
        return self.store.folder / f"stacks{self.rank}"

    def _outputs(self, number: int) -> Path:
        return self.store.folder / f"{number}.outputs{self.rank}"

    def _ready(self, placement: str) -> Child | str:
        """The child for a placement, started if needed; a string says how starting it failed."""
        from gpucheck.worker.child import Setup

        if self._child is not None and self._placement == placement:
            return self._child
        self._retire()
        begin = time.perf_counter()
        child = self.zygote.spawn()
        library = self.plan.library
        setup = Setup(placement, self.local_rank, library["root"], library["generation"], str(self._stacks()))
        try:
            child.connection.send(setup)
            if not child.connection.poll(STARTUP_TIMEOUT):
                self.zygote.bury(child)
                return f"the process on this GPU was not ready within {STARTUP_TIMEOUT:g} s"
            problem = child.connection.recv()
        except (EOFError, OSError):
            return "while it was set up, " + _death(self.zygote.reap(child))
        if problem:
            self.zygote.bury(child)
            return f"the device could not be set up: {problem}"
        self._child, self._placement = child, placement
        self._child_seconds += time.perf_counter() - begin
        return child

    def _retire(self) -> None:
        if self._child is not None:
            self.zygote.bury(self._child)
            self._child = None

    def _finish(self, number: int, step: Step, record: Record, reply: Reply | None) -> None:
        """Judges a reply, writes the record and lets go of the case's files."""
        try:
            if reply is not None:
                record = self._judge(number, step, record, reply)
        except Exception as error:
            record = replace(record, outcome=Outcome.HARNESS, message=_words(error), traceback=traceback.format_exc())
        self.writer.result(record)
        self._outputs(number).unlink(missing_ok=True)
        for further in self.store.folder.glob(f"{self._outputs(number).name}.*"):
            further.unlink(missing_ok=True)
        self.store.done(number, self.rank)

    def _judge(self, number: int, step: Step, record: Record, reply: Reply) -> Record:
        import torch

        from gpucheck import checks
        from gpucheck.verify import digest
        from gpucheck.verify.judge import Judgement, judge
        from gpucheck.worker.child import outputs_file
        from gpucheck.worker.conduct import observed_violations

        launches = [Launch(**launch) for launch in reply.launches]
        record = replace(record, device=reply.device, launches=launches, seconds={**record.seconds, **reply.seconds})
        if reply.status == "inapplicable":
            return replace(record, outcome=Outcome.INAPPLICABLE, message=reply.message)
        if reply.status == "error":
            return replace(record, outcome=Outcome.ERROR, message=reply.message, traceback=reply.traceback)
        begin = time.perf_counter()
        expected = self.store.reference(number, step.case)
        waited = time.perf_counter() - begin
        inputs = torch.load(self.store.inputs(number, step.case), mmap=True, weights_only=True)
        axes = checks.load(step.case.check).axes(step.case, inputs)
        outputs: dict[str, Tensor] = {}
        found, wrong = Judgement(), 0
        for distinct, whole in enumerate(reply.saved or [""]):
            got = torch.load(outputs_file(str(self._outputs(number)), distinct), mmap=True, weights_only=True)
            judged = judge(got, expected, axes)
            bad = bool(judged.mismatches or judged.violations)
            if not distinct or (bad and not wrong):
                outputs, found = got, judged
            wrong += max(1, reply.digests.count(whole)) * bad
        violations = found.violations + observed_violations(reply, launches)
        outcome = Outcome.MISMATCH if found.mismatches else Outcome.VIOLATION if violations else Outcome.PASS
        record = replace(
            record,
            outcome=outcome,
            mismatches=found.mismatches,
            violations=violations,
            digests={name: digest.whole(value) for name, value in outputs.items()},
            tiles={name: digest.tiles(value) for name, value in outputs.items()},
            inputs=self.store.input_digest(number, step.case),
            tightness=found.tightness,
            bounds={name: item.basis for name, item in expected.items() if item.basis},
            speed=reply.speed,
            repeats=step.repeat,
            wrong=min(wrong, step.repeat),
        )
        spent = time.perf_counter() - begin - waited
        return replace(record, seconds={**record.seconds, "reference": waited, "judge": spent})


def rotated_order(plan: Plan, local_rank: int, local_ranks: int) -> list[int]:
    """The order in which a rank takes the steps.

    Within a window each rank starts at a place of its own, so that ranks compile different kernels into the cache they
    share, and make different inputs, while all stay close enough together for a bounded store.
    """
    order: list[int] = []
    for _, group in itertools.groupby(range(len(plan.steps)), key=lambda number: plan.steps[number].placement):
        steps = list(group)
        size = WINDOW * local_ranks
        for start in range(0, len(steps), size):
            window = steps[start : start + size]
            turn = local_rank * len(window) // local_ranks
            order += window[turn:] + window[:turn]
    return order


def _death(code: int) -> str:
    if code < 0:
        return f"the process that owns the device was killed by {signal.Signals(-code).name}"
    return f"the process that owns the device ended with exit code {code}"


def _words(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
