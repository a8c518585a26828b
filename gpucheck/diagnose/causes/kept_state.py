"""State that outlives a call: what came before in the process decides whether a case is right."""

from __future__ import annotations

from gpucheck.diagnose.answers import IN_ORDER, Answers, answers, call_words, kinds
from gpucheck.diagnose.causes import common
from gpucheck.diagnose.causes.common import Evidence
from gpucheck.diagnose.causes.race import unasked
from gpucheck.diagnose.experiment_list import REPEAT
from gpucheck.diagnose.finding_cases import Key
from gpucheck.diagnose.page import Cause
from gpucheck.diagnose.wording import lines_of
from gpucheck.model.finding import Finding
from gpucheck.model.record import Outcome, Record
from gpucheck.model.vocabulary import ViolationKind
from gpucheck.records.run_folder import Run

STATE = Cause(
    "state kept between calls",
    means="What a process did before decides whether a call is right: the library keeps something from one call "
    "to the next, such as a scratch buffer, a counter, an option, a plan or scale made for other arguments.",
    shows="Right alone in a fresh process and wrong after certain other cases; or the same calls wrong in each "
    "fresh process, every second one, say, or all from some number on.",
    confirm="The finding names the calls or the case that comes before: run both in one process, in that order "
    "(gpucheck run SCENARIO --case A --case B --nproc 1), and then the second alone.",
    fix="Look for what the named call writes to module or object state, and for caches whose key leaves out an "
    "argument in which the two cases differ; gpucheck audit lists module state. Make it anew in each call.",
)
CAUSES = (STATE,)

BY_NUMBER = "by the number of the call"


def recognise(run: Run, record: Record) -> Evidence | None:
    """The same calls wrong in each fresh process; or right in each, and wrong in each after the same other cases."""
    seen = answers(run, record)
    if seen.by_number or _by_further_calls(seen):
        return None if unasked(run, seen, lambda each: each.calms) else Evidence(STATE, BY_NUMBER)
    steps = seen.spoiled_by
    if steps is None:
        return None
    if len(steps) == 1:
        return Evidence(STATE, f"spoiled by {run.plan.steps[steps[0]].label}")
    return Evidence(STATE, f"after {len(steps)} other cases in one process")


def _by_further_calls(seen: Answers) -> bool:
    """Whether the calls of a case agree, and one that was made after them gives other bits in each fresh process."""
    differ = seen.failure.outcome is Outcome.VIOLATION and ViolationKind.REPEATS_DIFFER in kinds(seen.failure)
    return differ and seen.deterministic and len(seen.processes(REPEAT)) >= IN_ORDER


def findings(run: Run, evidence: dict[Key, Evidence]) -> list[Finding]:
    """As usual, with the calls or the cases that decide."""
    return common.findings(run, evidence, lambda record: [*lines_of(record), *_lines(run, answers(run, record))])


def _lines(run: Run, seen: Answers) -> list[str]:
    if seen.by_number:
        return [f"in each fresh process: {call_words(seen.judged_alone[0])}"]
    steps = seen.spoiled_by or ()
    attempts = seen.after.get(steps, [])
    if not attempts:
        return []
    last = ", ".join(run.plan.steps[step].label for step in steps[-3:])
    which = last if len(steps) <= 3 else f"the last {len(steps)} cases before it, which end with {last}"
    alone = len(seen.processes(REPEAT))
    words = [f"wrong in {len(attempts)} of {len(attempts)} processes after {which}; right in {alone} of {alone} alone"]
    if len(steps) > 1:
        words.append("no single one of them spoils it: it takes so many calls, or several cases together")
    return words
