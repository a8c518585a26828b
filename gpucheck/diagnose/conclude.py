"""From records to findings and the verdict: pure functions over a run that was read from its folder."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from statistics import median
from typing import Any

from gpucheck.diagnose import canary_verdict, causes
from gpucheck.diagnose.acceptance import accept
from gpucheck.diagnose.driver_messages import DriverMessages
from gpucheck.diagnose.engine_parts import engine_parts
from gpucheck.diagnose.excused_victims import excuse_victims
from gpucheck.diagnose.expectations import settle
from gpucheck.diagnose.finding_cases import Key, failed_case, merged_lines
from gpucheck.diagnose.judged_path import judge
from gpucheck.diagnose.rank_differences import (
    Kernel,
    judged_on_some_ranks,
    kernels_of,
    minority,
    nothing_judged,
    other_inputs,
    other_kernels,
)
from gpucheck.diagnose.symptoms import Symptom, symptom
from gpucheck.diagnose.wording import raised_lines, rank_list
from gpucheck.model.check_source import KERNELBENCH
from gpucheck.model.finding import Conclusion, FailedCase, Finding
from gpucheck.model.record import Outcome, Record, Verdict
from gpucheck.model.screened import CHECK
from gpucheck.records.run_folder import Run

MOST_SPEED_UP = 10.0  # that KernelBench's rule believes
MOST_DIFFERING_TILES = 6


def conclude(run: Run) -> Conclusion:
    """The verdict of a run with all its findings.

    FAIL: the code under test failed where the scenario does not expect it, or did not fail where it must. PASS: every
    planned case has a result on every rank, and passed, failed as expected or as accepted, or was inapplicable where
    the scenario allows that (on all ranks of a kind); at least one case passed on each rank; ranks of a machine
    had equal inputs; the launcher ended well; the canary, if there is one, was caught on every rank. NOTHING
    RAN: every case was inapplicable. All else is INCONCLUSIVE. Warnings change no verdict, be they accepted faults,
    failures beside what the run is judged by, or the victims of either.
    """
    caught = canary_verdict.caught(run.canary)
    failures, expected = _failures(run)
    findings = [*failures, *_disagreements(run), *_software(run), *_ending(run), *_cut_short(run)]
    findings += _not_screened(run)
    findings += [*nothing_judged(run), *judged_on_some_ranks(run), *other_inputs(run)]
    findings += [*canary_verdict.findings(run.canary, caught), *_warnings(run), *_off_the_gpus(run)]
    accepted = accept(run, findings)
    judged = judge(run, accepted.findings)
    findings, victims = excuse_victims(run, judged.findings, expected, accepted.keys | judged.keys)
    passed = bool(expected or accepted.keys) or any(record.outcome is Outcome.PASS for record in run.records.values())
    if any(finding.fails for finding in findings):
        verdict = Verdict.FAIL
    elif not passed and all(record.outcome is Outcome.INAPPLICABLE for record in run.records.values()):
        verdict = Verdict.NOTHING_RAN
    elif not passed or not all(finding.warns for finding in findings):
        verdict = Verdict.INCONCLUSIVE
    else:
        verdict = Verdict.PASS
    told = DriverMessages(run)
    explained = _with_known(run, [told.beside(finding) for finding in findings])
    notes = [*canary_verdict.notes(run.canary, caught), *_notes(run, expected), *told.others(findings)]
    return Conclusion(verdict, explained, [*accepted.notes, *notes], expected, accepted.keys, judged.keys | victims)


def _failures(run: Run) -> tuple[list[Finding], frozenset[Key]]:
    """Findings of all records that did not pass, causes first, and which records failed as the scenario expects."""
    guilty = [key for key, record in sorted(run.records.items()) if record.outcome.failed and record.victim_of is None]
    attributed = causes.attribute(run, guilty)
    seen = {key: evidence.cause.title for _, found in attributed for key, evidence in found.items()}
    settled = settle(run, seen)
    explained = [
        finding
        for rule, found in attributed
        for finding in causes.findings(
            rule, run, {key: item for key, item in found.items() if key not in settled.expected}
        )
    ]
    left = {key for key in run.records if key not in seen and key not in settled.expected}
    unexplained = _symptoms(run, [run.records[key] for key in sorted(left)])
    return sorted([*explained, *settled.missing, *unexplained], key=lambda finding: not finding.fails), settled.expected


def _symptoms(run: Run, records: list[Record]) -> list[Finding]:
    """Failed and unjudged records, grouped by what they show, the ranks that show it and, mostly, the matrix row."""
    by_case: dict[tuple[int, Symptom], list[Record]] = defaultdict(list)
    for record in records:
        tolerated = record.outcome is Outcome.INAPPLICABLE and run.plan.steps[record.step].optional
        if record.outcome is not Outcome.PASS and not tolerated:
            by_case[(record.step, symptom(record))].append(record)
    findings: dict[tuple[Symptom, tuple[int, ...], str], Finding] = {}
    for (step, shown), alike in by_case.items():
        case = run.plan.steps[step].case
        ranks = [record.rank for record in alike]
        fails = any(record.outcome.failed and record.victim_of is None for record in alike)
        key = (shown, tuple(ranks), "" if shown.across else case.row)
        finding = findings.setdefault(key, Finding(shown.title, fails, ranks, [], [], shown.fix))
        if case.row not in finding.rows:
            finding.rows.append(case.row)
        finding.cases.append(failed_case(run, step, ranks, merged_lines(alike, raised_lines)))
    return list(findings.values())


def _warnings(run: Run) -> list[Finding]:
    return [finding for each in causes.WARNINGS for finding in each.warnings(run)]


def _disagreements(run: Run) -> list[Finding]:
    """Passing ranks that computed different bits from equal inputs with equal kernels."""
    findings = []
    for number, step in enumerate(run.plan.steps):
        records = [run.records[(number, rank)] for rank in run.ranks]
        passed = [record for record in records if record.outcome is Outcome.PASS and record.distinct == 1]
        groups: dict[tuple[str, frozenset[Kernel], str], dict[str, list[Record]]] = {}
        for record in passed:
            by_bits = groups.setdefault((record.device, kernels_of(record), record.inputs), {})
            by_bits.setdefault(str(sorted(record.digests.items())), []).append(record)
        for by_bits in groups.values():
            if len(by_bits) > 1:
                findings.append(_disagreement(run, step.case.row, number, list(by_bits.values())))
    return findings


def _disagreement(run: Run, row: str, number: int, camps: list[list[Record]]) -> Finding:
    camps = sorted(camps, key=len, reverse=True)
    ranks = minority(camps)
    words = " against ".join(rank_list(record.rank for record in camp) for camp in camps)
    lines = [f"outputs within their bounds, but different bits: {words}"]
    first, other = camps[0][0], camps[1][0]
    for name, tiles in first.tiles.items():
        differing = [i for i, (a, b) in enumerate(zip(tiles, other.tiles.get(name, []), strict=False)) if a != b]
        if differing:
            shown = ", ".join(str(i) for i in differing[:MOST_DIFFERING_TILES])
            more = ", ..." if len(differing) > MOST_DIFFERING_TILES else ""
            lines.append(f"{name}: {len(differing)} of {len(tiles)} tiles differ, in row order: {shown}{more}")
    seen = failed_case(run, number, ranks, lines)
    return Finding("ranks disagree on equal inputs and kernels", True, ranks, [row], [seen])


def _software(run: Run) -> list[Finding]:
    changed = run.outcome.get("changes", [])
    if not changed:
        return []
    shown = FailedCase("software", list(run.ranks), changed, "")
    fix = "run again while nothing installs or edits packages"
    return [Finding("software changed during the run", False, list(run.ranks), [], [shown], fix)]


def _ending(run: Run) -> list[Finding]:
    """A launcher that was stopped or failed: records may be missing."""
    if not run.outcome:
        line = "outcome.json is missing: the run is still under way, or gpucheck was killed"
    elif run.outcome.get("signal"):
        line = f"interrupted by signal {run.outcome['signal']}"
    elif run.outcome.get("timed_out"):
        line = f"stopped after {run.outcome.get('seconds', 0.0):.0f} s, the limit of the whole run"
    elif run.outcome.get("stuck"):
        line = f"{run.outcome['stuck']}; it was killed"
    elif lost := [_node_words(node) for node in run.outcome.get("nodes", []) if not _ended_well(node)]:
        line = "; ".join(lost)
    elif run.outcome.get("code") != 0:
        line = f"torchrun ended with exit code {run.outcome.get('code')}"
    else:
        return []
    fix = "look at the logs in the run folder's logs/"
    lines = [line, *(f"printed  {text}" for text in run.outcome.get("said", []))]
    return [Finding("the run did not end well", False, list(run.ranks), [], [FailedCase("run", [], lines, "")], fix)]


def _ended_well(node: dict[str, Any]) -> bool:
    return node.get("state") == "ended" and node.get("code") == 0


def _node_words(node: dict[str, Any]) -> str:
    """A further node that did not end as it should."""
    name = f"node {node.get('number')}" + (f" ({node['host']})" if node.get("host") else " never came")
    if node.get("state") == "ended":
        return f"torchrun of {name} ended with exit code {node.get('code')}"
    return f"{name} was lost: its further cases are" if node.get("host") else name


def _off_the_gpus(run: Run) -> list[Finding]:
    """Ranks of a run on GPUs whose outputs came from the CPU."""
    ranks = sorted(
        {
            rank
            for (_, rank), record in run.records.items()
            if run.plan.device == "cuda" and record.outcome is Outcome.PASS and record.device == "cpu"
        }
    )
    if not ranks:
        return []
    shown = FailedCase("every case", ranks, ["this is a run on GPUs, but the outputs came from the CPU"], "")
    return [
        Finding("a rank worked on the CPU", False, ranks, [], [shown], "look at the rank's log and gpucheck doctor")
    ]


def _cut_short(run: Run) -> list[Finding]:
    """Ranks that ended before the time of ``--duration`` was up."""
    short = [
        rank
        for rank in run.ranks
        if run.plan.duration
        and rank not in run.ends
        and not any(run.records[(n, rank)].outcome is Outcome.LOST for n in range(len(run.plan.steps)))
    ]
    if not short:
        return []
    shown = FailedCase("every case", short, ["the rank ended before the time of --duration was up"], "")
    return [Finding("lost", False, short, [], [shown], "look at the rank's log in the run folder's logs/")]


def _not_screened(run: Run) -> list[Finding]:
    """A screen that the scenario asks for and that left nothing behind."""
    if not run.plan.screen or any(step.case.check == CHECK for step in run.plan.steps):
        return []
    shown = FailedCase(
        "screen", list(run.ranks), [f"screen = {run.plan.screen:g} is asked for, and it did not run"], ""
    )
    fix = "see what the command printed; gpucheck screen runs it alone"
    return [Finding("the GPUs were not screened", False, list(run.ranks), [], [shown], fix)]


def _with_known(run: Run, findings: list[Finding]) -> list[Finding]:
    """The findings, with the known faults that they are; a run without findings does not read the table of these."""
    if not findings:
        return findings
    from gpucheck.diagnose.known_match import with_known

    return with_known(run, findings)


def _published_rules(run: Run) -> list[str]:
    """The verdict of a published rule on each candidate, beside ours."""
    told: dict[str, list[Record]] = defaultdict(list)
    for (step, _), record in sorted(run.records.items()):
        if run.plan.steps[step].case.check in run.plan.candidates and KERNELBENCH in run.plan.rules:
            told[run.plan.steps[step].case.check].append(record)
    notes = []
    for check, records in told.items():
        close = sum(record.rules.get(KERNELBENCH, {}).get("close", False) for record in records)
        used = max((record.rules[KERNELBENCH]["tolerance"] for record in records if record.rules), default=0.0)
        words = f"{check}: by KernelBench's rule {'correct' if close == len(records) else 'not correct'} "
        words += f"({close} / {len(records)} trials" + (f" within {used:g})" if used else ")")
        ours = "right" if all(record.outcome is Outcome.PASS for record in records) else "not right"
        notes.append(f"{words}; by ours {ours}{_excessive(records)}")
    return notes


def _excessive(records: Sequence[Record]) -> str:
    """That a speed-up is larger than KernelBench's rule believes."""
    speed_ups = [
        record.timings["reference"] / record.timings["candidate"]
        for record in records
        if {"candidate", "reference"} <= record.timings.keys() and record.timings["candidate"] > 0
    ]
    most = max(speed_ups, default=0.0)
    return f"; {most:.1f} times as fast is more than the {MOST_SPEED_UP:g} that its rule believes" * (
        most > MOST_SPEED_UP
    )


