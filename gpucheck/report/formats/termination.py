"""The report as one line, for Kubernetes' termination log."""

from __future__ import annotations

from gpucheck.diagnose.wording import rank_list
from gpucheck.report.blocks import Report, heading
from gpucheck.report.escape import one_line

LIMIT = 4096  # bytes that Kubernetes keeps


def render(report: Report) -> str:
    """Verdict, first finding with its ranks, what ran; at most ``LIMIT`` bytes."""
    parts = [f"{report.verdict}: {report.summary}"]
    for finding in report.findings[:1]:
        ranks = f" on {rank_list(finding.ranks)}" if finding.ranks else ""
        rows = f" ({', '.join(finding.rows)})" if finding.rows else ""
        parts.append(f"first: {heading(finding)}{ranks}{rows}")
        parts += [finding.excuse] if finding.excuse else []
    line = one_line("; ".join([*parts, " · ".join(report.headline)])).encode()
    return line[: LIMIT - 1].decode(errors="ignore") + "\n"
