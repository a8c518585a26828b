"""Runs attempts in the child of this rank: starts the child, reuses it, watches it and replaces it."""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from gpucheck.host import log_excerpt
from gpucheck.host.forkserver import Unkillable
from gpucheck.host.oom_killer import OomKills
from gpucheck.host.processes import ending, starved, state_of
from gpucheck.model.conditions import Conditions
from gpucheck.model.errors import UnusableGpu
from gpucheck.model.plan import Plan, Step
from gpucheck.model.record import OOM_KILLER, Outcome, Record
from gpucheck.model.vocabulary import Attempted, ExperimentName, file_name
from gpucheck.worker import collective_journal, launch_journal
from gpucheck.worker.supervisor import blame, source_builds
from gpucheck.worker.supervisor.attempt import ANSWER, Attempt, ended, harness_failed, remove_outputs
from gpucheck.worker.supervisor.meeting import Waited

if TYPE_CHECKING:
    from gpucheck.host.forkserver import Child, Forkserver
    from gpucheck.worker.protocol import Inspection, Reply, Setup
    from gpucheck.worker.supervisor.board import Board
    from gpucheck.worker.supervisor.case_files import CaseFiles
    from gpucheck.worker.supervisor.meeting import Meeting
    from gpucheck.worker.supervisor.node_sync import Node

STARTUP_TIMEOUT = 60.0  # s for a child to create its CUDA context
ENGINE_TIMEOUT = 120.0  # s for a forkserver to load what an engine imports; then its children import it themselves
STOPPED = 10.0  # s within which a child that a signal stopped must continue
GLANCE = 1.0  # s between two checks whether a signal has stopped it
MOST_STARVED = 3.0  # deadlines that a child may wait for a processor without that being counted
LEFT = 3.0  # s that what a candidate left behind has to end by itself, until one has left something that does not
CANDIDATES = "candidates"  # folder with one for each candidate and rank, which alone that may write to
BARRIER_TIMEOUT = 20.0  # s that ranks wait for each other before they fill a cold cache