def _remarks(run: Run) -> list[str]:
    """What there is to say of candidates that are right."""
    right = {
        (run.plan.steps[step].case.check, record.message): None
        for (step, _), record in sorted(run.records.items())
        if run.plan.steps[step].case.check in run.plan.candidates and record.outcome is Outcome.PASS and record.message
    }
    return [f"{check}: {message}" for check, message in right]


def _speeds(run: Run) -> list[str]:
    """How fast candidates are, compared with the torch code they replace: the median over ranks.

    A candidate with any failure gets no time: it may have left out the work.
    """
    measured: dict[str, list[dict[str, float]]] = defaultdict(list)
    failed = {run.plan.steps[step].case.check for (step, _), record in run.records.items() if record.outcome.failed}
    for (step, _), record in sorted(run.records.items()):
        check = run.plan.steps[step].case.check
        if {"candidate", "reference"} <= record.timings.keys() and check not in failed:
            measured[check].append(record.timings)
    notes = []
    for check, speeds in measured.items():
        candidate, reference = (median(speed[name] for speed in speeds) for name in ("candidate", "reference"))
        ratio = max(candidate, reference) / max(min(candidate, reference), 1e-9)
        word = "fast" if candidate <= reference else "slow"
        notes.append(
            f"{check}: {1e3 * candidate:.3f} ms a call, Model in torch {1e3 * reference:.3f} ms: "
            f"{ratio:.1f} times as {word} (median of {len(speeds)})"
        )
    return notes


