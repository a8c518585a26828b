"""Softmax, and attention by it."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from gpucheck.verify.bounds.estimate import ELEMENTARY, HALF_ULP, SIGNIFICAND, SMALLEST_NORMAL, Estimate
from gpucheck.verify.bounds.matrix_units import at_hand
from gpucheck.verify.bounds.sums import summing

FEWEST_KEYS = 16  # of a block that attention takes at once
ONE_HOT = 200.0  # in powers of two: a weight below 2^-200 of the largest is zero in fp32


def softmax(logits: Tensor, *, parts: int = 1, exact: bool = False) -> Estimate:
    """Softmax over the last axis of (..., n) float64 logits, computed in fp32; a row of nothing but -inf gives zeros.

    To first order a weight moves by its own relative error less that of the normaliser, which is the mean of those of
    all weights. A weight carries four fp32 roundings of its distance to the largest in its exponent and ELEMENTARY for
    the exponential, once more at each rise of the running maximum, which later parts of the row may bring; the
    quotient carries ELEMENTARY. The normaliser adds n positive terms: half an ulp each, or what :func:`summing` says
    if that is less.

    Args:
        parts: how many pieces of a row may be taken one after the other.
        exact: the largest logits of each row must be 1, 2, 4, ... and alone in having weight in fp32.

    Raises:
        ValueError: ``exact`` is asked for and a row does not allow it.
    """
    top = logits.amax(-1, keepdim=True)
    span = torch.where(logits.isneginf(), torch.inf, top - logits)
    weights = torch.exp(-span)
    total = weights.sum(-1, keepdim=True).clamp_min(1)  # 0 in rows of nothing but -inf
    value = weights / total
    if exact:
        return _ties(span, value)
    terms = logits.shape[-1]
    drift = torch.where(span.isinf(), 0.0, 2.0**-22 * span)
    mean = (value * drift).sum(-1, keepdim=True)
    energy = value.square().sum(-1, keepdim=True).sqrt()
    normaliser = summing(terms, torch.ones_like(energy), energy).clamp_max(HALF_ULP * terms)
    error = (drift + mean + ELEMENTARY * (2 + parts) + normaliser) * value + SMALLEST_NORMAL
    return Estimate(value, torch.where(span.isinf(), 0.0, error))


def _ties(span: Tensor, value: Tensor) -> Estimate:
    """Softmax of exact data: the quotient of one and a power of two for the largest logits of a row, else zero."""
    largest = span == 0
    count = largest.sum(-1)
    if bool((count & (count - 1)).any()):
        raise ValueError("exact data has rows whose largest logits are not 1, 2, 4, ...: their quotient rounds")
    nearest = float(span.masked_fill(largest, torch.inf).min()) / math.log(2) if span.numel() else math.inf
    if nearest < ONE_HOT:
        raise ValueError(f"exact data has a weight of 2^-{nearest:.4g}, over 2^-{ONE_HOT:g}: it could be seen")
    value = torch.where(largest, value, 0.0)
    return Estimate(value, None, float(value[largest].min()) if bool(largest.any()) else 1.0)


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    visible: Tensor,
    *,
    scale: float,
    dtype: torch.dtype,
    sink: float | Tensor | None = None,
    soft_cap: float = 0.0,
    exact: bool = False,
    stored: bool = False,
) -> Estimate:
    """Softmax attention of one head in fp32, its weights rounded to ``dtype`` for the sum and not in the normaliser.

    With o = sum_j p_j v_j, to first order a relative error d_j of the unnormalised weights moves o by
    sum_j p_j d_j (v_j - o). A score carries the error of a product (see :func:`product`), the exponent of a weight
    four fp32 roundings of its distance to the largest, and the exponential ELEMENTARY, once more at each rise of the
    running maximum (about log2 of the keys). The weights round to ``dtype`` independently, each by at most half an ulp
    (uniform: standard deviation ulp / sqrt(12)): 6 sigma of the sum, or the sum of all half ulps if that is less. The
    sums over keys and the normaliser carry what :func:`summing` says, the division ELEMENTARY. A soft cap c tanh(s / c)
    moves no further than its score does; its quotient of exponentials adds three ELEMENTARY of c, and its argument four
    fp32 roundings of the score.

    Args:
        q: (Q, D) float64.
        k: (K, D) float64.
        v: (K, D) float64.
        visible: (Q, K) bool, the keys each query sees; a row that sees nothing gives zeros.
        scale: positive factor of q.k.
        dtype: of the operands.
        sink: one more logit without a value, of all rows or of each (Q,).
        soft_cap: c of c tanh(score / c); 0: none.
        exact: every row must have a single weight that is not zero in fp32.
        stored: scores are stored as ``dtype`` before and after they are scaled, and their distances to the largest.

    Raises:
        ValueError: ``exact`` is asked for and a second weight is within 2^-ONE_HOT of the largest.
    """
    scores = q @ k.mT
    scaled = soft_cap * torch.tanh(scores * scale / soft_cap) if soft_cap else scores * scale
    logits = scaled.masked_fill(~visible, -torch.inf)
    sink_logit = logits.new_empty((len(logits), 1))
    sink_logit[:, 0] = -torch.inf if sink is None else sink
    logits = torch.cat([logits, sink_logit], 1)
    top = logits.amax(1, keepdim=True)
    span = torch.where(top.isneginf(), torch.inf, top - logits)
    if exact:
        return _one_hot(span, v)
    weights = torch.exp(-span)
    largest = 1 / weights.sum(1, keepdim=True).clamp_min(1)
    p = weights * largest
    value = p[:, :-1] @ v
    energy = torch.sqrt((p[:, :-1].square().float() @ v.square().float()).double())

    score_energy = torch.sqrt((q.square().float() @ k.square().float().mT).double())
    cores = at_hand().cores(dtype)
    score_error = summing(q.shape[1], scores, score_energy, cores) * scale
    if soft_cap:
        score_error = score_error + 3 * ELEMENTARY * soft_cap + 2.0**-22 * scaled.abs()
    score_error = torch.cat([score_error, 2.0**-22 * sink_logit.abs()], 1)
    if stored:
        rounding = 2.0 ** -SIGNIFICAND[dtype][0]
        score_error += torch.where(span.isinf(), 0.0, rounding * (2 * logits.abs() + span))
        score_error = torch.expm1(score_error)  # no longer small beside 1
    drift = p * (score_error + 2.0**-22 * span + ELEMENTARY * (2 + math.log2(max(len(k), 1))))
    drift = torch.where(p > 0, drift, 0.0)
    carried = (drift[:, :-1].float() @ v.abs().float()).double() + drift.sum(1, keepdim=True) * value.abs()

    seen = int(visible.sum(1).max())
    seen += -(-seen // FEWEST_KEYS)  # the running sums are scaled, and round, once a block of keys
    normaliser = summing(seen, torch.ones_like(largest), p.square().sum(1, keepdim=True).sqrt())
    own = summing(seen, value, energy, cores) + (normaliser + ELEMENTARY) * value.abs()
    return Estimate(value, carried + own + _rounded_weights(p[:, :-1], largest, v, dtype))


def _one_hot(span: Tensor, v: Tensor) -> Estimate:
    """Attention with exact data: each row is the value of its largest logit, zero where that is the sink's or none.

    span: (Q, K + 1) distance of each logit to the largest of its row, the sink last.
    """
    nearest = math.inf
    if len(span) and span.shape[1] > 1:
        nearest = torch.topk(span, 2, largest=False).values[:, 1].min().item() / math.log(2)
    if not nearest >= ONE_HOT:
        raise ValueError(f"exact data has a second weight of 2^-{nearest:.4g}, over 2^-{ONE_HOT:g}: it could be seen")
    return Estimate((span[:, :-1] == 0).double() @ v, None)


def _rounded_weights(p: Tensor, largest: Tensor, v: Tensor, dtype: torch.dtype) -> Tensor:
    """What rounding the weights to ``dtype`` moves the sum by; they are rounded while the largest is about 1."""
    if dtype == torch.float32:
        return torch.zeros((), dtype=torch.float64)
    bits, lowest = SIGNIFICAND[dtype]
    half_ulp = torch.where(p > 0, torch.maximum(p * 2.0**-bits, largest * 2.0 ** (lowest - bits)), 0.0).float()
    independent = 6 / math.sqrt(3) * torch.sqrt(half_ulp.square() @ v.square().float())
    return torch.minimum(half_ulp @ v.abs().float(), independent).double()
