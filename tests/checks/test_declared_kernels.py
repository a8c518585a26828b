"""What a candidate's source declares as its own kernels, and whether what ran is among them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from gpucheck.checks import CHECKS, sources
from gpucheck.checks.declared_kernels import declared_kernels, short_name
from gpucheck.checks.problem import stated_precision
from gpucheck.model.check_source import PairOptions
from gpucheck.model.errors import UsageError

TORCH = "from torch import nn\nclass ModelNew(nn.Module):\n    def forward(self, x): return x\n"
TRITON = "import triton\n@triton.autotune([], key=[])\n@triton.jit\ndef add_kernel(x): pass\n"
CUDA = """
from torch.utils.cpp_extension import load_inline
source = r'''
// __global__ void not_this_one(int)
template <int N> __global__ void __launch_bounds__(256, 2) add_kernel(float const* x) {}
__global__ static void other(int n) {}
__device__ float helper(float x) { return x; }
'''
built = load_inline(name='x', cpp_sources='', cuda_sources=source)
"""
OF_TORCH = "void at::native::vectorized_elementwise_kernel<4, at::native::AddFunctor<float> >(int, float)"


def check(folder: Path, text: str, **asked: Any) -> Any:
    (folder / "hard.py").write_text("Model = get_inputs = get_init_inputs = None\n")
    (folder / "fast.py").write_text(text + TORCH)
    files = [str(folder / "hard.py")], [str(folder / "fast.py")]
    (source,), _ = sources.find([], *files, CHECKS, PairOptions(**asked))
    return sources.make(source, "fast")


def test_plain_torch_code_is_a_remark_and_a_fault_where_own_kernels_are_asked_for(tmp_path: Path) -> None:
    words = "ModelNew has no kernel of its own"
    assert check(tmp_path, "").fallback([], None) == ("", words)
    assert check(tmp_path, "", own_kernel=True).fallback([], None) == (words, "")
    assert check(tmp_path, "", own_kernel=True).fallback(["kernel_of_a_package"], None) == ("", "")
    assert not check(tmp_path, "").kernels(None, None)


def test_declared_triton_kernels_must_be_launched(tmp_path: Path) -> None:
    for text in (TRITON, "from beside import add\n"):
        (tmp_path / "beside.py").write_text(TRITON)
        pair = check(tmp_path, text)
        assert pair.kernels(None, None) and not pair.traced and pair.fallback([], None) == ("", "")


def test_cuda_kernels_are_known_by_the_names_that_the_driver_saw(tmp_path: Path) -> None:
    pair = check(tmp_path, CUDA)
    assert pair.traced and not pair.kernels(None, None)
    assert declared_kernels(tmp_path / "fast.py").device == ("add_kernel", "other")
    assert pair.fallback([], [OF_TORCH, "void add_kernel<3>(float const*)"]) == ("", "")
    fault, remark = pair.fallback([], [OF_TORCH])
    assert fault == "none of add_kernel, other ran on the GPU; ran: vectorized_elementwise_kernel" and not remark
    assert pair.fallback([], None) == ("", ""), "nobody looked"


def test_source_files_beside_a_candidate_belong_to_it(tmp_path: Path) -> None:
    (tmp_path / "mine.cu").write_text("__global__ void beside_kernel(int) {}")
    (tmp_path / "others.cu").write_text("__global__ void not_mine(int) {}")
    found = declared_kernels(Path(check(tmp_path, "FILE = 'mine.cu'\n").source.files[1]))
    assert found.device == ("beside_kernel",) and found.neighbours == (tmp_path / "mine.cu",)


def test_kernels_of_other_languages_are_those_that_are_not_torchs(tmp_path: Path) -> None:
    pair = check(tmp_path, "import tilelang\n")
    assert pair.fallback([], [OF_TORCH, "main_kernel"]) == ("", "")
    assert pair.fallback([], [OF_TORCH, "void cutlass::Kernel2<cutlass_80_simt_sgemm>(int)"])[0]


def test_names_of_kernels_are_shortened() -> None:
    assert short_name(OF_TORCH) == "vectorized_elementwise_kernel" and short_name("add(float*, int)") == "add"
    assert short_name("(anonymous namespace)::run<int>(int)") == "run"


def test_a_problem_says_which_precision_it_allows(tmp_path: Path) -> None:
    path = tmp_path / "hard.py"
    for text, precision in (("", "fp32"), ("PRECISION = 'tf32'", "tf32"), ("PRECISION: str = 'bf16'", "bf16")):
        path.write_text(text)
        assert stated_precision(path) == precision
    for text in ("PRECISION = 'fp8'", "PRECISION = make()", "PRECISION = None"):
        path.write_text(text)
        with pytest.raises(UsageError, match=r"PRECISION is .*, expected one of fp32, tf32, bf16, written out"):
            stated_precision(path)
