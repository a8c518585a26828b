"""Options that several commands share."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gpucheck.model.errors import InfrastructureError, UsageError
from gpucheck.report.formats import FORMATS

if TYPE_CHECKING:
    from gpucheck.model.check_source import CheckSource, PairOptions

LibraryOption = Annotated[
    str | None,
    typer.Option(
        "--library",
        metavar="SPEC",
        help="The triton_kernels to test: installed, path:DIR or wheel:NAME==VERSION.",
        show_default="the installed one, else wheel:vllm==0.33.0",
    ),
]
"""``--library``; read with :func:`gpucheck.library.library_option.parse_source`."""


EngineOption = Annotated[
    list[str] | None,
    typer.Option(
        "--engine",
        metavar="SPEC",
        help="The serving engine whose own path is tested too: installed, none, path:DIR or NAME==VERSION; repeatable.",
        show_default="those installed",
    ),
]
"""``--engine``; read with :func:`gpucheck.library.engines.engine_option.parse_engines`."""

DeviceOption = Annotated[
    str,
    typer.Option(help="auto, cuda or cpu (Triton's interpreter). auto uses the CPU only without any sign of a GPU."),
]
ExpectGpusOption = Annotated[
    int | None,
    typer.Option(
        "--expect-gpus",
        min=0,
        metavar="N",
        help="Exact number of GPUs that must be usable on this node.",
        show_default="any number",
    ),
]
"""What ranks run on; read with :func:`gpucheck.launch.gpus.choose`."""

ChecksOption = Annotated[
    list[str] | None, typer.Option("--checks", help="Only these checks (comma-separated or repeated).")
]
CaseOption = Annotated[list[str] | None, typer.Option("--case", metavar="ID", help="Only this case; repeatable.")]
VerboseOption = Annotated[bool, typer.Option("--verbose", "-v", help="Show every case of every finding.")]

JsonOption = Annotated[str | None, typer.Option("--json", metavar="FILE|-", help="Write the report as JSON.")]

NodeVerdictOption = Annotated[
    str | None,
    typer.Option("--node-verdict", metavar="FILE|-", help="Write a verdict for each GPU as JSON, for a cluster."),
]

ExitCodesOption = Annotated[
    str | None,
    typer.Option(
        "--exit-codes",
        metavar="SCHEME",
        help="End as other frameworks want it: preflight (0 fit, 1 not, 2 unknown) or nagios (0 fit, 1 warning, "
        "2 critical, 3 unknown).",
        show_default="gpucheck's own",
    ),
]
"""``--exit-codes``; see :mod:`gpucheck.cli.exit_codes`."""

WriteOption = Annotated[
    list[str] | None,
    typer.Option(
        "--write",
        metavar="FILE",
        help=f"Write the report in the format of the suffix: {' '.join(FORMATS)}; repeatable.",
    ),
]

JudgeOption = Annotated[
    str | None,
    typer.Option(
        "--judge",
        metavar="WHAT",
        help="Whose failures fail the run: library (what an engine makes of it only warns), engine (faults of the "
        "library that its path does not have only warn) or both.",
        show_default="engine where one is tested",
    ),
]
"""``--judge``; one of :data:`gpucheck.model.plan.JUDGE`."""

AcceptOption = Annotated[
    list[str] | None,
    typer.Option(
        "--accept", metavar="FILE", help="Faults that do not fail the run, see `gpucheck accept`; repeatable."
    ),
]
"""``--accept``; read with :func:`gpucheck.plan.accepted_file.read_files`."""

CheckFileOption = Annotated[
    list[str] | None,
    typer.Option("--check-file", metavar="FILE", help="Python file with checks of your own; repeatable."),
]
ProblemOption = Annotated[
    list[str] | None,
    typer.Option("--problem", metavar="FILE", help="Python file with Model, get_inputs, get_init_inputs; repeatable."),
]
CandidateOption = Annotated[
    list[str] | None,
    typer.Option("--candidate", metavar="FILE", help="Python file with ModelNew, one for each --problem."),
]
"""Where checks come from; read with :func:`check_sources`."""

PrecisionOption = Annotated[
    str | None,
    typer.Option(
        "--precision",
        metavar="NAME",
        help="The least that a candidate may compute products in: fp32, tf32 or bf16.",
        show_default="PRECISION in the problem's file, else fp32",
    ),
]
ReferenceOption = Annotated[
    str,
    typer.Option(
        "--reference", metavar="WHERE", help="Where the float64 reference of a problem is computed: cpu, gpu or auto."
    ),
]
OwnKernelOption = Annotated[
    bool, typer.Option("--own-kernel", help="Fail candidates that have no kernel of their own, as plain torch code.")
]
RuleOption = Annotated[
    str | None,
    typer.Option(
        "--rule", metavar="NAME", help="Also give the verdict of a published rule on candidates: kernelbench."
    ),
]
"""What is asked of candidates; read with :func:`pair_options`."""


def pair_options(precision: str | None, reference: str, own_kernel: bool, rule: str | None) -> PairOptions:
    """What is asked of candidates.

    Raises:
        UsageError: a name that is none.
    """
    from gpucheck.model.check_source import PRECISIONS, REFERENCES, RULES, PairOptions

    named = (("--precision", precision, PRECISIONS), ("--reference", reference, REFERENCES), ("--rule", rule, RULES))
    for option, value, known in named:
        if value is not None and value not in known:
            raise UsageError(f"{option} is {value!r}, expected one of {', '.join(known)}")
    return PairOptions(precision or "", reference, own_kernel, rule or "")


def check_sources(
    check_file: list[str] | None,
    problem: list[str] | None,
    candidate: list[str] | None,
    pair: PairOptions | None = None,
) -> tuple[list[CheckSource], list[CheckSource]]:
    """The check sources that options name and those that packages offer; all are active from here on."""
    from gpucheck import checks
    from gpucheck.checks.sources import find
    from gpucheck.model.check_source import large_pair

    if problem:
        large_pair()  # what it cannot read, it says before anything starts

    taken = [*checks.CHECKS, *checks.UNLISTED]
    given, offered = find(check_file or [], problem or [], candidate or [], taken, pair)
    checks.activate([*given, *offered])
    return given, offered


def split(values: list[str] | None) -> list[str]:
    """Values of an option that can be repeated and that also takes commas."""
    return [part.strip() for value in values or [] for part in value.split(",") if part.strip()]


def check_seconds(option: str, value: float | None, *, none: bool = False) -> None:
    """Raises UsageError where an option is no time that can be waited for; 0 is one only with ``none``."""
    from gpucheck.plan.scenario import LONGEST

    if value is not None and not (0 < value <= LONGEST or (none and value == 0)):
        least = "seconds, 0 for none," if none else "seconds above 0,"
        raise UsageError(f"{option} is {value:g}, expected {least} at most {LONGEST:g}")


def time_span(option: str, text: str) -> float:
    """Seconds of a time like ``90s``, ``10m``, ``1.5h`` or ``45``.

    Raises:
        UsageError: no such time, or not above 0.
    """
    from gpucheck.plan.scenario import LONGEST

    match = re.fullmatch(r"(\d+(?:\.\d*)?)([smh]?)", text.strip())
    seconds = float(match[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[match[2]] if match else 0.0
    if not 0 < seconds <= LONGEST:
        raise UsageError(f"{option} is {text!r}, expected a time like 90s, 10m or 2h, at most {LONGEST / 3600:g}h")
    return seconds


def check_folder(option: str, path: Path, *, new: bool = True) -> None:
    """Raises UsageError where a folder could not be made, before anything costs time or leaves a trace.

    Args:
        new: it must not hold anything yet.
    """
    folder = path.absolute()
    existing = next(each for each in (folder, *folder.parents) if each.exists() or each.is_symlink())
    if not existing.is_dir():
        raise UsageError(f"{option} {path} cannot be made: {existing} is no folder; give another with {option}")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise UsageError(f"{option} {path} cannot be made: {existing} is not writable; give another with {option}")
    if new and existing == folder and any(folder.iterdir()):
        raise UsageError(f"{option} {path} is not empty, expected a folder that is new or empty")


def require(*packages: str) -> None:
    """Raises InfrastructureError where this Python has not all of these packages."""
    from gpucheck.host.software import missing_packages

    missing = [name for name in missing_packages() if name in packages]
    if missing:
        raise InfrastructureError(
            f"{sys.executable} has no {' and no '.join(missing)}: run gpucheck with the Python that serves the model, "
            "or install the CPU set from a checkout with pip install '.[cpu]'"
        )
