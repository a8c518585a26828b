"""The report of compiling, as lines of plain text and as JSON."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from gpucheck.compile.outcome import Built, Combination, Kernel, Kind, Result
from gpucheck.compile.summary import Finding, Remark, Summary, newest_first, order
from gpucheck.compile.targets import TARGETS
from gpucheck.compile.tritons import INSTALLED

SCHEMA = 1
MARKS = {Built.COMPILED: "ok", Built.FAILED: "XX", Built.INAPPLICABLE: "--", Built.NOT_REACHED: "??"}
LEGEND = "ok kernels that compile  XX kernels that fail  -- cases that do not apply  ?? cases not reached"
TITLES = {
    Kind.ERROR: "does not compile",
    Kind.CRASH: "crashes the compiler",
    Kind.HANG: "hangs the compiler",
    Kind.RESOURCE: "asks for more than the GPU has",
    Kind.REFUSED: "is launched with what it does not take",
}
SHOWN = 3  # cases, shapes and errors of a finding, unless verbose


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


def lines(results: Sequence[Result], summary: Summary, request: Request, *, verbose: bool = False) -> Iterator[str]:
    """The report: verdict, table, findings, what was left out, what the kernels use, advice."""
    yield f"{summary.verdict.value}  {_headline(summary)}"
    now = sum(result.compiled_now for result in results)
    yield (
        f"scenario {request.scenario} · {_count(request.cases, 'case')} · {', '.join(request.targets)} · "
        f"{_count(summary.compiled, 'kernel')}, {now} compiled now · {request.seconds:.1f} s"
    )
    yield ""
    yield from _table(results, request.targets)
    for number, finding in enumerate(summary.findings, start=1):
        yield ""
        yield from _finding(number, finding, request, None if verbose else SHOWN)
    yield ""
    for mark, remarks in (("not reached", summary.not_reached), ("does not apply", summary.inapplicable)):
        for remark in remarks:
            yield from _remark(mark, remark, None if verbose else SHOWN)
    yield from _heaviest(summary)
    if verbose:
        yield from _kernels(results)
    yield from _advice(summary)


def _headline(summary: Summary) -> str:
    failed, lost = len(summary.findings), sum(len(remark.cases) for remark in summary.not_reached)
    words = [_count(failed, "finding")] if failed else []
    words += [f"{_count(lost, 'case')} not reached"] if lost else []
    if words:
        return ", ".join(words)
    return f"every kernel compiles: {summary.compiled}" if summary.compiled else "no kernel was compiled"


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'s' * (number != 1)}"


def _table(results: Sequence[Result], targets: Sequence[str]) -> Iterator[str]:
    """A row for each library and Triton, a column for each target."""
    by_row: dict[tuple[str, str], dict[str, Result]] = {}
    for result in results:
        by_row.setdefault((result.combination.library, result.combination.triton), {})[result.combination.target] = (
            result
        )
    rows = [["library", "triton", *targets]]
    tritons = newest_first({triton for _, triton in by_row})
    for library, triton in sorted(by_row, key=lambda row: (order(row[0]), tritons.index(row[1]))):
        cells = by_row[library, triton]
        rows.append([library, triton, *(_cell(cells[target]) for target in targets)])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        yield "  ".join(f"{text:<{width}}" for text, width in zip(row, widths, strict=True)).rstrip()
    yield LEGEND


def _cell(result: Result) -> str:
    if result.inapplicable:
        return MARKS[Built.INAPPLICABLE]
    counts = [(result.count(built), mark) for built, mark in MARKS.items()]
    return " ".join(f"{count} {mark}" for count, mark in counts if count) or "0 ok"


def _finding(number: int, finding: Finding, request: Request, limit: int | None) -> Iterator[str]:
    problem = finding.problem
    yield f"{number}  {finding.name} {TITLES[problem.kind]}   {where(finding.where)}"
    if problem.place:
        yield f"   at        {problem.place}" + (f"  {problem.code}" if problem.code else "")
    for error in finding.errors[:limit]:
        first, *rest = error.splitlines()
        yield f"   error     {first}"
        yield from (f"             {line}" for line in rest)
    if problem.hint:
        yield f"   hint      {problem.hint}"
    yield from _listed("launched", [place for place in finding.launched if place != problem.place], limit)
    yield from _listed("with", finding.shapes, limit)
    yield from _listed("case", finding.cases, limit)
    if finding.cases:
        yield f"   again     {request.again(finding.where[0], finding.cases[0])}"


def _remark(mark: str, remark: Remark, limit: int | None) -> Iterator[str]:
    yield f"{mark}: {remark.reason}"
    yield f"   in        {where(remark.where)}"
    yield from _listed("case", remark.cases, limit)


def _listed(title: str, values: list[str], limit: int | None) -> Iterator[str]:
    for value in values[:limit]:
        yield f"   {title:<9} {value}"
    if limit is not None and len(values) > limit:
        yield f"             ... and {len(values) - limit} more; -v shows all"


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


def _heaviest(summary: Summary) -> Iterator[str]:
    for target, kernels in summary.heaviest.items():
        (w1, shared), (w2, registers), (w3, spilled) = kernels
        most, used = TARGETS[target].shared_memory, shared.shared or 0
        words = [f"{used:,} of {most:,} bytes of shared memory ({used / most:.0%}): {_in(w1, shared)}"]
        if registers.registers is not None:
            words.append(f"{registers.registers} registers: {_in(w2, registers)}")
        if spilled.spilled:
            words.append(f"{spilled.spilled} bytes spilled a thread: {_in(w3, spilled)}")
        yield f"most on {target:<7} {'; '.join(words)}"


def _in(combination: Combination, kernel: Kernel) -> str:
    return f"{kernel.name} in {combination.library} with {combination.triton}"


def _kernels(results: Sequence[Result]) -> Iterator[str]:
    """Every kernel of every combination."""
    for result in results:
        limit = TARGETS[result.combination.target].shared_memory
        yield ""
        yield f"{result.combination}"
        for kernel in sorted(result.kernels.values(), key=lambda kernel: (kernel.name, kernel.key)):
            yield f"  {MARKS[kernel.built]}  {kernel.name}  {', '.join(_facts(kernel, limit))}  {kernel.launched}"
    yield ""


def _facts(kernel: Kernel, limit: int) -> Iterator[str]:
    """What a kernel uses, and how long it took."""
    figures = (
        (kernel.shared, f"of {limit:,} B shared"),
        (kernel.registers, "registers"),
        (kernel.spilled, "B spilled"),
    )
    for value, unit in (*figures, (kernel.warps, "warps"), (kernel.stages, "stages")):
        if value is not None:
            yield f"{value:,} {unit}"
    if kernel.seconds is not None:
        yield f"{kernel.seconds:.2f} s"
    elif kernel.shared is not None:
        yield "from Triton's cache"


def _advice(summary: Summary) -> Iterator[str]:
    if summary.newest:
        yield f"advice  everything compiles with Triton {summary.newest}, the newest that does"
        return
    each = [f"{library} with {triton}" for library, triton in summary.advice.items() if triton]
    none = [library for library, triton in summary.advice.items() if not triton]
    if each:
        yield f"advice  no Triton compiles everything; the newest that compiles all of one: {', '.join(each)}"
    if none:
        yield f"advice  no Triton given compiles everything of {', '.join(none)}"


def to_json(results: Sequence[Result], summary: Summary, request: Request) -> dict[str, Any]:
    """The report for machines."""

    def places(combinations: Sequence[Combination]) -> list[dict[str, str]]:
        return [asdict(entry) for entry in combinations]

    return {
        "schema": SCHEMA,
        "verdict": summary.verdict.value,
        "scenario": request.scenario,
        "seconds": request.seconds,
        "compiled": summary.compiled,
        "newest": summary.newest or None,
        "newest_by_library": {library: triton or None for library, triton in summary.advice.items()},
        "targets": {name: asdict(TARGETS[name]) for name in request.targets},
        "findings": [{**asdict(finding), "where": places(finding.where)} for finding in summary.findings],
        "not_reached": [{**asdict(remark), "where": places(remark.where)} for remark in summary.not_reached],
        "inapplicable": [{**asdict(remark), "where": places(remark.where)} for remark in summary.inapplicable],
        "combinations": [
            {
                **asdict(result.combination),
                "inapplicable": result.inapplicable,
                "counts": {built.value: result.count(built) for built in Built},
                "compiled_now": result.compiled_now,
                "seconds": result.seconds,
                "cases": [case.to_json() for case in result.cases.values()],
                "kernels": [kernel.to_json() for kernel in result.kernels.values()],
            }
            for result in results
        ],
    }
