"""``vllm_fused_moe``: experts in bf16 by vLLM's own ``fused_moe_kernel``, with its choice of experts around it."""

from __future__ import annotations

from gpucheck.checks.fused_experts import FusedExpertsCheck, spec


class VllmFusedMoe(FusedExpertsCheck):
    """vLLM's default for experts that are not quantized."""

    engine = "vllm"
    spec = spec(
        "vllm_fused_moe",
        "experts in bf16 by vLLM's own kernel: routing, gate and up, silu, down, sum",
        ("layer", "functions"),
    )
