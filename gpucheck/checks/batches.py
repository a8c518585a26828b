"""``batches``: the expert block on batches of several sizes, one after the other, with the same weights and objects.

What a token gets must not depend on who is served beside it, nor on what was served before: not on the batch, the
place in it, rows that pad it with NaN as in a captured graph, or earlier calls. Where the library takes the same kernel
the bits are the same, else each answer lies within its bound.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from gpucheck.checks.base import Check, Runtime
from gpucheck.checks.moe import Moe, launch_config
from gpucheck.checks.on_use import bounds, torch
from gpucheck.model.case import Case, CheckSpec, Param
from gpucheck.model.errors import Inapplicable
from gpucheck.model.record import NeededLaunches
from gpucheck.verify.expected import Axes, Expected

if TYPE_CHECKING:
    from torch import Tensor

FEW = 7  # tokens of a small batch, and of those beside NaN
CALLS = 6  # of a case without a graph


class Batches(Moe):
    """The tokens of ``moe`` alone, a few, all, alone again, beside rows of NaN, and in the opposite order."""

    spec = CheckSpec(
        name="batches",
        summary="the expert block on batches of 1, 7, m and 1 tokens, beside NaN, reordered, or from a CUDA graph",
        data_kinds=("normal",),
        rows=("weight",),
        sizes=Moe.spec.sizes,
        params=(
            *Moe.spec.params,
            Param("graph", False, "captured in a CUDA graph with other tokens, which are then replaced in place"),
        ),
    )

    cost, plain = Check.cost, Check.plain  # several calls: no time to compare

    def needs_idle_gpu(self, case: Case) -> bool:
        """A graph is captured and replayed as a server does, with the GPU for itself."""
        return bool(case.params.get("graph"))

    def takes_long(self, case: Case) -> bool:
        return True

    def validate(self, params: Mapping[str, Any], data: str) -> str | None:
        if params["m"] <= FEW:
            return f"m must be above {FEW}, not {params['m']}"
        return super().validate(params, data)

    def reference(self, case: Case, inputs: dict[str, Tensor]) -> dict[str, Expected]:
        y = super().reference(case, inputs)["y"]
        value, error = y.estimate.value, y.estimate.error
        assert error is not None

        def first(count: int) -> Expected:
            return Expected(bounds.Estimate(value[:count].clone(), error[:count].clone()), y.dtype)

        if case["graph"]:
            return {"replayed": y}
        same = torch.ones(1 + FEW + case["m"], dtype=torch.float64)
        made = {"alone": first(1), "few": first(FEW), "all": y, "again": first(1), "beside_nan": first(FEW)}
        return {**made, "same_bits": Expected(bounds.Estimate(same, None), torch.uint8)}

    def prepare(self, case: Case, inputs: dict[str, Tensor], runtime: Runtime) -> Any:
        x = inputs["x"]
        beside = torch.cat([x[:FEW], torch.full_like(x[FEW:], torch.nan)])
        made = {"beside": runtime.place(beside), "reversed": runtime.place(x.flip(0))}
        return {**super().prepare(case, inputs, runtime), **made}

    def launch(self, case: Case, prepared: Any, runtime: Runtime) -> dict[str, Tensor]:
        tokens = {name: prepared[name] for name in ("x", "ids", "id_gates")}

        def run(x: Tensor, ids: Tensor, gates: Tensor) -> Tensor:
            routing = runtime.library.routed(ids, gates, case["experts"], case["elsewhere"] > 0)
            return self.block(prepared, x, routing, runtime)

        if case["graph"]:
            return {"replayed": _replayed(run, tokens, runtime.device)}
        x, ids, gates = tokens.values()
        made = {name: run(x[:count], ids[:count], gates[:count]) for name, count in (("alone", 1), ("few", FEW))}
        made |= {"all": run(x, ids, gates), "again": run(x[:1], ids[:1], gates[:1])}
        made["beside_nan"] = run(prepared["beside"], ids, gates)[:FEW].clone()
        turned = run(prepared["reversed"], ids.flip(0), gates.flip(0)).flip(0)
        pairs = (made["again"], made["alone"]), (made["beside_nan"], made["all"][:FEW]), (turned, made["all"])
        same = [(left.view(torch.int16) == right.view(torch.int16)).all(1) for left, right in pairs]
        return {**made, "same_bits": torch.cat(same).to(torch.uint8)}

    def needed_launches(self, case: Case, runtime: Runtime) -> tuple[NeededLaunches, ...]:
        """Two products a call; one call is captured, after one that compiles."""
        calls = 2 if case["graph"] else CALLS
        return runtime.library.products(launch_config(), 2 * calls, sums=calls * (case["top_k"] > 1))

    def axes(self, case: Case, inputs: dict[str, Tensor]) -> dict[str, Axes]:
        rows = Axes(("token", "column"), (128, 128))
        if case["graph"]:
            return {"replayed": rows}
        named = dict.fromkeys(("alone", "few", "all", "again", "beside_nan"), rows)
        return {**named, "same_bits": Axes(("token alone again, beside NaN, or in the opposite order",), (0,))}


def _replayed(run: Callable[..., Tensor], tokens: Mapping[str, Tensor], device: torch.device) -> Tensor:
    """What a graph gives that was captured with the tokens in the opposite order, which the right ones replace.

    Raises:
        Inapplicable: on the CPU.
    """
    if device.type != "cuda":
        raise Inapplicable("CUDA graphs need a GPU")
    held = [tensor.flip(0).contiguous() for tensor in tokens.values()]
    usual, side = torch.cuda.current_stream(device), torch.cuda.Stream(device)
    side.wait_stream(usual)
    with torch.cuda.stream(side):
        run(*held)  # compiles, which no capture may do
    usual.wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=side, capture_error_mode="thread_local"):
        y = run(*held)
    for static, tensor in zip(held, tokens.values(), strict=True):
        static.copy_(tensor)
    graph.replay()
    return y.clone()
