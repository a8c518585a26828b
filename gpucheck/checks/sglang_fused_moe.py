"""``sglang_fused_moe``: experts in bf16 by SGLang's own ``fused_moe_kernel``, with its choice of experts around it."""

from __future__ import annotations

from gpucheck.checks.fused_experts import FusedExpertsCheck, spec


class SglangFusedMoe(FusedExpertsCheck):
    """SGLang's default for experts that are not quantized."""

    engine = "sglang"
    spec = spec(
        "sglang_fused_moe",
        "experts in bf16 by SGLang's own kernel: routing, gate and up, silu, down, sum",
        ("functions",),
    )
