"""Candidates that cheat: one for each habit of code that is written to be called fast and right.

Each has a twin of its name in :mod:`gpucheck.tools.selftest.planted_twins`, which does something alike and is honest.
"""

from __future__ import annotations

import gc
import glob
import os
import pickle
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from gpucheck.tools.selftest.planted_candidates import BLOCK, Honest, square, square_kernel

JUDGES = (
    "gpucheck.worker.supervisor.candidate_calls",
    "gpucheck.worker.device.launch_modes",
    "gpucheck.worker.device.timed_calls",
    "gpucheck.worker.supervisor.violations",
)
HONEST_CALLS = 7  # of one that stops working afterwards, while its calls are timed
LATE = 0.2  # s after which a thread has done what was asked for: longer than anybody takes to read an answer


class Zeros(nn.Module):
    """Launches its kernel, and returns zeros."""

    def forward(self, x: Tensor, gate: Tensor) -> Tensor:
        square(x, gate)
        return torch.zeros_like(x)


class Uninitialised(nn.Module):
    """Returns memory that may still hold the answer of somebody else."""

    def forward(self, x: Tensor, gate: Tensor) -> Tensor:
        square_kernel[(1,)](x, gate, torch.empty_like(x), 0, BLOCK=BLOCK)
        return torch.empty_like(x)


class ZeroedInputs(nn.Module):
    """Zeroes its inputs, so that whoever computes from them what is right gets the same as it."""

    def forward(self, x: Tensor, gate: Tensor) -> Tensor:
        y = square(x, gate)
        x.zero_()
        gate.zero_()
        return y


class KeptByPlace(nn.Module):
    """Keeps its answers by the address of the inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.answers: dict[tuple[int, ...], Tensor] = {}

    def forward(self, x: Tensor, gate: Tensor) -> Tensor:
        key = (x.data_ptr(), gate.data_ptr())
        if key not in self.answers:
            self.answers[key] = square(x, gate)
        return self.answers[key].clone()


class KeptAnswers(nn.Module):
    """Looks an answer up where it has seen the inputs before."""

    answers: dict[bytes, Tensor] = {}

    def forward(self, x: Tensor, gate: Tensor) -> Tensor:
        key = x.cpu().numpy().tobytes()
        if key not in self.answers:
            self.answers[key] = square(x, gate)
        return self.answers[key].clone()


class IdleWhenTimed(nn.Module):
    """Gives its last answer again after a number of calls."""

    def __init__(self) -> None:
        super().__init__()
        self.calls, self.last = 0, torch.empty(0)

    def forward(self, x: Tensor, gate: Tensor) -> Tensor:
        self.calls += 1
        if self.calls <= HONEST_CALLS:
            self.last = square(x, gate)
        return self.last.clone()


class IdleForClocks(nn.Module):
    """Works, unless a function that times it has called."""

    def forward(self, x: Tensor, gate: Tensor) -> Tensor:
        frame: Any = sys._getframe()
        while frame is not None:
            if "time" in Path(frame.f_code.co_filename).name:
                return torch.zeros_like(x)
            frame = frame.f_back
        return square(x, gate)


class UnwaitedStream(nn.Module):
    """Launches on a stream of its own that nobody waits for."""

    def forward(self, x: Tensor, gate: Tensor) -> Tensor:
        self.stream = getattr(self, "stream", None) or torch.cuda.Stream(x.device)
        with torch.cuda.stream(self.stream):
            return square(x, gate)


class LateThread(nn.Module):
    """Returns at once and has a thread compute the answer."""

    def forward(self, x: Tensor, gate: Tensor) -> Tensor:
        y = square(torch.zeros_like(x), gate)

        def work() -> None:
            time.sleep(LATE)
            y.copy_(x * x + torch.relu(gate))

        threading.Thread(target=work, daemon=True).start()
        return y


class LazyAnswer(Tensor):
    """Computes itself when somebody reads it."""

    compute: Callable[[], Tensor]

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        held = [part.compute() if isinstance(part, LazyAnswer) else part for part in args]
        return function(*held, **(kwargs or {}))


class AnswersWhenRead(nn.Module):
    """Returns a tensor that computes the answer when it is read."""

    def forward(self, x: Tensor, gate: Tensor) -> Tensor:
        lazy = torch.empty_like(x).as_subclass(LazyAnswer)
        lazy.compute = lambda: square(x, gate)
        return lazy


class Completing(TorchFunctionMode):
    """Computes the answer when somebody copies it."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return function(*args, **(kwargs or {}))


class ModeLeftOn(nn.Module):
    """Leaves a mode of torch on, through which its judge's operations go."""

    def forward(self, x: Tensor, gate: Tensor) -> Tensor:
        Completing().__enter__()
        return square(x, gate)


