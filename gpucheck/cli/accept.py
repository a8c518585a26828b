"""``gpucheck accept``: writes down the faults of a run that later runs are to accept; needs no torch."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gpucheck.cli.options import CaseOption
from gpucheck.model.errors import UsageError

if TYPE_CHECKING:
    from gpucheck.model.accepted import AcceptedFault
    from gpucheck.model.finding import FailedCase, Finding
    from gpucheck.records.run_folder import Run


def accept(
    run_dir: Annotated[Path, typer.Argument(help="The folder of a run that failed.", show_default=False)],
    reason: Annotated[str, typer.Option(metavar="TEXT", help="Why the faults are accepted; every report shows it.")],
    until: Annotated[str, typer.Option(metavar="DATE", help="The last day, in UTC: 2027-01-31.")],
    case: CaseOption = None,
    cause: Annotated[
        list[str] | None, typer.Option(metavar="CAUSE", help="Only findings with this cause or title; repeatable.")
    ] = None,
    out: Annotated[Path, typer.Option(metavar="FILE", help="New file for the accepted faults.")] = Path(
        "accepted.toml"
    ),
) -> None:
    """Accept faults of a run: with `run --accept FILE` they do not fail a run for as long as they show as they do."""
    from gpucheck.cli.present import write_file
    from gpucheck.diagnose.acceptance import day_of, faults_of, refused
    from gpucheck.model.finding import Acceptance
    from gpucheck.plan.accepted_file import written
    from gpucheck.records.run_folder import read_run

    if not reason.strip() or not reason.isprintable():
        raise UsageError(f"--reason is {reason!r}, expected a line of text")
    if out.exists() or not out.absolute().parent.is_dir():
        state = "exists" if out.exists() else f"cannot be written: there is no folder {out.absolute().parent}"
        raise UsageError(f"--out {out} {state}; give a new file: --accept takes several")
    run = read_run(run_dir)
    _check_day(until, day_of(run.plan))
    given = Acceptance(reason.strip(), until)
    chosen = _chosen(run, case or [], cause or [])
    faults = [fault for finding, shown in chosen for fault in faults_of(run, finding, shown, given)]
    for fault in faults:
        if why := refused(fault):
            raise UsageError(f"{fault.case} cannot be accepted: {why}")
    write_file("--out", str(out), written(faults))
    typer.echo(f"{out}: {len(faults)} accepted until {until}: {given.reason}")
    for fault in faults:
        typer.echo(_line(fault))
    typer.echo(f"from now on: gpucheck run ... --accept {out}")


def _check_day(until: str, day: str) -> None:
    try:
        known = re.fullmatch(r"\d{4}-\d\d-\d\d", until) and date.fromisoformat(until)
    except ValueError:
        known = None
    if not known:
        raise UsageError(f"--until is {until!r}, expected a day such as 2027-01-31")
    if until < day:
        raise UsageError(f"--until {until} lies before the run, which is of {day}; give a later day")


def _chosen(run: Run, cases: Sequence[str], causes: Sequence[str]) -> list[tuple[Finding, FailedCase]]:
    """The cases of findings that are meant: what fails the run; where options name some, also what it accepted."""
    from gpucheck.diagnose.conclude import conclude

    named = {name: _labels(run, name) for name in cases}
    unaccepted = replace(run, plan=replace(run.plan, accepted=())) if cases or causes else run
    findings = conclude(unaccepted).findings
    if unanswered := next((finding for finding in findings if not finding.fails and not finding.warns), None):
        raise UsageError(
            f"the run in {run.folder} cannot be accepted, since it leaves a question open: {_named(unanswered)}; "
            "run again until every case has an answer"
        )
    failing = [finding for finding in findings if finding.fails]
    known = dict.fromkeys(name for finding in failing for name in (finding.cause, finding.title) if name)
    if unknown := [name for name in causes if name not in known]:
        found = ", ".join(known) or "none"
        raise UsageError(f"--cause {unknown[0]}: no finding of {run.folder} has this cause; it has: {found}")
    meant = [finding for finding in failing if not causes or {finding.cause, finding.title} & {*causes}]
    shown = {failed_case.case for finding in meant for failed_case in finding.cases}
    if passed := [name for name, labels in named.items() if not shown & {*labels}]:
        raise UsageError(f"--case {passed[0]}: nothing to accept, no such failure of it in {run.folder}")
    if not meant:
        raise UsageError(f"nothing to accept: nothing fails the run in {run.folder}")
    wanted = {label for labels in named.values() for label in labels} or shown
    chosen = [(finding, each) for finding in meant for each in finding.cases if each.case in wanted]
    for finding, each in chosen:
        if not _failed(run, each):
            raise UsageError(f"{_named(finding)} cannot be accepted: it is no failure of {each.case} itself")
    return chosen


def _named(finding: Finding) -> str:
    from gpucheck.diagnose.wording import rank_list

    return finding.title + (f" on {rank_list(finding.ranks)}" if finding.ranks else "")


def _failed(run: Run, shown: FailedCase) -> bool:
    """Whether a finding is about records that failed: others have nothing to know the fault by."""
    step = next((number for number, step in enumerate(run.plan.steps) if step.label == shown.case), None)
    return step is not None and all(run.records[(step, rank)].outcome.failed for rank in shown.ranks)


def _labels(run: Run, name: str) -> list[str]:
    """The labels that a case is meant by: all of an id, or one."""
    import difflib

    if name in {record.case for record in run.canary}:
        raise UsageError(f"--case {name} cannot be accepted: it is the canary, a case that is wrong on purpose")
    labels = [step.label for step in run.plan.steps if name in (step.label, step.case.id)]
    if not labels:
        known = [step.label for step in run.plan.steps]
        near = difflib.get_close_matches(name, known, n=3) or known[:3]
        raise UsageError(f"--case {name}: {run.folder} has no such case; it has for example {', '.join(near)}")
    return labels


def _line(fault: AcceptedFault) -> str:
    from gpucheck.diagnose.wording import rank_list

    where = (
        f"{region.output}: {region.wrong} of {region.total} wrong"
        + "".join(f", exactly {word} {', '.join(map(str, groups))}" for word, groups in region.exactly.items())
        for region in fault.regions
    )
    return "  ".join(["", fault.case, rank_list(fault.ranks), ": ".join([fault.cause, *fault.shows[:1]]), *where])
