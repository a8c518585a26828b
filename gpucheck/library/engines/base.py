"""The interface between checks and a serving engine: an expert block, loaded and computed as the engine does it.

Checks speak only this language; each engine translates it in one file of its own, whatever its version. Nothing here
judges or picks a device.
"""

from __future__ import annotations

import os
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from copy import copy
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from tempfile import mkdtemp
from traceback import walk_tb
from types import FrameType
from typing import TYPE_CHECKING, Any, ClassVar

from gpucheck.library.adapters.base import Place
from gpucheck.model.errors import Inapplicable, error_line

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from gpucheck.library.adapters.base import Adapter
    from gpucheck.library.engines.cached_attention import AttentionBatch, AttentionSizes, CachedAttention
    from gpucheck.library.engines.own_kernels import BlockFp8, FusedExperts, Share
    from gpucheck.library.engines.served_model import ServedModel
    from gpucheck.model.plan import PlannedEngine

HELD = {
    "up": "weights of the first product",
    "up_scale": "scales of the first product",
    "up_bias": "biases of the first product",
    "down": "weights of the second product",
    "down_scale": "scales of the second product",
    "down_bias": "biases of the second product",
}
"""What each placed tensor of a block holds, for the words on memory that is read around it."""
STORED = {**HELD, "router": "weights of the router"}
"""The same of all that a loader stores."""
PRODUCTS = {"up": "first product", "down": "second product"}
LAYERS = {"topk": "router", "routing": "router", "reduce": "reduce", "swiglu": "activation"}
"""Modules of the library that a forward calls beside its products, by the layer that they are."""
GPT_OSS = {
    "architectures": ["GptOssForCausalLM"],
    "model_type": "gpt_oss",
    "torch_dtype": "bfloat16",
    "quantization_config": {
        "quant_method": "mxfp4",
        "modules_to_not_convert": [
            "model.layers.*.self_attn",
            "model.layers.*.mlp.router",
            "model.embed_tokens",
            "lm_head",
        ],
    },
}
"""What stands in the config.json of each gpt-oss, whatever its sizes."""
NVML_CHECK = "PYTORCH_NVML_BASED_CUDA_CHECK"
COMMON = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
}
"""Environment of every engine's process: what is loaded comes from the case and from nowhere else."""


@dataclass(frozen=True)
class Sizes:
    """Of an expert block."""

    hidden: int  # width of a token
    intermediate: int  # width between the two products
    experts: int
    top_k: int
    tp: int = 1  # ranks that share the width between the products
    ep: int = 1  # ranks that share the experts
    rank: int = 0  # this rank's place in the group of all of them

    @property
    def ranks(self) -> int:
        """How many share the block."""
        return self.tp * self.ep


@dataclass(frozen=True)
class State:
    """The tensors of a block as a gpt-oss checkpoint holds them, on the device under test.

    E experts, H the width of a token, I the width between the products. Columns of the first product alternate
    between gate and up.
    """

    router: Tensor  # (E, H) bf16
    up_blocks: Tensor  # (E, 2I, H/32, 16) uint8: two mxfp4 codes a byte
    up_scales: Tensor  # (E, 2I, H/32) uint8: e8m0
    up_bias: Tensor  # (E, 2I) bf16
    down_blocks: Tensor  # (E, H, I/32, 16) uint8
    down_scales: Tensor  # (E, H, I/32) uint8
    down_bias: Tensor  # (E, H) bf16

    def named(self) -> dict[str, Tensor]:
        """The experts' tensors by the names that they have in a checkpoint."""
        return {
            "gate_up_proj_blocks": self.up_blocks,
            "gate_up_proj_scales": self.up_scales,
            "gate_up_proj_bias": self.up_bias,
            "down_proj_blocks": self.down_blocks,
            "down_proj_scales": self.down_scales,
            "down_proj_bias": self.down_bias,
        }


