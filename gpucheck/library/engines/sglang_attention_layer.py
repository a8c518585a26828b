"""SGLang's Triton attention: its backend's metadata and forward over its own pool, releases 0.5.12 to 0.5.23."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from gpucheck.library.engines.base import Facts, missing_names
from gpucheck.library.engines.cached_attention import AttentionBatch, AttentionSizes, CachedAttention
from gpucheck.library.engines.sglang_decoder import translator
from gpucheck.model.errors import Inapplicable

if TYPE_CHECKING:
    from torch import Tensor

    from gpucheck.library.adapters.base import Place

BACKEND = "sglang.srt.layers.attention.triton_backend"
BATCH = "sglang.srt.model_executor.forward_batch_info"
POOLS = "sglang.srt.mem_cache.memory_pool"


class _Unasked(AttributeError):
    """SGLang asks what no release that is known asked."""


class _Told(SimpleNamespace):
    """What SGLang is told in place of an object of its server's."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        raise _Unasked(f"its Triton attention asks its server for {name}, which no release did that gpucheck knows")


@contextmanager
def _known() -> Iterator[None]:
    """Around calls of SGLang's.

    Raises:
        Inapplicable: it asks for what it is not told.
    """
    try:
        yield
    except _Unasked as error:
        raise Inapplicable(str(error)) from error


class SglangAttention(CachedAttention):
    """``TritonAttnBackend`` with what it makes of a batch, whose new keys it has written into SGLang's own pool."""

    def __init__(
        self, arguments: Any, sizes: AttentionSizes, batch: AttentionBatch, facts: Facts, place: Place
    ) -> None:
        """Args:
        arguments: SGLang's, as published.
        place: of the pool and of all memory that the backend keeps between calls.

        Raises:
            Inapplicable: this release has no such backend, or asks its server for more than is known.
        """
        if missing := missing_names({BACKEND: ("TritonAttnBackend.init_forward_metadata",)}):
            raise Inapplicable(f"this release of sglang has no {missing}")
        self.sizes, self.batch, self.facts = sizes, batch, facts
        self.pool = _pool(sizes, batch, place)
        self.layer = _layer(sizes)
        self.tokens = place(_token_table(batch, sizes.page), "places of each sequence's keys")
        self.forward_batch = _forward_batch(batch, self.pool)
        with _known():
            self.backend = import_module(BACKEND).TritonAttnBackend(_runner(self, arguments))
            self.backend.init_forward_metadata(self.forward_batch)
        self._place_metadata(place)
        self._forward(write=True)
        facts.backend = type(self.backend).__name__
        held = self.pool.k_buffer[0]
        facts.layouts = [f"pool: keys and values {tuple(held.shape)} {held.dtype}"]

    def _place_metadata(self, place: Place) -> None:
        """Moves what the backend made between guards; memory between the steps of a divided decode holds NaN."""
        import torch

        metadata = self.backend.forward_metadata
        for name, value in vars(metadata).items():
            if isinstance(value, torch.Tensor):
                scratch = name in ("attn_logits", "attn_lse", "swa_attn_logits")
                held = torch.full_like(value, torch.nan) if scratch else value
                setattr(metadata, name, place(held, f"{name} of the backend"))

    def forward(self) -> Tensor:
        return self._forward(write=False)

    def _forward(self, *, write: bool) -> Tensor:
        """Args:
        write: puts the new keys and values into the pool first.
        """
        decode = self.forward_batch.forward_mode.is_decode_or_idle()
        forward = self.backend.forward_decode if decode else self.backend.forward_extend
        q, k, v = self.batch.q.flatten(1), self.batch.k, self.batch.v
        with _known():
            out: Tensor = forward(q, k, v, self.layer, self.forward_batch, save_kv_cache=write, sinks=self.batch.sinks)
        return out.view(self.batch.q.shape)

    def caches(self) -> tuple[Tensor, Tensor]:
        shape = self.batch.k_cache.shape
        return self.pool.k_buffer[0].view(shape), self.pool.v_buffer[0].view(shape)

    def operands(self) -> dict[str, Tensor]:
        named = ("kv_indptr", "kv_indices", "qo_indptr", "window_kv_indptr", "window_kv_indices")
        made = {name: getattr(self.backend.forward_metadata, name, None) for name in named}
        held = {"pool of keys": self.pool.k_buffer[0], "pool of values": self.pool.v_buffer[0]}
        return {**held, **{name: value for name, value in made.items() if value is not None}}


def _pool(sizes: AttentionSizes, batch: AttentionBatch, place: Place) -> Any:
    """SGLang's own pool of one layer, whose buffers (slots, G, D) hold the older keys and values."""
    slots = batch.k_cache.shape[0] * sizes.page
    pool = import_module(POOLS).MHATokenToKVPool(
        size=slots - 1,  # it has one more
        page_size=1,
        dtype=batch.k_cache.dtype,
        head_num=sizes.kv_heads,
        head_dim=sizes.head_dim,
        layer_num=1,
        device=str(batch.q.device),
        enable_memory_saver=False,
        enable_alt_stream=False,
    )
    pool.k_buffer[0] = place(batch.k_cache.flatten(0, 1), "pool of keys")
    pool.v_buffer[0] = place(batch.v_cache.flatten(0, 1), "pool of values")
    return pool


