"""How much slower a fallback is, by what the run knows."""

from __future__ import annotations

from typing import Any

from gpucheck.diagnose.conclude import conclude
from gpucheck.model.record import Ceilings, Cost, Outcome, Violation
from tests.conftest import Synthetic

MISSING = [Violation("fallback", "none of _matmul was launched; launched: none")]


def lines(synthetic: Synthetic, ranks: int, fallen: dict[int, dict[str, Any]], others: Any = None) -> list[str]:
    """What the finding says of a case that falls back on some ranks."""
    plan = synthetic.plan(cases=1, ranks=ranks)
    ends = {(0, rank): others or {} for rank in range(ranks)}
    for rank, changes in fallen.items():
        ends[(0, rank)] = {"outcome": Outcome.VIOLATION, "violations": MISSING, **changes}
    (finding,) = (f for f in conclude(synthetic.run(plan, ends)).findings if f.cause == "fallback")
    return finding.cases[0].lines


def test_against_ranks_that_launched_the_kernel(synthetic: Synthetic) -> None:
    fallen = {1: {"timings": {"call": 4e-3, "plain": 3e-3}}}
    told = lines(synthetic, 3, fallen, {"timings": {"call": 1e-3}})
    assert "4 ms a call; with the kernel 1 ms on ranks 0, 2: 4 times as long" in told
    assert told[0].startswith("fallback: none of _matmul was launched") and "ranks 0, 2 clean" in told


def test_against_plain_torch_or_the_ceilings_where_no_rank_launched_it(synthetic: Synthetic) -> None:
    slow = {"timings": {"call": 4e-3, "plain": 3e-3}}
    assert "4 ms a call; plain torch takes 3 ms" in lines(synthetic, 2, {0: slow, 1: slow})
    known = {"timings": {"call": 4e-3}, "cost": Cost(1e9, 1e6), "ceilings": Ceilings(1e12, 1e12)}
    assert "4 ms a call; the measured ceilings of this GPU allow 1 ms" in lines(synthetic, 1, {0: known})
    nothing = {"timings": {"call": 4e-3}}
    assert any("4 ms a call; --bench tells" in line for line in lines(synthetic, 1, {0: nothing}))


def test_nothing_is_said_where_nothing_was_timed(synthetic: Synthetic) -> None:
    assert not [line for line in lines(synthetic, 2, {1: {}}, {"timings": {"call": 1e-3}}) if "a call" in line]


def test_a_time_of_another_kind_of_gpu_is_no_comparison(synthetic: Synthetic) -> None:
    slow = {1: {"timings": {"call": 4e-3}}}
    for device, told in (("NVIDIA B200", False), ("NVIDIA H200", True)):
        found = lines(synthetic, 2, slow, {"timings": {"call": 1e-3}, "device": device})
        assert any("with the kernel" in line for line in found) is told
