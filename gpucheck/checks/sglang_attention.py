"""``sglang_attention``: SGLang's Triton attention over a pool of keys, by its backend's metadata and forward."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gpucheck.checks.base import Runtime
from gpucheck.checks.engine_attention import EngineAttention, spec
from gpucheck.model.case import Case


class SglangAttention(EngineAttention):
    """``TritonAttnBackend``: one kernel for pieces of prompts, two for decode steps, whose keys it divides."""

    engine = "sglang"
    spec = spec("sglang_attention", "paged attention by SGLang's Triton backend: pieces of prompts, or decode steps")

    def validate(self, params: Mapping[str, Any], data: str) -> str | None:
        if params["kv_dtype"] == "fp8":
            return "SGLang rounds queries and weights to fp8 beside an fp8 cache: no bound is known for that"
        return super().validate(params, data)

    def kernels(self, case: Case, runtime: Runtime) -> tuple[str, ...]:
        if case["queries"] != "decode":
            return ("_fwd_kernel",)
        return ("_fwd_grouped_kernel_stage1", "_fwd_kernel_stage1")