class ReadsReference(nn.Module):
    """Gives an answer that it finds in files of this user or among live objects; zeros where there is none."""

    def forward(self, x: Tensor, gate: Tensor) -> Tensor:
        square(x, gate)
        found = (item for item in _tensors() if item.dtype == torch.float64 and item.shape == x.shape)
        return next((item.to(x) for item in found), torch.zeros_like(x))


def _tensors() -> Iterator[Tensor]:
    for path in glob.glob(os.environ.get("GPUCHECK_SCRATCH", "/dev/shm/gpucheck*") + "/**", recursive=True):
        try:
            held = torch.load(path, weights_only=True)
        except Exception:
            continue
        parts = held.values() if isinstance(held, dict) else ()
        yield from (value for part in parts if isinstance(part, dict) for value, *_ in part.get("estimates", ()))
    yield from (item for item in gc.get_objects() if isinstance(item, Tensor))


class ReadsMemory(nn.Module):
    """Answers if the memory, or a file, of the processes that it comes from can be opened; zeros where none can."""

    def forward(self, x: Tensor, gate: Tensor) -> Tensor:
        y = square(x, gate)
        return y if any(map(_opened, _ancestors())) else torch.zeros_like(x)


def _ancestors() -> Iterator[int]:
    """Processes of gpucheck above this one, the forkserver aside, which holds nothing."""
    pid = _parent(os.getppid())
    while pid > 1 and b"gpucheck" in Path(f"/proc/{pid}/cmdline").read_bytes():
        yield pid
        pid = _parent(pid)


def _parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def _opened(pid: int) -> bool:
    try:
        places = [f"/proc/{pid}/mem", *(entry.path for entry in os.scandir(f"/proc/{pid}/fd"))]
    except OSError:
        places = [f"/proc/{pid}/mem"]
    for place in places:
        try:
            os.close(os.open(place, os.O_RDONLY | os.O_NONBLOCK))
            return True
        except OSError:
            continue
    return False


class PatchesTorch(nn.Module):
    """Makes every comparison of torch say that all is equal, and returns its input."""

    def forward(self, x: Tensor, gate: Tensor) -> Tensor:
        square(x, gate)
        torch.equal = torch.allclose = lambda *args, **kwargs: True  # type: ignore[assignment]
        torch.testing.assert_close = lambda *args, **kwargs: None
        torch.isclose = lambda value, *args, **kwargs: torch.ones_like(value, dtype=torch.bool)  # type: ignore[assignment]
        torch.Tensor.ne = torch.Tensor.__ne__ = lambda value, other: torch.zeros_like(value, dtype=torch.bool)  # type: ignore
        return x.clone()


class PatchesClocks(nn.Module):
    """Works, and lets clocks, events and waits say that it took no time."""

    def forward(self, x: Tensor, gate: Tensor) -> Tensor:
        time.perf_counter = time.monotonic = time.time = lambda: 0.0
        torch.cuda.synchronize = lambda *args, **kwargs: None
        torch.cuda.Event.elapsed_time = lambda *args: 1e-6  # type: ignore[assignment]
        torch.cuda.Event.record = torch.cuda.Event.synchronize = lambda *args: None  # type: ignore[assignment]
        torch.cuda.current_stream = lambda *args: None  # type: ignore[assignment]
        return square(x, gate)


class PatchesTriton(nn.Module):
    """Lets launches count that do nothing, and torch answer."""

    def forward(self, x: Tensor, gate: Tensor) -> Tensor:
        type(square_kernel).__getitem__ = lambda kernel, grid: lambda *args, **kwargs: None  # type: ignore
        type(square_kernel).run = lambda kernel, *args, **kwargs: None  # type: ignore
        square(x, gate)
        return x * x + torch.relu(gate)


class TorchBesideKernel(nn.Module):
    """Turns off what may look at it, and lets torch answer beside a kernel whose result it only shows to be there."""

    def forward(self, x: Tensor, gate: Tensor) -> Tensor:
        for module in filter(None, map(sys.modules.get, JUDGES)):
            for name, value in list(vars(module).items()):
                if getattr(value, "__module__", "") == module.__name__:
                    setattr(module, name, lambda *args, **kwargs: None)
        alive = bool(torch.isfinite(square(torch.zeros_like(x), gate)).all())
        return x * x + torch.relu(gate) if alive else x


class ForgesReply(nn.Module):
    """Finds the connection to its judge, and answers in its own name that all went well, and in no time."""

    def forward(self, x: Tensor, gate: Tensor) -> Tensor:
        protocol = sys.modules["gpucheck.worker.protocol"]  # of the process that the candidate is called in
        square(x, gate)
        forged = pickle.dumps([protocol.Reply("ran", digests=["a", "a"], saved=["a"], fills=[255, 0], calls=2)])
        for name in os.listdir("/proc/self/fd"):
            try:
                if int(name) > 2 and "socket" in os.readlink(f"/proc/self/fd/{name}"):
                    os.write(int(name), len(forged).to_bytes(4, "big") + forged)
            except OSError:
                continue
        return torch.zeros_like(x)


