"""What every adapter's products and element-wise kernels must do, against plain torch in float64."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch

from gpucheck.library.adapters.base import Adapter, KernelConfig, Routing, Weight
from gpucheck.model.errors import Inapplicable
from gpucheck.worker.device.guarded_memory import GuardedMemory, WatchedAllocation
from tests.library.adapters.conftest import block_factors, decode_mxfp4, route_by

DTYPES = {
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "fp32": torch.float32,
    "fp8_e4m3": torch.float8_e4m3fn,
    "fp8_e5m2": torch.float8_e5m2,
}
ALPHA, LIMIT = 1.702, 7.0


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(1)


def integers(*shape: int, limit: int = 4) -> torch.Tensor:
    return torch.randint(-limit, limit + 1, shape).double()


def moved(tensor: torch.Tensor) -> torch.Tensor:
    """A ``place`` that proves its result is what kernels read: it spoils the original."""
    copy = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype)
    copy.view(torch.uint8).copy_(tensor.view(torch.uint8)) if tensor.element_size() == 1 else copy.copy_(tensor)
    (tensor.view(torch.uint8) if tensor.element_size() == 1 else tensor).fill_(77)
    return copy


def dense_weight(adapter: Adapter, kind: str, values: torch.Tensor, scale: float | None = None) -> Weight:
    factor = None if scale is None else torch.tensor([scale])
    return adapter.weight(kind, values.to(DTYPES[kind]), factor, "default", moved)


def crowded_routing(tokens: int, per_token: int, experts: int) -> Routing:
    """Every token uses expert 1, none uses expert 2."""
    others = torch.tensor([e for e in range(experts) if e not in (1, 2)])
    rows = [torch.cat([torch.tensor([1]), others[torch.randperm(len(others))[: per_token - 1]]]) for _ in range(tokens)]
    routing = route_by(torch.stack(rows).sort(dim=1).values, experts)
    return replace(routing, gates=2.0 ** torch.randint(-3, 2, (tokens * per_token,)))


def routed_reference(x: torch.Tensor, w: torch.Tensor, routing: Routing, gather: bool) -> torch.Tensor:
    """fp64 product of each expert-sorted row with its expert's matrix."""
    rows = x[(routing.to_flat // routing.per_token).long()] if gather else x
    expert = torch.repeat_interleave(torch.arange(routing.experts), routing.histogram)
    return torch.einsum("rk,rkn->rn", rows, w[expert])


def summed(rows: torch.Tensor, routing: Routing) -> torch.Tensor:
    in_token_order = rows[routing.to_sorted.long()]
    return in_token_order.view(-1, routing.per_token, rows.shape[-1]).sum(1)


def swiglu_reference(x: torch.Tensor) -> torch.Tensor:
    gate, linear = x[..., ::2].clamp(max=LIMIT), x[..., 1::2].clamp(-LIMIT, LIMIT)
    return gate * torch.sigmoid(ALPHA * gate) * (linear + 1)


def mx_weight(adapter: Adapter, kind: str, *shape: int, layout: str = "strided") -> tuple[Weight, torch.Tensor]:
    """A random microscaled weight of logical (..., K, N) and its fp64 values."""
    *leading, k, n = shape
    scales = torch.randint(126, 129, (*leading, -(-k // 32), n), dtype=torch.uint8)
    if kind == "mxfp4":
        data = torch.randint(0, 256, (*leading, k // 2, n), dtype=torch.uint8)
        values = decode_mxfp4(data, scales, -2)
    else:
        numbers = integers(*shape, limit=8)
        data = numbers.to(torch.float8_e4m3fn)
        values = numbers * block_factors(scales, k, -2)
    return adapter.weight(kind, data, scales, layout, moved), values


@contextmanager
def launches() -> Iterator[list[tuple[str, dict[str, Any]]]]:
    from gpucheck.triton_hooks.interpreter import launch

    seen: list[tuple[str, dict[str, Any]]] = []

    def observer(name: str, arguments: dict[str, Any]) -> None:
        seen.append((name, arguments))

    launch.observers.append(observer)
    try:
        yield seen
    finally:
        launch.observers.remove(observer)


@pytest.mark.parametrize("kind", DTYPES)
def test_dense(adapter: Adapter, kind: str) -> None:
    x, w, bias = integers(33, 96), integers(96, 72), integers(72)
    output = adapter.matmul(
        x.to(DTYPES[kind]), dense_weight(adapter, kind, w), out_dtype=torch.float32, bias=bias.float()
    )
    assert output.dtype == torch.float32
    assert torch.equal(output.double(), x @ w + bias)


@pytest.mark.parametrize("order", ["rows", "columns"])
def test_dense_weight_strides(adapter: Adapter, order: str) -> None:
    x, w = integers(5, 48), integers(48, 40)
    data = w.bfloat16() if order == "rows" else w.bfloat16().mT.contiguous().mT
    weight = adapter.weight("bf16", data, None, "strided", moved)
    assert torch.equal(adapter.matmul(x.bfloat16(), weight, out_dtype=torch.float32).double(), x @ w)


def test_one_row_one_column(adapter: Adapter) -> None:
    x, w = integers(1, 64), integers(64, 8)
    output = adapter.matmul(x.bfloat16(), dense_weight(adapter, "bf16", w), out_dtype=torch.bfloat16)
    assert torch.equal(output, (x @ w).bfloat16())


def test_scales_of_fp8_operands(adapter: Adapter) -> None:
    x, w = integers(20, 64), integers(64, 32)
    weight = dense_weight(adapter, "fp8_e4m3", w, scale=0.5)
    output = adapter.matmul(x.to(torch.float8_e4m3fn), weight, out_dtype=torch.bfloat16, x_scale=torch.tensor([0.25]))
    assert torch.equal(output, (x @ w / 8).bfloat16())


@pytest.mark.parametrize("shared_bias", [False, True])
def test_batched(adapter: Adapter, shared_bias: bool) -> None:
    x, w = integers(3, 17, 64), integers(3, 64, 40)
    bias = integers(40) if shared_bias else integers(3, 40)
    output = adapter.matmul(x.bfloat16(), dense_weight(adapter, "bf16", w), out_dtype=torch.float32, bias=bias.float())
    assert torch.equal(output.double(), x @ w + (bias if shared_bias else bias[:, None]))


@pytest.mark.parametrize("per_token", [1, 2, 3])
@pytest.mark.parametrize("gather", [False, True])
@pytest.mark.parametrize("scatter", [False, True])
def test_routed(adapter: Adapter, per_token: int, gather: bool, scatter: bool) -> None:
    routing = crowded_routing(19, per_token, 6)
    x = integers(19 if gather else 19 * per_token, 64)
    w, bias = integers(6, 64, 40), integers(6, 40)
    weight = dense_weight(adapter, "bf16", w)
    if per_token == 3 and adapter.generation == "v3.4":
        with pytest.raises(Inapplicable, match="power of two"):
            adapter.matmul(x.bfloat16(), weight, out_dtype=torch.float32, routing=routing, gather=gather)
        return
    output = adapter.matmul(
        x.bfloat16(),
        weight,
        out_dtype=torch.float32,
        bias=bias.float(),
        routing=routing,
        gather=gather,
        scatter=scatter,
        gammas=routing.gates,
    )
    rows = routed_reference(x, w, routing, gather) + bias.repeat_interleave(routing.histogram, 0)
    rows = rows * routing.gates.double()[:, None]
    assert torch.equal(output.double(), summed(rows, routing) if scatter else rows)


def test_routed_bias_shared_by_experts(adapter: Adapter) -> None:
    routing = crowded_routing(9, 2, 4)
    x, w, bias = integers(18, 32), integers(4, 32, 24), integers(24)
    weight = dense_weight(adapter, "bf16", w)
    output = adapter.matmul(x.bfloat16(), weight, out_dtype=torch.float32, bias=bias.float(), routing=routing)
    assert torch.equal(output.double(), routed_reference(x, w, routing, False) + bias)


def test_scattered_rows_are_rounded_before_they_are_summed(adapter: Adapter) -> None:
    routing = crowded_routing(9, 2, 4)
    x, w = integers(18, 256, limit=8), integers(4, 256, 24, limit=8)
    weight = dense_weight(adapter, "bf16", w)
    output = adapter.matmul(x.bfloat16(), weight, out_dtype=torch.bfloat16, routing=routing, scatter=True)
    rows = routed_reference(x, w, routing, False)
    assert torch.equal(output, summed(rows.bfloat16().double(), routing).bfloat16())


@pytest.mark.parametrize("per_token", [1, 2])
@pytest.mark.parametrize("gather", [False, True])
@pytest.mark.parametrize("scatter", [False, True])
def test_rows_of_experts_that_other_ranks_hold_are_left_out(
    adapter: Adapter, per_token: int, gather: bool, scatter: bool
) -> None:
    tokens, experts = 19, 3
    ids = torch.rand(tokens, 2 * experts).topk(per_token).indices.sort(1).values
    ids[0] = experts  # a token without an expert here
    ids = torch.where(ids < experts, ids, -1).int()
    gates = 2.0 ** torch.randint(-3, 2, ids.shape)
    routing = adapter.routed(ids, gates, experts, partial=True)
    served = int(routing.histogram.sum())
    x, w = integers(tokens if gather else tokens * per_token, 64), integers(experts, 64, 40)
    with WatchedAllocation(GuardedMemory(torch.device("cpu"))):  # what is not written is NaN
        output = adapter.matmul(
            x.bfloat16(),
            dense_weight(adapter, "bf16", w),
            out_dtype=torch.float32,
            routing=routing,
            gather=gather,
            scatter=scatter,
            gammas=routing.gates,
        )
    flat = routing.to_flat[:served].long()
    expert = torch.repeat_interleave(torch.arange(experts), routing.histogram.long())
    rows = torch.einsum("rk,rkn->rn", x[flat // per_token] if gather else x[:served], w[expert])
    rows = rows * gates.flatten()[flat].double()[:, None]
    if not scatter:
        assert torch.equal(output[:served].double(), rows) and bool(output[served:].isnan().all())
        return
    by_token = torch.zeros(tokens, 40, dtype=torch.float64).index_add_(0, flat // per_token, rows)
    assert torch.equal(output.double(), by_token) and not output[0].any()


@pytest.mark.parametrize("split_k", [1, 2])
def test_a_dense_result_lies_in_the_memory_that_was_given(adapter: Adapter, split_k: int) -> None:
    x, w = integers(16, 256), integers(256, 24)
    given = torch.empty(16, 24)
    config = KernelConfig(split_k=split_k)
    output = adapter.matmul(
        x.bfloat16(), dense_weight(adapter, "bf16", w), out_dtype=torch.float32, into=given, config=config
    )
    assert output.data_ptr() == given.data_ptr() and output.shape == given.shape
    assert torch.equal(given.double(), x @ w)


def test_a_batched_result_lies_in_the_memory_that_was_given(adapter: Adapter) -> None:
    x, w, given = integers(3, 17, 64), integers(3, 64, 40), torch.empty(3, 17, 40)
    output = adapter.matmul(x.bfloat16(), dense_weight(adapter, "bf16", w), out_dtype=torch.float32, into=given)
    assert output.data_ptr() == given.data_ptr() and torch.equal(given.double(), x @ w)


@pytest.mark.parametrize("per_token", [1, 2])
@pytest.mark.parametrize("scatter", [False, True])
def test_a_routed_result_lies_in_the_memory_that_was_given(adapter: Adapter, per_token: int, scatter: bool) -> None:
    routing = crowded_routing(9, per_token, 4)
    x, w = integers(9 * per_token, 32), integers(4, 32, 24)
    weight, given = dense_weight(adapter, "bf16", w), torch.empty(9 if scatter else 9 * per_token, 24)

    def product() -> torch.Tensor:
        return adapter.matmul(
            x.bfloat16(), weight, out_dtype=torch.float32, routing=routing, scatter=scatter, into=given
        )

    if scatter and per_token > 1 and adapter.generation == "v3.4":
        with pytest.raises(Inapplicable, match="room for more rows"):
            product()
        return
    rows = routed_reference(x, w, routing, False)
    assert product().data_ptr() == given.data_ptr()
    assert torch.equal(given.double(), summed(rows, routing) if scatter else rows)


@pytest.mark.parametrize("kind", ["bf16", "fp16"])
def test_without_a_precision_config_the_result_has_the_dtype_of_x(adapter: Adapter, kind: str) -> None:
    x, w = integers(20, 64), integers(64, 24)
    with launches() as seen:
        output = adapter.matmul(x.to(DTYPES[kind]), dense_weight(adapter, kind, w), out_dtype=None)
    assert output.dtype == DTYPES[kind] and torch.equal(output, (x @ w).to(DTYPES[kind]))
    assert {name for name, _ in seen} & set(adapter.kernels["matmul"])


@pytest.mark.parametrize("routed", [False, True])
def test_a_scale_of_each_expert_or_product(adapter: Adapter, routed: bool) -> None:
    w, scales = integers(4, 32, 24), torch.tensor([0.5, 0.75, 2.0, 1.25])
    weight = adapter.weight("fp8_e5m2", w.to(DTYPES["fp8_e5m2"]), scales, "strided", moved)
    routing = crowded_routing(9, 2, 4) if routed else None
    x = integers(18, 32) if routed else integers(4, 7, 32)
    output = adapter.matmul(
        x.to(DTYPES["fp8_e5m2"]), weight, out_dtype=torch.float32, routing=routing, x_scale=torch.tensor([0.5])
    )
    scaled = w * torch.tensor([0.5, 0.75, 2.0, 1.25]).double()[:, None, None] / 2
    assert torch.equal(output.double(), routed_reference(x, scaled, routing, False) if routing else x @ scaled)


def test_views_keep_their_strides_or_are_refused_by_name(adapter: Adapter) -> None:
    """Nothing is made contiguous without a word: what the adapter places has the strides that the check gave."""
    placed: list[tuple[int, ...]] = []

    def place(tensor: torch.Tensor) -> torch.Tensor:
        placed.append(tensor.stride())
        return tensor

    w = integers(64, 96).bfloat16()
    adapter.weight("bf16", w[:, 8:40], None, "strided", place)
    adapter.weight("fp8_e5m2", w.to(DTYPES["fp8_e5m2"]).mT[8:72], None, "strided", place)
    assert placed == [(96, 1), (1, 96)]
    with pytest.raises(Inapplicable, match="stride 1 along K or N"):
        adapter.weight("bf16", w[:, ::2][::2], None, "strided", place)
    with pytest.raises(Inapplicable, match="dense rows only"):
        adapter.swiglu(w[:, 8:40], ALPHA, LIMIT)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_strided_mxfp4(adapter: Adapter, dtype: torch.dtype) -> None:
    weight, w = mx_weight(adapter, "mxfp4", 160, 48)
    x = integers(9, 160)
    assert torch.equal(adapter.matmul(x.to(dtype), weight, out_dtype=torch.float32).double(), x @ w)


@pytest.mark.parametrize("leading", [(), (2,)])
def test_default_mxfp4(adapter: Adapter, leading: tuple[int, ...]) -> None:
    weight, w = mx_weight(adapter, "mxfp4", *leading, 256, 64, layout="default")
    swizzled = "HOPPER" in str(weight.operand.storage.layout.name)
    assert swizzled == (torch.cuda.get_device_capability()[0] == 9)
    x = integers(*leading, 9, 256)
    assert torch.equal(adapter.matmul(x.bfloat16(), weight, out_dtype=torch.float32).double(), x @ w)
    if swizzled:
        with pytest.raises(Inapplicable, match="bf16 activations"):
            adapter.matmul(x.half(), weight, out_dtype=torch.float32)


@pytest.mark.parametrize("kind", ["mxfp4", "mxfp8_e4m3"])
def test_routed_microscaled(adapter: Adapter, kind: str) -> None:
    routing = crowded_routing(9, 2, 4)
    weight, w = mx_weight(adapter, kind, 4, 96, 40)
    x = integers(9, 96)
    output = adapter.matmul(x.bfloat16(), weight, out_dtype=torch.float32, routing=routing, gather=True, scatter=True)
    assert torch.equal(output.double(), summed(routed_reference(x, w, routing, True), routing))


def test_batched_microscaled(adapter: Adapter) -> None:
    weight, w = mx_weight(adapter, "mxfp4", 2, 64, 24)
    x = integers(2, 5, 64)
    assert torch.equal(adapter.matmul(x.bfloat16(), weight, out_dtype=torch.float32).double(), x @ w)


@pytest.mark.parametrize(
    ("kind", "parameters"),
    [
        ("bf16", ["W"]),
        ("fp8_e4m3", ["W", "WScale"]),
        ("mxfp4", ["W", "WMxScale"]),
        ("mxfp4 default", ["W", "WMxScale"]),
        ("mxfp8_e4m3", ["W", "WMxScale"]),
    ],
)
def test_kernels_read_placed_buffers_only(adapter: Adapter, kind: str, parameters: list[str]) -> None:
    placed: set[int] = set()

    def place(tensor: torch.Tensor) -> torch.Tensor:
        copy = moved(tensor)
        assert copy.stride() == tensor.stride()
        placed.add(copy.data_ptr())
        return copy

    kind, _, layout = kind.partition(" ")
    x, w = integers(8, 128), integers(128, 64)
    if kind.startswith("mx"):
        data = w.to(torch.float8_e4m3fn) if kind == "mxfp8_e4m3" else torch.zeros(64, 64, dtype=torch.uint8)
        weight = adapter.weight(kind, data, torch.full((4, 64), 127, dtype=torch.uint8), layout or "strided", place)
    else:
        weight = adapter.weight(kind, w.to(DTYPES[kind]), torch.ones(1) if "WScale" in parameters else None, "", place)
    with launches() as seen:
        dtype = DTYPES.get(kind, torch.bfloat16)
        adapter.matmul(x.to(dtype), weight, out_dtype=torch.float32, config=KernelConfig(persistent=False))
    values = next(kwargs for name, kwargs in seen if name in adapter.kernels["matmul"])
    assert len(placed) == len(parameters)
    assert {values[parameter].data_ptr() for parameter in parameters} == placed


def test_weight_serves_many_calls(adapter: Adapter) -> None:
    weight, w = mx_weight(adapter, "mxfp4", 128, 64, layout="default")
    x = integers(5, 128)
    for _ in range(2):
        assert torch.equal(adapter.matmul(x.bfloat16(), weight, out_dtype=torch.float32).double(), x @ w)
    assert weight.fresh_scale() is not weight.fresh_scale()


@pytest.mark.parametrize("kind", ["bf16", "mxfp4"])
def test_fused_swiglu(adapter: Adapter, kind: str) -> None:
    routing = crowded_routing(7, 2, 4)
    if kind == "mxfp4":
        weight, w = mx_weight(adapter, kind, 4, 64, 32)
    else:
        w = integers(4, 64, 32) / 8
        weight = dense_weight(adapter, kind, w)
    x = integers(7, 64) / 16
    output = adapter.matmul(
        x.bfloat16(), weight, out_dtype=torch.float32, routing=routing, gather=True, swiglu=(ALPHA, LIMIT)
    )
    assert output.shape == (14, 16)
    torch.testing.assert_close(
        output.double(), swiglu_reference(routed_reference(x, w, routing, True)), rtol=1e-5, atol=1e-5
    )


def test_standalone_swiglu(adapter: Adapter) -> None:
    x = torch.randn(13, 40) * 5
    output = adapter.swiglu(x, ALPHA, LIMIT)
    assert output.shape == (13, 20)
    torch.testing.assert_close(output.double(), swiglu_reference(x.double()), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("config", [KernelConfig(split_k=3), KernelConfig(block_m=64), KernelConfig(persistent=False)])
def test_kernel_choice(adapter: Adapter, config: KernelConfig) -> None:
    x, w = integers(33, 256), integers(256, 40)
    weight = dense_weight(adapter, "bf16", w)
    with launches() as seen:
        output = adapter.matmul(x.bfloat16(), weight, out_dtype=torch.float32, config=config)
    values = next(kwargs for name, kwargs in seen if name in adapter.kernels["matmul"])
    assert config.split_k in (None, values["SPLIT_K"])
    assert config.block_m in (None, values["BLOCK_M"])
    assert torch.equal(output.double(), x @ w)


def test_products_are_asked_for_in_full_precision(adapter: Adapter) -> None:
    x, w = integers(16, 64), integers(64, 16)
    with launches() as seen:
        adapter.matmul(x.float(), dense_weight(adapter, "fp32", w), out_dtype=torch.float32)
    (launched,) = (kwargs for name, kwargs in seen if name in adapter.kernels["matmul"])
    assert (launched["MAX_NUM_IMPRECISE_ACC"], launched["ALLOW_TF32"]) == (None, False)


def test_persistent_kernel(adapter: Adapter) -> None:
    x, w = integers(33, 256), integers(256, 64)
    weight = dense_weight(adapter, "bf16", w)
    config = KernelConfig(persistent=True)
    if torch.cuda.get_device_capability()[0] < 9:
        with pytest.raises(Inapplicable, match="is_persistent"):
            adapter.matmul(x.bfloat16(), weight, out_dtype=torch.float32, config=config)
        return
    with launches() as seen:
        output = adapter.matmul(x.bfloat16(), weight, out_dtype=torch.float32, config=config)
    assert [name for name, _ in seen if name in adapter.kernels["matmul"]][0].startswith("_p_matmul")
    assert torch.equal(output.double(), x @ w)


def test_refused_choice_is_inapplicable_and_leaves_no_trace(adapter: Adapter) -> None:
    x = integers(16, 64)
    weight, w = mx_weight(adapter, "mxfp4", 64, 16)  # strided: not for the tensor memory accelerator
    with pytest.raises(Inapplicable, match="is_persistent"):
        adapter.matmul(x.bfloat16(), weight, out_dtype=torch.float32, config=KernelConfig(persistent=True, block_m=64))
    with launches() as seen:
        output = adapter.matmul(x.bfloat16(), weight, out_dtype=torch.float32)
    values = next(kwargs for name, kwargs in seen if name in adapter.kernels["matmul"])
    assert values["BLOCK_M"] == 16
    assert torch.equal(output.double(), x @ w)


def test_gammas_with_fused_activation_are_inapplicable(adapter: Adapter) -> None:
    weight = dense_weight(adapter, "bf16", integers(64, 16))
    x = integers(4, 64).bfloat16()
    with pytest.raises(Inapplicable, match="gammas"):
        adapter.matmul(x, weight, out_dtype=torch.float32, gammas=torch.ones(4), swiglu=(ALPHA, LIMIT))


def test_fp8_activations_with_microscaled_weights_are_inapplicable(adapter: Adapter) -> None:
    weight, _ = mx_weight(adapter, "mxfp4", 64, 16)
    with pytest.raises(Inapplicable, match="16-bit activations"):
        adapter.matmul(integers(4, 64).to(torch.float8_e4m3fn), weight, out_dtype=torch.float32)


def test_each_method_launches_the_kernels_it_names(adapter: Adapter) -> None:
    x = integers(16, 64)
    values, scales = adapter.downcast(x.bfloat16() + 1, "mxfp4", 1)
    calls = {
        "matmul": lambda: adapter.matmul(
            x.bfloat16(), dense_weight(adapter, "bf16", integers(64, 16)), out_dtype=torch.float32
        ),
        "topk": lambda: adapter.topk(torch.randn(4, 8), 2),
        "route": lambda: adapter.route(torch.randn(4, 8), 2),
        "swiglu": lambda: adapter.swiglu(x.float(), ALPHA, LIMIT),
        "downcast": lambda: adapter.downcast(x.bfloat16(), "mxfp4", 1),
        "upcast": lambda: adapter.upcast(values, scales, torch.bfloat16, 1),
    }
    for method, call in calls.items():
        with launches() as seen:
            call()
        assert {name for name, _ in seen} & set(adapter.kernels[method]), method


@pytest.mark.parametrize("layout", ["strided", "default"])
def test_a_weight_is_read_back_as_it_was_given(adapter: Adapter, layout: str) -> None:
    data = torch.randint(0, 256, (3, 160, 256), dtype=torch.uint8)
    scales = torch.randint(0, 255, (3, 12, 256), dtype=torch.uint8)  # two groups more than there are values, as padding
    weight = adapter.weight("mxfp4", data, scales[:, :10] if layout == "strided" else scales, layout, moved)
    values, read = adapter.read_back(weight.operand), adapter.read_back(weight.fresh_scale())
    assert torch.equal(values[:, :160, :256], data)
    assert torch.equal(read[:, :10, :256], scales[:, :10])
    weight.operand.storage.data[0, 0, 0] ^= 1
    assert not torch.equal(adapter.read_back(weight.operand)[:, :160, :256], data)
