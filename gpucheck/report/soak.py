"""A run that goes through its plan again and again, in figures: rates for each rank and case."""

from __future__ import annotations

from gpucheck.diagnose.chance import rate_words
from gpucheck.records.run_folder import Run

MOST_CASES = 20  # that are told with their rates


def soak_summary(run: Run) -> list[str]:
    """A line for each rank, then one for each case that failed in some pass; nothing of a run of one pass."""
    if not run.plan.duration:
        return []
    return [*(_rank(run, rank) for rank in run.ranks), *_cases(run)]


def _rank(run: Run, rank: int) -> str:
    tallies = [tally for (_, of), tally in run.tallies.items() if of == rank]
    runs, failed = sum(tally.runs for tally in tallies), sum(tally.failed for tally in tallies)
    if not runs:
        return f"rank {rank}: no case ended"
    passes = max(tally.runs for tally in tallies)
    return f"rank {rank}: {passes} passes, {failed} of {runs} case-runs failed; {rate_words(failed, runs)}"


def _cases(run: Run) -> list[str]:
    failed = [(key, tally) for key, tally in sorted(run.tallies.items()) if tally.failed]
    lines = [
        f"rank {rank}, {run.plan.steps[step].label}: {tally.failed} of {tally.runs} failed; "
        + rate_words(tally.failed, tally.runs)
        for (step, rank), tally in failed[:MOST_CASES]
    ]
    return lines + [f"... and {len(failed) - MOST_CASES} more cases"] * (len(failed) > MOST_CASES)
