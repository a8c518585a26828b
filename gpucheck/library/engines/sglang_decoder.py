"""SGLang's whole model of gpt-oss: ``GptOssForCausalLM`` with its own loading, Triton attention and experts."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from functools import partial
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from gpucheck.library.engines import sglang_stand_ins
from gpucheck.library.engines.base import HELD, Engine, Facts, layout_of, say, weights_and_scales
from gpucheck.library.engines.served_model import Seen, ServedModel, engine_places, watching

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from gpucheck.library.adapters.base import Place as Placing

MODEL = "sglang.srt.models.gpt_oss"
BACKEND = "sglang.srt.layers.attention.triton_backend"
POOLS = "sglang.srt.mem_cache.memory_pool"
NEEDS = {
    MODEL: ("GptOssForCausalLM",),
    "sglang.srt.layers.rotary_embedding.base": (),
    BACKEND: ("TritonAttnBackend",),
    POOLS: ("MHATokenToKVPool", "ReqToTokenPool"),
    "sglang.srt.model_executor.forward_context": ("ForwardContext", "forward_context"),
    "sglang.srt.configs.model_config": ("ModelConfig",),
}
"""Names by module that the whole model is called with."""


class SglangModel(ServedModel):
    """The model, loaded from a checkpoint's tensors, and pools of keys and values for its layers."""

    def __init__(
        self,
        config: Mapping[str, Any],
        state: Mapping[str, Tensor],
        arguments: Any,
        facts: Facts,
        device: torch.device,
        place: Placing,
        *,
        compiled: bool,
    ) -> None:
        """Args:
        arguments: SGLang's, which are published.
        compiled: whether SGLang's compiled parts are here.
        """
        import torch

        self.arguments, self.facts, self.device, self.place = arguments, facts, device, place
        quantization = import_module("sglang.srt.layers.quantization.mxfp4").Mxfp4Config
        loader = import_module("sglang.srt.model_loader.loader").DefaultModelLoader
        self.config = _configuration(config)
        _attend_alone()
        with ExitStack() as stack:
            bf16 = import_module("sglang.srt.model_loader.utils").set_default_torch_dtype(torch.bfloat16)
            stack.enter_context(bf16)
            if not compiled:
                stack.enter_context(sglang_stand_ins.rope_as_with_cuda(facts.stand_ins))
            with torch.device(device):
                quantized = quantization.from_config({"quant_method": "mxfp4"})
                self.whole: Any = import_module(MODEL).GptOssForCausalLM(self.config.hf_config, quantized)
            if device.type == "cpu":
                stack.enter_context(sglang_stand_ins.copies_stay(facts.stand_ins))
            loader.load_weights_and_postprocess(self.whole, iter(state.items()), device)
        self.whole.eval()
        self.body = self.whole.model
        if not compiled:  # SGLang chose a forward when it saw no GPU
            for layer in self.body.layers:
                layer.mlp.topk.forward = layer.mlp.topk.forward_cuda
            say(facts.stand_ins, "TopK by its forward for CUDA")
        self._held = dict(self._place())
        core = self.body.layers[0].mlp.experts.quant_method.runner.runner_core
        facts.backend = f"{type(core).__name__}, TritonAttnBackend"

    def _place(self) -> Iterator[tuple[str, Tensor]]:
        """Moves what the products of the experts read into memory that is watched."""
        for number, layer in enumerate(self.body.layers):
            method = layer.mlp.experts.quant_method
            for name, held in weights_and_scales(partial(_weight, method), method).items():
                held.storage.data = self.place(held.storage.data, HELD[name])
                if not number:
                    self.facts.layouts.append(f"{name}: {layout_of(held)}")
                yield f"{name} of layer {number}", held.storage.data

    def begin(self, batch: int, tokens: int) -> None:
        import torch

        pools, hf = import_module(POOLS), self.config.hf_config
        device = str(self.device)
        requests = pools.ReqToTokenPool(batch, tokens, device, False)
        kept = pools.MHATokenToKVPool(
            size=batch * tokens,
            page_size=1,
            dtype=torch.bfloat16,
            head_num=hf.num_key_value_heads,
            head_dim=hf.head_dim,
            layer_num=hf.num_hidden_layers,
            device=device,
            enable_memory_saver=False,
            enable_alt_stream=False,
        )
        places = torch.arange(1, batch * tokens + 1).flip(0)  # those of a sequence are in no order; 0 is SGLang's own
        self.places = places.reshape(tokens, batch).T.to(self.device)
        requests.req_to_token[1:, :tokens] = self.places.to(torch.int32)
        runner = SimpleNamespace(
            server_args=self.arguments,
            model_config=self.config,
            req_to_token_pool=requests,
            token_to_kv_pool=kept,
            token_to_kv_pool_allocator=None,
            sliding_window_size=self.whole.get_attention_sliding_window_size(),
            device=device,
            gpu_id=self.device.index or 0,
            page_size=1,
            is_draft_worker=False,
            kv_cache_dtype=torch.bfloat16,
            spec_algorithm=None,
            decode_num_tokens_per_req=lambda *_, **__: 1,
        )
        runner.kv_index_translator = translator(runner)
        self.attention = import_module(BACKEND).TritonAttnBackend(runner)

    def forward(self, tokens: Tensor, first: int) -> Seen:
        scheduled = self._scheduled(tokens, first)
        context = import_module("sglang.srt.model_executor.forward_context")
        places = engine_places(self.body, self.body.embed_tokens, "self_attn")
        with context.forward_context(context.ForwardContext(self.attention)), watching(places) as seen:
            self.attention.init_forward_metadata(scheduled)
            hidden = self.body(tokens.flatten(), scheduled.positions, scheduled)
            head = self.whole.logits_processor
            metadata = import_module("sglang.srt.layers.logits_processor").LogitsMetadata
            logits = head._get_logits(hidden, self.whole.lm_head, metadata.from_forward_batch(scheduled))
            seen["unembedding"].append(logits)
        return seen

    def _scheduled(self, tokens: Tensor, first: int) -> Any:
        """SGLang's batch of the next tokens of every sequence: a prompt is an extend, one token a decode."""
        import torch

        info = import_module("sglang.srt.model_executor.forward_batch_info")
        batch, steps = tokens.shape
        lengths = torch.full((batch,), first + steps, dtype=torch.int64, device=self.device)
        extend = first == 0
        scheduled = info.ForwardBatch(
            forward_mode=info.ForwardMode.EXTEND if extend else info.ForwardMode.DECODE,
            batch_size=batch,
            input_ids=tokens.flatten(),
            req_pool_indices=torch.arange(1, batch + 1, device=self.device),
            seq_lens=lengths,
            out_cache_loc=self.places[:, first : first + steps].flatten(),
            seq_lens_sum=batch * (first + steps),
        )
        scheduled.seq_lens_cpu = lengths.cpu()
        scheduled.positions = torch.arange(first, first + steps, device=self.device).repeat(batch)
        if extend:
            scheduled.extend_num_tokens = tokens.numel()
            scheduled.extend_seq_lens = torch.full((batch,), steps, dtype=torch.int32, device=self.device)
            scheduled.extend_prefix_lens = torch.zeros(batch, dtype=torch.int32, device=self.device)
            starts = torch.arange(batch, dtype=torch.int32, device=self.device) * steps
            scheduled.extend_start_loc = starts
            scheduled.extend_prefix_lens_cpu, scheduled.extend_seq_lens_cpu = [0] * batch, [steps] * batch
        return scheduled

    def operands(self) -> dict[str, Tensor]:
        return {**dict(self.whole.named_parameters()), **self._held}


