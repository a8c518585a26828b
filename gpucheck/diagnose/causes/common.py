"""What the rules of this package share."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from gpucheck.diagnose.answers import answers
from gpucheck.diagnose.error_pattern import PRECISION, error_pattern
from gpucheck.diagnose.finding_cases import Key, clean_line, failed_case, merged_lines, run_command
from gpucheck.diagnose.page import Cause
from gpucheck.diagnose.wording import raised_lines
from gpucheck.model.finding import FailedCase, Finding
from gpucheck.model.record import Launch, Record
from gpucheck.records.run_folder import Run

Lines = Callable[[Record], list[str]]


@dataclass(frozen=True)
class Evidence:
    """A record with the cause that a rule saw in it."""

    cause: Cause
    detail: str = ""  # completes the title: what is wrong, or how it shows
    fix: str = ""  # "" takes the cause's
    across: bool = True  # cases of different matrix rows share one finding

    @property
    def title(self) -> str:
        return self.cause.title + (f": {self.detail}" if self.detail else "")


def findings(
    run: Run, evidence: Mapping[Key, Evidence], lines: Lines = raised_lines, further: Lines = lambda record: []
) -> list[Finding]:
    """One finding for each title and set of ranks, with what experiments answered as evidence.

    Ranks that are wrong every time, each with its own bits of equal inputs, have faults of their own.

    Args:
        lines: what a record says.
        further: what the evidence says beside the answers of experiments.
    """
    by_step: dict[tuple[int, Evidence, str], list[Record]] = {}
    for key, seen in sorted(evidence.items(), key=lambda pair: pair[0]):
        record = run.records[key]
        bits = record.bits if answers(run, record).deterministic and _inputs_agree(run, key[0]) else ""
        by_step.setdefault((key[0], seen, bits), []).append(record)
    found: dict[tuple[Evidence, tuple[int, ...], str], Finding] = {}
    for (step, seen, _), records in by_step.items():
        ranks = [record.rank for record in records]
        row = run.plan.steps[step].case.row
        finding = found.setdefault(
            (seen, tuple(ranks), "" if seen.across else row), _empty(run, seen, records, further)
        )
        if row not in finding.rows:
            finding.rows.append(row)
        told = merged_lines(records, lines) + clean_line(run, step)
        finding.cases.append(failed_case(run, step, ranks, told))
    return list(found.values())


def _inputs_agree(run: Run, step: int) -> bool:
    return len({run.records[(step, rank)].inputs for rank in run.ranks if run.records[(step, rank)].inputs}) <= 1


def _empty(run: Run, seen: Evidence, records: list[Record], further: Lines) -> Finding:
    told = merged_lines(records, lambda record: [*answers(run, record).lines(), *further(record)])
    return Finding(
        title=seen.title,
        fails=True,
        ranks=[record.rank for record in records],
        rows=[],
        cases=[],
        fix=seen.fix or seen.cause.fix,
        cause=seen.cause.title,
        evidence=told,
    )


def launched_on_other_stream(record: Record) -> list[Launch]:
    """Launches on the device of the tensors, but on another stream than their producer and consumer."""
    return [
        launch
        for launch in record.launches
        if record.stream is not None and launch.stream != record.stream and not launch.away and not launch.refused
    ]


def error_summary(record: Record) -> str:
    """What is wrong about a record, in a few words."""
    words = error_pattern(record)
    if words == PRECISION and record.precision:
        return f"{words}: {record.precision} is allowed"
    if words or not record.violations:
        return words or record.outcome.value
    return ", ".join(dict.fromkeys(violation.kind for violation in record.violations))


def launched_unlike(cases: Iterable[tuple[Record, Sequence[Record]]]) -> list[str]:
    """A line on the cases in which a rank launched other kernels than each of its peers; none where there are none.

    Args:
        cases: the record of the rank and those of its peers, case by case.
    """

    def kernels(record: Record) -> set[tuple[str, str]]:
        return {(launch.kernel, launch.hash) for launch in record.launches}

    unlike = sum(kernels(record) not in [kernels(peer) for peer in peers] for record, peers in cases)
    return [f"in {unlike} of them it launched other kernels than each of its peers"] if unlike else []


def rank_warning(
    run: Run, cause: Cause, shows: str, cases: Sequence[tuple[Record, str]], evidence: list[str]
) -> Finding:
    """A warning of a rank that is right, with the commands that run its cases again, on all ranks.

    Args:
        shows: completes the title.
        cases: the rank's records and what is said of each, the worst first.
    """
    steps = [run.plan.steps[record.step] for record, _ in cases]
    return Finding(
        title=f"{cause.title}: {shows}",
        fails=False,
        warns=True,
        ranks=[cases[0][0].rank],
        rows=list(dict.fromkeys(step.case.row for step in steps)),
        cases=[
            FailedCase(step.label, [record.rank], [words], run_command(run, record.step))
            for step, (record, words) in zip(steps, cases, strict=True)
        ],
        fix=cause.fix,
        evidence=evidence,
        cause=cause.title,
    )
