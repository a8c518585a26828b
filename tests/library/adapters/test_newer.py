"""What only the generations with ``matmul`` do."""

from __future__ import annotations

from contextvars import copy_context

import pytest
import torch

from gpucheck.library.adapters.base import Adapter, KernelConfig, Routing
from gpucheck.library.library_option import LibraryCopy
from gpucheck.model.errors import Inapplicable
from gpucheck.triton_hooks.interpreter import launch


@pytest.fixture(scope="module", autouse=True)
def generation(adapter: Adapter) -> None:
    if adapter.generation not in ("v3.7", "v3.8"):
        pytest.skip(f"this copy is of generation {adapter.generation}")


def identity(tensor: torch.Tensor) -> torch.Tensor:
    return tensor


@pytest.mark.parametrize("per_token", [1, 2])
def test_the_library_itself_sums_scattered_rows(adapter: Adapter, per_token: int) -> None:
    rows = torch.arange(6, dtype=torch.int32)
    routing = Routing(torch.tensor([6], dtype=torch.int32), rows, rows, torch.ones(6), 1, per_token)
    x, w = torch.randint(-4, 5, (6, 64)).double(), torch.randint(-4, 5, (1, 64, 16)).double()
    weight = adapter.weight("bf16", w.bfloat16(), None, "strided", identity)
    seen: list[str] = []

    def observer(name: str, *_: object) -> None:
        seen.append(name)

    launch.observers.append(observer)
    try:
        output = adapter.matmul(x.bfloat16(), weight, out_dtype=torch.float32, routing=routing, scatter=True)
    finally:
        launch.observers.remove(observer)
    assert torch.equal(output.double(), (x @ w[0]).view(-1, per_token, 16).sum(1))
    assert bool(set(seen) & set(adapter.kernels["reduce"])) == (per_token > 1)


def test_codec_of_incomplete_blocks_is_inapplicable(adapter: Adapter) -> None:
    with pytest.raises(Inapplicable, match="multiples of 32, not 48"):
        adapter.downcast(torch.ones(4, 48), "mxfp4", 1)


def test_hopper_layout_is_refused_where_the_copy_misreads_it_and_right_elsewhere(
    adapter: Adapter, library_copy: LibraryCopy
) -> None:
    codes, scales = torch.full((48, 64), 0x22, dtype=torch.uint8), torch.full((3, 64), 127, dtype=torch.uint8)
    if library_copy.name in "DF" and torch.cuda.get_device_capability()[0] == 9:
        with pytest.raises(Inapplicable, match="multiple of 64, not 96"):
            adapter.weight("mxfp4", codes, scales, "default", identity)
        return
    weight = adapter.weight("mxfp4", codes, scales, "default", identity)  # every value is 1
    x = torch.randint(-4, 5, (9, 96)).bfloat16()
    output = adapter.matmul(x, weight, out_dtype=torch.float32)
    assert torch.equal(output, x.float().sum(1, keepdim=True).expand(-1, 64))


def test_constraints_of_the_caller_survive(adapter: Adapter) -> None:
    def use() -> None:
        flags = adapter.opt_flags  # type: ignore[attr-defined]
        flags.update_opt_flags_constraints({"block_m": 64})
        weight = adapter.weight("bf16", torch.ones(64, 16).bfloat16(), None, "strided", identity)
        config = KernelConfig(split_k=2, block_m=32)
        adapter.matmul(torch.ones(8, 64).bfloat16(), weight, out_dtype=torch.float32, config=config)
        assert adapter.current_constraints() == {"block_m": 64}  # type: ignore[attr-defined]
        flags.reset_opt_flags_constraints()

    copy_context().run(use)
