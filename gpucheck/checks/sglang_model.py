"""``sglang_model``: a small gpt-oss by SGLang's own model, from a prompt to decoded tokens."""

from __future__ import annotations

from gpucheck.checks.engine_model import EngineModel, spec


class SglangModel(EngineModel):
    """SGLang's ``GptOssForCausalLM`` with its Triton attention over its pools of keys and values."""

    engine = "sglang"
    spec = spec("sglang_model", "a small gpt-oss by SGLang's own model: prompt, cache and greedy decoding")
