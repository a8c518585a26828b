"""The report as neutral blocks: what is shown; ``formats/`` decides how it looks."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from gpucheck.diagnose.judged_path import judged_by
from gpucheck.diagnose.wording import counted
from gpucheck.model.conditions import Conditions
from gpucheck.model.finding import Conclusion, FailedCase, Finding
from gpucheck.model.plan import Plan
from gpucheck.model.record import Outcome, Record
from gpucheck.model.vocabulary import Wall
from gpucheck.records.run_folder import Run, Tally
from gpucheck.report.screen_summary import ScreenSummary, screen_summary
from gpucheck.report.soak import soak_summary
from gpucheck.report.timings import Speed, measured

STAGES = (
    "inputs",
    "child",
    "load",
    "prepare",
    "compile",
    "launch",
    "side effects",
    "copy",
    "inspect",
    "locate",
    "speed",
    "reference",
    "judge",
)
NO_GPU_CHECKED = "no GPU was checked"
MESSAGES = 4  # of the driver that stand beside a finding
KERNEL = "kernel"  # the time of the kernel itself, which is part of the launch


@dataclass(frozen=True)
class Cell:
    """One check on one rank: how many cases ended how."""

    counts: dict[str, int]  # outcome -> cases
    expected: int = 0  # cases that failed as the scenario expects; not in counts
    accepted: int = 0  # cases that failed as was accepted; not in counts
    warned: int = 0  # cases that failed beside what the run is judged by, or as a victim of that; not in counts

    @property
    def worst(self) -> Outcome | None:
        """The outcome that decides how the cell looks; None where no failure of the cell counts and nothing passed."""
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
class Result:
    """One case on one rank."""

    row: str  # name of the matrix row it counts in
    label: str  # the case with its conditions, as findings name it
    conditions: Conditions
    expected: bool  # it failed as the scenario expects
    accepted: bool  # it failed as was accepted
    warned: bool  # it failed beside what the run is judged by, or as a victim of an excused failure
    record: Record
    tally: Tally

    @property
    def failing(self) -> bool:
        """Whether it failed, in a way that counts."""
        return self.record.outcome.failed and not (self.expected or self.accepted or self.warned)

    @property
    def seconds(self) -> float:
        """What the case cost this rank."""
        return sum(seconds for stage, seconds in self.record.seconds.items() if stage != KERNEL)


@dataclass(frozen=True)
class Place:
    """Where a rank ran and where its time went."""

    rank: int
    host: str  # "" where the rank never started
    device: str  # "" where nothing was launched
    gpu: str  # UUID; "" where it is not known
    bus: str  # PCI address; likewise
    import_seconds: float
    seconds: dict[str, float]  # stage -> s, summed over its cases


Piece = tuple[str, str]
"""A text, and the name of the style that it is shown in."""


@dataclass(frozen=True)
class Table:
    """Rows of cells; the first row names the columns."""

    rows: list[list[Piece]]
    legend: list[str]
    title: str = ""  # of one that may be folded; rows of one group then begin alike
    between: str = "  "  # columns, from the third on


@dataclass(frozen=True)
class Sheet:
    """What a report shows, of a run or of a compile; text and Markdown render this and nothing else."""

    verdict: str
    summary: str
    headline: list[str]  # facts, shown on one line
    matrix: Table
    findings: list[Finding]
    tables: list[Table]
    notes: list[Piece]  # text, label
    footer: list[Piece]  # the same: where the time went, where the records lie


@dataclass(frozen=True)
class Report:
    """A run: everything a renderer shows of it."""

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
    plan: Plan
    seconds: float | None  # wall time of the run; None where nobody saw its end
    results: list[Result]  # by step, then rank
    places: list[Place]  # by rank
    speed: Speed  # empty without --bench
    screen: ScreenSummary = ScreenSummary()  # empty without a screen

    @property
    def summary(self) -> str:
        """What was found, in a few words."""
        count, ranks = sum(cases for _, cases, _ in self.rows), len(self.ranks)
        failing = sum(finding.fails for finding in self.findings)
        warning = sum(finding.warns and not finding.accepted for finding in self.findings)
        open_count = sum(not finding.fails and not finding.warns for finding in self.findings)
        words = counted(failing, "finding") if failing else f"{counted(count, 'case')} on {counted(ranks, 'rank')}"
        words += f", {counted(open_count, 'open question')}" if open_count else ""
        words += f", {self.accepted}" if self.accepted else ""
        words += f", {counted(warning, 'warning')}" if warning else ""
        return words if self.gpus_checked else f"{words}, {NO_GPU_CHECKED}"

    @property
    def accepted(self) -> str:
        """How many findings are accepted, in words; "" where none is."""
        count = sum(finding.accepted is not None for finding in self.findings)
        return counted(count, "accepted finding") if count else ""

    @property
    def gpus_checked(self) -> int:
        """Ranks that worked on a GPU."""
        return sum(place.device not in ("", "cpu") for place in self.places)

    def findings_by_result(self) -> dict[tuple[str, int], list[tuple[Finding, FailedCase]]]:
        """The findings about each case on each rank, by label and rank of a result."""
        found: dict[tuple[str, int], list[tuple[Finding, FailedCase]]] = {}
        for finding in self.findings:
            for failed_case in finding.cases:
                for rank in failed_case.ranks:
                    found.setdefault((failed_case.case, rank), []).append((finding, failed_case))
        return found


def heading(finding: Finding) -> str:
    """The title of a finding, which says so where it is accepted or a warning."""
    word = "accepted: " if finding.accepted else "warning: " if finding.warns else ""
    return word + finding.title


def finding_lines(finding: Finding, case: FailedCase | None = None) -> list[Piece]:
    """What is said of a finding beside its cases, or beside one of them; each line with its label."""
    lines = [(line, "tried") for line in finding.evidence] + [(line, "driver") for line in finding.driver[:MESSAGES]]
    if len(finding.driver) > MESSAGES:
        lines.append((f"{len(finding.driver) - MESSAGES} more messages, in the JSON report", "driver"))
    return lines + _known_lines(finding, case) + ([(finding.fix, "fix")] if finding.fix else [])


def _known_lines(finding: Finding, case: FailedCase | None) -> list[Piece]:
    """What is known of the faults that it is."""
    lines: list[Piece] = []
    for known in finding.known:
        if case and case.case not in known.cases:
            continue
        fitting, count = len(known.cases), len(finding.cases)
        which = (
            ""
            if case
            else f"{fitting} of {count} cases"
            if fitting < count
            else f"all {count} cases"
            if count > 1
            else ""
        )
        if known.alike:
            words = f"{known.id}: of the kind of {', '.join(known.upstream)}: {known.title}"
            lines.append((words + (f" ({which})" if which else ""), "known"))
        else:
            about = ", ".join(filter(None, [which, *known.upstream]))
            lines.append((f"{known.id}: {known.title}" + (f" ({about})" if about else ""), "known"))
            lines += [(f"in {'; '.join(known.good)}", "fixed")] if known.good else []
            lines.append((known.workaround, "instead"))
        lines += [(f"{proof.shows}: {proof.command}", "prove") for proof in known.proofs]
        lines.append((f"gpucheck explain {known.id}", "about"))
    return lines


def build(run: Run, conclusion: Conclusion) -> Report:
    """The blocks of a finished run."""
    rows: dict[str, list[int]] = {}
    checks = list(dict.fromkeys(step.case.check for step in run.plan.steps))
    numbered = sorted(enumerate(run.plan.steps), key=lambda pair: checks.index(pair[1].case.check))
    for number, step in numbered:
        rows.setdefault(step.row, []).append(number)
    table = [
        (name, len(steps), [_cell(run, conclusion, steps, rank) for rank in run.ranks]) for name, steps in rows.items()
    ]
    stages, screen = _stages(run), screen_summary(run)
    return Report(
        headline=_headline(run),
        ranks=list(run.ranks),
        rows=table,
        verdict=conclusion.verdict.value,
        findings=conclusion.findings,
        notes=[*screen.statements, *soak_summary(run), *conclusion.notes, *_walls_missing(run), *_restored(run)],
        stages=stages,
        bounds=_bounds_used(run),
        timing=_timing(run, stages),
        folder=str(run.folder),
        plan=run.plan,
        seconds=run.outcome.get("seconds"),
        results=[
            Result(
                row=step.row,
                label=step.label,
                conditions=step.conditions,
                expected=key in conclusion.expected,
                accepted=key in conclusion.accepted,
                warned=key in conclusion.warned,
                record=record,
                tally=run.tallies.get(key, Tally()),
            )
            for key, record in sorted(run.records.items())
            for step in (run.plan.steps[record.step],)
        ],
        places=_places(run),
        speed=measured(run, list(rows.items())),
        screen=screen,
    )


def _places(run: Run) -> list[Place]:
    devices: dict[int, str] = {}
    gpus = {rank: str(facts.get("uuid") or "") for rank, facts in run.gpus.items()}
    buses: dict[int, str] = {}
    seconds = {rank: dict.fromkeys(STAGES, 0.0) for rank in run.ranks}
    for _, record in sorted(run.records.items()):
        devices[record.rank] = devices.get(record.rank) or record.device
        gpus[record.rank] = record.gpu or gpus.get(record.rank, "")
        buses[record.rank] = buses.get(record.rank) or record.bus
        for stage, spent in record.seconds.items():
            if stage != KERNEL:
                seconds[record.rank][stage] = seconds[record.rank].get(stage, 0.0) + spent
    places = []
    for rank in run.ranks:
        start = run.starts.get(rank, {})
        imported = start.get("import_seconds", 0.0)
        where = (devices.get(rank, ""), gpus.get(rank, ""), buses.get(rank, ""))
        places.append(Place(rank, start.get("host", ""), *where, imported, seconds[rank]))
    return places


def _walls_missing(run: Run) -> list[str]:
    """What did not stand between candidates and their judge, since a kernel does not offer it."""
    seen = [set(record.walls) for record in run.records.values() if record.walls]
    missing = [wall.value for wall in Wall if seen and not all(wall.value in walls for walls in seen)]
    notes = [f"not to be had for candidates here: {'; '.join(missing)}"] if missing else []
    if Wall.FILES.value in missing:
        notes.append("a candidate can have changed any file of this user here, and what runs from it later")
    return notes


def _restored(run: Run) -> list[str]:
    """The ranks whose records were written anew: a candidate had changed them."""
    ranks = ", ".join(str(rank) for rank, end in sorted(run.ends.items()) if end.get("restored"))
    return [f"records of rank {ranks} had been changed by another process: they were written anew"] if ranks else []


def _bounds_used(run: Run) -> str:
    """How close right outputs came to their error bounds."""
    passed = (record for record in run.records.values() if record.outcome is Outcome.PASS)
    tightest = max(passed, key=lambda record: record.tightness, default=None)
    if tightest is None or not tightest.tightness:
        return ""
    return f"right outputs used at most {tightest.tightness:.0%} of their error bounds ({tightest.case})"


def _cell(run: Run, conclusion: Conclusion, steps: list[int], rank: int) -> Cell:
    keys = [(step, rank) for step in steps]
    beside = (conclusion.expected, conclusion.accepted, conclusion.warned)
    excused = frozenset[tuple[int, int]]().union(*beside)
    counts = Counter(run.records[key].outcome.value for key in keys if key not in excused)
    return Cell(dict(counts), *(sum(key in known for key in keys) for known in beside))


def _headline(run: Run) -> list[str]:
    plan, software = run.plan, run.plan.environment.get("software", {})
    devices = sorted({record.device for record in run.records.values() if record.device and record.device != "cpu"})
    where = f"{plan.world_size} x {' + '.join(devices)}"
    if not devices:
        where = counted(plan.world_size, "rank") + (" on the CPU" if plan.device == "cpu" else " on no GPU")
    versions = [f"{name} {(software.get(name) or {}).get('version', '?')}" for name in ("torch", "triton")]
    library = "no library checked (no case needs one)"
    if plan.has_library:
        library = f"triton_kernels {plan.library['name']} ({plan.library['origin']}, {plan.library['content'][:8]})"
        library += "".join(f" + {Path(patch).name}" for patch in plan.library.get("patches", []))
    engines = [f"{engine['name']} {engine['version']}" for engine in plan.engines]
    facts = [plan.scenario, where, *versions, library, *engines, *filter(None, [judged_by(run)]), f"seed {plan.seed}"]
    facts += ["debug: launches waited for, device assertions compiled in"] * plan.debug
    facts += ["a process for each case"] * (plan.isolate == "case")
    if "seconds" in run.outcome:
        facts.append(f"{run.outcome['seconds']:.1f} s")
    return facts


def _stages(run: Run) -> dict[str, float]:
    total = dict.fromkeys((*STAGES, KERNEL), 0.0)
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
    lanes = max((end.get("lanes", 1) for end in run.ends.values()), default=1)
    compiling, kernels = stages["compile"] / lanes, stages["launch"] / lanes
    overhead = max(0.0, wall - imports - compiling - kernels)
    at_once = f"; a rank ran cases in {lanes} processes at once, so their times are divided by that" * (lanes > 1)
    return [
        f"wall {wall:.1f} s = import {imports:.1f} + compile {compiling:.1f} + launches {kernels:.1f} "
        f"+ harness {overhead:.1f}{at_once}",
        "per rank, summed over its cases: "
        + ", ".join(f"{stage} {seconds:.1f} s" for stage, seconds in stages.items() if seconds >= 0.05),
        *_screen_time(run),
        *_compiled(run, stages),
        *_fresh_processes(run),
    ]


def _screen_time(run: Run) -> list[str]:
    """What a screen behind the ranks cost."""
    seconds = run.outcome.get("screen_seconds")
    return [f"screen {seconds:.1f} s, after that"] if seconds else []


def _compiled(run: Run, stages: dict[str, float]) -> list[str]:
    """Who compiled how many kernels, and how long others waited for inputs and references, where GPUs were at work."""
    if run.plan.device != "cuda" or not any("compiled" in end for end in run.ends.values()):
        return []
    ahead, processes, own = (
        sum(end.get(name, 0) for end in run.ends.values()) for name in ("compiled_ahead", "compilers", "compiled")
    )
    by_others = f"{counted(ahead, 'kernel')} compiled ahead by {processes} process{'es' * (processes != 1)}, "
    return [
        by_others
        * bool(processes)
        + f"{own if processes else counted(own, 'kernel')} compiled by the ranks; per rank, {stages['inputs']:.1f} s "
        f"of waiting for inputs and, of those who judge, {stages['reference']:.1f} s for references"
    ]


def _fresh_processes(run: Run) -> list[str]:
    """What it cost to start processes again, where more than one a rank were started."""
    started = sum(end.get("children", 0) for end in run.ends.values())
    if started <= len(run.ranks):
        return []
    seconds = sum(end.get("child_seconds", 0.0) for end in run.ends.values())
    return [f"{started} processes started for the ranks, {seconds / started:.2f} s each"]
