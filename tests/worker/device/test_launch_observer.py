"""Launches of real Triton kernels on the CPU as the observer sees them."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import timeit
from collections.abc import Callable
from dataclasses import asdict
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from gpucheck.model.record import LargeTensor, Launch
from gpucheck.worker.device.launch_observer import Log, Observer, _devices, kernel_clock, large_tensors
from gpucheck.worker.launch_journal import Journal, read

pytest.importorskip("triton")

REPOSITORY = Path(__file__).parents[3]
SCRIPT = """
from gpucheck.triton_hooks import interpreter
interpreter.install()
import torch, triton, triton.language as tl
from gpucheck.worker.device.launch_observer import Log, Observer

@triton.jit
def double(x, count, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(x + at, tl.load(x + at, mask=at < count) * 2, mask=at < count)

import pathlib
observer = Observer([pathlib.Path(__file__).parent])
observer.install_interpreter()
x = torch.ones(10)
double[(1,)](x, 10, BLOCK=16)
observer.start()
for _ in range(3):
    double[(2,)](x, 10, BLOCK=8)
print(x[0].item(), [(l.kernel, l.count, l.argument_devices, l.device, l.source) for l in observer.take()])
observer.start()
print(observer.take())
"""


def test_interpreted_launches_are_counted_from_the_start() -> None:
    # the script's kernel needs a file to read its source from
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.argv[0] = {__file__!r}\n" + _as_module()],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(REPOSITORY), *sys.path])},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    line = SCRIPT.splitlines().index("    double[(2,)](x, 10, BLOCK=8)") + 1
    assert done.stdout.splitlines() == [f"16.0 [('double', 3, ['cpu'], None, 'kernel.py:{line}')]", "[]"]


def _as_module() -> str:
    return (
        "import pathlib, runpy, tempfile\n"
        "with tempfile.TemporaryDirectory() as folder:\n"
        "    file = pathlib.Path(folder, 'kernel.py')\n"
        f"    file.write_text({SCRIPT!r})\n"
        "    runpy.run_path(str(file))\n"
    )


class Gpu:
    """What the observer asks torch, Triton and the driver for, on a machine without a GPU."""

    def __init__(self) -> None:
        self.device, self.context, self.stream, self.hash = 0, 0, 7, "h" * 40
        self.refuse: Exception | None = None
        self.asked: list[int] = []

    def launch(self, function: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> Any:
        if callable(grid):
            grid(kwargs)
        if self.refuse:
            raise self.refuse
        target = SimpleNamespace(arch=90, backend="cuda")
        return SimpleNamespace(hash=self.hash, metadata=SimpleNamespace(target=target, shared=1024, num_warps=8))

    def raw_stream(self, device: int) -> int:
        self.asked.append(device)
        return self.stream


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Gpu:
    import triton
    from triton.runtime.jit import JITFunction

    from gpucheck.host import cuda_driver

    fake = Gpu()
    monkeypatch.setattr(JITFunction, "run", lambda function, *a, **k: fake.launch(function, *a, **k))
    monkeypatch.setattr(triton.compiler, "compile", None)
    monkeypatch.setattr(triton.compiler.compiler, "compile", None)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: fake.device)
    monkeypatch.setattr(torch._C, "_cuda_getCurrentRawStream", fake.raw_stream, raising=False)
    monkeypatch.setattr(cuda_driver, "context_device", lambda: fake.context)
    return fake


@pytest.fixture
def observer(gpu: Gpu) -> Observer:
    made = Observer([Path(__file__).parent])
    made.install_compiled()
    return made


def run(name: str = "k", *args: Any, grid: Any = (8,), warmup: bool = False) -> None:
    from triton.runtime.jit import JITFunction

    JITFunction.run(kernel(name), *args, grid=grid, warmup=warmup)


@cache
def kernel(name: str) -> Any:
    return SimpleNamespace(fn=SimpleNamespace(__name__=name))


def test_equal_launches_are_one_with_a_count(observer: Observer) -> None:
    for name in ("k", "k", "other", "k"):
        run(name, torch.empty(2))
    assert [(seen.kernel, seen.count) for seen in observer.take()] == [("k", 3), ("other", 1)]
    observer.start()
    assert observer.take() == []


@pytest.mark.parametrize(("name", "value"), [("device", 1), ("stream", 8), ("hash", "g" * 40)])
def test_launches_that_differ_are_kept_apart(observer: Observer, gpu: Gpu, name: str, value: Any) -> None:
    run()
    setattr(gpu, name, value)
    run()
    run(grid=(9,))
    assert [seen.count for seen in observer.take()] == [1, 1, 1]


def test_a_launch_is_described_with_its_place_in_the_source(observer: Observer, gpu: Gpu) -> None:
    gpu.context = 1
    run("k", torch.empty(2), grid=(8, 2))
    (seen,) = observer.take()
    file, _, line = seen.source.partition(":")
    assert (
        file == "test_launch_observer.py"
        and "JITFunction.run(" in Path(__file__).read_text().splitlines()[int(line) - 1]
    )
    assert seen == Launch("k", 1, 0, ["cpu"], 7, "h" * 16, "sm_90", 1024, 8, [8, 2], seen.source, context=1)
    assert gpu.asked == [0], "a stream of the current device, asked for without making one current"


def test_a_launch_tells_its_configuration(observer: Observer, gpu: Gpu) -> None:
    from triton.runtime.jit import JITFunction

    named = SimpleNamespace(fn=SimpleNamespace(__name__="k"), arg_names=["x", "n", "BLOCK_M", "EVEN_K", "LAYOUT"])
    arguments = (torch.empty(2), 7, 16, True, "HOPPER")
    JITFunction.run(named, *arguments, grid=(1,), warmup=False, SPLIT_K=4, num_warps=8, num_stages=3, scale=2)
    (seen,) = observer.take()
    assert seen.configuration == {"BLOCK_M": 16, "SPLIT_K": 4, "num_warps": 8, "num_stages": 3}


def test_a_warm_up_is_no_launch(observer: Observer) -> None:
    run(warmup=True)
    assert observer.take() == []


def test_a_refused_launch_is_seen_and_raises(observer: Observer, gpu: Gpu) -> None:
    gpu.refuse = ValueError("Pointer argument (at 0) cannot be accessed\nmore")
    with pytest.raises(ValueError, match="Pointer argument"):
        run("k", torch.empty(2), grid=lambda meta: (1,))
    with pytest.raises(ValueError):
        run("k", warmup=True)
    (seen,) = observer.take()
    assert (seen.refused, seen.argument_devices) == ("ValueError: Pointer argument (at 0) cannot be accessed", ["cpu"])
    assert (seen.hash, seen.shared, seen.grid, seen.count) == ("", 0, [1], 1)


def test_a_grid_that_is_computed_at_the_launch_is_seen(observer: Observer) -> None:
    for grid in (lambda meta: (3, 2), lambda meta: [3, 3], (3, 4)):
        run("k", grid=grid)
    assert [seen.grid for seen in observer.take()] == [[3, 2], [3, 3], [3, 4]]


def test_a_launch_that_the_driver_refuses_for_its_grid_says_so(observer: Observer, gpu: Gpu) -> None:
    gpu.refuse = RuntimeError("Triton Error [CUDA]: invalid argument")
    with pytest.raises(RuntimeError, match="k was launched with 65,536 blocks on axis 1, at most 65,535") as raised:
        run("k", grid=lambda meta: (1, 65_536))
    assert raised.value.__cause__ is gpu.refuse
    (seen,) = observer.take()
    assert (seen.refused, seen.grid) == ("RuntimeError: Triton Error [CUDA]: invalid argument", [1, 65_536])
    with pytest.raises(RuntimeError) as raised:
        run("k", grid=(1, 65_535))
    assert raised.value is gpu.refuse


def test_configurations_that_an_autotuner_tries_are_counted_for_each_case(
    gpu: Gpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tuner measures each of its configurations on the tensors of the call, once for each key."""
    import triton
    from triton.runtime.autotuner import Autotuner

    monkeypatch.delenv("TRITON_INTERPRET", raising=False)  # which other tests set
    monkeypatch.setattr(Autotuner, "_bench", lambda tuner, *args, config, **kwargs: float(config.num_warps))
    monkeypatch.setattr(Autotuner, "prune_configs", lambda tuner, kwargs: tuner.configs)
    monkeypatch.setattr(Autotuner, "pre_hook", lambda *args, **kwargs: None, raising=False)
    made = Observer()
    made.install_compiled()

    def tuned(x: Any) -> None:
        """Nothing runs it."""

    configs = [triton.Config({}, num_warps=warps) for warps in (4, 8)]
    tuner = triton.autotune(configs, key=[])(triton.jit(tuned))
    for tried in (2, 0):
        made.start()
        for _ in range(2):
            tuner.run(torch.empty(2), grid=(1,), warmup=False)
        assert [(seen.kernel, seen.count, seen.tried) for seen in made.take()] == [("tuned", 2, tried)]


def test_arguments_that_offsets_of_32_bits_do_not_reach_are_taken_down() -> None:
    pages = torch.empty((2054, 1 << 20), dtype=torch.int8, device="meta")
    halves = torch.empty((1 << 15, 1 << 15), dtype=torch.bfloat16, device="meta")
    strided = torch.empty((3, 1 << 30), dtype=torch.int8, device="meta")[:, :4]
    fits = torch.empty((2047, 1 << 20), dtype=torch.int8, device="meta")
    found = large_tensors(["cache_ptr", "n", "x"], (pages, 3, halves), {"s": strided, "fits": fits, "L": 2**40})
    assert found == [
        LargeTensor("cache_ptr", "int8", 1, [2054, 1 << 20], [1 << 20, 1]),
        LargeTensor("x", "bfloat16", 2, [1 << 15, 1 << 15], [1 << 15, 1]),
        LargeTensor("s", "int8", 1, [3, 4], [1 << 30, 1]),
    ]
    assert found[0].words == "cache_ptr, int8 of shape (2054, 1048576)"
    launch = Launch("k", 1, 0, [], 0, "", "", 0, 0, [], large=found)
    assert Launch(**asdict(launch)) == launch, "read back from a record line"


@pytest.mark.parametrize(("blocking", "open_", "then"), [(False, 2, 3), (True, 0, 1)])
def test_the_journal_outlives_a_launch_that_does_not_return(
    gpu: Gpu, tmp_path: Path, blocking: bool, open_: int, then: int
) -> None:
    made = Observer([Path(__file__).parent], Journal(tmp_path / "j"), blocking=blocking)
    made.install_compiled()
    run("first", torch.empty(2))
    run("second", torch.empty(2))
    seen = read(tmp_path / "j").underway
    assert seen is not None and (seen.kernel, seen.open) == ("second", open_)
    assert seen.source.startswith("test_launch_observer.py:")
    gpu.refuse = RuntimeError("illegal memory access")
    with pytest.raises(RuntimeError):
        run("third", torch.empty(2))
    seen = read(tmp_path / "j").underway
    assert seen is not None and (seen.kernel, seen.open) == ("third", then)
    made.settled()
    assert read(tmp_path / "j").underway is None


def test_the_place_in_the_library_that_raised() -> None:
    def fail() -> None:
        raise ValueError("no")

    observer = Observer([Path(__file__).parent])
    with pytest.raises(ValueError) as raised:
        fail()
    line = fail.__code__.co_firstlineno + 1
    assert observer.raised_at(raised.value) == f"test_launch_observer.py:{line}"
    assert Observer([Path("/elsewhere")]).raised_at(raised.value) == ""


def test_seeing_a_launch_takes_less_than_20_microseconds(observer: Observer, slowness: Callable[[], float]) -> None:
    arguments = [torch.empty(2), 1, 2.0, None, (3, torch.empty(1))] * 4
    run("k", *arguments)
    for _ in range(10):  # until nobody else on this machine disturbs
        limit = 20e-6 * slowness()
        best = min(timeit.repeat(lambda: run("k", *arguments), timer=time.process_time, number=20, repeat=200)) / 20
        if best < limit:
            return
        time.sleep(0.2)
    pytest.fail(f"{best * 1e6:.1f} us, at most {limit * 1e6:.1f} us")


def test_devices_of_arguments_are_found_in_every_wrapping() -> None:
    class Descriptor:
        base = torch.empty(2, device="meta")

    class Wrapped:
        data = torch.empty(2)

    assert _devices((1, "x", None)) == []
    assert _devices((torch.empty(2), torch.empty(1))) == ["cpu"]
    assert _devices(([(torch.empty(2, device="meta"),)], 3)) == ["meta"]
    assert _devices((Descriptor(), Wrapped())) == ["cpu", "meta"]


def test_clock_of_the_cpu_takes_wall_time() -> None:
    with kernel_clock(torch.device("cpu")) as seconds:
        torch.ones(1000).sum()
    assert len(seconds) == 1
    assert 0 < seconds[0] < 60


def test_compilers_that_run_side_by_side_take_as_long_as_the_slowest() -> None:
    logs = [Log() for _ in range(3)]
    for log, seconds in zip(logs, (1.0, 3.0, 2.0), strict=True):
        log.compile_seconds = seconds
    logs[0].add(logs[1:])
    assert logs[0].compile_seconds == 4.0
