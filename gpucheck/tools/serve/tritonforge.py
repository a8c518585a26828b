"""The wire format of TritonForge's evaluation server: ``POST /eval`` and what goes with it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastapi import APIRouter
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field

from gpucheck.tools.serve.dispatcher import Dispatcher
from gpucheck.tools.serve.task_answers import Service, retry_later
from gpucheck.tools.serve.tasks import PRIORITIES, Answer, Evaluation, State

BACKENDS = {
    "cuda": "CUDA kernels compiled by torch's C++ extensions",
    "triton": "Triton kernels",
}
MOST_TRIALS = 20
PRECISIONS = "^(fp32|tf32|bf16)$"


class EvalRequest(BaseModel):
    """A candidate to evaluate; keys that are not known are no error."""

    model_config = ConfigDict(extra="ignore")

    original_model_src: str = Field(min_length=1, description="source with Model, get_inputs and get_init_inputs")
    custom_model_src: str = Field(min_length=1, description="source with ModelNew")
    seed_num: int | None = Field(None, ge=0, lt=2**63)
    seed: int | None = Field(None, ge=0, lt=2**63, description="what rollout clients call seed_num")
    num_correct_trials: int = Field(5, ge=1, le=MOST_TRIALS)
    num_perf_trials: int = Field(100, ge=0, le=10_000, description="0 takes no times")
    verbose: bool = False
    measure_performance: bool = True
    preferred_device: int | None = None
    backend: str = Field("cuda", max_length=32)
    timeout: float | None = Field(None, gt=0, description="seconds; at most the limit of the service")
    priority: str = Field("normal", pattern="^(high|normal|low)$")
    precision: str | None = Field(None, pattern=PRECISIONS, description="the least that products may be computed in")
    own_kernel: bool = Field(False, description="fail a candidate that has no kernel of its own")


class EvalResponse(BaseModel):
    """What KernelBench says of a candidate; the verdict, findings and replay command stand in ``metadata``."""

    compiled: bool
    correctness: bool
    metadata: dict[str, Any]
    runtime: float  # ms; -1.0 where it was not measured
    runtime_stats: dict[str, float]
    ref_runtime: float
    ref_runtime_stats: dict[str, float]


class ErrorResponse(BaseModel):
    """Why there is no verdict."""

    detail: str
    metadata: dict[str, Any] = {}


ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorResponse, "description": words}
    for status, words in {
        400: "the sources are no pair, or the request is malformed",
        401: "no token, or a wrong one",
        408: "the body did not come in time",
        413: "the body is too large",
        429: "the queue is full; Retry-After says when to come again",
        500: "the evaluation ended without a verdict",
        503: "no device, or the server is stopping; Retry-After says when to come again",
        504: "the candidate did not end in time",
        507: "it needs more memory than there is, or than is allowed",
    }.items()
}


def response(answer: Answer) -> JSONResponse:
    """An answer on the wire."""
    if answer.status != 200:
        return JSONResponse({"detail": answer.detail, "metadata": dict(answer.metadata)}, answer.status)
    found = EvalResponse(
        compiled=answer.compiled,
        correctness=answer.correct,
        metadata=dict(answer.metadata),
        runtime=_or_none(answer.runtime),
        runtime_stats=dict(answer.runtime_stats),
        ref_runtime=_or_none(answer.reference),
        ref_runtime_stats=dict(answer.reference_stats),
    )
    return JSONResponse(found.model_dump())


def _or_none(value: float | None) -> float:
    return -1.0 if value is None else value


def router(service: Service, describe: Callable[[], dict[str, Any]]) -> APIRouter:
    """The endpoints.

    Args:
        describe: what ``/health`` says, which both formats share.
    """
    routes = APIRouter(tags=["TritonForge"])
    dispatcher = service.dispatcher

    @routes.post("/eval", response_model=EvalResponse, responses=ERRORS)
    async def evaluate(request: EvalRequest) -> Any:
        """Evaluates a candidate and answers when that is done."""
        wanted = request.seed if request.seed_num is None else request.seed_num
        evaluation = Evaluation(
            problem=request.original_model_src,
            candidate=request.custom_model_src,
            seed=42 if wanted is None else wanted,
            trials=request.num_correct_trials,
            timed=request.measure_performance and request.num_perf_trials > 0,
            seconds=service.seconds(request.timeout),
            backend=request.backend,
            precision=request.precision or "",
            own_kernel=request.own_kernel,
            preferred=request.preferred_device,
        )
        submitted = await service.submit(service.new_id(), evaluation, PRIORITIES[request.priority])
        task = await service.ended(submitted.id)
        if task is None or not task.state.ended:
            return retry_later(
                503, "the server is stopping; it goes on with this evaluation when it is started again", 5
            )
        if task.state is State.CANCELLED or task.answer is None:
            return JSONResponse({"detail": "the evaluation was cancelled"}, 500)
        return response(task.answer)

    @routes.get("/gpu_status")
    async def gpu_status() -> dict[str, Any]:
        """What each device is doing."""
        devices = [device.facts() for device in dispatcher.devices]
        return {
            "total_devices": len(devices),
            "devices": devices,
            "semaphore_permits": sum(device["available"] for device in devices),
            "total_faults": sum(device["fault_count"] for device in devices),
        }

    @routes.get("/status")
    async def status(detailed: bool = False) -> dict[str, Any]:
        """What the service is doing."""
        health = describe()
        info: dict[str, Any] = {
            "total_devices": health["total_gpu_devices"],
            "available_devices": health["available_gpu_devices"],
            "busy_devices": health["busy_gpu_devices"],
            "available_device_ids": health["available_device_ids"],
        }
        if detailed:
            info["devices"] = health["devices"]
        return {
            "status": health["status"],
            "cuda_available": health["cuda_available"],
            "supported_backends": [*BACKENDS],
            "backend_descriptions": BACKENDS,
            "cuda_arch_list": health["gpu_arch"],
            "gpu_info": info,
        }

    @routes.get("/backend_info")
    async def backend_info() -> dict[str, Any]:
        """What kinds of candidates there are."""
        health = describe()
        return {
            "supported_backends": [*BACKENDS],
            "default_backend": "triton",
            "gpu_platform": health["gpu_platform"],
            "backend_descriptions": BACKENDS,
            "cuda_available": health["cuda_available"],
            "triton_available": True,
            "process_isolation": True,
            "gpu_architecture": health["gpu_arch"],
        }

    @routes.get("/fault_statistics")
    async def fault_statistics() -> dict[str, Any]:
        """Crashes, hangs and exceeded limits on each device since its last reset."""
        faults = {str(device.number): device.faults for device in dispatcher.devices}
        return {"per_device_faults": faults, "total_faults": sum(faults.values())}

    @routes.post("/reset_gpu/{device_id}", responses=ERRORS)
    async def reset_gpu(device_id: int) -> Any:
        """Ends what runs on a device and proves it with an exact product before it takes work again."""
        device = next((each for each in dispatcher.devices if each.number == device_id), None)
        if device is None:
            return JSONResponse({"detail": f"Invalid device ID: {device_id}"}, 400)
        before = device.faults
        ended = await service.off_loop(dispatcher.reset, device)
        if device.problem:
            return JSONResponse({"detail": f"device {device_id} left the pool: {device.problem}"}, 500)
        return {
            "status": "GPU reset",
            "device_id": device_id,
            "old_fault_count": before,
            "new_fault_count": device.faults,
            "ended_evaluations": ended,
            "message": "an exact product on it is right; it takes work again",
        }

    @routes.post("/cleanup", responses=ERRORS)
    async def cleanup() -> Any:
        """Does for all devices what ``/reset_gpu`` does for one."""
        before = {str(device.number): device.faults for device in dispatcher.devices}
        ended = await service.off_loop(_reset_all, dispatcher, True)
        return _pool("cleanup completed", dispatcher, old_fault_counts=before, ended_evaluations=ended)

    @routes.post("/reset_devices", responses=ERRORS)
    async def reset_devices() -> Any:
        """Proves the devices that are out of the pool, and takes those back that are right; ends nothing that runs."""
        await service.off_loop(_reset_all, dispatcher, False)
        return _pool("device pool reset", dispatcher)

    return routes


def _reset_all(dispatcher: Dispatcher, everything: bool) -> int:
    return sum(dispatcher.reset(device) for device in dispatcher.devices if everything or device.problem)


def _pool(done: str, dispatcher: Dispatcher, **more: Any) -> Any:
    bad = {device.number: device.problem for device in dispatcher.devices if device.problem}
    if bad:
        words = "; ".join(f"device {number} left the pool: {problem}" for number, problem in bad.items())
        return JSONResponse({"detail": words}, 500)
    ids = [device.number for device in dispatcher.devices]
    return {"status": done, "available_devices": ids, "message": "an exact product on each is right", **more}