@dataclass
class Facts:
    """What a record says of an engine's part in a case, see :class:`gpucheck.model.record.EnginePart`.

    The depth is how much of its own code is called, the most first: its whole ``model``; the model's block of experts
    with its loader and router, a ``module``; the quantization ``method`` with its loading and forward; the
    ``functions`` that swizzle and compute.
    """

    depth: str = ""
    lacking: list[str] = field(default_factory=list)  # what a deeper entry needs and this release does not have
    backend: str = ""  # what the engine chose, in its own words
    configuration: str = ""  # of a kernel of its own: the file of tuned ones that it is from, or default, and values
    layouts: list[str] = field(default_factory=list)  # of weights and scales, with the shapes of their storages
    stand_ins: list[str] = field(default_factory=list)  # what was not the engine's own; empty where it is installed
    left_behind: list[str] = field(default_factory=list)  # what it changed in the library, for all later calls
    reload: str = ""  # what took another checkpoint before this one; "" where nothing did
    group: str = ""  # what it was told of the ranks that share the block; "" where none do


class ExpertBlock(ABC):
    """One loaded expert block."""

    facts: Facts

    @abstractmethod
    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """``router_logits`` (T, E) and ``y`` (T, H) of the tokens ``x`` (T, H), by the engine's own forward."""

    @abstractmethod
    def operands(self) -> dict[str, Tensor]:
        """What a forward reads and may not write, by name."""

    def stored(self, library: Adapter) -> dict[str, Tensor]:
        """What the loader made of the tensors named in :data:`STORED`, on the CPU and not swizzled."""
        return {}

    def load_again(self, state: State) -> str:
        """Loads another checkpoint into the same module by the engine's own means for that.

        Returns:
            Why nothing was loaded, where the engine has no such means for these weights; "" where it was.
        """
        return "its loader does that for no weights"

    def layer_of(self, error: Exception) -> str:
        """Which layer of a forward raised: router, first or second product, reduce; "" where that is not known."""
        return ""


class ModelBlock(ExpertBlock):
    """A block with a router module, tensors of the library and biases, such as the blocks of models are."""

    router: Any  # the module that computes the router's logits
    before: ModelBlock | None = None  # with the checkpoint that was loaded before this one

    @abstractmethod
    def held(self) -> dict[str, Any]:
        """The library's tensors: weights and scales of both products, by name."""

    @abstractmethod
    def biases(self) -> dict[str, Any]:
        """As the products take them, by name."""

    def place(self, place: Place) -> None:
        """Moves what the products read into memory that is watched, once the engine has swizzled it."""
        for name, tensor in self.held().items():
            tensor.storage.data = place(tensor.storage.data, HELD[name])
            self.facts.layouts.append(f"{name}: {layout_of(tensor)}")
        for name, bias in self.biases().items():
            bias.data = place(bias.data, HELD[name])

    def layer_of(self, error: Exception) -> str:
        """By the library's call that it came through: which weights that was given, or what its module is for."""
        weights = {_address(tensor): PRODUCTS[name] for name, tensor in self.held().items() if name in PRODUCTS}
        frames = [frame for frame, _ in walk_tb(error.__traceback__) if _in_library(frame)]
        for frame in frames:
            found = (weights.get(_address(value)) for value in list(frame.f_locals.values()))
            if product := next(filter(None, found), None):
                return product
        modules = [name for frame in frames for name in str(frame.f_globals.get("__name__")).split(".")]
        return next((layer for module, layer in LAYERS.items() if module in modules), "")

    def stored(self, library: Adapter) -> dict[str, Tensor]:
        held = {name: library.read_back(tensor) for name, tensor in self.held().items()}
        return {
            **held,
            **{name: bias.cpu() for name, bias in self.biases().items()},
            "router": self.router.weight.cpu(),
        }

    def operands(self) -> dict[str, Tensor]:
        held = {name: tensor.storage.data for name, tensor in self.held().items()}
        return {**held, **self.biases(), "router": self.router.weight}

    def observed(self, forward: Callable[[], Tensor]) -> dict[str, Tensor]:
        """What ``forward`` returns, and the logits that the router gave it."""
        seen: list[Any] = []
        hook = self.router.register_forward_hook(lambda module, args, output: seen.append(output))
        try:
            y = forward()
        finally:
            hook.remove()
        logits = seen[0][0] if isinstance(seen[0], tuple) else seen[0]
        return {"router_logits": logits, "y": y}


