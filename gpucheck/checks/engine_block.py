"""The expert block of gpt-oss through an engine's own loading and forward: what the checks of all engines share.

An engine pads, swizzles, slices and patches before it calls the library, so the library can be wrong and the engine
right, or the other way round. What it is given is what a checkpoint holds; memory around each buffer that a product
reads is filled by gpucheck, after all of the engine's own loading.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from gpucheck.checks.base import Runtime, leave_layer, raising_in
from gpucheck.checks.block_parts import Part, parts, refusal
from gpucheck.checks.gpt_oss_block import GptOssBlock, another_checkpoint, block_reference, spec
from gpucheck.checks.moe import block_products
from gpucheck.checks.on_use import bounds, torch
from gpucheck.checks.stored_state import AS_GIVEN, differences, scale_groups
from gpucheck.library.engines import load
from gpucheck.library.engines.base import Engine, ExpertBlock, Facts, Sizes, State
from gpucheck.model.case import Case, CheckSpec, Param
from gpucheck.model.errors import Inapplicable, error_line
from gpucheck.model.record import EnginePart, NeededLaunches
from gpucheck.verify.expected import Axes, Expected

if TYPE_CHECKING:
    from torch import Tensor

    from gpucheck.library.adapters.base import Place
    from gpucheck.verify.bounds import Estimate


LARGEST = 1 << 20  # hidden times intermediate of blocks whose weights are read back; smaller ones show it as well


def engine_spec(name: str, summary: str) -> CheckSpec:
    """The parameters of a block that an engine loads."""
    sharing = (
        Param("tp", 1, "ranks that share the width of each expert: each one's part is loaded and judged"),
        Param("ep", 1, "ranks that share the experts, likewise"),
    )
    reload = Param("reload", False, "another checkpoint is loaded, and computed with, before this one")
    return spec(name, summary, (*sharing, reload))


class EngineBlock(GptOssBlock):
    """A check of one engine names it as :attr:`engine` and has a spec.

    Where ranks share the block, the engine cuts the whole checkpoint for each of them in turn, in this process, told
    that it is that rank of a group. Each part is judged by itself, and so is their sum, which is the block.
    """

    stored_biases = True

    def validate(self, params: Mapping[str, Any], data: str) -> str | None:
        return super().validate(params, data) or refusal(params)

    def prepare(self, case: Case, inputs: dict[str, Tensor], runtime: Runtime) -> Any:
        names = ("hidden", "intermediate", "experts", "top_k", "tp", "ep")
        sizes = Sizes(**{name: case[name] for name in names})

        def load_part(engine: Engine, part: Part) -> ExpertBlock:
            before = (state_of(another_checkpoint(inputs)), inputs["x"]) if case["reload"] else None
            own = replace(sizes, rank=part.index)
            return engine.expert_block(own, state_of(inputs), _placing(runtime, part), before)

        def make(engine: Engine) -> _Parts:
            with raising_in("loader"):
                return _Parts(engine, [load_part(engine, part) for part in parts(case.params)], inputs)

        return by_engine(runtime, make)

    def operands(self, case: Case, prepared: Any) -> Any:
        held = {"x": prepared.given["x"]}
        for part, block in zip(parts(case.params), prepared.blocks, strict=True):
            held |= {f"{name}{part.words}": each for name, each in block.operands().items()}
        return held

    def twins(self, case: Case) -> tuple[str, ...]:
        """Engines have weights in the library's own layouts for the device; how they pad a width is their affair."""
        width, experts = case["intermediate"] // case["tp"], case["experts"] // case["ep"]
        return block_products("mxfp4", "default", {**case.params, "intermediate": width, "experts": experts})

    def reference(self, case: Case, inputs: dict[str, Tensor]) -> dict[str, Expected]:
        shared = parts(case.params)
        if len(shared) == 1:
            return block_reference(case, inputs)
        each = [block_reference(case, inputs, part=part) for part in shared]
        found = {part.output: reference["y"] for part, reference in zip(shared, each, strict=True)}
        return {"router_logits": each[0]["router_logits"], **found, "y": _sum(list(found.values()))}

    def part(self, case: Case, output: str) -> Part | None:
        return next((part for part in parts(case.params) if part.group and output == part.output), None)

    def needed_launches(self, case: Case, runtime: Runtime) -> tuple[NeededLaunches, ...]:
        """Both products of each rank."""
        return (NeededLaunches(self.kernels(case, runtime), 2 * case["tp"] * case["ep"]),)

    def axes(self, case: Case, inputs: dict[str, Tensor]) -> dict[str, Axes]:
        from gpucheck.checks.sharded.shares import local_ids

        named = super().axes(case, inputs)
        y = named["y"]
        for part in parts(case.params):
            ids = local_ids(y.owners["expert"], part.experts)
            named[part.output] = replace(y, owners={"expert": ids.where(ids < 0, ids + part.experts.start)})
        return named

    def inspect(self, case: Case, prepared: Any, outputs: dict[str, Tensor], runtime: Runtime) -> None:
        """Says what the loader stored otherwise than it was given: of use where outputs are wrong."""
        if case["hidden"] * case["intermediate"] <= LARGEST:
            facts = vars(prepared.facts)
            runtime.engine_part(engine_part(prepared.engine, **facts, **_stored(case, prepared, runtime)))

    def launch(self, case: Case, prepared: Any, runtime: Runtime) -> dict[str, Tensor]:
        with torch.no_grad():
            each: list[dict[str, Tensor]] = [_forward(block, prepared.given["x"]) for block in prepared.blocks]
            if len(each) == 1:
                return each[0]
            found = {part.output: outputs["y"] for part, outputs in zip(parts(case.params), each, strict=True)}
            whole = torch.stack(list(found.values())).sum(0, dtype=torch.float32)
        return {"router_logits": each[0]["router_logits"], **found, "y": whole}


