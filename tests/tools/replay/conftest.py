"""Our own kernels are loaded here: they are for Triton's interpreter."""

from __future__ import annotations

import importlib.util
import os

from gpucheck.triton_hooks import interpreter

if importlib.util.find_spec("triton"):
    os.environ["TRITON_INTERPRET"] = "1"  # read when triton is imported
    interpreter.install()
