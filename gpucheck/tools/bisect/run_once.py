"""One run of a search: a process of its own, with a Triton cache of its own and a deadline."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from gpucheck.host.isolated import python_path
from gpucheck.host.processes import end, start
from gpucheck.library.library_option import Source, SourceKind, resolve
from gpucheck.model.errors import UsageError
from gpucheck.tools.bisect.observation import Observation, State, observe
from gpucheck.tools.bisect.target import Target

STARTUP = 120.0  # s that a run may take beside its own limit
GRACE = 15.0  # s between asking a run to end and killing it


@dataclass(frozen=True)
class Prepared:
    """A candidate, ready to be run."""

    library: Path | None  # the folder that holds the package; None where no case needs it, or an engine has its own
    paths: tuple[Path, ...] = ()  # go first on PYTHONPATH
    engine: str = ""  # a release as --engine takes it; "": those of the target


def take(target: Target, prepared: Prepared, folder: Path) -> Observation:
    """Runs the target on a candidate.

    Args:
        folder: of the run; must not exist. What the command prints goes beside it, with the suffix ``.log``, and its
            Triton cache for as long as it runs, with the suffix ``.triton``: one that a killed search left is removed.
    """
    begin = time.monotonic()
    observation = _take(target, prepared, folder)
    return replace(observation, folder=folder.name if folder.exists() else "", seconds=time.monotonic() - begin)


def _take(target: Target, prepared: Prepared, folder: Path) -> Observation:
    try:
        if prepared.library:
            resolve(Source(SourceKind.PATH, path=prepared.library))
    except UsageError as error:
        return Observation(State.UNBUILDABLE, target.label, reason=str(error).splitlines()[0])
    log, cache = folder.with_suffix(".log"), folder.with_suffix(".triton")
    limit = target.timeout + STARTUP
    shutil.rmtree(cache, ignore_errors=True)
    try:
        command = target.command(prepared.library, folder, prepared.engine)
        ended = _run(command, environment(prepared.paths, str(cache)), log, limit)
    finally:
        shutil.rmtree(cache, ignore_errors=True)
    if not ended:
        return Observation(
            State.BROKEN, target.label, reason=f"the run did not end within {limit:.0f} s and was killed"
        )
    try:
        return observe(folder, target.cases, target.label, experiments=target.experiments > 0)
    except UsageError:
        return Observation(State.BROKEN, target.label, reason=_last_line(log))


def _run(command: Sequence[str], environment: dict[str, str], log: Path, limit: float) -> bool:
    """Whether the command ended in time; whatever happens, it has ended afterwards."""
    process = start(command, environment, log, by=signal.SIGTERM)
    try:
        process.wait(limit)
        return True
    except subprocess.TimeoutExpired:
        return False
    finally:
        end(process, GRACE)


UNTOLD = {"GITHUB_STEP_SUMMARY": "", "GPUCHECK_TERMINATION_LOG": ""}
"""What a search runs in is not told of its runs, half of which fail by intent."""


def environment(paths: Sequence[Path], cache: str) -> dict[str, str]:
    """The variables of a run: these folders first on PYTHONPATH, and a Triton cache of its own."""
    return {**os.environ, **UNTOLD, "PYTHONPATH": python_path(*paths), "TRITON_CACHE_DIR": cache}


def _last_line(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    said = [line for line in lines if line.startswith("gpucheck: ")]
    return (said or lines or ["the run left no record and said nothing"])[-1].removeprefix("gpucheck: ")
