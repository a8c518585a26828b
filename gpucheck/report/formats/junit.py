"""The report as JUnit XML, in the dialect that Jenkins calls xunit2: one suite a matrix row, one test a case and rank.

The file is red exactly where the verdict is not PASS: what no single test shows, such as software that changed during
the run, becomes a test of its own in a last suite.
"""

from __future__ import annotations

import time
from xml.etree import ElementTree
from xml.etree.ElementTree import Element, SubElement

from gpucheck.diagnose.wording import lines_of, rank_list
from gpucheck.model.finding import FailedCase, Finding
from gpucheck.model.record import Outcome, Verdict
from gpucheck.report.blocks import NO_GPU_CHECKED, Report, Result, finding_lines, heading
from gpucheck.report.escape import one_line, visible

WHOLE = "the run as a whole"
_JUDGED = (Outcome.PASS, Outcome.MISMATCH, Outcome.VIOLATION)  # red ones are failures, all others are errors
_COUNTED = {"failures": "failure", "errors": "error", "skipped": "skipped"}


def render(report: Report) -> str:
    """The text of the file."""
    suites: dict[str, list[Result]] = {}
    for result in report.results:
        suites.setdefault(result.row, []).append(result)
    findings = report.findings_by_result()
    name = f"gpucheck {report.plan.scenario}" + (f": {NO_GPU_CHECKED}" if not report.gpus_checked else "")
    root = Element("testsuites", name=one_line(name))
    for row, results in suites.items():
        tests = [_test(result, findings.get((result.label, result.record.rank), [])) for result in results]
        root.append(_suite(report, row, tests, sum(result.seconds for result in results)))
    if whole := _whole(report, red=any(test.tag in ("failure", "error") for test in root.iterfind("*/*/*"))):
        root.append(_suite(report, WHOLE, whole, 0.0))
    for name in ("tests", "failures", "errors"):
        root.set(name, str(sum(int(suite.get(name, "0")) for suite in root)))
    if report.seconds is not None:
        root.set("time", f"{report.seconds:.3f}")
    ElementTree.indent(root, " ")
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ElementTree.tostring(root, encoding="unicode") + "\n"


def _suite(report: Report, name: str, tests: list[Element], seconds: float) -> Element:
    counts = {key: sum(test.find(tag) is not None for test in tests) for key, tag in _COUNTED.items()}
    suite = Element("testsuite", name=one_line(name), tests=str(len(tests)))
    for key, count in counts.items():
        suite.set(key, str(count))
    suite.set("time", f"{seconds:.3f}")
    suite.set("timestamp", time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(report.plan.created)))
    suite.extend(tests)
    return suite


def _test(result: Result, findings: list[tuple[Finding, FailedCase]]) -> Element:
    record = result.record
    test = _named(f"{result.label} [rank {record.rank}]", result.row, result.seconds)
    red, warnings = ([pair for pair in findings if pair[0].warns is warns] for warns in (False, True))
    if red:
        lines = [line for finding, failed_case in red for line in _case_lines(finding, failed_case)]
        kind = "failure" if record.outcome in _JUDGED else "error"
        _red(test, kind, record.outcome.value, red[0], [*lines, *record.traceback.splitlines()])
    elif result.accepted or result.warned:
        words = dict.fromkeys(finding.excuse for finding, _ in warnings if finding.excuse)
        SubElement(test, "skipped", message=one_line("; ".join(words)))
    elif record.outcome is Outcome.INAPPLICABLE:
        SubElement(test, "skipped", message=one_line(record.message))
    elif result.expected:
        _out(test, ["failed as the scenario expects", *lines_of(record)])
    if warnings:
        _out(test, [line for finding, failed_case in warnings for line in _case_lines(finding, failed_case)])
    return test


def _whole(report: Report, red: bool) -> list[Element]:
    """What concerns no single test; where that leaves all green, a verdict that is not PASS."""
    shown, tests = {(result.label, result.record.rank) for result in report.results}, []
    for finding in report.findings:
        seen = finding.cases
        if not finding.warns and not any(
            (failed_case.case, rank) in shown for failed_case in seen for rank in failed_case.ranks
        ):
            tests.append(_named(finding.title, WHOLE, 0.0))
            lines = [line for failed_case in seen for line in _case_lines(finding, failed_case)]
            _red(tests[-1], "failure" if finding.fails else "error", "finding", (finding, seen[0]), lines)
    if report.verdict != Verdict.PASS.value and not red and not tests:
        tests.append(_named("verdict", WHOLE, 0.0))
        SubElement(tests[-1], "error", type="verdict", message=one_line(f"{report.verdict}: {report.summary}"))
    return tests


def _named(name: str, row: str, seconds: float) -> Element:
    return Element("testcase", name=one_line(name), classname=one_line(f"gpucheck.{row}"), time=f"{seconds:.3f}")


def _out(test: Element, lines: list[str]) -> None:
    SubElement(test, "system-out").text = visible("\n".join(lines))


def _red(test: Element, tag: str, kind: str, first: tuple[Finding, FailedCase], lines: list[str]) -> None:
    finding, failed_case = first
    message = ": ".join([finding.title, *failed_case.lines[:1]])
    SubElement(test, tag, type=kind, message=one_line(message)).text = visible("\n".join(lines))


def _case_lines(finding: Finding, failed_case: FailedCase) -> list[str]:
    """What a finding says of one case, with what to do."""
    lines = [heading(finding) + (f", {rank_list(failed_case.ranks)}" if failed_case.ranks else "")]
    lines += [finding.excuse] if finding.excuse else []
    lines += failed_case.lines
    lines += [f"replay: {failed_case.replay}"] if failed_case.replay else []
    return lines + [f"{label}: {text}" for text, label in finding_lines(finding, failed_case)]
