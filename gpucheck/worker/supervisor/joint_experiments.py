"""Runs failed joint cases again on all ranks, in fresh processes and a fresh group, each time under one condition."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from gpucheck.diagnose.answers import again, way
from gpucheck.diagnose.chance import LUCK, MOST_PROCESSES, by_luck
from gpucheck.diagnose.experiment_list import EXPERIMENTS, REPEAT, REPEATS, applicable
from gpucheck.diagnose.strategy import ALONE
from gpucheck.model.plan import Plan, Step
from gpucheck.model.record import Record
from gpucheck.model.vocabulary import ExperimentName
from gpucheck.records.writer import RecordWriter
from gpucheck.worker.supervisor.board import Board, NoStore
from gpucheck.worker.supervisor.child_runner import ChildRunner

MOST_STEPS = 64  # tried: one of each way to fail, as far as the time goes


class JointExperiments:
    """The experiments with joint cases. All ranks make the same ones, since all decide by what all have told."""

    def __init__(self, plan: Plan, runner: ChildRunner, writer: RecordWriter, failed: Sequence[Record]) -> None:
        self.plan, self.runner, self.writer = plan, runner, writer
        self._failed = {record.step: record for record in failed}
        self._repeats: dict[int, list[dict[int, Any]]] = {}  # step -> what all ranks told of each repetition
        self._turns = 0
        self._deadline = 0.0

    def work(self) -> None:
        """Makes the experiments, within the seconds that the plan grants, as rank 0 counts them."""
        if not any(step.together and not step.inapplicable for step in self.plan.steps) or not self.plan.experiments:
            return
        self._deadline = time.monotonic() + self.plan.experiments
        try:
            board = self.runner.together.board()
            told = board.gather("failed", {step: self._told(record) for step, record in self._failed.items()})
            if told is not None:
                self._series(board, chosen(self.plan, told))
        except NoStore:
            return  # the cases themselves have told of it

    def _told(self, record: Record) -> list[str]:
        """How a case failed here, and the experiments that can tell something about it."""
        possible = applicable(record, self.plan.steps[record.step].conditions, self.plan.device, self.plan.nproc)
        return ["; ".join(way(record)), *(name for name, _ in possible)]

    def _series(self, board: Board, steps: Mapping[int, set[str]]) -> None:
        self._repeat(board, [step for step, possible in steps.items() if REPEAT in possible])
        for name, experiment in EXPERIMENTS.items():
            for step, possible in steps.items():
                changed = experiment.change(self.plan.steps[step].conditions)
                if name == REPEAT or name not in possible or changed is None:
                    continue
                made = 0
                while self._worth(step, made) and self._open(board):
                    told = self._try(board, step, replace(self.plan.steps[step], conditions=changed), name)
                    self.runner.child.retire()
                    if told is None or _failed(told):
                        break
                    made += 1

    def _repeat(self, board: Board, steps: Sequence[int]) -> None:
        """Runs cases again as they are: each by itself, and those that fail alike every time in one process after that.

        Each of the latter is the first at its turn, and one that comes out otherwise is by itself from then on.
        """
        self.runner.child.retire()
        for turn in range(REPEATS):
            shared = [step for step in steps if self._fails_alike(step)]
            first = turn % max(1, len(shared))
            for step in (*(step for step in steps if step not in shared), *shared[first:], *shared[:first]):
                told = self._try(board, step, self.plan.steps[step], REPEAT) if self._open(board) else None
                if told is not None:
                    self._repeats.setdefault(step, []).append(told)
                if step not in shared or step == shared[first - 1]:  # the last one of them
                    self.runner.child.retire()

    def _fails_alike(self, step: int) -> bool:
        made = self._repeats.get(step, [])
        return len(made) >= ALONE and _failed(made[0]) and all(told == made[0] for told in made)

    def _worth(self, step: int, made: int) -> bool:
        """Whether one more process can make a difference: until no answer can be luck."""
        wrong = sum(map(_failed, self._repeats.get(step, ())))
        return bool(wrong) and made < MOST_PROCESSES and (not made or by_luck(wrong, REPEATS, made) >= LUCK)

    def _open(self, board: Board) -> bool:
        """Whether there is time for one more process; rank 0 decides it for all."""
        self._turns += 1
        late = time.monotonic() > self._deadline and self.runner.rank == 0
        told = board.gather(f"experiment {self._turns}", {"go": not late and not self.runner.child.stuck})
        return told is not None and all(each["go"] for each in told.values())

    def _try(self, board: Board, number: int, step: Step, name: ExperimentName) -> dict[int, Any] | None:
        """Runs a case on each rank, in the process at hand or a new one.

        Returns:
            Of each rank whether it failed there as it had before, and with what bits; None where a rank is gone.
        """
        from gpucheck.worker.supervisor.judging import finished

        self.writer.begin(number, name)
        record = finished(self.runner.files, self.runner.run(number, step, name))
        self.writer.result(record)
        before = self._failed.get(number)
        failed = before is not None and again(before, record)
        return board.gather(f"result {self._turns}", {"failed": failed, "bits": record.bits})


def _failed(told: Mapping[int, Any]) -> bool:
    return any(each["failed"] for each in told.values())


def chosen(plan: Plan, told: Mapping[int, Mapping[Any, Sequence[str]]]) -> dict[int, set[str]]:
    """The steps to try, one of each row and way to fail, with the experiments that some rank can learn from.

    Args:
        told: rank -> step -> how it failed there, and experiments.
    """
    failures: dict[int, list[tuple[int, Sequence[str]]]] = {}
    for rank, steps in sorted(told.items()):
        for step, words in ((int(name), words) for name, words in steps.items()):
            expect = plan.steps[step].expect
            if expect is None or not expect.includes(plan.local_rank(rank)):
                failures.setdefault(step, []).append((rank, words))
    kinds: dict[Any, int] = {}
    for step, failed in sorted(failures.items()):
        kinds.setdefault((plan.steps[step].row, *((rank, words[0]) for rank, words in failed)), step)
    return {
        step: {name for _, words in failures[step] for name in words[1:]} for step in list(kinds.values())[:MOST_STEPS]
    }
