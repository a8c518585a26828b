"""Ranks that are right but err far more than their peers: what still fits the bound may be on its way out of it.

No failure, so no evidence is recognised in single records: what tells is a rank against its peers on the same case.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median

from gpucheck.diagnose.causes.common import launched_unlike, rank_warning
from gpucheck.diagnose.page import Cause
from gpucheck.diagnose.wording import rank_list
from gpucheck.model.finding import Finding
from gpucheck.model.record import Outcome, Record
from gpucheck.records.run_folder import Run

LESS_EXACT = Cause(
    "less exact than its peers",
    means="A rank computes right numbers, but they lie much further from the reference than those of the ranks "
    "beside it: other kernels, a lower precision on the way, or the first of an error that grows.",
    shows="A warning, with no influence on the verdict: the rank uses at least a tenth of an error bound and ten "
    "times as much of it as the median of its peers, on GPUs of one kind with equal inputs. gpucheck diff holds a "
    "run against a stored one in the same way.",
    confirm="gpucheck report RUN --json FILE has for each case and rank the share of its bound that was used "
    "(tightness). Other seeds show whether it stays; --placement visible and CUDA_VISIBLE_DEVICES in another "
    "order show whether it follows the GPU.",
    fix="Compare the kernels and the configuration that the rank launched with those of its peers; then look for "
    "environment variables that choose a precision, and at the GPU's memory errors.",
)
CAUSES = (LESS_EXACT,)

FACTOR = 10.0  # times the share of its bound that others use
FLOOR = 0.1
"""Shares of a bound below this say nothing, and others count as using at least FLOOR / FACTOR.

One right order of a sum differs from another by so much: made one term after the other, a sum errs by 0.17 sqrt(K) half
ulps of E, which is 0.06 of its bound, as a standard deviation (see :func:`gpucheck.verify.bounds.product`).
"""


@dataclass(frozen=True)
class _Excess:
    """One case of a rank against its peers."""

    record: Record
    peers: list[Record]
    typical: float  # share of the bound, median of the peers


def excess(used: float, typical: float) -> float | None:
    """How many times as much of its bound as others a right output uses; None where that says nothing."""
    factor = used / max(typical, FLOOR / FACTOR)
    return factor if used >= FLOOR and factor >= FACTOR else None


def warnings(run: Run) -> list[Finding]:
    """A warning for each rank that uses FACTOR times as much of a bound as the median of its peers."""
    found: dict[int, list[_Excess]] = {}
    for step in range(len(run.plan.steps)):
        groups: dict[tuple[str, str, str], list[Record]] = {}
        for record in (run.records[(step, rank)] for rank in run.ranks):
            if record.outcome is Outcome.PASS:
                groups.setdefault((record.device, record.arithmetic, record.inputs), []).append(record)
        for group in groups.values():
            for record in group:
                peers = [other for other in group if other is not record]
                typical = median([other.tightness for other in peers]) if peers else record.tightness
                if excess(record.tightness, typical):
                    found.setdefault(record.rank, []).append(_Excess(record, peers, typical))
    return [_finding(run, cases) for _, cases in sorted(found.items())]


def _finding(run: Run, cases: list[_Excess]) -> Finding:
    worst = sorted(cases, key=lambda each: -each.record.tightness)
    others = rank_list(peer.rank for each in cases for peer in each.peers)
    lines = [
        f"in {len(cases)} case(s) it uses at least {FACTOR:g} times as much of the bound as the median of {others}"
    ]
    lines += launched_unlike((each.record, each.peers) for each in cases)
    told = [
        (each.record, f"uses {each.record.tightness:.1%} of its error bound, its peers {each.typical:.1%}")
        for each in worst
    ]
    return rank_warning(run, LESS_EXACT, f"up to {worst[0].record.tightness:.0%} of a bound used", told, lines)
