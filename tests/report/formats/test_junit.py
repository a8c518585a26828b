from __future__ import annotations

import re
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

import pytest
from junitparser import Error, Failure, JUnitXml, Skipped

from gpucheck.diagnose.conclude import conclude
from gpucheck.model.record import Outcome
from gpucheck.records.run_folder import Run
from gpucheck.report import blocks
from gpucheck.report.blocks import Report
from gpucheck.report.formats.junit import WHOLE, render
from tests.conftest import Synthetic

COUNTS = ("tests", "failures", "errors")
RULES: dict[str, tuple[set[str], set[str], set[str]]] = {  # element -> attributes it must have, may have; children
    "testsuites": (set(), {"name", "time", *COUNTS}, {"testsuite"}),
    "testsuite": (
        {"name", *COUNTS},
        {"group", "time", "skipped", "timestamp", "hostname", "id", "package", "file", "log", "url"},
        {"testsuite", "properties", "testcase", "system-out", "system-err"},
    ),
    "properties": (set(), set(), {"property"}),
    "property": ({"name", "value"}, set(), set()),
    "testcase": (
        {"name"},
        {"time", "classname", "group"},
        {"skipped", "error", "failure", "system-out", "system-err"},
    ),
    **{name: (set(), {"type", "message"}, set()) for name in ("skipped", "error", "failure")},
    **{name: (set(), set(), set()) for name in ("system-out", "system-err")},
}
"""What Jenkins' xunit plugin takes; its reruns of flaky tests, which are never written here, are left out."""
TIME = re.compile(r"(([0-9]{0,3},)*[0-9]{3}|[0-9]{0,3})*(\.[0-9]*)?")
TEXT = {"skipped", "error", "failure", "system-out", "system-err"}


def broken_rules(element: Element) -> list[str]:
    """The rules of the dialect that a document breaks."""
    if element.tag not in RULES:
        return [f"unknown element {element.tag}"]
    must, may, children = RULES[element.tag]
    found = [f"{element.tag} lacks {name}" for name in sorted(must - set(element.keys()))]
    found += [f"{element.tag} has {name}" for name in sorted(set(element.keys()) - must - may)]
    found += [f"{element.tag} holds {child.tag}" for child in element if child.tag not in children]
    found += [f"text in {element.tag}"] if (element.text or "").strip() and element.tag not in TEXT else []
    if not TIME.fullmatch(element.get("time", "")):
        found.append(f"time {element.get('time')!r}")
    return found + [rule for child in element for rule in broken_rules(child)]


def report_of(run: Run) -> Report:
    return blocks.build(run, conclude(run))


def red(text: str) -> bool:
    root = ElementTree.fromstring(text)
    assert (root.get("failures"), root.get("errors")) == tuple(
        str(sum(test.find(tag) is not None for test in root.iter("testcase"))) for tag in ("failure", "error")
    )
    return (root.get("failures"), root.get("errors")) != ("0", "0")


def test_the_rules_notice() -> None:
    test = '<testcase name="b"/>'
    good = f'<testsuites><testsuite name="a" tests="1" failures="0" errors="0">{test}</testsuite></testsuites>'
    assert broken_rules(ElementTree.fromstring(good)) == []
    for old, new in (
        (' errors="0"', ""),
        ("<testsuites", '<testsuites skipped="0"'),
        (test, '<testcase classname="b"/>'),
        (test, '<testcase name="b" file="c"/>'),
        (test, '<testcase name="b" time="1e-05"/>'),
        (test, '<testcase name="b"><properties/></testcase>'),
        (test, '<testcase name="b"><failure text="c"/></testcase>'),
        (test, f"words{test}"),
        (test, "<case/>"),
    ):
        assert broken_rules(ElementTree.fromstring(good.replace(old, new))), new


def test_the_dialect_is_kept(busy: Report, hostile: Report, synthetic: Synthetic) -> None:
    for report in (busy, hostile, report_of(synthetic.run(synthetic.plan(cases=0)))):
        text = render(report)
        assert text.startswith('<?xml version="1.0" encoding="UTF-8"?>\n<testsuites ')
        assert broken_rules(ElementTree.fromstring(text.encode())) == []


def test_junitparser_reads_one_suite_a_row_and_one_test_a_case_and_rank(busy: Report) -> None:
    xml = JUnitXml.fromstring(render(busy).encode())
    assert [suite.name for suite in xml] == [
        *dict.fromkeys(result.row for result in sorted(busy.results, key=lambda r: (r.record.step, r.record.rank)))
    ]
    tests = [test for suite in xml for test in suite]
    assert len(tests) == xml.tests == 480 and len({(test.classname, test.name) for test in tests}) == 480
    told = (xml.tests, xml.failures, xml.errors)
    xml.update_statistics()
    assert told == (xml.tests, xml.failures, xml.errors)
    assert xml.time == pytest.approx(sum(result.seconds for result in busy.results), abs=0.5)


