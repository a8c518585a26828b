"""``vllm_moe``: the gpt-oss expert block as vLLM loads and computes it, with its own choice of routing."""

from __future__ import annotations

from gpucheck.checks.engine_block import EngineBlock, engine_spec


class VllmMoe(EngineBlock):
    """vLLM's own block of its gpt-oss model, or the deepest part of it that works here."""

    engine = "vllm"
    spec = engine_spec("vllm_moe", "the gpt-oss expert block by vLLM's own loader, swizzling, routing and forward")
