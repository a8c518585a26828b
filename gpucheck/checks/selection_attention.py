"""``selection_attention``: each query attends to a few ranges of keys of its own, as in native sparse attention."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from gpucheck.checks.attention import DEVIATION, MOST_EXACT_KEYS, heads
from gpucheck.checks.base import OPERANDS, Check, Runtime
from gpucheck.checks.on_use import bounds, onehot_attention, operands, torch
from gpucheck.model.case import Case, CheckSpec, Param
from gpucheck.verify.expected import Axes, Expected

if TYPE_CHECKING:
    from torch import Tensor

EMPTY = 0.1  # share of queries that select nothing
MOST_PROGRAMS = 65535  # the largest second and third dimension of a grid


class SelectionAttention(Check):
    """Queries, keys, values and ranges of keys -> attention within the ranges; no range gives zeros.

    A query stands at a position among the keys as under a causal mask, the last query at the last key. It selects
    blocks of keys up to its own, which ends at its position; neighbouring blocks may come as one range.
    """

    needs_library = False
    late_inputs = ("q",)

    spec = CheckSpec(
        name="selection_attention",
        summary="attention to selected key blocks, dense and variable length (own Triton kernel)",
        sizes=("batch", "q_heads", "kv_heads", "q_len", "k_len", "slots"),
        params=(
            Param("lengths", "dense", "whether all sequences are equally long", ("dense", "variable")),
            Param("dtype", "bf16", "of q, k, v and the output", OPERANDS),
            Param("batch", 1, "sequences", label="b"),
            Param("q_heads", 4, "query heads", label="h"),
            Param("kv_heads", 1, "key and value heads, each shared by as many query heads", label="kv"),
            Param("q_len", 16, "queries of the longest sequence; the last one stands at the last key", label="q"),
            Param("k_len", 300, "keys of the longest sequence", label="k"),
            Param("head_dim", 64, "coordinates of a head", (64, 128), label="d"),
            Param("block", 128, "keys of a selected block", (32, 64, 128), label="l"),
            Param("slots", 3, "ranges a query has room for", label="s"),
        ),
    )

    def validate(self, params: Mapping[str, Any], data: str) -> str | None:
        if params["q_heads"] % params["kv_heads"]:
            return f"q_heads {params['q_heads']} is not a multiple of kv_heads {params['kv_heads']}"
        if max(params["batch"], params["kv_heads"]) > MOST_PROGRAMS:
            return f"batch and kv_heads must be at most {MOST_PROGRAMS}"
        if data == "exact" and params["k_len"] > MOST_EXACT_KEYS:
            return f"exact data tells at most {MOST_EXACT_KEYS} keys apart, not {params['k_len']}"
        return None

    def inputs(self, case: Case, generator: torch.Generator) -> dict[str, Tensor]:
        q_starts, k_starts = _starts(case, generator)
        queries, keys = int(q_starts[-1]), int(k_starts[-1])
        inputs = {"q_starts": q_starts, "k_starts": k_starts}
        ranges = torch.zeros((queries, case["kv_heads"], case["slots"], 2), dtype=torch.int32)
        for q_part, k_part in pieces(inputs):
            ranges[q_part] = _select(case, q_part.stop - q_part.start, k_part.stop - k_part.start, generator)
        made = {
            "q": torch.randn((queries, case["q_heads"], case["head_dim"]), generator=generator) * DEVIATION,
            "k": torch.randn((keys, case["kv_heads"], case["head_dim"]), generator=generator),
            "v": torch.randn((keys, case["kv_heads"], case["head_dim"]), generator=generator),
        }
        if case.data == "exact":
            _make_exact(case, made, ranges, inputs, generator)
        return {
            **inputs,
            "ranges": ranges,
            **{name: part.to(operands.DTYPES[case["dtype"]]) for name, part in made.items()},
        }

    def reference(self, case: Case, inputs: dict[str, Tensor]) -> dict[str, Expected]:
        q, k, v = inputs["q"], inputs["k"], inputs["v"]
        value = torch.empty(q.shape, dtype=torch.float64)
        error = None if case.data == "exact" else torch.empty_like(value)
        group = case["q_heads"] // case["kv_heads"]
        for q_part, k_part in pieces(inputs):
            for kv in range(case["kv_heads"]):
                own = slice(kv * group, (kv + 1) * group)
                seen = visible(inputs["ranges"][q_part, kv], k_part.stop - k_part.start)
                part = heads(q[q_part, own].transpose(0, 1), k[k_part, kv], v[k_part, kv], seen, exact=error is None)
                value[q_part, own] = part.value.transpose(0, 1)
                if error is not None and part.error is not None:
                    error[q_part, own] = part.error.transpose(0, 1)
        return {"o": Expected(bounds.Estimate(value, error), q.dtype)}

    def launch(self, case: Case, prepared: Any, runtime: Runtime) -> dict[str, Tensor]:
        from gpucheck.checks.kernels.selection_attention_kernel import selection_attention

        out = selection_attention(
            *(prepared[name] for name in ("q", "k", "v", "ranges")),
            batch=case["batch"],
            starts=(prepared["q_starts"], prepared["k_starts"]) if case["lengths"] == "variable" else None,
            most_queries=case["q_len"],
            block=keys_at_a_time(case),
        )
        return {"o": out}

    def kernels(self, case: Case, runtime: Runtime) -> tuple[str, ...]:
        return ("_selection_attention_forward",)

    def axes(self, case: Case, inputs: dict[str, Tensor]) -> dict[str, Axes]:
        sequence = torch.arange(case["batch"]).repeat_interleave(inputs["q_starts"].diff())
        owners = {"sequence": sequence[:, None]} if case["batch"] > 1 else {}
        return {"o": Axes(("query", "head", "dimension"), (0, 0, 0), owners)}


def keys_at_a_time(case: Case) -> int:
    """Keys of a tile: a whole block, half of one where both of its tiles would fill the shared memory of small GPUs."""
    wide = case["dtype"] == "fp32" and case["head_dim"] == 128
    return int(case["block"]) // 2 if wide else int(case["block"])


def pieces(inputs: dict[str, Tensor]) -> list[tuple[slice, slice]]:
    """The queries and the keys of each sequence."""
    q_starts, k_starts = inputs["q_starts"].tolist(), inputs["k_starts"].tolist()
    return [
        (slice(*q_ends), slice(*k_ends))
        for q_ends, k_ends in zip(
            zip(q_starts, q_starts[1:], strict=False), zip(k_starts, k_starts[1:], strict=False), strict=True
        )
    ]


def visible(ranges: Tensor, keys: int) -> Tensor:
    """(queries, slots, 2) ranges -> (queries, keys) bool: which keys each query sees."""
    key = torch.arange(keys)
    return ((key >= ranges[..., :1]) & (key < ranges[..., 1:])).any(1)


def _starts(case: Case, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Where each sequence starts among queries and keys, and where the last ends; the first sequence is the longest."""
    lengths = []
    for name in ("q_len", "k_len"):
        length = torch.full((case["batch"],), case[name])
        if case["lengths"] == "variable":
            length[1:] = torch.randint(1, case[name] + 1, (case["batch"] - 1,), generator=generator)
        lengths.append(length)
    q_starts, k_starts = (torch.nn.functional.pad(length.cumsum(0), (1, 0)).to(torch.int32) for length in lengths)
    return q_starts, k_starts


