"""A small gpt-oss by a serving engine's own model: what the checks of all engines share.

It is loaded from what a checkpoint holds, reads a prompt at once and decodes greedily. Data, reference and the words on
what went wrong first are those of ``generation``; a check adds the engine's own loading and forward.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from gpucheck.checks.base import Runtime, leave_outputs
from gpucheck.checks.engine_block import by_engine
from gpucheck.checks.generation import SIZES, Generation
from gpucheck.checks.moe import block_products
from gpucheck.checks.on_use import bounds, torch
from gpucheck.model.case import Case, CheckSpec, Param, with_defaults
from gpucheck.model.errors import Inapplicable
from gpucheck.model.record import NeededLaunches

if TYPE_CHECKING:
    from torch import Tensor

    from gpucheck.checks.decoder.shape import Shape
    from gpucheck.library.engines.served_model import Seen, ServedModel
    from gpucheck.model.record import Mismatch
    from gpucheck.verify.expected import Expected

OF_EXPERTS = 2  # products a layer that the library computes


def spec(name: str, summary: str) -> CheckSpec:
    """The parameters of the model, for the check of one engine."""
    layers, batch, _, *others = SIZES
    return CheckSpec(
        name=name,
        summary=summary,
        data_kinds=("normal",),
        sizes=(*Generation.spec.sizes, "prompt"),
        params=(
            *with_defaults((layers, batch), layers=2),
            Param("prompt", 6, "tokens of each sequence that are given, and read at once", label="p"),
            Param("tokens", 9, "tokens of each sequence in all; those after the prompt are decoded", label="t"),
            *with_defaults(others, hidden=320, window=4, experts=8, top_k=2, vocabulary=128),
        ),
    )


class EngineModel(Generation):
    """Embedding, norms, attention with rope, sinks and sliding windows, router, mxfp4 experts and the next token."""

    late_inputs = ("start",)
    scores: ClassVar[bool] = False
    """Whether attention stores its scores in bf16."""

    def validate(self, params: Mapping[str, Any], data: str) -> str | None:
        if reason := super().validate(params, data):
            return reason
        if not 1 < params["prompt"] <= params["tokens"]:
            return f"needs 1 < prompt <= tokens, not {params['prompt']} and {params['tokens']}"
        if params["prompt"] * params["batch"] > params["vocabulary"]:
            return "tokens of prompts are all different: prompt * batch is at most vocabulary"
        return None

    def shape(self, case: Case) -> Shape:
        from gpucheck.checks.decoder.shape import SERVED, Caller, Shape

        return Shape.of(case, Caller(SERVED, torch.bfloat16, torch.bfloat16, self.scores, yarn=True))

    def model(self, case: Case, config: dict[str, Any], state: dict[str, Tensor], runtime: Runtime) -> ServedModel:
        """Loads the model as the engine does, and says what part the engine has in it.

        Args:
            config: what stands in the checkpoint's config.json.
            state: the checkpoint's tensors, on the device under test.
        """
        return by_engine(runtime, lambda engine: engine.model(config, state, runtime.place))

    def prepare(self, case: Case, inputs: dict[str, Tensor], runtime: Runtime) -> Any:
        from gpucheck.checks.decoder import checkpoint

        shape = self.shape(case)
        with torch.no_grad():
            model = self.model(case, checkpoint.config(shape), checkpoint.tensors(shape, inputs), runtime)
        return inputs["start"], model

    def operands(self, case: Case, prepared: Any) -> Any:
        start, model = prepared
        return {"start": start, **model.operands()}

    def twins(self, case: Case) -> tuple[str, ...]:
        """Engines have weights of experts in the library's own layouts for the device."""
        return block_products("mxfp4", "default", case)

    def order_mismatches(
        self,
        case: Case,
        inputs: dict[str, Tensor],
        outputs: dict[str, Tensor],
        expected: dict[str, Expected],
        mismatches: list[Mismatch],
    ) -> tuple[list[Mismatch], str]:
        """As for ``generation``; where experts went wrong first, a known fault of callers may explain it."""
        from gpucheck.checks.decoder.shape import EXPERTS

        ordered, words = super().order_mismatches(case, inputs, outputs, expected, mismatches)
        if ordered and ordered[0].output == EXPERTS:
            words = words.replace(EXPERTS, f"{EXPERTS}{_explained(case, inputs, outputs, expected, ordered[0])}", 1)
        return ordered, words

    def launch(self, case: Case, prepared: Any, runtime: Runtime) -> dict[str, Tensor]:
        """Reads the prompt and decodes the rest, without a look at any number in between."""
        shape, (start, model) = self.shape(case), prepared
        steps: list[dict[str, Tensor]] = []
        try:
            with torch.no_grad():
                _decode(shape, start, model, steps)
        except Inapplicable:
            raise
        except Exception as error:
            leave_outputs(error, lambda: _outputs([*steps, _not_computed(shape, steps)]))
            raise
        return _outputs(steps)

    def needed_launches(self, case: Case, runtime: Runtime) -> tuple[NeededLaunches, ...]:
        """The products of the experts; which kernels compute the rest is the engine's own affair."""
        forwards = 1 + case["tokens"] - case["prompt"]
        return (NeededLaunches(self.kernels(case, runtime), forwards * case["layers"] * OF_EXPERTS),)


