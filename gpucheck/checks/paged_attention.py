"""``paged_attention``: decode attention over a paged cache, grouped heads, sinks, sequences of all lengths."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from gpucheck.checks.attention import DEVIATION, MOST_EXACT_KEYS, heads, normal_sinks
from gpucheck.checks.base import OPERANDS, Check, Runtime
from gpucheck.checks.on_use import bounds, onehot_attention, operands, torch
from gpucheck.model.case import Case, CheckSpec, Param
from gpucheck.verify.expected import Axes, Expected

if TYPE_CHECKING:
    from torch import Tensor

BLOCK = 64  # keys that the kernel takes at a time


class PagedAttention(Check):
    """One query a sequence, and a cache whose pages lie in any order -> attention.

    What no sequence holds, pages and the rest of last pages, is NaN; entries of the block table beyond a sequence's
    last page name such a page.
    """

    needs_library = False
    late_inputs = ("q",)

    spec = CheckSpec(
        name="paged_attention",
        summary="decode attention over a paged cache: grouped heads, sinks, any lengths (own Triton kernel)",
        sizes=("batch", "q_heads", "kv_heads", "k_len"),
        params=(
            Param("dtype", "bf16", "of q, cache and output", OPERANDS),
            Param("batch", 4, "sequences", label="b"),
            Param("q_heads", 8, "query heads", label="h"),
            Param("kv_heads", 1, "key and value heads, each shared by as many query heads", label="kv"),
            Param("k_len", 100, "keys of the longest sequence", label="k"),
            Param("head_dim", 64, "coordinates of a head", (64, 128), label="d"),
            Param("page", 16, "keys of a page", (16, 32, 64, 128), label="page"),
            Param("sinks", False, "one more logit a head in the softmax, without a value"),
        ),
    )

    def validate(self, params: Mapping[str, Any], data: str) -> str | None:
        if params["q_heads"] % params["kv_heads"]:
            return f"q_heads {params['q_heads']} is not a multiple of kv_heads {params['kv_heads']}"
        if params["kv_heads"] > 65535:
            return "kv_heads must be at most 65535, the largest second dimension of a grid"
        if data == "exact" and params["k_len"] > MOST_EXACT_KEYS:
            return f"exact data tells at most {MOST_EXACT_KEYS} keys apart, not {params['k_len']}"
        return None

    def inputs(self, case: Case, generator: torch.Generator) -> dict[str, Tensor]:
        lengths = _lengths(case, generator)
        table, pages = block_table(lengths, case["page"], generator)
        shape = (pages, case["page"], case["kv_heads"], case["head_dim"])
        caches = {name: torch.full(shape, torch.nan) for name in ("k_cache", "v_cache")}
        q = torch.empty((case["batch"], case["q_heads"], case["head_dim"]))
        for sequence, length in enumerate(lengths.tolist()):
            made = (_exact if case.data == "exact" else _normal)(case, length, generator)
            q[sequence] = made["q"]
            places = key_places(table[sequence], length, case["page"])
            for name in ("k_cache", "v_cache"):
                caches[name].view(-1, *shape[2:])[places] = made[name]
        inputs = {name: part.to(operands.DTYPES[case["dtype"]]) for name, part in (("q", q), *caches.items())}
        if case["sinks"]:
            exact = case.data == "exact"
            inputs["sinks"] = (
                onehot_attention.sinks(case["q_heads"])
                if exact
                else normal_sinks(case["q_heads"], case["k_len"], generator)
            )
        return {**inputs, "table": table, "lengths": lengths}

    def reference(self, case: Case, inputs: dict[str, Tensor]) -> dict[str, Expected]:
        q, sinks = inputs["q"], inputs.get("sinks")
        value = torch.empty(q.shape, dtype=torch.float64)
        error = None if case.data == "exact" else torch.empty_like(value)
        group = case["q_heads"] // case["kv_heads"]
        for sequence, length in enumerate(inputs["lengths"].tolist()):
            places = key_places(inputs["table"][sequence], length, case["page"])
            k, v = (inputs[name].flatten(0, 1)[places] for name in ("k_cache", "v_cache"))
            for kv in range(case["kv_heads"]):
                own = slice(kv * group, (kv + 1) * group)
                their = None if sinks is None else sinks[own]
                everything = torch.ones((1, length), dtype=torch.bool)
                part = heads(q[sequence, own, None], k[:, kv], v[:, kv], everything, sinks=their, exact=error is None)
                value[sequence, own] = part.value[:, 0]
                if error is not None and part.error is not None:
                    error[sequence, own] = part.error[:, 0]
        return {"o": Expected(bounds.Estimate(value, error), q.dtype)}

    def launch(self, case: Case, prepared: Any, runtime: Runtime) -> dict[str, Tensor]:
        from gpucheck.checks.kernels.paged_attention_kernel import paged_attention

        out = paged_attention(
            *(prepared[name] for name in ("q", "k_cache", "v_cache", "table", "lengths")),
            sinks=prepared.get("sinks"),
            block=BLOCK,
        )
        return {"o": out}

    def kernels(self, case: Case, runtime: Runtime) -> tuple[str, ...]:
        return ("_paged_attention_decode",)

    def axes(self, case: Case, inputs: dict[str, Tensor]) -> dict[str, Axes]:
        return {"o": Axes(("sequence", "head", "dimension"), (0, 0, 0))}


def _lengths(case: Case, generator: torch.Generator) -> Tensor:
    """(batch,) int32: the longest, a single key, whole pages, one key on the last page, none, then any."""
    longest, page = case["k_len"], case["page"]
    whole = longest // page * page
    kinds = [longest, 1, max(1, whole), min(whole + 1, longest), 0][: case["batch"]]
    lengths = torch.randint(1, longest + 1, (case["batch"],), generator=generator)
    lengths[: len(kinds)] = torch.tensor(kinds)
    return lengths.to(torch.int32)


def block_table(lengths: Tensor, page: int, generator: torch.Generator) -> tuple[Tensor, int]:
    """The table (batch, most pages) int32 with pages in random order, and how many pages the cache has.

    Two pages, one of them the first, belong to nobody; unused entries name the one or the other.
    """
    counts = (lengths.long() + page - 1) // page
    used = int(counts.sum())
    spare = torch.tensor([0, used + 1], dtype=torch.int32)
    table = spare[torch.randint(2, (len(lengths), max(1, int(counts.max()))), generator=generator)]
    owned = torch.arange(table.shape[1]) < counts[:, None]
    table[owned] = (torch.randperm(used, generator=generator) + 1).to(torch.int32)
    return table, used + 2


def key_places(pages: Tensor, length: int, page: int) -> Tensor:
    """Where the keys of a sequence lie in a cache whose pages are joined: (length,) int64."""
    key = torch.arange(length)
    return pages.long()[key // page] * page + key % page


def _normal(case: Case, length: int, generator: torch.Generator) -> dict[str, Tensor]:
    """Query, keys and values of one sequence."""
    shape = (length, case["kv_heads"], case["head_dim"])
    return {
        "q": torch.randn((case["q_heads"], case["head_dim"]), generator=generator) * DEVIATION,
        "k_cache": torch.randn(shape, generator=generator),
        "v_cache": torch.randn(shape, generator=generator),
    }


def _exact(case: Case, length: int, generator: torch.Generator) -> dict[str, Tensor]:
    """As :func:`_normal`, with queries and keys of :mod:`gpucheck.checks.onehot_attention`."""
    made = _normal(case, length, generator)
    if not length:
        return made
    group = case["q_heads"] // case["kv_heads"]
    for kv_head in range(case["kv_heads"]):
        book = onehot_attention.key_book(case["head_dim"], length, generator)
        made["k_cache"][:, kv_head] = book.keys
        targets = torch.randint(length, (group,), generator=generator)
        made["q"][kv_head * group : (kv_head + 1) * group] = book.ask(targets, generator)
    return made
