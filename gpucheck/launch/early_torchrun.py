"""A torchrun that loads torch while the command still plans, and begins once it is told what to run.

Loading torch takes longer than the plan. The process starts with the environment that torch and its libraries read
while they are loaded; where the plan comes to another one, say another number of threads, torchrun is started anew.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext, suppress
from pathlib import Path

from gpucheck.host.containment import UNWALLED
from gpucheck.host.isolated import python_path
from gpucheck.host.processes import Process, start_into
from gpucheck.host.resources import usable_processors

AGENT = "gpucheck.launch.forking_torchrun"  # what is started: torchrun with ranks that are forked
LOADED = "torch.distributed.run"  # torchrun itself
TOLD_BY = "--told-by"  # ahead of the descriptor that AGENT reads its command line from
TOLD = ("GPUCHECK_SCRATCH", "GPUCHECK_LAUNCHER", UNWALLED)
"""Environment variables that come with the command line: nothing reads them while torch is loaded."""

DEBUG = {
    "CUDA_LAUNCH_BLOCKING": "1",
    "TORCH_USE_CUDA_DSA": "1",  # what torch asks for in its messages; the next is what its builds read
    "PYTORCH_USE_CUDA_DSA": "1",
    "TRITON_DEBUG": "1",  # compiles tl.device_assert in, and asserts that integers do not overflow
}
"""What the ranks of a run with ``--debug`` have in their environment."""


def loading_environment(nproc: int, *, debug: bool) -> dict[str, str]:
    """The environment of ``nproc`` ranks on this node, but for what they are told later (:data:`TOLD`)."""
    return {
        **os.environ,
        "PYTHONPATH": python_path(),
        **(DEBUG if debug else {}),
        # idle threads must not spin: ranks share cores
        "OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY", "passive"),
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS") or str(max(1, usable_processors() // nproc)),
    }


def likely_ranks(device: str, nproc: int | None, dev: Path = Path("/dev")) -> int:
    """How many ranks this node will most likely have, at a glance: nothing is asked that takes time.

    Args:
        device: as given to ``--device``.
        nproc: as given to ``--nproc``.
        dev: the folder that stands for /dev.
    """
    shown = os.environ.get("CUDA_VISIBLE_DEVICES")
    gpus = len(shown.split(",")) if shown else len([*dev.glob("nvidia[0-9]*")])
    return nproc or (1 if device == "cpu" else max(1, gpus))


def begin(nproc: int, run: Path, *, debug: bool) -> AbstractContextManager[EarlyTorchrun | None]:
    """Starts the process; there is none where this one has torchrun loaded and can fork it, or none is to be had.

    Args:
        run: what is known of the run folder.
    """
    if LOADED in sys.modules:
        return nullcontext()
    try:
        return EarlyTorchrun(loading_environment(nproc, debug=debug), run)
    except OSError:  # who starts torchrun later meets that too, and reports it
        return nullcontext()


class EarlyTorchrun:
    """The process, as long as it is not handed over: it ends with this context, and with the command."""

    def __init__(self, environment: Mapping[str, str], run: Path) -> None:
        """Starts it with an environment; its command line names the run folder, as far as that is known."""
        self._environment = _while_loading(environment)
        told, tell = os.pipe()
        self._tell = open(tell, "wb", buffering=0)  # noqa: SIM115 - closed with this
        words = [sys.executable, "-m", AGENT, TOLD_BY, str(told), "-m", "gpucheck.worker", str(run.absolute())]
        self._process: Process | None = None
        with ExitStack() as undo, open(told, "rb"), open(os.memfd_create("torchrun"), "wb") as printed:
            undo.callback(self._tell.close)
            self._process = start_into(words, environment, printed, inherited=(told,))
            undo.pop_all()

    def __enter__(self) -> EarlyTorchrun:
        return self

    def __exit__(self, *error: object) -> None:
        if self._process:
            self._process.kill()
            self._process.wait()
            self._process = None
        self._tell.close()

    def hand_over(self, arguments: Sequence[str], environment: Mapping[str, str], log: Path) -> Process | None:
        """Makes the process torchrun; None where it has died or loads torch in another environment, and then ends it.

        Args:
            arguments: torchrun's own.
            environment: of the ranks.
            log: file that it prints to from now on; what it has printed while it was loading comes first.
        """
        with self:
            if self._process and self._process.poll() is None and _while_loading(environment) == self._environment:
                message = {
                    "arguments": list(arguments),
                    "environment": {name: environment[name] for name in TOLD if name in environment},
                    "log": str(log),
                    "since": time.monotonic(),
                }
                log.write_bytes(b"")
                with suppress(BrokenPipeError):
                    self._tell.write(json.dumps(message).encode() + b"\n")
                    process, self._process = self._process, None
                    return process
        return None


def _while_loading(environment: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in environment.items() if name not in TOLD}
