"""The report in Prometheus' text format, for the textfile collector of its node exporter.

Every series carries the scenario, so that the files of several scenarios can lie in one folder. All are gauges: they
tell the state of the last run.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from datetime import date, datetime, time, timezone

from gpucheck.diagnose.wording import rank_list
from gpucheck.model.record import Outcome, Verdict
from gpucheck.report.blocks import Report
from gpucheck.report.escape import visible
from gpucheck.report.formats.json import counts

Sample = tuple[Mapping[str, object], float]
Family = tuple[str, str, Iterable[Sample]]  # name, help, samples


def render(report: Report) -> str:
    """The text of the file."""
    return text(_families(report), scenario=report.plan.scenario)


def text(families: Iterable[Family], **common: str) -> str:
    """Series in Prometheus' text format; names that end in ``_total`` are counters, all others gauges.

    Args:
        common: labels that every series carries.
    """
    lines: list[str] = []
    for name, words, samples in families:
        kind = "counter" if name.endswith("_total") else "gauge"
        lines += [f"# HELP gpucheck_{name} {words}", f"# TYPE gpucheck_{name} {kind}"]
        for labels, value in samples:
            pairs = {**common, **labels}
            written = ",".join(f'{key}="{_escaped(str(shown))}"' for key, shown in pairs.items())
            lines.append(f"gpucheck_{name}{{{written}}} {value:.10g}")
    return "\n".join(lines) + "\n"


def _families(report: Report) -> Iterator[Family]:
    plan, software = report.plan, report.plan.environment.get("software", {})
    versions = {name: (software.get(name) or {}).get("version", "") for name in ("torch", "triton")}
    facts = {"library": plan.library["name"], "content": plan.library["content"], "origin": plan.library["origin"]}
    yield "run_info", "What ran.", [({"seed": plan.seed, **versions, **facts}, 1)]
    yield "run_timestamp_seconds", "When the run began, in seconds since the epoch.", [({}, plan.created)]
    if report.seconds is not None:
        yield "run_seconds", "Wall time of the run.", [({}, report.seconds)]
    yield "gpus_checked", "Ranks that worked on a GPU; 0 says that no GPU was checked.", [({}, report.gpus_checked)]
    verdicts = [({"verdict": verdict.value}, float(verdict.value == report.verdict)) for verdict in Verdict]
    yield "verdict", "1 for the verdict of the run, 0 for the others.", verdicts
    findings = [({"fails": str(fails).lower()}, _findings(report, fails)) for fails in (True, False)]
    yield "findings", "Findings that fail the run, and those that leave its verdict open.", findings
    warnings = sum(finding.warns and not finding.accepted for finding in report.findings)
    yield "warnings", "Findings that have no influence on the verdict.", [({}, float(warnings))]
    accepted = sum(finding.accepted is not None for finding in report.findings)
    yield "accepted_findings", "Failures that were accepted and do not fail the run.", [({}, float(accepted))]
    yield "accepted_until_timestamp_seconds", "The end of the last day for which one is accepted.", _accepted(report)
    yield "cases", "Cases of a check on a rank, by how they ended.", _cases(report)
    yield from _ranks(report)


def _findings(report: Report, fails: bool) -> float:
    return float(sum(finding.fails is fails and not finding.warns for finding in report.findings))


def _accepted(report: Report) -> Iterator[Sample]:
    for number, finding in enumerate(report.findings, start=1):
        if finding.accepted:
            end = datetime.combine(date.fromisoformat(finding.accepted.until), time.max, timezone.utc)
            labels = {"number": number, "finding": finding.title, "ranks": rank_list(finding.ranks)}
            yield {**labels, **asdict(finding.accepted)}, end.timestamp()


def _cases(report: Report) -> Iterator[Sample]:
    for name, _, cells in report.rows:
        for rank, cell in zip(report.ranks, cells, strict=True):
            ended = {Outcome.PASS.value: 0, **counts(cell)}
            yield from (({"check": name, "rank": rank, "outcome": key}, float(n)) for key, n in ended.items())


def _ranks(report: Report) -> Iterator[Family]:
    failing, unproven = Counter[int](), Counter[int]()
    used: dict[int, float] = {}
    for result in report.results:
        record = result.record
        failing[record.rank] += result.failing
        unproven[record.rank] += record.outcome in (Outcome.LOST, Outcome.HARNESS)
        if record.outcome is Outcome.PASS:
            used[record.rank] = max(used.get(record.rank, 0.0), record.tightness)
    labels = {place.rank: {"rank": place.rank, "host": place.host, "device": place.device} for place in report.places}
    yield "rank_failing_cases", "Cases that failed on a rank.", [(labels[r], float(failing[r])) for r in labels]
    yield (
        "rank_unjudged_cases",
        "Cases that a rank lost or did not judge.",
        [(labels[r], float(unproven[r])) for r in labels],
    )
    words = "Largest share of its error bound that a right output used."
    yield "rank_error_bound_used_ratio", words, [({"rank": rank}, share) for rank, share in sorted(used.items())]
    stages = [
        ({"rank": place.rank, "stage": stage}, seconds)
        for place in report.places
        for stage, seconds in {"import": place.import_seconds, **place.seconds}.items()
    ]
    yield "rank_stage_seconds", "Time of a rank in a stage, summed over its cases.", stages


def _escaped(text: str) -> str:
    return visible(text).replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")
