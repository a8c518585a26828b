"""What findings are made of: the records of one step, in words and with the command that shows them again."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

from gpucheck.diagnose.chance import rate_words
from gpucheck.diagnose.wording import lines_of, rank_list
from gpucheck.model.conditions import PROCESS_GROUPS
from gpucheck.model.finding import FailedCase, Finding
from gpucheck.model.record import Outcome, Record
from gpucheck.records.run_folder import Run, Tally

Mark = TypeVar("Mark", bound=Hashable)
Key = tuple[int, int]
"""Step and rank of a record."""


OF_NODES = "--nnodes {} --node-rank NUMBER --rdzv-endpoint HOST:PORT"
"""What is put behind a command that is to be run on each node."""


def replay_command(run: Run, step: int, rank: int) -> str:
    """The command that repeats one step of this run and looks closely at one rank.

    A replay has the ranks of one node. What the ranks of several run together is run again by all of them.
    """
    planned = run.plan.steps[step]
    if planned.together and run.plan.nnodes > 1:
        return f"{run_command(run, step)} {OF_NODES.format(run.plan.nnodes)}"
    alone = sum(other.case.id == planned.case.id for other in run.plan.steps) == 1
    case = planned.case.id if alone else planned.label
    return shlex.join(["gpucheck", "replay", str(run.folder), case, "--rank", str(rank)])


def run_command(run: Run, step: int, options: Sequence[str] = ()) -> str:
    """The command that runs one case of this run again, on the same ranks, inputs, library and placement.

    Args:
        options: names and values in turn, which take the place of the run's own.
    """
    planned, command = run.plan.steps[step], list(run.plan.command)
    given = options[::2]
    for name in (*given, *(["--patch"] * ("--library" in given))):  # a patch fits its own library alone
        while name in command:
            del command[command.index(name) : command.index(name) + 2]
    command += options
    if command[2:] and command[2].startswith("--"):  # no scenario that could name the other candidates
        for source in run.plan.check_sources:
            if planned.case.check not in source.checks:
                command = _without(command, source.options)
    conditions = planned.conditions
    if not conditions.placed.usual and "--placement" not in command:
        command += ["--placement", conditions.placement]
    if conditions.process_group in PROCESS_GROUPS[1:] and "--process-group" not in command:
        command += ["--process-group", conditions.process_group]
    return shlex.join([*command, "--case", planned.case.id])


def _without(command: list[str], words: list[str]) -> list[str]:
    """The command without the first run of these words."""
    for start in range(len(command)):
        if words and command[start : start + len(words)] == words:
            return command[:start] + command[start + len(words) :]
    return command


def failed_case(run: Run, step: int, ranks: list[int], lines: list[str]) -> FailedCase:
    """One step of a finding."""
    told = [*lines, *_soaked(run, step, ranks)]
    return FailedCase(run.plan.steps[step].label, ranks, told, replay_command(run, step, ranks[0]))


def _soaked(run: Run, step: int, ranks: list[int]) -> list[str]:
    """In how many of several passes over the plan a step failed, on each of the ranks where it did."""
    seen = [(rank, run.tallies.get((step, rank), Tally())) for rank in ranks]
    return [
        f"rank {rank}: failed in {tally.failed} of {tally.runs} passes"
        + (f"; {rate_words(tally.failed, tally.runs)}: intermittent" if tally.failed < tally.runs else "")
        for rank, tally in seen
        if tally.failed and tally.runs > 1
    ]


def clean_line(run: Run, step: int) -> list[str]:
    """A line that names the ranks on which a step is right, if there are any."""
    clean = [rank for rank in run.ranks if run.records[(step, rank)].outcome is Outcome.PASS]
    return [f"{rank_list(clean)} clean"] if clean else []


def merged_lines(records: list[Record], lines: Callable[[Record], list[str]] = lines_of) -> list[str]:
    """The lines of all ranks; lines that not every rank says are led by the ranks that do."""
    by_line: dict[str, list[int]] = {}
    for record in records:
        for line in lines(record):
            by_line.setdefault(line, []).append(record.rank)
    everyone = len(records)
    return [line if len(ranks) == everyone else f"{rank_list(ranks)}: {line}" for line, ranks in by_line.items()]


def by_step(keys: Iterable[Key]) -> dict[int, list[int]]:
    """The ranks of each step, both ascending."""
    found: dict[int, list[int]] = {}
    for step, rank in sorted(keys):
        found.setdefault(step, []).append(rank)
    return found


def keys_of(run: Run, finding: Finding) -> list[Key]:
    """Step and rank of all that a finding shows."""
    steps = {step.label: number for number, step in enumerate(run.plan.steps)}
    return [(steps[each.case], rank) for each in finding.cases if each.case in steps for rank in each.ranks]


def split(
    run: Run, finding: Finding, marks: Mapping[Key, Mark], told: Mapping[Key, str]
) -> list[tuple[Mark | None, Finding]]:
    """The parts of a finding by the mark of each step and rank, the part without one first.

    Args:
        told: a further line for what has no mark.
    """
    if not finding.cases:
        return [(None, finding)]
    steps = {step.label: number for number, step in enumerate(run.plan.steps)}
    parts: dict[Mark | None, list[FailedCase]] = {}
    for failed in finding.cases:
        step, shared = steps.get(failed.case, -1), dict[Mark | None, list[int]]()
        for rank in failed.ranks:
            shared.setdefault(marks.get((step, rank)), []).append(rank)
        if not failed.ranks:
            shared[None] = []
        for mark, ranks in shared.items():
            lines = {} if mark else {told[(step, rank)]: None for rank in ranks if (step, rank) in told}
            replay = failed.replay if ranks == failed.ranks else replay_command(run, step, ranks[0])
            shown = replace(failed, ranks=ranks, lines=[*failed.lines, *lines], replay=replay)
            parts.setdefault(mark, []).append(shown)
    return [
        (mark, replace(finding, cases=parts[mark]) if len(parts) == 1 else _of_cases(run, finding, parts[mark], steps))
        for mark in sorted(parts, key=lambda mark: mark is not None)
    ]


def _of_cases(run: Run, finding: Finding, cases: list[FailedCase], steps: Mapping[str, int]) -> Finding:
    rows = dict.fromkeys(run.plan.steps[steps[each.case]].case.row for each in cases if each.case in steps)
    return replace(finding, cases=cases, rows=[*rows], ranks=sorted({rank for each in cases for rank in each.ranks}))
