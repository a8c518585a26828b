"""``routing``: the library's own way from logits to sorted rows, integer tables and gates."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from gpucheck.checks.base import Check, Runtime
from gpucheck.checks.on_use import bounds, experts, extremes, operands, torch
from gpucheck.model.case import DATA_KINDS, Case, CheckSpec, Param
from gpucheck.model.record import Cost, NeededLaunches
from gpucheck.verify.expected import Axes, Expected

if TYPE_CHECKING:
    from torch import Tensor

    from gpucheck.verify.bounds import Estimate

LOGITS = (
    Param("dtype", "bf16", "dtype of the logits", ("bf16", "fp16", "fp32")),
    Param("m", 16, "tokens", label="m"),
    Param("experts", 8, "columns of the logits", label="e"),
    Param("top_k", 4, "experts per token", label="top"),
    Param("load", "random", "which experts the logits favour", ("random", "skewed", "one"), label="load-"),
    Param("softmax", "chosen", "over the chosen logits or, before the choice, over all", ("chosen", "all"), "softmax-"),
)
MOST_APART = 128  # columns that logits in steps of STEP tell apart, in every dtype and after a softmax
STEP = 1 / 16


def validate_logits(params: Mapping[str, Any], data: str) -> str | None:
    """Why logits of these parameters cannot be made, or None."""
    if params["m"] < 1:
        return f"m must be at least 1, not {params['m']}"
    if not 1 <= params["top_k"] <= params["experts"]:
        return f"needs 1 <= top_k <= experts, not {params['top_k']} and {params['experts']}"
    if params["softmax"] == "all" and data == "wide":
        return "wide logits go with a softmax over the chosen"
    if params["softmax"] == "all" and params["experts"] > MOST_APART:
        return f"a softmax over all takes at most {MOST_APART} experts, not {params['experts']}: weights would tie"
    return None


def make_logits(case: Case, generator: torch.Generator) -> Tensor:
    """Logits (m, experts).

    Normal data is standard normal; ``skewed`` lifts one expert above all and sinks the upper half, ``one`` lifts the
    last k. Exact data is made of ties: in each row at least k experts share the highest logit, so the smallest ids
    win and every gate is 1/k. Before a softmax over all, normal data are the steps of STEP in any order: weights that
    are rounded to the same number would be a tie that the logits are not.
    """
    rows, columns, k = case["m"], case["experts"], case["top_k"]
    logits = torch.randn((rows, columns), generator=generator)
    if case.data == "wide":
        return _wide_logits(case, logits, generator)
    if case["softmax"] == "all" and case.data == "normal":
        logits = (logits.argsort(-1).argsort(-1) - columns // 2) * STEP
    if case.data == "exact":
        ids = experts.choose(rows, columns, k, case["load"], generator)
        extra = torch.rand((rows, columns), generator=generator) < 0.2
        tied = extra.scatter(1, ids, True)
        logits = torch.where(tied, torch.tensor(4.0), -logits.abs())
    elif case["load"] != "random":
        ids = experts.choose(rows, columns, k, case["load"], generator)
        logits = logits.scatter_add(1, ids, torch.full(ids.shape, 8.0))
    return logits.to(operands.DTYPES[case["dtype"]])


WIDE_ROWS = ("inf", "minus inf", "large", "negative zero", "subnormal", "nan")
"""Rows of wide logits, from row 1 on; the last one for a top-k alone, since nobody says whose a NaN is."""


def _wide_logits(case: Case, logits: Tensor, generator: torch.Generator) -> Tensor:
    """Standard normal logits with WIDE_ROWS among them, where there are rows enough."""
    dtype, (rows, columns), k = operands.DTYPES[case["dtype"]], logits.shape, case["top_k"]
    order = torch.randperm(columns, generator=generator)
    made = {
        "inf": logits[0].index_fill(0, order[: min(2, k)], torch.inf),
        "minus inf": logits[0].index_fill(0, order[k:], -torch.inf),
        "large": logits[0].sign() * torch.finfo(dtype).max * (0.5 + torch.rand(columns, generator=generator) / 2),
        "negative zero": torch.full((columns,), -0.0),
        "subnormal": logits[0] / 8 * extremes.SMALLEST_NORMAL[dtype],
        "nan": logits[0].index_fill(0, order[: min(2, k)], torch.nan),
    }
    names = WIDE_ROWS if case.check == "topk" else WIDE_ROWS[:-1]
    for row, name in enumerate(names, 1):
        if row < rows:
            logits[row] = made[name]
    return logits.to(dtype)


def open_rows(logits: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Of logits (T, E) and chosen ids (T, k): which rows' choice is open, which rows' gates are NaN: bool (T,) both."""
    return torch.isnan(logits).any(1), ~torch.isfinite(logits.double().gather(1, ids)).all(1)


