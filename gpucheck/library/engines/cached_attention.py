"""The interface between checks and an engine's attention over a paged cache: what it is given, and what it gives."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gpucheck.library.engines.base import Facts

if TYPE_CHECKING:
    from torch import Tensor

KV_DTYPES = ("bf16", "fp8")
"""Of what keys and values may be in the cache; fp8 is e4m3, with one scale for all keys and one for all values."""


@dataclass(frozen=True)
class AttentionSizes:
    """Of one attention layer."""

    q_heads: int
    kv_heads: int
    head_dim: int
    page: int  # keys of a page
    window: int = 0  # keys that a query sees at most, its own among them; 0: all up to its own
    soft_cap: float = 0.0  # c of c tanh(score / c); 0: none
    kv_dtype: str = "bf16"  # of the cache, one of KV_DTYPES
    k_scale: float = 1.0  # a key is what lies in the cache times this
    v_scale: float = 1.0

    @property
    def scale(self) -> float:
        """Factor of q.k."""
        return self.head_dim**-0.5


@dataclass(frozen=True)
class AttentionBatch:
    """A batch as an engine's scheduler hands it over, on the device under test.

    B sequences, T tokens of all of them that are computed now, H and G heads of queries and of keys, D head_dim. The
    last ``q_lens`` keys of a sequence are its new ones: they are in ``k`` and ``v`` and not yet in the cache.
    """

    q: Tensor  # (T, H, D) bf16
    k: Tensor  # (T, G, D) bf16
    v: Tensor  # (T, G, D) bf16
    k_cache: Tensor  # (pages, page, G, D) of the cache's dtype
    v_cache: Tensor  # (pages, page, G, D)
    table: Tensor  # (B, most pages) int32, the pages of each sequence in order
    q_lens: Tensor  # (B,) int32, new tokens of each sequence
    lengths: Tensor  # (B,) int32, keys of each sequence, the new ones among them
    new_places: Tensor  # (T,) int64, where the new keys go in a cache whose pages are joined
    sinks: Tensor | None = None  # (H,) bf16, one more logit of each head without a value

    @property
    def starts(self) -> Tensor:
        """(B + 1,) int32: where each sequence begins among the tokens, and where the last one ends."""
        import torch

        return torch.nn.functional.pad(self.q_lens.cumsum(0), (1, 0)).to(torch.int32)


class CachedAttention(ABC):
    """One attention layer with a batch whose new keys and values it has written into its cache."""

    facts: Facts

    @abstractmethod
    def forward(self) -> Tensor:
        """The attention of the batch's tokens, (T, H, D)."""

    @abstractmethod
    def caches(self) -> tuple[Tensor, Tensor]:
        """Keys and values as they lie in the engine's cache, seen as (pages, page, G, D)."""

    @abstractmethod
    def operands(self) -> dict[str, Tensor]:
        """What a forward reads and may not write, by name."""