def _layer(sizes: AttentionSizes) -> Any:
    """SGLang's own layer; a window of n keys is told as the n - 1 that come before a query's own, as by its model."""
    import torch

    layer = import_module("sglang.srt.layers.radix_attention").RadixAttention(
        sizes.q_heads,
        sizes.head_dim,
        sizes.scale,
        num_kv_heads=sizes.kv_heads,
        layer_id=0,
        logit_cap=sizes.soft_cap,
        sliding_window_size=_window(sizes) if sizes.window else -1,
    )
    if sizes.kv_dtype != "bf16":
        for name, value in (("k", sizes.k_scale), ("v", sizes.v_scale)):
            setattr(layer, f"{name}_scale", torch.tensor(value))
            setattr(layer, f"{name}_scale_float", value)
    return layer


def _window(sizes: AttentionSizes) -> int | None:
    model = import_module("sglang.srt.models.gpt_oss")
    config = _Told(sliding_window=sizes.window)
    return int(model.get_attention_sliding_window_size(config)) if sizes.window else None


def _token_table(batch: AttentionBatch, page: int) -> Tensor:
    """(B, keys) int32: where each key of each sequence lies, as SGLang's table of requests says it."""
    import torch

    within = torch.arange(page, device=batch.table.device, dtype=torch.int32)
    return (batch.table[..., None] * page + within).flatten(1)


def _runner(layer: SglangAttention, arguments: Any) -> Any:
    """What the backend asks its model runner for."""
    sizes, batch = layer.sizes, layer.batch
    device, modes = batch.q.device, import_module("sglang.srt.configs.model_config").AttentionArch
    text: dict[str, Any] = {"model_type": "gpt_oss", "architectures": ["GptOssForCausalLM"]}
    config = _Told(**text)
    config.get_text_config = lambda: config
    model = _Told(
        attention_arch=modes.MHA,
        num_attention_heads=sizes.q_heads,
        get_max_num_attention_heads=lambda: sizes.q_heads,
        get_num_kv_heads=lambda *ranks: sizes.kv_heads,
        head_dim=sizes.head_dim,
        v_head_dim=sizes.head_dim,
        swa_v_head_dim=sizes.head_dim,
        context_len=layer.tokens.shape[1],
        is_encoder_decoder=False,
        hf_config=config,
        hf_text_config=config,
        linear_attn_registry_result=None,
    )
    plain = dict.fromkeys(("hybrid_gdn_config", "kimi_linear_config", "linear_attn_model_spec"))
    runner = _Told(
        **plain,
        req_to_token_pool=_Told(size=len(batch.lengths), req_to_token=layer.tokens),
        token_to_kv_pool=layer.pool,
        token_to_kv_pool_allocator=_Told(),
        sliding_window_size=_window(sizes),
        server_args=arguments,
        model_config=model,
        device=str(device),
        gpu_id=device.index or 0,
        page_size=1,
        is_draft_worker=False,
        kv_cache_dtype=batch.k_cache.dtype,
        decode_num_tokens_per_req=lambda: 1,
        spec_algorithm=_Told(is_dspark=lambda: False, is_none=lambda: True),
    )
    runner.kv_index_translator = translator(runner)
    return runner


def _forward_batch(batch: AttentionBatch, pool: Any) -> Any:
    """What SGLang's scheduler tells a backend of a batch: decode steps, or pieces of prompts and decode steps."""
    import torch

    mode = import_module(BATCH).ForwardMode
    decode = bool((batch.q_lens == 1).all())
    lengths, old = batch.lengths.long(), (batch.lengths - batch.q_lens).long()
    return _Told(
        forward_mode=mode.DECODE if decode else mode.EXTEND,
        batch_size=len(lengths),
        req_pool_indices=torch.arange(len(lengths), device=lengths.device),
        seq_lens=lengths,
        seq_lens_cpu=lengths.cpu(),
        seq_lens_sum=int(lengths.sum()),
        extend_seq_lens=batch.q_lens,
        extend_seq_lens_cpu=batch.q_lens.tolist(),
        extend_prefix_lens=old,
        extend_prefix_lens_cpu=old.tolist(),
        extend_start_loc=batch.starts[:-1],
        out_cache_loc=batch.new_places,
        out_cache_loc_is_physical=False,  # that, in a plain pool, is the same
        token_to_kv_pool=pool,  # until 0.5.12
        spec_info=None,
        encoder_lens=None,
        kv_loc_plan=None,
        positions=None,
        mha_one_shot=False,
        attn_attend_prefix_cache=None,
    )
