"""A batch as a server's scheduler makes it: sequences with new tokens, and a paged cache that holds their older keys.

What no sequence holds, pages and the rest of last pages, is NaN, and so are the places of the new keys until the engine
has written them; entries of the block table beyond a sequence's last page name a page of nobody. Pages that lie wholly
before a sliding window are given away: their entries name the first page, which holds other keys.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gpucheck.checks.attention import DEVIATION, normal_sinks
from gpucheck.checks.on_use import onehot_attention, torch
from gpucheck.checks.paged_attention import block_table, key_places
from gpucheck.model.case import Case

if TYPE_CHECKING:
    from torch import Generator, Tensor

FP8_SCALES = {"k": 0.5, "v": 0.25}
"""A key or value is the number in an fp8 cache times its scale: exact in bf16."""


@dataclass(frozen=True)
class Sequence:
    """One sequence of a batch."""

    number: int
    tokens: slice  # its new tokens among those of all
    places: Tensor  # (length,) int64, where its keys lie in a cache whose pages are joined

    @property
    def new(self) -> int:
        """How many tokens are new; its last keys are theirs."""
        return int(self.tokens.stop - self.tokens.start)


def scales(case: Case) -> dict[str, float]:
    """Of keys (``k``) and values (``v``) in the cache."""
    return dict(FP8_SCALES) if case["kv_dtype"] == "fp8" else {"k": 1.0, "v": 1.0}


def cache_dtype(case: Case) -> torch.dtype:
    """Of the numbers in the cache."""
    return torch.float8_e4m3fn if case["kv_dtype"] == "fp8" else torch.bfloat16


def sequences(case: Case, inputs: dict[str, Tensor]) -> Iterator[Sequence]:
    """The sequences of the inputs, those without new tokens too."""
    begin = 0
    counts, lengths = inputs["q_lens"].tolist(), inputs["lengths"].tolist()
    for number, (count, length) in enumerate(zip(counts, lengths, strict=True)):
        yield Sequence(number, slice(begin, begin + count), key_places(inputs["table"][number], length, case["page"]))
        begin += count


def make(case: Case, generator: Generator) -> dict[str, Tensor]:
    """``qkv`` (T, H + 2G, D), both caches (pages, page, G, D), the table, both lengths and the sinks."""
    q_lens, lengths = _lengths(case, generator)
    table, pages = block_table(lengths, case["page"], generator)
    heads, groups, dim = case["q_heads"], case["kv_heads"], case["head_dim"]
    caches = {name: torch.full((pages, case["page"], groups, dim), torch.nan) for name in ("k", "v")}
    qkv = torch.empty(int(q_lens.sum()), heads + 2 * groups, dim)
    inputs = {"q_lens": q_lens, "lengths": lengths, "table": table}
    for sequence in sequences(case, inputs):
        q, keys = _drawn(case, sequence, generator)
        old = len(sequence.places) - sequence.new
        own = qkv[sequence.tokens]
        own[:, :heads] = q
        for number, (name, held) in enumerate(keys.items()):
            caches[name].flatten(0, 1)[sequence.places[:old]] = held[:old] / scales(case)[name]
            begin = heads + number * groups
            own[:, begin : begin + groups] = held[old:]
    _give_away(case, inputs, caches, generator)
    dtype = cache_dtype(case)
    made = {"qkv": qkv.to(torch.bfloat16), **{f"{name}_cache": held.to(dtype) for name, held in caches.items()}}
    if case["sinks"]:
        seen = min(case["k_len"], case["window"] or case["k_len"])
        exact = case.data == "exact"
        drawn = onehot_attention.sinks(case["q_heads"]) if exact else normal_sinks(case["q_heads"], seen, generator)
        made["sinks"] = drawn.to(torch.bfloat16)
    return {**made, **inputs}


def visible(case: Case, sequence: Sequence, *, window: int, later: int = 0, shift: int = 0) -> Tensor:
    """(new tokens, length) bool: which keys each new token of a sequence sees.

    Args:
        window: keys that it sees at most; 0: all up to its own.
        later: keys behind its own that it sees too.
        shift: how much further behind each token is taken to stand.
    """
    length = len(sequence.places)
    position = torch.arange(length - sequence.new, length)[:, None] + shift
    key = torch.arange(length)
    seen = key <= position + later
    return seen & (key > position - window) if window else seen


def _lengths(case: Case, generator: Generator) -> tuple[Tensor, Tensor]:
    """(B,) int32 twice: new tokens, and keys with these, of each sequence.

    ``decode``: one new token each, with the most keys, one, whole pages, one on the last page, as many as the window
    and one more, then any. ``mixed``: a later piece of a long prompt, a decode step, a whole short prompt, a first
    token, a prompt whose last piece is one token on a page of its own, then any.
    """
    most, page, window = case["k_len"], case["page"], case["window"] or case["k_len"]
    whole = max(most // page * page, min(page, most))
    if case["queries"] == "decode":
        kinds = [(1, most), (1, 1), (1, whole), (1, min(whole + 1, most)), (1, min(window, most))]
        kinds.append((1, min(window + 1, most)))
    else:
        q = case["q_len"]
        kinds = [(q, most), (1, max(1, most - 3)), (min(q, most), min(q, most)), (1, 1), (1, min(page + 1, most))]
    kinds = kinds[: case["batch"]]
    while len(kinds) < case["batch"]:
        length = int(torch.randint(1, most + 1, (), generator=generator))
        new = 1 if case["queries"] == "decode" else int(torch.randint(1, case["q_len"] + 1, (), generator=generator))
        kinds.append((min(new, length), length))
    q_lens, lengths = torch.tensor(kinds, dtype=torch.int32).T.contiguous()
    return q_lens, lengths


def _drawn(case: Case, sequence: Sequence, generator: Generator) -> tuple[Tensor, dict[str, Tensor]]:
    """Queries (new, H, D) of one sequence, and its keys and values (length, G, D) as bf16 holds them."""
    heads, groups, dim = case["q_heads"], case["kv_heads"], case["head_dim"]
    length = len(sequence.places)
    q = torch.randn((sequence.new, heads, dim), generator=generator) * DEVIATION
    keys = {name: torch.randn((length, groups, dim), generator=generator) for name in ("k", "v")}
    if case.data == "exact":
        seen = visible(case, sequence, window=case["window"])
        for head in range(heads):
            if head % (heads // groups) == 0:
                book = onehot_attention.key_book(dim, length, generator)
                keys["k"][:, head // (heads // groups)] = book.keys
            q[:, head] = book.ask(onehot_attention.draw(seen, generator), generator)
    dtype = cache_dtype(case)
    held = {name: (value / scales(case)[name]).to(dtype).float() * scales(case)[name] for name, value in keys.items()}
    return q, held


def _give_away(case: Case, inputs: dict[str, Tensor], caches: dict[str, Tensor], generator: Generator) -> None:
    """Lets the table forget the pages before the window, and fills the first page with keys of somebody else."""
    if not case["window"]:
        return
    for sequence in sequences(case, inputs):
        first = len(sequence.places) - sequence.new - case["window"]  # the key before those that are seen
        given = max(0, first - case["page"]) // case["page"]
        pages = inputs["table"][sequence.number, :given]
        for held in caches.values():
            held[pages.long()] = torch.nan
        pages.zero_()
    for name, held in caches.items():
        held[0] = torch.randn(held[0].shape, generator=generator) / scales(case)[name]