def _decode(shape: Shape, start: Tensor, model: ServedModel, steps: list[dict[str, Tensor]]) -> None:
    """Adds what each operation gave, forward by forward, for the prompt (P, B) and what follows it."""
    from gpucheck.checks.decoder.shape import ARGMAX, UNEMBEDDING

    given, done = start.mT, 0
    model.begin(shape.batch, shape.tokens)
    while done < shape.tokens:
        seen = model.forward(given, done)
        found = {name: _by_step(seen, name, given) for name in shape.caller.operations if name != ARGMAX}
        found[UNEMBEDDING] = found[UNEMBEDDING].to(shape.caller.logits)  # some widen what they compute in bf16
        found[ARGMAX] = found[UNEMBEDDING].argmax(-1)
        steps.append(found)
        done += given.shape[1]
        given = found[ARGMAX][-1:].mT


def _outputs(steps: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    from gpucheck.checks.decoder.shape import ARGMAX, LOGITS, TOKENS, UNEMBEDDING

    outputs = {name: torch.cat([found[name] for found in steps]) for name in steps[0]}
    return {**outputs, LOGITS: outputs[UNEMBEDDING], TOKENS: outputs[ARGMAX]}


def _not_computed(shape: Shape, steps: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """What stands for the operations of the steps that are missing: NaN, UNWRITTEN in place of integers."""
    import math

    from gpucheck.checks.decoder.shape import ARGMAX, IN_LAYER, UNWRITTEN

    missing = shape.tokens - sum(len(found[ARGMAX]) for found in steps)
    made = {}
    for name in shape.caller.operations:
        lead = (missing, shape.layers) if name in IN_LAYER else (missing,)
        filler, dtype = UNWRITTEN if name == ARGMAX else math.nan, shape.caller.dtype_of(name)
        device = steps[0][name].device if steps else None
        made[name] = torch.full((*lead, *shape.result(name)), filler, dtype=dtype, device=device)
    return made


def _by_step(seen: Seen, name: str, given: Tensor) -> Tensor:
    """What an operation gave for tokens (B, T): (T, L, B, n) if it is one of the layers, else (T, B, n)."""
    from gpucheck.checks.decoder.shape import IN_LAYER

    batch, steps = given.shape
    calls = [each.reshape(batch, steps, -1).transpose(0, 1) for each in seen[name]]
    return torch.stack(calls, 1) if name in IN_LAYER else calls[0]


def _explained(
    case: Case,
    inputs: dict[str, Tensor],
    outputs: dict[str, Tensor],
    expected: dict[str, Expected],
    mismatch: Mismatch,
) -> str:
    """What the experts of the step and layer where they went wrong first did otherwise, in brackets, or ""."""
    from gpucheck.checks.caller_faults import explanation
    from gpucheck.checks.decoder.shape import EXPERTS
    from gpucheck.verify.expected import Expected

    step, layer = mismatch.first[:2]
    block = {name: inputs[name][layer] for name in ("up", "up_scale", "up_bias", "down", "down_scale", "down_bias")}
    block |= {"x": outputs["expert norm"][step, layer], "router_logits": outputs["router"][step, layer]}
    whole = expected[EXPERTS]
    assert whole.estimate.error is not None
    estimate = bounds.Estimate(whole.estimate.value[step, layer], whole.estimate.error[step, layer])
    found = explanation(case, block, outputs[EXPERTS][step, layer], Expected(estimate, whole.dtype))
    return f" ({found})" if found else ""
