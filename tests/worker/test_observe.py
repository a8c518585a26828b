"""Launches of real Triton kernels on the CPU as the observer sees them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="needs torch")
pytest.importorskip("triton", reason="needs triton")

import torch

from gpucheck.model.record import Launch
from gpucheck.worker.observe import Observer, _devices, kernel_clock

REPOSITORY = Path(__file__).parents[2]
SCRIPT = """
from gpucheck import interpreter
interpreter.install()
import torch, triton, triton.language as tl
from gpucheck.worker.observe import Observer

@triton.jit
def double(x, count, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(x + at, tl.load(x + at, mask=at < count) * 2, mask=at < count)

observer = Observer()
observer.install_interpreter()
x = torch.ones(10)
double[(1,)](x, 10, BLOCK=16)
observer.start()
for _ in range(3):
    double[(2,)](x, 10, BLOCK=8)
print(x[0].item(), [(l.kernel, l.count, l.argument_devices, l.device) for l in observer.take()])
observer.start()
print(observer.take())
"""


def launch(kernel: str = "k", device: int | None = 0, stream: int = 1, hash: str = "h") -> Launch:
    return Launch(kernel, 1, device, ["cuda:0"], stream, hash, "sm_90", 0, 4, [8])


def test_interpreted_launches_are_counted_from_the_start() -> None:
    # the script's kernel needs a file to read its source from
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.argv[0] = {__file__!r}\n" + _as_module()],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(REPOSITORY), *sys.path])},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["16.0 [('double', 3, ['cpu'], None)]", "[]"]


def _as_module() -> str:
    return (
        "import pathlib, runpy, tempfile\n"
        "with tempfile.TemporaryDirectory() as folder:\n"
        "    file = pathlib.Path(folder, 'kernel.py')\n"
        f"    file.write_text({SCRIPT!r})\n"
        "    runpy.run_path(str(file))\n"
    )


def test_equal_launches_are_one_with_a_count() -> None:
    observer = Observer()
    for seen in (launch(), launch(), launch(kernel="other"), launch()):
        observer.add(seen)
    assert [(seen.kernel, seen.count) for seen in observer.take()] == [("k", 3), ("other", 1)]


@pytest.mark.parametrize("other", [launch(device=1), launch(stream=2), launch(hash="g")])
def test_launches_that_differ_are_kept_apart(other: Launch) -> None:
    observer = Observer()
    observer.add(launch())
    observer.add(other)
    assert len(observer.take()) == 2


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
