"""``sglang_moe``: the gpt-oss expert block as SGLang loads and computes it, with its own choice of routing."""

from __future__ import annotations

from gpucheck.checks.engine_block import EngineBlock, engine_spec


class SglangMoe(EngineBlock):
    """SGLang's own block of its gpt-oss model."""

    engine = "sglang"
    spec = engine_spec("sglang_moe", "the gpt-oss expert block by SGLang's own loader, swizzling, routing and forward")
