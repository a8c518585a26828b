"""The same work in plain torch, for its time: operands dequantised ahead, one product an expert, SDPA for attention.

Nothing is judged by it. Each function takes a case's inputs on any device and gives the call to time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from gpucheck.checks.data import BLOCK, DTYPES, E2M1
from gpucheck.model.case import Case

Call = Callable[[], Tensor]
Span = tuple[int, slice]
"""An expert and its rows in expert-sorted order."""


def swiglu(x: Tensor, alpha: float, limit: float) -> Tensor:
    """gpt-oss swiglu of interleaved columns (..., N) -> (..., N/2)."""
    gate, linear = x[..., 0::2].clamp(max=limit), x[..., 1::2].clamp(-limit, limit)
    return gate * torch.sigmoid(alpha * gate) * (linear + 1)


def weight(kind: str, values: Tensor, scales: Tensor | None) -> Tensor:
    """A weight (..., K, N) in the dtype of its product: its own, or bf16, which holds every fp8 and mx value.

    Args:
        kind: a format of :func:`gpucheck.checks.data.weights`.
        values: fp4 codes packed along K, even k low, or numbers.
        scales: e8m0 bytes (..., ceil(K/32), N) of mx kinds.
    """
    if not kind.startswith("mx"):
        return values.to(torch.bfloat16) if kind.startswith("fp8") else values
    assert scales is not None
    if kind == "mxfp4":
        table = torch.cat([E2M1, -E2M1]).to(values.device, torch.bfloat16)
        pairs = torch.stack((table[(values & 15).int()], table[(values >> 4).int()]), dim=-2)
        plain = pairs.flatten(-3, -2)
    else:
        plain = values.to(torch.bfloat16)
    factors = torch.exp2(scales.float() - 127).to(torch.bfloat16)
    return plain * factors.repeat_interleave(BLOCK, dim=-2)[..., : plain.shape[-2], :]


def spans(inputs: dict[str, Tensor]) -> list[Span]:
    """The experts that have rows."""
    found, start = [], 0
    for expert, count in enumerate(inputs["histogram"].tolist()):
        if count:
            found.append((expert, slice(start, start + count)))
        start += count
    return found


def expert_weights(kind: str, inputs: dict[str, Tensor], name: str, served: list[Span]) -> dict[int, Tensor]:
    """The weights (K, N) of the experts that have rows."""
    scales = inputs.get(f"{name}_scale") if kind.startswith("mx") else None
    return {e: weight(kind, inputs[name][e], None if scales is None else scales[e]) for e, _ in served}


def summed(y: Tensor, inputs: dict[str, Tensor], per_token: int) -> Tensor:
    """Expert-sorted rows (R, N) summed over the experts of a token (T, N); without a position they count as zero."""
    index = inputs["to_sorted"].long()
    if len(y) < index.numel():
        y = torch.nn.functional.pad(y, (0, 0, 0, 1))  # the index -1 takes the last row
    return y[index].view(-1, per_token, y.shape[-1]).sum(1)


def sorted_tokens(inputs: dict[str, Tensor], served: list[Span], per_token: int) -> Tensor:
    """The token of each expert-sorted row that some expert here has: (R,) int64."""
    rows = served[-1][1].stop if served else 0
    return inputs["to_flat"][:rows].long() // per_token


def matmul(case: Case, inputs: dict[str, Tensor]) -> Call:
    """The ``matmul`` check."""
    kind, out, bias = case["weight"], DTYPES[case["out"]], inputs.get("bias")
    x = inputs["x"].to(torch.bfloat16) if kind.startswith("fp8") else inputs["x"]
    factors = inputs["x_scale"] * inputs["w_scale"] if kind.startswith("fp8") else None

    def finish(y: Tensor, shift: Tensor | None, expert: int | None = None) -> Tensor:
        if factors is not None:
            of_each = factors.expand(len(inputs["w"])) if inputs["w"].ndim == 3 else factors
            y = y * (of_each[expert] if expert is not None else of_each.view(-1, *[1] * (y.ndim - 1)))
        y = y if shift is None else y + shift
        return swiglu(y, float(case["alpha"]), float(case["limit"])) if case["swiglu"] else y

    if case["mode"] != "routed":
        w = weight(kind, inputs["w"], inputs.get("w_scale") if kind.startswith("mx") else None)
        shift = bias[:, None] if bias is not None and case["mode"] == "batched" else bias
        return lambda: finish(x @ w, shift).to(out)
    served = spans(inputs)
    token = sorted_tokens(inputs, served, case["top_k"])
    ws = expert_weights(kind, inputs, "w", served)
    columns = case["n"] // 2 if case["swiglu"] else case["n"]

    def call() -> Tensor:
        rows = x[token] if case["gather"] else x[: len(token)]
        y = rows.new_empty((len(rows), columns), dtype=out)
        for expert, span in served:
            y[span] = finish(rows[span] @ ws[expert], None if bias is None else bias[expert], expert).to(out)
        y = y * inputs["gates"][: len(token), None] if case["gammas"] else y
        return (summed(y, inputs, case["top_k"]) if case["scatter"] else y).to(out)

    return call


def moe(case: Case, inputs: dict[str, Tensor], alpha: float, limit: float) -> Call:
    """The ``moe`` check."""
    kind, x, served = case["weight"], inputs["x"], spans(inputs)
    first, second = (expert_weights(kind, inputs, name, served) for name in ("w1", "w2"))
    token = sorted_tokens(inputs, served, case["top_k"])

    def call() -> Tensor:
        rows = x[token]
        y = torch.empty_like(rows)
        for expert, span in served:
            inner = swiglu(rows[span] @ first[expert] + inputs["bias1"][expert], alpha, limit).to(x.dtype)
            y[span] = (inner @ second[expert] + inputs["bias2"][expert]).to(x.dtype)
        return summed(y * inputs["gates"][: len(token), None], inputs, case["top_k"]).to(x.dtype)

    return call


def attention(case: Case, inputs: dict[str, Tensor], visible: Tensor) -> Call:
    """The ``attention`` check: SDPA, with a sink as one more key that has no value.

    Args:
        visible: (q_len, k_len) bool: which keys each query sees.
    """
    q, k, v, sinks = inputs["q"], inputs["k"], inputs["v"], inputs.get("sinks")
    options: dict[str, Any] = {"enable_gqa": True} if case["q_heads"] != case["kv_heads"] else {}
    attend = torch.nn.functional.scaled_dot_product_attention
    if sinks is not None:
        k, v = (torch.nn.functional.pad(each, (0, 0, 0, 1)) for each in (k, v))
        seen = torch.zeros(visible.shape, dtype=q.dtype, device=q.device)
        seen.masked_fill_(~visible.to(q.device), float("-inf"))
        per_head = sinks.to(q.dtype)[:, None, None].expand(-1, len(visible), 1)
        bias = torch.cat([seen.expand(len(sinks), -1, -1), per_head], -1)[None]
        return lambda: attend(q, k, v, attn_mask=bias, **options)
    if bool(visible.all()):
        return lambda: attend(q, k, v, **options)
    if case["mask"] == "causal" and case["q_len"] == case["k_len"]:
        return lambda: attend(q, k, v, is_causal=True, **options)
    mask = visible.to(q.device)
    return lambda: attend(q, k, v, attn_mask=mask, **options)
