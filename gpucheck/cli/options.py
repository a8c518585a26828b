"""Options that several commands share."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated

import typer

from gpucheck.model.errors import UsageError
from gpucheck.report.formats import FORMATS

if TYPE_CHECKING:
    from gpucheck.model.check_source import CheckSource

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

JsonOption = Annotated[str | None, typer.Option("--json", metavar="FILE|-", help="Write the report as JSON.")]

WriteOption = Annotated[
    list[str] | None,
    typer.Option(
        "--write",
        metavar="FILE",
        help=f"Write the report in the format of the suffix: {' '.join(FORMATS)}; repeatable.",
    ),
]

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


def check_sources(
    check_file: list[str] | None, problem: list[str] | None, candidate: list[str] | None
) -> tuple[list[CheckSource], list[CheckSource]]:
    """The check sources that options name and those that packages offer; all are active from here on."""
    from gpucheck import checks
    from gpucheck.checks.sources import find

    given, offered = find(check_file or [], problem or [], candidate or [], [*checks.CHECKS, *checks.UNLISTED])
    checks.activate([*given, *offered])
    return given, offered


def split(values: list[str] | None) -> list[str]:
    """Values of an option that can be repeated and that also takes commas."""
    return [part.strip() for value in values or [] for part in value.split(",") if part.strip()]


def time_span(option: str, text: str, longest: float) -> float:
    """Seconds of a time like ``90s``, ``10m``, ``1.5h`` or ``45``.

    Raises:
        UsageError: no such time, or not above 0.
    """
    match = re.fullmatch(r"(\d+(?:\.\d*)?)([smh]?)", text.strip())
    seconds = float(match[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[match[2]] if match else 0.0
    if not 0 < seconds <= longest:
        raise UsageError(f"{option} is {text!r}, expected a time like 90s, 10m or 2h, at most {longest / 3600:g}h")
    return seconds
