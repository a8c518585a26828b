"""Options that several commands share."""

from __future__ import annotations

from typing import Annotated

import typer

LibraryOption = Annotated[
    str | None,
    typer.Option(
        "--library",
        metavar="SPEC",
        help="The triton_kernels to test: installed, path:DIR or wheel:NAME==VERSION.",
        show_default="the installed one, else wheel:vllm==0.33.0",
    ),
]
"""``--library``; read with :func:`gpucheck.library.source.parse_source`."""


JsonOption = Annotated[str | None, typer.Option("--json", metavar="FILE|-", help="Write the report as JSON.")]

WriteOption = Annotated[
    list[str] | None,
    typer.Option(
        "--write",
        metavar="FILE",
        help="Write the report in the format of the suffix: .json .xml .md .prom .html; repeatable.",
    ),
]


def split(values: list[str] | None) -> list[str]:
    """Values of a repeatable option that also takes commas."""
    return [part.strip() for value in values or [] for part in value.split(",") if part.strip()]
