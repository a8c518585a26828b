"""``vllm_fp8_matmul``: a weight in fp8 with a scale for each block, by vLLM's own kernels."""

from __future__ import annotations

from gpucheck.checks.block_fp8 import BlockFp8Check, spec


class VllmFp8Matmul(BlockFp8Check):
    """vLLM's Triton kernels for it; a deployment may choose DeepGEMM or CUTLASS in their place."""

    engine = "vllm"
    product = "_w8a8_triton_block_scaled_mm"
    quantiser = "_per_token_group_quant_fp8"
    spec = spec("vllm_fp8_matmul", "fp8 in blocks of 128 by vLLM's own kernels: activations quantised, then multiplied")
