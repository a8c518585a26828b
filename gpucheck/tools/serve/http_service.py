"""The HTTP application: both wire formats, and how the server starts and stops."""

from __future__ import annotations

import fcntl
import os
import resource
import socket
import threading
import time
from contextlib import suppress
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import uvicorn
from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse

import gpucheck
from gpucheck.host.processes import resident
from gpucheck.model.errors import InfrastructureError, UsageError
from gpucheck.report.formats.prometheus import text
from gpucheck.tools.serve import kernelgym, tritonforge
from gpucheck.tools.serve.access import Access, PatientProtocol
from gpucheck.tools.serve.device_pool import Device, DeviceState
from gpucheck.tools.serve.dispatcher import Dispatcher
from gpucheck.tools.serve.service_metrics import families
from gpucheck.tools.serve.service_options import ServiceOptions
from gpucheck.tools.serve.task_answers import Service
from gpucheck.tools.serve.task_store import TaskStore

FILES = 65_536  # that this process may have open: each connection is one


def serve(options: ServiceOptions, devices: list[Device]) -> None:
    """Serves until a signal ends it.

    Raises:
        UsageError: the address cannot be had, or another service uses the folder.
    """
    lock = _locked(options.state)
    listener = _listener(options)
    store = TaskStore(options.state, options.keep)
    dispatcher = Dispatcher(options, store, devices)
    _allow_files()
    config = uvicorn.Config(
        Access(application(dispatcher), options),
        http=PatientProtocol,
        ws="none",
        lifespan="off",
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=30,
        timeout_graceful_shutdown=5,
        backlog=2048,
    )
    try:
        dispatcher.start()
        _Server(config, dispatcher).run(sockets=[listener])
    finally:
        if not dispatcher.closing:
            dispatcher.stop(0)
        store.close()
        os.close(lock)


class _Server(uvicorn.Server):
    """A server that finishes or hands back its work before it closes its connections."""

    def __init__(self, config: uvicorn.Config, dispatcher: Dispatcher) -> None:
        super().__init__(config)
        self._dispatcher = dispatcher

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """A signal: the first stops the service in order, the next at once."""
        if self._dispatcher.closing:
            super().handle_exit(sig, frame)
            return
        threading.Thread(target=self._stop, args=(sig, frame), daemon=True).start()

    def _stop(self, sig: int, frame: FrameType | None) -> None:
        self._dispatcher.stop(self._dispatcher.options.grace)
        super().handle_exit(sig, frame)


def application(dispatcher: Dispatcher) -> FastAPI:
    """The endpoints."""
    service = Service(dispatcher)
    app = FastAPI(
        title="gpucheck serve",
        version=gpucheck.__version__,
        description="Evaluates kernels against reference code, in the wire formats of TritonForge and KernelGYM.",
    )

    health = partial(_health, dispatcher)

    @app.get("/")
    async def root() -> dict[str, Any]:
        """What this is."""
        return {
            "service": "gpucheck serve",
            "name": "gpucheck",
            "version": gpucheck.__version__,
            "description": "GPU kernel evaluation service",
            "status": "stopping" if dispatcher.closing else "running",
            "timestamp": _now(),
            "gpu_platform": _platform(dispatcher),
            "cuda_available": _cuda(dispatcher),
            "num_gpus": sum(bool(device.uuid) for device in dispatcher.devices),
            "backends": [*tritonforge.BACKENDS],
            "features": ["a fresh process for each evaluation", "limits", "a queue on disk", "answers by content"],
        }

    @app.get("/health")
    async def health_check() -> Any:
        """Whether the service can evaluate; 503 where it cannot."""
        found = health()
        return JSONResponse(found, 200 if found["status"] in ("healthy", "degraded", "starting") else 503)

    @app.get("/metrics", response_class=PlainTextResponse)
    async def prometheus() -> PlainTextResponse:
        """The state of the service for Prometheus."""
        return PlainTextResponse(text(families(dispatcher)), media_type="text/plain; version=0.0.4; charset=utf-8")

    @app.exception_handler(RequestValidationError)
    async def malformed(_: Any, error: RequestValidationError) -> JSONResponse:
        words = "; ".join(f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors()[:10])
        return JSONResponse({"detail": f"Request validation failed: {words}", "error_code": "VALIDATION_ERROR"}, 400)

    @app.exception_handler(RecursionError)
    async def too_deep(_: Any, error: RecursionError) -> JSONResponse:
        return JSONResponse({"detail": "the JSON is nested too deeply", "error_code": "VALIDATION_ERROR"}, 400)

    app.include_router(tritonforge.router(service, health))
    app.include_router(kernelgym.router(service, lambda: _queue(dispatcher)))
    return app


