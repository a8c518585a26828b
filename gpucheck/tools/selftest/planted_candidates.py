"""A problem for candidates, an honest one, and dishonest ones: one for each kind of cheat that must not pass."""

from __future__ import annotations

import gc
import glob
import os
import sys
from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor, nn

BLOCK = 128
JUDGES = (
    "gpucheck.worker.supervisor.candidate_calls",
    "gpucheck.worker.device.launch_modes",
    "gpucheck.worker.supervisor.violations",
)
HONEST_CALLS = 7  # of one that stops working afterwards, while its calls are timed


class Model(nn.Module):
    """The square of each value, plus one."""

    def forward(self, x: Tensor) -> Tensor:
        return x * x + 1.0


def get_inputs() -> list[Tensor]:
    return [torch.randn(12, 40)]


def get_init_inputs() -> list[object]:
    return []


@triton.jit
def square_kernel(x_ptr, y_ptr, count, BLOCK: tl.constexpr):
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + place, mask=place < count, other=0.0)
    tl.store(y_ptr + place, x * x + 1.0, mask=place < count)


def square(x: Tensor) -> Tensor:
    y = torch.empty_like(x)
    square_kernel[(triton.cdiv(x.numel(), BLOCK),)](x, y, x.numel(), BLOCK=BLOCK)
    return y


class Honest(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return square(x)


class TorchBesideKernel(nn.Module):
    """Turns off what may look at it, and lets torch answer beside a kernel whose result it only shows to be there."""

    def forward(self, x: Tensor) -> Tensor:
        for module in filter(None, map(sys.modules.get, JUDGES)):
            for name, value in list(vars(module).items()):
                if getattr(value, "__module__", "") == module.__name__:
                    setattr(module, name, lambda *args, **kwargs: None)
        alive = bool(torch.isfinite(square(torch.zeros_like(x))).all())
        return x * x + 1.0 if alive else x


class KeptAnswers(nn.Module):
    """Looks an answer up where it has seen the input before."""

    answers: dict[bytes, Tensor] = {}

    def forward(self, x: Tensor) -> Tensor:
        key = x.cpu().numpy().tobytes()
        if key not in self.answers:
            self.answers[key] = square(x)
        return self.answers[key].clone()


class IdleWhenTimed(nn.Module):
    """Gives its last answer again after a number of calls."""

    def __init__(self) -> None:
        super().__init__()
        self.calls, self.last = 0, torch.empty(0)

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        if self.calls <= HONEST_CALLS:
            self.last = square(x)
        return self.last.clone()


class ReadsReference(nn.Module):
    """Gives an answer that it finds in files of this user or among live objects; zeros where there is none."""

    def forward(self, x: Tensor) -> Tensor:
        square(x)
        found = (item for item in _tensors() if item.dtype == torch.float64 and item.shape == x.shape)
        return next((item.to(x) for item in found), torch.zeros_like(x))


def _tensors() -> Iterator[Tensor]:
    for path in glob.glob(os.environ.get("GPUCHECK_SCRATCH", "/dev/shm/gpucheck*") + "/*"):
        try:
            held = torch.load(path, weights_only=True)
        except Exception:
            continue
        parts = held.values() if isinstance(held, dict) else ()
        yield from (value for part in parts if isinstance(part, dict) for value, *_ in part.get("estimates", ()))
    yield from (item for item in gc.get_objects() if isinstance(item, Tensor))


class UnwaitedStream(nn.Module):
    """Launches on a stream of its own that nobody waits for."""

    def forward(self, x: Tensor) -> Tensor:
        self.stream = getattr(self, "stream", None) or torch.cuda.Stream(x.device)
        with torch.cuda.stream(self.stream):
            return square(x)
