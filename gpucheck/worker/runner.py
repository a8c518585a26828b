"""Runs single attempts in a child of this rank, which it starts, reuses, watches and replaces."""

from __future__ import annotations

import os
import signal
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from gpucheck.model.conditions import Conditions
from gpucheck.model.plan import Plan, Step
from gpucheck.model.record import Outcome, Record

if TYPE_CHECKING:
    from gpucheck.worker.node import Node
    from gpucheck.worker.protocol import Look, Reply, Setup
    from gpucheck.worker.store import Store
    from gpucheck.worker.zygote import Child, Zygote

STARTUP_TIMEOUT = 120.0  # s for a child to create its CUDA context
MEETING_TIMEOUT = 20.0  # s that ranks wait for each other before they fill a cold cache


@dataclass(frozen=True)
class Attempt:
    """One attempt of a case; complete as it is unless there is a reply to judge."""

    step: Step
    key: str  # of its inputs and references in the store
    record: Record
    outputs: str  # file of the first outputs
    reply: Reply | None = None
    look: Look | None = None


class Runner:
    """The child of a rank and everything around it."""

    def __init__(self, plan: Plan, node: Node, store: Store, zygote: Zygote, rank: int, host: str, run: Path) -> None:
        self.plan, self.node, self.store, self.zygote = plan, node, store, zygote
        self.rank, self.host, self.run_folder = rank, host, run
        self.child_seconds = 0.0
        self._child: Child | None = None
        self._setup: Setup | None = None

    def run(self, number: int, step: Step, experiment: str = "", look: Look | None = None) -> Attempt:
        """One attempt on this rank.

        Whatever goes wrong here is written down: a supervisor that ends early loses the cases to come.
        """
        attempt = replace(self._attempt(number, step, experiment), look=look)
        if step.inapplicable:
            return _ended(attempt, Outcome.INAPPLICABLE, step.inapplicable)
        if step.conditions.whole_node and not experiment:
            return self._host(attempt) if self.node.local_rank == 0 else self._guest(attempt)
        if not step.conditions.whole_node:
            done, replies = self._run(attempt, [attempt.outputs])
            return replace(done, reply=replies[0] if replies else None)
        outputs = [f"{attempt.outputs}.on{rank}" for rank in range(self.node.local_ranks)]
        done, replies = self._run(attempt, outputs)
        mine = self.node.local_rank
        return replace(done, outputs=outputs[mine], reply=replies[mine] if replies else None)

    def retire(self) -> None:
        """Ends the child."""
        if self._child is not None:
            self.zygote.bury(self._child)
            self._child = None

    def _attempt(self, number: int, step: Step, experiment: str) -> Attempt:
        record = Record(
            number,
            step.case.id,
            self.rank,
            Outcome.HARNESS,
            experiment=experiment,
            placement=step.conditions.placement,
            host=self.host,
            pid=os.getpid(),
        )
        key = f"{number}-again" if experiment else str(number)
        return Attempt(step, key, record, self._outputs(number, experiment, self.node.local_rank))

    def _outputs(self, number: int, experiment: str, local_rank: int) -> str:
        words = experiment.replace(" ", "-")
        return str(self.store.folder / f"{number}{words}.outputs{local_rank}")

    def _host(self, attempt: Attempt) -> Attempt:
        """Runs the process that holds all GPUs of the node and hands the other ranks what came of it."""
        number = attempt.record.step
        outputs = [self._outputs(number, "", rank) for rank in range(self.node.local_ranks)]
        done, replies = self._run(attempt, outputs)
        for rank in range(1, self.node.local_ranks):
            self.node.publish(str(number), rank, (done.record, replies[rank] if replies else None))
        return replace(done, reply=replies[0] if replies else None)

    def _guest(self, attempt: Attempt) -> Attempt:
        """What came of this rank's GPU in the process that the first rank of the node runs."""
        answer = self.node.collect(str(attempt.record.step), 0)
        if answer is None:
            words = "the first rank of the node, whose process holds all GPUs, has ended"
            return _ended(attempt, Outcome.HARNESS, words)
        record, reply = answer
        return replace(attempt, record=replace(record, rank=self.rank), reply=reply)

    def _run(self, attempt: Attempt, outputs: Sequence[str]) -> tuple[Attempt, list[Reply]]:
        record, step = attempt.record, attempt.step
        begin = time.perf_counter()
        try:
            inputs = self.store.inputs(attempt.key, step.case)
            waited = time.perf_counter() - begin
            child = self._ready(attempt)
        except Exception as error:
            return _harness(attempt, error), []
        seconds = {"inputs": waited, "child": time.perf_counter() - begin - waited}
        attempt = replace(attempt, record=replace(record, seconds=seconds))
        if isinstance(child, str):
            return _ended(attempt, Outcome.CRASH, child), []
        try:
            if step.conditions.cache == "cold" and not record.experiment:
                self.node.meet(str(record.step), MEETING_TIMEOUT)
            return self._execute(attempt, child, inputs, outputs)
        except Exception as error:
            self._child = None
            return _harness(attempt, error), []

    def _execute(
        self, attempt: Attempt, child: Child, inputs: Path, outputs: Sequence[str]
    ) -> tuple[Attempt, list[Reply]]:
        from gpucheck.worker.protocol import Request
        from gpucheck.worker.timing import allowance

        attempt = replace(attempt, record=replace(attempt.record, pid=child.pid))
        deadline = self.plan.case_timeout * len(outputs)
        try:
            step = attempt.step
            timed = allowance(self.plan, step, attempt.record.experiment)
            request = Request(step.case, step.conditions, str(inputs), tuple(outputs), timed, attempt.look)
            child.connection.send(request)
            if not child.connection.poll(deadline):
                return self._hung(attempt, child, deadline), []
            replies: list[Reply] = child.connection.recv()
        except (EOFError, OSError):
            code = self.zygote.reap(child)
            self._child = None
            return _ended(attempt, Outcome.CRASH, death(code)), []
        if any(reply.fatal for reply in replies):
            self.retire()
        return attempt, replies

    def _hung(self, attempt: Attempt, child: Child, deadline: float) -> Attempt:
        from gpucheck.worker import stacks

        text = stacks.collect(child.pid, self._stacks())
        self.retire()
        place = stacks.innermost(text)
        message = f"no result within {deadline:g} s" + (f", at {place}" if place else "") + "; the process was killed"
        return _ended(attempt, Outcome.HANG, message, text)

    def _stacks(self) -> Path:
        return self.store.folder / f"stacks{self.node.local_rank}"

    def _ready(self, attempt: Attempt) -> Child | str:
        """The child for an attempt, started if needed; a string says how starting it failed."""
        setup = self._setup_for(attempt)
        if self._child is not None and self._setup == setup:
            return self._child
        self.retire()
        begin = time.perf_counter()
        child = self.zygote.spawn()
        try:
            child.connection.send(setup)
            if not child.connection.poll(STARTUP_TIMEOUT):
                self.zygote.bury(child)
                return f"the process on this GPU was not ready within {STARTUP_TIMEOUT:g} s"
            problem = child.connection.recv()
        except (EOFError, OSError):
            return "while it was set up, " + death(self.zygote.reap(child))
        if problem:
            self.zygote.bury(child)
            return f"the device could not be set up: {problem}"
        self._child, self._setup = child, setup
        self.child_seconds += time.perf_counter() - begin
        return child

    def _setup_for(self, attempt: Attempt) -> Setup:
        from gpucheck.worker.protocol import Setup, lifelong

        library = self.plan.library
        conditions = lifelong(attempt.step.conditions)
        return Setup(
            conditions=conditions,
            device=self.plan.device,
            local_rank=self.node.local_rank,
            local_ranks=self.node.local_ranks,
            rank=self.rank,
            world_size=self.plan.world_size,
            library_root=library["root"],
            generation=library["generation"],
            stacks=str(self._stacks()),
            attempt=attempt.record.experiment,
            cache=self._cache(attempt, conditions),
            meeting=self._meeting(conditions),
        )

    def _cache(self, attempt: Attempt, conditions: Conditions) -> str:
        """The folder of Triton's kernel cache; "" is the usual one. An experiment never shares a cold one."""
        if conditions.cache == "shared":
            return ""
        record = attempt.record
        own = conditions.cache == "fresh" or record.experiment
        name = f"cache-{record.step}{record.experiment.replace(' ', '-')}" + (f"-{self.node.local_rank}" if own else "")
        folder = self.store.folder / name
        folder.mkdir(exist_ok=True)
        return str(folder)

    def _meeting(self, conditions: Conditions) -> str:
        """The file where a process group meets, in the memory of the node where it is the only one."""
        if conditions.process_group == "none":
            return ""
        folder = self.store.folder if self.plan.nnodes == 1 else self.run_folder
        return str(folder / "process-group")


def _ended(attempt: Attempt, outcome: Outcome, message: str, traceback: str = "") -> Attempt:
    return replace(attempt, record=replace(attempt.record, outcome=outcome, message=message, traceback=traceback))


def _harness(attempt: Attempt, error: Exception) -> Attempt:
    return _ended(attempt, Outcome.HARNESS, words(error), traceback.format_exc())


def death(code: int) -> str:
    """How a child ended, in words."""
    if code < 0:
        return f"the process that owns the device was killed by {signal.Signals(-code).name}"
    return f"the process that owns the device ended with exit code {code}"


def words(error: Exception) -> str:
    """An exception in one line."""
    return f"{type(error).__name__}: {error}"
