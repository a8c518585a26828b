"""What both wire formats need of the queue, from the event loop's side."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar
from uuid import uuid4

from fastapi import HTTPException
from fastapi.responses import JSONResponse

from gpucheck.tools.serve.device_pool import DeviceState
from gpucheck.tools.serve.dispatcher import Dispatcher
from gpucheck.tools.serve.tasks import Evaluation, Task

Result = TypeVar("Result")


class Service:
    """The queue as handlers see it; none of its methods blocks the event loop for long."""

    def __init__(self, dispatcher: Dispatcher) -> None:
        self.dispatcher = dispatcher

    def seconds(self, asked: float | None) -> float:
        """The time limit of an evaluation."""
        most = self.dispatcher.options.limits.seconds
        return most if asked is None else min(float(asked), most)

    @staticmethod
    def new_id() -> str:
        """An id that nobody can guess."""
        return f"eval-{uuid4().hex}"

    async def submit(self, id: str, evaluation: Evaluation, priority: int, *, refresh: bool = False) -> Task:
        """Puts a task into the queue.

        Raises:
            HTTPException: the queue is full, no device is left, or the server is stopping.
        """
        self.check_sources(evaluation)
        dispatcher = self.dispatcher
        if dispatcher.closing:
            raise HTTPException(503, "the server is stopping", {"Retry-After": "5"})
        if all(device.state is DeviceState.FAILED for device in dispatcher.devices):
            problems = "; ".join(f"{device.name}: {device.problem}" for device in dispatcher.devices)
            raise HTTPException(503, f"No GPU devices available: {problems}", {"Retry-After": "60"})
        if dispatcher.store.counts()["pending"] >= dispatcher.options.queue:
            words = f"{dispatcher.options.queue} evaluations are waiting already, the most this service takes"
            raise HTTPException(429, words, {"Retry-After": str(dispatcher.wait_estimate())})
        return dispatcher.submit(id, evaluation, priority, refresh=refresh)

    @staticmethod
    def check_sources(evaluation: Evaluation) -> None:
        """Raises HTTPException where a source cannot be written as a file."""
        for name, text in (("problem", evaluation.problem), ("candidate", evaluation.candidate)):
            try:
                text.encode()
            except UnicodeEncodeError:
                raise HTTPException(400, f"the source of the {name} is no text that UTF-8 can hold") from None

    async def ended(self, id: str, seconds: float | None = None) -> Task | None:
        """The task of an id once it has ended, the time is up or the server stops; None where there is none."""
        loop, done = asyncio.get_running_loop(), asyncio.Event()

        def tell() -> None:
            with suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(done.set)

        self.dispatcher.when_ended(id, tell)
        with suppress(asyncio.TimeoutError):
            await asyncio.wait_for(done.wait(), seconds)
        return self.dispatcher.store.task(id)

    async def off_loop(self, call: Callable[..., Result], *values: Any) -> Result:
        """What a call that blocks returns."""
        return await asyncio.get_running_loop().run_in_executor(None, call, *values)


def retry_later(status: int, detail: str, seconds: int) -> JSONResponse:
    """An answer that says when to come again."""
    return JSONResponse({"detail": detail}, status, {"Retry-After": str(seconds)})