def _address(value: Any) -> int | None:
    """Where the bytes of a tensor lie, of torch's or of the library's; None for anything else."""
    import torch

    data = value if isinstance(value, torch.Tensor) else getattr(getattr(value, "storage", None), "data", None)
    return data.data_ptr() if isinstance(data, torch.Tensor) else None


def _in_library(frame: FrameType) -> bool:
    return str(frame.f_globals.get("__name__")).partition(".")[0] == "triton_kernels"


def weights_and_scales(weights: Callable[[str], Any], method: Any) -> dict[str, Any]:
    """The library's tensors of both products: ``weights`` by the engine's name of a product, scales of its method."""
    found: dict[str, Any] = {}
    for name, words in (("w13", "up"), ("w2", "down")):
        config = getattr(method, f"{name}_precision_config")
        scale = config.b_mx_scale if hasattr(config, "b_mx_scale") else config.weight_scale
        found |= {words: weights(name), f"{words}_scale": scale}
    return found


@contextmanager
def place_in_group(state: Any, groups: Sequence[str], sizes: Sizes, facts: Facts) -> Iterator[None]:
    """Inside, an engine's groups of one rank say that they have as many as share the block, and which one this is.

    The engine then cuts the checkpoint as that rank of a pod does. What a group would add up over its ranks is left as
    this rank has it: whoever called adds the parts.

    Args:
        state: the engine's module that holds its groups.
        groups: their names there; several names may stand for one group of one rank, and are told apart here.
    """
    if sizes.ranks == 1:
        yield
        return
    facts.group = f"its group of ranks is told that it has {sizes.ranks}, and leaves each one's part of a sum as it is"
    held = {name: getattr(state, name) for name in groups}
    try:
        for name, group in held.items():
            told = copy(group)
            told.world_size, told.ranks = sizes.ranks, list(range(sizes.ranks))
            told.rank = told.rank_in_group = sizes.rank  # nobody else is there, so its place in the world is the same
            told.all_reduce = lambda part: part
            setattr(state, name, told)
        yield
    finally:
        vars(state).update(held)