def _select(case: Case, queries: int, keys: int, generator: torch.Generator) -> Tensor:
    """The ranges (queries, kv_heads, slots, 2) of one sequence."""
    ranges = torch.zeros((queries, case["kv_heads"], case["slots"], 2), dtype=torch.int32)
    for query in range(queries):
        end = query + keys - queries + 1
        for kv_head in range(case["kv_heads"]):
            if end > 0 and (query == queries - 1 or float(torch.rand((), generator=generator)) >= EMPTY):
                ranges[query, kv_head] = _select_one(case, end, generator)
    return ranges


def _select_one(case: Case, end: int, generator: torch.Generator) -> Tensor:
    """The ranges (slots, 2) of a query that sees the first ``end`` keys: always the block they end in.

    Slots come in any order and empty ones, which may lie anywhere, between them. Half of the neighbours are joined.
    """
    block, slots = case["block"], case["slots"]
    last = (end - 1) // block
    count = int(torch.randint(min(slots, last + 1), (), generator=generator))
    earlier = torch.randperm(last, generator=generator)[:count].sort().values.tolist() if last else []
    found: list[list[int]] = []
    for number in [*earlier, last]:
        begin, stop = number * block, min((number + 1) * block, end)
        if found and found[-1][1] == begin and float(torch.rand((), generator=generator)) < 0.5:
            found[-1][1] = stop
        else:
            found.append([begin, stop])
    nowhere = torch.randint(end + 1, (slots - len(found), 1), generator=generator).repeat(1, 2)
    ranges = torch.cat([torch.tensor(found), nowhere])
    return ranges[torch.randperm(slots, generator=generator)].to(torch.int32)


def _make_exact(
    case: Case, made: dict[str, Tensor], ranges: Tensor, starts: dict[str, Tensor], generator: torch.Generator
) -> None:
    """Replaces queries and keys by those of :mod:`gpucheck.checks.onehot_attention`."""
    group = case["q_heads"] // case["kv_heads"]
    for q_part, k_part in pieces(starts):
        for kv_head in range(case["kv_heads"]):
            book = onehot_attention.key_book(case["head_dim"], k_part.stop - k_part.start, generator)
            made["k"][k_part, kv_head] = book.keys
            seen = visible(ranges[q_part, kv_head], k_part.stop - k_part.start)
            for head in range(kv_head * group, (kv_head + 1) * group):
                made["q"][q_part, head] = book.ask(onehot_attention.draw(seen, generator), generator)
