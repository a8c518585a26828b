"""A model of a node with faults in it, on which the real experiments are planned and the real rules judge.

Only what a process computes is made up; which process runs what, and what is made of it, is the code under test.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

from gpucheck.diagnose.causes.by_process import BY_PROCESS
from gpucheck.diagnose.causes.crash import CRASH
from gpucheck.diagnose.causes.interference import INTERFERENCE
from gpucheck.diagnose.causes.kept_state import STATE
from gpucheck.diagnose.causes.kernel_bug import KERNEL_BUG
from gpucheck.diagnose.causes.out_of_bounds import OUTSIDE
from gpucheck.diagnose.causes.process_group import PROCESS_GROUP
from gpucheck.diagnose.causes.race import RACE
from gpucheck.diagnose.causes.rank_environment import RANK_ENVIRONMENT
from gpucheck.diagnose.causes.suspect_gpu import SUSPECT_GPU
from gpucheck.diagnose.causes.threads import THREADS
from gpucheck.diagnose.differing_calls import how_calls_differ
from gpucheck.diagnose.page import Cause
from gpucheck.model.conditions import Conditions
from gpucheck.model.plan import Plan
from gpucheck.model.record import Outcome, Record, Violation
from gpucheck.records.run_folder import Run
from gpucheck.worker.memory_fills import depends_on_fill, fill_of, wants_another_pass
from gpucheck.worker.supervisor.experiment_attempts import right_word
from gpucheck.worker.supervisor.experiments import Experiments
from gpucheck.worker.supervisor.making_ahead import rotated_order
from tests.conftest import Synthetic

CASES, FAULTY, SPOILER = 6, 4, 1
"""Steps of the plan, the one whose calls are wrong, and the one that spoils it where one does."""


@dataclass
class Process:
    """One process: what it has run, and what it drew when it began."""

    number: int  # on the node, from 0
    rank: int  # whose environment it has
    device: int
    draws: dict[str, float] = field(default_factory=dict)  # fault -> what it drew
    steps: list[int] = field(default_factory=list)
    calls: int = 0


@dataclass(frozen=True)
class Call:
    """One call of the faulty case."""

    process: Process
    conditions: Conditions
    fill: int
    coin: float  # drawn anew for each call


Shows = Callable[[Call], bool]


@dataclass(frozen=True)
class Fault:
    """Something wrong with the machine, and what may be said of it."""

    name: str
    shows: Shows
    causes: frozenset[str]
    how: str = "bits"  # "bits", "guard" or "crash"
    needs: Conditions = Conditions()  # conditions under which the plan has its case


def _fault(name: str, cause: Cause, shows: Shows, how: str = "bits", **needs: Any) -> Fault:
    return Fault(
        name, shows, frozenset({cause.title, *({CRASH.title} if how == "crash" else ())}), how, Conditions(**needs)
    )


def per_call(rate: float) -> Fault:
    return _fault(f"{rate:.0%} of calls", RACE, lambda call: call.coin < rate)


def per_process(rate: float) -> Fault:
    name = f"{rate:.0%} of processes"
    return _fault(name, BY_PROCESS, lambda call: call.process.draws[name] < rate)


def of_some(name: str, cause: Cause, ranks: frozenset[int], how: str = "bits", rate: float = 1.0) -> Fault:
    """Shows in the environment of some ranks, or on their GPUs."""
    if cause == SUSPECT_GPU:
        return _fault(name, cause, lambda call: call.process.device in ranks and call.coin < rate, how)
    return _fault(name, cause, lambda call: call.process.rank in ranks and call.coin < rate, how)


def kinds(ranks: int, draw: random.Random) -> dict[str, Fault]:
    """One fault of each kind that a node of so many ranks can show."""
    some = frozenset(draw.sample(range(ranks), draw.randint(1, max(1, ranks - 1))))
    nth = draw.randint(3, 2 * FAULTY)
    found = [
        _fault("kernel", KERNEL_BUG, lambda call: True),
        _fault("every second call", STATE, lambda call: call.process.calls % 2 == 1),
        _fault("first call", STATE, lambda call: call.process.calls == 0),
        _fault("from the nth call", STATE, lambda call: call.process.calls >= nth),
        _fault("spoiled", STATE, lambda call: SPOILER in call.process.steps),
        _fault("every second process", BY_PROCESS, lambda call: call.process.number % 2 == 1),
        _fault("reads outside", OUTSIDE, lambda call: call.fill == 0xFF),
        _fault("group", PROCESS_GROUP, _in_group, process_group="initialised"),
        _fault("threads", THREADS, lambda call: call.conditions.concurrency > 1 and call.coin < 0.6, concurrency=2),
        per_call(draw.choice((0.05, 0.3, 0.6))),
        per_process(draw.choice((0.2, 0.5, 0.8))),
    ]
    if ranks > 1:
        found += [
            of_some("environment", RANK_ENVIRONMENT, some),
            of_some("gpu", SUSPECT_GPU, some),
            of_some("gpu, now and then", SUSPECT_GPU, some, rate=0.6),
            of_some("guard", OUTSIDE, some, "guard"),
            of_some("crash", RANK_ENVIRONMENT, some, "crash"),
            _fault("interference", INTERFERENCE, lambda call: not call.conditions.alone),
        ]
    return {fault.name: fault for fault in found}


def _in_group(call: Call) -> bool:
    return call.conditions.process_group == "initialised"


class Machine:
    """A node on which a plan runs, with its experiments."""

    def __init__(
        self, synthetic: Synthetic, faults: Sequence[Fault], ranks: int, seed: int, device: str, runners: int = 1
    ) -> None:
        """Args:
        runners: processes that each rank may run at once for experiments.
        """
        self.runners, self.turn = runners, threading.Lock()
        self.synthetic, self.faults, self.draw = synthetic, faults, random.Random(seed)
        needs = {key: value for fault in faults for key, value in vars(fault.needs).items() if value != _USUAL[key]}
        plan = synthetic.plan(cases=CASES, ranks=ranks, device=device, experiments=1e9)
        steps = tuple(
            replace(step, conditions=replace(step.conditions, **(needs if number == FAULTY else {})))
            for number, step in enumerate(plan.steps)
        )
        self.plan: Plan = replace(plan, steps=steps)
        self.posted: set[tuple[str, int]] = set()
        self.claimed: set[str] = set()
        self.processes = 0

    def run(self) -> Run:
        """The whole run: every rank's plan, then every rank's experiments."""
        ranks = [Rank(self, rank) for rank in range(self.plan.world_size)]
        run: Run = self.synthetic.run(self.plan)
        for rank in ranks:
            run.records.update({(record.step, rank.local_rank): record for record in rank.work()})
        for rank in ranks:
            failed = [run.records[(step, rank.local_rank)] for step in range(CASES)]
            runners: Any = [rank, *(Rank(self, rank.local_rank) for _ in range(1, self.runners))]
            failed = [record for record in failed if record.outcome.failed]
            Experiments(self.plan, runners, runners[0], failed).work()
            if rank.results:
                run.experiments[(FAULTY, rank.local_rank)] = rank.results
        return run


_USUAL = vars(Conditions())


class Rank:
    """ChildRunner, writer and node of one rank, as the experiments see them."""

    def __init__(self, machine: Machine, rank: int) -> None:
        self.machine, self.local_rank = machine, rank
        self.local_ranks, self.stuck, self.files = machine.plan.world_size, "", None
        self.node = self.child = self
        self.results: dict[str, list[Record]] = {}
        self._process: Process | None = None
        self._setup: tuple[Any, ...] = ()
        self._order = rotated_order(machine.plan, rank, self.local_ranks)

    def work(self) -> Iterator[Record]:
        for step in self._order:
            record = self.run(step, self.machine.plan.steps[step]).record
            if record.outcome is Outcome.PASS:
                self.machine.posted.add((right_word(step), self.local_rank))
            elif record.bits:
                self.machine.posted.add((f"{step}-{record.bits}", self.local_rank))
            yield record
        self.retire()

    def run(self, number: int, step: Any, name: str = "", **how: Any) -> Any:
        with self.machine.turn:
            return self._run(number, step, name, **how)

    def _run(self, number: int, step: Any, name: str, **how: Any) -> Any:
        conditions: Conditions = step.conditions
        process = self._ready(conditions, name, how.get("partner"))
        before = len(process.steps)
        known, calls = (how.get("known") or {}).get("y", ""), process.calls
        record = self._record(number, conditions, process, known) if number == FAULTY else self._right(number, process)
        process.steps.append(number)
        asked = 1 if known and process.calls == calls + 1 else conditions.repeat
        record = replace(record, experiment=name, before=before, asked=asked, pid=process.number)
        if record.outcome is Outcome.CRASH:
            self.retire()
        return SimpleNamespace(record=record, reply=None if record.outcome is Outcome.CRASH else record)

    def _ready(self, conditions: Conditions, name: str, partner: int | None) -> Process:
        setup = (conditions.process_group, conditions.swap, name, partner)
        if self._process is None or self._setup != setup:
            machine, mine = self.machine, self.local_rank
            other = mine if partner is None else partner
            draws = {fault.name: machine.draw.random() for fault in machine.faults}
            rank, device = (other if conditions.swap == what else mine for what in ("rank", "device"))
            self._process, self._setup = Process(machine.processes, rank, device, draws), setup
            machine.processes += 1
        return self._process

    def _right(self, number: int, process: Process) -> Record:
        process.calls += 2
        record: Record = self.machine.synthetic.record(self.machine.plan, number, self.local_rank)
        return record

    def _record(self, number: int, conditions: Conditions, process: Process, known: str) -> Record:
        machine, synthetic = self.machine, self.machine.synthetic
        digests: list[str] = []
        fills: list[int] = []
        guards = False
        while wants_another_pass(conditions.repeat, len(digests), digests, fills):
            fills.append(fill_of(len(digests)))
            call = Call(process, conditions, fills[-1], machine.draw.random())
            shown = [fault for fault in machine.faults if fault.shows(call)]
            process.calls += 1
            if any(fault.how == "crash" for fault in shown):
                made: Record = synthetic.record(machine.plan, number, self.local_rank, Outcome.CRASH, digests={})
                return replace(made, message="killed")
            guards |= any(fault.how == "guard" for fault in shown)
            digests.append("+".join(fault.name for fault in shown if fault.how == "bits") or "right")
            if known and digests == [known]:
                break
        return self._judged(number, digests, fills, guards)

    def _judged(self, number: int, digests: list[str], fills: list[int], guards: bool) -> Record:
        bad = [call for call, digest in enumerate(digests) if digest != "right"]
        differ, by_fill = len(set(digests)) > 1, depends_on_fill(digests, fills)
        violations = [Violation("guard", "2 bytes written")] * guards
        if differ:
            detail = "it is read outside" if by_fill else how_calls_differ(digests)
            violations.append(Violation("passes differ" if by_fill else "repeats differ", detail))
        outcome = Outcome.MISMATCH if bad else Outcome.VIOLATION if violations else Outcome.PASS
        record: Record = self.machine.synthetic.record(
            self.machine.plan,
            number,
            self.local_rank,
            outcome,
            violations=violations,
            digests={"y": digests[bad[0] if bad else 0]},
            calls=digests if differ else [],
            bad_calls=bad if len(bad) < len(digests) else [],
            by_fill=by_fill,
            distinct=len(set(digests)),
            wrong=min(1, len(bad)),
        )
        return record

    # what else experiments ask of a runner, a writer and a node

    def before(self, record: Record) -> Sequence[int]:
        return self._order[: self._order.index(record.step)][-record.before :] if record.before else ()

    def retire(self) -> None:
        self._process = None

    def forget(self, attempt: Any) -> None:
        """Nothing is kept."""

    def begin(self, number: int, name: str) -> None:
        """Nothing is written."""

    def result(self, record: Record) -> None:
        self.results.setdefault(record.experiment, []).append(record)

    def posted(self, word: str, rank: int) -> bool:
        return (word, rank) in self.machine.posted

    def all_posted(self, word: str) -> bool:
        return all(self.posted(word, rank) for rank in range(self.local_ranks))

    def claim(self, task: str) -> bool:
        fresh = task not in self.machine.claimed
        self.machine.claimed.add(task)
        return fresh

    @contextmanager
    def alone(self, seconds: float) -> Iterator[bool]:
        yield True

    def leave(self) -> None:
        """Nobody waits."""
