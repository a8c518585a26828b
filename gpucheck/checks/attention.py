"""Flash attention with a Triton kernel of our own: masks, grouped heads, sinks.

It needs no library under test, so it tells a fault of Triton, the driver or the GPU from one of ``triton_kernels``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

from gpucheck.checks.base import Check, Runtime
from gpucheck.model.case import Case, CheckSpec, Param
from gpucheck.verify.expected import Axes, Expected

if TYPE_CHECKING:
    import torch
    from torch import Tensor

SYMBOL = 16  # coordinates of one symbol of a key's code
RAMP = 16  # coordinates that hold a key's position: half of them the high digit, half the low one
RAMP_BASE = 128
RAMP_STEP = 256.0
CODE_FACTOR = 128.0
FAR_LOGIT = 2.0**22  # beyond every score of exact data
MOST_EXACT_KEYS = 8192  # 8 * RAMP_STEP * keys stays within 2^24: scores are exact in fp32
REFERENCE_ROWS = 512  # queries of one head at a time: bounds the memory of the reference


class Attention(Check):
    """Softmax attention forward, compared whole."""

    needs_library = False
    late_inputs = ("q",)

    spec = CheckSpec(
        name="attention",
        summary="flash-attention forward: causal, full or sliding window, grouped heads, sinks (own Triton kernel)",
        params=(
            Param("mask", "causal", "which keys a query sees; window is causal too", ("causal", "full", "window")),
            Param("dtype", "bf16", "of q, k, v and the output", ("bf16", "fp16", "fp32")),
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
        for name in ("batch", "q_heads", "kv_heads", "q_len", "k_len"):
            if params[name] < 1:
                return f"{name} must be at least 1, not {params[name]}"
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
        return _retrieval(case, generator) if case.data == "exact" else _normal(case, generator)

    def reference(self, case: Case, inputs: dict[str, Tensor]) -> dict[str, Expected]:
        import torch

        from gpucheck.verify import bounds

        q, k, v, sinks = inputs["q"], inputs["k"], inputs["v"], inputs.get("sinks")
        value = torch.empty(q.shape, dtype=torch.float64)
        error = None if case.data == "exact" else torch.empty_like(value)
        allowed = visible(case)
        group = case["q_heads"] // case["kv_heads"]
        for batch in range(case["batch"]):
            for head in range(case["q_heads"]):
                keys, values = k[batch, head // group].double(), v[batch, head // group].double()
                for first in range(0, case["q_len"], REFERENCE_ROWS):
                    rows = slice(first, first + REFERENCE_ROWS)
                    part = bounds.attention(
                        q[batch, head, rows].double(),
                        keys,
                        values,
                        allowed[rows],
                        scale=case["head_dim"] ** -0.5,
                        dtype=q.dtype,
                        sink=None if sinks is None else float(sinks[head]),
                        exact=case.data == "exact",
                    )
                    value[batch, head, rows] = part.value
                    if error is not None and part.error is not None:
                        error[batch, head, rows] = part.error
        return {"o": Expected(bounds.Estimate(value, error), q.dtype)}

    def launch(self, case: Case, prepared: Any, runtime: Runtime) -> dict[str, Tensor]:
        import torch

        from gpucheck.checks.triton.flash_attention import flash_attention

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

    def axes(self, case: Case, inputs: dict[str, Tensor]) -> dict[str, Axes]:
        return {"o": Axes(("batch", "head", "query", "dimension"), (0, 0, block_rows(case), 0))}


def block_rows(case: Case) -> int:
    """Queries of one tile: the power of two that holds them all, from 16 to 128; fp32, without tensor cores, 32."""
    most = 32 if case["dtype"] == "fp32" else 128
    return min(most, max(16, 1 << (case["q_len"] - 1).bit_length()))


def visible_range(case: Case) -> tuple[Tensor, Tensor]:
    """First and last key that each query sees, both (q_len,) int64; first > last where it sees none."""
    import torch

    position = torch.arange(case["q_len"]) + case["k_len"] - case["q_len"]
    last = torch.full_like(position, case["k_len"] - 1) if case["mask"] == "full" else position
    first = (position - case["window"] + 1).clamp_min(0) if case["mask"] == "window" else torch.zeros_like(position)
    return first, last


def visible(case: Case) -> Tensor:
    """(q_len, k_len) bool: which keys each query sees."""
    import torch

    first, last = visible_range(case)
    key = torch.arange(case["k_len"])
    return (key >= first[:, None]) & (key <= last[:, None])


def _dtype(case: Case) -> torch.dtype:
    import torch

    return {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[case["dtype"]]


def _normal(case: Case, generator: torch.Generator) -> dict[str, Tensor]:
    """Scores of standard deviation 2, so that a few keys matter; sinks about as heavy as all keys together."""
    import torch

    deviation = 2.0
    q_shape = (case["batch"], case["q_heads"], case["q_len"], case["head_dim"])
    k_shape = (case["batch"], case["kv_heads"], case["k_len"], case["head_dim"])
    q = torch.randn(q_shape, generator=generator) * deviation
    inputs = {"q": q, "k": torch.randn(k_shape, generator=generator), "v": torch.randn(k_shape, generator=generator)}
    inputs = {name: tensor.to(_dtype(case)) for name, tensor in inputs.items()}
    if case["sinks"]:
        keys = min(case["k_len"], case["window"] or case["k_len"])
        inputs["sinks"] = torch.randn(case["q_heads"], generator=generator) + math.log(keys) + deviation**2 / 2
    return inputs


def _retrieval(case: Case, generator: torch.Generator) -> dict[str, Tensor]:
    """Inputs whose softmax is one-hot in fp32: each output row is one value row, bit for bit.

    A key holds its position as a ramp and a code. A query asks in one of three ways, drawn at random: for the largest
    position, so that its last visible key wins and every forbidden later key would beat it; for the smallest, so that
    its first visible key wins and every earlier one would beat it; or for the code of any one visible key. The sinks
    of every fourth head beat all keys (its output is zero), those of the others weigh nothing.
    """
    import torch

    batch, q_heads, kv_heads, q_len = case["batch"], case["q_heads"], case["kv_heads"], case["q_len"]
    first, last = visible_range(case)
    q = torch.empty(batch, q_heads, q_len, case["head_dim"])
    k = torch.empty(batch, kv_heads, case["k_len"], case["head_dim"])
    v = torch.randn(k.shape, generator=generator)
    group = q_heads // kv_heads
    for sequence in range(batch):
        for kv_head in range(kv_heads):
            keys, codes, ramp = _keys(case, generator)
            k[sequence, kv_head] = keys
            for head in range(kv_head * group, (kv_head + 1) * group):
                drawn = first + (torch.rand(q_len, generator=generator) * (last - first + 1)).long()
                target = drawn.clamp(0, case["k_len"] - 1)
                way = torch.randint(3, (q_len, 1), generator=generator)
                by_position = torch.where(way == 0, ramp, -ramp)
                q[sequence, head] = torch.where(way == 2, codes[target] * CODE_FACTOR, by_position)
    inputs = {name: tensor.to(_dtype(case)) for name, tensor in (("q", q), ("k", k), ("v", v))}
    if case["sinks"]:
        beats = torch.arange(q_heads) % 4 == 1
        inputs["sinks"] = torch.where(beats, FAR_LOGIT, -FAR_LOGIT)
    return inputs


def _keys(case: Case, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Keys of one head with their coordinates shuffled and signed at random: keys and codes (k_len, D), ramp (D,).

    A code is made of symbols, each one of 32 rows (a 16 x 16 Hadamard matrix and its negative) of which any two differ
    by at least SYMBOL in their product: the three symbols of a key name its number, and are repeated to fill head_dim.
    """
    import torch

    dims, count = case["head_dim"], case["k_len"]
    hadamard = torch.ones(1, 1)
    while len(hadamard) < SYMBOL:
        hadamard = torch.cat([torch.cat([hadamard, hadamard], 1), torch.cat([hadamard, -hadamard], 1)])
    symbols = torch.cat([hadamard, -hadamard])
    number = torch.randperm(count, generator=generator)
    blank = torch.zeros(count, RAMP)
    groups = (dims - RAMP) // SYMBOL
    codes = torch.cat([blank, *(symbols[number // len(symbols) ** (i % 3) % len(symbols)] for i in range(groups))], 1)

    position = torch.arange(count)[:, None].float()
    keys = codes.clone()
    keys[:, : RAMP // 2] = position // RAMP_BASE
    keys[:, RAMP // 2 : RAMP] = position % RAMP_BASE
    ramp = torch.zeros(dims)
    ramp[: RAMP // 2] = RAMP_BASE * RAMP_STEP
    ramp[RAMP // 2 : RAMP] = RAMP_STEP

    order = torch.randperm(dims, generator=generator)
    sign = torch.randint(2, (dims,), generator=generator) * 2.0 - 1
    return keys[:, order] * sign, codes[:, order] * sign, (ramp[order] * sign)
