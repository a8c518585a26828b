"""What the results of all combinations mean together: verdict, findings, advice. Decides, never prints."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from gpucheck.model.record import Verdict
from gpucheck.tools.compile.outcome import OWN, Built, Combination, Problem, Result


@dataclass
class Finding:
    """One failure, wherever it was seen."""

    name: str  # of the kernel
    problem: Problem  # as it was first seen
    errors: list[str] = field(default_factory=list)  # where only the numbers in it differ
    where: list[Combination] = field(default_factory=list)
    cases: list[str] = field(default_factory=list)
    shapes: list[str] = field(default_factory=list)  # constants, warps and stages it fails with
    launched: list[str] = field(default_factory=list)  # lines that launch it


@dataclass
class Remark:
    """Cases that were not compiled for one reason."""

    reason: str
    where: list[Combination] = field(default_factory=list)
    cases: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Summary:
    """All that a report shows."""

    verdict: Verdict
    compiled: int  # distinct kernels of each combination, summed
    findings: list[Finding]
    not_reached: list[Remark]
    inapplicable: list[Remark]
    advice: dict[str, str]  # library -> newest Triton with which all its kernels compile for all targets; "" for none
    newest: str  # the newest Triton with which every library's do; "" for none


def summarise(results: Sequence[Result]) -> Summary:
    """Concludes from the results of all combinations."""
    findings, lost, unfit = (
        _findings(results),
        _remarks(results, Built.NOT_REACHED),
        _remarks(results, Built.INAPPLICABLE),
    )
    compiled = sum(result.count(Built.COMPILED) for result in results)
    if findings:
        verdict = Verdict.FAIL
    elif lost:
        verdict = Verdict.INCONCLUSIVE
    else:
        verdict = Verdict.PASS if compiled else Verdict.NOTHING_RAN
    libraries = list(dict.fromkeys(result.combination.library for result in results))
    tritons = newest_first({result.combination.triton for result in results})
    passing = {library: [t for t in tritons if _passes(results, t, library)] for library in libraries}
    common = [triton for triton in tritons if all(triton in passing[library] for library in libraries)]
    return Summary(
        verdict,
        compiled,
        findings,
        lost,
        unfit,
        {library: (found or [""])[0] for library, found in passing.items()},
        common[0] if common else "",
    )


def newest_first(versions: set[str]) -> list[str]:
    """Versions in descending order of their numbers."""
    return sorted(versions, key=lambda text: ([int(part) for part in re.findall(r"\d+", text)], text), reverse=True)


def _passes(results: Sequence[Result], triton: str, library: str) -> bool:
    """Whether a library's kernels compile with a Triton for every target that any Triton given compiles some for."""
    ours = [result for result in results if result.combination.library == library]
    possible = {result.combination.target for result in ours if result.count(Built.COMPILED)}
    chosen = [result for result in ours if result.combination.triton == triton]
    failed = any(result.count(Built.FAILED) or result.count(Built.NOT_REACHED) for result in chosen)
    return not failed and possible == {r.combination.target for r in chosen if r.count(Built.COMPILED)} != set()


def _findings(results: Sequence[Result]) -> list[Finding]:
    """Failures that are the same error at the same place, the most widespread first."""
    found: dict[tuple[Any, ...], Finding] = {}
    for result in results:
        for kernel in result.kernels.values():
            if kernel.built is not Built.FAILED or kernel.problem is None:
                continue
            problem = kernel.problem
            key = (kernel.name, problem.kind, problem.place, re.sub(r"\d[\d,]*|on (sm|gfx)\w+", "", problem.error))
            finding = found.setdefault(key, Finding(kernel.name, problem))
            _add(finding.where, result.combination)
            _add(finding.errors, problem.error)
            _add(finding.cases, *(name for name, case in result.cases.items() if kernel.key in case.kernels))
            _add(finding.shapes, *filter(None, [kernel.shape]))
            _add(finding.launched, *filter(None, [kernel.launched]))
    return sorted(found.values(), key=lambda finding: -len(finding.where))


def _remarks(results: Sequence[Result], built: Built) -> list[Remark]:
    found: dict[str, Remark] = {}
    for result in results:
        if built is Built.INAPPLICABLE and result.inapplicable:
            _add(found.setdefault(result.inapplicable, Remark(result.inapplicable)).where, result.combination)
        for case in result.cases.values():
            if case.built is built:
                reason = case.reason + (f" ({case.place})" if case.place else "")
                remark = found.setdefault(reason, Remark(reason))
                _add(remark.where, result.combination)
                _add(remark.cases, case.case)
    return sorted(found.values(), key=lambda remark: -len(remark.where))


def _add(values: list[Any], *new: Any) -> None:
    values += [value for value in dict.fromkeys(new) if value not in values]


def order(library: str) -> tuple[bool, str]:
    """Sorts libraries by name, our own kernels last."""
    return library == OWN, library