class ChildRunner:
    """Starts, watches and replaces the child of a rank."""

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
    ) -> None:
        """Args:
        of_engines: forkservers by the name of an engine, whose children need not import what these have loaded; one
            that dies is done without.
        several: the rank has more than one child at a time, see :meth:`beside`.
        """
        self._lane = ""  # ends the names of files that each child of the rank has for itself
        self._several = several
        self.plan, self.node, self.files, self.forkserver = plan, node, files, forkserver
        self.rank, self.host, self.run_folder = rank, host, run
        self.child_seconds = 0.0
        self.building: Callable[[int], None] = lambda step: None  # told of a step whose candidate is being built
        self._folders: dict[str, Path | None] = {}  # candidate -> where its extensions lie
        self.children = 0
        self.compiled = 0  # kernels that no cache had, by all children
        self.walls: tuple[str, ...] = ()  # around the candidate that ran last
        self._files_walled = True
        self.left_behind = 0  # processes that candidates left behind in other sessions
        self.stuck = ""  # why no further case can run: a process that cannot be killed holds the device
        self._ran: list[int] = []  # steps, by the child at hand
        self._places: dict[
            int, tuple[int, Sequence[int], int]
        ] = {}  # step -> its last round, steps of that child, place
        self._before: dict[int, Sequence[int]] = {}  # failed step -> those that its process had run before
        self._board: Board | None = None  # where all ranks meet, once a joint case asks for it
        self._met: dict[str, int] = {}  # meeting -> times this rank was there
        self._group = ""  # name of the group of all ranks that the child is in; "": in none
        self._child: Child | None = None
        self._of_engines, self._forked_by = dict(of_engines or {}), forkserver
        self._setup: Setup | None = None
        self._oom = OomKills()
        self._oom_before = 0
        self._logs = log_excerpt.marks()  # where the output of what is under way begins

    def beside(self, number: int) -> ChildRunner:
        """A runner for one more child of this rank, on the same GPU; what ran before a case is known to all of them."""
        other = ChildRunner(
            self.plan,
            self.node,
            self.files,
            self.forkserver,
            self.rank,
            self.host,
            self.run_folder,
            self._of_engines,
            several=True,
        )
        other._lane, other._places, other._before = f"-{number}", self._places, self._before
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
    ) -> Attempt:
        """Makes one attempt on this rank.

        Every error becomes a record: a supervisor that ended early would lose the cases to come.

        Args:
            round: number of the pass over the plan.
            deadline: seconds; None: those of the plan.
            partner: the local rank whose environment or device the process gets; None: its own.
            own: the case's files, unless they are held, are not shared with other ranks; :meth:`forget` removes them.
            known: digests of outputs; if the first call gives these, no further one is made.
        """
        lent = -1 if partner is None else partner
        attempt = self._attempt(number, step, experiment, round)
        attempt = replace(attempt, deadline=deadline, inspection=inspection, partner=lent, known=dict(known or {}))
        if own and not self.files.holds(attempt.key):
            attempt = replace(attempt, key=f"{number}-own{self.node.local_rank}")
        if step.inapplicable:
            return ended(attempt, Outcome.INAPPLICABLE, step.inapplicable)
        done = self._started(attempt)
        if self.plan.isolate == "case":
            self.retire()
        return done

    def ask(self, attempt: Attempt) -> Attempt:
        """A single call, in the process that the attempt names."""
        done, replies = self._run(attempt, [attempt.outputs])
        return replace(done, reply=replies[0] if replies else None)

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
                self._ready(self._attempt(number, step, "", 0))

    def _started(self, attempt: Attempt) -> Attempt:
        step, experiment = attempt.step, attempt.record.experiment
        if step.together:
            return self._meet(attempt)
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
        child, self._child, self._group = self._child, None, ""
        if child is not None:
            try:
                self._forked_by.kill(child)
                self._clear()
            except Unkillable as unkillable:
                self.stuck = str(unkillable)
            except OSError:
                pass  # the forkserver has died, and its children with it; the next case meets that itself

    def _clear(self) -> None:
        """Ends and removes what a candidate left behind whose process has ended."""
        if self._setup and self._setup.own_folder:
            self.left_behind += self._forked_by.end_leftovers(0.0 if self.left_behind else LEFT)
            shutil.rmtree(Path(self._setup.own_folder, "tmp"), ignore_errors=True)

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
        key = _of_round(number, round)
        if experiment and not self.files.holds(key):
            key = f"{number}-again"
        return Attempt(step, key, record, self._outputs(step, record, self.node.local_rank))

    def _outputs(self, step: Step, record: Record, local_rank: int) -> str:
        words = file_name(record.experiment)
        candidate = step.case.check in self.plan.candidates
        folder = self._own_folder(step.case.check, local_rank) if candidate else self.files.folder
        return str(folder / f"{_of_round(record.step, record.round)}{words}.outputs{local_rank}{self._lane}")

    def _own_folder(self, candidate: str, local_rank: int) -> Path:
        """The folder of a candidate on a rank, which holds its outputs, its caches and what else it writes."""
        folder = self.files.folder / CANDIDATES / candidate / str(local_rank)
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def _host(self, attempt: Attempt) -> Attempt:
        """Runs the process that holds all GPUs of the node and hands the other ranks what came of it."""
        outputs = [self._outputs(attempt.step, attempt.record, rank) for rank in range(self.node.local_ranks)]
        done, replies = self._run(attempt, outputs)
        for rank in range(1, self.node.local_ranks):
            self.node.publish(attempt.key, rank, (done.record, replies[rank] if replies else None))
        return replace(done, reply=replies[0] if replies else None)

    def _guest(self, attempt: Attempt) -> Attempt:
        """What came of this rank's GPU in the process that the first rank of the node runs."""
        answer = self.node.collect(attempt.key, 0)
        if answer is None:
            words = "the first rank of the node, whose process holds all GPUs, has ended"
            lost = ended(attempt, Outcome.HARNESS, words)
            return replace(lost, record=replace(lost.record, victim_of=self.rank - self.node.local_rank))
        record, reply = answer
        return replace(attempt, record=replace(record, rank=self.rank), reply=reply)

    def _meet(self, attempt: Attempt) -> Attempt:
        """Runs this rank's part of a joint case; a rank that fails costs this case and this group, and no more."""
        from gpucheck.worker.supervisor.blame import RankState
        from gpucheck.worker.supervisor.board import NoStore
        from gpucheck.worker.supervisor.meeting import Absent, Meeting, absent_states
        from gpucheck.worker.supervisor.together import attributed

        done, child, inputs = attempt, None, None
        try:
            meeting = Meeting(self.board(), self._meeting_name(attempt))
            if not self.board().gone():
                done, child, inputs = self._prepared(attempt)
            group = meeting.arrive(self._group if child else "", "" if child else done.record.message)
            if group is None:
                if self._group:
                    self.retire()
                    done, child, inputs = self._prepared(attempt)
                group = meeting.arrive("", "" if child else done.record.message)
            assert group is not None, "all come without a group"
            if isinstance(group, Absent):
                return attributed(done, absent_states(group, self.plan.world_size))
            assert child is not None and inputs is not None, "without a child this rank is absent"
            done = self._part(done, child, inputs, meeting, group)
            own = RankState(self.rank, *_state(done), tuple(collective_journal.read(self._collectives())))
            states = meeting.end(own, self._deadline(done))
        except NoStore as error:
            self.retire()
            return harness_failed(replace(done, reply=None), error)
        done = attributed(done, states)
        if done.record.progress:
            self.retire()
        return done

    def _part(self, attempt: Attempt, child: Child, inputs: Path, meeting: Meeting, group: str) -> Attempt:
        """This rank's part of a joint case; whatever goes wrong here, the other ranks are told of it."""
        from gpucheck.worker.supervisor.board import NoStore

        try:
            done, replies = self._execute(attempt, child, inputs, [attempt.outputs], meeting, group)
        except NoStore:
            raise
        except Exception as error:
            self.retire()
            return harness_failed(attempt, error)
        return replace(done, reply=replies[0] if replies else None)

    def agree(self, name: str, wish: bool) -> bool:
        """Gives all ranks that run cases together one answer: on one node the first wish, on several that of rank 0."""
        if self.plan.nnodes == 1 or not any(step.together and not step.inapplicable for step in self.plan.steps):
            return self.node.vote(name, wish)
        told = self.board().gather(name, wish)
        return bool(told[0]) if told else False

    def board(self) -> Board:
        """The board of the run, made by the first joint case."""
        from gpucheck.worker.supervisor.board import Board

        if self._board is None:
            self._board = Board(self.node, self.rank, self.plan.world_size, self.run_folder / "records")
        return self._board

    def _meeting_name(self, attempt: Attempt) -> str:
        """What all ranks call the attempt: the one of the case, or so many more of an experiment."""
        record = attempt.record
        name = f"{_of_round(record.step, record.round)}{file_name(record.experiment)}"
        self._met[name] = self._met.get(name, 0) + 1
        return f"{name}.{self._met[name]}"

    def _run(self, attempt: Attempt, outputs: Sequence[str]) -> tuple[Attempt, list[Reply]]:
        attempt, child, inputs = self._prepared(attempt)
        if child is None or inputs is None:
            return attempt, []
        record, step = attempt.record, attempt.step
        try:
            if step.conditions.cache == "cold" and not record.experiment:
                self.node.barrier(attempt.key, BARRIER_TIMEOUT)
            return self._execute(attempt, child, inputs, outputs)
        except Exception as error:
            self._child = None
            return harness_failed(attempt, error), []

    def _prepared(self, attempt: Attempt) -> tuple[Attempt, Child | None, Path | None]:
        """The attempt with its child and the file of its inputs; without a child it says why there is none."""
        begin = time.perf_counter()
        try:
            inputs = self.files.inputs(attempt.key, attempt.step.case)
            waited = time.perf_counter() - begin
            said = self._built(attempt, inputs)
            if said:
                return ended(attempt, Outcome.ERROR, said), None, None
            child = self._ready(attempt)
        except Exception as error:
            return harness_failed(attempt, error), None, None
        seconds = {"inputs": waited, "child": time.perf_counter() - begin - waited}
        attempt = replace(attempt, record=replace(attempt.record, seconds=seconds))
        if not isinstance(child, str):
            return attempt, child, inputs
        if UnusableGpu.__name__ in child:
            return ended(attempt, Outcome.HARNESS, child), None, None
        return self._with_output(ended(attempt, Outcome.CRASH, child)), None, None

    def _built(self, attempt: Attempt, inputs: Path) -> str:
        """Has the extensions of a candidate built, once; what a compiler says of them, "" if they are there."""
        folder = self._extensions(attempt.step.case.check)
        if folder is None:
            return ""

        def build() -> str:
            from gpucheck.worker.protocol import BUILD, Request, receive

            self.building(attempt.record.step)
            child = self._ready(replace(attempt, process="build", role=BUILD))
            if isinstance(child, str):
                return ""  # the case itself meets that too
            try:
                child.connection.send(Request(attempt.step.case, attempt.step.conditions, str(inputs), ()))
                if not _answers(child, source_builds.TIMEOUT):
                    return f"BuildError: its compiler did not end within {source_builds.TIMEOUT:g} s"
                return receive(child.connection)[0].message
            except (EOFError, OSError):
                return ""
            finally:
                self.retire()

        return source_builds.ensure(folder, self.plan.id, build)

    def _extensions(self, name: str) -> Path | None:
        """Where the extensions of a candidate lie; None where it has none, and for all that is no candidate."""
        if name not in self.plan.candidates:
            return None
        if name not in self._folders:
            path = Path(next(source.files[-1] for source in self.plan.check_sources if name in source.checks))
            self._folders[name] = source_builds.folder_of(path)
        return self._folders[name]

    def _deadline(self, attempt: Attempt) -> float:
        """Seconds that a case may take on one device."""
        return attempt.deadline or self.plan.case_timeout

    def _execute(
        self,
        attempt: Attempt,
        child: Child,
        inputs: Path,
        outputs: Sequence[str],
        meeting: Meeting | None = None,
        group: str = "",
    ) -> tuple[Attempt, list[Reply]]:
        from gpucheck.worker.protocol import NoReply, Request, allowance, receive

        attempt = replace(attempt, record=replace(attempt.record, pid=child.pid, before=len(self._ran)))
        if self._setup and self._setup.own_folder:
            attempt = replace(attempt, record=replace(attempt.record, walls=list(self.walls)))
        if attempt.call is None:
            if not attempt.record.experiment:
                self._places[attempt.record.step] = attempt.record.round, self._ran, len(self._ran)
            self._ran.append(attempt.record.step)
        deadline = self._deadline(attempt) * len(outputs)
        self._oom_before = self._oom.count()
        self._logs = log_excerpt.marks()
        try:
            step = attempt.step
            timed = allowance(self.plan, step, attempt.record.experiment)
            request = Request(
                case=step.case,
                conditions=step.conditions,
                inputs=str(inputs),
                outputs=tuple(outputs),
                timed=timed,
                inspection=attempt.inspection,
                call=attempt.call,
                box="" if attempt.call else self.files.box(attempt.key),
                known=attempt.known,
                group=group,
                deadline=deadline,
            )
            begin = time.perf_counter()
            child.connection.send(request)
            waited = meeting.wait(child, deadline) if meeting else _answers(child, deadline)
            if attempt.call is not None:
                seconds = {**attempt.record.seconds, ANSWER: time.perf_counter() - begin}
                attempt = replace(attempt, record=replace(attempt.record, seconds=seconds))
            if waited is not True:
                return self._unanswered(attempt, child, deadline, meeting, waited), []
            replies = receive(child.connection)
            self.compiled += sum(reply.compiled for reply in replies)
        except NoReply as refused:
            if meeting:
                meeting.failed()
            self.retire()
            message = f"the process that owns the device sent something else than a reply: {refused}"
            return ended(attempt, Outcome.CRASH, message), []
        except (EOFError, OSError):
            if meeting:
                meeting.failed()
            self._child = None
            return self._last_words(ended(attempt, Outcome.CRASH, self._death(child))), []
        if attempt.known and all(len(reply.digests) == 1 for reply in replies):
            attempt = replace(attempt, record=replace(attempt.record, asked=1))
        if any(reply.fatal for reply in replies):
            attempt = self._last_words(attempt)
            self.retire()
        self._group = group if self._child else ""
        return attempt, replies

    def _unanswered(
        self, attempt: Attempt, child: Child, deadline: float, meeting: Meeting | None, waited: Waited | bool
    ) -> Attempt:
        """The attempt of a child that did not answer; of a joint case it may be another rank's fault."""
        if not isinstance(waited, Waited) or meeting is None:
            return self._hung(attempt, child, deadline)
        if waited is not Waited.FREED:
            meeting.failed()
            state = blame.STOPPED if waited is Waited.STOPPED else blame.WAITED
            return replace(self._hung(attempt, child, deadline), state=state)
        attempt = self._last_words(attempt)
        self.retire()
        return replace(ended(attempt, Outcome.HANG, "it was ended, since another rank had failed"), state=blame.WAITED)

    def _hung(self, attempt: Attempt, child: Child, deadline: float) -> Attempt:
        from gpucheck.worker import hang_stacks

        stopped = state_of(child.pid) == "T"
        text = hang_stacks.collect(child.pid, self._stacks())
        attempt = self._last_words(attempt)
        self.retire()
        place = hang_stacks.innermost(text)
        words = f"no result within {deadline:g} s" + (f", at {place}" if place else "")
        if stopped:
            words = "the process that owns the device was stopped by a signal and did not go on"
        message = f"{words}; {self.stuck or 'the process was killed'}"
        return ended(attempt, Outcome.HANG, message, text)

    def _last_words(self, attempt: Attempt) -> Attempt:
        """The attempt with what its child wrote down before it died, hung or lost its device."""
        entry = launch_journal.read(self._journal())
        record = replace(attempt.record, kernels=list(entry.kernels), underway=entry.underway)
        return self._with_output(replace(attempt, record=record))

    def _with_output(self, attempt: Attempt) -> Attempt:
        """The attempt with what its child printed."""
        said, log = log_excerpt.printed(self._logs), log_excerpt.paths(self._logs, self.run_folder)
        return replace(attempt, record=replace(attempt.record, said=said, log=log))

    def _death(self, child: Child) -> str:
        """How a child that ended by itself did, in words."""
        try:
            code = self._forked_by.reap(child)
            self._clear()
        except Unkillable as unkillable:
            self.stuck = str(unkillable)
            return f"the process that owns the device broke off; {self.stuck}"
        words = f"the process that owns the device {ending(code)}"
        if code == -signal.SIGKILL and self._oom.count() > self._oom_before:
            words += f", while the {OOM_KILLER} was at work in {self._oom.where}"
        return words

    def _stacks(self) -> Path:
        return self.files.folder / f"stacks{self.node.local_rank}{self._lane}"

    def _journal(self) -> Path:
        return self.files.folder / f"journal{self.node.local_rank}{self._lane}"

    def _collectives(self) -> Path:
        return self.files.folder / f"collectives{self.node.local_rank}{self._lane}"

    def _ready(self, attempt: Attempt) -> Child | str:
        """The child for an attempt, started if needed; a string says how starting it failed."""
        setup = self._setup_for(attempt)
        if self._child is not None and self._setup == setup:
            return self._child
        self.retire()
        if self.stuck:
            raise RuntimeError(self.stuck)
        begin = time.perf_counter()
        self._logs = log_excerpt.marks()
        child = self._child = self._spawn(setup)
        self._setup = setup
        self._oom_before = self._oom.count()
        try:
            child.connection.send(setup)
            if not _answers(child, STARTUP_TIMEOUT):
                stopped = state_of(child.pid) == "T"
                self.retire()
                words = "was stopped by a signal" if stopped else f"was not ready within {STARTUP_TIMEOUT:g} s"
                return f"the process on this GPU {words}"
            answer = child.connection.recv()
        except (EOFError, OSError):
            self._child = None
            return "while it was set up, " + self._death(child)
        if isinstance(answer, str) and answer:
            self.retire()
            if setup.own_folder and setup.files_walled:  # a driver that writes where no other does
                self._files_walled = False
                return self._ready(attempt)
            return f"the device could not be set up: {answer}"
        if setup.own_folder:
            self.walls = tuple(answer)
        self._ran = []
        self.child_seconds += time.perf_counter() - begin
        self.children += 1
        return child

    def _spawn(self, setup: Setup) -> Child:
        """A fresh child, of the forkserver that has loaded what the engine of the setup imports, where there is one."""
        name = setup.engine["name"] if setup.engine else ""
        if name in self._of_engines:
            self._forked_by = self._of_engines[name]
            try:
                return self._forked_by.spawn(ENGINE_TIMEOUT)
            except OSError:
                del self._of_engines[name]
        self._forked_by = self.forkserver
        return self.forkserver.spawn()

    def _setup_for(self, attempt: Attempt) -> Setup:
        from gpucheck.worker.protocol import Setup

        library = self.plan.library
        conditions = attempt.step.conditions.lifelong
        candidate = attempt.step.case.check in self.plan.candidates
        own_folder = ""
        if candidate:
            folder = self._own_folder(attempt.step.case.check, self.node.local_rank)
            own_folder = str(folder.parent if conditions.whole_node else folder)
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
            journal=str(self._journal()),
            attempt=attempt.process or attempt.record.experiment,
            extensions=str(self._extensions(attempt.step.case.check) or ""),
            precision=self.plan.precision(attempt.step.case.check),
            candidate=attempt.step.case.check if candidate else "",
            own_folder=own_folder,
            files_walled=self._files_walled,
            calls=attempt.role,
            launches=attempt.launches,
            cache=self._cache(attempt, conditions),
            meeting=self._meeting(conditions),
            collectives=str(self._collectives()) if conditions.together else "",
            partner=attempt.partner,
            engine=self.plan.engine(conditions.engine),
            turns=str(self.files.folder / f"turns{self.node.local_rank}") if self._several else "",
        )

    def _cache(self, attempt: Attempt, conditions: Conditions) -> str:
        """The folder of Triton's kernel cache; "" is the usual one. An experiment never shares a cold one.

        All cases that a rank tries with a fresh cache have one together: what is in it was compiled for such a case,
        and cases of one process need a kernel that several of them launch compiled once.
        """
        if conditions.cache == "shared":
            return ""
        record = attempt.record
        own = conditions.cache == "fresh" or record.experiment
        name = "" if record.experiment == ExperimentName.FRESH_CACHE else _of_round(record.step, record.round)
        name = f"cache-{name}{file_name(record.experiment)}" + (f"-{self.node.local_rank}" if own else "")
        folder = self.files.folder / name
        folder.mkdir(exist_ok=True)
        return str(folder)

    def _meeting(self, conditions: Conditions) -> str:
        """The file where a process group meets, in the memory of the node where it is the only one."""
        if conditions.process_group != "initialised":
            return ""
        folder = self.files.folder if self.plan.nnodes == 1 else self.run_folder
        return str(folder / "process-group")