def _notes(run: Run, expected: frozenset[Key]) -> list[str]:
    notes = []
    if expected:
        ranks = rank_list(rank for _, rank in expected)
        notes.append(f"{len({step for step, _ in expected})} case(s) failed as the scenario expects, on {ranks}")
    skipped = {
        (run.plan.steps[step].case.id, record.message)
        for (step, _), record in run.records.items()
        if record.outcome is Outcome.INAPPLICABLE and run.plan.steps[step].optional
    }
    for reason in sorted({message for _, message in skipped}):
        cases = sorted(case for case, message in skipped if message == reason)
        notes.append(
            f"{len(cases)} optional case(s) inapplicable: {reason} ({', '.join(cases[:3])}{', ...' * (len(cases) > 3)})"
        )
    notes += [*engine_parts(run), *_unlike(run), *other_kernels(run), *_widest_bounds(run)]
    notes += [*_remarks(run), *_speeds(run), *_published_rules(run)]
    if run.plan.bench and run.plan.device == "cpu" and not any(each.timings for each in run.records.values()):
        notes.append("speed is measured on GPUs only: --bench has nothing to tell about a run on the CPU")
    if run.torn:
        notes.append(f"{run.torn} record line(s) could not be read or do not belong to this plan")
    return notes


def _unlike(run: Run) -> list[str]:
    """Further nodes whose torch or triton is not that of node 0."""
    ours = run.plan.environment.get("software", {})
    return [
        f"node {node['number']} ({node['host']}) has {name} {_version(theirs, name)}, node 0 {_version(ours, name)}"
        for node in run.outcome.get("nodes", [])
        for theirs in (node.get("software") or {},)
        for name in ("torch", "triton")
        if theirs and _version(theirs, name) != _version(ours, name)
    ]


def _widest_bounds(run: Run) -> list[str]:
    """Devices whose way to add up is not known: their bounds are the widest, so small errors can pass there."""
    ranks: dict[str, set[int]] = defaultdict(set)
    for (_, rank), record in run.records.items():
        if "not known" in record.arithmetic:
            ranks[record.arithmetic].add(rank)
    return [f"bounds of sums on {rank_list(ranks[name])}: {name}" for name in sorted(ranks)]


def _version(software: dict[str, Any], name: str) -> str:
    return str((software.get(name) or {}).get("version"))
