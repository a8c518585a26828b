"""Processes that try a failed case under a changed condition: what each runs, what it answered, and who makes it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from gpucheck.diagnose.answers import Answers, kinds, lacked_memory, steady
from gpucheck.diagnose.experiment_list import HISTORY, REPEAT, applicable, calls_asked
from gpucheck.diagnose.strategy import worth_a_process
from gpucheck.model.conditions import Conditions
from gpucheck.model.plan import Plan
from gpucheck.model.record import Outcome, Record
from gpucheck.model.vocabulary import ExperimentName, ViolationKind, file_name
from gpucheck.records.writer import RecordWriter
from gpucheck.worker.supervisor.child_runner import ChildRunner
from gpucheck.worker.supervisor.experiment_pool import ExperimentPool, ExperimentProcess, Follow, nothing
from gpucheck.worker.supervisor.lane_queue import needed_memory
from gpucheck.worker.supervisor.lanes import runs_beside

if TYPE_CHECKING:
    from gpucheck.worker.supervisor.judge_pool import JudgeProcesses

LACKING = 3  # attempts at a process that lacks the memory which others hold on its GPU, or that a case before it ended
OF_THE_FIRST = ("inputs", "child", "compile")  # stages that take long where they come first


class ExperimentAttempts:
    """The attempts of one rank at experiments, and their answers."""

    def __init__(
        self,
        plan: Plan,
        runners: Sequence[ChildRunner],
        writer: RecordWriter,
        failed: Sequence[Record],
        judges: JudgeProcesses | None = None,
    ) -> None:
        """Args:
        runners: of the processes that may run at once; the first one makes what needs to be by itself.
        judges: processes that judge; without them this one does.
        """
        self._judges = judges
        self.plan, self.runner, self.writer = plan, runners[0], writer
        self._runners = runners
        self.failed = failed
        self._failures = {record.step: record for record in failed}
        self._tried: dict[int, dict[ExperimentName, list[Record]]] = {record.step: {} for record in failed}
        self._applicable: dict[int, dict[ExperimentName, Conditions]] = {}
        self._deadline = time.monotonic() + plan.experiments
        self._ours: set[tuple[int, ExperimentName]] = set()  # experiments that this rank has taken on

    def _seconds_left(self) -> float:
        return self._deadline - time.monotonic()

    def _open(self) -> bool:
        return self._seconds_left() > 0 and not any(runner.child.stuck for runner in self._runners)

    def _possible(self, record: Record) -> dict[ExperimentName, Conditions]:
        if record.step not in self._applicable:
            conditions = self.plan.steps[record.step].conditions
            found = applicable(record, conditions, self.plan.device, self.runner.node.local_ranks)
            self._applicable[record.step] = {} if self._takes_too_long(record) else dict(found)
        return self._applicable[record.step]

    def _takes_too_long(self, record: Record) -> bool:
        """Whether a process more of a candidate takes longer than all experiments may: its verdict is waited for."""
        of_candidate = self.plan.steps[record.step].case.check in self.plan.candidates
        again = sum(seconds for stage, seconds in record.seconds.items() if stage not in OF_THE_FIRST)
        return of_candidate and again > self.plan.experiments

    def _seen(self, record: Record) -> Answers:
        node = self.runner.node
        others = frozenset(range(node.local_ranks)) - {node.local_rank}
        clean = frozenset(rank for rank in others if node.posted(right_word(record.step), rank))
        return Answers(record, self._tried[record.step], "", clean, others)

    def _worth(self, record: Record, name: ExperimentName) -> bool:
        possible = self._possible(record)
        return name in possible and worth_a_process(name, self._seen(record), frozenset(possible))

    def _falls_to_us(self, record: Record, name: ExperimentName) -> bool:
        """Whether this rank makes an experiment: of ranks with the same wrong bits only one makes it.

        Each rank finds out by itself whether the bits come every time; only then do answers of others hold for it.
        """
        if (record.step, name) in self._ours:
            return True
        each = self._made_by_each(record, name) or not self._seen(record).deterministic
        if each or self.runner.node.claim(f"{record.step}-{record.bits}-{file_name(name)}"):
            self._ours.add((record.step, name))
            return True
        return False

    def _made_by_each(self, record: Record, name: ExperimentName) -> bool:
        """Whether each rank makes an experiment, whatever bits others have."""
        return name == REPEAT or not record.bits or self.runner.node.local_ranks == 1

    def _process_for(
        self, record: Record, name: ExperimentName, after: tuple[int, ...] = (), seen: Answers | None = None
    ) -> ExperimentProcess:
        """A process that tries a case under the condition of an experiment; ``seen`` as in :meth:`_sure`."""
        step, seen = self.plan.steps[record.step], seen or self._seen(record)
        conditions = self._possible(record)[name]
        if name != HISTORY:
            first = next(iter(seen.processes(REPEAT)), None)
            conditions = replace(conditions, repeat=calls_asked(record, first, step.conditions))
        return ExperimentProcess(record.step, replace(step, conditions=conditions), name, after=after)

    def _at_once(
        self,
        processes: Sequence[ExperimentProcess],
        ahead: Sequence[ExperimentProcess] = (),
        follow: Follow = nothing,
    ) -> None:
        """Runs processes that each have one case: side by side those that cannot disturb each other.

        Args:
            ahead: see :meth:`ExperimentPool.run`, as for ``follow``.
        """
        beside = [process for process in processes if self._undisturbed(process)]
        by_itself = [process for process in processes if not self._undisturbed(process)]

        def follow_beside(process: ExperimentProcess) -> Sequence[ExperimentProcess]:
            asked = follow(process)
            by_itself.extend(each for each in asked if not self._undisturbed(each))
            return [each for each in asked if self._undisturbed(each)]

        while self._open() and (by_itself or beside):
            while self._open() and by_itself:
                process = by_itself.pop(0)
                self._try(process)
                beside += follow_beside(process)
            self.runner.child.retire()
            pool = ExperimentPool(self._runners, self._made_beside, self._take)
            by_itself += pool.run(beside, ahead, follow_beside)
            beside, ahead = [], ()

    def _undisturbed(self, process: ExperimentProcess) -> bool:
        """Whether other processes on the GPU leave what a case does as it is: its failure does not come and go."""
        if len(self._runners) == 1:
            return False  # there are none
        record, step = self._failures[process.number], self.plan.steps[process.number]
        repeats = self._seen(record).processes(REPEAT)
        if needed_memory(step) or (step.optional and not step.own_engine):
            return False  # it may lack what others take
        usual = runs_beside(step) and not process.after and process.step.conditions.process_group == "none"
        return usual and steady(record) and (not repeats or self._seen(record).deterministic)

    def _beside(self, record: Record, name: ExperimentName) -> bool:
        """Whether several processes of an experiment with a case can run side by side."""
        return self._undisturbed(self._process_for(record, name))

    def _try(self, process: ExperimentProcess, *, fresh: bool = True) -> Record | None:
        """Runs one process, fresh or the present one; None: a case that had to run before ended it, each time."""
        if fresh:
            self.runner.child.retire()
        record = self._made(process, self.runner)
        for _ in range(LACKING - 1):
            again = self._lacked_memory(record) if record is not None else bool(process.after)
            if not (again and self._open()):
                break
            self.runner.child.retire()
            record = self._made(process, self.runner)
        if record is not None:
            self._take(process, record)
        return record

    def _lacked_memory(self, made: Record) -> bool:
        """Whether a process lacked memory that the case itself had."""
        return lacked_memory(made) and not lacked_memory(self._failures[made.step])

    def _take(self, process: ExperimentProcess, record: Record) -> None:
        self.writer.result(record)
        self._tried[process.number].setdefault(process.name, []).append(record)

    def _made_beside(self, process: ExperimentProcess, runner: ChildRunner) -> Record | None:
        """What one process of several answered; None: there is no time left, or others took the memory it needed."""
        made = self._made(process, runner) if self._open() else None
        return None if made and (made.outcome is Outcome.INAPPLICABLE or lacked_memory(made)) else made

    def _made(self, process: ExperimentProcess, runner: ChildRunner) -> Record | None:
        from gpucheck.worker.supervisor.judging import finished

        self.writer.begin(process.number, process.name)
        for number in process.after:
            other = runner.run(number, self.plan.steps[number], process.name, own=True)
            runner.forget(other)
            if other.reply is None or not self._open():
                return None
        partner = self._partner(process)
        attempt = runner.run(
            process.number,
            process.step,
            process.name,
            deadline=process.deadline,
            partner=partner,
            own=process.own,
            known=self._failures[process.number].digests if process.known else None,
        )
        candidate = process.step.case.check in self.plan.candidates
        if candidate:
            from gpucheck.worker.supervisor.candidate_calls import examined, taken

            attempt = taken(runner.files, attempt)
            if _seen_by_further_calls(self._failures[process.number]):
                attempt = examined(runner, attempt)
        judged = (self._judges.finished if self._judges else finished)(runner.files, attempt)
        record = replace(judged, after=list(process.after), partner=partner)
        if process.own:
            runner.forget(attempt)
        if process.after and record.before not in (-1, len(process.after)):
            return None  # a case before it ended that process: this one is another
        return record

    def _partner(self, process: ExperimentProcess) -> int | None:
        """The local rank that lends its environment or device: in turn those that were right, else all others."""
        if not process.step.conditions.swap:
            return None
        node, seen = self.runner.node, self._seen(self._failures[process.number])
        near = sorted(seen.lenders, key=lambda rank: (rank - node.local_rank) % node.local_ranks)
        return near[len(seen.processes(process.name)) % len(near)]


def _seen_by_further_calls(failure: Record) -> bool:
    """Whether a further call of a candidate gave other bits, and no call of the case itself."""
    return failure.outcome is Outcome.VIOLATION and ViolationKind.REPEATS_DIFFER in kinds(failure) and not failure.calls


def right_word(step: int) -> str:
    """What a rank tells its node of a step that it got right."""
    return f"{step}-right"