def _answers(child: Child, seconds: float) -> bool:
    """Whether a child answers within a time; one that stays stopped by a signal is not waited for as long.

    Time in which other processes kept it from a processor does not count: a busy machine makes no hang.
    """
    begin = going = time.monotonic()
    before = starved(child.pid)
    while True:
        kept_waiting = min(starved(child.pid) - before, MOST_STARVED * seconds)
        left = begin + seconds + kept_waiting - time.monotonic()
        if child.connection.poll(max(0.0, min(GLANCE, left))):
            return True
        if state_of(child.pid) != "T":
            going = time.monotonic()
        if left <= 0 or time.monotonic() - going > STOPPED:
            return False


def _state(attempt: Attempt) -> tuple[str, str]:
    """How a joint case ended on this rank, and what there is to say of it."""
    reply, record = attempt.reply, attempt.record
    if reply is None:
        gave_up = next((line for line in record.said if blame.GAVE_UP.search(line)), "")
        return attempt.state or blame.CRASHED, "; ".join(filter(None, (record.message, gave_up)))
    broken = reply.status in ("error", "harness")
    return (blame.CRASHED if reply.sticky else blame.RAISED) if broken else blame.RAN, reply.message if broken else ""


def _of_round(number: int, round: int) -> str:
    """What tells the files of a step in one pass over the plan from those in others."""
    return f"{number}-round{round}" if round else str(number)