def _health(dispatcher: Dispatcher) -> dict[str, Any]:
    devices = [device.facts() for device in dispatcher.devices]
    states = {device.state for device in dispatcher.devices}
    status = "healthy" if states == {DeviceState.READY} else "degraded" if DeviceState.READY in states else "unhealthy"
    if DeviceState.PROVING in states and DeviceState.READY not in states:
        status = "starting"
    if dispatcher.closing:
        status = "stopping"
    counts = dispatcher.store.counts()
    busy = sum(bool(device.running) for device in dispatcher.devices)
    return {
        "status": status,
        "timestamp": _now(),
        "uptime": time.monotonic() - dispatcher.began,
        "version": gpucheck.__version__,
        "gpu_platform": _platform(dispatcher),
        "cuda_available": _cuda(dispatcher),
        "gpu_arch": ", ".join(sorted({device.capability for device in dispatcher.devices} - {""})) or "not set",
        "supported_backends": [*tritonforge.BACKENDS],
        "total_gpu_devices": len(devices),
        "total_devices": len(devices),
        "available_gpu_devices": sum(device["available"] for device in devices),
        "available_devices": [device["device_id"] for device in devices if device["available"]],
        "available_device_ids": [device["device_id"] for device in devices if device["available"]],
        "busy_gpu_devices": busy,
        "devices": devices,
        "gpu_status": {f"cuda:{device['device_id']}" if device["uuid"] else "cpu": device for device in devices},
        "queue_status": _queue(dispatcher),
        "memory_usage": {"server": resident(os.getpid())},
        "active_tasks": counts["processing"],
        "total_processed": sum(dispatcher.evaluated.values()),
        "isolation": {**dispatcher.isolation, "confined": dispatcher.confined},
    }


def _queue(dispatcher: Dispatcher) -> dict[str, Any]:
    return {**dispatcher.store.counts(), "limit": dispatcher.options.queue}


def _platform(dispatcher: Dispatcher) -> str:
    return "CUDA" if _cuda(dispatcher) else "CPU: Triton's interpreter, no times are taken"


def _cuda(dispatcher: Dispatcher) -> bool:
    return any(device.uuid for device in dispatcher.devices)


def _now() -> str:
    return datetime.now(timezone.utc).isoformat()


def _locked(folder: Path) -> int:
    """A lock on the folder of the service, which ends with this process."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = os.open(folder / "service.lock", os.O_RDWR | os.O_CREAT, 0o600)
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UsageError(f"--state {folder} is used by another service; end that, or give another folder") from None
    except OSError as error:
        raise UsageError(f"--state {folder} cannot be used: {error.strerror}; give another folder") from None
    return lock


def _listener(options: ServiceOptions) -> socket.socket:
    try:
        family, _, _, _, address = socket.getaddrinfo(options.host, options.port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(2048)
    except OSError as error:
        words = f"{options.host}:{options.port} cannot be listened on: {error.strerror or error}"
        raise InfrastructureError(f"{words}; give another --port or --host") from None
    return listener


def _allow_files() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = FILES if hard == resource.RLIM_INFINITY else min(hard, FILES)
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, most), hard))
