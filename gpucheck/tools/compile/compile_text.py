"""What a report of compiling shows, and the same as JSON."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from gpucheck.diagnose.wording import counted
from gpucheck.model import finding as model
from gpucheck.report.blocks import Piece, Sheet, Table
from gpucheck.tools.compile.compile_verdict import Finding, Remark, Summary, newest_first, order
from gpucheck.tools.compile.outcome import Built, Combination, Kind, Result
from gpucheck.tools.compile.tritons import INSTALLED
from gpucheck.triton_hooks.targets import TARGETS

SCHEMA = 1
MARKS = {
    Built.COMPILED: ("ok", "green"),
    Built.FAILED: ("XX", "bold red"),
    Built.INAPPLICABLE: ("--", "dim"),
    Built.NOT_REACHED: ("??", "yellow"),
}
LEGEND = ["ok kernels that compile", "XX kernels that fail", "-- cases that do not apply", "?? cases not reached"]
TITLES = {
    Kind.ERROR: "does not compile",
    Kind.CRASH: "crashes the compiler",
    Kind.HANG: "hangs the compiler",
    Kind.RESOURCE: "asks for more than the GPU has",
    Kind.REFUSED: "is launched with what it does not take",
}
RESOURCES = {"shared": "bytes of shared memory", "registers": "registers", "spilled": "bytes spilled a thread"}
"""What a kernel may use much of, with its unit."""
SHOWN = 3  # shapes, lines and errors of a finding, unless verbose


@dataclass(frozen=True)
class Request:
    """What was asked for: what the report says of itself, and how to ask again."""

    scenario: str
    command: Sequence[str]  # what names the scenario, and the checks that are not gpucheck's own, in a command
    cases: int
    targets: list[str]
    libraries: Mapping[str, str]  # name in the report -> --library; "" for the default and for our own kernels
    tritons: Mapping[str, str]  # version -> --triton
    seconds: float

    def again(self, where: Combination, case: str) -> str:
        """The command that compiles one case of one combination."""
        command = [*self.command, "--case", case, "--target", where.target]
        if self.tritons[where.triton] != INSTALLED:
            command += ["--triton", self.tritons[where.triton]]
        library = self.libraries.get(where.library)
        return shlex.join([*command, "--library", library] if library else command)


def sheet(results: Sequence[Result], summary: Summary, request: Request, *, verbose: bool = False) -> Sheet:
    """The report: verdict, table, findings, what was left out, what the kernels use, advice."""
    limit = None if verbose else SHOWN
    now = sum(result.compiled_now for result in results)
    kernels = f"{counted(summary.compiled, 'kernel')}, {now} compiled now"
    cases = counted(request.cases, "case")
    return Sheet(
        summary.verdict.value,
        _headline(summary),
        [request.scenario, cases, ", ".join(request.targets), kernels, f"{request.seconds:.1f} s"],
        Table(_rows(results, request.targets), LEGEND),
        [
            *(_finding(finding, request, limit) for finding in summary.findings),
            *(_lost(remark, request) for remark in summary.not_reached),
        ],
        [_kernels(results)] if verbose else [],
        [(_unfit(remark, limit), "note") for remark in summary.inapplicable],
        [(_advice(summary), "advice")] if summary.advice else [],
    )


def _headline(summary: Summary) -> str:
    failed, lost = len(summary.findings), sum(len(remark.cases) for remark in summary.not_reached)
    words = [counted(failed, "finding")] * bool(failed) + [f"{counted(lost, 'case')} not reached"] * bool(lost)
    whole = f"every kernel compiles: {summary.compiled}" if summary.compiled else "no kernel was compiled"
    return ", ".join(words) or whole


def _rows(results: Sequence[Result], targets: Sequence[str]) -> list[list[Piece]]:
    """A row for each library and Triton, a column for each target."""
    cells = {result.combination: _cell(result) for result in results}
    rows = [[(name, "dim") for name in ("library", "triton", *targets)]]
    for triton in newest_first({combination.triton for combination in cells}):
        for library in dict.fromkeys(c.library for c in cells if c.triton == triton):
            found = (cells[Combination(library, triton, target)] for target in targets)
            rows.append([(library, ""), (triton, ""), *found])
    return [rows[0], *sorted(rows[1:], key=lambda row: order(row[0][0]))]


def _cell(result: Result) -> Piece:
    if result.inapplicable:
        return MARKS[Built.INAPPLICABLE]
    counts = {built: count for built in MARKS if (count := result.count(built))}
    worst = next((built for built in (Built.FAILED, Built.NOT_REACHED) if built in counts), Built.COMPILED)
    return " ".join(f"{count} {MARKS[built][0]}" for built, count in counts.items()) or "0 ok", MARKS[worst][1]


def _finding(finding: Finding, request: Request, limit: int | None) -> model.Finding:
    problem = finding.problem
    at = [f"at {problem.place}" + f": {problem.code}" * bool(problem.code)] if problem.place else []
    errors = [line for error in _some(finding.errors, limit) for line in error.splitlines()]
    launched = _some([f"launched at {place}" for place in finding.launched if place != problem.place], limit)
    shapes = _some([f"with {shape}" for shape in finding.shapes], limit)
    cases = _cases(finding, request, [*at, *errors, *launched, *shapes])
    title = f"{finding.name} {TITLES[problem.kind]}"
    return model.Finding(title, True, [], [where(finding.where)], cases, problem.hint)


def _lost(remark: Remark, request: Request) -> model.Finding:
    return model.Finding(f"not reached: {remark.reason}", False, [], [where(remark.where)], _cases(remark, request, []))


def _cases(seen: Finding | Remark, request: Request, lines: list[str]) -> list[model.FailedCase]:
    """The cases of a failure, the first with the command that shows it again."""
    again = request.again(seen.where[0], seen.cases[0]) if seen.cases else ""
    return [model.FailedCase(case, [], lines, again * (not number)) for number, case in enumerate(seen.cases)]


def _unfit(remark: Remark, limit: int | None) -> str:
    cases = f": {', '.join(_some(remark.cases, limit))}" if remark.cases else ""
    return f"does not apply: {remark.reason}; {where(remark.where)}{cases}"


def _some(values: Sequence[str], limit: int | None) -> list[str]:
    """The first values, and how many more there are."""
    more = 0 if limit is None else len(values) - limit
    return [*values[:limit], f"... and {more} more; -v shows all"] if more > 0 else [*values]


def where(combinations: Sequence[Combination]) -> str:
    """Combinations in words: ``B with 3.6.0, 3.9.0 for sm_90; C with 3.9.0 for sm_90, sm_100``."""
    by_pair: dict[tuple[str, str], list[str]] = {}
    for entry in combinations:
        by_pair.setdefault((entry.library, entry.triton), []).append(entry.target)
    by_library: dict[tuple[str, tuple[str, ...]], list[str]] = {}
    for (library, triton), targets in by_pair.items():
        by_library.setdefault((library, tuple(targets)), []).append(triton)
    return "; ".join(
        f"{library} with {', '.join(tritons)} for {', '.join(targets)}"
        for (library, targets), tritons in sorted(by_library.items(), key=lambda item: order(item[0][0]))
    )


def _kernels(results: Sequence[Result]) -> Table:
    """Every kernel of every combination, those that use most shared memory first."""
    heads = ["combination", "", "kernel", *RESOURCES.values(), "warps", "stages", "compiled in", "launched at"]
    rows: list[list[Piece]] = [[(name, "dim") for name in heads]]
    for result in results:
        for kernel in sorted(result.kernels.values(), key=lambda kernel: (-(kernel.shared or 0), kernel.name)):
            used = [getattr(kernel, resource) for resource in (*RESOURCES, "warps", "stages")]
            seconds = "" if kernel.shared is None else "cached" if kernel.seconds is None else f"{kernel.seconds:.2f} s"
            facts = [kernel.name, *("" if value is None else f"{value:,}" for value in used), seconds, kernel.launched]
            rows.append([(str(result.combination), ""), MARKS[kernel.built], *((fact, "") for fact in facts)])
    return Table(rows, [], "Kernels")


def _advice(summary: Summary) -> str:
    by_library = ", ".join(f"{library}: {triton or 'none'}" for library, triton in summary.advice.items())
    return f"newest Triton that compiles everything: {summary.newest or f'none ({by_library})'}"


def to_json(results: Sequence[Result], summary: Summary, request: Request) -> dict[str, Any]:
    """The report for machines."""
    return {
        "schema": SCHEMA,
        "verdict": summary.verdict.value,
        "scenario": request.scenario,
        "seconds": request.seconds,
        "compiled": summary.compiled,
        "newest": summary.newest or None,
        "newest_by_library": {library: triton or None for library, triton in summary.advice.items()},
        "targets": {name: asdict(TARGETS[name]) for name in request.targets},
        "findings": [asdict(finding) for finding in summary.findings],
        "not_reached": [asdict(remark) for remark in summary.not_reached],
        "inapplicable": [asdict(remark) for remark in summary.inapplicable],
        "combinations": [
            {
                **asdict(result.combination),
                "inapplicable": result.inapplicable,
                "counts": {built.value: result.count(built) for built in Built},
                "compiled_now": result.compiled_now,
                "seconds": result.seconds,
                "cases": [asdict(case) for case in result.cases.values()],
                "kernels": [asdict(kernel) for kernel in result.kernels.values()],
            }
            for result in results
        ],
    }
