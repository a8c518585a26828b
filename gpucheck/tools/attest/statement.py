"""Makes the in-toto statement of a run: what was proven, on what, and the digests of what it rests on.

One run gives one text, byte for byte, whenever and wherever it is asked for. Sources: in-toto attestation framework,
Statement v1; its predicate is gpucheck's own.
"""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

from gpucheck import __version__
from gpucheck.diagnose.chance import CONFIDENCE, rate_seen, seen_with
from gpucheck.diagnose.conclude import conclude
from gpucheck.model.errors import ExitCode, GpucheckError, InfrastructureError, UsageError
from gpucheck.model.finding import Conclusion
from gpucheck.model.record import Outcome, Verdict
from gpucheck.records.damage import damage
from gpucheck.records.run_folder import Run, finite, read_run
from gpucheck.report import blocks
from gpucheck.report.blocks import Report
from gpucheck.report.formats.json import counts
from gpucheck.tools.attest import evidence

STATEMENT = "https://in-toto.io/Statement/v1"
PROOF = "urn:gpucheck-harness:proof:v1"
"""Type of the predicate where every case was right, or failed as was accepted, on GPUs that are named."""
REPORT = "urn:gpucheck-harness:report:v1"
"""Type of it for all other runs: a policy that asks for proofs takes none of them, whatever else it looks at."""
SCHEMA = 1  # of the predicate; rises when a key goes, or changes its type or meaning; keys may come at any time
RUN = "run"  # name of the subject that stands for the files of the run folder
LIBRARY = "triton_kernels"
RATES = (0.01, 0.001)  # of wrong calls, of which the chance to see one is told
_SUBJECT = re.compile(r"(?P<name>.+)@sha256:(?P<digest>[0-9a-f]{64})")


class NotProven(GpucheckError):
    """The run is no proof; the exit code is that of its verdict."""

    def __init__(self, message: str, code: ExitCode) -> None:
        super().__init__(message)
        self.exit_code = code


def subject(text: str) -> dict[str, Any]:
    """A further subject, such as the image that serves: ``NAME@sha256:HEX``.

    Raises:
        UsageError: it is not of that form.
    """
    match = _SUBJECT.fullmatch(text)
    if not match:
        raise UsageError(f"--subject is {text!r}, expected NAME@sha256: and 64 hexadecimal digits")
    return {"name": match["name"], "digest": {"sha256": match["digest"]}}


def attested(folder: Path, subjects: list[dict[str, Any]], *, any_verdict: bool = False) -> dict[str, Any]:
    """The statement of a finished run.

    Args:
        any_verdict: also of a run that is no proof, as a report of what it was.

    Raises:
        UsageError: no run folder, or one whose files are not its own.
        InfrastructureError: the run is still under way, or was killed.
        NotProven: the run is no proof.
    """
    files = evidence.digests(folder)
    run = read_run(folder)
    if not run.outcome:
        raise InfrastructureError(
            f"{folder} has no outcome.json: the run is still under way, or gpucheck was killed; nothing is attested"
        )
    if words := damage(run):
        raise UsageError(f"{folder} is damaged: {words}; was it edited?")
    conclusion = conclude(run)
    report = blocks.build(run, conclusion)
    if evidence.digests(folder) != files:
        raise InfrastructureError(f"{folder} changed while it was read: is the run still under way?")
    missing = unproven(conclusion.verdict, [vars(place) for place in report.places])
    if missing and not any_verdict:
        code = {Verdict.FAIL: ExitCode.FAIL, Verdict.NOTHING_RAN: ExitCode.NOTHING_RAN}.get(
            conclusion.verdict, ExitCode.INCONCLUSIVE
        )
        raise NotProven(f"{folder} is no proof: {missing}; --any-verdict writes a statement of what it was", code)
    library = run.plan.library
    own: list[dict[str, Any]] = [{"name": RUN, "digest": {"sha256": evidence.combined(files)}}]
    if run.plan.has_library:
        own.append({"name": LIBRARY, "digest": {"sha256": library["content"]}})
    return {
        "_type": STATEMENT,
        "subject": [*subjects, *own],
        "predicateType": REPORT if missing else PROOF,
        "predicate": predicate(run, conclusion, report, files, proof=not missing),
    }


def unproven(verdict: Verdict | str, places: list[dict[str, Any]]) -> str:
    """Why a run proves nothing of GPUs, in words; "" where it does.

    Args:
        places: of each rank its ``rank``, ``device`` or ``name``, and the UUID of its ``gpu``.
    """
    if verdict != Verdict.PASS.value:
        return f"its verdict is {getattr(verdict, 'value', verdict)}"
    if not places or any((place.get("device") or place.get("name") or "cpu") == "cpu" for place in places):
        return "no GPU was checked on some or all of its ranks"
    unknown = [str(place["rank"]) for place in places if not place["gpu"]]
    return f"the UUID of the GPU of rank {', '.join(unknown)} is not known" if unknown else ""


