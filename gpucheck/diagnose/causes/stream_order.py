"""Kernels on a stream that does not wait for its inputs, or that nobody waits for."""

from __future__ import annotations

from gpucheck.diagnose.answers import answers
from gpucheck.diagnose.causes import common
from gpucheck.diagnose.causes.common import Evidence, astray, what
from gpucheck.diagnose.causes.pages import STREAM_ORDER
from gpucheck.diagnose.finding_cases import Key
from gpucheck.diagnose.wording import lines_of
from gpucheck.model.finding import Finding
from gpucheck.model.record import Record
from gpucheck.model.vocabulary import ExperimentName, ViolationKind
from gpucheck.records.run_folder import Run


def recognise(run: Run, record: Record) -> Evidence | None:
    """Right when launches or outputs are waited for; or wrong under stress, with a launch on another stream.

    Of a candidate its supervisor has compared the two itself.
    """
    if any(violation.kind is ViolationKind.ORDER for violation in record.violations):
        return Evidence(STREAM_ORDER, "launches on a stream that nobody waits for" if astray(record) else "")
    if not (
        record.mismatches or any(violation.kind is ViolationKind.REPEATS_DIFFER for violation in record.violations)
    ):
        return None
    conditions = run.plan.steps[record.step].conditions
    stressed = conditions.late or conditions.consumer == "prompt" or conditions.stream != "default"
    seen = answers(run, record)
    ordered = seen.separates(ExperimentName.SYNCHRONISED) or seen.separates(ExperimentName.WAITS)
    if ordered or (stressed and astray(record)):
        return Evidence(STREAM_ORDER, what(record))
    return None


def findings(run: Run, evidence: dict[Key, Evidence]) -> list[Finding]:
    """As usual, with the launches that went to another stream."""
    return common.findings(run, evidence, _lines)


def _lines(record: Record) -> list[str]:
    seen = dict.fromkeys(
        f"{launch.kernel} launched on stream {launch.stream}, its inputs come on stream {record.stream}"
        + (f" ({launch.source})" if launch.source else "")
        for launch in astray(record)
    )
    return [*lines_of(record), *seen]
