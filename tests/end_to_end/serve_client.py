"""A real server process, and a client that speaks the formats of TritonForge and KernelGYM, written from their docs."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PROBLEM = """
import torch
import torch.nn as nn

class Model(nn.Module):
    def forward(self, x):
        return torch.relu(x) * 2

def get_inputs():
    return [torch.randn(8, 32)]

def get_init_inputs():
    return []
"""
RIGHT = """
import torch
import torch.nn as nn
import triton
import triton.language as tl

@triton.jit
def relu_kernel(x, out, count, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    value = tl.load(x + at, mask=at < count)
    tl.store(out + at, tl.maximum(value, 0.0) * 2.0, mask=at < count)

class ModelNew(nn.Module):
    def forward(self, x):
        out = torch.empty_like(x)
        relu_kernel[(triton.cdiv(x.numel(), 256),)](x, out, x.numel(), BLOCK=256)
        return out
"""
WRONG = RIGHT.replace("* 2.0", "* 2.1")
HEAD = "import ctypes, os, subprocess, sys, time\nimport torch\nimport torch.nn as nn\nclass ModelNew(nn.Module):\n"
CRASHES = HEAD + "    def forward(self, x):\n        ctypes.string_at(0)\n"
HANGS = HEAD + "    def forward(self, x):\n        while True: time.sleep(1)\n"
HOARDS = HEAD + "    def forward(self, x):\n        hoard = []\n        while True: hoard.append(b'1' * (64 << 20))\n"
EXITS = HEAD + "    def forward(self, x):\n        os._exit(0)\n"
LEAVES = (
    HEAD
    + "    def forward(self, x):\n        subprocess.Popen(['setsid', 'sh', '-c', 'sleep 3000 & sleep 3000'])\n"
    + "        return torch.relu(x) * 2\n"
)
KILLS = (
    HEAD
    + "    def forward(self, x):\n        for name in os.listdir('/proc'):\n            try:\n"
    + "                os.kill(int(name), 9)\n            except (ValueError, OSError):\n                pass\n"
    + "        return torch.relu(x) * 3\n"
)
KEEPS = RIGHT.replace(
    "        out = torch.empty_like(x)\n",
    "        if hasattr(self, 'kept'):\n            return self.kept\n        self.kept = out = torch.empty_like(x)\n",
)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class Served:
    """A server on the CPU."""

    state: Path
    options: tuple[str, ...] = ()
    port: int = field(default_factory=free_port)
    token: str = ""
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Starts it and waits until it takes work."""
        command = [sys.executable, "-m", "gpucheck", "serve", "--devices", "cpu", "--port", str(self.port)]
        command += ["--state", str(self.state), *self.options]
        with open(self.state.with_suffix(".log"), "ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, "SECRET": "told"})
        while self.health() not in ("healthy", "degraded"):
            assert self.process.poll() is None, self.state.with_suffix(".log").read_text()
            time.sleep(0.05)

    def health(self) -> str:
        """What it says of itself; "" where it does not answer."""
        try:
            return str(self.ask("GET", "/health")[1]["status"])
        except (OSError, ValueError):
            return ""

    def end(self, by: signal.Signals = signal.SIGTERM) -> int:
        """Ends it and returns its exit code."""
        assert self.process is not None
        self.process.send_signal(by)
        return self.process.wait()

    def ask(self, method: str, path: str, body: object = None, **headers: str) -> tuple[int, Any, dict[str, str]]:
        """Status, answer and headers of one request."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port)
        sent = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        if self.token:
            headers.setdefault("Authorization", f"Bearer {self.token}")
        try:
            connection.request(method, path, sent, {"Content-Type": "application/json", **headers})
            answer = connection.getresponse()
            text = answer.read()
        finally:
            connection.close()
        plain = answer.headers.get_content_type() != "application/json"
        return answer.status, text.decode() if plain else json.loads(text), dict(answer.headers)

    def eval(self, candidate: str, trials: int = 1, **more: Any) -> tuple[int, Any]:
        """TritonForge's request."""
        body = {"original_model_src": PROBLEM, "custom_model_src": candidate, "seed": 42, "num_perf_trials": 100}
        body |= {"num_correct_trials": trials, "verbose": False, "measure_performance": True, "backend": "triton"}
        return self.ask("POST", "/eval", body | more)[:2]

    def evaluate(self, id: str, candidate: str, **more: Any) -> tuple[int, Any]:
        """KernelGYM's request."""
        body = {"task_id": id, "reference_code": PROBLEM, "kernel_code": candidate, "toolkit": "kernelbench"}
        body |= {"backend_adapter": "kernelbench", "num_correct_trials": 1, "num_perf_trials": 100, "timeout": 300}
        return self.ask("POST", "/evaluate", body | more)[:2]

    def results(self, id: str) -> Any:
        """What KernelGYM's client gets when it polls until the task has ended."""
        while self.ask("GET", f"/status/{id}")[1]["status"] in ("pending", "processing"):
            time.sleep(0.05)
        return self.ask("GET", f"/results/{id}")[1]
