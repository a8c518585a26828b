"""SGLang's expert block of gpt-oss: its model's own block, loader and forward, releases 0.5.5 to 0.5.23."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpucheck.library.engines import base, sglang_attention_layer, sglang_decoder, sglang_kernels, sglang_stand_ins
from gpucheck.library.engines.absent_extensions import AbsentExtensions
from gpucheck.library.engines.base import Engine, Facts, ModelBlock, Sizes, State, place_in_group, say
from gpucheck.library.engines.cached_attention import AttentionBatch, AttentionSizes, CachedAttention
from gpucheck.library.engines.own_kernels import FusedExperts, Share
from gpucheck.model.errors import Inapplicable

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from gpucheck.library.adapters.base import Adapter, Place
    from gpucheck.library.engines.served_model import ServedModel
    from gpucheck.model.plan import PlannedEngine

BACKEND = "triton_kernel"
"""What SGLang chooses for a gpt-oss in mxfp4 where the library is there and each rank holds all experts, but on sm_100.
"""
MODEL = "sglang.srt.models.gpt_oss"
MLP = "model.layers.0.mlp"
CARRIERS = ("sglang-kernel", "sgl-kernel")  # distributions that carry the library, the newer first
RANKS = ("tp", "pp", "moe_ep", "moe_dp", "moe_tp", "attn_tp", "attn_cp", "attn_dcp", "attn_dp")
"""Groups in which 0.5.23 is told this rank's place before they are made."""
SHARED = ("tp", "moe_tp", "attn_tp")
"""Groups of the ranks that share a block."""
ONE_LAYER = {
    "num_hidden_layers": 1,
    "vocab_size": 128,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "swiglu_limit": 7.0,
    "hidden_act": "silu",
}
"""The configuration of a gpt-oss, but for the sizes of its expert block."""


