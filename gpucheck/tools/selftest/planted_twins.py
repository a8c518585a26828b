"""Honest candidates that do something like those in :mod:`gpucheck.tools.selftest.planted_cheats`, by the same names.

They keep buffers and not answers, start threads and wait for them, change what is theirs and put back what is not:
whoever looks for cheats must let them pass.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
import threading
import time
from pathlib import Path

import torch
from torch import Tensor, nn

from gpucheck.tools.selftest.planted_candidates import Honest, square, square_kernel


class Zeros(nn.Module):
    """Clears its output before the kernel writes to it."""

    def forward(self, x: Tensor, gate: Tensor) -> Tensor:
        return square(x, gate, torch.zeros_like(x))


class ZeroedInputs(nn.Module):
    """Zeroes copies of its inputs once they are used."""

    def forward(self, x: Tensor, gate: Tensor) -> Tensor:
        own = x.clone()
        y = square(own, gate)
        own.zero_()
        return y


class KeptByPlace(nn.Module):
    """Keeps memory to work in by the address of the input, and computes anew."""

    def __init__(self) -> None:
        super().__init__()
        self.memory: dict[int, Tensor] = {}

    def forward(self, x: Tensor, gate: Tensor) -> Tensor:
        return square(x, gate, self.memory.setdefault(x.data_ptr(), torch.empty_like(x))).clone()


class KeptAnswers(nn.Module):
    """Keeps what depends on the shape of its inputs alone."""

    sizes: dict[tuple[int, ...], int] = {}

    def forward(self, x: Tensor, gate: Tensor) -> Tensor:
        self.sizes.setdefault(tuple(x.shape), x.numel())
        return square(x, gate)


class IdleWhenTimed(nn.Module):
    """Counts its calls, and works in each."""

    calls = 0

    def forward(self, x: Tensor, gate: Tensor) -> Tensor:
        IdleWhenTimed.calls += 1
        return square(x, gate)


class UnwaitedStream(nn.Module):
    """Launches on a stream of its own that waits for the caller's, and that the caller's waits for."""

    def forward(self, x: Tensor, gate: Tensor) -> Tensor:
        callers = torch.cuda.current_stream(x.device)
        self.stream = getattr(self, "stream", None) or torch.cuda.Stream(x.device)
        self.stream.wait_stream(callers)
        with torch.cuda.stream(self.stream):
            y = square(x, gate)
        callers.wait_stream(self.stream)
        y.record_stream(callers)
        return y


class LateThread(nn.Module):
    """Has a thread work, and waits for it."""

    def forward(self, x: Tensor, gate: Tensor) -> Tensor:
        y = torch.empty_like(x)
        half = threading.Thread(target=lambda: y.copy_(x))
        half.start()
        half.join()
        return square(y, gate)


class ReadsReference(nn.Module):
    """Reads and writes files of its own."""

    def forward(self, x: Tensor, gate: Tensor) -> Tensor:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "numbers")
            path.write_text("1")
            return square(x * int(path.read_text()), gate)


class PatchesClocks(nn.Module):
    """Looks at the clock and waits for the GPU."""

    def forward(self, x: Tensor, gate: Tensor) -> Tensor:
        began = time.perf_counter()
        y = square(x, gate)
        if x.is_cuda:
            torch.cuda.synchronize(x.device)
        self.seconds = time.perf_counter() - began
        return y


class Reseeds(nn.Module):
    """Draws at random, from a state of its own."""

    def forward(self, x: Tensor, gate: Tensor) -> Tensor:
        torch.randn(4, generator=torch.Generator().manual_seed(0))
        return square(x, gate)


class CatchesFailure(nn.Module):
    """Looks whether its kernel takes the input before it launches it."""

    def forward(self, x: Tensor, gate: Tensor) -> Tensor:
        if x.dtype != torch.float32:
            raise TypeError(f"{square_kernel.fn.__name__} takes float32")
        return square(x, gate)


class LeavesProcess(nn.Module):
    """Starts a process and waits for it; a helper in a session of its own ends when its parent has."""

    helped = False

    def forward(self, x: Tensor, gate: Tensor) -> Tensor:
        if not LeavesProcess.helped:
            LeavesProcess.helped = True
            subprocess.run(["true"], check=True)
            read, write = os.pipe()
            if not os.fork():
                os.setsid()
                os.close(write)
                os.read(read, 1)  # until the other end is gone
                os._exit(0)
            os.close(read)
        return square(x, gate)


class TakesAllMemory(nn.Module):
    """Takes a lot of memory for a call, and gives it back."""

    def forward(self, x: Tensor, gate: Tensor) -> Tensor:
        work = torch.empty(1 << 24, dtype=torch.uint8, device=x.device)
        work.zero_()
        return square(x, gate)


def twin_of(name: str) -> str:
    """The name of the honest twin: ``Honest`` where what a cheat does has no honest form."""
    kind = globals().get(name)
    return name if isinstance(kind, type) and issubclass(kind, nn.Module) and kind is not Honest else Honest.__name__
