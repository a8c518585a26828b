"""``sharded_moe``: the expert block shared by ranks, by tensor or expert parallelism: exactly the block of one rank.

Every number is exact, so parts may be added in any order: what differs by one bit is wrong. Beside the result, each
rank shows what it was sent, what it looked its experts up by and what they gave, before the ranks add that up: so the
first of these that is wrong says whether the dispatch, the experts or the collective is at fault.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from gpucheck.checks.base import JointCheck, Runtime
from gpucheck.model.case import Case, CheckSpec, Param
from gpucheck.model.record import Mismatch, NeededLaunches, Transfer
from gpucheck.verify.expected import Axes, Expected

if TYPE_CHECKING:
    import torch
    from torch import Tensor


class ShardedMoe(JointCheck):
    """Tokens -> experts, of which each rank has a share -> sums over slots and ranks."""

    spec = CheckSpec(
        name="sharded_moe",
        summary="the expert block shared by all ranks: slices or dispatch, experts, and what ranks add up",
        data_kinds=("exact",),
        rows=("parallel",),
        sizes=("m", "hidden", "intermediate"),
        params=(
            Param("parallel", "tensor", "what a rank has of the experts", ("tensor", "expert", "dispatch")),
            Param("weight", "mxfp4", "format of both weights", ("bf16", "mxfp4")),
            Param("m", 16, "tokens of all ranks", label="m"),
            Param("hidden", 64, "width of a token", label="h"),
            Param("intermediate", 256, "width between the two products", label="i"),
            Param("experts", 8, "experts of all ranks", label="e"),
            Param("top_k", 4, "experts per token", label="top"),
            Param("load", "random", "how tokens spread over experts", ("random", "skewed", "one"), label="load-"),
            Param("empty", False, "some slots of tokens have no expert"),
            Param("layout", "strided", "how mx weights lie in memory", ("strided", "default"), label="layout-"),
            Param("through", "own", "whose dispatch moves the tokens", ("own", "library"), label="through-"),
            Param("combine", "library", "who adds up the slots of a token", ("library", "own"), label="sum-"),
        ),
    )

    def validate(self, params: Mapping[str, Any], data: str) -> str | None:
        if params["hidden"] % 32 or params["intermediate"] % 32:
            return "hidden and intermediate must be multiples of 32, the block of mxfp4"
        if not 1 <= params["top_k"] <= min(4, params["experts"]):
            return f"needs 1 <= top_k <= experts and at most 4, not {params['top_k']} and {params['experts']}: " + (
                "sums of more experts are not exact in bf16"
            )
        if params["through"] == "library" and (params["parallel"] != "dispatch" or params["empty"]):
            return "through = library goes with parallel = dispatch, and with an expert for each slot"
        if params["weight"] == "bf16" and params["layout"] != "strided":
            return "layout default goes with mx weights"
        return None

    def inputs(self, case: Case, generator: torch.Generator) -> dict[str, Tensor]:
        """All tokens and experts on each rank: that it takes its own share of them is part of what is judged."""
        from gpucheck.checks.sharded.exact_block import make

        return make(case, generator)

    def reference(self, case: Case, inputs: dict[str, Tensor]) -> dict[str, Expected]:
        from gpucheck.checks.sharded.shard_reference import references

        return references(case, inputs)

    def order_mismatches(
        self,
        case: Case,
        inputs: dict[str, Tensor],
        outputs: dict[str, Tensor],
        expected: dict[str, Expected],
        mismatches: list[Mismatch],
    ) -> tuple[list[Mismatch], str]:
        from gpucheck.checks.sharded.shard_reference import ORDER, WORDS

        ordered = sorted(mismatches, key=lambda each: ORDER.index(each.output))
        return ordered, f"first wrong: {WORDS[ordered[0].output]}" if ordered else ""

    def transfers(
        self, case: Case, inputs: dict[str, Tensor], outputs: dict[str, Tensor], expected: dict[str, Expected]
    ) -> list[Transfer]:
        from gpucheck.checks.sharded.shard_faults import transfers

        return transfers(case, inputs, outputs, expected)

    def prepare(self, case: Case, inputs: dict[str, Tensor], runtime: Runtime) -> Any:
        from gpucheck.checks.sharded.dispatch import Shared, TorchCollectives
        from gpucheck.model.errors import Inapplicable

        share = case["experts"] if case["parallel"] != "tensor" else case["intermediate"] // 32
        if share < case.ranks:
            raise Inapplicable(f"{case.ranks} ranks cannot share {share} {self._shared(case)}")
        return Shared(case, inputs, runtime, TorchCollectives())

    def _shared(self, case: Case) -> str:
        return "blocks of 32 of the width" if case["parallel"] == "tensor" else "experts"

    def operands(self, case: Case, prepared: Any) -> Any:
        return {**prepared.inputs, **prepared.experts.operands()}

    def launch(self, case: Case, prepared: Any, runtime: Runtime) -> dict[str, Tensor]:
        outputs: dict[str, Tensor] = prepared.launch()
        return outputs

    def twins(self, case: Case) -> tuple[str, ...]:
        """Of this rank's share."""
        from gpucheck.checks.moe import block_products
        from gpucheck.checks.sharded.shares import share, width_share

        shared, rank, ranks = case["parallel"] == "tensor", case.rank, max(1, case.ranks)
        of = width_share if shared else share
        name = "intermediate" if shared else "experts"
        part = of(case[name], rank, ranks)
        return block_products(case["weight"], case["layout"], {**case.params, name: part.stop - part.start})

    def kernels(self, case: Case, runtime: Runtime) -> tuple[str, ...]:
        return runtime.library.kernels["matmul"]

    def needed_launches(self, case: Case, runtime: Runtime) -> tuple[NeededLaunches, ...]:
        """Two products, of which the second adds up the rows of a token where the library does that."""
        from gpucheck.checks.moe import launch_config

        per_token = 1 if case["through"] == "library" else case["top_k"]
        sums = int(per_token > 1 and case["combine"] == "library")
        return runtime.library.products(launch_config(), 2, sums=sums)

    def axes(self, case: Case, inputs: dict[str, Tensor]) -> dict[str, Axes]:
        from gpucheck.checks.sharded.shard_reference import axes

        return axes(case)