class Sglang(Engine):
    """One adapter serves all releases: what differs between them is looked for where it is used."""

    name = "sglang"
    needed_file = "srt/models/gpt_oss.py"
    packages = (
        "transformers",
        "torchvision",
        "aiohttp",
        "compressed-tensors==0.18.0",
        "dill",
        "einops",
        "fastapi",
        "gguf",
        "ipython",
        "msgspec",
        "openai",
        "opentelemetry-api",
        "orjson",
        "partial-json-parser",
        "pillow",
        "psutil",
        "pybase64",
        "pydantic",
        "python-multipart",
        "pyzmq",
        "sentencepiece",
        "starlette",
        "xgrammar",
    )
    ahead = ("torch._dynamo", "torch._inductor.compile_fx", "transformers", "openai", "aiohttp", "xgrammar")
    further_text = frozenset({"cuh", "h", "cu"})  # it looks for the folders of its kernels

    def __init__(self, planned: PlannedEngine, library: Adapter, device: torch.device) -> None:
        super().__init__(planned, library, device)
        self._configured = False
        self._arguments: Any = None
        try:
            self._import(Path(planned["root"]))
        except (ImportError, AttributeError, RuntimeError) as error:
            raise Inapplicable(self._refusal(error)) from error

    def _refusal(self, error: Exception) -> str:
        """Why this release does not run here."""
        release = f"sglang {self.planned['version']}"
        if isinstance(error, ModuleNotFoundError) and (error.name or "").partition(".")[0] == "triton_kernels":
            return f"{release} calls another generation of triton_kernels than {self.library.generation}: {error}"
        return f"{release} does not import with the software here: {type(error).__name__}: {error}"

    @classmethod
    def own_library(cls, root: Path) -> str:
        """It depends on a distribution that carries a copy, in one version."""
        for path in root.glob("sglang-*.dist-info/METADATA"):
            text = path.read_text(encoding="utf-8", errors="replace")
            for name in CARRIERS:
                if match := re.search(rf"^Requires-Dist: *{name} *== *([\w.]+)", text, re.MULTILINE):
                    return f"wheel:{name}=={match[1]}"
        return ""

    def _import(self, root: Path) -> None:
        with ExitStack() as stack:
            if not self.planned["installed"]:
                AbsentExtensions(root, self.name, self.stand_ins).install()
                sglang_stand_ins.kernels(self.stand_ins)
                sglang_stand_ins.layer_norms(self.stand_ins, root)
                sglang_stand_ins.image_operators(self.stand_ins)
                stack.enter_context(sglang_stand_ins.without_cuda(self.stand_ins))
            self.import_from(root)
            if self.device.type == "cpu" or find_spec("flashinfer") is None:
                sglang_stand_ins.machine(self._capability(), self.stand_ins)
            for module in (MODEL, "sglang.srt.model_loader.loader", "sglang.srt.layers.quantization.mxfp4"):
                import_module(module)
            import_module("sglang.srt.layers.moe.fused_moe_triton.triton_kernels_moe")

    def _capability(self) -> tuple[int, int]:
        import torch

        major, minor = torch.cuda.get_device_capability(self.device if self.device.type == "cuda" else None)
        return major, minor

    def _require_library(self) -> None:
        if self._capability()[0] == 10:
            raise Inapplicable("sglang computes these experts by flashinfer_mxfp4 on sm_100, not by triton_kernels")

    def loaded(self, sizes: Sizes, state: State) -> ModelBlock:
        self._require_library()
        if sizes.ep > 1:
            raise Inapplicable("sglang computes experts that ranks share by something else than triton_kernels")
        self._configure()
        try:
            return _SparseBlock(self, sizes, state, Facts("module"))
        except ModuleNotFoundError as error:
            raise Inapplicable(self._refusal(error)) from error

    @contextmanager
    def as_rank(self, sizes: Sizes, facts: Facts) -> Iterator[None]:
        """Inside, SGLang is this rank of those that share the block."""
        state = import_module("sglang.srt.distributed.parallel_state")
        with ExitStack() as stack:
            stack.enter_context(place_in_group(state, ("_TP", "_MOE_TP"), sizes, facts))
            if sizes.ranks > 1 and (parallel := _parallel()):
                told = {f"{group}_{what}": value for group in SHARED for what, value in _place(sizes).items()}
                stack.enter_context(parallel.override(**told))
            yield

    def fused_experts(
        self, sizes: Sizes, up: Tensor, down: Tensor, share: Share | None, place: Place, tokens: int, entry: str
    ) -> FusedExperts:
        self._configure()
        return sglang_kernels.SglangFusedExperts(sizes, up, down, share, place, tokens, self.stand_ins)

    def model(self, config: Mapping[str, Any], state: Mapping[str, Tensor], place: Place) -> ServedModel:
        self._require_library()
        if missing := base.missing_names(sglang_decoder.NEEDS):
            raise Inapplicable(f"sglang {self.planned['version']} has no {missing}, which gpucheck calls a model with")
        self._configure()
        facts = Facts("model", stand_ins=self.stand_ins)
        compiled = self.planned["installed"]
        given = config, state, self._arguments, facts, self.device, place
        model = sglang_decoder.SglangModel(*given, compiled=compiled)
        facts.left_behind = self.left_behind()
        return model

    def attention(self, sizes: AttentionSizes, batch: AttentionBatch, place: Place) -> CachedAttention:
        self._configure()
        facts = Facts("method", stand_ins=self.stand_ins)
        layer = sglang_attention_layer.SglangAttention(self._arguments, sizes, batch, facts, place)
        facts.left_behind = self.left_behind()
        return layer

    def _configure(self) -> None:
        """Publishes SGLang's configuration and makes its groups of ranks, once in a process."""
        if self._configured:
            return
        arguments = self._arguments = _publish()
        experts = import_module("sglang.srt.layers.moe.utils")
        try:
            experts.initialize_moe_config()
        except TypeError:  # until 0.5.18 it is handed what was published
            experts.initialize_moe_config(arguments)
        self._join()
        self._configured = True

    def _join(self) -> None:
        """SGLang's groups of ranks: this rank is a replica, all of its groups have one member.

        Where torch.distributed has a group already, SGLang is told of a world of one rank and makes its groups beside
        it. They are made without waiting for other ranks, so one that is late or gone stops nobody.
        """
        state = import_module("sglang.srt.distributed.parallel_state")
        meeting = os.path.join(self.new_folder(), "meeting")
        with _world_of_one():  # one rank never communicates, so gloo serves on GPUs
            state.init_distributed_environment(1, 0, f"file://{meeting}", self.device.index or 0, backend="gloo")
            state.initialize_model_parallel(backend="gloo")


def _parallel() -> Any:
    """What SGLang asks for sizes of groups and this rank's places, since 0.5.18; None before."""
    try:
        return import_module("sglang.srt.runtime_context").get_parallel()
    except ModuleNotFoundError:
        return None


def _place(sizes: Sizes) -> dict[str, int]:
    return {"size": sizes.ranks, "rank": sizes.rank}


def _publish() -> Any:
    """SGLang's arguments with its own choice for gpt-oss, published as its tests do; in 0.5.12 as its server does."""
    try:
        context = import_module("sglang.srt.runtime_context").get_context()
    except ModuleNotFoundError:
        server = import_module("sglang.srt.server_args")
        arguments = server.ServerArgs(model_path="dummy")
        arguments.moe_runner_backend = BACKEND
        server.set_global_server_args_for_scheduler(arguments)
        return arguments
    arguments = context.override_server_args(moe_runner_backend=BACKEND).install()
    if hasattr(context.parallel, "override_permanently"):
        context.parallel.override_permanently(**{f"{group}_rank": 0 for group in RANKS})
    return arguments


