"""Runs failed cases of a rank again, in fresh processes, each time under one changed condition."""

from __future__ import annotations

import itertools
from collections.abc import Container, Iterator, Sequence
from dataclasses import replace

from gpucheck.diagnose.answers import Answers, again, serves, way
from gpucheck.diagnose.experiment_list import BLOCKING, EXPERIMENTS, HISTORY, REPEAT, REPEATS, needs_pinning
from gpucheck.diagnose.strategy import fails_always, further_repeats, repeated_enough, wants_control, worth_a_process
from gpucheck.model.conditions import Conditions
from gpucheck.model.plan import Plan
from gpucheck.model.record import Record
from gpucheck.model.vocabulary import ExperimentName
from gpucheck.worker.supervisor.experiment_attempts import ExperimentAttempts
from gpucheck.worker.supervisor.experiment_pool import ExperimentPool, ExperimentProcess

MOST_CASES = 64  # of a rank
MOST_PINNED = 16  # of a rank
PIN_SECONDS = 20.0  # within which a case that hung or lost its device shows where, in a process of its own
SPOILING = 8  # processes in which cases before this one must spoil it
Way = tuple[str, tuple[str, ...]]
Pair = tuple[Record, Record]


class Experiments(ExperimentAttempts):
    """The experiments of one rank, within the time the plan grants them."""

    def work(self) -> None:
        """Makes the experiments: first those that ranks can make side by side, then those that need an idle node."""
        pinned = set()
        for process in self._pinning():
            if self._open():
                self._try(process)
                pinned.add((process.number, process.name))
        chosen = representatives(self.plan, self.failed)
        alike = self._alike(chosen)
        self._side_by_side(chosen, pinned, alike)
        others = self._unlike(alike)
        self._side_by_side(others, pinned)
        chosen += others
        self.runner.child.retire()
        self._by_itself(chosen)
        self.runner.node.leave()

    def _pinning(self) -> Iterator[ExperimentProcess]:
        """Runs each case whose failing launch is not known again, and waits for each launch."""
        blind = (record for record in self.failed if needs_pinning(record, self.plan))
        for record in sorted(blind, key=lambda record: (not record.sticky, record.step))[:MOST_PINNED]:
            step = self.plan.steps[record.step]
            conditions = replace(step.conditions, synchronised=True, repeat=1)
            seconds = min(PIN_SECONDS, self.plan.case_timeout)
            yield ExperimentProcess(record.step, replace(step, conditions=conditions), BLOCKING, seconds)

    def _side_by_side(
        self, chosen: Sequence[Record], pinned: Container[tuple[int, str]], alike: Sequence[Pair] = ()
    ) -> None:
        """Makes one experiment with all cases before the next one, so that each case gets the most telling ones.

        Args:
            alike: see :meth:`_alike`; as many of these cases as there is room for are repeated beside.
        """
        self._ask_at_once(chosen, pinned, alike)
        for name in EXPERIMENTS:
            if name == HISTORY:
                for record in chosen:
                    self._replay_history(record)
            elif not EXPERIMENTS[name].alone:
                self._series([record for record in chosen if (record.step, name) not in pinned], name)
        seldom_right = self._repeat_further(chosen)
        if seldom_right:  # what was asked while they seemed to fail every time is asked again
            self._side_by_side(seldom_right, pinned)

    def _ask_at_once(self, chosen: Sequence[Record], pinned: Container[tuple[int, str]], alike: Sequence[Pair]) -> None:
        """Makes at once what would be made in turn if every answer were the failure again, as most of them are."""
        if not 0 < len(chosen) <= len(self._runners) > 1:
            return  # many cases share processes instead
        new = [record for record in chosen if self._worth(record, REPEAT) and not self._repeated(record)]
        first = {record.step: self._process_for(record, REPEAT) for record in new}
        room = len(self._runners) - len(first)
        also = [process for process in self._repeats_of(alike) if self._undisturbed(process)][:room]
        ahead = [process for record in new for process in self._wanted(record, pinned, ahead=True)]
        ahead = sorted(filter(self._undisturbed, ahead), key=_slow_first)[: room - len(also)]
        known = [each for record in chosen if record.step not in first for each in self._wanted(record, pinned)]

        def follow(process: ExperimentProcess) -> Sequence[ExperimentProcess]:
            record = self._failures[process.number]
            return self._wanted(record, pinned) if process is first.get(process.number) else ()

        self._at_once([*first.values(), *also, *known], ahead, follow)

    def _wanted(
        self, record: Record, pinned: Container[tuple[int, str]], *, ahead: bool = False
    ) -> list[ExperimentProcess]:
        """What else is asked of a case that fails every time, whatever these processes answer; slow ones first.

        Args:
            ahead: as if the first process in which it is repeated had failed in the same way; without what other ranks
                might make, since only one that fails every time takes that on.
        """
        seen = self._seen(record)
        seen = replace(seen, tried={**seen.tried, REPEAT: [record]}) if ahead else seen
        if not seen.deterministic:
            return []
        possible = self._possible(record)
        names = [name for name, each in EXPERIMENTS.items() if name in possible and name != HISTORY and not each.alone]
        names = [name for name in names if (record.step, name) not in pinned]
        names = [name for name in names if worth_a_process(name, seen, frozenset(possible))]
        if ahead:
            names = [name for name in names if self._made_by_each(record, name) and not EXPERIMENTS[name].lends]
        else:
            names = [name for name in names if self._falls_to_us(record, name)]
        often = self._sure(record, REPEAT, REPEATS, seen)
        wanted = [name for name in names for _ in range(often if name == REPEAT else 1)]
        return sorted((self._process_for(record, name, seen=seen) for name in wanted), key=_slow_first)

    def _alike(self, chosen: Sequence[Record]) -> list[Pair]:
        """The other failures, each with the case that is tried in its place."""
        kinds = {way_to_fail(self.plan, record): record for record in chosen}
        pairs = [(record, kinds.get(way_to_fail(self.plan, record))) for record in self.failed]
        others = [(record, other) for record, other in pairs if other and other is not record]
        return [(record, other) for record, other in others if REPEAT in self._possible(record)]

    def _repeats_of(self, alike: Sequence[Pair]) -> list[ExperimentProcess]:
        """A process that repeats it for each failure that was not."""
        left = [record for record, _ in alike if not self._repeated(record)]
        return [replace(self._process_for(record, REPEAT), own=True) for record in left]

    def _repeated(self, record: Record) -> bool:
        return bool(self._tried[record.step].get(REPEAT))

    def _unlike(self, alike: Sequence[Pair]) -> list[Record]:
        """Failures that one process shows to differ from the case that was tried in their place."""
        self._at_once(self._repeats_of(alike))
        tried = [(record, other) for record, other in alike if self._repeated(record)]
        return [record for record, other in tried if not serves(self._seen(other), self._seen(record))][:MOST_CASES]

    def _by_itself(self, chosen: Sequence[Record]) -> None:
        for name in (name for name, experiment in EXPERIMENTS.items() if experiment.alone):
            wanted = [record for record in chosen if self._open() and self._worth(record, name)]
            wanted = [record for record in wanted if self._falls_to_us(record, name)]
            if not wanted:
                continue
            with self.runner.node.alone(self._seconds_left()) as alone:
                if alone:
                    self._series(wanted, name)
                    self.runner.child.retire()

    def _series(self, records: Sequence[Record], name: ExperimentName) -> None:
        """Makes one experiment with some cases, process by process, until no answer can be luck."""
        for turn in itertools.count():
            wanted = [record for record in records if self._open() and self._worth(record, name)]
            wanted = [record for record in wanted if self._falls_to_us(record, name)]
            if not wanted:
                break
            room = len(self._runners) // len(wanted)
            self._once_each([each for each in wanted for _ in range(self._sure(each, name, room))], name, turn)
        ours = [record for record in records if (record.step, name) in self._ours]
        self._once_each([record for record in ours if wants_control(name, self._seen(record))], REPEAT, 0)

    def _sure(self, record: Record, name: ExperimentName, most: int, seen: Answers | None = None) -> int:
        """How many processes of an experiment are wanted whatever the first of them answers, if as all before did.

        Args:
            seen: the answers so far; None: those that there are.
        """
        seen, count, each = seen or self._seen(record), 1, EXPERIMENTS[name]
        helps = seen.right(name) and not (each.lends or each.alone)  # lenders take turns
        if not seen.deterministic or not (name == REPEAT or helps) or not self._beside(record, name):
            return count
        made = list(seen.processes(name))
        while count < most:
            likely = replace(seen, tried={**seen.tried, name: [*made, *made[-1:] * count]})
            if not worth_a_process(name, likely, frozenset(self._possible(record))):
                break
            count += 1
        return count

    def _once_each(self, records: Sequence[Record], name: ExperimentName, turn: int, *, known: bool = False) -> None:
        """Runs one more process of an experiment for each case.

        Cases that fail every time share a process, and each one is the first at its turn, where they are too many to
        have one each at once, or known. Others run alone, so that nothing that ran before can matter.

        Args:
            known: one call is enough where it gives the wrong bits that all before gave.
        """
        shared = [record for record in records if name != REPEAT or fails_always(self._seen(record))]
        own = [self._process_for(record, name) for record in records if record not in shared]
        if 1 < len(self._runners) >= len(shared) and not known:
            own += [self._process_for(record, name) for record in shared]
            shared = []
        self._at_once(own)
        self.runner.child.retire()
        made = [replace(self._process_for(record, name), known=known) for record in _rotated(shared, turn)]
        for process in _by_setup(made):
            if self._open():
                self._try(process, fresh=False)

    def _shared_at_once(self, tasks: Sequence[Sequence[Record]]) -> None:
        """Repeats cases that fail every time, side by side: those of a task one after the other in one process."""
        made = [[replace(self._process_for(record, REPEAT), known=True) for record in task] for task in tasks]
        apart = [list(group) for task in made for _, group in itertools.groupby(_by_setup(task), _setup)]
        self.runner.child.retire()
        for process in ExperimentPool(self._runners, self._made_beside, self._take).share(apart):
            if self._open():
                self._try(process)

    def _repeat_further(self, chosen: Sequence[Record]) -> list[Record]:
        """Repeats what all ranks of the node get wrong alike, until a fault of most processes is ruled out.

        Returns:
            The failures that did not come again every time.
        """
        node = self.runner.node
        if self.plan.world_size == 1 and self.plan.device != "cpu":
            return []  # one GPU alone proves nothing
        alike = [record for record in chosen if record.bits and node.all_posted(f"{record.step}-{record.bits}")]
        further = {record.step: further_repeats(self._seen(record), node.local_ranks) for record in alike}
        enough = {r.step: self._seen(r).made(REPEAT) + further[r.step] for r in alike}

        def left(record: Record) -> int:
            seen = self._seen(record)
            return 0 if repeated_enough(seen) else enough[record.step] - seen.made(REPEAT)

        turn = 0
        while self._open() and (wanted := [record for record in alike if left(record) > 0]):
            same = [record for record in wanted if self._seen(record).deterministic]
            beside = [record for record in same if self._beside(record, REPEAT)]
            tasks = [[each for each in beside if left(each) > number] for number in range(len(self._runners))]
            self._shared_at_once([_rotated(task, turn + number) for number, task in enumerate(tasks) if task])
            self._once_each([record for record in same if record not in beside], REPEAT, turn, known=True)
            self._once_each([record for record in wanted if record not in same], REPEAT, turn)
            turn += len(tasks)
        return [record for record in alike if further[record.step] and not self._seen(record).deterministic]

    def _replay_history(self, record: Record) -> None:
        """Finds the fewest cases after which a case fails that is right by itself.

        First with all that its process had run before it, then with fewer and fewer of the last ones, then with one.
        """
        before = tuple(self.runner.before(record))
        if HISTORY not in self._possible(record) or not self._seen(record).never or not before:
            return

        def spoils(steps: tuple[int, ...]) -> bool:
            made = self._open() and self._try(self._process_for(record, HISTORY, steps))
            return isinstance(made, Record) and again(record, made)

        if not spoils(before):
            return
        fewest, none = 0, len(before)
        while none - fewest > 1:
            middle = (fewest + none) // 2
            fewest, none = (middle, none) if spoils(before[middle:]) else (fewest, middle)
        shortest = before[fewest:]
        if len(shortest) > 1 and spoils(shortest[:1]):
            shortest = shortest[:1]
        while len(self._seen(record).after.get(shortest, ())) < SPOILING and spoils(shortest):
            pass