def reference_gates(case: Case, logits: Tensor) -> tuple[Tensor, Estimate]:
    """Ids (T, k), ascending in a row, and their weights."""
    chosen, ids = reference_topk(logits, case["top_k"])
    if case["softmax"] == "chosen":
        _, without = open_rows(logits, ids)
        gates = bounds.softmax(chosen.masked_fill(without[:, None], 0.0))
        return ids, bounds.Estimate(gates.value, None) if gates_are_exact(case) else gates
    gates = bounds.softmax(logits.double())
    assert gates.error is not None
    return ids, bounds.Estimate(gates.value.gather(1, ids), gates.error.gather(1, ids))


def reference_topk(logits: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Top-k with the smaller id winning ties: float64 logits (T, k) and ids (T, k), ids ascending in a row."""
    order = logits.double().sort(dim=-1, descending=True, stable=True).indices[:, :k]
    ids = order.sort(dim=-1).values
    return logits.double().gather(1, ids), ids


def gates_are_exact(case: Case) -> bool:
    """Whether every gate is 1/k and a power of two: the quotient of other k may be an approximation on a GPU."""
    k: int = case["top_k"]
    return case.data == "exact" and case["softmax"] == "chosen" and k & (k - 1) == 0


class Routing(Check):
    """Logits -> histogram, permutations, gates, and the schedule that routed products go by."""

    late_inputs = ("logits",)

    spec = CheckSpec(
        name="routing",
        summary="the library's routing: histogram, permutations, gates, block map",
        data_kinds=DATA_KINDS,
        params=LOGITS,
    )

    def validate(self, params: Mapping[str, Any], data: str) -> str | None:
        return validate_logits(params, data)

    def inputs(self, case: Case, generator: torch.Generator) -> dict[str, Tensor]:
        return {"logits": make_logits(case, generator)}

    def reference(self, case: Case, inputs: dict[str, Tensor]) -> dict[str, Expected]:
        ids, gates = reference_gates(case, inputs["logits"])
        _, without = open_rows(inputs["logits"], ids)
        tables = experts.tables(ids, gates.value, case["experts"])
        order = tables["to_flat"].long()
        made = {
            name: Expected(bounds.Estimate(table.double(), None), torch.int32)
            for name, table in experts.whole(tables).items()
        }
        sorted_gates = experts.take(gates.flat(), order)
        also = None
        if case.data == "wide":
            gone, also = extremes.rows_of_nan(sorted_gates.reshaped(-1, 1), without[order // case["top_k"]])
            sorted_gates, also = gone.flat(), also.flatten()
        return {**made, "gates": Expected(sorted_gates, operands.DTYPES[case["dtype"]], also=also)}

    def launch(self, case: Case, prepared: Any, runtime: Runtime) -> dict[str, Tensor]:
        over_all = case["softmax"] == "all"
        routing = runtime.library.route(prepared["logits"], case["top_k"], over_all=over_all)
        schedule = runtime.library.schedule(routing)
        return {
            "histogram": routing.histogram,
            "to_flat": routing.to_flat,
            "to_sorted": routing.to_sorted,
            "gates": routing.gates,
            **{name: getattr(schedule, name) for name in experts.SCHEDULE},
        }

    def kernels(self, case: Case, runtime: Runtime) -> tuple[str, ...]:
        return runtime.library.kernels["route"]

    def needed_launches(self, case: Case, runtime: Runtime) -> tuple[NeededLaunches, ...]:
        kernels = runtime.library.kernels
        return (NeededLaunches(kernels["topk"]), NeededLaunches(kernels["route"]))

    def cost(self, case: Case, inputs: dict[str, Tensor]) -> Cost:
        """Logits, then histogram, both permutations and gates of 4 bytes each."""
        return Cost(0.0, float(operands.size(inputs["logits"]) + 4 * case["experts"] + 12 * case["m"] * case["top_k"]))

    def axes(self, case: Case, inputs: dict[str, Tensor]) -> dict[str, Axes]:
        by_size = {"block size": torch.tensor(experts.BLOCK_SIZES)[:, None]}
        expert, row, flat = (Axes((word,), (0,)) for word in ("expert", "sorted row", "flat row"))
        return {
            "histogram": expert,
            "to_flat": row,
            "to_sorted": flat,
            "gates": row,
            "rows": expert,
            "row_offsets": expert,
            "block_offsets": Axes(("size", "expert"), (0, 0), by_size),
            "block_map": Axes(("size", "program"), (0, 0), by_size),
            "scatter_to_flat": row,
            "scatter_to_sorted": flat,
        }