@contextmanager
def _world_of_one() -> Iterator[None]:
    """Inside, torch.distributed speaks of this rank alone, where it has a group."""
    import torch.distributed as distributed

    if not distributed.is_initialized():
        yield
        return
    known = {name: getattr(distributed, name) for name in ("get_rank", "get_world_size", "new_group")}
    alone = [distributed.get_rank()]

    def new_group(ranks: Any = None, *arguments: Any, **options: Any) -> Any:
        return known["new_group"](alone, *arguments, **{**options, "use_local_synchronization": True})

    def answer(value: int) -> Callable[..., int]:
        return lambda group=None: value

    told = {"get_rank": answer(0), "get_world_size": answer(1), "new_group": new_group}
    try:
        vars(distributed).update(told)
        yield
    finally:
        vars(distributed).update(known)


class _SparseBlock(ModelBlock):
    """``GptOssSparseMoeBlock`` of SGLang's gpt-oss: its router and its experts, loaded by the model's own loader."""

    def __init__(self, engine: Sglang, sizes: Sizes, state: State, facts: Facts) -> None:
        import torch

        self.facts, self.engine = facts, engine
        self.as_rank = partial(engine.as_rank, sizes, facts)
        with self._loading():
            with torch.device(engine.device):
                self.model = _one_block(sizes)
            self._load(state)
        self.block = self.model.model.layers[0].mlp
        self.router, self.experts = self.block.router, self.block.experts
        self.method = self.experts.quant_method
        facts.backend = self._backend()
        if not engine.planned["installed"]:  # SGLang chose a forward when it saw no GPU
            self.block.topk.forward = self.block.topk.forward_cuda
            say(facts.stand_ins, "TopK by its forward for CUDA")

    @contextmanager
    def _loading(self) -> Iterator[None]:
        """Inside, SGLang is as while it loads a model."""
        import torch

        with ExitStack() as stack:
            stack.enter_context(self.as_rank())
            bf16 = import_module("sglang.srt.model_loader.utils").set_default_torch_dtype(torch.bfloat16)
            stack.enter_context(bf16)
            if self.engine.device.type == "cpu":
                stack.enter_context(sglang_stand_ins.copies_stay(self.facts.stand_ins))
            yield

    def _load(self, state: State) -> None:
        import torch

        zero = torch.zeros(len(state.router), dtype=torch.bfloat16, device=self.engine.device)
        weights = [
            *((f"{MLP}.experts.{name}", value) for name, value in state.named().items()),
            (f"{MLP}.router.weight", state.router),
            (f"{MLP}.router.bias", zero),
        ]
        loader = import_module("sglang.srt.model_loader.loader").DefaultModelLoader
        loader.load_weights_and_postprocess(self.model, iter(weights), torch.device(self.engine.device))

    def load_again(self, state: State) -> str:
        """SGLang updates weights by loading them as at first, into the parameters that are then still there."""
        if not hasattr(self.experts, "w13_weight"):
            return "the first load removes the parameters of these weights"
        with self._loading():
            self._load(state)
        return ""

    def _backend(self) -> str:
        """What SGLang chose to compute the experts by.

        Raises:
            Inapplicable: something else than the library.
        """
        if getattr(self.method, "w13_precision_config", None) is None:
            raise Inapplicable(f"sglang's {type(self.method).__name__} loads these experts for something else here")
        core = getattr(self.method.runner, "runner_core", None)
        return f"{self.method.runner.runner_backend} {type(core).__name__}"

    def held(self) -> dict[str, Any]:
        return base.weights_and_scales(lambda name: getattr(self.method, f"{name}_weight_triton_tensor"), self.method)

    def biases(self) -> dict[str, Any]:
        return {"up_bias": self.experts.w13_weight_bias, "down_bias": self.experts.w2_weight_bias}

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        with self.as_rank():
            return self.observed(lambda: self.block(x))


def _one_block(sizes: Sizes) -> Any:
    """SGLang's gpt-oss without what surrounds the block, so that the model's own ``load_weights`` loads it."""
    import torch

    gpt_oss = import_module(MODEL)
    config = import_module("transformers.models.gpt_oss.configuration_gpt_oss").GptOssConfig(
        **ONE_LAYER,
        hidden_size=sizes.hidden,
        intermediate_size=sizes.intermediate,
        num_local_experts=sizes.experts,
        num_experts_per_tok=sizes.top_k,
    )
    config.dtype = torch.bfloat16
    quantization = import_module("sglang.srt.layers.quantization.mxfp4").Mxfp4Config

    class OneBlock(gpt_oss.GptOssForCausalLM):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            torch.nn.Module.__init__(self)
            self.config = config
            self.quant_config = quantization.from_config({"quant_method": "mxfp4"})
            layer = torch.nn.Module()
            layer.mlp = gpt_oss.GptOssSparseMoeBlock(0, config, self.quant_config, prefix=MLP)
            self.model = torch.nn.Module()
            self.model.layers = torch.nn.ModuleList([layer])

    return OneBlock()
