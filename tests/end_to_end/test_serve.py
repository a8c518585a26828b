"""A real server on the CPU, asked in both wire formats; one for all tests, since each evaluation costs seconds."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import fastapi  # noqa: F401 - what the server needs
import pytest
import torch  # noqa: F401 - what its evaluations need

from gpucheck.host.processes import descendants_of
from tests.end_to_end.serve_client import CRASHES, LEAVES, RIGHT, WRONG, Served


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    served = Served(tmp_path_factory.mktemp("serve") / "state", ("--body", "0.25"))
    served.start()
    yield served
    left = descendants_of(served.process.pid) if served.process else set()
    code = served.end()
    assert code == -signal.SIGTERM and not [pid for pid in left if Path("/proc", str(pid)).exists()]


def test_a_right_candidate_is_told_as_tritonforge_does_and_known_to_both_formats_afterwards(served: Served) -> None:
    status, answer = served.eval(RIGHT)
    assert status == 200, answer
    assert (answer["compiled"], answer["correctness"], answer["runtime"]) == (True, True, -1.0)
    metadata = answer["metadata"]
    assert metadata["verdict"] == "PASS" and metadata["correctness_trials"] == "(1 / 1)"
    assert metadata["hardware"].startswith("CPU") and metadata["device"] == "cpu"
    assert "gpucheck run trials.toml --problem problem.py --candidate candidate.py" in metadata["replay"]
    again = served.eval(RIGHT)[1]
    assert again["metadata"].pop("cached") is True and again == answer
    assert not list((served.state / "work").iterdir())


def test_a_wrong_candidate_is_told_as_kernelgym_does(served: Served) -> None:
    status, task = served.evaluate("wrong", WRONG, priority="high")
    assert status == 200 and task["status"] in ("pending", "processing") and task["task_id"] == "wrong"
    result = served.results("wrong")
    assert result["status"] == "completed" and result["compiled"] is True and result["correctness"] is False
    assert result["error_code"] == "CORRECTNESS_ERROR" and "wrong scale" in result["error_message"]
    assert result["metadata"]["verdict"] == "FAIL" and result["metadata"]["findings"][0]["cases"]
    assert served.evaluate("wrong", WRONG)[1] == result
    assert served.evaluate("wrong", RIGHT)[0] == 409


def test_a_crash_costs_that_evaluation_alone(served: Served) -> None:
    status, answer = served.eval(CRASHES)
    assert status == 200 and answer["correctness"] is False and "SIGSEGV" in answer["metadata"]["runtime_error"]
    while served.health() != "healthy":
        pass
    assert served.ask("GET", "/fault_statistics")[1]["total_faults"] == 1
    reset = served.ask("POST", "/reset_gpu/0")
    assert reset[0] == 200 and reset[1]["old_fault_count"] == 1 and reset[1]["new_fault_count"] == 0
    assert served.eval(RIGHT)[1]["correctness"] is True


def test_sources_that_are_no_pair_are_a_bad_request_that_tells_no_path_of_the_server(served: Served) -> None:
    status, answer = served.eval("def f(:\n")
    assert status == 400 and "candidate.py is not Python" in answer["detail"]
    assert str(served.state) not in str(answer)


@pytest.mark.parametrize(
    ("method", "path", "keys"),
    [
        ("GET", "/", ("service", "name", "version", "backends")),
        ("GET", "/health", ("cuda_available", "devices", "available_devices", "gpu_status", "queue_status", "uptime")),
        ("GET", "/status", ("status", "supported_backends", "gpu_info")),
        ("GET", "/gpu_status", ("total_devices", "devices")),
        ("GET", "/backend_info", ("supported_backends", "default_backend")),
        ("GET", "/fault_statistics", ("per_device_faults", "total_faults")),
        ("GET", "/queue/status", ("pending", "processing")),
        ("POST", "/cleanup", ("status",)),
        ("POST", "/reset_devices", ("status", "available_devices")),
        ("GET", "/openapi.json", ("paths",)),
    ],
)
def test_each_endpoint_of_the_servers_it_stands_in_for_answers(
    served: Served, method: str, path: str, keys: tuple[str, ...]
) -> None:
    status, answer, _ = served.ask(method, path)
    assert status == 200 and set(keys) <= set(answer)


def test_prometheus_can_read_the_metrics(served: Served) -> None:
    from prometheus_client.parser import text_string_to_metric_families

    families = {family.name for family in text_string_to_metric_families(served.ask("GET", "/metrics")[1])}
    assert {"gpucheck_serve_tasks", "gpucheck_serve_evaluations", "gpucheck_serve_device_ready"} <= families


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("POST", "/eval", b"{", 400),
        ("POST", "/eval", b"[" * 200_000, 400),
        ("POST", "/eval", b'{"original_model_src": 1}', 400),
        ("POST", "/eval", b"\xff\xfe\x00", 400),
        ("POST", "/eval", b'{"original_model_src": "\\ud800", "custom_model_src": "x"}', 400),
        ("POST", "/eval", b'"' + b"x" * 300_000 + b'"', 413),
        ("POST", "/evaluate", b'{"task_id": "", "reference_code": "0123456789", "kernel_code": "0123456789"}', 400),
        ("GET", "/status/..%2f..%2fetc%2fpasswd", None, 404),
        ("GET", "/results/%2e%2e%2f%2e%2e%2fqueue.sqlite3", None, 404),
        ("GET", "/results/' OR 1=1 --".replace(" ", "%20"), None, 404),
        ("DELETE", "/tasks/nobody", None, 404),
        ("GET", "/../../../etc/passwd", None, 404),
        ("POST", "/reset_gpu/7", None, 400),
        ("POST", "/reset_gpu/x", None, 400),
        ("PUT", "/eval", b"", 405),
    ],
)
def test_what_a_hostile_client_sends_is_answered_with_a_plain_error(
    served: Served, method: str, path: str, body: bytes | None, status: int
) -> None:
    got, answer, _ = served.ask(method, path, body)
    assert got == status and isinstance(answer["detail"], str) and "Traceback" not in answer["detail"]
    assert served.health() == "healthy"


def test_a_body_without_a_length_is_limited_too(served: Served) -> None:
    with socket.create_connection(("127.0.0.1", served.port)) as connection:
        head = f"POST /eval HTTP/1.1\r\nHost: 127.0.0.1:{served.port}\r\nTransfer-Encoding: chunked\r\n\r\n"
        connection.sendall(head.encode())
        answered = b""
        try:
            for _ in range(100):
                connection.sendall(b"10000\r\n" + b"x" * 0x10000 + b"\r\n")
        except OSError:
            pass
        connection.settimeout(60)
        try:
            answered = connection.recv(4096)
        except ConnectionResetError:
            return
    assert b" 413 " in answered


@pytest.mark.parametrize("header", [{"Host": "attacker.example"}, {"Origin": "http://attacker.example"}])
def test_a_web_page_cannot_use_the_browser_of_this_machine(served: Served, header: dict[str, str]) -> None:
    status, answer, _ = served.ask("GET", "/health", None, **header)
    assert status == 403 and "expected localhost" in answer["detail"]


def test_many_connections_that_say_nothing_keep_nobody_else_out(served: Served) -> None:
    idle = [socket.create_connection(("127.0.0.1", served.port)) for _ in range(300)]
    for number, connection in enumerate(idle):
        if number % 2:
            connection.sendall(b"POST /eval HTTP/1.1\r\nContent-Length: 1000\r\n")
    assert served.health() == "healthy"
    for connection in idle:
        connection.close()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--host", "0.0.0.0"), "expected --token-file FILE"),
        (("--token-file", "missing"), "cannot be read"),
        (("--devices", "0"), "nothing was checked"),
        (("--devices", "cpu", "--state", "STATE"), "is used by another service"),
    ],
)
def test_a_service_that_would_be_open_or_cannot_work_does_not_start(
    served: Served, options: tuple[str, ...], words: str, tmp_path: Path
) -> None:
    given = [option.replace("STATE", str(served.state)) for option in options]
    command = [sys.executable, "-m", "gpucheck", "serve", "--port", "1", *given]
    command += [] if "--devices" in given else ["--devices", "cpu"]
    command += [] if "--state" in given else ["--state", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env={**os.environ, "PATH": ""})
    assert done.returncode in (2, 3) and words in done.stderr and "Traceback" not in done.stderr


def test_the_server_itself_has_neither_torch_nor_a_candidate(served: Served) -> None:
    assert served.process is not None
    maps = Path("/proc", str(served.process.pid), "maps").read_text()
    assert "libtorch" not in maps and "libtriton" not in maps and "libc.so" in maps


@pytest.mark.torture
def test_nothing_that_a_candidate_started_or_wrote_is_left(served: Served) -> None:
    status, answer = served.eval(LEAVES)
    assert status == 200 and answer["correctness"] is False
    assert served.process is not None
    names = [Path("/proc", str(pid), "comm") for pid in descendants_of(served.process.pid)]
    assert "sleep" not in {name.read_text().strip() for name in names if name.exists()}
    assert not list((served.state / "work").iterdir())
