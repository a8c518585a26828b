"""``vllm_model``: a small gpt-oss by vLLM's own model, from a prompt to decoded tokens."""

from __future__ import annotations

from gpucheck.checks.engine_model import EngineModel, spec


class VllmModel(EngineModel):
    """vLLM's ``GptOssForCausalLM`` with its Triton attention over a paged cache."""

    engine = "vllm"
    spec = spec("vllm_model", "a small gpt-oss by vLLM's own model: prompt, paged cache and greedy decoding")
