"""Loads the command: from bytecode of an earlier one where Python keeps none."""

from __future__ import annotations

from typing import NoReturn

from gpucheck.host.bytecode import Bytecode
from gpucheck.library.cache_folder import cache_root

OWN = ("gpucheck", "typer", "click", "shellingham", "rich", "markdown_it", "mdurl", "pygments")
"""The packages that the command is made of."""


def start() -> NoReturn:
    """Runs the command line, which ends this process."""
    with Bytecode("command", cache_root, OWN):
        from gpucheck.cli.app import main

        main()
