"""Where gpucheck keeps what it need not fetch or make twice."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path


def cache_root(environ: Mapping[str, str] | None = None) -> Path:
    """``GPUCHECK_CACHE_DIR``, else ``$XDG_CACHE_HOME/gpucheck``, else ``~/.cache/gpucheck``."""
    environ = os.environ if environ is None else environ
    if environ.get("GPUCHECK_CACHE_DIR"):
        return Path(os.path.abspath(os.path.expanduser(environ["GPUCHECK_CACHE_DIR"])))
    base = environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if os.path.isabs(base) else Path("~/.cache").expanduser()) / "gpucheck"
