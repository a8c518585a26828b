"""Our own kernels compile for a GPU that is not here: with the Triton at hand, and with every other that lies around.

``GPUCHECK_TEST_TRITONS`` names a folder with a folder for each Triton, as ``pip install --no-deps --target`` makes it.
Triton 3.1 has the strictest rules of broadcasting; it has no interpreter that this project can use.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from gpucheck.checks import kernels as own
from gpucheck.triton_hooks.targets import TARGETS

pytest.importorskip("triton")


REPOSITORY = Path(__file__).parents[2]
DEADLINE = 240.0  # s
TRITONS = ["installed", "t3.1.0", "t3.2.0", "t3.4.0", "t3.5.1", "t3.6.0", "t3.7.1", "t3.8.0", "t3.9.0"]
CASES = [
    "attention,mask=window,window=16,sinks=True,q_len=40",
    "softmax,m=9,n=70",
    "weighted_matmul,dtype=bf16,k=75",
    "selection_attention,q_len=4",
    "selection_attention,q_len=4,lengths=variable,dtype=fp16,batch=2",
    "paged_attention,sinks=True",
]
_SOURCES = (path.read_text(encoding="utf-8") for path in Path(str(own.__file__)).parent.glob("*_kernel.py"))
KERNELS = {name for source in _SOURCES for name in re.findall(r"@triton\.jit\ndef (\w+)", source)}
"""All of our own: each is in one of the cases."""
WITHOUT_LINKER = ("t3.1.0", "t3.2.0", "t3.4.0")  # they link AMD kernels with a program of ROCm, which may be missing
SMALLEST = 99 << 10  # bytes of shared memory of a block on GPUs for desktops


def compiled(triton: str, tmp_path: Path, targets: str, *cases: str) -> subprocess.CompletedProcess[str]:
    """What ``compile_kernels`` says with a Triton of :data:`TRITONS`; skips where that is not here."""
    paths = [str(REPOSITORY), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    if triton != "installed":
        folder = Path(os.environ.get("GPUCHECK_TEST_TRITONS", "")) / triton
        if "GPUCHECK_TEST_TRITONS" not in os.environ or not folder.is_dir():
            pytest.skip(f"GPUCHECK_TEST_TRITONS names no folder with {triton}")
        paths.insert(0, str(folder))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "TRITON_CACHE_DIR": str(tmp_path)}
    environment.pop("TRITON_INTERPRET", None)
    script = Path(__file__).with_name("compile_kernels.py")
    command = [sys.executable, str(script), targets, *cases]
    return subprocess.run(command, env=environment, text=True, capture_output=True, timeout=DEADLINE)


def built(done: subprocess.CompletedProcess[str]) -> list[list[str]]:
    """Kernel, target, shared memory, size and Triton of each kernel built; compilers may print more."""
    return [line.split() for line in done.stdout.splitlines() if line.startswith("_")]


@pytest.mark.parametrize("triton", TRITONS)
def test_own_kernels_compile(triton: str, tmp_path: Path) -> None:
    done = compiled(triton, tmp_path, "sm_90", *CASES)
    assert done.returncode == 0, done.stdout + done.stderr[-4000:]
    assert " error: " not in done.stderr, done.stderr[-4000:]  # what the compiler says and survives
    kernels = built(done)
    assert {name for name, *_ in kernels} == KERNELS
    assert all(int(shared) <= SMALLEST and int(size) > 1000 for *_, shared, size, _ in kernels)
    if triton != "installed":
        assert {version for *_, version in kernels} == {triton[1:]}


@pytest.mark.parametrize("triton", TRITONS[1:])
def test_a_triton_compiles_for_the_targets_that_the_table_says_it_knows(triton: str, tmp_path: Path) -> None:
    product = "weighted_matmul,dtype=bf16,k=75"
    known = [target for target in TARGETS.values() if not target.unknown_to(triton[1:])]
    done = compiled(triton, tmp_path, ",".join(target.name for target in known), product)
    assert done.returncode == 0, done.stdout + done.stderr[-4000:]
    links = triton not in WITHOUT_LINKER
    assert {target for _, target, *_ in built(done)} == {target.name for target in known if links or not target.amd}
    for target in TARGETS.values():
        if target not in known:
            assert built(compiled(triton, tmp_path, target.name, product)) == []
