"""Whether a statement holds: in itself, against a run folder, by its age, and on this machine."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from gpucheck.diagnose.wording import counted
from gpucheck.model.errors import ExitCode, GpucheckError, UsageError
from gpucheck.model.record import Verdict
from gpucheck.tools.attest import evidence
from gpucheck.tools.attest.statement import LIBRARY, PROOF, RUN, attested, unproven
from gpucheck.tools.attest.statement_file import Statement

AHEAD = 300.0  # s that the clock of the machine that made a statement may be ahead of this one
SHOWN = 5
THERE, MISSING = " is there", " is missing"


@dataclass(frozen=True)
class Point:
    """One thing that was looked at."""

    name: str
    holds: bool | None  # None: it cannot be told here
    words: str


@dataclass(frozen=True)
class Machine:
    """What this machine has; None where it cannot be told."""

    gpus: list[str] | None  # UUIDs that a process sees here
    driver: str
    packages: Mapping[str, Mapping[str, str]]  # torch and triton: version and fingerprint
    library: str  # content of the installed copy; "": none is installed


def exit_code(statement: Statement, points: list[Point]) -> ExitCode:
    """0: it holds and is a proof; 1: it does not hold, or says FAIL; 3: it cannot be told, or is no proof."""
    verdict = statement.predicate["result"]["verdict"]
    if any(point.holds is False for point in points) or verdict == Verdict.FAIL.value:
        return ExitCode.FAIL
    proof = statement.item["predicateType"] == PROOF
    return ExitCode.PASS if proof and all(point.holds for point in points) else ExitCode.INCONCLUSIVE


def agrees_with_itself(statement: Statement) -> Point:
    """Whether what it says first follows from what it says in detail: a statement never looks better than its run."""
    said, result = statement.predicate, statement.predicate["result"]
    wrong = []
    kind = statement.item["predicateType"]
    if result["proof"] != (kind == PROOF):
        wrong.append(f"its type is {kind}, but it says that it is {'a' if result['proof'] else 'no'} proof")
    if kind == PROOF and (why := unproven(result["verdict"], said["gpus"])):
        wrong.append(f"its type is that of a proof, but {why}")
    failing = [each["title"] for each in result["findings"] if each["kind"] != "warns"]
    if result["verdict"] == Verdict.PASS.value and failing:
        wrong.append(f"its verdict is PASS beside the finding {failing[0]!r}")
    ranks = [gpu["rank"] for gpu in said["gpus"]]
    checked = sum(gpu["name"] not in ("", "cpu") for gpu in said["gpus"])
    if ranks != list(range(result["ranks"])) or checked != result["gpusChecked"]:
        wrong.append(f"it tells of {result['ranks']} ranks and {result['gpusChecked']} GPUs, and names {len(ranks)}")
    cases = [sorted(rank for group in each["ended"] for rank in group["ranks"]) for each in said["outputs"]]
    if any(each != ranks for each in cases) or len(cases) * len(ranks) != sum(result["cases"].values()):
        wrong.append("its outputs are not those of each case on each rank")
    digests = {each.get("name"): each["digest"]["sha256"] for each in statement.item["subject"]}
    files = evidence.combined(dict(sorted(said["files"].items())))
    if digests.get(RUN, files) != files:  # a tool that makes a statement of the predicate alone has subjects of its own
        wrong.append(f"its subject {RUN!r} is not the digest of its files")
    library = said["software"]["library"].get("content", "")
    if digests.get(LIBRARY, library) != library:
        wrong.append(f"its subject {LIBRARY!r} is not the library that it names")
    if said["run"]["ended"] < said["run"]["started"]:
        wrong.append("it ended before it started")
    return Point("statement", not wrong, "; ".join(wrong) or "agrees with itself")


def against_run(statement: Statement, folder: Path) -> Point:
    """Whether the folder holds the files that were attested, and whether they say what the statement says."""
    if not (folder / evidence.PLAN).exists():
        raise UsageError(f"{folder} is no run folder: it holds no {evidence.PLAN}")
    said, files = statement.predicate["files"], evidence.digests(folder)
    differ = [f"{name} is gone" for name in sorted(said.keys() - files.keys())]
    differ += [f"{name} was not attested" for name in sorted(files.keys() - said.keys())]
    differ += [f"{name} was changed" for name in sorted(files.keys() & said.keys()) if files[name] != said[name]]
    if differ:
        return Point("run", False, f"{_few(differ)} ({folder})")
    try:
        again = attested(folder, [], any_verdict=True)
    except GpucheckError as error:
        return Point("run", None, str(error))
    mine, theirs = ({key: each[key] for key in ("predicateType", "predicate")} for each in (again, statement.item))
    paths = sorted(_differences(mine, theirs), key=lambda path: not path.startswith("predicate.result"))
    version, ours = (each["predicate"]["gpucheck"]["version"] for each in (statement.item, again))
    if version != ours:  # another version may say more
        paths = [path for path in paths if not path.endswith((THERE, MISSING)) and "gpucheck.version" not in path]
    if not paths:
        count = counted(len(files), "file")
        return Point("run", True, f"has the {count} that were attested, which say the same ({folder})")
    if version != ours:
        return Point("run", None, f"gpucheck {version} made the statement, {ours} concludes otherwise: {_few(paths)}")
    return Point("run", False, f"its files say otherwise: {_few(paths)} ({folder})")


def age(statement: Statement, now: float, limit: float | None) -> Point:
    """Whether the run is young enough, and not from the future.

    Args:
        now: seconds since the epoch.
        limit: seconds; None: as old as it may be.
    """
    text = statement.predicate["run"]["ended"]
    try:
        ended = datetime.strptime(text, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=timezone.utc).timestamp()
    except ValueError:
        return Point("age", False, f"there is no such time as {text}")
    old = now - ended
    if old < -AHEAD:
        return Point("age", False, f"the run ended at {text}, which is {_span(-old)} ahead of this machine's clock")
    if limit is not None and old > limit:
        return Point("age", False, f"the run ended {_span(old)} ago, more than {_span(limit)}")
    return Point("age", True, f"the run ended {_span(max(0.0, old))} ago, at {text}")


def on_machine(statement: Statement, machine: Machine) -> Iterator[Point]:
    """Whether GPUs and software here are those that were attested."""
    said = {gpu["gpu"] for gpu in statement.predicate["gpus"] if gpu["gpu"]}
    if machine.gpus is None:
        yield Point("GPUs", None, "nvidia-smi does not tell which GPUs are here: run gpucheck doctor")
    elif not machine.gpus:
        yield Point("GPUs", None, "there is no GPU here, or CUDA_VISIBLE_DEVICES hides all")
    else:
        other = [uuid for uuid in machine.gpus if uuid not in said]
        here = counted(len(machine.gpus), "GPU")
        yield Point("GPUs", not other, f"not attested: {_few(other)}" if other else f"all {here} here are attested")
    software = statement.predicate["software"]
    yield _same("driver", {"driver": software["driver"]}, {"driver": machine.driver})
    for name in ("torch", "triton"):
        yield _same(name, software[name], machine.packages.get(name, {}))
    if software["library"].get("origin", "").startswith("installed"):
        yield _same(LIBRARY, {"content": software["library"].get("content", "")}, {"content": machine.library})


def this_machine() -> Machine:
    """What is here, asked without importing torch."""
    from gpucheck.host.node_gpus import listing
    from gpucheck.host.nvidia_smi import Reply
    from gpucheck.host.software import software
    from gpucheck.host.visible_gpus import VARIABLE, visible
    from gpucheck.library.installed import locate_installed

    answer, listed = listing(os.environ)
    devices = visible(listed.gpus, os.environ.get(VARIABLE)).devices
    gpus = [device.instance.uuid if device.instance else device.gpu.uuid for device in devices]
    facts = software(None)
    copy = locate_installed()
    return Machine(
        gpus=gpus if answer.reply is Reply.ANSWERED else None,
        driver=facts["driver"] or "",
        packages={name: facts[name] or {} for name in ("torch", "triton")},
        library=copy.content if copy else "",
    )


def _same(name: str, said: Mapping[str, str], here: Mapping[str, str]) -> Point:
    for key in ("driver", "content", "version", "fingerprint"):
        value, found = said.get(key, ""), here.get(key, "")
        if value and not found:
            return Point(name, False, f"{value} was attested, and there is none here")
        if key in said and value != found:
            what = "" if key in ("driver", "version") else f"{key} "
            return Point(name, False, f"{what}{found} here, {what}{value or 'none'} was attested")
    return Point(name, True, " ".join(filter(None, (said.get("version") or said.get("driver"), "as attested"))))


def _differences(mine: Any, theirs: Any, place: str = "") -> Iterator[str]:
    """Where two pieces of plain data differ."""
    if isinstance(mine, dict) and isinstance(theirs, dict):
        for key in sorted(mine.keys() | theirs.keys()):
            inner = f"{place}.{key}" if place else key
            if key not in mine or key not in theirs:
                yield inner + (THERE if key in theirs else MISSING)
            else:
                yield from _differences(mine[key], theirs[key], inner)
    elif isinstance(mine, list) and isinstance(theirs, list) and len(mine) == len(theirs):
        for number, pair in enumerate(zip(mine, theirs, strict=True)):
            yield from _differences(*pair, f"{place}[{number}]")
    elif mine != theirs or isinstance(mine, bool) != isinstance(theirs, bool):
        yield f"{place} is {_short(mine)}, the statement says {_short(theirs)}"


def _short(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= 60 else f"{shown[:57]}..."


def _few(words: list[str]) -> str:
    return ", ".join(words[:SHOWN]) + (f" and {len(words) - SHOWN} more" if len(words) > SHOWN else "")


def _span(seconds: float) -> str:
    for unit, size in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"
