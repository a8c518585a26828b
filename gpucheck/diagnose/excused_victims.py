"""Victims of failures that do not fail a run: ranks without a result since another one failed as was accepted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from gpucheck.diagnose.finding_cases import Key, keys_of, split
from gpucheck.diagnose.symptoms import VICTIM
from gpucheck.diagnose.wording import rank_list
from gpucheck.model.finding import Finding
from gpucheck.records.run_folder import Run

AS_EXPECTED = "fails as the scenario expects"


def excuse_victims(
    run: Run, findings: Sequence[Finding], expected: frozenset[Key], excused: frozenset[Key]
) -> tuple[list[Finding], frozenset[Key]]:
    """Makes warnings of victims whose culprit's failure is excused; a case that it costs other ranks is its doing.

    Args:
        expected: step and rank of what failed as the scenario expects.
        excused: of what failed as accepted, or beside what the run is judged by, in each of its findings.

    Returns:
        All findings, and step and rank of the excused victims.
    """
    reasons = dict.fromkeys(expected, AS_EXPECTED)
    for finding in findings:
        reasons |= {key: finding.excuse for key in keys_of(run, finding) if finding.excuse and key in excused}
    if not reasons:
        return list(findings), frozenset()
    made, keys = [], set[Key]()
    for finding in findings:
        marks = _marks(run, finding, reasons) if finding.title == VICTIM.title else {}
        parts = split(run, finding, marks, {}) if marks else [(None, finding)]
        made += [replace(part, warns=True, judged=mark) if mark else part for mark, part in parts]
        keys |= marks.keys()
    return made, frozenset(keys)


def _marks(run: Run, finding: Finding, reasons: Mapping[Key, str]) -> dict[Key, str]:
    """Why a victim is excused, by step and rank."""
    marks = {}
    for step, rank in keys_of(run, finding):
        culprit = run.records[(step, rank)].victim_of
        if culprit is not None and (reason := reasons.get((step, culprit))):
            marks[(step, rank)] = f"{rank_list([culprit])}: {reason}"
    return marks