def _rotated(records: Sequence[Record], turn: int) -> list[Record]:
    """The records in their order, another one first at each turn."""
    first = turn % max(1, len(records))
    return [*records[first:], *records[:first]]


def _setup(process: ExperimentProcess) -> Conditions:
    """What processes must agree in to be one and the same."""
    return process.step.conditions.lifelong


def _by_setup(processes: Sequence[ExperimentProcess]) -> list[ExperimentProcess]:
    """The processes in their order, those that can be one after each other."""
    setups = [_setup(process) for process in processes]
    return sorted(processes, key=lambda process: setups.index(_setup(process)))


def _slow_first(process: ExperimentProcess) -> bool:
    """Sorts what takes long before all else, so that nobody waits for it in the end."""
    return not EXPERIMENTS[process.name].slow


def representatives(plan: Plan, failed: Sequence[Record]) -> list[Record]:
    """The failed records worth experiments: unexpected ones, one for each row and way to fail, in the plan's order."""
    chosen: dict[Way, Record] = {}
    for record in sorted(failed, key=lambda record: record.step):
        kind = way_to_fail(plan, record)
        if kind is not None:
            chosen.setdefault(kind, record)
    return list(chosen.values())[:MOST_CASES]


def way_to_fail(plan: Plan, record: Record) -> Way | None:
    """The row and the way in which a record failed; None where that is expected."""
    step = plan.steps[record.step]
    if step.expect is not None and step.expect.includes(plan.local_rank(record.rank)):
        return None
    return step.row, way(record)
