"""``sharded_generation``: the decoding of ``generation`` under tensor parallelism, by all ranks of the run.

Every rank must decode what one decodes alone. Beside the operations, each rank records its own part of every sum and
the parts of all ranks, so the first wrong step, layer and operation is a rank's own or a collective's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gpucheck.checks.base import JointCheck
from gpucheck.checks.generation import Generation
from gpucheck.model.case import Case, CheckSpec, with_defaults
from gpucheck.verify.expected import Expected

if TYPE_CHECKING:
    from torch import Tensor

    from gpucheck.model.record import Transfer

DEFAULTS = {"layers": 2, "tokens": 16, "heads": 8, "kv_heads": 4, "intermediate": 128}
"""Where they differ from those of one rank: what two and four ranks can share."""


class ShardedGeneration(Generation, JointCheck):
    """Heads, the experts' width and the vocabulary are cut into as many equal parts as there are ranks."""

    spec = CheckSpec(
        name="sharded_generation",
        summary="decoding by ranks that share the model; names the first wrong operation, and whose it is",
        data_kinds=("normal",),
        sizes=Generation.spec.sizes,
        params=with_defaults(Generation.spec.params, **DEFAULTS),
    )

    def transfers(
        self, case: Case, inputs: dict[str, Tensor], outputs: dict[str, Tensor], expected: dict[str, Expected]
    ) -> list[Transfer]:
        from gpucheck.checks.decoder.rank_faults import first_transfer
        from gpucheck.verify.judge import judge

        given = self.references_given_outputs(case, inputs, outputs, expected)
        ordered, _ = self.order_mismatches(
            case, inputs, outputs, given, judge(outputs, given, self.axes(case, inputs)).mismatches
        )
        if not ordered:
            return []
        others = (rank for rank in range(case.ranks) if rank != case.rank)
        shares = ((rank, case.at(rank, case.ranks)) for rank in others)
        of_others = ((rank, self.references_given_outputs(at, inputs, outputs, expected)) for rank, at in shares)
        return [first_transfer(case, outputs, given, ordered[0].output, of_others)]
