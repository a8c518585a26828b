"""The supervisor of a rank: works through the plan with a child and judges what comes back on the CPU.

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
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpucheck.host.resources import usable_processors
from gpucheck.launch.forking_torchrun import IMPORTED
from gpucheck.launch.scratch import FIRST_RANK
from gpucheck.model.case import Case
from gpucheck.model.check_source import large_pair
from gpucheck.model.plan import Plan
from gpucheck.model.record import Outcome, Record
from gpucheck.records.run_folder import read_plan
from gpucheck.records.writer import RecordWriter
from gpucheck.worker.supervisor.attempt import Attempt
from gpucheck.worker.supervisor.child_runner import ChildRunner
from gpucheck.worker.supervisor.gpu_snapshot import Gpus, free_memory

if TYPE_CHECKING:
    from gpucheck.host.forkserver import Forkserver
    from gpucheck.worker.protocol import Setup
    from gpucheck.worker.supervisor.case_files import CaseFiles
    from gpucheck.worker.supervisor.experiments import Way
    from gpucheck.worker.supervisor.judge_pool import JudgePool, JudgeProcesses
    from gpucheck.worker.supervisor.judging import Known
    from gpucheck.worker.supervisor.lanes import Schedule
    from gpucheck.worker.supervisor.making_ahead import Makers
    from gpucheck.worker.supervisor.node_sync import Node
    from gpucheck.worker.supervisor.replay_capture import ReplayCapture

JUDGE_THREADS = max(1, min(4, usable_processors() // 2))  # more do not help: its operations are small
JUDGES = 2  # at most: threads of a rank that judge; while one waits for a large reference the other goes on
PROCESSORS = 4  # of a rank, for each process that judges
PENDING_JUDGEMENTS = 64  # at most: cases that wait to be judged while the child goes on
PENDING_BYTES = 256 << 20  # at most, of the outputs of these cases
COMPILERS = 10  # at most: processes of a rank that compile ahead
AHEAD = "ahead"  # folder in which those who compile divide the cases among themselves
LAUNCHED = (Outcome.PASS, Outcome.MISMATCH, Outcome.VIOLATION)  # outcomes of cases that went to their end
FREE_AHEAD = 16 << 30  # bytes of a GPU that are free, of which contexts may take two or three before they are used
HEAD_START = 3  # first cases, not compiled ahead: the ranks reach them too soon for that


def main(run: Path, serve: Callable[[Connection], None], import_ahead: Callable[..., None]) -> None:
    """Runs the plan of a run folder as the rank that torchrun's environment names.

    Args:
        serve: what the child process runs. It is handed in, so that nothing of ``worker.device`` is imported here.
        import_ahead: what a process does, given an engine and the device, from which children of the engine are forked;
            given None, all others, what they need, see :func:`needed`.
    """
    began = time.perf_counter()
    from gpucheck import checks
    from gpucheck.host.bytecode import Bytecode
    from gpucheck.host.forkserver import Forkserver
    from gpucheck.host.processes import keep_freed_memory, loading
    from gpucheck.library.cache_folder import cache_root

    signal.signal(signal.SIGTERM, lambda *_: os._exit(128 + signal.SIGTERM))
    plan = read_plan(run)
    if plan.replay:
        stand_for_node(plan)
    if plan.device == "cpu":
        os.environ["TRITON_INTERPRET"] = "1"
    with loading(), Bytecode("rank", cache_root):
        import torch
        import triton  # noqa: F401 - loaded for the children, which are forked from here

        from gpucheck.worker.supervisor.judge_pool import JudgeProcesses
        from gpucheck.worker.supervisor.making_ahead import Makers, worth_having

    ahead = worth_having(int(os.environ["LOCAL_RANK"]))
    makers = Makers(plan, fair_threads()) if ahead else None  # before anything computes: a fork has no torch threads
    judges = JudgeProcesses(plan, judge_processes(plan, fair_threads()))
    checks.activate(plan.check_sources)
    forkserver = Forkserver(serve, partial(import_ahead, None, plan.device, **needed(plan)))
    of_engines = {each["name"]: Forkserver(serve, partial(import_ahead, each, plan.device)) for each in plan.engines}
    keep_freed_memory()  # in no child: its memory is that of the software under test
    imported = time.perf_counter() - began + float(os.environ.get(IMPORTED, "0"))
    torch.set_num_threads(fair_threads())
    supervisor = Supervisor(run, plan, forkserver, imported, makers, of_engines, judges)
    signal.signal(signal.SIGTERM, lambda *_: supervisor.stop())
    supervisor.work()
    for server in reversed([forkserver, *of_engines.values()]):  # a later one has inherited the connections of others
        server.close()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # taking down an interpreter with torch in it lasts longer than many a case


def needed(plan: Plan) -> dict[str, Any]:
    """What the processes of a rank need loaded, as what they are forked from takes it."""
    from gpucheck.worker.supervisor import source_builds

    pairs = [source for source in plan.check_sources if plan.candidates.intersection(source.checks)]
    others = any(step.case.check not in plan.candidates for step in plan.steps)
    return {
        "candidates": bool(plan.candidates),
        "extensions": any(source_builds.folder_of(Path(source.files[-1])) for source in pairs),
        "compiled": any(source_builds.has_torch_compile(Path(file)) for source in pairs for file in source.files),
        "launches": others or any(source_builds.has_triton(Path(source.files[-1])) for source in pairs),
        "library": Path(plan.library["root"]) if plan.library["root"] and not plan.candidates else None,
    }


def stand_for_node(plan: Plan) -> None:
    """Sets RANK and WORLD_SIZE for a replay, as they were on the node of the original run."""
    assert plan.replay is not None
    node = plan.replay.rank // plan.nproc
    os.environ["RANK"] = str(node * plan.nproc + int(os.environ["LOCAL_RANK"]))
    os.environ.update(WORLD_SIZE=str(plan.world_size), GROUP_RANK=str(node))


def fair_threads() -> int:
    """This rank's share of the processors it may use."""
    return max(1, usable_processors() // int(os.environ["LOCAL_WORLD_SIZE"]))


def judge_processes(plan: Plan, processors: int) -> int:
    """How many processes judge; none where what one record tells is to be known when the next one is judged."""
    return 0 if plan.duration or plan.replay or plan.candidates else processors // PROCESSORS


class Supervisor:
    """Works through the plan for one rank."""

    def __init__(
        self,
        run: Path,
        plan: Plan,
        forkserver: Forkserver,
        import_seconds: float,
        makers: Makers | None = None,
        of_engines: Mapping[str, Forkserver] | None = None,
        judges: JudgeProcesses | None = None,
    ) -> None:
        """Args:
        makers: processes that make what this rank needs before it asks; without them it makes all of it by itself.
        of_engines: forkservers for the children of engines by name, see :class:`ChildRunner`.
        judges: processes that judge; without them threads of this process do.
        """
        from gpucheck.worker.supervisor import lanes
        from gpucheck.worker.supervisor.case_files import CaseFiles
        from gpucheck.worker.supervisor.judging import Known
        from gpucheck.worker.supervisor.making_ahead import rotated_order
        from gpucheck.worker.supervisor.node_sync import Node

        self.rank = int(os.environ["RANK"])
        self.plan = plan = plan.seen_by(self.rank)
        local_rank, local_ranks = int(os.environ["LOCAL_RANK"]), int(os.environ["LOCAL_WORLD_SIZE"])
        host = socket.gethostname()
        self.node: Node = Node(Path(os.environ["GPUCHECK_SCRATCH"]), local_rank, local_ranks)
        if not local_rank:
            (self.node.folder / FIRST_RANK).write_text(str(self.rank))
        self.files: CaseFiles = CaseFiles.of(plan)
        count = lanes.count(plan, fair_threads())
        self.runner = ChildRunner(
            plan, self.node, self.files, forkserver, self.rank, host, run, of_engines, several=count > 1
        )
        self._lanes = count
        if plan.candidates and (plan.device == "cuda" or large_pair() is not None):
            from gpucheck.worker.supervisor.reference_desk import ReferenceDesk

            self.files.desk = ReferenceDesk(plan, self.node, self.rank, forkserver, self.files.folder)
            if self._starts_ahead():
                self.files.desk.start()
        self._runners = [self.runner, *(self.runner.beside(number) for number in range(1, count))]
        self.writer = RecordWriter(run, self.rank, guarded=bool(plan.candidates))
        for runner in self._runners:
            runner.building = self.writer.building
        self.known: Known | None = Known() if plan.duration else None
        self.writer.start(
            rank=self.rank, local_rank=local_rank, host=host, pid=os.getpid(), import_seconds=import_seconds
        )
        self.gpus = Gpus(plan, self.rank, local_rank, self.writer)
        self._schedule: Schedule = lanes.schedule(plan, rotated_order(plan, local_rank, local_ranks), count)
        self._order = self._schedule.order
        self._judges = judges if judges and judges.count else None
        self._examined = first_of_each_candidate(plan)
        self._failed: dict[int, Record] = {}  # by step, the first of each
        self._recording = threading.Lock()  # around what the threads that judge write down
        self._held: dict[Way, int] = {}  # way to fail -> step whose files are kept
        self._also: list[int] = []  # further steps whose files are kept while there is room
        self._makers = makers
        compiles = plan.compile_ahead and plan.device == "cuda"
        self._compiled = _worth_compiling(plan, count) if compiles else ()
        self._launched: set[int] = set()  # steps
        self._began = time.monotonic()
        self._replay_capture: ReplayCapture | None = None
        if plan.replay and plan.replay.rank == self.rank:
            from gpucheck.worker.supervisor.replay_capture import ReplayCapture

            self._replay_capture = ReplayCapture(plan, run, self.runner)

    def stop(self) -> None:
        """Ends this process at once after a signal; the records written so far stay."""
        with suppress(OSError):
            self.writer.stop(signal.SIGTERM)
        os._exit(128 + signal.SIGTERM)

    def work(self) -> None:
        """Runs every step (again and again with ``--duration``), then tries failed ones under changed conditions."""
        try:
            self._work()
        except OSError as error:
            with suppress(OSError):  # on a full disk one short line may still fit
                self.writer.skip(str(error))
            raise

    def _work(self) -> None:
        from gpucheck.worker.supervisor import lanes
        from gpucheck.worker.supervisor.experiments import Experiments
        from gpucheck.worker.supervisor.joint_experiments import JointExperiments

        if self.plan.compile_ahead and self.plan.device == "cuda":
            self._compile_ahead()
        self._run_plan()
        self.runner.child.want()
        if self._makers:
            self._makers.close()
        if not self.runner.child.stuck:
            failed = [self._failed[step] for step in sorted(self._failed)]
            joint = [record for record in failed if self.plan.steps[record.step].together]
            JointExperiments(self.plan, self.runner, self.writer, joint).work()
            alone = [record for record in failed if record not in joint]
            able = all(runner.child.started for runner in self._runners)
            at_once = lanes.experiments_at_once(self.plan, self._lanes, fair_threads()) if able else 1
            self._runners = self._runners[:at_once]
            self._runners += [self.runner.beside(number) for number in range(len(self._runners), at_once)]
            Experiments(self.plan, self._runners, self.writer, alone, self._judges).work()
            if self._replay_capture:
                self._replay_capture.ask()
        desk = threading.Thread(target=self.files.desk.close if self.files.desk else None)
        desk.start()  # a GPU takes its time to let a process go
        for runner in self._runners:
            runner.child.retire()
        if self._judges:
            self._judges.close()
        desk.join()
        self.gpus.close()
        self.writer.end(**self._facts())

    def _facts(self) -> dict[str, Any]:
        """What the end line tells of the work as a whole."""
        from gpucheck.worker.compile_claims import Claims

        runners = self._runners
        facts: dict[str, Any] = {
            "child_seconds": sum(runner.child.seconds for runner in runners),
            "children": sum(runner.child.started for runner in runners),
            "lanes": self._lanes,
            "compiled": sum(runner.compiled for runner in runners),
        }
        if self._compiled and not self.node.local_rank:
            facts["compilers"], facts["compiled_ahead"] = Claims(self.files.folder / AHEAD).count()
            self._note_kernels()
        return facts

    def _compile_ahead(self) -> None:
        """Starts a process that fills the kernel cache with others; they end by themselves, or with this rank."""
        from gpucheck.worker import known_kernels
        from gpucheck.worker.protocol import Ahead

        self._start_first()
        library, local_rank = self.plan.library, self.node.local_rank
        claims = str(self.files.folder / AHEAD)
        count = min(COMPILERS, fair_threads() * 2 // 3)
        root, generation = library["root"], library["generation"]
        ahead = Ahead(self._compiled, local_rank, claims, root, generation, count, known_kernels.basis(self.plan))
        if count and ahead.cases:
            with suppress(OSError):  # a forkserver that died is reported with the first case
                self.runner.child.forkserver.spawn().connection.send(ahead)

    def _start_first(self) -> None:
        """Starts the first child before any other process, where it matters: a GPU that takes one takes this one."""
        first = self._order[0]
        if not self._schedule.beside or not self._shared_memory():
            self.runner.get_ready(first, self.plan.steps[first])

    def _shared_memory(self) -> int:
        """See :func:`free_memory`."""
        return free_memory(self.files.folder, self.node.local_rank)

    def _note_kernels(self) -> None:
        """Has the kernel cache name the cases of this run that have launched their kernels, and so have them there."""
        from gpucheck.worker.compile_claims import Claims, kernels_of
        from gpucheck.worker.known_kernels import KnownKernels

        file = Claims(self.files.folder / AHEAD).kept()
        if file:
            launched = {kernels_of(self.plan.steps[number].case) for number in self._launched}
            KnownKernels(Path(file)).add(case for case in self._compiled if kernels_of(case) in launched)

    def _run_plan(self) -> None:
        """Runs the steps; what judges cases does so while the next ones run."""
        from gpucheck.worker.supervisor import lane_queue
        from gpucheck.worker.supervisor.judge_pool import JudgePool

        count = self._judge_threads()
        threads = max(1, JUDGE_THREADS // count)
        with JudgePool(count, threads, PENDING_JUDGEMENTS, PENDING_BYTES, self._finish) as judges:
            alone = self._several_at_once(judges)
            for round, number in self._turns(alone):
                judges.wait_for_room()
                if self.runner.child.stuck:
                    self.writer.skip(self.runner.child.stuck)
                    break
                if self._schedule.beside and lane_queue.needed_memory(self.plan.steps[number]):
                    self.runner.child.retire()  # and with it goes what its allocator keeps
                attempt = self._attempted(self.runner, number, round)
                judges.submit(attempt)
                if attempt.taken:  # shared memory has room for one case
                    judges.wait_for_all()

    def _several_at_once(self, judges: JudgePool) -> Sequence[int]:
        """Runs what runs in several processes at once; gives what is left to be run by itself."""
        from gpucheck.worker.compile_claims import Claims
        from gpucheck.worker.supervisor import lane_queue, lanes

        if not self._schedule.beside:
            return self._schedule.alone
        claims = Claims(self.files.folder / AHEAD) if self._compiled else None

        def ready(number: int) -> bool:
            return self.files.has_inputs(str(number), self.plan.steps[number].case)

        tasks, memory = self._schedule.beside, self._shared_memory
        queue = lane_queue.Queue(tasks, self.plan, claims, self._compiled, memory, ready)

        def attempted(runner: ChildRunner, number: int) -> Attempt:
            judges.wait_for_room()
            return self._attempted(runner, number)

        self._start_first()
        left = lanes.run(queue, self._runners, attempted, judges.submit)
        self.runner.child.stuck = next((runner.child.stuck for runner in self._runners if runner.child.stuck), "")
        if left:  # some of them lacked memory
            self.runner.child.retire()
        return (*left, *self._schedule.alone)

    def _attempted(self, runner: ChildRunner, number: int, round: int = 0) -> Attempt:
        """An attempt of a step, still to be judged."""
        if not round and number == self._order[len(self._order) // 2]:
            self.gpus.start()
        self.writer.begin(number, round=round)
        step, examine = self.plan.steps[number], not round and number in self._examined
        if step.case.check not in self.plan.candidates:
            return runner.run(number, step, round=round)
        from gpucheck.worker.supervisor.candidate_calls import examined, taken, want_processes

        if not examine:
            return taken(self.files, runner.run(number, step, round=round))
        then: list[Setup] = []
        if self._starts_ahead():
            then = self._next_of_candidate(number)
            want_processes(runner, runner.first(number, step), then)
        attempt = runner.run(number, step, process="examined" if then else "")
        return examined(runner, taken(self.files, attempt), then)

    def _starts_ahead(self) -> bool:
        """Whether processes for candidates start before they are asked: each holds a context on the GPU meanwhile."""
        from gpucheck.worker.supervisor import lanes

        if self.plan.device == "cpu":
            return True
        return not lanes.shares_context() and self._shared_memory() >= FREE_AHEAD

    def _next_of_candidate(self, number: int) -> list[Setup]:
        """The process of the step that comes next, where that is one of the same candidate under usual conditions."""
        place = self._order.index(number) + 1
        if place == len(self._order):
            return []
        step = self.plan.steps[self._order[place]]
        same = step.case.check == self.plan.steps[number].case.check
        if not same or step.inapplicable or step.conditions.words:
            return []
        return [self.runner.setups.of(self.runner.first(self._order[place], step))]

    def _judge_threads(self) -> int:
        """How many threads judge; one where processors are few, or where a pass is held against the one before."""
        if self._judges:
            return self._judges.count
        return 1 if self.plan.duration or fair_threads() < 2 * JUDGES else JUDGES

    def _turns(self, first: Sequence[int]) -> Iterator[tuple[int, int]]:
        """Yields (pass, step) in order; all ranks of a node make the same number of passes.

        Args:
            first: steps of the first pass.
        """
        yield from ((0, number) for number in first)
        deadline = self._began + self.plan.duration
        for round in itertools.count(1):
            if not self.plan.duration or not self.runner.together.agree(f"round{round}", time.monotonic() < deadline):
                return
            yield from ((round, number) for number in self._order)

    def _finish(self, attempt: Attempt) -> None:
        """Judges an attempt, writes its record and deletes the files of its case."""
        from gpucheck.worker.supervisor.judging import finished

        if self._judges:
            record = self._judges.finished(self.files, attempt)
        else:
            keep = self._replay_capture.keep if self._replay_capture else None
            record = finished(self.files, attempt, self.known, keep)
        with self._recording:
            self._record(record, attempt.key)

    def _record(self, record: Record, key: str) -> None:
        from gpucheck.worker.supervisor.experiment_attempts import right_word

        self.writer.result(brief(record) if record.round and record.outcome is Outcome.PASS else record)
        if record.outcome in LAUNCHED and self.plan.steps[record.step].conditions.cache == "shared":
            self._launched.add(record.step)
        if record.outcome.failed:
            self._failed.setdefault(record.step, record)
            self.runner.before(record)
            if record.bits:
                self.node.post(f"{record.step}-{record.bits}")
        elif record.outcome is Outcome.PASS and self.plan.experiments and not record.round:
            self.node.post(right_word(record.step))
        if not self._holds(record, key):
            self.files.done(key, self.rank, entirely=record.round > 0)

    def _holds(self, record: Record, key: str) -> bool:
        """Whether the files of a case are kept for experiments: most of all the first case of each way to fail."""
        from gpucheck.worker.supervisor.experiments import MOST_CASES, way_to_fail

        way = way_to_fail(self.plan, record) if record.outcome.failed and not record.round else None
        before = self._held.get(way) if way else None
        if way is None or not self.plan.experiments:
            return False
        first = before is None or record.step < before
        if len(self._held if before is None else self._also) >= MOST_CASES:
            return False
        if first and before is not None:
            self._also.append(self._held.pop(way))
        if not self._room_for(key, first=first):
            return False
        if first:
            self._held[way] = record.step
        else:
            self._also.append(record.step)
        return True

    def _room_for(self, key: str, *, first: bool) -> bool:
        """Holds the files of a case; for the first of its way to fail, others give way."""
        while not self.files.hold(key):
            if not first or not self._also:
                return False
            other = str(self._also.pop())
            self.files.release(other)
            self.files.done(other, self.rank)
        return True


def brief(record: Record) -> Record:
    """A record without the fields that equal those of the first pass: ``--duration`` writes very many records."""
    return replace(record, digests={}, tiles={}, launches=[], seconds={})


def first_of_each_candidate(plan: Plan) -> frozenset[int]:
    """The first step of each candidate, after which further calls of it are made: its data make no difference."""
    first: dict[str, int] = {}
    for number, step in enumerate(plan.steps):
        if step.case.check in plan.candidates and not step.inapplicable:
            first.setdefault(step.case.check, number)
    return frozenset(first.values())


def _worth_compiling(plan: Plan, at_once: int = 1) -> tuple[Case, ...]:
    """The cases to compile ahead: those with the shared cache, and one of several that differ only in their data.

    Not those of engines: what compiles ahead imports none. Not those that ranks run together: they are about no kernel.
    Not those of candidates: no process that is not shut in loads these.

    Args:
        at_once: processes of a rank that run cases. The list has their order, as if there were one rank: all those of a
            node divide it among themselves.
    """
    from gpucheck.worker.compile_claims import kernels_of
    from gpucheck.worker.supervisor import lanes

    found: dict[tuple[Any, ...], Case] = {}
    for step in (plan.steps[number] for number in lanes.schedule(plan, range(len(plan.steps)), at_once).order):
        bare = step.conditions.cache == "shared" and not step.conditions.engine and not step.together
        bare &= step.case.check not in plan.candidates
        if not step.inapplicable and bare:
            found.setdefault(kernels_of(step.case), step.case)
    return tuple(found.values())[HEAD_START:]
