"""The expert block of gpt-oss through an engine's own loading and forward: what the checks of all engines share.

An engine pads, swizzles, slices and patches before it calls the library, so the library can be wrong and the engine
right, or the other way round. What it is given is what a checkpoint holds; memory around each buffer that a product
reads is filled by gpucheck, after all of the engine's own loading.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from gpucheck.checks.base import Runtime
from gpucheck.checks.gpt_oss_block import GptOssBlock
from gpucheck.checks.moe import block_products
from gpucheck.library.engines import load
from gpucheck.library.engines.base import Engine, Facts, Sizes, State
from gpucheck.model.case import Case
from gpucheck.model.errors import Inapplicable
from gpucheck.model.record import EnginePart

if TYPE_CHECKING:
    from torch import Tensor


class EngineBlock(GptOssBlock):
    """A check of one engine names it as :attr:`engine` and has a spec."""

    stored_biases = True

    def prepare(self, case: Case, inputs: dict[str, Tensor], runtime: Runtime) -> Any:
        sizes = Sizes(case["hidden"], case["intermediate"], case["experts"], case["top_k"])
        block = by_engine(runtime, lambda engine: engine.expert_block(sizes, state_of(inputs), runtime.place))
        return inputs["x"], block

    def operands(self, case: Case, prepared: Any) -> Any:
        x, block = prepared
        return {"x": x, **block.operands()}

    def twins(self, case: Case) -> tuple[str, ...]:
        """Engines have weights in the library's own layouts for the device."""
        return block_products("mxfp4", "default", case)

    def launch(self, case: Case, prepared: Any, runtime: Runtime) -> dict[str, Tensor]:
        import torch

        x, block = prepared
        with torch.no_grad():
            outputs: dict[str, Tensor] = block.forward(x)
        return outputs


class Made(Protocol):
    """What an engine made, with what the record says of it."""

    @property
    def facts(self) -> Facts: ...


M = TypeVar("M", bound=Made)


def by_engine(runtime: Runtime, make: Callable[[Engine], M]) -> M:
    """What ``make`` gives of the engine of this process; the record says what part the engine had in it.

    Raises:
        Inapplicable: there is no engine here, or it imports something that was not fetched with it.
    """
    import torch

    engine = load(runtime.library, runtime.device)
    try:
        with torch.no_grad():
            made = make(engine)
    except ModuleNotFoundError as error:
        if engine.planned["installed"] or (error.name or "").partition(".")[0] in (engine.name, "triton_kernels"):
            raise
        release = f"{engine.name} {engine.planned['version']}"
        raise Inapplicable(f"{release} imports {error.name}, which is neither installed nor fetched") from error
    runtime.engine_part(EnginePart(engine.planned["name"], engine.planned["version"], **vars(made.facts)))
    return made


def state_of(inputs: dict[str, Tensor]) -> State:
    """The inputs as a checkpoint holds them."""
    import torch

    def blocks(name: str) -> Tensor:
        return inputs[name].mT.unflatten(-1, (-1, 16)).contiguous()

    return State(
        router=inputs["router"],
        up_blocks=blocks("up"),
        up_scales=inputs["up_scale"].mT.contiguous(),
        up_bias=inputs["up_bias"].to(torch.bfloat16),
        down_blocks=blocks("down"),
        down_scales=inputs["down_scale"].mT.contiguous(),
        down_bias=inputs["down_bias"].to(torch.bfloat16),
    )
