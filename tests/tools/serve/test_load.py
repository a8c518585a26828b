"""What clients are told where a service has too much to do, has no device left, or is stopping."""

from __future__ import annotations

import pytest

from gpucheck.tools.serve.device_pool import DeviceState
from gpucheck.tools.serve.evaluator import Ended
from gpucheck.tools.serve.http_service import application
from tests.processes import wait_until
from tests.tools.serve.conftest import Made, Puppets, call, submit

EVAL = {"original_model_src": "problem", "custom_model_src": "candidate"}
EVALUATE = {"task_id": "t", "reference_code": "reference!", "kernel_code": "candidate!"}
ASKED = pytest.mark.parametrize(("path", "body"), [("/eval", EVAL), ("/evaluate", EVALUATE)])


@ASKED
def test_a_full_queue_says_when_to_come_again(made: Made, puppets: Puppets, path: str, body: object) -> None:
    dispatcher = made(queue=1)
    submit(dispatcher, "runs")
    wait_until(lambda: puppets.running == ["runs"])
    submit(dispatcher, "waits")
    status, answer, headers = call(application(dispatcher), "POST", path, body)
    assert status == 429 and "the most this service takes" in answer["detail"] and int(headers["retry-after"]) >= 1


@ASKED
def test_a_service_whose_devices_all_failed_says_so(made: Made, puppets: Puppets, path: str, body: object) -> None:
    dispatcher = made()
    submit(dispatcher, "kills")
    wait_until(lambda: puppets.running == ["kills"])
    puppets.bad.add("GPU-0")
    puppets.end("kills", Ended(code=-9))
    wait_until(lambda: dispatcher.devices[0].state is DeviceState.FAILED)
    app = application(dispatcher)
    status, answer, headers = call(app, "POST", path, body)
    assert status == 503 and "a product is wrong" in answer["detail"] and headers["retry-after"]
    status, health, _ = call(app, "GET", "/health")
    assert status == 503 and health["status"] == "unhealthy" and health["available_devices"] == []
    assert health["devices"][0]["status"] == "error" and health["devices"][0]["error"] == "a product is wrong"
    assert call(app, "POST", "/reset_gpu/0")[0] == 500
    puppets.bad.clear()
    status, answer, _ = call(app, "POST", "/reset_gpu/0")
    assert status == 200 and answer["new_fault_count"] == 0
    assert call(app, "GET", "/health")[1]["status"] == "healthy"


@ASKED
def test_a_service_that_is_stopping_takes_nothing(made: Made, path: str, body: object) -> None:
    dispatcher = made()
    dispatcher.stop(0)
    status, answer, headers = call(application(dispatcher), "POST", path, body)
    assert status == 503 and "stopping" in answer["detail"] and headers["retry-after"]