def _attend_alone() -> None:
    """Tells SGLang that attention is computed by this rank alone; since 0.5.19 nobody asks."""
    parallel = import_module("sglang.srt.layers.dp_attention")
    for name, value in (("_ATTN_DP_RANK", 0), ("_ATTN_DP_SIZE", 1)):
        if getattr(parallel, name, value) is None:
            setattr(parallel, name, value)


def _weight(method: Any, name: str) -> Any:
    return getattr(method, f"{name}_weight_triton_tensor")


def _configuration(content: Mapping[str, Any]) -> Any:
    """SGLang's configuration for a config.json; how weights are quantized is told to the model alone.

    Without its compiled parts SGLang knows no mxfp4 here.
    """
    import torch

    content = {name: value for name, value in content.items() if name != "quantization_config"}
    with tempfile.TemporaryDirectory(prefix="gpucheck-sglang-", dir=Engine.scratch) as folder:
        Path(folder, "config.json").write_text(json.dumps(content), encoding="utf-8")
        config = import_module("sglang.srt.configs.model_config").ModelConfig(folder, dtype="bfloat16")
    config.hf_config.dtype = torch.bfloat16
    return config


def translator(runner: Any) -> Any:
    """What finds the places of keys since 0.5.19; None before."""
    try:
        made = import_module("sglang.srt.mem_cache.kv_index_translator").KVIndexTranslator
    except ModuleNotFoundError:
        return None
    return made(
        req_to_token=runner.req_to_token_pool.req_to_token,
        token_to_kv_pool_allocator=runner.token_to_kv_pool_allocator,
        token_to_kv_pool=runner.token_to_kv_pool,
        page_size=runner.page_size,
        device=runner.device,
    )