def _forward(block: ExpertBlock, x: Tensor) -> dict[str, Tensor]:
    """What a block gives; an error says in which of its layers it was raised."""
    try:
        return block.forward(x)
    except Exception as error:
        leave_layer(error, block.layer_of(error))
        raise


def _stored(case: Case, prepared: _Parts, runtime: Runtime) -> dict[str, Any]:
    """What a record says of what is stored."""
    given = {name: value.cpu() for name, value in prepared.given.items()}
    found, groups = list[str](), dict[str, int]()
    try:
        for part, block in zip(parts(case.params), prepared.blocks, strict=True):
            stored = block.stored(runtime.library)
            found += differences(stored, part.held(given), part.words)
            groups |= scale_groups(stored, part.words)
    except Exception as error:  # of the library's inverse, which takes what its layouts hold
        found.append(f"what is stored cannot be read back: {error_line(error)}")
    return {"stored": "; ".join(found) or AS_GIVEN, "scale_groups": groups}


def _sum(each: list[Expected]) -> Expected:
    """The reference of the sum of all ranks' outputs, in fp32."""

    def summed(estimates: list[Estimate]) -> Estimate:
        stored = [bounds.rounded(estimate, torch.bfloat16) for estimate in estimates]
        errors = [each.error for each in stored if each.error is not None]
        stacked = torch.stack([each.value for each in stored])
        return bounds.summed(bounds.Estimate(stacked, torch.stack(errors)), 0)

    rounded, whole = [part.estimate for part in each], [part.alternatives[0] for part in each]
    return Expected(summed(rounded), torch.float32, alternatives=(summed(whole),))


def _placing(runtime: Runtime, part: Part) -> Place:
    """What places the tensors of a part, named by its rank where several share a block."""

    def place(tensor: Tensor, name: str = "") -> Tensor:
        return runtime.place(tensor, f"{name}{part.words}")

    return place


@dataclass(frozen=True)
class _Parts:
    """The block of each rank, in order, with the engine that loaded them and what they were given."""

    engine: Engine
    blocks: list[ExpertBlock]
    given: dict[str, Tensor]

    @property
    def facts(self) -> Facts:
        """Those of the first rank, with the layouts of all."""
        layouts = dict.fromkeys(layout for block in self.blocks for layout in block.facts.layouts)
        return replace(self.blocks[0].facts, layouts=list(layouts))


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
    engine = load(runtime.library, runtime.device)
    planned = engine.planned
    runtime.engine_part(engine_part(engine))
    try:
        with torch.no_grad():
            made = make(engine)
    except ModuleNotFoundError as error:
        if planned["installed"] or (error.name or "").partition(".")[0] in (engine.name, "triton_kernels"):
            raise
        release = f"{engine.name} {planned['version']}"
        raise Inapplicable(f"{release} imports {error.name}, which is neither installed nor fetched") from error
    runtime.engine_part(engine_part(engine, **vars(made.facts)))
    return made


def engine_part(engine: Engine, **facts: Any) -> EnginePart:
    """What a record says of an engine, with facts on its part in a case."""
    planned = engine.planned
    return EnginePart(planned["name"], planned["version"], identity=planned.get("identity", ""), **facts)


def state_of(inputs: dict[str, Tensor]) -> State:
    """The inputs as a checkpoint holds them."""

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
