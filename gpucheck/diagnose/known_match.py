"""Which known faults the cases of a finding are, and with which commands that is proven here."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from dataclasses import replace
from fnmatch import fnmatchcase

from gpucheck.diagnose.error_pattern import error_pattern
from gpucheck.diagnose.finding_cases import run_command
from gpucheck.diagnose.known_faults import SIZE, Fingerprint, KnownFault, Proof, Scalar, known_faults
from gpucheck.diagnose.version_range import in_range
from gpucheck.model.finding import Finding, Known, ProofCommand
from gpucheck.model.record import Outcome, Record
from gpucheck.records.run_folder import Run

TENSOR, BLOCK = "tensor", 32
"""How ranks of a joint case share a width, and the values of an mx scale, which no rank cuts."""
COUNTS = {"expert": "experts", "batch": "batch"}
"""Grouping of rows -> the parameter of a case that says how many groups there are."""


Failed = Mapping[str, list[Record]]
"""Label of a case -> its failed records."""


def with_known(run: Run, findings: list[Finding]) -> list[Finding]:
    """The findings, each with the known faults that its cases are; what they say of the verdict stays as it is."""
    failed: dict[str, list[Record]] = {}
    for number, step in enumerate(run.plan.steps):
        records = [record for rank in run.ranks if (record := run.records[(number, rank)]).outcome.failed]
        if records:
            failed.setdefault(step.label, []).extend(records)
    return [_with_known(run, finding, failed) for finding in findings]


def _with_known(run: Run, finding: Finding, failed: Failed) -> Finding:
    cases = {each.case: [r for r in failed.get(each.case, []) if r.rank in each.ranks] for each in finding.cases}
    cases = {label: records for label, records in cases.items() if records}
    known: list[Known] = []
    for fault in sorted(known_faults(), key=lambda fault: fault.alike):
        explained = {label for each in known for label in each.cases} if fault.alike else ()
        fitting = {
            label: records
            for label, records in cases.items()
            if label not in explained and _is(run, finding.cause, fault, records)
        }
        if fitting:
            known.append(_known(run, fault, fitting))
    return replace(finding, known=known) if known else finding


def _is(run: Run, cause: str, fault: KnownFault, records: list[Record]) -> bool:
    """Whether a case is this fault on all its ranks; where its twin without the fault is wrong too, it is not."""
    return all(
        any(fits(run, cause, record, fingerprint) for fingerprint in fault.fits)
        and all(_twin_outcome(run, record, proof) is not Outcome.MISMATCH for proof in fault.proof)
        for record in records
    )


def fits(run: Run, cause: str, record: Record, asked: Fingerprint) -> bool:
    """Whether a failed record is what a fingerprint asks for."""
    step = run.plan.steps[record.step]
    if (asked.causes and cause not in asked.causes) or (asked.checks and step.case.check not in asked.checks):
        return False
    params, conditions = step.case.params, step.conditions.to_json()
    kinds = [violation.kind.value for violation in record.violations]
    sizes = asked.shapes.fitting(_of_one_rank(run, record)) if asked.shapes else []
    return (
        (not asked.data or step.case.data in asked.data)
        and _among(params, asked.params)
        and _among(conditions, asked.conditions)
        and (not asked.below or any(_less(params.get(name), bound) for name, bound in asked.below.items()))
        and (not asked.shapes or bool(sizes))
        and (not asked.kernels or any(_named(launch.kernel, asked.kernels) for launch in record.launches))
        and (not asked.gpus or all(_named(name, asked.gpus) for name in architectures(record)))
        and (not asked.generations or run.plan.library.get("generation") in asked.generations)
        and (not asked.contents or run.plan.library.get("name") in asked.contents)
        and all(in_range(version_of(run, name), text) for name, text in asked.versions.items())
        and all(
            in_range(version, text) for name, text in asked.where_recorded.items() if (version := version_of(run, name))
        )
        and (not asked.outcomes or record.outcome.value in asked.outcomes)
        and (not asked.patterns or error_pattern(record) in asked.patterns)
        and (not asked.violations or any(kind in asked.violations for kind in kinds))
        and not (asked.clean and kinds)
        and _said([violation.detail for violation in record.violations], asked, sizes)
        and (not asked.message or re.search(asked.message, record.message) is not None)
        and all(_last_alone(record, name, params) for name in asked.groups)
    )


def _of_one_rank(run: Run, record: Record) -> Mapping[str, Scalar]:
    """The parameters of a case, with the width that the rank has where tensor parallel ranks share it."""
    step = run.plan.steps[record.step]
    params, width = step.case.params, step.case.params.get("intermediate")
    if not isinstance(width, int):
        return params
    if isinstance(ranks := params.get("tp"), int):
        return {**params, "intermediate": width // ranks}
    if step.together and params.get("parallel", TENSOR) == TENSOR:
        blocks, ranks = width // BLOCK, run.plan.world_size  # whole ones, as equal as they can be, later ranks more
        first, behind = (blocks * rank // ranks for rank in (record.rank, record.rank + 1))
        return {**params, "intermediate": (behind - first) * BLOCK}
    return params


def architectures(record: Record) -> set[str]:
    """The architectures that kernels of a record were launched on; those of its bounds where none is known."""
    return {launch.arch for launch in record.launches if launch.arch} or {record.arithmetic}


def version_of(run: Run, name: str) -> str:
    """The version of software or of an engine that a run stands on; "" where the run does not say."""
    found = run.plan.engine(name) or run.plan.environment.get("software", {}).get(name)
    return str(found.get("version", "")) if isinstance(found, dict) else ""


def _named(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _among(values: Mapping[str, object], asked: Mapping[str, tuple[Scalar, ...]]) -> bool:
    return all(name in values and values[name] in allowed for name, allowed in asked.items())


def _less(value: object, bound: int) -> bool:
    return isinstance(value, int) and value < bound


def _said(details: list[str], asked: Fingerprint, sizes: list[int]) -> bool:
    """Whether one of the violations says what it must."""
    block = asked.shapes.block if asked.shapes else 1
    rounded = "|".join(str(-(-size // block) * block) for size in sizes)
    wanted = asked.detail.replace(SIZE, f"(?:{rounded})")
    return not wanted or any(re.search(wanted, detail) for detail in details)


def _last_alone(record: Record, grouping: str, params: Mapping[str, Scalar]) -> bool:
    """Whether no other group than the last has wrong rows of its own, where wrong rows are told by group at all."""
    groupings = [each.exactly[grouping] for each in record.mismatches if grouping in each.exactly]
    count = params.get(COUNTS.get(grouping, grouping))
    return all(isinstance(count, int) and groups == [count - 1] for groups in groupings)


def _known(run: Run, fault: KnownFault, fitting: Failed) -> Known:
    first = next(iter(fitting.values()))[0]
    proofs = (_proof(run, first, proof) for proof in fault.proof)
    return Known(
        id=fault.id,
        title=fault.title,
        alike=fault.alike,
        cases=[*fitting],
        upstream=[*fault.upstream],
        good=[*fault.good],
        workaround=fault.workaround,
        proofs=[proof for proof in proofs if proof],
    )


def _proof(run: Run, record: Record, proof: Proof) -> ProofCommand | None:
    """The command of a proof for the case of a record; None where its twin is not planned."""
    step, case = record.step, run.plan.steps[record.step].case
    shows = proof.shows
    if proof.twin:
        twin = _twin(run, record, proof)
        if twin is None:
            return None
        step = twin
        if _twin_outcome(run, record, proof) is Outcome.PASS:
            shows += ", as it is in this run"
    if proof.whole:
        here = [*proof.whole, "--nproc", str(run.plan.nproc), *(["--device", "cpu"] * (run.plan.device == "cpu"))]
        command = shlex.join(["gpucheck", "run", *here])
    elif proof.bisect:
        command = shlex.join(["gpucheck", "bisect", str(run.folder), "--case", case.id, *proof.bisect])
    else:
        command = run_command(run, step, proof.run)
    lacking = [f"{name} {text}" for name, text in proof.needs.items() if not in_range(version_of(run, name), text)]
    where = f" (in a Python with {' and '.join(lacking)})" if lacking else ""
    return ProofCommand(shows + where, command)


def _twin(run: Run, record: Record, proof: Proof) -> int | None:
    """The step that differs from a record's by the parameters of a proof alone."""
    own = run.plan.steps[record.step]
    params = {**own.case.params, **proof.twin}
    if params == own.case.params:
        return None
    return next(
        (
            number
            for number, other in enumerate(run.plan.steps)
            if other.case.check == own.case.check
            and other.case.data == own.case.data
            and other.case.params == params
            and other.conditions == own.conditions
        ),
        None,
    )


def _twin_outcome(run: Run, record: Record, proof: Proof) -> Outcome | None:
    twin = _twin(run, record, proof) if proof.twin else None
    return None if twin is None else run.records[(twin, record.rank)].outcome
