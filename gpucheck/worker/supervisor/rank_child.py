"""The child of a rank, which owns the device: started, reused as long as its setup fits, watched and ended."""

from __future__ import annotations

import shutil
import signal
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from gpucheck.host import log_excerpt
from gpucheck.host.forkserver import Unkillable
from gpucheck.host.oom_killer import OomKills
from gpucheck.host.processes import ending, state_of
from gpucheck.model.record import OOM_KILLER, Outcome
from gpucheck.worker import launch_journal
from gpucheck.worker.supervisor.attempt import Attempt, ended
from gpucheck.worker.supervisor.deadline import Deadline

if TYPE_CHECKING:
    from gpucheck.host.forkserver import Child, Forkserver
    from gpucheck.worker.protocol import Setup

STARTUP_TIMEOUT = 60.0  # s for a child to create its CUDA context
ENGINE_TIMEOUT = 120.0  # s for a forkserver to load what an engine imports; then its children import it themselves
GLANCE = 1.0  # s between two checks whether a signal has stopped it
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
        child = self.process = self._spawn(setup)
        self.setup = setup
        try:
            child.connection.send(setup)
            if not self.answers(STARTUP_TIMEOUT):
                stopped = self.stopped
                self.retire()
                words = "was stopped by a signal" if stopped else f"was not ready within {STARTUP_TIMEOUT:g} s"
                return f"the process on this GPU {words}"
            answer = child.connection.recv()
        except (EOFError, OSError):
            return "while it was set up, " + self.death(child)
        if isinstance(answer, str) and answer:
            self.retire()
            if setup.own_folder and setup.files_walled:  # a driver that writes where no other does
                self._files_walled = False
                return self.ready(setup)
            return f"the device could not be set up: {answer}"
        if setup.own_folder:
            self.walls = tuple(answer)
        self.ran = []
        self.seconds += time.perf_counter() - begin
        self.started += 1
        return child

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
        if self.setup and self.setup.own_folder:
            self.left_behind += self._forked_by.end_leftovers(0.0 if self.left_behind else LEFT)
            shutil.rmtree(Path(self.setup.own_folder, "tmp"), ignore_errors=True)

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
