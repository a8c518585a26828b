"""Flash attention with a Triton kernel of our own: masks, grouped heads, sinks.

It needs no library under test, so it tells a fault of Triton, the driver or the GPU from one of ``triton_kernels``.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

from gpucheck.checks.base import OPERANDS, Check, Runtime
from gpucheck.checks.on_use import bounds, extremes, onehot_attention, operands, torch
from gpucheck.model.case import DATA_KINDS, Case, CheckSpec, Param
from gpucheck.model.record import Cost
from gpucheck.verify.expected import Axes, Expected

if TYPE_CHECKING:
    from torch import Tensor

    from gpucheck.verify.bounds import Estimate

MOST_EXACT_KEYS = 8192  # 8 * RAMP_STEP * keys stays within 2^24: scores are exact in fp32
DEVIATION = 2.0  # of the scores of normal data: a few keys matter
REFERENCE_ROWS = 512  # queries, of one head or several, at a time: bounds the memory of the reference


class Attention(Check):
    """Softmax attention forward, compared whole."""

    needs_library = False
    late_inputs = ("q",)

    spec = CheckSpec(
        name="attention",
        summary="flash-attention forward: causal, full or sliding window, grouped heads, sinks (own Triton kernel)",
        data_kinds=DATA_KINDS,
        sizes=("batch", "q_heads", "kv_heads", "q_len", "k_len"),
        params=(
            Param("mask", "causal", "which keys a query sees; window is causal too", ("causal", "full", "window")),
            Param("dtype", "bf16", "of q, k, v and the output", OPERANDS),
            Param("batch", 1, "sequences", label="b"),
            Param("q_heads", 8, "query heads", label="h"),
            Param("kv_heads", 1, "key and value heads, each shared by as many query heads", label="kv"),
            Param("q_len", 128, "queries; the last one stands at the last key", label="q"),
            Param("k_len", 128, "keys", label="k"),
            Param("head_dim", 64, "coordinates of a head", (64, 128), label="d"),
            Param("window", 0, "keys a query sees at most; for mask window"),
            Param("sinks", False, "one more logit a head in the softmax, without a value"),
            Param("guard", False, "launch under a device guard; without one it goes to the current device"),
        ),
    )

    def validate(self, params: Mapping[str, Any], data: str) -> str | None:
        if params["q_heads"] % params["kv_heads"]:
            return f"q_heads {params['q_heads']} is not a multiple of kv_heads {params['kv_heads']}"
        if params["batch"] * params["q_heads"] > 65535:
            return "batch * q_heads must be at most 65535, the largest second dimension of a grid"
        if params["mask"] == "window" and params["window"] < 1:
            return "mask window needs a window of at least 1"
        if params["mask"] != "window" and params["window"] != 0:
            return f"mask {params['mask']} takes no window: leave it 0 or set mask to window"
        if data == "exact" and params["k_len"] > MOST_EXACT_KEYS:
            return f"exact data tells at most {MOST_EXACT_KEYS} keys apart, not {params['k_len']}"
        return None

    def inputs(self, case: Case, generator: torch.Generator) -> dict[str, Tensor]:
        if case.data == "wide":
            return _wide(_normal(case, generator), generator)
        return _onehot(case, generator) if case.data == "exact" else _normal(case, generator)

    def reference(self, case: Case, inputs: dict[str, Tensor]) -> dict[str, Expected]:
        q, k, v, sinks = inputs["q"], inputs["k"], inputs["v"], inputs.get("sinks")
        of_nan = torch.isnan(q).any(-1)
        if case.data == "wide":
            q = q.masked_fill(of_nan[..., None], 0.0)
        value = torch.empty(q.shape, dtype=torch.float64)
        error = None if case.data == "exact" else torch.empty_like(value)
        allowed = visible(case)
        group = case["q_heads"] // case["kv_heads"]
        for batch, kv in itertools.product(range(case["batch"]), range(case["kv_heads"])):
            own = slice(kv * group, (kv + 1) * group)
            their = None if sinks is None else sinks[own]
            part = heads(q[batch, own], k[batch, kv], v[batch, kv], allowed, sinks=their, exact=error is None)
            value[batch, own] = part.value
            if error is not None and part.error is not None:
                error[batch, own] = part.error
        if case.data != "wide":
            return {"o": Expected(bounds.Estimate(value, error), q.dtype)}
        o, also = extremes.rows_of_nan(bounds.Estimate(value, error), of_nan)
        return {"o": Expected(o, q.dtype, also=also)}

    def launch(self, case: Case, prepared: Any, runtime: Runtime) -> dict[str, Tensor]:
        from gpucheck.checks.kernels.flash_attention_kernel import flash_attention

        guarded = case["guard"] and runtime.device.type == "cuda"
        with torch.cuda.device(runtime.device) if guarded else nullcontext():
            out = flash_attention(
                prepared["q"],
                prepared["k"],
                prepared["v"],
                causal=case["mask"] != "full",
                window=case["window"],
                sinks=prepared.get("sinks"),
                block_rows=block_rows(case),
            )
        return {"o": out}

    def kernels(self, case: Case, runtime: Runtime) -> tuple[str, ...]:
        return ("_flash_attention_forward",)

    def cost(self, case: Case, inputs: dict[str, Tensor]) -> Cost:
        first, last = visible_range(case)
        seeing = last >= first
        pairs = int((last - first + 1).clamp_min(0).sum())
        keys = int(last[seeing].max() - first[seeing].min() + 1) if bool(seeing.any()) else 0
        flops = 4.0 * case["batch"] * case["q_heads"] * pairs * case["head_dim"]
        read = operands.size(inputs["k"], inputs["v"]) * keys / case["k_len"]
        sinks = operands.size(inputs["sinks"]) if "sinks" in inputs else 0
        return Cost(flops, read + sinks + 2 * operands.size(inputs["q"]))  # the result is as large as q

    def plain(self, case: Case, inputs: dict[str, Tensor]) -> Callable[[], Tensor]:
        """SDPA, with a sink as one more key that has no value."""
        q, k, v, sinks, seen = inputs["q"], inputs["k"], inputs["v"], inputs.get("sinks"), visible(case)
        options: dict[str, Any] = {"enable_gqa": True} if case["q_heads"] != case["kv_heads"] else {}
        attend = torch.nn.functional.scaled_dot_product_attention
        if sinks is not None:
            k, v = (torch.nn.functional.pad(each, (0, 0, 0, 1)) for each in (k, v))
            hidden = torch.zeros(seen.shape, dtype=q.dtype, device=q.device)
            hidden.masked_fill_(~seen.to(q.device), float("-inf"))
            per_head = sinks.to(q.dtype)[:, None, None].expand(-1, len(seen), 1)
            bias = torch.cat([hidden.expand(len(sinks), -1, -1), per_head], -1)[None]
            return lambda: attend(q, k, v, attn_mask=bias, **options)
        if bool(seen.all()):
            return lambda: attend(q, k, v, **options)
        if case["mask"] == "causal" and case["q_len"] == case["k_len"]:
            return lambda: attend(q, k, v, is_causal=True, **options)
        mask = seen.to(q.device)
        return lambda: attend(q, k, v, attn_mask=mask, **options)

    def axes(self, case: Case, inputs: dict[str, Tensor]) -> dict[str, Axes]:
        return {"o": Axes(("batch", "head", "query", "dimension"), (0, 0, block_rows(case), 0))}


def heads(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    allowed: Tensor,
    *,
    sinks: Tensor | None = None,
    soft_cap: float = 0.0,
    factor: float = 1.0,
    exact: bool = False,
) -> Estimate:
    """The reference of the heads that share a key and value head: (H, Q, D).

    Args:
        q: (H, Q, D).
        k: (K, D).
        v: (K, D).
        allowed: (Q, K) bool, the keys each query sees.
        sinks: (H,), one more logit of each head without a value.
        soft_cap: c of c tanh(score / c); 0: none.
        factor: of the scores, beside 1 / sqrt(D).
        exact: the data is exact.
    """
    keys, values = k.double(), v.double()
    value = torch.empty(q.shape, dtype=torch.float64)
    error = None if exact else torch.empty_like(value)
    for begin in range(0, q.shape[1], REFERENCE_ROWS):
        seen = allowed[begin : begin + REFERENCE_ROWS]
        many = max(1, REFERENCE_ROWS // len(seen))
        for first in range(0, len(q), many):
            rows = q[first : first + many, begin : begin + len(seen)]
            part = bounds.attention(
                rows.flatten(0, 1).double(),
                keys,
                values,
                seen.repeat(len(rows), 1),
                scale=q.shape[2] ** -0.5 * factor,
                dtype=q.dtype,
                sink=None if sinks is None else sinks[first : first + many].double().repeat_interleave(len(seen)),
                soft_cap=soft_cap,
                exact=exact,
            )
            at = (slice(first, first + many), slice(begin, begin + len(seen)))
            value[at] = part.value.view(rows.shape)
            if error is not None and part.error is not None:
                error[at] = part.error.view(rows.shape)
    return bounds.Estimate(value, error)


def block_rows(case: Case) -> int:
    """Queries of one tile: the power of two that holds them all, from 16 to 128; fp32, without tensor cores, 32."""
    most = 32 if case["dtype"] == "fp32" else 128
    return min(most, max(16, 1 << (case["q_len"] - 1).bit_length()))


def visible_range(case: Case) -> tuple[Tensor, Tensor]:
    """First and last key that each query sees, both (q_len,) int64; first > last where it sees none."""
    position = torch.arange(case["q_len"]) + case["k_len"] - case["q_len"]
    last = torch.full_like(position, case["k_len"] - 1) if case["mask"] == "full" else position
    first = (position - case["window"] + 1).clamp_min(0) if case["mask"] == "window" else torch.zeros_like(position)
    return first, last


def visible(case: Case) -> Tensor:
    """(q_len, k_len) bool: which keys each query sees."""
    first, last = visible_range(case)
    key = torch.arange(case["k_len"])
    return (key >= first[:, None]) & (key <= last[:, None])


def _normal(case: Case, generator: torch.Generator) -> dict[str, Tensor]:
    q_shape = (case["batch"], case["q_heads"], case["q_len"], case["head_dim"])
    k_shape = (case["batch"], case["kv_heads"], case["k_len"], case["head_dim"])
    q = torch.randn(q_shape, generator=generator) * DEVIATION
    inputs = {"q": q, "k": torch.randn(k_shape, generator=generator), "v": torch.randn(k_shape, generator=generator)}
    inputs = {name: tensor.to(operands.DTYPES[case["dtype"]]) for name, tensor in inputs.items()}
    if case["sinks"]:
        keys = min(case["k_len"], case["window"] or case["k_len"])
        inputs["sinks"] = normal_sinks(case["q_heads"], keys, generator)
    return inputs


def _wide(inputs: dict[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
    """Normal data whose coordinates spread over magnitudes, those of keys against those of queries.

    In each head the second query is NaN, the third -0.0 and the fourth subnormal, where there are as many. Keys and
    values stay finite: a kernel multiplies those that a query does not see by zero, which no NaN stands.
    """
    dtype, (queries, coordinates) = inputs["q"].dtype, inputs["q"].shape[-2:]
    end = 6 if dtype == torch.float16 else 40
    exponent, other = (torch.randint(-end, end + 1, (coordinates,), generator=generator).float() for _ in range(2))
    factors = {"q": torch.exp2(exponent), "k": torch.exp2(-exponent), "v": torch.exp2(other)}
    made = {name: (inputs[name].float() * factor).to(dtype) for name, factor in factors.items()}
    small = (0.1 + 0.8 * torch.rand(coordinates, generator=generator)) * extremes.SMALLEST_NORMAL[dtype]
    for row, value in enumerate((torch.tensor(torch.nan), torch.tensor(-0.0), small), 1):
        if row < queries:
            made["q"][..., row, :] = value.to(dtype)
    return {**inputs, **made}


def normal_sinks(q_heads: int, keys: int, generator: torch.Generator) -> Tensor:
    """(q_heads,) float32: sinks about as heavy as all ``keys`` together where scores have deviation DEVIATION."""
    return torch.randn(q_heads, generator=generator) + math.log(keys) + DEVIATION**2 / 2


def _onehot(case: Case, generator: torch.Generator) -> dict[str, Tensor]:
    """Exact data: see :mod:`gpucheck.checks.onehot_attention`."""
    batch, q_heads, kv_heads, q_len = case["batch"], case["q_heads"], case["kv_heads"], case["q_len"]
    first, last = visible_range(case)
    q = torch.empty(batch, q_heads, q_len, case["head_dim"])
    k = torch.empty(batch, kv_heads, case["k_len"], case["head_dim"])
    v = torch.randn(k.shape, generator=generator)
    group = q_heads // kv_heads
    for sequence in range(batch):
        for kv_head in range(kv_heads):
            book = onehot_attention.key_book(case["head_dim"], case["k_len"], generator)
            k[sequence, kv_head] = book.keys
            for head in range(kv_head * group, (kv_head + 1) * group):
                drawn = first + (torch.rand(q_len, generator=generator) * (last - first + 1)).long()
                q[sequence, head] = book.ask(drawn.clamp(0, case["k_len"] - 1), generator)
    inputs = {name: tensor.to(operands.DTYPES[case["dtype"]]) for name, tensor in (("q", q), ("k", k), ("v", v))}
    if case["sinks"]:
        inputs["sinks"] = onehot_attention.sinks(q_heads)
    return inputs
