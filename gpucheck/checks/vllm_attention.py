"""``vllm_attention``: vLLM's Triton attention over its paged cache, by its backend's metadata, write and forward."""

from __future__ import annotations

from gpucheck.checks.base import Runtime
from gpucheck.checks.engine_attention import EngineAttention, spec
from gpucheck.model.case import Case


class VllmAttention(EngineAttention):
    """``TritonAttentionImpl`` and the unified attention behind it."""

    engine = "vllm"
    spec = spec("vllm_attention", "paged attention by vLLM's Triton backend: prompts and decode steps in one batch")

    def kernels(self, case: Case, runtime: Runtime) -> tuple[str, ...]:
        """Since 0.20 one kernel, before one for each way to divide the keys."""
        return ("kernel_unified_attention", "kernel_unified_attention_2d", "kernel_unified_attention_3d")