def text(statement: dict[str, Any]) -> str:
    """The bytes that are signed."""
    return json.dumps(statement, indent=1, sort_keys=True, allow_nan=False) + "\n"


def predicate(
    run: Run, conclusion: Conclusion, report: Report, files: dict[str, str], *, proof: bool
) -> dict[str, Any]:
    """What a run proved and on what, as plain data; that it is a proof it says itself, whatever type it is given."""
    plan, software = run.plan, run.plan.environment.get("software", {})
    steps = json.dumps(finite([step.to_json() for step in plan.steps]), sort_keys=True)
    ended = plan.created + (report.seconds or 0.0)
    item: dict[str, Any] = finite(
        {
            "schema": SCHEMA,
            "gpucheck": {"version": __version__},
            "run": {
                "id": plan.id,
                "scenario": plan.scenario,
                "steps": {"count": len(plan.steps), "sha256": hashlib.sha256(steps.encode()).hexdigest()},
                "seed": plan.seed,
                "judged": plan.judge,
                "started": _moment(plan.created),
                "ended": _moment(ended),
            },
            "result": {"proof": proof, **_result(run, conclusion, report)},
            "power": _power(run),
            "gpus": [
                {"rank": each.rank, "host": each.host, "gpu": each.gpu, "bus": each.bus, "name": each.device}
                for each in report.places
            ],
            "software": {
                "driver": software.get("driver") or "",
                "python": software.get("python") or "",
                **{name: _package(software.get(name)) for name in ("torch", "triton")},
                "library": {name: plan.library.get(name, "") for name in ("name", "origin", "content", "generation")},
                "patches": [Path(patch).name for patch in plan.library.get("patches", [])],
                "engines": [
                    {name: str(engine.get(name, "")) for name in ("name", "version", "origin", "identity")}
                    for engine in plan.engines
                ],
            },
            "outputs": _outputs(run),
            "files": files,
        }
    )
    return item


def _result(run: Run, conclusion: Conclusion, report: Report) -> dict[str, Any]:
    outcomes: Counter[str] = Counter()
    for _, _, cells in report.rows:
        for cell in cells:
            outcomes.update(counts(cell))
    return {
        "verdict": conclusion.verdict.value,
        "ranks": len(report.ranks),
        "gpusChecked": report.gpus_checked,
        "cases": dict(sorted(outcomes.items())),
        "canary": bool(run.canary),
        "findings": [
            {
                "title": finding.title,
                "ranks": finding.ranks,
                "kind": "fails" if finding.fails else "warns" if finding.warns else "open",
                "excuse": finding.excuse,
            }
            for finding in report.findings
        ],
    }


def _power(run: Run) -> dict[str, Any]:
    """What a fault that comes and goes would have had to be for the run to see it."""
    calls: dict[int, int] = dict.fromkeys(run.ranks, 0)
    screened = []
    for (step, rank), record in sorted(run.records.items()):
        if record.outcome is Outcome.PASS and not record.screened:
            calls[rank] += record.repeats * max(1, run.tallies[(step, rank)].runs if (step, rank) in run.tallies else 1)
        if part := record.screened:
            screened.append(
                {
                    "rank": rank,
                    "datapath": part.datapath,
                    "multiprocessors": part.multiprocessors,
                    "fewestTiles": part.fewest,
                    "rateSeen": rate_seen(part.fewest),
                }
            )
    least = min(calls.values(), default=0)
    return {
        "confidence": CONFIDENCE,
        "calls": {"fewestOfARank": least, "rateSeen": rate_seen(least)},
        "chances": [{"rate": rate, "chance": seen_with(rate, least)} for rate in RATES],
        "screen": screened,
    }


def _outputs(run: Run) -> list[dict[str, Any]]:
    """What each case gave on each rank: ranks with equal outcomes, inputs and output bits stand together."""
    found = []
    for number, step in enumerate(run.plan.steps):
        groups: dict[tuple[str, str], list[int]] = defaultdict(list)
        for rank in run.ranks:
            record = run.records[(number, rank)]
            bits = json.dumps([record.inputs, sorted(record.digests.items())])
            digest = hashlib.sha256(bits.encode()).hexdigest() if record.digests else ""
            groups[(record.outcome.value, digest)].append(rank)
        ended = [{"outcome": outcome, "sha256": digest, "ranks": ranks} for (outcome, digest), ranks in groups.items()]
        found.append({"case": step.label, "ended": ended})
    return found


def _package(known: Any) -> dict[str, str]:
    known = known if isinstance(known, dict) else {}
    return {name: str(known.get(name, "")) for name in ("version", "fingerprint")}


def _moment(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))