class Engine(ABC):
    """An engine that is imported in this process."""

    name: ClassVar[str]  # import name
    needed_file: ClassVar[str]  # in its package: without it, gpucheck cannot call this release
    packages: ClassVar[tuple[str, ...]]  # distributions that are imported on the way to an expert block
    packages_of_some: ClassVar[tuple[str, ...]] = ()  # likewise, where the release itself asks for them
    ahead: ClassVar[tuple[str, ...]] = ()  # modules of others that it imports and that are slow: alike in any process
    further_text: ClassVar[frozenset[str]] = frozenset()  # suffixes of files beside Python's that it looks for
    scratch: ClassVar[str]  # folder for what it keeps beside the cases; somebody else removes it
    environment: ClassVar[Mapping[str, str]] = {}  # set before the import, on all devices
    on_cpu: ClassVar[Mapping[str, str]] = {}  # likewise, where Triton's interpreter runs the kernels

    def __init__(self, planned: PlannedEngine, library: Adapter, device: torch.device) -> None:
        """Imports the engine.

        Raises:
            Inapplicable: it does not import with the software here.
        """
        self.planned, self.library, self.device = planned, library, device
        self.stand_ins: list[str] = []
        self._before = library_functions()

    def import_from(self, root: Path) -> None:
        """Imports the package itself, and raises ImportError where it is another than the one below ``root``."""
        place = Path(import_module(self.name).__file__ or "").resolve()
        if root.resolve() not in place.parents:
            raise ImportError(f"it was imported from {place}, expected from {root}")

    def new_folder(self) -> str:
        """For what is kept beside the cases."""
        return mkdtemp(prefix=f"gpucheck-{self.name}-", dir=Engine.scratch)

    def left_behind(self) -> list[str]:
        """What the engine has changed in the library so far, for all later calls of the process."""
        pinned = [f"{name} pinned to {value}" for name, value in constraints().items()]
        return [*pinned, *(f"{name} replaced" for name in replaced(self._before))]

    @classmethod
    def settle(cls, planned: PlannedEngine, device: str) -> None:
        """Prepares a fresh process for the import: environment and search path."""
        os.environ.update({**COMMON, **cls.environment, **(cls.on_cpu if device == "cpu" else {})})
        if not planned["installed"] and planned["root"] not in sys.path:
            sys.path[:0] = [planned["root"], *filter(None, [planned["packages"]])]  # before what is installed

    @classmethod
    def own_library(cls, root: Path) -> str:
        """The library that this release is served with, in the words of ``--library``; "" where it is not known."""
        return ""

    def expert_block(
        self, sizes: Sizes, state: State, place: Place, before: tuple[State, Tensor] | None = None
    ) -> ExpertBlock:
        """Loads a block through the deepest entry of the engine that works here.

        Args:
            place: applied, after all of the engine's own loading, to each buffer that a product reads.
            before: another checkpoint, and tokens (T, H): it is loaded and computed with first. The block then takes
                ``state`` in the same module where the engine can do that, else in a new one beside it.

        Raises:
            Inapplicable: the engine serves such a block by something else than the library under test.
        """
        block = self.loaded(sizes, state if before is None else before[0])
        if before is not None:
            first, facts = block, block.facts
            first.forward(before[1])
            try:
                refusal = first.load_again(state)
            except Exception as error:  # an engine that cannot update weights serves none that are wrong
                refusal = f"to update these weights raises {error_line(error)}"
            if refusal:
                block = self.loaded(sizes, state)
                facts, block.before = block.facts, first  # which stays alive
            facts.reload = f"a new module: {refusal}" if refusal else "the same module"
        block.place(place)
        block.facts.stand_ins = [*self.stand_ins, *block.facts.stand_ins]
        block.facts.left_behind = self.left_behind()
        return block

    @abstractmethod
    def loaded(self, sizes: Sizes, state: State) -> ModelBlock:
        """A block through the deepest entry that works here; nothing is placed yet.

        Raises:
            Inapplicable: as :meth:`expert_block`.
        """

    def attention(self, sizes: AttentionSizes, batch: AttentionBatch, place: Place) -> CachedAttention:
        """One layer of the engine's Triton attention, with the new keys and values of a batch in its own cache.

        Args:
            place: applied to the cache and to what the engine keeps between calls.

        Raises:
            Inapplicable: gpucheck knows no such attention of this engine.
        """
        raise Inapplicable(f"gpucheck knows no attention of {self.name}")

    def fused_experts(
        self, sizes: Sizes, up: Tensor, down: Tensor, share: Share | None, place: Place, tokens: int, entry: str
    ) -> FusedExperts:
        """Experts in bf16 by the engine's own kernel.

        Args:
            up: (E, 2I, H), all gates of an expert before what they are multiplied with.
            down: (E, H, I).
            share: the experts that are held here; None: all.
            tokens: of a forward.
            entry: "layer": the engine's own layer, with its loader; "functions": its functions above the kernel.

        Raises:
            Inapplicable: gpucheck knows no such kernel of this engine, or the layer's experts are computed by another.
        """
        raise Inapplicable(f"gpucheck knows no kernel of {self.name} for experts in bf16")

    def block_fp8(self, weight: Tensor, scales: Tensor, block: int, place: Place, tokens: int) -> BlockFp8:
        """A weight in fp8 by the engine's own kernels.

        Args:
            weight: (N, K) e4m3.
            scales: (ceil(N / block), ceil(K / block)) fp32.
            tokens: of a product.

        Raises:
            Inapplicable: gpucheck knows no such kernel of this engine.
        """
        raise Inapplicable(f"gpucheck knows no kernel of {self.name} for fp8 in blocks")

    def model(self, config: Mapping[str, Any], state: Mapping[str, Tensor], place: Place) -> ServedModel:
        """Loads a whole model through the engine's own code.

        Args:
            config: what stands in a checkpoint's config.json.
            state: the checkpoint's tensors by name, on the device under test.
            place: applied, after all of the engine's own loading, to each buffer that a product of experts reads.

        Raises:
            Inapplicable: gpucheck cannot call the model of this release, or it is served by something else.
        """
        raise Inapplicable(f"gpucheck does not call the whole model of {self.name} {self.planned['version']}")


