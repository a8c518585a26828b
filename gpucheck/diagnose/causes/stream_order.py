"""Kernels on a stream that does not wait for its inputs, or that nobody waits for."""

from __future__ import annotations

from gpucheck.diagnose.answers import answers
from gpucheck.diagnose.causes import common
from gpucheck.diagnose.causes.common import Evidence, error_summary, launched_on_other_stream
from gpucheck.diagnose.finding_cases import Key
from gpucheck.diagnose.page import Cause
from gpucheck.diagnose.wording import lines_of
from gpucheck.model.finding import Finding
from gpucheck.model.record import Record
from gpucheck.model.vocabulary import ExperimentName, ViolationKind
from gpucheck.records.run_folder import Run

STREAM_ORDER = Cause(
    "missing stream order",
    means="A kernel runs on a stream that does not wait for the stream on which its inputs are produced, or nobody "
    "waits for its end before the outputs are read.",
    shows="Right when every launch is waited for, wrong otherwise; NaN or old numbers where the input came late.",
    confirm="gpucheck run order; the same case is right where every launch is waited for (synchronised = true in its "
    "scenario, or --debug).",
    fix="Launch on torch.cuda.current_stream() of the tensors' device, or make the streams wait for each other "
    "with events (stream.wait_stream) on both sides of the launch.",
)
CAUSES = (STREAM_ORDER,)


def recognise(run: Run, record: Record) -> Evidence | None:
    """Right when launches or outputs are waited for; or wrong under stress, with a launch on another stream.

    Of a candidate its supervisor has compared the two itself.
    """
    if any(violation.kind is ViolationKind.ORDER for violation in record.violations):
        return Evidence(
            STREAM_ORDER, "launches on a stream that nobody waits for" if launched_on_other_stream(record) else ""
        )
    if not (
        record.mismatches or any(violation.kind is ViolationKind.REPEATS_DIFFER for violation in record.violations)
    ):
        return None
    conditions = run.plan.steps[record.step].conditions
    stressed = conditions.late or conditions.consumer == "prompt" or conditions.stream != "default"
    stressed = stressed and conditions.concurrency == 1  # threads have streams of their own
    seen = answers(run, record)
    ordered = seen.separates(ExperimentName.SYNCHRONISED) or seen.separates(ExperimentName.WAITS)
    if ordered or (stressed and launched_on_other_stream(record)):
        return Evidence(STREAM_ORDER, error_summary(record))
    return None


def findings(run: Run, evidence: dict[Key, Evidence]) -> list[Finding]:
    """As usual, with the launches that went to another stream."""
    return common.findings(run, evidence, _lines)


def _lines(record: Record) -> list[str]:
    seen = dict.fromkeys(
        f"{launch.kernel} launched on stream {launch.stream}, its inputs come on stream {record.stream}"
        + (f" ({launch.source})" if launch.source else "")
        for launch in launched_on_other_stream(record)
    )
    return [*lines_of(record), *seen]
