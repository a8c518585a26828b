"""Runs attempts in the child of this rank: by itself, with the other ranks of the node, or of all nodes."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from gpucheck.model.errors import UnusableGpu
from gpucheck.model.plan import Plan, Step
from gpucheck.model.record import Outcome, Record, lacks_memory
from gpucheck.model.vocabulary import Attempted
from gpucheck.worker.supervisor import blame, source_builds
from gpucheck.worker.supervisor.attempt import ANSWER, Attempt, ended, harness_failed, remove_outputs
from gpucheck.worker.supervisor.child_setup import ChildSetups, of_round
from gpucheck.worker.supervisor.gpu_snapshot import free_memory
from gpucheck.worker.supervisor.meeting import Meeting, Waited
from gpucheck.worker.supervisor.rank_child import RankChild
from gpucheck.worker.supervisor.together import Together

if TYPE_CHECKING:
    from gpucheck.host.forkserver import Child, Forkserver
    from gpucheck.worker.protocol import Inspection, Reply, Request
    from gpucheck.worker.supervisor.case_files import CaseFiles
    from gpucheck.worker.supervisor.node_sync import Node

COPIES = 16  # of a large pair that a GPU must have room for where processes wait beside it: it is held about 8 times
COMPARED = 4  # steps of each check, the largest, by whose times ranks are compared
CROWDED = (0.5, 1.0, 2.0, 4.0, 8.0)  # s between attempts to start on a GPU whose memory others hold, maybe not for long
BARRIER_TIMEOUT = 20.0  # s that ranks wait for each other before they fill a cold cache


class ChildRunner:
    """Makes the attempts of a rank."""

    def __init__(
        self,
        plan: Plan,
        node: Node,
        files: CaseFiles,
        forkserver: Forkserver,
        rank: int,
        host: str,
        run: Path,
        of_engines: Mapping[str, Forkserver] | None = None,
        *,
        several: bool = False,
        lane: str = "",
    ) -> None:
        """Args:
        of_engines: see :class:`RankChild`.
        several: the rank has more than one child at a time, see :meth:`beside`.
        lane: see :class:`ChildSetups`.
        """
        self.plan, self.node, self.files = plan, node, files
        self.rank, self.host, self.run_folder = rank, host, run
        self.setups = ChildSetups(plan, node, rank, files.folder, run, lane, several=several)
        self.child = RankChild(forkserver, of_engines or {}, run)
        self.together = Together(self)
        self.building: Callable[[int], None] = lambda step: None  # told of a step whose candidate is being built
        self.compiled = 0  # kernels that no cache had, by all children
        self._places: dict[int, tuple[int, list[int], int]] = {}  # step -> its last round, steps of that child, place
        self._before: dict[int, Sequence[int]] = {}  # failed step -> those that its process had run before
        self._compared = frozenset(plan.largest(range(len(plan.steps)), COMPARED))  # steps
        self._suspects: dict[int, int] = {}  # step -> the tensor whose fill changed its outputs
        self._pauses = () if lane else CROWDED  # a lane hands its work back instead

    def beside(self, number: int) -> ChildRunner:
        """A runner for one more child of this rank, on the same GPU; what ran before a case is known to all of them."""
        other = ChildRunner(
            self.plan,
            self.node,
            self.files,
            self.child.forkserver,
            self.rank,
            self.host,
            self.run_folder,
            self.child.of_engines,
            several=True,
            lane=f"-{number}",
        )
        other._places, other._before, other._suspects = self._places, self._before, self._suspects
        return other

    def run(
        self,
        number: int,
        step: Step,
        experiment: Attempted = "",
        *,
        round: int = 0,
        deadline: float | None = None,
        inspection: Inspection | None = None,
        partner: int | None = None,
        own: bool = False,
        known: Mapping[str, str] | None = None,
        process: str = "",
    ) -> Attempt:
        """Makes one attempt on this rank.

        Every error becomes a record: a supervisor that ended early would lose the cases to come.

        Args:
            round: number of the pass over the plan.
            deadline: seconds; None: those of the plan.
            partner: the local rank whose environment or device the process gets; None: its own.
            own: the case's files, unless they are held, are not shared with other ranks; :meth:`forget` removes them.
            known: digests of outputs; if the first call gives these, no further one is made.
            process: name of its process, if no other attempt has it and the usual one may already wait for those.
        """
        lent = -1 if partner is None else partner
        attempt = self._attempt(number, step, experiment, round)
        attempt = replace(attempt, deadline=deadline, inspection=inspection, partner=lent, known=dict(known or {}))
        attempt = replace(attempt, process=process)
        if own and not self.files.holds(attempt.key):
            attempt = replace(attempt, key=f"{number}-own{self.node.local_rank}")
        if step.inapplicable:
            return ended(attempt, Outcome.INAPPLICABLE, step.inapplicable)
        done = self._started(attempt)
        if self.plan.isolate == "case":
            self.child.retire()
        return done

    def ask(self, attempt: Attempt) -> Attempt:
        """A single call, in the process that the attempt names."""
        return self._run(attempt, [attempt.outputs])[0]

    def before(self, record: Record) -> Sequence[int]:
        """The steps that the process of a failed record had run before it.

        Ask soon after the failure; nothing is known if another rank's process ran the case.
        """
        round, ran, place = self._places.get(record.step, (record.round, (), 0))
        if round == record.round:
            self._before.setdefault(record.step, tuple(ran[:place]))
        return self._before.get(record.step, ())

    def forget(self, attempt: Attempt) -> None:
        """Removes all files of an attempt that nobody is to judge."""
        remove_outputs(attempt)
        if not self.files.holds(attempt.key):
            self.files.remove(attempt.key)

    def get_ready(self, number: int, step: Step) -> None:
        """Starts the child of a step that comes next; what goes wrong, the step will meet again and report."""
        if not step.inapplicable:
            with suppress(Exception):
                self.child.ready(self.setups.of(self.first(number, step)))

    def first(self, number: int, step: Step) -> Attempt:
        """The attempt of a step in the first pass over the plan, before it is made."""
        return self._attempt(number, step, "", 0)

    def _started(self, attempt: Attempt) -> Attempt:
        step, mine = attempt.step, self.node.local_rank
        if step.together:
            return self.together.run(attempt)
        if not step.conditions.whole_node:
            return self.ask(attempt)
        if attempt.record.experiment:
            outputs = [f"{attempt.outputs}.on{rank}" for rank in range(self.node.local_ranks)]
            return self._run(attempt, outputs)[mine]
        return self._guest(attempt) if mine else self._host(attempt)

    def _attempt(self, number: int, step: Step, experiment: Attempted, round: int) -> Attempt:
        record = Record(
            number,
            step.case.id,
            self.rank,
            Outcome.HARNESS,
            experiment=experiment,
            round=round,
            placement=step.conditions.placement,
            asked=step.conditions.repeat,
            host=self.host,
            pid=os.getpid(),
        )
        key = of_round(number, round)
        if experiment and not self.files.holds(key):
            key = f"{number}-again"
        return Attempt(step, key, record, self.setups.outputs(step, record, self.node.local_rank))

    def _host(self, attempt: Attempt) -> Attempt:
        """Runs the process that holds all GPUs of the node and hands the other ranks what came of it."""
        step, record, ranks = attempt.step, attempt.record, range(self.node.local_ranks)
        each = self._run(attempt, [self.setups.outputs(step, record, rank) for rank in ranks])
        for rank in ranks[1:]:
            self.node.publish(attempt.key, rank, (each[rank].record, each[rank].reply))
        return each[0]

    def _guest(self, attempt: Attempt) -> Attempt:
        """What came of this rank's GPU in the process that the first rank of the node runs."""
        answer = self.node.collect(attempt.key, 0)
        if answer is None:
            words = "the first rank of the node, whose process holds all GPUs, has ended"
            lost = ended(attempt, Outcome.HARNESS, words)
            return replace(lost, record=replace(lost.record, victim_of=self.rank - self.node.local_rank))
        record, reply = answer
        return replace(attempt, record=replace(record, rank=self.rank), reply=reply)

    def _run(self, attempt: Attempt, outputs: Sequence[str]) -> list[Attempt]:
        """The attempt on each device of its process, each with its file of outputs."""
        attempt, inputs = self.prepared(attempt)
        replies: list[Reply] = []
        try:
            if inputs is not None:
                if attempt.step.conditions.cache == "cold" and not attempt.record.experiment:
                    self.node.barrier(attempt.key, BARRIER_TIMEOUT)
                attempt, replies = self.execute(attempt, inputs, outputs)
        except Exception as error:
            self.child.process = None
            attempt = harness_failed(attempt, error)
        given: Sequence[Reply | None] = replies or [None] * len(outputs)
        return [replace(attempt, outputs=file, reply=reply) for file, reply in zip(outputs, given, strict=True)]

    def prepared(self, attempt: Attempt) -> tuple[Attempt, Path | None]:
        """The attempt with the file of its inputs, and its child at hand; None: there is no child, and it says why."""
        begin = time.perf_counter()
        try:
            with self._getting_ready(attempt) as started:
                inputs = self.files.inputs(attempt.key, attempt.step.case)
                waited = time.perf_counter() - begin
            if self.needs_room(attempt.key):
                self.child.want()
            said = self._built(attempt, inputs)
            if said:
                return ended(attempt, Outcome.ERROR, said), None
            child = self._with_memory(attempt, *started)
        except Exception as error:
            return harness_failed(attempt, error), None
        seconds = {"inputs": waited, "child": time.perf_counter() - begin - waited}
        attempt = replace(attempt, record=replace(attempt.record, seconds=seconds))
        if not isinstance(child, str):
            return attempt, inputs
        if UnusableGpu.__name__ in child:
            return ended(attempt, Outcome.HARNESS, child), None
        return self.child.with_output(ended(attempt, Outcome.CRASH, child)), None

    def _with_memory(self, attempt: Attempt, child: Child | str | None = None) -> Child | str:
        """The process of an attempt, started again for a while as long as its GPU lacks memory.

        Args:
            child: what came of starting it before, if it was.
        """
        setup, pauses = self.setups.of(attempt), iter(self._pauses)
        child = child or self.child.ready(setup)
        while isinstance(child, str) and UnusableGpu.__name__ in child and lacks_memory(child):
            pause = next(pauses, None)
            if pause is None:
                self._pauses = ()  # it is full for good: cases to come need not find that out again
                return child
            time.sleep(pause)
            child = self.child.ready(setup)
        return child

    @contextmanager
    def _getting_ready(self, attempt: Attempt) -> Iterator[list[Child | str]]:
        """Inside, the child of a pair is started while another process draws its inputs; afterwards it is in the list.

        The list stays empty for other cases, and where the attempt to start it raised: who asks again meets that.
        """
        started: list[Child | str] = []
        setup, name = self.setups.of(attempt), attempt.step.case.check
        drawn = self.files.desk is not None and name in self.plan.candidates
        if not drawn or self.setups.extensions(name) is not None or self.child.is_ready(setup):
            yield started
            return

        def start() -> None:
            with suppress(Exception):
                started.append(self.child.ready(setup))

        thread = threading.Thread(target=start)
        thread.start()
        try:
            yield started
        finally:
            thread.join()

    def _built(self, attempt: Attempt, inputs: Path) -> str:
        """Has the extensions of a candidate built, once; what a compiler says of them, "" if they are there."""
        folder = self.setups.extensions(attempt.step.case.check)
        if folder is None:
            return ""

        def build() -> str:
            from gpucheck.worker.protocol import BUILD, Request, receive

            self.building(attempt.record.step)
            child = self.child.ready(self.setups.of(replace(attempt, process="build", role=BUILD)))
            if isinstance(child, str):
                return ""  # the case itself meets that too
            try:
                child.connection.send(Request(attempt.step.case, attempt.step.conditions, str(inputs), ()))
                if not self.child.answers(source_builds.TIMEOUT):
                    return f"BuildError: its compiler did not end within {source_builds.TIMEOUT:g} s"
                return receive(child.connection)[0].message
            except (EOFError, OSError):
                return ""
            finally:
                self.child.retire()

        return source_builds.ensure(folder, self.plan.id, build)

    def needs_room(self, key: str) -> bool:
        """Whether a pair takes so much of its GPU that contexts of processes that wait might be what it lacks."""
        needed = self.files.bytes_on_gpu(key) * COPIES
        return needed > 0 and 0 < free_memory(self.files.folder, self.node.local_rank) < needed

    def deadline(self, attempt: Attempt) -> float:
        """Seconds that a case may take on one device."""
        return attempt.deadline or self.plan.case_timeout

    def execute(
        self, attempt: Attempt, inputs: Path, outputs: Sequence[str], meeting: Meeting | None = None
    ) -> tuple[Attempt, list[Reply]]:
        """Has the child run the case; without replies, one for each file of outputs, the record says how it ended.

        Args:
            meeting: of a joint case, whose group the child goes on in.
        """
        from gpucheck.worker.protocol import NoReply, receive

        child = self.child.process
        assert child is not None, "an attempt is prepared first"
        attempt = self._noted(attempt)
        request = self._request(attempt, inputs, outputs, meeting)
        self.child.mark()
        try:
            begin = time.perf_counter()
            child.connection.send(request)
            waited = meeting.wait(child, request.deadline) if meeting else self.child.answers(request.deadline)
            if attempt.call is not None:
                seconds = {**attempt.record.seconds, ANSWER: time.perf_counter() - begin}
                attempt = replace(attempt, record=replace(attempt.record, seconds=seconds))
            if waited is not True:
                return self._unanswered(attempt, request.deadline, meeting, waited), []
            replies = receive(child.connection)
        except NoReply as refused:
            if meeting:
                meeting.failed()
            self.child.retire()
            message = f"the process that owns the device sent something else than a reply: {refused}"
            return ended(attempt, Outcome.CRASH, message), []
        except (EOFError, OSError):
            if meeting:
                meeting.failed()
            return self.child.last_words(ended(attempt, Outcome.CRASH, self.child.death(child))), []
        self.compiled += sum(reply.compiled for reply in replies)
        for suspect in (reply.suspect for reply in replies if reply.suspect is not None):
            self._suspects[attempt.record.step] = suspect
        if attempt.known and all(len(reply.digests) == 1 for reply in replies):
            attempt = replace(attempt, record=replace(attempt.record, asked=1))
        self.child.group = request.group
        if any(reply.fatal for reply in replies):
            attempt = self.child.last_words(attempt)
            self.child.retire()
        return attempt, replies

    def _noted(self, attempt: Attempt) -> Attempt:
        """The attempt with what is known of its process before it begins."""
        child, record = self.child, attempt.record
        assert child.process is not None and child.setup is not None, "an attempt is prepared first"
        walls = list(child.walls) if child.setup.own_folder else record.walls
        attempt = replace(attempt, record=replace(record, pid=child.process.pid, before=len(child.ran), walls=walls))
        if attempt.call is None:
            if not record.experiment:
                self._places[record.step] = record.round, child.ran, len(child.ran)
            child.ran.append(record.step)
        return attempt

    def _request(self, attempt: Attempt, inputs: Path, outputs: Sequence[str], meeting: Meeting | None) -> Request:
        from gpucheck.worker.protocol import Request, allowance

        step = attempt.step
        return Request(
            case=step.case,
            conditions=step.conditions,
            inputs=str(inputs),
            outputs=tuple(outputs),
            timed=allowance(self.plan, step, attempt.record.experiment, compared=attempt.record.step in self._compared),
            inspection=attempt.inspection,
            call=attempt.call,
            box=self.files.box(attempt.key),
            known=attempt.known,
            group=meeting.group if meeting else "",
            deadline=self.deadline(attempt) * len(outputs),
            suspect=self._suspects.get(attempt.record.step),
        )

    def _unanswered(self, attempt: Attempt, deadline: float, meeting: Meeting | None, waited: Waited | bool) -> Attempt:
        """The attempt of a child that did not answer; of a joint case it may be another rank's fault."""
        if not isinstance(waited, Waited) or meeting is None:
            return self.child.hung(attempt, deadline)
        if waited is not Waited.FREED:
            meeting.failed()
            stopped = waited is Waited.STOPPED or self.child.stopped  # which is known later than that it is overdue
            state = blame.STOPPED if stopped else blame.WAITED
            return replace(self.child.hung(attempt, deadline), state=state)
        attempt = self.child.last_words(attempt)
        self.child.retire()
        return replace(ended(attempt, Outcome.HANG, "it was ended, since another rank had failed"), state=blame.WAITED)
