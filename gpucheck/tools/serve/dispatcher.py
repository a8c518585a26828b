"""Gives waiting tasks to devices, and keeps devices in order; each slot of a device has a thread.

A task is taken in the order of priority, then of submission, and no later one overtakes it: a stream of short
evaluations cannot keep one waiting that needs a device for itself. Tasks with the same content run once.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import threading
import time
import uuid
from collections import Counter, deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from gpucheck.host.containment import landlock_version
from gpucheck.host.processes import adopt, children_of
from gpucheck.model.errors import InfrastructureError
from gpucheck.tools.serve import run_answer
from gpucheck.tools.serve.device_pool import Device, DeviceState
from gpucheck.tools.serve.evaluator import Ended, Evaluator, starting
from gpucheck.tools.serve.service_options import ServiceOptions
from gpucheck.tools.serve.task_store import TaskStore
from gpucheck.tools.serve.tasks import Answer, Evaluation, Task

AHEAD = 50  # waiting tasks looked at, where the first ones run already under another id
LEFT_OVER = 60.0  # s that processes of a server that died have to end
RECENT = 100  # evaluations whose times tell how long others will wait
FIRST_GUESS = 10.0  # s of an evaluation, before there was one
HAND_BACK, CANCEL = "the server is stopping", "it was cancelled"


class Dispatcher:
    """The queue, the devices and the threads that bring them together."""

    def __init__(self, options: ServiceOptions, store: TaskStore, devices: Sequence[Device]) -> None:
        self.options, self.store, self.devices = options, store, list(devices)
        self.began = time.monotonic()
        self.evaluated = Counter[str]()  # by verdict, "" without one
        self.seconds = deque[float](maxlen=RECENT)
        self.total_seconds = 0.0
        self._work = options.state / "work"
        self._changed = threading.Condition()
        self._closing = False
        self._waiters: dict[str, list[Callable[[], None]]] = {}
        self.isolation: dict[str, Any] = {"processes": "fresh for each evaluation", "landlock": landlock_version()}
        self.held = _lock_work(options.state)
        self._slots = [Slot(self, device, number) for device in devices for number in range(options.share)]

    def start(self) -> None:
        """Starts to work on what waits."""
        adopt()
        shutil.rmtree(self._work, ignore_errors=True)
        self._work.mkdir(mode=0o700)
        self.store.recover()
        for slot in self._slots:
            slot.start()

    def submit(self, id: str, evaluation: Evaluation, priority: int, *, refresh: bool = False) -> Task:
        """Puts a task into the queue; see :meth:`TaskStore.add`."""
        task = self.store.add(id, evaluation, priority, refresh=refresh)
        self._notify([id] if task.state.ended else [])
        return task

    def when_ended(self, id: str, call: Callable[[], None]) -> None:
        """Calls back, from any thread, when a task has ended or the server stops; at once where that is so already."""
        with self._changed:
            task = self.store.task(id)
            if task is not None and not task.state.ended and not self._closing:
                self._waiters.setdefault(id, []).append(call)
                return
        call()

    def cancel(self, id: str) -> bool:
        """Cancels a task; False where none of that id waits or runs."""
        with self._changed:
            running = [slot for slot in self._slots if slot.task is not None and slot.task.id == id]
            cancelled = self.store.cancel(id)
        for slot in running if cancelled else []:
            slot.evaluator.stop(id, CANCEL)
        if cancelled:
            self._notify([id])
        return cancelled

    def reset(self, device: Device) -> int:
        """Ends what runs on a device and proves it anew; says how many evaluations were ended."""
        with self._changed:
            device.state, device.problem = DeviceState.PROVING, ""
            running = [(slot, slot.task.id) for slot in self._slots if slot.device is device and slot.task is not None]
        for slot, id in running:
            slot.evaluator.stop(id, f"device {device.number} was reset while it ran")
        with self._changed:
            self._changed.notify_all()
            self._changed.wait_for(lambda: device.state is not DeviceState.PROVING or self._closing)
            if device.state is DeviceState.READY:
                device.faults = 0
        return len(running)

    def wait_estimate(self) -> int:
        """Seconds after which a new task may have its turn."""
        mean = sum(self.seconds) / len(self.seconds) if self.seconds else FIRST_GUESS
        ready = sum(device.state is DeviceState.READY for device in self.devices)
        waiting = self.store.counts()["pending"]
        return max(1, min(600, round(mean * (waiting + 1) / max(1, ready))))

    def stop(self, grace: float) -> None:
        """Takes no more work, waits for what runs, and hands back what does not end in time."""
        deadline = time.monotonic() + grace
        with self._changed:
            self._closing = True
            self._changed.notify_all()
            while any(slot.task for slot in self._slots) and time.monotonic() < deadline:
                self._changed.wait(max(0.0, deadline - time.monotonic()))
        for slot in self._slots:
            task = slot.task
            if task is not None:
                slot.evaluator.stop(task.id, HAND_BACK)
        for slot in self._slots:
            slot.join(20)
        for slot in self._slots:
            slot.evaluator.close()
        self.end_orphans()
        if self.held >= 0:
            os.close(self.held)
            self.held = -1
        shutil.rmtree(self._work, ignore_errors=True)
        with self._changed:
            waiters, self._waiters = self._waiters, {}
        for calls in waiters.values():
            for call in calls:
                call()

    @property
    def confined(self) -> bool:
        """Whether all evaluations are walled in: they read nothing of this service and write in their own folders."""
        return bool(self.isolation["landlock"]) and all(slot.evaluator.confined for slot in self._slots)

    @property
    def closing(self) -> bool:
        """Whether no more work is taken."""
        return self._closing

    def take(self, slot: Slot) -> Task | None:
        """Waits for the next task of a slot; None when its device is to be proved, or the server stops."""
        with self._changed:
            while not self._closing:
                if slot.device.state is DeviceState.PROVING:
                    if slot.number == 0 and not slot.device.running:
                        return None
                elif task := self._next(slot.device):
                    slot.device.running[task.id] = task.evaluation.timed
                    slot.task = task
                    return task
                self._changed.wait()
            return None

    def _next(self, device: Device) -> Task | None:
        running = {slot.task.content for slot in self._slots if slot.task is not None}
        for task in self.store.waiting(AHEAD):
            if task.content in running:
                continue
            wanted = next((each for each in self.devices if each.number == task.evaluation.preferred), device)
            if not device.takes(task.evaluation.timed, self.options.share):
                return None
            if wanted is not device and wanted.takes(task.evaluation.timed, self.options.share):
                return None
            if self.store.start(task, device.number):
                return self.store.task(task.id)
        return None

    def done(self, slot: Slot, task: Task, answer: Answer, ended: Ended, *, doubtful: bool) -> None:
        """Writes an answer down, tells all who wait for it, and frees the slot."""
        ids: list[str] = []
        if ended.stopped == HAND_BACK:
            self.store.hand_back(task.id)
        else:
            ids = self.store.finish(task, answer)
            self.evaluated[answer.verdict] += 1
            self.total_seconds += ended.seconds
            self.seconds.append(ended.seconds)
        with self._changed:
            slot.task = None
            slot.device.running.pop(task.id, None)
            if doubtful:
                slot.device.faults += 1
                slot.device.state = DeviceState.PROVING
        self._notify(ids)

    def proved(self, device: Device, problem: str, *, confined: bool) -> None:
        """Puts a device into the pool, or out of it; its slots are confined as the one that proved it."""
        with self._changed:
            for slot in self._slots:
                if slot.device is device:
                    slot.evaluator.confined = confined
            device.problem = problem
            device.state = DeviceState.FAILED if problem else DeviceState.READY
        self._notify([])

    def folder(self) -> Path:
        """A new scratch folder; its name tells nothing and cannot be guessed."""
        return self._work / uuid.uuid4().hex

    def end_orphans(self) -> None:
        """Kills processes whose parents were killed: all that this process has as a child and did not start."""
        with starting:
            known = {slot.evaluator.pid for slot in self._slots}
            for pid in children_of(os.getpid()) - known:
                with suppress(ProcessLookupError, ChildProcessError):
                    os.kill(pid, signal.SIGKILL)
                    os.waitpid(pid, 0)

    def _notify(self, ids: Sequence[str]) -> None:
        with self._changed:
            calls = [call for id in ids for call in self._waiters.pop(id, [])]
            self._changed.notify_all()
        for call in calls:
            call()


def _lock_work(state: Path) -> int:
    """Waits until nothing of a server that died is left on the devices, and locks what this one will start there.

    Raises:
        InfrastructureError: something of it does not end.
    """
    lock = os.open(state / "work.lock", os.O_RDWR | os.O_CREAT, 0o600)
    deadline = time.monotonic() + LEFT_OVER
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return lock
        except BlockingIOError:
            if time.monotonic() > deadline:
                words = f"processes of an earlier service of {state} still run after {LEFT_OVER:g} s"
                raise InfrastructureError(f"{words}: end them, they hold {state / 'work.lock'}") from None
            time.sleep(0.05)


class Slot(threading.Thread):
    """What works on a device, one evaluation at a time; the first slot of a device also proves it."""

    def __init__(self, dispatcher: Dispatcher, device: Device, number: int) -> None:
        super().__init__(daemon=True, name=f"device {device.number} slot {number}")
        self.dispatcher, self.device, self.number = dispatcher, device, number
        state = dispatcher.options.state
        threads = max(1, len(os.sched_getaffinity(0)) // len(dispatcher.devices))
        log = state / f"device-{device.number}-{number}.log"
        self.evaluator = Evaluator(device.uuid, state, log, threads, dispatcher.held)
        self.task: Task | None = None

    def run(self) -> None:
        """Works until the server stops."""
        while not self.dispatcher.closing:
            task = self.dispatcher.take(self)
            if task is not None:
                self._evaluate(task)
            elif not self.dispatcher.closing:
                problem = self._prove()
                self.dispatcher.proved(self.device, problem, confined=self.evaluator.confined)

    def _prove(self) -> str:
        try:
            return self.evaluator.prove(self.dispatcher.folder())
        except OSError as error:
            return f"it cannot be tried: {error}"

    def _evaluate(self, task: Task) -> None:
        folder = self.dispatcher.folder()
        ended = Ended()
        try:
            folder.mkdir(mode=0o700)
            limits = replace(self.dispatcher.options.limits, seconds=task.evaluation.seconds + run_answer.REPORTING)
            command = run_answer.command(task.evaluation, self.device.kind, folder)
            ended = self.evaluator.carry_out(task.id, command, folder, limits)
            answer = run_answer.answer(task.evaluation, ended, folder, self._facts())
        except Exception as error:  # of this server: the next evaluation must not pay for it
            answer = Answer(500, detail=f"the server could not evaluate it: {error}", lasting=False)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        if ended.died:
            self.dispatcher.end_orphans()
        faulty = answer.status >= 500 or bool(answer.metadata.get("crashed"))
        suspicious = ended.code not in (0, 1, 2) or ended.stuck or faulty
        self.dispatcher.done(self, task, answer, ended, doubtful=bool(suspicious) and not self.dispatcher.closing)

    def _facts(self) -> dict[str, Any]:
        return {
            "hardware": self.device.name,
            "device": f"cuda:{self.device.number}" if self.device.uuid else "cpu",
            "device_uuid": self.device.uuid,
            "confined": self.evaluator.confined and bool(self.dispatcher.isolation["landlock"]),
        }
