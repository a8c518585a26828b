"""Which process of which experiment is worth its time next: as many as rule luck out, and none that change nothing."""

from __future__ import annotations

from gpucheck.diagnose.answers import FEWEST, Answers, kinds, regular
from gpucheck.diagnose.causes import out_of_bounds
from gpucheck.diagnose.causes.common import launched_on_other_stream
from gpucheck.diagnose.chance import EVERY_TIME, LUCK, MOST_PROCESSES, by_luck
from gpucheck.diagnose.experiment_list import EXPERIMENTS, REPEAT, REPEATS, those
from gpucheck.model.record import Outcome
from gpucheck.model.vocabulary import ExperimentName, ViolationKind

ALONE = 2  # fresh processes that a case has for itself before it shares some with others that fail every time


def worth_a_process(name: ExperimentName, seen: Answers, possible: frozenset[ExperimentName]) -> bool:
    """Whether one more process of an experiment can still make a difference to what is made of a case.

    Args:
        seen: the answers so far.
        possible: the experiments that apply to the case.
    """
    if name == REPEAT:
        return _worth_repeating(seen, possible)
    if settled(seen, possible):
        return False
    made, again = seen.made(name), REPEAT not in possible or seen.wrong(REPEAT)
    if not again or seen.wrong(name) or (made and not seen.right(name) and not seen.by_call):
        return False
    if made:
        return REPEAT in possible and made < MOST_PROCESSES and not seen.separates(name) and _within_reach(seen)
    follows_fill = out_of_bounds.shown(seen.failure) is ViolationKind.PASSES_DIFFER
    if not EXPERIMENTS[name].of_fill and follows_fill and not launched_on_other_stream(seen.failure):
        return False
    return not EXPERIMENTS[name].alone or seen.deterministic or seen.failure.outcome is Outcome.HANG


def _within_reach(seen: Answers) -> bool:
    """Whether any number of processes that are right under a changed condition would rule out luck."""
    return seen.by_call or by_luck(seen.wrongs(), len(seen.processes(REPEAT)), MOST_PROCESSES) < LUCK


def settled(seen: Answers, possible: frozenset[ExperimentName]) -> bool:
    """Whether a cause is known that no further experiment changes."""
    asked = all(map(seen.wrong, possible & {*those(lambda each: each.calms)}))
    return (seen.by_number and asked) or any(map(seen.separates, those(lambda each: each.settles)))


def wants_control(name: ExperimentName, seen: Answers) -> bool:
    """Whether the unchanged case is to run once more: what went away by itself would stay away then, too."""
    return name != REPEAT and bool(seen.processes(name)) and seen.separates(name)


def fails_always(seen: Answers) -> bool:
    """Whether a case failed alike in as many fresh processes of its own as it takes for it to share further ones."""
    return seen.deterministic and len(seen.processes(REPEAT)) >= ALONE


def further_repeats(seen: Answers, ranks: int) -> int:
    """How many more processes each rank of a node makes where all gave the same wrong bits and nothing helps.

    None where a call itself shows the cause: what it read outside of its tensors, or what its autotuner left in them.

    Args:
        ranks: of the node.
    """
    helped = any(seen.right(name) for name in seen.tried)
    follows_fill = out_of_bounds.shown(seen.failure) is ViolationKind.PASSES_DIFFER
    tuned = ViolationKind.TUNING_DIFFERS in kinds(seen.failure)
    if not seen.deterministic or helped or not seen.failure.mismatches or follows_fill or tuned:
        return 0
    made = ranks * (1 + len(seen.processes(REPEAT)))
    return max(0, -(-(EVERY_TIME - made) // ranks))


def repeated_enough(seen: Answers) -> bool:
    """Whether it is known what decides of a case that was repeated further: the process, or a call."""
    return seen.by_process or not regular(seen.processes(REPEAT))


def _worth_repeating(seen: Answers, possible: frozenset[ExperimentName]) -> bool:
    made = seen.made(REPEAT)
    if settled(seen, possible):
        return False
    if made >= REPEATS:
        return made < MOST_PROCESSES and seen.by_call and not seen.irregular
    follows_fill = out_of_bounds.shown(seen.failure) is ViolationKind.PASSES_DIFFER and not out_of_bounds.by_luck(seen)
    explained = (
        follows_fill
        and not launched_on_other_stream(seen.failure)
        and not any(EXPERIMENTS[name].of_fill for name in possible)
    )
    return not (explained and made >= FEWEST - 1)
