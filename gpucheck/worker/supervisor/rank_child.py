"""The child of a rank, which owns the device: started, reused as long as its setup fits, watched and ended."""

from __future__ import annotations

import shutil
import signal
import threading
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from gpucheck.host import log_excerpt
from gpucheck.host.forkserver import Unkillable
from gpucheck.host.oom_killer import OomKills
from gpucheck.host.processes import ending, state_of
from gpucheck.model.record import OOM_KILLER, Outcome
from gpucheck.worker import launch_journal
from gpucheck.worker.protocol import TEMPORARY
from gpucheck.worker.supervisor.attempt import Attempt, ended
from gpucheck.worker.supervisor.deadline import Deadline

if TYPE_CHECKING:
    from gpucheck.host.forkserver import Child, Forkserver
    from gpucheck.worker.protocol import Setup

STARTUP_TIMEOUT = 60.0  # s for a child to create its CUDA context
ENGINE_TIMEOUT = 120.0  # s for a forkserver to load what an engine imports; then its children import it themselves
GLANCE = 1.0  # s between two checks whether a signal has stopped it
RUNS = ("R", "S", "D")  # states of a process that was neither ended nor stopped
LEFT = 3.0  # s that what a candidate left behind has to end by itself, until one has left something that does not


class RankChild:
    """One process at a time; a fresh one takes the place of one that died, hung or has another setup."""

    def __init__(self, forkserver: Forkserver, of_engines: Mapping[str, Forkserver], run: Path) -> None:
        """Args:
        of_engines: forkservers by the name of an engine, whose children need not import what these have loaded; one
            that dies is done without.
        run: the run folder.
        """
        self._run = run
        self.process: Child | None = None
        self.forkserver, self._forked_by, self.of_engines = forkserver, forkserver, dict(of_engines)
        self.setup: Setup | None = None  # of the last one, also when it has ended
        self.group = ""  # name of the group of all ranks that it is in; "": in none
        self.ran: list[int] = []  # steps
        self.started = 0  # of all so far
        self.seconds = 0.0  # that starting them took
        self.walls: tuple[str, ...] = ()  # around the candidate that ran last
        self._files_walled = True
        self.left_behind = 0  # processes that candidates left behind in other sessions
        self.stuck = ""  # why no further case can run: a process that cannot be killed holds the device
        self._wanted: list[Setup] = []  # of processes to start ahead, see :meth:`want`
        self._waiting: list[tuple[Setup, Child]] = []  # those that were started, told their setups and asked nothing
        self._forking: threading.Thread | None = None
        self._oom = OomKills()
        self.mark()

    def mark(self) -> None:
        """What is told of its end begins here: output, and what the kernel kills for memory."""
        self._oom_before = self._oom.count()
        self._logs = log_excerpt.marks()  # where the output of what is under way begins

    def ready(self, setup: Setup) -> Child | str:
        """The process for a setup, started if needed; a string says how starting it failed."""
        if self.process is not None and self.is_ready(setup):
            return self.process
        setup = replace(setup, files_walled=self._files_walled)
        self.retire()
        if self.stuck:
            raise RuntimeError(self.stuck)
        begin = time.perf_counter()
        self.mark()
        waiting = self._taken(setup)
        child = self.process = waiting or self._spawn(setup)
        self.setup = setup
        try:
            if not waiting:
                child.connection.send(setup)
            if not self.answers(STARTUP_TIMEOUT):
                stopped = self.stopped
                self.retire()
                words = "was stopped by a signal" if stopped else f"was not ready within {STARTUP_TIMEOUT:g} s"
                return f"the process on this GPU {words}"
            answer = child.connection.recv()
        except (EOFError, OSError):
            death = self.death(child)
            return self.ready(setup) if waiting else f"while it was set up, {death}"
        if isinstance(answer, str) and answer:
            self.retire()
            if waiting:  # a GPU may take one process after the other, and not both at once
                return self.ready(setup)
            if setup.own_folder and setup.files_walled:  # a driver that writes where no other does
                self._files_walled = False
                return self.ready(setup)
            return f"the device could not be set up: {answer}"
        if setup.own_folder:
            self.walls = tuple(answer)
        self.ran = []
        self.seconds += time.perf_counter() - begin
        self.started += 1
        if not setup.calls:
            self.start_wanted()
        return child

    def want(self, setups: Iterable[Setup] = ()) -> None:
        """Says which processes will be asked for next; those that wait for anything else are ended.

        They are started when the process of a case is ready, which is needed first, or by :meth:`start_wanted`. Each
        has a context on the GPU, and holds nothing of a candidate before its first call.
        """
        self._all_forked()
        wanted = [replace(setup, files_walled=self._files_walled) for setup in setups]
        waiting, self._waiting = self._waiting, []
        for setup, child in waiting:
            if setup in wanted:
                self._waiting.append((setup, child))
                wanted.remove(setup)
            else:
                self._killed(child, self.forkserver)
        self._wanted = wanted

    def start_wanted(self) -> None:
        """Starts what is wanted and not there yet, beside whatever is done here."""
        wanted, self._wanted = self._wanted, []
        if wanted:
            self._all_forked()
            self._forking = threading.Thread(target=self._fork, args=(wanted,))
            self._forking.start()

    def settle(self) -> None:
        """Returns when those that wait are set up, which must not go on beside calls that are timed."""
        self._all_forked()
        deadline = time.monotonic() + STARTUP_TIMEOUT
        for _, child in self._waiting:
            with suppress(OSError):  # whoever asks for it meets that
                child.connection.poll(max(0.0, deadline - time.monotonic()))

    def _fork(self, wanted: Iterable[Setup]) -> None:
        with suppress(OSError):  # whoever asks for a process meets that
            for setup in wanted:
                child = self.forkserver.spawn()
                setup = replace(setup, files_walled=self._files_walled)
                self._waiting.append((setup, child))
                child.connection.send(setup)

    def _all_forked(self) -> None:
        if self._forking is not None:
            self._forking.join()
            self._forking = None

    def _taken(self, setup: Setup) -> Child | None:
        """The process that waits for a setup, if there is one that nobody has ended or stopped meanwhile."""
        self._all_forked()
        found = next((each for each in self._waiting if each[0] == setup), None)
        if found is None:
            return None
        self._waiting.remove(found)
        if state_of(found[1].pid) not in RUNS:
            self._killed(found[1], self.forkserver)
            return None
        self._forked_by = self.forkserver
        with suppress(OSError):  # as it was when this one started; what another left in it has been removed
            Path(setup.own_folder, TEMPORARY).mkdir(exist_ok=True)
        return found[1]

    @property
    def stopped(self) -> bool:
        """Whether a signal has stopped it."""
        return self.process is not None and state_of(self.process.pid) == "T"

    def is_ready(self, setup: Setup) -> bool:
        """Whether the process for a setup is there."""
        return self.process is not None and self.setup == replace(setup, files_walled=self._files_walled)

    def _spawn(self, setup: Setup) -> Child:
        """A fresh process, of the forkserver that has loaded what the engine of the setup imports, if there is one."""
        name = setup.engine["name"] if setup.engine else ""
        if name in self.of_engines:
            self._forked_by = self.of_engines[name]
            try:
                return self._forked_by.spawn(ENGINE_TIMEOUT)
            except OSError:
                del self.of_engines[name]
        self._forked_by = self.forkserver
        return self.forkserver.spawn()

    def answers(self, seconds: float) -> bool:
        """Whether it answers within a time; one that stays stopped by a signal is not waited for as long."""
        assert self.process is not None, "nobody is asked"
        deadline = Deadline(self.process.pid, seconds)
        while True:
            left = deadline.left
            if self.process.connection.poll(max(0.0, min(GLANCE, left))):
                return True
            if left <= 0 or deadline.stopped():
                return False

    def retire(self) -> None:
        """Ends it."""
        child, self.process, self.group = self.process, None, ""
        if child is not None and self._killed(child, self._forked_by):
            with suppress(OSError):
                self._clear()

    def _killed(self, child: Child, forkserver: Forkserver) -> bool:
        """Ends a process; where that fails, says so later."""
        try:
            forkserver.kill(child)
        except Unkillable as unkillable:
            self.stuck = str(unkillable)
            return False
        except OSError:
            return False  # the forkserver has died, and its children with it; the next case meets that itself
        return True

    def _clear(self) -> None:
        """Ends and removes what a candidate left behind whose process has ended."""
        if self.setup and self.setup.own_folder:
            self.left_behind += self._forked_by.end_leftovers(0.0 if self.left_behind else LEFT)
            shutil.rmtree(Path(self.setup.own_folder, TEMPORARY), ignore_errors=True)

    def death(self, child: Child) -> str:
        """How it ended, in words, where it did so by itself."""
        self.process = None
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

    def hung(self, attempt: Attempt, deadline: float) -> Attempt:
        """Ends it; the attempt that it did not answer within ``deadline`` seconds, with where it was."""
        from gpucheck.worker import hang_stacks

        assert self.process is not None and self.setup is not None, "nobody was asked"
        stopped = self.stopped
        text = hang_stacks.collect(self.process.pid, Path(self.setup.stacks))
        attempt = self.last_words(attempt)
        self.retire()
        place = hang_stacks.innermost(text)
        words = f"no result within {deadline:g} s" + (f", at {place}" if place else "")
        if stopped:
            words = "the process that owns the device was stopped by a signal and did not go on"
        message = f"{words}; {self.stuck or 'the process was killed'}"
        return ended(attempt, Outcome.HANG, message, text)

    def last_words(self, attempt: Attempt) -> Attempt:
        """The attempt with what it wrote down before it died, hung or lost its device."""
        assert self.setup is not None, "nobody was asked"
        entry = launch_journal.read(Path(self.setup.journal))
        record = replace(attempt.record, kernels=list(entry.kernels), underway=entry.underway)
        return self.with_output(replace(attempt, record=record))

    def with_output(self, attempt: Attempt) -> Attempt:
        """The attempt with what it printed."""
        said, log = log_excerpt.printed(self._logs), log_excerpt.paths(self._logs, self._run)
        return replace(attempt, record=replace(attempt.record, said=said, log=log))
