"""The checks, one file a kernel family: inputs, reference, launch, cost; this registry imports one on use."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from gpucheck.model.check_source import CheckSource
from gpucheck.model.errors import UsageError

if TYPE_CHECKING:
    from gpucheck.checks.base import Check

CHECKS = {
    "matmul": "gpucheck.checks.matmul:Matmul",
    "moe": "gpucheck.checks.moe:Moe",
    "batches": "gpucheck.checks.batches:Batches",
    "routing": "gpucheck.checks.routing:Routing",
    "topk": "gpucheck.checks.topk:TopK",
    "mxfp": "gpucheck.checks.mxfp:Mxfp",
    "swiglu": "gpucheck.checks.swiglu:Swiglu",
    "attention": "gpucheck.checks.attention:Attention",
    "softmax": "gpucheck.checks.softmax:Softmax",
    "weighted_matmul": "gpucheck.checks.weighted_matmul:WeightedMatmul",
    "selection_attention": "gpucheck.checks.selection_attention:SelectionAttention",
    "paged_attention": "gpucheck.checks.paged_attention:PagedAttention",
    "generation": "gpucheck.checks.generation:Generation",
    "collectives": "gpucheck.checks.collectives:Collectives",
    "peer": "gpucheck.checks.peer:Peer",
    "sharded_moe": "gpucheck.checks.sharded_moe:ShardedMoe",
    "sharded_generation": "gpucheck.checks.sharded_generation:ShardedGeneration",
    "transformers_moe": "gpucheck.checks.transformers_moe:TransformersMoe",
    "transformers_model": "gpucheck.checks.transformers_model:TransformersModel",
    "vllm_moe": "gpucheck.checks.vllm_moe:VllmMoe",
    "vllm_model": "gpucheck.checks.vllm_model:VllmModel",
    "sglang_moe": "gpucheck.checks.sglang_moe:SglangMoe",
    "vllm_fused_moe": "gpucheck.checks.vllm_fused_moe:VllmFusedMoe",
    "sglang_fused_moe": "gpucheck.checks.sglang_fused_moe:SglangFusedMoe",
    "vllm_fp8_matmul": "gpucheck.checks.vllm_fp8_matmul:VllmFp8Matmul",
    "vllm_attention": "gpucheck.checks.vllm_attention:VllmAttention",
    "sglang_model": "gpucheck.checks.sglang_model:SglangModel",
    "sglang_attention": "gpucheck.checks.sglang_attention:SglangAttention",
}
"""Those that gpucheck has itself."""
UNLISTED = {"canary": "gpucheck.checks.canary_check:Canary"}
"""Those that no scenario asks for by name."""
NEEDS = {
    "transformers_moe": ("transformers", "integrations/mxfp4.py"),
    "transformers_model": ("transformers", "integrations/mxfp4.py"),
    "vllm_moe": ("vllm", "model_executor/models/gpt_oss.py"),
    "vllm_model": ("vllm", "model_executor/models/gpt_oss.py"),
    "sglang_moe": ("sglang", "srt/models/gpt_oss.py"),
    "vllm_fused_moe": ("vllm", "model_executor/layers/fused_moe/fused_moe.py"),
    "sglang_fused_moe": ("sglang", "srt/layers/moe/moe_runner/triton_utils/fused_moe.py"),
    "vllm_fp8_matmul": ("vllm", "model_executor/layers/quantization/utils/fp8_utils.py"),
    "vllm_attention": ("vllm", "v1/attention/backends/triton_attn.py"),
    "sglang_model": ("sglang", "srt/models/gpt_oss.py"),
    "sglang_attention": ("sglang", "srt/layers/attention/triton_backend.py"),
}
"""Checks of other software: its package and the file in it that they call."""


def installed(name: str) -> bool:
    """Whether what the check called ``name`` calls is installed; looks for files and imports nothing."""
    if name not in NEEDS:
        return True
    package, file = NEEDS[name]
    spec = find_spec(package)
    return spec is not None and any((Path(folder) / file).is_file() for folder in spec.submodule_search_locations or ())


class Registry:
    """Resolves the name of a check: gpucheck's own ones, and those of the sources that are active."""

    def __init__(self, own: Mapping[str, str]) -> None:
        """Args:
        own: name -> ``module:Class``.
        """
        self._own = own
        self._sources: dict[str, CheckSource] = {}

    def activate(self, sources: Iterable[CheckSource]) -> None:
        """Makes the checks of these sources known, and those of no others; runs no code of theirs."""
        self._sources = {name: source for source in sources for name in source.checks}

    def names(self) -> tuple[str, ...]:
        """The checks that a scenario may name."""
        return (*(name for name in self._own if name not in UNLISTED), *self._sources)

    def load(self, name: str) -> Check:
        """The check called ``name``.

        Raises:
            UsageError: no check has that name, or its source is not what it was or cannot be loaded.
        """
        if name in self._sources:
            from gpucheck.checks.sources import make

            return make(self._sources[name], name)
        if name not in self._own:
            raise UsageError(f"unknown check {name!r}; known: {', '.join(self.names())}")
        module, _, attribute = self._own[name].partition(":")
        check: Check = getattr(import_module(module), attribute)()
        return check

    def folders(self) -> list[Path]:
        """Where the source of the kernels lies that checks bring along."""
        paths = [Path(file).parent for source in self._sources.values() for file in source.files]
        return [Path(__file__).parent / "kernels", *dict.fromkeys(paths)]


_registry = Registry({**CHECKS, **UNLISTED})
activate, names, load, folders = _registry.activate, _registry.names, _registry.load, _registry.folders