def test_every_result_has_the_colour_it_should_have(busy: Report) -> None:
    xml = JUnitXml.fromstring(render(busy).encode())
    tests = {(test.classname, test.name): test for suite in xml for test in suite}
    for result in busy.results:
        test = tests[(f"gpucheck.{result.row}", f"{result.label} [rank {result.record.rank}]")]
        kinds = [type(found) for found in test.result]
        outcome = result.record.outcome
        if outcome is Outcome.PASS or result.expected:
            assert kinds == []
        else:
            assert kinds == [Failure if outcome in (Outcome.MISMATCH, Outcome.VIOLATION) else Error], outcome
            assert test.result[0].type == outcome.value
            assert f"gpucheck replay {busy.folder} {result.record.case}" in test.result[0].text
    expected = tests[(f"gpucheck.{busy.results[23 * 8].row}", f"{busy.results[23 * 8].label} [rank 1]")]
    assert expected.system_out.startswith("failed as the scenario expects\ny: row 1 of 2\n")


def test_a_failure_says_what_the_finding_says(busy: Report) -> None:
    xml = JUnitXml.fromstring(render(busy).encode())
    (test,) = [test for suite in xml for test in suite if test.name.endswith("exact (peer, late, x10) [rank 3]")]
    (failure,) = test.result
    assert failure.message == "wrong device context: corrupted: 10 of 10 repeats wrong"
    lines = failure.text.splitlines()
    assert lines[0] == "wrong device context: corrupted, rank 3"
    assert "_matmul_ogs launched on cuda:0, its tensors on cuda:3 (matmul_ogs.py:467)" in lines
    assert any(line.startswith("replay: gpucheck replay ") and line.endswith(" --rank 3") for line in lines)
    assert lines[-1].startswith("fix: with torch.cuda.device(x.device)")
    (raised,) = [test for suite in xml for test in suite if test.result and test.result[0].type == "error"]
    assert raised.result[0].text.endswith("line 467, in matmul_ogs\nRuntimeError: PassManager::run failed")


@pytest.mark.parametrize("outcome", list(Outcome))
@pytest.mark.parametrize("optional", [(), (1,)])
def test_red_is_what_is_no_pass(synthetic: Synthetic, outcome: Outcome, optional: tuple[int, ...]) -> None:
    report = report_of(synthetic.run(synthetic.plan(optional=optional), {(1, 0): outcome}))
    assert red(render(report)) is (report.verdict != "PASS")


def test_what_concerns_no_case_is_red_too(synthetic: Synthetic) -> None:
    def suites(run: Run) -> list[tuple[str, str]]:
        text = render(report_of(run))
        assert red(text) and broken_rules(ElementTree.fromstring(text)) == []
        return [(str(suite.get("name")), str(suite.get("failures"))) for suite in ElementTree.fromstring(text)]

    plan = synthetic.plan(cases=1, ranks=2)
    whole = [("matmul row0", "0"), (WHOLE, "0")]
    assert suites(synthetic.run(plan, changes=["torch changed"])) == whole
    assert suites(synthetic.run(plan, code=1)) == whole
    assert suites(synthetic.run(synthetic.plan(cases=1, optional=[0]), {(0, 0): Outcome.INAPPLICABLE})) == whole
    assert suites(synthetic.run(synthetic.plan(cases=0))) == [(WHOLE, "0")]
    disagreeing = synthetic.record(plan, 0, 1, digests={"y": "other"})
    assert suites(synthetic.run(plan, {(0, 1): disagreeing})) == [("matmul row0", "2")]


def test_inapplicable_cases_are_skipped_where_that_is_allowed(synthetic: Synthetic) -> None:
    plan = synthetic.plan(optional=[1])
    record = synthetic.record(plan, 1, 0, Outcome.INAPPLICABLE, message="no mxfp4 here")
    xml = JUnitXml.fromstring(render(report_of(synthetic.run(plan, {(1, 0): record}))).encode())
    ((skipped,),) = [test.result for suite in xml for test in suite if test.result]
    assert isinstance(skipped, Skipped) and skipped.message == "no mxfp4 here"


def test_hostile_names_stay_text(hostile: Report) -> None:
    root = ElementTree.fromstring(render(hostile).encode())
    names = {test.get("classname") for test in root.iter("testcase")}
    assert "gpucheck.row <script>alert(1)</script>" in names and len(names) == len({r.row for r in hostile.results})
    assert r"gpucheck.row controls \x00\x07\x1b[31mred\x1b[0m\x85 \u202ereversed\u202c \ud800 \uffff" in names
    assert {element.tag for element in root.iter()} == {"testsuites", "testsuite", "testcase", "failure", "error"}
