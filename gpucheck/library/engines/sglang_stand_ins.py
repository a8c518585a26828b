"""What stands for SGLang's compiled parts where its Python files were taken out of a wheel; no number comes from it.

On a pod everything is installed, and nothing of this is used. Each stand-in is said in the record.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

from gpucheck.library.engines.base import say
from gpucheck.library.engines.plain_operators import into_blocks

KERNELS = ("gelu_and_mul", "silu_and_mul", "allreduce")
"""Names that the path of experts takes from ``sgl_kernel``; it calls none, with biases and on a rank by itself."""
NORMS = "vllm.model_executor.layers.layernorm"


def kernels(said: list[str]) -> None:
    """``sgl_kernel`` with the names that are imported from it; a call of one raises."""
    if find_spec("sgl_kernel") is not None:
        return

    def absent(*_: Any, **__: Any) -> None:
        raise NotImplementedError("sgl_kernel is compiled and not here")

    module = ModuleType("sgl_kernel", "a compiled package that is not here")
    vars(module).update(dict.fromkeys(KERNELS, absent))
    sys.modules["sgl_kernel"] = module
    say(said, "sgl_kernel whose functions raise")


def layer_norms(said: list[str], root: Path) -> None:
    """vLLM's layer norms, which 0.5.5 takes for its own where it sees no GPU; the path of experts makes none."""
    file = root / "sglang" / "srt" / "layers" / "layernorm.py"
    asked = file.is_file() and f"\n    from {NORMS} import" in file.read_text(encoding="utf-8", errors="replace")
    if not asked or find_spec("vllm") is not None:
        return

    class Absent:
        def __init__(self, *_: Any, **__: Any) -> None:
            raise NotImplementedError(f"{NORMS} is not here")

    module = ModuleType(NORMS, "a module of a package that is not here")
    vars(module).update(RMSNorm=Absent, GemmaRMSNorm=Absent)
    sys.modules[NORMS] = module
    say(said, f"{NORMS} whose classes raise")


def image_operators(said: list[str]) -> None:
    """The names of torchvision's operators, which its Python part asks for: beside a torch for CPUs it has none."""
    import torch

    found = find_spec("torchvision")
    if found is None or found.origin is None or torch.version.cuda is not None:
        return
    text = Path(found.origin).with_name("_meta_registrations.py").read_text(encoding="utf-8")
    for name in sorted(set(re.findall(r'register_(?:meta|fake)\("(?:torchvision::)?(\w+)"', text))):
        torch.library.define(f"torchvision::{name}", "(Tensor x) -> Tensor")
    say(said, "torch.ops.torchvision without code")


@contextmanager
def without_cuda(said: list[str]) -> Iterator[None]:
    """Inside, torch says that there is no GPU, where there is one and no flashinfer.

    Modules of SGLang import flashinfer and much of sgl_kernel as soon as there is a GPU. What SGLang is to know of the
    machine, :func:`machine` says.
    """
    import torch

    if torch.version.cuda is None or find_spec("flashinfer") is not None:
        yield
        return
    known, torch.cuda.is_available = torch.cuda.is_available, lambda: False
    say(said, "torch.cuda.is_available answers no while sglang is imported")
    try:
        yield
    finally:
        torch.cuda.is_available = known


def machine(capability: tuple[int, int], said: list[str]) -> None:
    """What SGLang would find out about the GPU with a CUDA torch and flashinfer; by its own means for tests, if any.

    It decides the layouts of weights and what is pinned in the library.
    """
    major, minor = capability
    override = getattr(_module("sglang.srt.runtime_context"), "override_platform", None)
    if override is not None:
        override(
            is_cuda=True,
            is_sm90=major == 9,
            is_sm100=major == 10,
            is_sm120=major == 12,
            is_blackwell=major in (10, 12),
            device_capability=capability,
            device_sm=10 * major + minor,
        ).install()
        say(said, f"override_platform: CUDA, capability {major}.{minor}")
        return
    answers = {"is_sm90_supported": major == 9, "is_sm100_supported": major == 10, "is_sm120_supported": major == 12}
    for name, answer in answers.items():
        for module in (_module("sglang.srt.utils.common"), _module("sglang.srt.utils")):
            if hasattr(module, name):
                setattr(module, name, _always(answer))
        say(said, f"{name} answers {'yes' if answer else 'no'}")


@contextmanager
def copies_stay(said: list[str]) -> Iterator[None]:
    """Inside, ``Tensor.cuda`` returns the tensor itself: the loader of 0.5.12 calls it on every weight."""
    import torch

    known = torch.Tensor.cuda
    torch.Tensor.cuda = lambda tensor, *_, **__: tensor  # type: ignore[method-assign, assignment]
    say(said, "Tensor.cuda leaves tensors where they are while weights are loaded")
    try:
        yield
    finally:
        torch.Tensor.cuda = known  # type: ignore[method-assign]


def alignment(module: Any, said: list[str]) -> None:
    """The operator that sorts slots of tokens by expert, for the module that calls it; -1 is an expert's id as well."""

    def align(ids: Any, experts: int, block: int, sorted_ids: Any, expert_ids: Any, padded: Any, *_: Any) -> None:
        into_blocks(ids, range(-1, experts - 1), block, sorted_ids, expert_ids, padded, -1)

    if not hasattr(module, "sgl_moe_align_block_size"):
        module.sgl_moe_align_block_size = align
        say(said, "sgl_moe_align_block_size in plain torch")


def experts(module: Any, said: list[str]) -> None:
    """Operators around the kernel of experts, and that a module takes its way for CUDA, where SGLang finds no GPU."""

    def silu_and_mul(gate_up: Any, output: Any, **_: Any) -> None:
        gate, up = gate_up.float().chunk(2, -1)
        output.copy_(gate * gate.sigmoid() * up)

    def moe_sum_reduce(rows: Any, y: Any, factor: float) -> None:
        y.copy_(rows.float().sum(1) * factor)

    if not module._is_cuda:
        module._is_cuda, module.silu_and_mul, module.moe_sum_reduce = True, silu_and_mul, moe_sum_reduce
        say(said, "silu_and_mul and moe_sum_reduce in plain torch, and the experts' way for CUDA")


def device_name(module: Any, said: list[str]) -> None:
    """The GPU's name for a module that looks for tuned files by it, where SGLang finds no GPU."""
    import torch

    if module.get_device_name() is None:
        name = torch.cuda.get_device_name()
        module.get_device_name = lambda: name
        say(said, f"get_device_name answers {name}")


@contextmanager
def rope_as_with_cuda(said: list[str]) -> Iterator[None]:
    """Inside, rope is made as where there is a GPU: with cosines in fp32, and without a compiled package of vLLM."""
    base: Any = import_module("sglang.srt.layers.rotary_embedding.base")
    known, base._is_cuda = base._is_cuda, True
    say(said, "rope is made as with CUDA and computed by forward_native, as norms are")
    try:
        yield
    finally:
        base._is_cuda = known


def _always(answer: bool) -> Callable[..., bool]:
    return lambda *_, **__: answer


def _module(name: str) -> ModuleType | None:
    try:
        return import_module(name)
    except ModuleNotFoundError:
        return None
