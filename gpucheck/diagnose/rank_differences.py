"""Ranks of one kind that did not do the same: judged here and not there, with other inputs, by other kernels."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from gpucheck.diagnose.finding_cases import failed_case
from gpucheck.diagnose.wording import rank_list
from gpucheck.model.finding import FailedCase, Finding
from gpucheck.model.record import Launch, Outcome, Record
from gpucheck.records.run_folder import Run

Kernel = tuple[str, str, tuple[tuple[str, int], ...]]
"""Name, hash of the binary, and configuration."""
MOST_CASES = 3  # that a note names


def nothing_judged(run: Run) -> list[Finding]:
    """Ranks that judged nothing, where others did."""
    idle = _idle(run)
    if not idle:
        return []
    reasons = dict.fromkeys(run.records[(step, rank)].message for rank in idle for step in _steps(run))
    lines = ["every case is inapplicable here, but not on other ranks", *filter(None, reasons)]
    return [Finding("nothing was judged on a rank", False, idle, [], [FailedCase("every case", idle, lines, "")])]


def judged_on_some_ranks(run: Run) -> list[Finding]:
    """Optional cases that are inapplicable on some ranks and judged on others of the same kind.

    What a library or machine does not offer, it offers on none of its ranks; a refusal on some of them proves nothing
    but that these did not run it.
    """
    found: dict[tuple[tuple[int, ...], str], list[int]] = defaultdict(list)
    judged_on: dict[int, list[int]] = {}
    idle = _idle(run)
    for step in _steps(run):
        for alike in _kinds(run, step):
            judged = [record.rank for record in alike if record.outcome is Outcome.PASS or record.outcome.failed]
            refused = [record for record in alike if record.outcome is Outcome.INAPPLICABLE and record.rank not in idle]
            if not judged or not run.plan.steps[step].optional:
                continue
            judged_on[step] = judged
            for reason, records in _grouped(refused, lambda record: record.message).items():
                found[tuple(record.rank for record in records), reason].append(step)
    return [
        Finding(
            "judged on some ranks only",
            fails=False,
            ranks=[*ranks],
            rows=list(dict.fromkeys(run.plan.steps[step].case.row for step in steps)),
            cases=[
                failed_case(
                    run,
                    step,
                    [*ranks],
                    [f"inapplicable on {rank_list(ranks)}: {reason}", f"judged on {rank_list(judged_on[step])}"],
                )
                for step in steps
            ],
            fix="find out why these ranks refuse what ranks with the same GPU and software run; a case that a "
            "library or machine does not offer is inapplicable on all of them",
        )
        for (ranks, reason), steps in found.items()
    ]


def other_inputs(run: Run) -> list[Finding]:
    """Ranks of one machine that were judged on other inputs than their neighbours, who share one file with them."""
    found: dict[tuple[int, ...], list[FailedCase]] = defaultdict(list)
    for step in _steps(run):
        if run.plan.steps[step].together:  # each rank has a part of its own
            continue
        known = [run.records[(step, rank)] for rank in run.ranks if run.records[(step, rank)].inputs]
        for neighbours in _grouped(known, lambda record: record.host).values():
            groups = _grouped(neighbours, lambda record: record.inputs)
            if len(groups) > 1:
                words = " against ".join(rank_list(record.rank for record in group) for group in groups.values())
                ranks = minority(list(groups.values()))
                found[tuple(ranks)].append(failed_case(run, step, ranks, [f"the bytes of the inputs differ: {words}"]))
    return [
        Finding(
            "ranks of one machine had other inputs",
            fails=False,
            ranks=[*ranks],
            rows=[],
            cases=cases,
            fix="inputs are made once for a machine: look at its memory and at what else writes to /dev/shm",
        )
        for ranks, cases in found.items()
    ]


def other_kernels(run: Run) -> list[str]:
    """Notes on ranks of one kind that passed with other kernels, or other configurations, than most."""
    found: dict[str, list[int]] = defaultdict(list)
    for step in _steps(run):
        for alike in _kinds(run, step) if not run.plan.steps[step].together else ():  # parts may have other sizes
            groups = _grouped((record for record in alike if record.outcome is Outcome.PASS), kernels_of)
            for words in _against_most(groups) if len(groups) > 1 else ():
                found[words].append(step)
    notes = []
    for words, steps in found.items():
        cases = [run.plan.steps[step].label for step in steps]
        notes.append(f"{words} ({len(cases)} case(s): {', '.join(cases[:MOST_CASES])}{', ...' * (len(cases) > 3)})")
    return notes


def kernels_of(record: Record) -> frozenset[Kernel]:
    """What a record launched, by what can make bits differ."""
    return frozenset(_kernel(launch) for launch in record.launches)


def _kernel(launch: Launch) -> Kernel:
    return launch.kernel, launch.hash, tuple(sorted(launch.configuration.items()))


def _against_most(groups: dict[frozenset[Kernel], list[Record]]) -> Iterator[str]:
    (usual, most), *others = sorted(groups.items(), key=lambda group: -len(group[1]))
    for kernels, records in others:
        mine, theirs = _kernel_names(kernels - usual, usual), _kernel_names(usual - kernels, kernels)
        here, there = (rank_list(record.rank for record in each) for each in (records, most))
        yield f"{here} launched {mine or 'less'}, {there} {theirs or 'less'}, and all are right"


def _kernel_names(kernels: Iterable[Kernel], others: Iterable[Kernel]) -> str:
    """Kernels with the part of their configuration that others of their name do not have."""
    parts = []
    for name, digest, configuration in sorted(kernels):
        known = {item for other, _, items in others for item in items if other == name}
        own = ", ".join(f"{key} {value}" for key, value in configuration if (key, value) not in known)
        alike = any(other == name for other, *_ in others)
        parts.append(f"{name} with {own}" if own else f"{name} as {digest}" if alike and digest else name)
    return " and ".join(parts)


def minority(groups: list[list[Record]]) -> list[int]:
    """The ranks of all groups but the largest; of all groups where none is clearly larger."""
    groups = sorted(groups, key=len, reverse=True)
    clear = len(groups[0]) > sum(map(len, groups[1:]))
    return sorted(record.rank for group in groups[clear:] for record in group)


def _idle(run: Run) -> list[int]:
    if not any(record.outcome is Outcome.PASS for record in run.records.values()):
        return []
    return [
        rank
        for rank in run.ranks
        if all(run.records[(step, rank)].outcome is Outcome.INAPPLICABLE for step in _steps(run))
    ]


def _kinds(run: Run, step: int) -> list[list[Record]]:
    """The records of a step, those of ranks with equal devices and equal software together."""
    software = {node.get("number", 0): str(node.get("software")) for node in run.outcome.get("nodes", [])}

    def kind(record: Record) -> tuple[str, str]:
        return record.device, software.get(record.rank // run.plan.nproc, "")

    return list(_grouped((run.records[(step, rank)] for rank in run.ranks), kind).values())


def _steps(run: Run) -> range:
    return range(len(run.plan.steps))


def _grouped(records: Iterable[Record], key: Callable[[Record], Any]) -> dict[Any, list[Record]]:
    groups: dict[Any, list[Record]] = defaultdict(list)
    for record in records:
        groups[key(record)].append(record)
    return groups