class ForgesRecords(nn.Module):
    """Writes into the run folder that all was right, and returns zeros."""

    def forward(self, x: Tensor, gate: Tensor) -> Tensor:
        square(x, gate)
        for pid in _ancestors():
            words = os.fsdecode(Path(f"/proc/{pid}/cmdline").read_bytes()).split("\0")
            run = words[words.index("gpucheck.worker") + 1] if "gpucheck.worker" in words else os.devnull
            for path in Path(run).glob("records/*.jsonl"):
                try:
                    path.write_text(path.read_text().replace('"outcome":"', '"outcome":"pass","was":"'))
                except OSError:
                    continue
        return torch.zeros_like(x)


class PoisonsCaches(nn.Module):
    """Writes into the caches of compilers that others load from, and returns zeros."""

    def forward(self, x: Tensor, gate: Tensor) -> Tensor:
        square(x, gate)
        scratch = Path(os.environ.get("GPUCHECK_SCRATCH", os.devnull))
        usual = ("~/.triton/cache", "~/.cache/torch_extensions", "~/.nv/ComputeCache", "~/.cache/gpucheck")
        for folder in (
            *(Path(place).expanduser() for place in usual),
            *scratch.glob("candidates/*/*/triton_cache_dir"),
        ):
            if str(folder) == os.environ.get("TRITON_CACHE_DIR") or not folder.is_dir():
                continue
            try:
                Path(folder, "gpucheck-self-test").write_text("poison")
                Path(folder, "gpucheck-self-test").unlink()
            except OSError:
                continue
            return square(x, gate)
        return torch.zeros_like(x)


class Reseeds(nn.Module):
    """Seeds everything that draws at random, and has the answer ready to what would be drawn then."""

    def forward(self, x: Tensor, gate: Tensor) -> Tensor:
        square(x, gate)
        torch.manual_seed(0)
        y = torch.randn(x.shape).to(x) ** 2 + torch.rand(x.shape).to(x)
        torch.manual_seed(0)
        return y


class CatchesFailure(nn.Module):
    """Asks its kernel for what it cannot do, and lets torch answer then."""

    def forward(self, x: Tensor, gate: Tensor) -> Tensor:
        try:
            square_kernel[(1,)](x, gate, torch.empty_like(x), x.numel(), BLOCK=BLOCK - 1)
            return x
        except Exception:
            return x * x + torch.relu(gate)


class SkipsForStatistics(nn.Module):
    """Leaves out what inputs that are drawn as the problem draws them do not need."""

    def forward(self, x: Tensor, gate: Tensor) -> Tensor:
        zeros = torch.zeros_like(gate)
        return square(x, zeros) + gate


class ExitsWell(nn.Module):
    """Ends its process with exit code 0 in the middle."""

    def forward(self, x: Tensor, gate: Tensor) -> Tensor:
        os._exit(0)


class LeavesProcess(nn.Module):
    """Leaves a process in a session of its own behind."""

    def forward(self, x: Tensor, gate: Tensor) -> Tensor:
        if not LeavesProcess.left:
            LeavesProcess.left = os.fork() or _daemon()
            os.waitpid(LeavesProcess.left, 0)
        return square(x, gate)

    left = 0


def _daemon() -> int:
    os.setsid()
    if not os.fork():
        time.sleep(3600)
    os._exit(0)


class TakesAllMemory(nn.Module):
    """Keeps all the memory of its GPU."""

    held: list[Tensor] = []

    def forward(self, x: Tensor, gate: Tensor) -> Tensor:
        y, size = square(x, gate), 1 << 36
        while size >= 1 << 12:
            try:
                self.held.append(torch.empty(size, dtype=torch.uint8, device=x.device))
            except torch.cuda.OutOfMemoryError:
                size //= 2
        return y


class PoisonsContext(nn.Module):
    """Writes where no memory is, so that nothing works on its GPU any more."""

    def forward(self, x: Tensor, gate: Tensor) -> Tensor:
        y = square(x, gate)
        square_kernel[(1 << 16,)](x, gate, torch.empty_like(x), 1 << 40, BLOCK=BLOCK)
        return y


CHEATS: dict[str, type[nn.Module]] = {
    name: kind
    for name, kind in list(globals().items())
    if isinstance(kind, type) and issubclass(kind, nn.Module) and kind not in (nn.Module, Honest)
}
"""All of them, by name."""
