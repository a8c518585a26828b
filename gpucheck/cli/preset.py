"""``gpucheck preset``: prints ready-made files for pods, clusters, workflows and plain shells; needs no torch."""

from __future__ import annotations

from typing import Annotated

import typer

from gpucheck.model.errors import UsageError


def preset(
    name: Annotated[str | None, typer.Argument(help="The preset to print; without one, all are listed.")] = None,
) -> None:
    """Print a ready-made file that runs gpucheck in a pod, a Slurm cluster, a workflow or on several nodes."""
    from gpucheck.templates.presets import presets

    known = presets()
    if name is None:
        width = max(map(len, known))
        for entry in known.values():
            typer.echo(f"{entry.name:<{width}}  {entry.title}")
        return
    if name not in known:
        raise UsageError(f"unknown preset {name!r}; known: {', '.join(known)}")
    typer.echo(known[name].text, nl=False)
