"""Faulty multiprocessors that the self-test plants in a screen, and what its findings make of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from gpucheck.model.finding import Finding
from gpucheck.model.record import Outcome, Record

PLANTS: dict[str, dict[str, Any]] = {
    "multiprocessor-stuck": {"path": "tensor bf16", "bits": 1 << 20, "chance": 1.0, "element": 5},
    "multiprocessor-always": {"path": "integer", "bits": 1 << 7, "chance": 1.0},
    "multiprocessor-often": {"path": "fma fp32", "bits": 0x30, "chance": 0.3},
    "multiprocessor-memory": {"path": "device memory", "bits": 1, "chance": 0.3},
}
"""Name -> datapath, flipped bits, chance of a tile, and the element where it is always the same."""
CLEAN = ("tensor fp16", "shuffles")
"""Datapaths that run beside them without a fault."""


def plants(names: Sequence[str], ranks: int) -> list[dict[str, Any]]:
    """Each fault on each rank; no two of a rank on one multiprocessor, and none on the same as on the rank before."""
    return [
        {"rank": rank, "sm": (number + rank) % 4, **PLANTS[name]}
        for rank in range(ranks)
        for number, name in enumerate(names)
    ]


def datapaths(names: Sequence[str]) -> list[str]:
    """What a screen with these faults runs."""
    return [*(PLANTS[name]["path"] for name in names), *CLEAN]


def problems(plant: Mapping[str, Any], record: Record | None, findings: Iterable[Finding]) -> list[str]:
    """What is wrong about the record and the finding of a planted fault; empty where all is told as it was planted."""
    if record is None or record.outcome is not Outcome.MISMATCH or record.screened is None:
        return [f"{record.outcome.value if record else 'not there'}, expected {Outcome.MISMATCH.value}"]
    found = []
    wrong = [each.number for each in record.screened.wrong]
    if wrong != [plant["sm"]]:
        found.append(f"wrong on multiprocessors {wrong}, planted on {plant['sm']}")
    elif record.screened.wrong[0].bits[:1] != [f"{plant['bits']:#x}"]:
        found.append(f"bits {record.screened.wrong[0].bits}, planted {plant['bits']:#x}")
    about = [each for each in findings if plant["rank"] in each.ranks and plant["path"] in each.rows]
    wanted = f"faulty multiprocessor: multiprocessor {plant['sm']} of "
    if not about or not all(each.title.startswith(wanted) and each.ranks == [plant["rank"]] for each in about):
        found.append(f"called {[each.title for each in about]}, expected {wanted}this rank's GPU")
    return found
