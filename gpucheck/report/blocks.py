"""The report as neutral blocks: what is shown, before anyone decides how."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from gpucheck.model.finding import Conclusion, Finding
from gpucheck.model.record import Outcome
from gpucheck.records.folder import Run, finite
from gpucheck.report.soak import soak_summary

REPORT_SCHEMA = 1
STAGES = ("inputs", "child", "load", "prepare", "compile", "launch", "copy", "reference", "judge")


@dataclass(frozen=True)
class Cell:
    """One check on one rank: how many cases ended how."""

    counts: dict[str, int]  # outcome -> cases
    expected: int = 0  # cases that failed as the scenario expects; not in counts

    @property
    def worst(self) -> Outcome | None:
        """The outcome that decides how the cell looks; None where every case failed as expected."""
        order = [
            Outcome.MISMATCH,
            Outcome.CRASH,
            Outcome.HANG,
            Outcome.ERROR,
            Outcome.VIOLATION,
            Outcome.LOST,
            Outcome.HARNESS,
            Outcome.PASS,
            Outcome.INAPPLICABLE,
        ]
        return next((outcome for outcome in order if self.counts.get(outcome.value)), None)


@dataclass(frozen=True)
class Report:
    """Everything a renderer shows."""

    headline: list[str]  # facts of the run, shown on one line
    ranks: list[int]
    rows: list[tuple[str, int, list[Cell]]]  # name, cases, one cell a rank
    verdict: str
    findings: list[Finding]
    notes: list[str]
    bounds: str  # how close right outputs came to their error bounds, in words
    stages: dict[str, float]  # seconds, summed over cases, mean over ranks
    timing: list[str]  # where the time went, in words
    folder: str
    soak: list[str] = field(default_factory=list)  # passes and failure rates of a run that repeats its plan


def build(run: Run, conclusion: Conclusion) -> Report:
    """The blocks of a finished run."""
    rows: dict[str, list[int]] = {}
    checks = list(dict.fromkeys(step.case.check for step in run.plan.steps))
    numbered = sorted(enumerate(run.plan.steps), key=lambda pair: checks.index(pair[1].case.check))
    for number, step in numbered:
        rows.setdefault(step.row, []).append(number)
    table = [
        (name, len(steps), [_cell(run, conclusion.expected, steps, rank) for rank in run.ranks])
        for name, steps in rows.items()
    ]
    stages = _stages(run)
    return Report(
        headline=_headline(run),
        ranks=list(run.ranks),
        rows=table,
        verdict=conclusion.verdict.value,
        findings=conclusion.findings,
        notes=conclusion.notes,
        stages=stages,
        bounds=_bounds_used(run),
        timing=_timing(run, stages),
        folder=str(run.folder),
        soak=soak_summary(run),
    )


def to_json(run: Run, report: Report) -> dict[str, Any]:
    """The report for machines: verdict, findings, and one line for each case and rank."""
    item = asdict(report)
    item["rows"] = [
        {"row": name, "cases": cases, "ranks": [_cell_json(cell) for cell in cells]}
        for name, cases, cells in report.rows
    ]
    plan = run.plan.to_json()
    item["plan"] = {key: value for key, value in plan.items() if key not in ("steps", "schema")}
    item["results"] = [
        {
            "case": record.case,
            "conditions": run.plan.steps[record.step].conditions.to_json(),
            "rank": record.rank,
            "outcome": record.outcome.value,
            "message": record.message,
            "mismatches": [asdict(mismatch) for mismatch in record.mismatches],
            "violations": [asdict(violation) for violation in record.violations],
            "wrong": record.wrong,
            "repeats": record.repeats,
            "passes": run.tallies[key].runs if key in run.tallies else 0,
            "failed_passes": run.tallies[key].failed if key in run.tallies else 0,
            "tightness": record.tightness,
            "seconds": record.seconds,
        }
        for key, record in sorted(run.records.items())
    ]
    content: dict[str, Any] = finite({"schema": REPORT_SCHEMA, **item})
    return content


def _bounds_used(run: Run) -> str:
    """How close right outputs came to their error bounds."""
    passed = (record for record in run.records.values() if record.outcome is Outcome.PASS)
    tightest = max(passed, key=lambda record: record.tightness, default=None)
    if tightest is None or not tightest.tightness:
        return ""
    return f"right outputs used at most {tightest.tightness:.0%} of their error bounds ({tightest.case})"


def _cell(run: Run, expected: frozenset[tuple[int, int]], steps: list[int], rank: int) -> Cell:
    counts: dict[str, int] = {}
    for step in steps:
        if (step, rank) not in expected:
            outcome = run.records[(step, rank)].outcome.value
            counts[outcome] = counts.get(outcome, 0) + 1
    return Cell(counts, len(steps) - sum(counts.values()))


def _cell_json(cell: Cell) -> dict[str, int]:
    return {**cell.counts, **({"failed as expected": cell.expected} if cell.expected else {})}


def _headline(run: Run) -> list[str]:
    plan, software = run.plan, run.plan.environment.get("software", {})
    devices = sorted({record.device for record in run.records.values() if record.device and record.device != "cpu"})
    where = f"{plan.world_size} x {' + '.join(devices)}" if devices else f"{plan.world_size} ranks on the CPU"
    if plan.world_size == 1 and not devices:
        where = "1 rank on the CPU"
    versions = [f"{name} {(software.get(name) or {}).get('version', '?')}" for name in ("torch", "triton")]
    library = f"triton_kernels {plan.library['name']} ({plan.library['origin']}, {plan.library['content'][:8]})"
    library += "".join(f" + {Path(patch).name}" for patch in plan.library.get("patches", []))
    facts = [plan.scenario, where, *versions, library, f"seed {plan.seed}"]
    facts += ["debug: launches waited for, device assertions compiled in"] * plan.debug
    facts += ["a process for each case"] * (plan.isolate == "case")
    if "seconds" in run.outcome:
        facts.append(f"{run.outcome['seconds']:.1f} s")
    return facts


def _stages(run: Run) -> dict[str, float]:
    total = dict.fromkeys(STAGES, 0.0)
    total["kernel"] = 0.0
    for record in run.records.values():
        for stage, seconds in record.seconds.items():
            total[stage] = total.get(stage, 0.0) + seconds
    return {stage: seconds / max(1, len(run.ranks)) for stage, seconds in total.items()}


def _timing(run: Run, stages: dict[str, float]) -> list[str]:
    """Wall time split into what any run pays (import, compilation, kernels) and what gpucheck adds."""
    wall = run.outcome.get("seconds")
    if wall is None or not run.starts:
        return []
    imports = max(start.get("import_seconds", 0.0) for start in run.starts.values())
    kernels = stages["launch"]
    overhead = max(0.0, wall - imports - stages["compile"] - kernels)
    return [
        f"wall {wall:.1f} s = import {imports:.1f} + compile {stages['compile']:.1f} + launches {kernels:.1f} "
        f"+ harness {overhead:.1f}",
        "a rank, summed over its cases: "
        + ", ".join(f"{stage} {seconds:.1f} s" for stage, seconds in stages.items() if seconds >= 0.05),
        *_fresh_processes(run),
    ]


def _fresh_processes(run: Run) -> list[str]:
    """What it cost to start processes again, where more than one a rank were started."""
    started = sum(end.get("children", 0) for end in run.ends.values())
    if started <= len(run.ranks):
        return []
    seconds = sum(end.get("child_seconds", 0.0) for end in run.ends.values())
    return [f"{started} processes started for the ranks, {seconds / started:.2f} s each"]
