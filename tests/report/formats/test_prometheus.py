from __future__ import annotations

from collections import Counter

import pytest
from prometheus_client.parser import text_string_to_metric_families

from gpucheck.diagnose.conclude import conclude
from gpucheck.model.record import Outcome, Verdict
from gpucheck.report import blocks
from gpucheck.report.blocks import Report
from gpucheck.report.escape import visible
from gpucheck.report.formats.prometheus import render
from tests.conftest import Synthetic

Samples = list[tuple[dict[str, str], float]]


def families(report: Report) -> dict[str, Samples]:
    """The metrics as a collector reads them; fails on two series of the same name and labels, as it would."""
    found: dict[str, Samples] = {}
    for family in text_string_to_metric_families(render(report)):
        assert family.name not in found and family.type == "gauge" and family.documentation.endswith(".")
        found[family.name] = [(sample.labels, sample.value) for sample in family.samples]
        series = [tuple(sorted(sample.labels.items())) for sample in family.samples]
        assert len(series) == len(set(series))
        assert all(sample.labels["scenario"] == visible(report.plan.scenario) for sample in family.samples)
        assert all(sample.timestamp is None for sample in family.samples), "the textfile collector refuses timestamps"
    return found


def total(samples: Samples, **labels: str) -> float:
    return sum(value for of, value in samples if all(of[key] == text for key, text in labels.items()))


def test_the_verdict_and_the_run(busy: Report) -> None:
    found = families(busy)
    verdicts = {labels["verdict"]: value for labels, value in found["gpucheck_verdict"]}
    assert verdicts == {verdict.value: float(verdict is Verdict.FAIL) for verdict in Verdict}
    assert found["gpucheck_run_seconds"] == [({"scenario": "gate"}, 41.7)]
    assert found["gpucheck_run_timestamp_seconds"][0][1] == pytest.approx(1_795_000_000, abs=1)
    ((facts, one),) = found["gpucheck_run_info"]
    assert (one, facts["torch"], facts["triton"], facts["library"], facts["seed"]) == (1, "2.0", "3.0", "B", "0")
    assert [(labels["fails"], value) for labels, value in found["gpucheck_findings"]] == [("true", 7), ("false", 3)]


def test_cases_by_check_rank_and_outcome(busy: Report) -> None:
    samples = families(busy)["gpucheck_cases"]
    assert total(samples) == 480
    outcomes = Counter(result.record.outcome for result in busy.results if not result.expected)
    for outcome, count in outcomes.items():
        assert total(samples, outcome=outcome.value) == count
    assert total(samples, outcome="failed as expected") == 6
    assert total(samples, check="matmul dense bf16", rank="5", outcome="mismatch") == 5
    passing = [labels for labels, _ in samples if labels["outcome"] == "pass"]
    assert len(passing) == len(busy.rows) * 8, "a series that may go down to 0 must not vanish"


def test_failing_cases_of_each_rank(busy: Report) -> None:
    found = families(busy)
    failing = {labels["rank"]: value for labels, value in found["gpucheck_rank_failing_cases"]}
    assert failing == {"0": 5, "1": 6, "2": 6, "3": 7, "4": 6, "5": 30, "6": 5, "7": 5}
    unjudged = {labels["rank"]: value for labels, value in found["gpucheck_rank_unjudged_cases"]}
    assert unjudged == {**dict.fromkeys("012345", 0), "6": 1, "7": 1}
    used = {labels["rank"]: value for labels, value in found["gpucheck_rank_error_bound_used_ratio"]}
    assert len(used) == 8 and all(0 < share < 0.08 for share in used.values())
    compiled = total(found["gpucheck_rank_stage_seconds"], rank="0", stage="compile")
    assert compiled == pytest.approx(busy.places[0].seconds["compile"])


def test_a_clean_run_has_zeroes_to_alert_on(synthetic: Synthetic) -> None:
    run = synthetic.run(synthetic.plan(ranks=2))
    found = families(blocks.build(run, conclude(run)))
    assert [value for _, value in found["gpucheck_rank_failing_cases"]] == [0, 0]
    assert [value for _, value in found["gpucheck_findings"]] == [0, 0]
    assert total(found["gpucheck_verdict"], verdict="PASS") == 1


@pytest.mark.parametrize("outcome", list(Outcome))
def test_every_outcome_can_be_told(synthetic: Synthetic, outcome: Outcome) -> None:
    run = synthetic.run(synthetic.plan(cases=1), {(0, 0): outcome})
    run.outcome = {}
    found = families(blocks.build(run, conclude(run)))
    assert total(found["gpucheck_cases"], outcome=outcome.value) == 1 and "gpucheck_run_seconds" not in found


def test_hostile_names_come_back_as_they_are_shown(hostile: Report) -> None:
    found = families(hostile)
    checks = {labels["check"] for labels, _ in found["gpucheck_cases"]}
    assert checks == {visible(name) for name, _, _ in hostile.rows}
    lines = render(hostile).split("\n")
    assert all(line.startswith(("# HELP gpucheck_", "# TYPE gpucheck_", "gpucheck_")) for line in lines[:-1])
