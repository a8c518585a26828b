"""vLLM's Triton attention: its backend's own metadata, cache, cache write and forward, releases 0.12 to 0.33."""

from __future__ import annotations

from dataclasses import fields
from importlib import import_module
from typing import TYPE_CHECKING, Any

from gpucheck.library.engines.base import Facts, first_module
from gpucheck.library.engines.cached_attention import AttentionBatch, AttentionSizes, CachedAttention

if TYPE_CHECKING:
    from torch import Tensor

    from gpucheck.library.adapters.base import Place

BACKEND = "vllm.v1.attention.backends.triton_attn"
COMMON = ("vllm.v1.attention.backend", "vllm.v1.attention.backends.utils")
"""Modules of what a scheduler tells all backends: since 0.16, before."""


class VllmAttention(CachedAttention):
    """``TritonAttentionImpl`` with what its own metadata builder makes of a batch."""

    def __init__(self, config: Any, sizes: AttentionSizes, batch: AttentionBatch, facts: Facts, place: Place) -> None:
        """Args:
        config: vLLM's, which is current now.
        place: of the cache and of all memory that the backend keeps between calls.
        """
        import torch

        self.sizes, self.batch, self.facts = sizes, batch, facts
        self.backend = import_module(BACKEND).TritonAttentionBackend
        self.impl = self.backend.get_impl_cls()(
            num_heads=sizes.q_heads,
            head_size=sizes.head_dim,
            scale=sizes.scale,
            num_kv_heads=sizes.kv_heads,
            alibi_slopes=None,
            sliding_window=sizes.window or None,
            kv_cache_dtype="auto" if sizes.kv_dtype == "bf16" else sizes.kv_dtype,
            logits_soft_cap=sizes.soft_cap or None,
            sinks=batch.sinks,
        )
        self.layer = torch.nn.Module()
        for name, value in (("q", 1.0), ("k", sizes.k_scale), ("v", sizes.v_scale)):
            setattr(self.layer, f"_{name}_scale", place(torch.tensor(value, device=batch.q.device), f"scale of {name}"))
            setattr(self.layer, f"_{name}_scale_float", value)
        self.cache = place(filled_cache(self.backend, sizes, batch), "pages of the cache")
        self.metadata = metadata(self.backend, config, sizes, batch)
        for name, value in vars(self.metadata).items():
            if name.startswith("softmax_segm_") and value is not None:  # memory between the steps of a split decode
                setattr(self.metadata, name, place(torch.full_like(value, torch.nan), f"{name} of the backend"))
        self._write()
        facts.backend = f"{self.backend.get_name()} {type(self.impl).__name__}"
        facts.layouts = [f"cache: {tuple(self.cache.shape)} {self.cache.dtype} of strides {self.cache.stride()}"]

    def _write(self) -> None:
        """Puts the new keys and values into the cache; until 0.12 a forward does it if it is given any."""
        if not hasattr(self.impl, "do_kv_cache_update"):
            self._forward(self.batch.k, self.batch.v)
            return
        new = self.batch.k, self.batch.v
        self.impl.do_kv_cache_update(self.layer, *new, self.cache, self.metadata.slot_mapping)

    def _forward(self, k: Tensor | None, v: Tensor | None) -> Tensor:
        import torch

        out = torch.empty(self.batch.q.shape, dtype=self.batch.q.dtype, device=self.batch.q.device)
        self.impl.forward(self.layer, self.batch.q, k, v, self.cache, self.metadata, output=out)
        return out

    def forward(self) -> Tensor:
        if hasattr(self.impl, "do_kv_cache_update"):
            return self._forward(self.batch.k, self.batch.v)
        return self._forward(None, None)

    def caches(self) -> tuple[Tensor, Tensor]:
        return cache_halves(self.cache, self.sizes.head_dim)

    def operands(self) -> dict[str, Tensor]:
        held = {"pages of the cache": self.cache, "seq_lens": self.metadata.seq_lens}
        held |= {f"scale of {name}": getattr(self.layer, f"_{name}_scale") for name in ("q", "k", "v")}
        named = ("query_start_loc", "block_table")
        return {**held, **{name: getattr(self.metadata, name) for name in named}}


def empty_cache(backend: Any, sizes: AttentionSizes, pages: int, dtype: Any, device: Any) -> Tensor:
    """The memory of a layer's cache in the backend's own shape and order of axes."""
    import torch

    if hasattr(backend, "get_kv_cache_shape"):
        shape = backend.get_kv_cache_shape(pages, sizes.page, sizes.kv_heads, sizes.head_dim)
        return torch.empty(shape, dtype=dtype, device=device)
    shape = (pages, sizes.page, sizes.kv_heads, 2 * sizes.head_dim)  # since 0.30 the same for all backends
    return torch.empty(shape, dtype=dtype, device=device).transpose(1, 2)


def cache_halves(cache: Tensor, head_dim: int) -> tuple[Tensor, Tensor]:
    """Keys and values of a cache, both seen as (pages, page, heads, head_dim)."""
    if cache.ndim == 5:  # (pages, 2, page, heads, head_dim)
        keys, values = cache.unbind(1)
    else:  # (pages, heads, page, both)
        keys, values = cache.transpose(1, 2).split(head_dim, dim=-1)
    return keys, values


def filled_cache(backend: Any, sizes: AttentionSizes, batch: AttentionBatch) -> Tensor:
    """The batch's cache in the backend's own form."""
    cache = empty_cache(backend, sizes, len(batch.k_cache), batch.k_cache.dtype, batch.k_cache.device)
    for half, given in zip(cache_halves(cache, sizes.head_dim), (batch.k_cache, batch.v_cache), strict=True):
        half.copy_(given)
    return cache


def metadata(backend: Any, config: Any, sizes: AttentionSizes, batch: AttentionBatch) -> Any:
    """What the backend's builder makes of a batch; ``config`` is vLLM's current one."""
    interface = import_module("vllm.v1.kv_cache_interface")
    known = {
        "block_size": sizes.page,
        "num_kv_heads": sizes.kv_heads,
        "head_size": sizes.head_dim,
        "dtype": batch.k_cache.dtype,
        "sliding_window": sizes.window or None,
    }
    kind = interface.SlidingWindowSpec if sizes.window else interface.FullAttentionSpec
    spec = kind(**_taken(kind, known))
    builder = backend.get_builder_cls()(spec, ["layer"], config, batch.q.device)
    return builder.build(0, common_metadata(batch))


def common_metadata(batch: AttentionBatch) -> Any:
    """A batch as vLLM's model runner tells it to all backends."""
    kind = first_module(*COMMON).CommonAttentionMetadata
    starts, lengths = batch.starts, batch.lengths
    known = {
        "query_start_loc": starts,
        "query_start_loc_cpu": starts.cpu(),
        "seq_lens": lengths,
        "seq_lens_cpu": lengths.cpu(),
        "num_computed_tokens_cpu": (lengths - batch.q_lens).cpu(),
        "num_reqs": len(lengths),
        "num_actual_tokens": len(batch.q),
        "max_query_len": int(batch.q_lens.max()),
        "max_seq_len": int(lengths.max()),
        "block_table_tensor": batch.table,
        "slot_mapping": batch.new_places,
        "causal": True,
    }
    return kind(**_taken(kind, known))


def _taken(kind: Any, known: dict[str, Any]) -> dict[str, Any]:
    """Those values whose fields a dataclass has."""
    names = {field.name for field in fields(kind)}
    return {name: value for name, value in known.items() if name in names}
