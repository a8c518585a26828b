"""What every step of a search runs."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from gpucheck.model.conditions import Conditions
from gpucheck.model.errors import UsageError
from gpucheck.records.run_folder import Run, read_run
from gpucheck.tools.bisect.observation import Failure, State, observe

SOURCE_OPTIONS = ("--check-file", "--problem", "--candidate")


@dataclass(frozen=True)
class Target:
    """The cases to run, how, and which of them is looked at."""

    scenario: str  # built-in name or path; "": the usual cases of the checks that are brought along
    cases: tuple[str, ...]  # ids
    device: str  # "auto", "cuda" or "cpu"
    nproc: int | None = None  # None: as `gpucheck run` chooses
    seed: int | None = None  # None: the scenario's
    placement: str | None = None  # None: the scenario's
    process_group: str | None = None  # None: the scenario's
    experiments: float = 0.0  # s that each rank may try a failed case otherwise; 0: what one attempt shows must do
    timeout: float = 600.0  # s for one run
    label: str = ""  # the case that is looked at; "": the first that fails
    known: Failure | None = None  # the failure to look for; None: the one that the bad end shows
    sources: tuple[str, ...] = ()  # options that name checks brought along, each with its value
    engines: tuple[str, ...] = ()  # values of --engine; none: the engines that are installed

    def command(self, library: Path | None, folder: Path, engine: str = "") -> list[str]:
        """The command line of a run.

        Args:
            library: the folder that holds the library's package; None where no case needs it.
            folder: of the run; must not exist.
            engine: one more value of ``--engine``.
        """
        command = [sys.executable, "-m", "gpucheck", "run", *([self.scenario] if self.scenario else []), *self.sources]
        command += ["--library", f"path:{library}"] if library else []
        engines = [*_repeated("--engine", self.engines), *(["--engine", engine] if engine else [])]
        return [*command, *engines, "--out", str(folder), "--quiet", *self._options()]

    def by_hand(self, *options: str) -> str:
        """The command that runs the case again with these options, as one types it."""
        named = [*([self.scenario] if self.scenario else []), *self.sources, *_repeated("--engine", self.engines)]
        return shlex.join(["gpucheck", "run", *named, *options, *self._options()])

    def _options(self) -> list[str]:
        """The device, the conditions, the limits and the cases."""
        command = ["--device", self.device]
        for option, value in (
            ("--nproc", self.nproc),
            ("--seed", self.seed),
            ("--placement", self.placement),
            ("--process-group", self.process_group),
            ("--timeout", self.timeout),
            ("--experiments", self.experiments),
        ):
            command += [option, str(value)] if value is not None else []
        return command + _repeated("--case", self.cases)


def from_run(folder: Path, cases: Sequence[str] = (), *, bits: bool = False, experiments: float = 0.0) -> Target:
    """The target that a stored run gives: one of its cases, on the same ranks, device and seed, held the same way.

    Args:
        folder: a run folder.
        cases: ids; the first of them that failed is looked at. Without them it is that of the first finding.
        bits: whether outputs are looked at instead of a failure.
        experiments: of the target; without them those of the stored run do not count either.

    Raises:
        UsageError: no run folder, a run over several nodes, or no such failure in it.
    """
    run = read_run(folder)
    if run.plan.nnodes > 1:
        raise UsageError(f"{folder} is a run over {run.plan.nnodes} nodes; a search runs on one")
    _check_cases(run, folder, cases)
    observation = observe(folder, cases, experiments=experiments > 0)
    if observation.state is not State.FAILED and not bits:
        which = " of " + ", ".join(cases) if cases else ""
        raise UsageError(f"{folder} holds no failure{which} to search for: {observation.case} {observation.words}")
    label = (
        observation.case if not bits or not cases else next(s.label for s in run.plan.steps if s.case.id == cases[0])
    )
    step = next(step for step in run.plan.steps if step.label == label)
    moves = _moves(run.plan.command, step.conditions)
    return Target(
        scenario="" if run.plan.command[2].startswith("-") else run.plan.command[2],
        cases=tuple(cases) or (step.case.id,),
        device=run.plan.device,
        nproc=run.plan.nproc,
        seed=run.plan.seed,
        placement=moves["--placement"],
        process_group=moves["--process-group"],
        experiments=experiments,
        label=label,
        known=None if bits else replace(observation.failures[0], lines=()),
        sources=_sources(run.plan.command),
        engines=_values(run.plan.command, "--engine"),
    )


def _sources(command: Sequence[str]) -> tuple[str, ...]:
    """The options of a command that name checks brought along."""
    pairs = zip(command, command[1:], strict=False)
    return tuple(word for option, value in pairs if option in SOURCE_OPTIONS for word in (option, value))


def _repeated(option: str, values: Sequence[str]) -> list[str]:
    return [part for value in values for part in (option, value)]


def _values(command: Sequence[str], option: str) -> tuple[str, ...]:
    """The values of an option that a command may repeat."""
    return tuple(value for name, value in zip(command, command[1:], strict=False) if name == option)


def _moves(command: Sequence[str], conditions: Conditions) -> dict[str, str | None]:
    """The options that put a case under the conditions it failed under: those of the run, else what is unusual."""
    group = conditions.process_group
    unusual = {
        "--placement": None if conditions.placed.usual else conditions.placement,
        "--process-group": None if group == "none" else group,
    }
    return {
        option: command[command.index(option) + 1] if option in command else value for option, value in unusual.items()
    }


def _check_cases(run: Run, folder: Path, cases: Sequence[str]) -> None:
    known = {step.case.id for step in run.plan.steps}
    for case in cases:
        if case not in known:
            raise UsageError(f"--case: the run {folder} has no case {case!r}; `gpucheck report {folder} -v` shows them")
