"""Environment variables that change what kernels compute or how they are made: recorded, and set again for a replay."""

from __future__ import annotations

import os
from collections.abc import Mapping

PREFIXES = ("CUDA", "TRITON", "TORCH", "PYTORCH", "NCCL", "NVIDIA", "CUBLAS", "OMP_", "MKL_", "LD_")
OF_A_LAUNCHER = ("TORCHELASTIC",)  # of a torchrun that the command was started by
OF_THE_HOST = ("CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES")  # mean other GPUs elsewhere


def variables() -> dict[str, str]:
    """Those of this process."""
    return {name: value for name, value in sorted(os.environ.items()) if _counts(name)}


def restore(recorded: Mapping[str, str], *, same_host: bool) -> None:
    """Gives this process, and so the ranks it starts, the recorded variables and no others of their kind."""
    kept = () if same_host else OF_THE_HOST
    for name in variables():
        if name not in recorded and name not in kept:
            del os.environ[name]
    os.environ.update({name: value for name, value in recorded.items() if name not in kept})


def _counts(name: str) -> bool:
    return name.startswith(PREFIXES) and not name.startswith(OF_A_LAUNCHER)
