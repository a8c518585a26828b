"""Wrong outputs that the evidence does not explain; names the experiment that would."""

from __future__ import annotations

import math

from gpucheck.diagnose.answers import Answers, answers, kinds
from gpucheck.diagnose.causes.common import Evidence, error_summary
from gpucheck.diagnose.causes.kernel_bug import findings, processes
from gpucheck.diagnose.causes.race import unasked
from gpucheck.diagnose.chance import EVERY_TIME, LUCK, share_at_least
from gpucheck.diagnose.experiment_list import HISTORY, REPEAT, REPEATS, applicable
from gpucheck.diagnose.page import Cause
from gpucheck.diagnose.wording import rank_list
from gpucheck.model.record import Outcome, Record
from gpucheck.model.vocabulary import ExperimentName, ViolationKind
from gpucheck.records.run_folder import Run

__all__ = ["CAUSES", "UNDETERMINED", "findings", "recognise"]

UNDETERMINED = Cause(
    "undetermined",
    means="The evidence of the run fits more than one cause.",
    shows="The finding says which observations contradict each other or what was not tried.",
    confirm="Run the experiment that the finding names.",
    fix="Nothing yet: a fault that is fixed without a known cause comes back.",
)
CAUSES = (UNDETERMINED,)

DIFFER = {ViolationKind.PASSES_DIFFER, ViolationKind.REPEATS_DIFFER}
MORE = "gpucheck run with --case and --experiments 600"


def recognise(run: Run, record: Record) -> Evidence | None:
    """Any wrong output that no other rule took, and any outputs that differ."""
    unexplained = record.mismatches or (record.outcome is Outcome.VIOLATION and kinds(record) & DIFFER)
    return Evidence(UNDETERMINED, error_summary(record), f"next: {_next(run, record)}") if unexplained else None


def _next(run: Run, record: Record) -> str:
    """The experiment that can decide between the causes that are left."""
    seen = answers(run, record)
    alone = seen.processes(REPEAT)
    if len(alone) < REPEATS:
        return "gpucheck run with --experiments 60, which repeats the case under changed conditions"
    if seen.never:
        return _not_again(run, record, seen)
    helped = [name for name in seen.tried if name not in (REPEAT, HISTORY) and seen.right(name)]
    if helped == [ExperimentName.OTHER_RANK, ExperimentName.OTHER_DEVICE]:
        return "rank and GPU only fail together; swap the GPUs with CUDA_VISIBLE_DEVICES and run again"
    if helped:
        return f"{MORE}: right so far under a changed condition, in too few processes to rule out luck of {LUCK:.1%}"
    if not seen.deterministic:
        left = unasked(run, seen)
        return f"{MORE}: {', '.join(left)} not tried, or right so far" if left else f"{MORE}, to see how often it fails"
    return _every_time(run, record, seen)


def _not_again(run: Run, record: Record, seen: Answers) -> str:
    possible = dict(applicable(record, run.plan.steps[record.step].conditions, run.plan.device, run.plan.nproc))
    if record.before > 0 and HISTORY in possible and HISTORY not in seen.tried:
        return "gpucheck run with --experiments 600, which runs the case after those that its process ran before"
    return "it did not come again; with repeat = 200 in the scenario it shows how often it does"


def _every_time(run: Run, record: Record, seen: Answers) -> str:
    """What tells the code from a rank and its GPU, and from a fault of most processes."""
    others = [other for rank in run.ranks if (other := run.records[(record.step, rank)]).rank != record.rank]
    if run.plan.world_size == 1 and run.plan.device != "cpu":
        return "gpucheck run with --nproc 2, which tells the GPU from the code"
    strange = [other.rank for other in others if other.mismatches and other.bits != record.bits]
    if strange:
        return f"fix what {rank_list(strange)} shows, or run without: two faults at once cannot be taken apart here"
    made = processes(run, seen)
    if all(other.bits == record.bits for other in others) and 0 < made < EVERY_TIME:
        share = math.ceil(100 * (1 - share_at_least(made)))
        return (
            f"{MORE}: all {made} processes failed alike, which does not rule out a fault that spares {share}% of "
            f"processes; {EVERY_TIME} of {EVERY_TIME} show a kernel bug"
        )
    return "no changed condition made it right; run it on other ranks and nodes, and bisect the library"