@contextmanager
def fit_to_fork(device: str) -> Iterator[None]:
    """Inside, modules are imported of which forks of this process are to make use.

    Raises:
        RuntimeError: what was imported has started a thread, or has asked the driver of GPUs: forks have neither.
    """
    import torch

    threads, known = _threads(), os.environ.get(NVML_CHECK)
    os.environ[NVML_CHECK] = "1"  # so torch answers whether there is a GPU without the driver
    try:
        yield
    finally:
        if known is None:
            del os.environ[NVML_CHECK]
        else:
            os.environ[NVML_CHECK] = known
    if _threads() > threads:
        raise RuntimeError("what was imported ahead has started a thread")
    if device == "cuda":
        pid = os.fork()
        if not pid:
            os._exit(int(torch.cuda._is_in_bad_fork()))
        if os.waitpid(pid, 0)[1]:
            raise RuntimeError("what was imported ahead has asked the driver of GPUs")


def _threads() -> int:
    return len(os.listdir("/proc/self/task"))


def say(said: list[str], words: str) -> None:
    """Adds what was not said before."""
    if words not in said:
        said.append(words)


def missing_names(needed: Mapping[str, Sequence[str]]) -> str:
    """The first name that an engine does not have, of those that an entry needs by module; "" where it has all.

    Raises:
        ImportError: a module is there and does not import: that is a fault, and no other release.
    """
    for module, names in needed.items():
        try:
            held = import_module(module)
        except ModuleNotFoundError as error:
            if error.name and (module == error.name or module.startswith(f"{error.name}.")):
                return module
            raise
        for name in names:
            found = held
            for part in name.split("."):
                if not hasattr(found, part):
                    return f"{module}.{name}"
                found = getattr(found, part)
    return ""


def first_module(*names: str) -> Any:
    """The first of these modules that there is.

    Raises:
        ModuleNotFoundError: none is there.
    """
    for name in names:
        with suppress(ModuleNotFoundError):
            return import_module(name)
    raise ModuleNotFoundError(f"none of {', '.join(names)}")


CONSTRAINTS = ("triton_kernels.matmul_ogs_details.opt_flags", "triton_kernels.matmul_details.opt_flags")
"""Modules of the library that keep what engines pin for all products of the process."""


def constraints() -> dict[str, Any]:
    """What stands pinned in the library now."""
    module = next((sys.modules[name] for name in CONSTRAINTS if name in sys.modules), None)
    held = getattr(module, "_opt_flags_constraints", {})
    held = held.get() if hasattr(held, "get") and not isinstance(held, Mapping) else held
    return dict(held or {})


def library_functions() -> dict[str, Any]:
    """Each function of the library's modules by where it is found, to see which of them an engine replaces."""
    found: dict[str, Any] = {}
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] == "triton_kernels" and module is not None:
            found |= {f"{name}.{key}": value for key, value in list(vars(module).items()) if callable(value)}
    return found


def replaced(before: Mapping[str, Any]) -> list[str]:
    """Names in the library's modules that are bound to something else than they were."""
    now = library_functions()
    return sorted(name for name, value in before.items() if name in now and now[name] is not value)


def layout_of(tensor: Any) -> str:
    """``swizzled (8, 96, 640)``: the layout of one of the library's tensors, and the shape of its storage."""
    layout = tensor.storage.layout
    name = getattr(layout, "name", None) or type(layout).__name__
    return f"{name} {tuple(tensor.storage.data.shape)}"
