"""The wire format of KernelGYM: tasks that are submitted, polled, fetched and cancelled by id."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import datetime, timezone
from typing import Any

from fastapi import APIRouter, HTTPException, Request
from pydantic import BaseModel, ConfigDict, Field

from gpucheck.tools.serve.task_answers import Service
from gpucheck.tools.serve.tasks import PRIORITIES, Answer, Evaluation, State, Task
from gpucheck.tools.serve.tritonforge import ERRORS, MOST_TRIALS, PRECISIONS

IDENTIFIER = r"^[A-Za-z_][A-Za-z0-9_]{0,99}$"
MOST_TASKS = 100  # of a batch
LONGEST_WAIT = 3600.0  # s
ERROR_CODES = {400: "VALIDATION_ERROR", 408: "TIMEOUT_ERROR", 504: "TIMEOUT_ERROR", 507: "RESOURCE_ERROR"}
KERNELBENCH = "kernelbench"


class EvaluationRequest(BaseModel):
    """A candidate to evaluate; keys that are not known are no error."""

    model_config = ConfigDict(extra="ignore")

    task_id: str = Field(min_length=1, max_length=100)
    reference_code: str = Field(min_length=10, description="source with Model, get_inputs and get_init_inputs")
    kernel_code: str = Field(min_length=10, description="source with ModelNew")
    toolkit: str = Field(KERNELBENCH, pattern=f"^{KERNELBENCH}$")
    backend_adapter: str = Field(KERNELBENCH, pattern=f"^{KERNELBENCH}$")
    backend: str = Field("triton", max_length=32)
    entry_point: str = Field("Model", pattern=IDENTIFIER)
    seed: int = Field(42, ge=0, lt=2**63)
    num_correct_trials: int = Field(5, ge=1, le=MOST_TRIALS)
    num_perf_trials: int = Field(100, ge=0, le=10_000, description="0 takes no times")
    measure_performance: bool | None = None
    run_performance: bool | None = None
    timeout: float = Field(300, gt=0, description="seconds; at most the limit of the service")
    priority: str = Field("normal", pattern="^(high|normal|low)$")
    device_preference: str | None = Field(None, max_length=32)
    precision: str | None = Field(None, pattern=PRECISIONS, description="the least that products may be computed in")
    detect_decoy_kernel: bool | None = Field(None, description="a candidate without a kernel of its own is a decoy")
    enable_triton_detection: bool | None = None
    run_triton_detection: bool | None = None
    force_refresh: bool = Field(False, description="an answer that is known already does not count")

    def evaluation(self, service: Service) -> Evaluation:
        """What is asked for."""
        timed = self.measure_performance if self.run_performance is None else self.run_performance
        preferred = (self.device_preference or "").rpartition(":")[2]
        return Evaluation(
            problem=self.reference_code,
            candidate=self.kernel_code,
            seed=self.seed,
            trials=self.num_correct_trials,
            timed=timed is not False and self.num_perf_trials > 0,
            seconds=service.seconds(self.timeout),
            backend=self.backend,
            entry_point=self.entry_point,
            precision=self.precision or "",
            own_kernel=bool(self.detect_decoy_kernel or self.run_triton_detection or self.enable_triton_detection),
            preferred=int(preferred) if preferred.isascii() and preferred.isdigit() else None,
        )


class EvaluationResponse(BaseModel):
    """A task and, once it has ended, what is known of the candidate."""

    task_id: str
    status: State
    compiled: bool | None = None
    correctness: bool | None = None
    decoy_kernel: bool | None = None  # the answer did not come from the candidate's own kernels
    reference_runtime: float | None = None  # ms
    kernel_runtime: float | None = None  # ms
    speedup: float | None = None
    metadata: dict[str, Any] | None = None
    error_message: str | None = None
    error_code: str | None = None
    submitted_at: str | None = None
    completed_at: str | None = None
    processing_time: float | None = None  # s


class StatusResponse(BaseModel):
    """Where a task is."""

    task_id: str
    status: State
    progress: float | None = None  # percent
    queue_position: int | None = None  # tasks that are taken before
    assigned_device: str | None = None
    error_message: str | None = None
    submitted_at: str | None = None
    started_at: str | None = None
    completed_at: str | None = None


class BatchRequest(BaseModel):
    """Several candidates."""

    batch_id: str = Field(min_length=1, max_length=100)
    tasks: list[EvaluationRequest] = Field(min_length=1, max_length=MOST_TASKS)


class BatchResponse(BaseModel):
    """Several tasks."""

    batch_id: str
    total_tasks: int
    completed_tasks: int
    failed_tasks: int
    results: list[EvaluationResponse]
    batch_status: State
    submitted_at: str
    completed_at: str | None = None


def of_task(task: Task) -> EvaluationResponse:
    """A task on the wire."""
    found = EvaluationResponse(task_id=task.id, status=task.state, submitted_at=moment(task.submitted))
    if task.state.ended:
        found.completed_at = moment(task.finished)
        found.processing_time = None if task.started is None or not task.finished else task.finished - task.started
    if task.state is State.CANCELLED:
        found.error_message, found.error_code = "Task cancelled", "SYSTEM_ERROR"
    elif task.answer is not None:
        _add_answer(found, task.answer)
    return found


def _add_answer(found: EvaluationResponse, answer: Answer) -> None:
    metadata = dict(answer.metadata)
    found.metadata = metadata
    found.compiled, found.correctness = answer.compiled, answer.correct
    found.decoy_kernel = bool(metadata.get("not_own_kernels"))
    found.reference_runtime, found.kernel_runtime = answer.reference, answer.runtime
    found.speedup = answer.speedup or 0.0  # clients compare it with numbers, whatever it is
    if answer.status != 200:
        found.error_message = answer.detail
        found.error_code = ERROR_CODES.get(answer.status, "SYSTEM_ERROR")
    elif not answer.correct:
        names = {"compilation_error": "COMPILATION_ERROR", "runtime_error": "RUNTIME_ERROR"}
        name = next((name for name in names if name in metadata), "correctness_issue")
        found.error_message, found.error_code = metadata.get(name), names.get(name, "CORRECTNESS_ERROR")
        if metadata.get("resource_limit"):
            found.error_code = "RESOURCE_ERROR"


def moment(seconds: float | None) -> str | None:
    """A time as ISO 8601 writes it, in UTC."""
    return None if seconds is None else datetime.fromtimestamp(seconds, timezone.utc).isoformat()


def router(service: Service, waiting: Callable[[], dict[str, Any]]) -> APIRouter:
    """The endpoints.

    Args:
        waiting: what ``/queue/status`` says.
    """
    routes = APIRouter(tags=["KernelGYM"])
    dispatcher = service.dispatcher

    async def submit(request: EvaluationRequest) -> Task:
        """The task of a request: one of the same id and content is the same task."""
        evaluation = request.evaluation(service)
        known = dispatcher.store.task(request.task_id)
        if known is not None and known.state.ended and request.force_refresh:
            dispatcher.store.forget(known.id)
        elif known is not None:
            if known.content != evaluation.content:
                raise HTTPException(409, "there is a task of this id that asks for something else; give it another id")
            return known
        return await service.submit(
            request.task_id, evaluation, PRIORITIES[request.priority], refresh=request.force_refresh
        )

    @routes.post("/evaluate", response_model=EvaluationResponse, responses=ERRORS)
    async def evaluate(request: EvaluationRequest, http: Request) -> EvaluationResponse:
        """Submits a task and answers at once; the header ``Prefer: wait=SECONDS`` waits for its end so long."""
        task: Task | None = await submit(request)
        if seconds := _wait(http):
            task = await service.ended(request.task_id, seconds)
        return of_task(_present(task, request.task_id))

    @routes.post("/evaluate/batch", response_model=BatchResponse, responses=ERRORS)
    async def batch(request: BatchRequest, http: Request) -> BatchResponse:
        """Submits several tasks; see ``/evaluate``."""
        results = []
        for each in request.tasks:
            try:
                results.append(of_task(await submit(each)))
            except HTTPException as error:
                words, code = str(error.detail), ERROR_CODES.get(error.status_code, "SYSTEM_ERROR")
                results.append(
                    EvaluationResponse(task_id=each.task_id, status=State.FAILED, error_message=words, error_code=code)
                )
        if seconds := _wait(http):
            ids = {each.task_id for each in results if not each.status.ended}
            found = await asyncio.gather(*(service.ended(id, seconds) for id in ids))
            late = {task.id: of_task(task) for task in found if task is not None}
            results = [late.get(each.task_id, each) for each in results]
        failed = sum(each.status in (State.FAILED, State.TIMEOUT, State.CANCELLED) for each in results)
        ended = sum(each.status.ended for each in results)
        return BatchResponse(
            batch_id=request.batch_id,
            total_tasks=len(results),
            completed_tasks=ended - failed,
            failed_tasks=failed,
            results=results,
            batch_status=State.COMPLETED if ended == len(results) else State.PROCESSING,
            submitted_at=results[0].submitted_at or "",
        )

    @routes.get("/status/{task_id}", response_model=StatusResponse)
    async def status(task_id: str) -> StatusResponse:
        """Where a task is."""
        task = _present(dispatcher.store.task(task_id), task_id)
        waits = task.state is State.PENDING
        return StatusResponse(
            task_id=task.id,
            status=task.state,
            progress=100.0 if task.state.ended else 0.0,
            queue_position=dispatcher.store.position(task) if waits else None,
            assigned_device=None if task.device is None else f"cuda:{task.device}",
            error_message=of_task(task).error_message,
            submitted_at=moment(task.submitted),
            started_at=moment(task.started),
            completed_at=moment(task.finished),
        )

    @routes.get("/results/{task_id}", response_model=EvaluationResponse)
    async def results(task_id: str) -> EvaluationResponse:
        """What is known of a candidate."""
        return of_task(_present(dispatcher.store.task(task_id), task_id))

    @routes.delete("/tasks/{task_id}")
    async def cancel(task_id: str) -> dict[str, str]:
        """Cancels a task that waits or runs."""
        if not await service.off_loop(dispatcher.cancel, task_id):
            raise HTTPException(404, f"Task {task_id} not found or cannot be cancelled")
        return {"message": f"Task {task_id} cancelled successfully"}

    @routes.get("/queue/status")
    async def queue() -> dict[str, Any]:
        """How many tasks are in which state."""
        return waiting()

    return routes


def _present(task: Task | None, id: str) -> Task:
    if task is None:
        raise HTTPException(404, f"Task {id} not found")
    return task


def _wait(http: Request) -> float:
    """Seconds that a client prefers to wait for an answer; RFC 7240."""
    for part in http.headers.get("prefer", "").split(","):
        name, _, value = part.strip().partition("=")
        if name == "wait" and value.isascii() and value.isdigit():
            return min(float(value), LONGEST_WAIT)
    return 0.0
