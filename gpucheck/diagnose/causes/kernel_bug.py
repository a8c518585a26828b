"""Code that computes the wrong thing."""

from __future__ import annotations

import math

from gpucheck.diagnose.answers import Answers, answers, steady
from gpucheck.diagnose.causes import common
from gpucheck.diagnose.causes.common import Evidence, error_summary
from gpucheck.diagnose.chance import CONFIDENCE, EVERY_TIME, LEAST_SHARE, share_at_least
from gpucheck.diagnose.finding_cases import Key
from gpucheck.diagnose.page import Cause
from gpucheck.diagnose.wording import rank_list
from gpucheck.model.finding import Finding
from gpucheck.model.record import Outcome, Record
from gpucheck.records.run_folder import Run

KERNEL_BUG = Cause(
    "kernel bug",
    means="The code computes the wrong thing: every rank gives the same wrong bits from the same inputs.",
    shows="A row of the matrix fails, with equal digests on all ranks and in all repeats. It is said once "
    f"{EVERY_TIME} processes failed so and none did not: with {CONFIDENCE:.0%} confidence at least {LEAST_SHARE:.0%} "
    "of processes fail. The finding says how many were tried and what share of processes that proves.",
    confirm="Run the case on the CPU (--device cpu). If it is wrong there too, the source is wrong; if it is right "
    "there, look at the compiler or at a code path that only the GPU takes.",
    fix="The title says what is wrong; gpucheck explain has a page for each. Bisect releases or commits of the "
    "library, then of Triton.",
)
CAUSES = (KERNEL_BUG,)


def recognise(run: Run, record: Record) -> Evidence | None:
    """Every rank that judged the case gives the same wrong bits, in each of so many processes, whatever is changed.

    One rank alone cannot tell its GPU from the code; on the CPU there is no GPU to blame.
    """
    seen = answers(run, record)
    if not record.mismatches or not seen.deterministic or any(map(seen.right, seen.tried)):
        return None
    judged = _judged_ranks(run, record.step)
    alike = all(other.mismatches and (other.bits == record.bits or other.inputs != record.inputs) for other in judged)
    enough = len(judged) > 1 or run.plan.device == "cpu"
    return (
        Evidence(KERNEL_BUG, error_summary(record)) if alike and enough and processes(run, seen) >= EVERY_TIME else None
    )


def findings(run: Run, evidence: dict[Key, Evidence]) -> list[Finding]:
    """As usual, with the share of processes that the evidence proves wrong."""
    return common.findings(run, evidence, further=lambda record: counted(run, record))


def counted(run: Run, record: Record) -> list[str]:
    """In how many processes of all ranks a case was wrong alike, and how large a share of processes that shows."""
    count = processes(run, answers(run, record))
    if count < 2:
        return []
    share = math.floor(1000 * share_at_least(count)) / 10
    ranks = rank_list(other.rank for other in _judged_ranks(run, record.step))
    return [
        f"the same wrong bits in all {count} processes of {ranks}: "
        f"at least {share:.1f}% of processes fail ({CONFIDENCE:.0%} confidence)"
    ]


def processes(run: Run, seen: Answers) -> int:
    """In how many processes the case gave the same wrong bits; 0 where one gave others, or the right ones."""
    step, count = seen.failure.step, 0
    for other in _judged_ranks(run, step):
        if other.inputs != seen.failure.inputs:
            continue
        made = [each for attempts in run.experiments.get((step, other.rank), {}).values() for each in attempts]
        alike = [each.mismatches and steady(each) and each.bits == seen.failure.bits for each in (other, *made)]
        if not all(alike):
            return 0
        count += len(alike)
    return count


def _judged_ranks(run: Run, step: int) -> list[Record]:
    """The records that say whether a case is right on a rank: one with a violation alone has another fault."""
    judged = (run.records[(step, rank)] for rank in run.ranks)
    return [other for other in judged if other.outcome in (Outcome.MISMATCH, Outcome.PASS)]
