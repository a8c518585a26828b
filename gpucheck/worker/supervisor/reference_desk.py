"""What a supervisor asks the process that makes references of pairs on its GPU, see :mod:`gpucheck.worker.protocol`.

The process is started with the first question or ahead of it, and has never loaded a candidate. What it answers comes
over a connection: no file holds a reference.
"""

from __future__ import annotations

import io
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from gpucheck.model.case import Case
from gpucheck.model.conditions import Conditions
from gpucheck.model.errors import UsageError
from gpucheck.verify.bounds import Estimate
from gpucheck.verify.expected import Expected
from gpucheck.worker.protocol import REFERENCE, Answer, Ask, Question, Setup, Taken
from gpucheck.worker.supervisor.attempt import UNREADABLE, NoOutputs

if TYPE_CHECKING:
    from gpucheck.host.forkserver import Child, Forkserver
    from gpucheck.model.plan import Plan
    from gpucheck.worker.supervisor.node_sync import Node

PATIENCE = 600.0  # s for one answer, of a process that has the GPU's own time to wait for


class NoAnswer(RuntimeError):
    """The process could not answer, for no fault of the problem."""


class ReferenceDesk:
    """Asks that process; one question at a time, from whatever thread."""

    def __init__(self, plan: Plan, node: Node, rank: int, forkserver: Forkserver, folder: Path) -> None:
        self._lock = threading.Lock()
        self._forkserver = forkserver
        self._child: Child | None = None
        self._shares: bool | None = None  # whether memory of the GPU arrives in another process; None: not tried
        self._again = (plan, node, rank, forkserver, folder)
        self._ahead: ReferenceDesk | None = None  # the other process, started before it is known to be needed
        self.local_rank = node.local_rank
        self.memory: dict[str, int] = {}  # bytes that it held at most, of host and GPU
        self.seconds = 0.0  # that it took to answer
        self._setup = Setup(
            conditions=Conditions("pinned" if plan.device == "cuda" else "cpu").lifelong,
            device=plan.device,
            local_rank=node.local_rank,
            local_ranks=node.local_ranks,
            rank=rank,
            world_size=plan.world_size,
            library_root="",
            generation="",
            stacks=str(folder / f"reference-stacks{node.local_rank}"),
            journal=str(folder / f"reference-journal{node.local_rank}"),
            calls=REFERENCE,
        )

    def ask(
        self, what: Ask, case: Case, path: str = "", inputs: Mapping[str, Tensor] | None = None, **further: Any
    ) -> Answer:
        """The answer to a question.

        Args:
            further: fields of the :class:`Question`.

        Raises:
            UsageError: the problem's file is at fault.
            NoOutputs: the file of outputs is.
            NoAnswer: something else is.
        """
        held = io.BytesIO()
        if inputs:
            torch.save(dict(inputs), held)
        with self._lock:
            answer = self._answer(Question(what, case, path, held.getvalue(), **further))
        self.seconds += answer.seconds
        self.memory |= answer.memory
        if answer.problem:
            raise UsageError(answer.problem)
        if answer.unreadable:
            raise NoOutputs(f"{UNREADABLE}: {answer.unreadable}")
        if answer.failure:
            raise NoAnswer(f"{answer.failure}\n{answer.traceback}".rstrip())
        return answer

    def take(self, case: Case, path: str, *, keep: bool) -> Taken:
        """Copies outputs out of shared memory.

        Raises:
            NoOutputs: there are none.
            NoAnswer: the process does not answer.
        """
        taken = self.ask(Ask.TAKE, case, path, keep=keep).taken
        assert taken is not None
        return taken

    def place(self, case: Case, path: str, folder: str) -> Answer | None:
        """Draws the inputs of a case into shared memory; None where it is not large, or nothing is shared.

        Another process that was never handed a candidate opens the first of them: only where they arrive bit for bit
        are candidates given any.

        Args:
            path: of the file that tells of them.
            folder: where memory for outputs may have its files.

        Raises:
            UsageError: the problem's file is at fault.
        """
        if self._shares is False:
            return None
        try:
            if self._shares is None and not self.ask(Ask.SIZE, case).large:
                self._dismiss()
                return None
            with self._other() as other:
                answer = self.ask(Ask.PLACE, case, path, folder=folder)
                if other and answer.large:
                    self._shares = other.ask(Ask.OPEN, case, path).inputs == answer.inputs
        except NoAnswer:
            self._shares = False
            return None
        return answer if answer.large and self._shares else None

    @contextmanager
    def _other(self) -> Iterator[ReferenceDesk | None]:
        """Another process, which starts while this one is at work; None where it is known what it can open."""
        if self._shares is not None:
            yield None
            return
        other, self._ahead = self._ahead or ReferenceDesk(*self._again), None
        thread = threading.Thread(target=other.get_ready)
        thread.start()
        try:
            yield other
        finally:
            thread.join()
            other.close()

    def start(self) -> None:
        """Starts the process, and the other one that a first large pair needs, beside whatever is done here."""
        self._ahead = ReferenceDesk(*self._again)
        for each in (self, self._ahead):
            threading.Thread(target=each.get_ready).start()

    def _dismiss(self) -> None:
        """Ends the other process, which may still be starting; nobody waits for that."""
        other, self._ahead = self._ahead, None
        if other:
            threading.Thread(target=other.close).start()

    def get_ready(self) -> None:
        """Starts the process; what goes wrong, the first question meets again."""
        with self._lock, suppress(NoAnswer, OSError):
            self._ready()

    def close(self) -> None:
        """Ends the process."""
        self._dismiss()
        with self._lock:
            self._end()

    def _answer(self, question: Question) -> Answer:
        child = self._ready()
        try:
            child.connection.send(question)
            if not child.connection.poll(PATIENCE):
                self._end()
                raise NoAnswer(f"no reference within {PATIENCE:g} s")
            answer = child.connection.recv()
        except (EOFError, OSError) as error:
            self._end()
            raise NoAnswer("the process that makes references on the GPU has ended") from error
        assert isinstance(answer, Answer)
        return answer

    def _ready(self) -> Child:
        if self._child is None:
            child = self._child = self._forkserver.spawn()
            try:
                child.connection.send(self._setup)
                problem: Any = child.connection.recv() if child.connection.poll(PATIENCE) else "it does not start"
            except (EOFError, OSError):
                problem = "it has ended"
            if isinstance(problem, str) and problem:
                self._end()
                raise NoAnswer(f"the process that makes references on the GPU: {problem}")
        return self._child

    def _end(self) -> None:
        child, self._child = self._child, None
        if child is not None:
            with suppress(OSError):
                self._forkserver.kill(child)


def unpacked(content: bytes) -> dict[str, Expected]:
    """The reference that an answer holds."""
    found = {}
    for name, item in torch.load(io.BytesIO(content), weights_only=True).items():
        dtype = getattr(torch, item["dtype"].removeprefix("torch."))
        more = {key: item[key] for key in ("basis", "unknown", "indifferent")}
        found[name] = Expected(Estimate(*item["estimate"]), dtype, **more)
    return found


Make = Callable[[], dict[str, Expected]]


def reference(desk: ReferenceDesk, case: Case, inputs: Mapping[str, Tensor] | None, on_cpu: Make, *, gpu: bool) -> Any:
    """The reference of a case that is not large, made with the GPU, or on the CPU where that cannot be.

    Args:
        inputs: of a further call; None: those of the case.
        on_cpu: makes it there.
        gpu: it must be made with the GPU.

    Raises:
        UsageError: the problem's file is at fault.
        NoAnswer: the GPU does not answer.
    """
    try:
        return unpacked(desk.ask(Ask.EXPECTED, case, inputs=inputs).content)
    except (NoAnswer, UsageError):  # a fault of the problem's file shows on the CPU too, one of the GPU does not
        if gpu:
            raise
        return on_cpu()
