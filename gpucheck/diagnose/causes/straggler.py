"""Ranks that are right but slow: in a server whose ranks wait for each other, each is as fast as the slowest.

No failure, so no evidence is recognised in single records: what tells is a rank against its peers over many cases.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from gpucheck.diagnose.causes.common import launched_unlike, rank_warning
from gpucheck.diagnose.page import Cause
from gpucheck.diagnose.speeds import call_seconds, geometric_mean
from gpucheck.diagnose.wording import rank_list, took
from gpucheck.model.finding import Finding
from gpucheck.model.record import Outcome, Record
from gpucheck.records.run_folder import Run

STRAGGLER = Cause(
    "straggler",
    means="A rank computes the right numbers, but slower than the ranks beside it. Where ranks wait for each "
    "other, as in tensor or expert parallelism, all become as slow as this one.",
    shows="A warning, with no influence on the verdict: over the timed cases its calls take longer than the median "
    "of its peers by the factor that the scenario states (straggler, 1.25 by default). Times are the GPU's own, so "
    "a busy host does not show; differences of a few microseconds are ignored.",
    confirm="gpucheck run SCENARIO --bench measures at length, and each rank's ceilings: low ceilings are the "
    "GPU's, equal ones point at the kernels it launched. nvidia-smi -q -d CLOCK,PERFORMANCE,TEMPERATURE under "
    "load; gpucheck doctor; CUDA_VISIBLE_DEVICES in another order shows whether it follows the GPU.",
    fix="Look for heat, a power cap or locked clocks, for another process on that GPU, for a MIG instance, and "
    "whether the rank's environment makes it take other kernels.",
)
CAUSES = (STRAGGLER,)

MARGIN = 5e-6  # s; smaller differences are none
FEWEST = 3  # cases that must agree
AGREEING = 2 / 3  # of the cases that can tell, so many must agree: what comes and goes is not the rank's


@dataclass(frozen=True)
class _Comparison:
    """One case of a rank against its peers."""

    record: Record
    group: list[Record]  # the peers and the record itself
    typical: float  # s, median of the peers
    longest: float  # s, of the group

    @property
    def seconds(self) -> float:
        return self.record.timings["call"]

    @property
    def factor(self) -> float:
        """How many times as slow the rank is; 1 where the difference is within MARGIN."""
        return self.seconds / self.typical if abs(self.seconds - self.typical) > MARGIN else 1.0

    @property
    def peers(self) -> list[Record]:
        return [other for other in self.group if other is not self.record]


def warnings(run: Run) -> list[Finding]:
    """A warning for each rank that is slower than the median of its peers by the factor that the plan states."""
    found = []
    for rank, compared in _comparisons(run).items():
        told = [each for each in compared if _tells(each, run.plan.straggler)]
        slow = [each for each in told if each.factor >= run.plan.straggler]
        if len(slow) < max(FEWEST, AGREEING * len(told)):
            continue
        factor = geometric_mean(each.factor for each in told)
        if factor >= run.plan.straggler:
            found.append(_finding(run, rank, factor, told, slow))
    return found


def _comparisons(run: Run) -> dict[int, list[_Comparison]]:
    """Of each rank, every case that it and others with GPUs of the same kind passed and were timed with."""
    found: dict[int, list[_Comparison]] = {rank: [] for rank in run.ranks}
    for step in range(len(run.plan.steps)):
        groups: dict[str, list[Record]] = {}
        for record in (run.records[(step, rank)] for rank in run.ranks):
            if record.outcome is Outcome.PASS and call_seconds(record) is not None:
                groups.setdefault(record.device, []).append(record)
        for group in (group for group in groups.values() if len(group) > 1):
            times = sorted(record.timings["call"] for record in group)
            for record in group:
                typical = _median_without(times, record.timings["call"])
                found[record.rank].append(_Comparison(record, group, typical, times[-1]))
    return found


def _median_without(ordered: Sequence[float], value: float) -> float:
    """The median of all but one of at least two ascending values."""
    place, count = bisect_left(ordered, value), len(ordered) - 1
    low, high = (index + (index >= place) for index in ((count - 1) // 2, count // 2))
    return (ordered[low] + ordered[high]) / 2


def _tells(comparison: _Comparison, factor: float) -> bool:
    """Whether a case takes so long on any rank that the factor would show beyond MARGIN.

    Of any: were it this rank alone, its spikes would choose the cases that it is judged by.
    """
    return comparison.longest * (factor - 1) > MARGIN


def _finding(run: Run, rank: int, factor: float, told: list[_Comparison], slow: list[_Comparison]) -> Finding:
    others = rank_list(other.rank for each in told for other in each.peers)
    worst = sorted(slow, key=lambda each: -each.factor)
    lines = [
        f"{len(slow)} of {len(told)} cases at least {run.plan.straggler:g} times as slow as the median of {others}; "
        f"geometric mean {factor:.2f}"
    ]
    lines += launched_unlike((each.record, each.peers) for each in slow)
    return rank_warning(
        run,
        STRAGGLER,
        f"{factor:.2f} times as slow as its peers",
        [(each.record, _slowdown_text(each)) for each in worst],
        lines + _gpu_lines(run, rank),
    )


def _slowdown_text(comparison: _Comparison) -> str:
    times = f"{took(comparison.seconds)} a call, its peers {took(comparison.typical)}"
    return f"{times}: {comparison.factor:.2f} times as slow"


def _gpu_lines(run: Run, rank: int) -> list[str]:
    """What the driver said of the GPU meanwhile, beside those of the other ranks."""
    if rank not in run.gpus:
        return []
    others = [facts for other, facts in sorted(run.gpus.items()) if other != rank]
    own = _gpu_words([run.gpus[rank]])
    beside = f"; those of the other ranks: {_gpu_words(others)}" if others else ""
    return [f"nvidia-smi during the run, of its GPU: {own}{beside}"] if own else []


def _gpu_words(gpus: list[dict[str, Any]]) -> str:
    """``SM clock 1980 of 1980 MHz, 61 to 65 C, slowed by sw_power_cap``; what is not known is left out."""
    words = []
    clocks, highest = (_span(gpus, key) for key in ("sm_clock", "sm_clock_max"))
    if clocks:
        words.append(f"SM clock {clocks}" + (f" of {highest}" if highest else "") + " MHz")
    if warmth := _span(gpus, "temperature"):
        words.append(f"{warmth} C")
    reasons = dict.fromkeys(str(reason) for facts in gpus for reason in facts.get("throttle") or [])
    return ", ".join(words + ([f"slowed by {', '.join(reasons)}"] if reasons else []))


def _span(gpus: list[dict[str, Any]], key: str) -> str:
    values = [facts[key] for facts in gpus if isinstance(facts.get(key), (int, float))]
    if not values:
        return ""
    return f"{min(values)}" if min(values) == max(values) else f"{min(values)} to {max(values)}"
