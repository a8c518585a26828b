"""An expert block whose numbers are whole and so small that bf16 holds every partial sum, and its reference.

Whoever adds up such a block, in whatever parts and order, gets the same bits: ranks that share it must give exactly
what one rank gives alone. The swiglu is so steep that it is a ramp, which fp32 computes without rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Generator, Tensor

from gpucheck.checks import experts, operands
from gpucheck.model.case import Case
from gpucheck.verify import bounds
from gpucheck.verify.bounds import Estimate

SWIGLU = (bounds.STEEP, 2.0)
"""alpha and limit: whole numbers from -2 to 6 come out."""
TERMS = 4  # of which a column of the first product is the sum
PARTS = 8  # of the width; a column of the second product has one term of each, so that every slice has a share in it
MOST_PER_TOKEN = 4  # experts: more would add up to more than bf16 holds
TOKEN, BIAS = 3, (1, 3)  # largest magnitudes of tokens and of both biases
EMPTY = 0.2  # share of slots without an expert, where a case asks for some

Pattern = Callable[[tuple[int, ...], Generator], Tensor]


def make(case: Case, generator: Generator) -> dict[str, Tensor]:
    """Tokens ``x`` (T, H), choices ``ids`` and ``id_gates`` (T, k) and the weights of all experts, not yet sliced."""
    tokens, k, count = case["m"], case["top_k"], case["experts"]
    hidden, inner = case["hidden"], case["intermediate"]
    ids = experts.choose(tokens, count, k, case["load"], generator)
    if case["empty"]:
        ids = torch.where(torch.rand(ids.shape, generator=generator) < EMPTY, -1, ids)
    doubled = torch.randint(k, (tokens, 1), generator=generator)
    made = {
        "x": operands.signed_integers((tokens, hidden), 1, TOKEN, generator).to(torch.bfloat16),
        "ids": ids.to(torch.int32),
        "id_gates": torch.ones(ids.shape).scatter(1, doubled, 2.0),
    }
    shapes = ((count, hidden, 2 * inner), (count, inner, hidden))
    for name, shape, pattern, bias in zip("12", shapes, (_terms, _one_of_each_part), BIAS, strict=True):
        weight = encoded(case["weight"], _signs(shape, pattern, generator), generator)
        made |= {key.replace("w", "w" + name, 1): value for key, value in weight.items()}
        made["bias" + name] = operands.signed_integers((count, shape[2]), 1, bias, generator)
    return made


def _signs(shape: tuple[int, ...], pattern: Pattern, generator: Generator) -> Tensor:
    """1 and -1 in the rows of (E, K, N) that a pattern names for each column, else 0; float32."""
    rows = pattern(shape, generator)
    signs = operands.signed_integers(tuple(rows.shape), 1, 1, generator)
    return torch.zeros(shape).scatter(1, rows, signs)


def _terms(shape: tuple[int, ...], generator: Generator) -> Tensor:
    count, terms, columns = shape
    return torch.randint(terms, (count, TERMS, columns), generator=generator)


def _one_of_each_part(shape: tuple[int, ...], generator: Generator) -> Tensor:
    count, terms, columns = shape
    ends = torch.arange(PARTS + 1) * terms // PARTS
    first, length = ends[:-1, None], ends.diff()[:, None]
    return first + (torch.rand((count, PARTS, columns), generator=generator) * length).long().minimum(length - 1)


def encoded(kind: str, values: Tensor, generator: Generator) -> dict[str, Tensor]:
    """Weights (E, K, N) of 0, 1 and -1 in the format of :func:`gpucheck.checks.operands.weights`.

    The mx scales differ from block to block, and the codes with them: one that is taken for another shows.
    """
    if kind == "bf16":
        return {"w": values.to(torch.bfloat16)}
    count, terms, columns = values.shape
    scales = torch.randint(126, 129, (count, terms // operands.BLOCK, columns), generator=generator, dtype=torch.uint8)
    of_one = torch.tensor([4, 2, 1], dtype=torch.uint8)[scales.long() - 126]  # codes of 2, 1 and 1/2
    codes = of_one.repeat_interleave(operands.BLOCK, dim=1) * (values != 0) + 8 * (values < 0).to(torch.uint8)
    return {"w": codes[:, 0::2] | (codes[:, 1::2] << 4), "w_scale": scales}


def block(weights: Mapping[str, Tensor], x: Tensor, ids: Tensor, gates: Tensor) -> Estimate:
    """What the experts of ``weights`` add to each token: (T, H), exact.

    Args:
        weights: the inputs of :func:`make`, or a rank's share of them.
        x: (T, H).
        ids: (T, k), numbers of experts among these; -1 is none of them.
        gates: (T, k).
    """
    count, _, hidden = weights["w2"].shape
    per_token = ids.shape[1]
    tables = experts.tables(ids.long(), gates, count)

    def weight(name: str, expert: int) -> Estimate:
        scales = weights[f"{name}_scale"][expert] if f"{name}_scale" in weights else None
        kind = "bf16" if scales is None else "mxfp4"
        return operands.as_estimate(operands.decode_weight(kind, weights[name][expert], scales), "exact")

    def one(expert: int, rows: Estimate) -> Estimate:
        inner = bounds.add(bounds.product(rows, weight("w1", expert)), weights["bias1"][expert].double())
        inner = bounds.rounded(bounds.ramp(inner, SWIGLU[1]), torch.bfloat16)
        return bounds.add(bounds.product(inner, weight("w2", expert)), weights["bias2"][expert].double())

    rows = experts.rows_of(operands.as_estimate(x, "exact"), tables, per_token, gather=True)
    rows = experts.each_expert(rows, tables, hidden, one)
    rows = bounds.scale(rows, tables["gates"][: experts.served(tables)].double()[:, None])
    return bounds.summed(experts.to_tokens(rows, tables, per_token), dim=1)
