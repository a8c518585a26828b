"""The ``matmul_ogs`` generations with a routing module, with real kernels, against plain torch in float64."""

from __future__ import annotations

import pytest
import torch

from gpucheck.library.adapters.base import Adapter, KernelConfig, Routing, Weight
from gpucheck.model.errors import Inapplicable
from tests.library.adapters.conftest import decode_mxfp4

EXACT = torch.float32
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
TOKENS, EXPERTS, CHOSEN, K, N = 13, 6, 2, 96, 64


@pytest.fixture(scope="module", autouse=True)
def legacy(adapter: Adapter) -> None:
    if adapter.generation not in ("v3.4", "v3.5"):
        pytest.skip(f"this copy is of generation {adapter.generation}")


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def integers(generator: torch.Generator, *shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return torch.randint(-8, 9, shape, generator=generator).float().to(dtype)


def in_place(data: torch.Tensor) -> torch.Tensor:
    return data


def skewed_routing(generator: torch.Generator) -> Routing:
    """Expert 0 gets a row of every token, the last expert none."""
    others = torch.randint(1, EXPERTS - 1, (TOKENS, 1), generator=generator)
    flat = torch.cat([torch.zeros(TOKENS, 1, dtype=torch.long), others], dim=1).reshape(-1)
    to_flat = flat.argsort(stable=True)
    return Routing(
        histogram=torch.bincount(flat, minlength=EXPERTS).int(),
        to_flat=to_flat.int(),
        to_sorted=to_flat.argsort().int(),
        gates=torch.ones(TOKENS * CHOSEN),
        experts=EXPERTS,
        per_token=CHOSEN,
    )


def expert_rows(rows: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, routing: Routing) -> torch.Tensor:
    """Each expert-sorted row of ``rows`` times its expert's weight, plus bias, in float64."""
    expert = torch.repeat_interleave(torch.arange(routing.experts), routing.histogram.long())
    return torch.einsum("rk,rkn->rn", rows.double(), weight.double()[expert]) + bias.double()[expert]


@pytest.mark.parametrize("kind", DTYPES)
def test_dense_with_bias_is_exact(adapter: Adapter, generator: torch.Generator, kind: str) -> None:
    x, w = integers(generator, 33, 80, dtype=DTYPES[kind]), integers(generator, 80, 50, dtype=DTYPES[kind])
    bias = integers(generator, 50, dtype=torch.float32)
    weight = adapter.weight(kind, w, None, "default", in_place)
    reference = x.double() @ w.double() + bias.double()
    assert torch.equal(adapter.matmul(x, weight, out_dtype=EXACT, bias=bias).double(), reference)
    rounded = adapter.matmul(x, weight, out_dtype=torch.bfloat16, bias=bias)
    assert torch.equal(rounded, reference.to(torch.bfloat16))


def test_batched_even_where_the_library_would_split_k(adapter: Adapter, generator: torch.Generator) -> None:
    x, w = integers(generator, 2, 16, 1024), integers(generator, 2, 1024, 32)
    weight = adapter.weight("bf16", w, None, "strided", in_place)
    assert torch.equal(adapter.matmul(x, weight, out_dtype=EXACT).double(), x.double() @ w.double())
    with pytest.raises(Inapplicable, match="split K"):
        adapter.matmul(x, weight, out_dtype=EXACT, config=KernelConfig(split_k=2))


@pytest.mark.parametrize("split_k", [None, 1, 3])
def test_split_k_and_the_flags_are_restored(adapter: Adapter, generator: torch.Generator, split_k: int | None) -> None:
    from triton_kernels.matmul_ogs_details import opt_flags

    x, w = integers(generator, 16, 512), integers(generator, 512, 32)
    weight = adapter.weight("bf16", w, None, "strided", in_place)
    opt_flags.update_opt_flags_constraints({"block_m": 64})
    try:
        out = adapter.matmul(x, weight, out_dtype=EXACT, config=KernelConfig(split_k=split_k, block_m=32))
        assert opt_flags._opt_flags_constraints == {"block_m": 64}
    finally:
        opt_flags.reset_opt_flags_constraints()
    assert torch.equal(out.double(), x.double() @ w.double())


@pytest.mark.parametrize("kind", ["fp8_e4m3", "fp8_e5m2"])
def test_fp8_with_tensor_scales_on_both_sides(adapter: Adapter, generator: torch.Generator, kind: str) -> None:
    dtype = {"fp8_e4m3": torch.float8_e4m3fn, "fp8_e5m2": torch.float8_e5m2}[kind]
    x, w = integers(generator, 32, 64, dtype=dtype), integers(generator, 64, 48, dtype=dtype)
    weight = adapter.weight(kind, w, torch.tensor([0.5]), "default", in_place)
    out = adapter.matmul(x, weight, out_dtype=EXACT, x_scale=torch.tensor([4.0]))
    assert torch.equal(out.double(), 2 * (x.double() @ w.double()))
    with pytest.raises(Inapplicable, match="fp8"):
        adapter.matmul(x.to(torch.bfloat16), weight, out_dtype=EXACT)


@pytest.mark.parametrize("scatter", [False, True])
@pytest.mark.parametrize("gather", [False, True])
def test_routed(adapter: Adapter, generator: torch.Generator, gather: bool, scatter: bool) -> None:
    routing = skewed_routing(generator)
    tokens, w = integers(generator, TOKENS, K), integers(generator, EXPERTS, K, N)
    bias = integers(generator, EXPERTS, N, dtype=torch.float32)
    gammas = 2.0 ** torch.randint(-2, 3, (TOKENS * CHOSEN,), generator=generator)
    token_of_row = (routing.to_flat // CHOSEN).long()
    rows = tokens[token_of_row]
    reference = expert_rows(rows, w, bias, routing) * gammas[:, None].double()
    if scatter:
        reference = torch.zeros(TOKENS, N, dtype=torch.float64).index_add_(0, token_of_row, reference)
    out = adapter.matmul(
        tokens if gather else rows,
        adapter.weight("bf16", w, None, "strided", in_place),
        out_dtype=EXACT,
        bias=bias,
        routing=routing,
        gather=gather,
        scatter=scatter,
        gammas=gammas,
    )
    assert torch.equal(out.double(), reference)


@pytest.mark.parametrize("layout", ["strided", "default"])
def test_routed_mxfp4_reads_only_placed_buffers_and_survives_repeated_calls(
    adapter: Adapter, generator: torch.Generator, layout: str
) -> None:
    routing = skewed_routing(generator)
    x = integers(generator, TOKENS, K)
    codes = torch.randint(0, 256, (EXPERTS, K // 2, N), generator=generator, dtype=torch.uint8)
    scales = torch.randint(126, 129, (EXPERTS, K // 32, N), generator=generator, dtype=torch.uint8)
    bias = torch.zeros(EXPERTS, N)
    placed: list[torch.Tensor] = []

    def place(data: torch.Tensor) -> torch.Tensor:
        copy = torch.empty_strided(data.shape, data.stride(), dtype=data.dtype).copy_(data)
        placed.append(copy)
        return copy

    weight = adapter.weight("mxfp4", codes, scales, layout, place)
    reference = expert_rows(x[(routing.to_flat // CHOSEN).long()], decode_mxfp4(codes, scales), bias, routing)
    codes.zero_()
    scales.zero_()
    for _ in range(2):
        out = adapter.matmul(x, weight, out_dtype=EXACT, bias=bias, routing=routing, gather=True)
        assert torch.equal(out.double(), reference)
    for buffer in placed:
        buffer.zero_()
    assert not adapter.matmul(x, weight, out_dtype=EXACT, bias=bias, routing=routing, gather=True).any()


def test_mxfp8_weights(adapter: Adapter, generator: torch.Generator) -> None:
    x, values = integers(generator, 16, K), integers(generator, K, N, dtype=torch.float8_e4m3fn)
    scales = torch.randint(126, 129, (K // 32, N), generator=generator, dtype=torch.uint8)
    weight = adapter.weight("mxfp8_e4m3", values, scales, "default", in_place)
    reference = x.double() @ (values.double() * 2.0 ** (scales.double() - 127).repeat_interleave(32, dim=0))
    assert torch.equal(adapter.matmul(x, weight, out_dtype=EXACT).double(), reference)


def swiglu_reference(x: torch.Tensor, alpha: float, limit: float) -> torch.Tensor:
    gate, linear = x.double()[:, 0::2].clamp(max=limit), x.double()[:, 1::2].clamp(-limit, limit)
    return gate * torch.sigmoid(alpha * gate) * (linear + 1)


def test_fused_and_standalone_swiglu(adapter: Adapter, generator: torch.Generator) -> None:
    x, w = integers(generator, 16, 64), integers(generator, 64, 48) / 32
    weight = adapter.weight("bf16", w, None, "strided", in_place)
    fused = adapter.matmul(x, weight, out_dtype=EXACT, swiglu=(1.702, 7.0))
    reference = swiglu_reference(x.double() @ w.double(), 1.702, 7.0)
    assert fused.shape == (16, 24)
    torch.testing.assert_close(fused.double(), reference, rtol=1e-5, atol=1e-5)
    alone = adapter.swiglu((x.double() @ w.double()).float(), 1.702, 7.0)
    torch.testing.assert_close(alone.double(), reference, rtol=1e-5, atol=1e-5)


def test_gammas_with_a_fused_activation_are_refused(adapter: Adapter, generator: torch.Generator) -> None:
    weight = adapter.weight("bf16", integers(generator, EXPERTS, K, N), None, "strided", in_place)
    gammas = torch.ones(TOKENS * CHOSEN)
    with pytest.raises(Inapplicable, match="gammas"):
        adapter.matmul(
            integers(generator, TOKENS, K),
            weight,
            out_dtype=EXACT,
            routing=skewed_routing(generator),
            gather=True,
            gammas=gammas,
            swiglu=(1.702, 7.0),
        )


def test_an_impossible_kernel_choice_is_inapplicable(adapter: Adapter, generator: torch.Generator) -> None:
    weight: Weight = adapter.weight("bf16", integers(generator, 64, 32), None, "strided", in_place)
    with pytest.raises(Inapplicable, match="is_persistent"):
        adapter.matmul(integers(generator, 8, 64), weight, out_dtype=EXACT, config=KernelConfig(persistent=True))


@pytest.mark.parametrize(("k", "experts"), [(1, 8), (2, 13), (4, 33)])
def test_topk_and_routing(adapter: Adapter, generator: torch.Generator, k: int, experts: int) -> None:
    logits = torch.randn(19, experts, generator=generator)
    chosen = logits.topk(k).indices.sort(dim=1).values
    gates = logits.gather(1, chosen).softmax(dim=1)
    found = adapter.topk(logits, k)
    assert found.experts.dtype == torch.int32
    assert torch.equal(found.experts.long(), chosen)
    torch.testing.assert_close(found.values, gates, rtol=1e-6, atol=1e-6)

    routing = adapter.route(logits, k)
    flat = chosen.reshape(-1)
    to_flat = flat.argsort(stable=True)
    assert torch.equal(routing.histogram.long(), torch.bincount(flat, minlength=experts))
    assert torch.equal(routing.to_flat.long(), to_flat)
    assert torch.equal(routing.to_sorted.long(), to_flat.argsort())
    torch.testing.assert_close(routing.gates, gates.reshape(-1)[to_flat], rtol=1e-6, atol=1e-6)


def test_topk_of_a_k_that_is_no_power_of_two_is_inapplicable(adapter: Adapter) -> None:
    with pytest.raises(Inapplicable, match="power of two"):
        adapter.topk(torch.randn(4, 8), 3)


@pytest.mark.parametrize("kind", ["mxfp4", "mxfp8_e4m3", "mxfp8_e5m2"])
@pytest.mark.parametrize("axis", [0, 1])
def test_codec_returns_representable_data_unchanged(
    adapter: Adapter, generator: torch.Generator, kind: str, axis: int
) -> None:
    magnitudes = torch.tensor([0, 1, 2, 3, 4, 6])
    x = magnitudes[torch.randint(0, 6, (64, 96), generator=generator)] * 2.0
    x.select(axis, 0).fill_(12)
    x.select(axis, 32).fill_(-12)
    if x.shape[axis] > 64:
        x.select(axis, 64).fill_(12)
    values, scales = adapter.downcast(x.to(torch.bfloat16), kind, axis)
    assert scales.shape[axis] == x.shape[axis] // 32
    if kind == "mxfp4":
        assert (scales == 128).all()
    assert torch.equal(adapter.upcast(values, scales, torch.bfloat16, axis).float(), x)


def test_every_kernel_choice_reaches_the_library(adapter: Adapter, monkeypatch: pytest.MonkeyPatch) -> None:
    module = adapter.matmul_module  # type: ignore[attr-defined]
    chosen, seen = module.make_opt_flags, []

    def spy(*args: object, **options: object) -> object:
        seen.append(chosen(*args, **options))
        return seen[-1]

    monkeypatch.setattr(module, "make_opt_flags", spy)
    x, w = torch.ones(40, 64, dtype=torch.bfloat16), torch.ones(64, 32, dtype=torch.bfloat16)
    config = KernelConfig(persistent=False, split_k=2, block_m=32, epilogue_subtile=1, num_stages=1)
    weight = adapter.weight("bf16", w, None, "strided", lambda tensor: tensor)
    y = adapter.matmul(x, weight, out_dtype=torch.float32, config=config)
    assert torch.equal(y, torch.full((40, 32), 64.0))
    (flags,) = seen
    assert (flags.is_persistent, flags.split_k, flags.block_m) == (False, 2, 32)
    assert (flags.epilogue_subtile, flags.num_stages) == (1, 1)
