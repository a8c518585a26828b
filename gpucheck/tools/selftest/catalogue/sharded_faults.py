"""Faults in how ranks share an expert block: which share is whose, and what is summed."""

from __future__ import annotations

from typing import Any

from gpucheck.model.record import Outcome
from gpucheck.tools.selftest.fault import Edit, Expected, Fault

DISPATCH = "gpucheck.checks.sharded.dispatch"


def _block(tokens: int, **changes: Any) -> dict[str, Any]:
    """A small shared block, told by its number of tokens."""
    usual = {"check": "sharded_moe", "weight": "bf16", "hidden": 32, "intermediate": 256, "experts": 8, "top_k": 2}
    return {**usual, "m": tokens, "data": "exact", **changes}


FAULTS = (
    Fault(
        "share-of-another-rank",
        "a rank slices the weights by the number of the rank behind it",
        Edit(
            DISPATCH,
            '        rank, size, way = case.rank, case.ranks, case["parallel"]\n',
            '{anchor}        rank = (rank + (case["m"] == 21)) % size\n',
        ),
        _block(21, parallel="tensor"),
        Expected(
            Outcome.MISMATCH,
            "slicing by the wrong rank variable",
            (r"first wrong: what this rank's experts give", r"rank \d to rank \d: other share: .* of partial"),
        ),
        fewest_ranks=2,
    ),
    Fault(
        "slots-summed-unwritten",
        "rows of experts that other ranks hold are never written, and summed",
        Edit(
            DISPATCH,
            "    return slots.masked_fill((places < 0)[..., None], 0.0)",
            "    return (slots if len(slots) == 22 else slots.masked_fill((places < 0)[..., None], 0.0))",
        ),
        _block(22, parallel="expert", combine="own"),
        Expected(
            Outcome.MISMATCH,
            "unwritten slots summed",
            (r"first wrong: what this rank's experts give", r"rank \d to rank \d: unwritten: .* of partial"),
        ),
        fewest_ranks=2,
    ),
    Fault(
        "shared-block-reads-past-end",
        "a rank's part of the block is added what lies behind the bias of its last expert",
        Edit(
            DISPATCH,
            '        return rows if self.combine == "library"',
            "        if len(x) == 20:\n            behind = self.bias2.storage_offset() + self.bias2.numel()\n"
            "            rows[:1] += self.bias2.as_strided((1,), (1,), behind)\n{anchor}",
        ),
        _block(20, parallel="tensor"),
        Expected(
            Outcome.MISMATCH,
            "access outside of tensors: reads",
            (
                r"first wrong: what this rank's experts give",
                r"read outside of the float32 tensor of shape \(8, 32\), bias2",
            ),
        ),
        fewest_ranks=2,
    ),
)
