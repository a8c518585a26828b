"""What each rank of a shared expert block must have: its part before, and the whole after what ranks do together."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace

import torch
from torch import Tensor

from gpucheck.checks.decoder.passes import one_thread
from gpucheck.checks.sharded.exact_block import block
from gpucheck.checks.sharded.shares import local_ids, of_experts, of_width, share, width_share
from gpucheck.model.case import Case
from gpucheck.verify.bounds import Estimate
from gpucheck.verify.expected import Axes, Expected

ORDER = ("received", "slots", "partial", "y")
"""The outputs, in the order in which a rank comes by them."""
WORDS = {
    "received": "the tokens that the dispatch brought to this rank",
    "slots": "the numbers by which this rank looks up its experts",
    "partial": "what this rank's experts give",
    "y": "what the ranks' parts add up to",
}


LARGE = 1 << 20  # hidden times intermediate from which on several threads are worth it


def references(case: Case, inputs: dict[str, Tensor]) -> dict[str, Expected]:
    """The outputs of rank ``case.rank``.

    ``received`` (R, H): the tokens of all ranks with an expert here, in order. ``slots`` (T or R, k): its experts as
    numbers in this rank's table, -1 elsewhere. ``partial`` (T or R, H): what its experts add. ``y``: the whole block,
    of all T tokens, or under ``dispatch`` of those that are this rank's own.
    """
    rank, size = case.rank, case.ranks
    small = case["hidden"] * case["intermediate"] < LARGE
    with one_thread() if small else nullcontext():
        part = one_part(case, inputs, rank, with_bias=rank == 0)
        whole = block(inputs, inputs["x"], inputs["ids"], inputs["id_gates"])
    made = {"partial": Expected(part, torch.bfloat16), "y": Expected(whole, torch.bfloat16)}
    if case["parallel"] == "tensor":
        return made
    held = share(case["experts"], rank, size)
    tokens, ids, gates = arriving(case, inputs, held)
    slots = local_ids(ids, held)
    if case["parallel"] == "dispatch":
        received = inputs["x"][tokens]
        made["received"] = Expected(Estimate(received.double(), None), torch.bfloat16)
        with one_thread() if small else nullcontext():
            part = block(of_experts(inputs, held), received, slots, gates)
        made["partial"] = Expected(part, torch.bfloat16)
        own = whole.value[share(case["m"], rank, size)]
        made["y"] = Expected(replace(whole, value=own), torch.bfloat16)
    made["slots"] = Expected(Estimate(slots.double(), None), torch.int32)
    return {name: made[name] for name in outputs(case)}


def arriving(case: Case, inputs: dict[str, Tensor], held: slice) -> tuple[Tensor, Tensor, Tensor]:
    """What a rank with some of the experts works on: rows as tokens (R,), their experts and gates (R, k).

    All tokens, under ``dispatch`` those with an expert here; by the library's dispatch one row for each slot with an
    expert here, in order of experts, which gates are applied to later.
    """
    ids, gates = inputs["ids"], inputs["id_gates"]
    here = local_ids(ids, held) >= 0
    if case["through"] == "library":
        owners, order = ids.flatten().sort(stable=True)
        own = (owners >= held.start) & (owners < held.stop)
        return order[own] // case["top_k"], owners[own, None], torch.ones((int(own.sum()), 1))
    tokens = here.any(1).nonzero().flatten() if case["parallel"] == "dispatch" else torch.arange(len(ids))
    return tokens, ids[tokens], gates[tokens]


def one_part(case: Case, inputs: dict[str, Tensor], rank: int, *, with_bias: bool) -> Estimate:
    """What the experts of a rank, or its slice of all of them, add to all tokens: (T, H).

    Args:
        with_bias: under tensor parallelism the slice has the second bias, which one rank of all adds.
    """
    ids, size = inputs["ids"], case.ranks
    if case["parallel"] == "tensor":
        weights = of_width(inputs, width_share(case["intermediate"], rank, size), with_bias=with_bias)
    else:
        held = share(case["experts"], rank, size)
        weights, ids = of_experts(inputs, held), local_ids(ids, held)
    return block(weights, inputs["x"], ids, inputs["id_gates"])


def axes(case: Case) -> dict[str, Axes]:
    """How places in the outputs are called; rows are those that the dispatch brought."""
    row = "row" if case["parallel"] == "dispatch" else "token"
    words = {name: ("token" if name == "y" else row, "slot" if name == "slots" else "column") for name in outputs(case)}
    return {name: Axes(names, (0, 0)) for name, names in words.items()}


def outputs(case: Case) -> tuple[str, ...]:
    """The outputs of a case, in their order."""
    absent = {"tensor": ("received", "slots"), "expert": ("received",), "dispatch": ()}[case["parallel"]]
    return tuple(name for name in ORDER if name not in absent)
