"""Extensions of candidates are built once for each content, by one process, and what a compiler says is told."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from gpucheck.worker.device.build_process import compiler_errors
from gpucheck.worker.supervisor import source_builds
from gpucheck.worker.supervisor.source_builds import ensure, folder_of

NVCC = """Error building extension 'add': [1/2] /usr/local/cuda/bin/nvcc --generate-dependencies-with-compile -c
/root/.cache/x/add/cuda.cu -o cuda.cuda.o
FAILED: [code=2] cuda.cuda.o
/usr/local/cuda/bin/nvcc -DTORCH_EXTENSION_NAME=add -c /root/.cache/x/add/cuda.cu
/root/.cache/x/add/cuda.cu(12): error: identifier "foo" is undefined
      foo(x);
      ^

/root/.cache/x/add/cuda.cu(31): error: expected a ";"
2 errors detected in the compilation of "/root/.cache/x/add/cuda.cu".
ninja: build stopped: subcommand failed.
"""


def test_the_compilers_errors_are_told_with_file_and_line_and_without_folders() -> None:
    assert (
        compiler_errors(NVCC) == 'cuda.cu(12): error: identifier "foo" is undefined; cuda.cu(31): error: expected a ";"'
    )
    linker = "/usr/bin/ld: main.o: in function `run':\nmain.cpp:(.text+0x1f): undefined reference to `add'\n"
    assert "undefined reference to `add'" in compiler_errors(linker)
    many = "\n".join(f"/a/b/k.cu({line}): error: bad" for line in range(9))
    assert compiler_errors(many).endswith("k.cu(3): error: bad; 5 more")
    assert compiler_errors("something else\nno compiler here") == "something else; no compiler here"


def test_ranks_and_trials_build_once_and_the_next_run_not_at_all(tmp_path: Path) -> None:
    built: list[str] = []

    def build() -> str:
        built.append("now")
        return ""

    with ThreadPoolExecutor(8) as pool:
        said = list(pool.map(lambda number: ensure(tmp_path / "x", f"run{number % 2}", build), range(16)))
    assert said == [""] * 16 and built == ["now"]


def test_what_does_not_build_is_tried_once_a_run(tmp_path: Path) -> None:
    tried: list[str] = []

    def build() -> str:
        tried.append("now")
        return "BuildError: k.cu(1): error"

    for run in ("one", "one", "two"):
        assert ensure(tmp_path / "x", run, build) == "BuildError: k.cu(1): error"
    assert len(tried) == 2
    assert ensure(tmp_path / "x", "three", lambda: "") == "" and ensure(tmp_path / "x", "four", build) == ""


def test_another_content_torch_or_gpu_has_another_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPUCHECK_CACHE_DIR", str(tmp_path / "cache"))
    candidate, beside = tmp_path / "fast.py", tmp_path / "fast.cu"
    candidate.write_text("from torch.utils.cpp_extension import load\nload('x', ['fast.cu'])\n")
    beside.write_text("__global__ void one(int) {}")

    def folder() -> Path:
        found = folder_of(candidate)
        assert found is not None
        return found

    first = folder()
    assert first == folder() and first.parent == tmp_path / "cache" / "extensions"
    beside.write_text("__global__ void two(int) {}")
    second = folder()
    monkeypatch.setattr(source_builds, "_gpus", lambda: iter(["Model: NVIDIA H200"]))
    third = folder()
    monkeypatch.setattr(source_builds.torch, "__version__", "9.9")
    assert len({first, second, third, folder()}) == 4
    candidate.write_text("x = 1\n")
    assert folder_of(candidate) is folder_of(tmp_path / "none.py") is None
