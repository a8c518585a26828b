"""Inspects a case on its device: records the calls it makes, and finds which programs write some elements."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from gpucheck import checks
from gpucheck.model.case import Case
from gpucheck.model.conditions import FILLS, Conditions
from gpucheck.model.errors import Inapplicable
from gpucheck.worker.device import program_locator
from gpucheck.worker.protocol import Reply, Request

if TYPE_CHECKING:
    from gpucheck.checks.base import Runtime

Run = Callable[[Any, Case, Any, int, Conditions], dict[str, Tensor]]
"""Runs a check on a case's inputs once, in memory filled with a byte; gives the outputs on the host."""


def inspect(run: Run, library: Callable[[], Any], device: torch.device, request: Request, reply: Reply) -> None:
    """Runs a case as often as its inspection needs, under usual conditions but for those of the process."""
    wanted, case = request.inspection, request.case
    assert wanted is not None
    check = checks.load(case.check)
    inputs = torch.load(request.inputs, mmap=True, weights_only=True)
    if wanted.calls:
        run(_Recorded(check, Path(wanted.calls), library), case, inputs, FILLS[0], Conditions())
    if wanted.elements:
        reply.writers = program_locator.find(
            lambda fill: run(check, case, inputs, fill, Conditions()), wanted.elements, FILLS, device.type == "cpu"
        )


class _Recorded:
    """A check whose launch is written down."""

    def __init__(self, check: Any, folder: Path, library: Callable[[], Any]) -> None:
        self._check, self._folder, self._library = check, folder, library

    def __getattr__(self, name: str) -> Any:
        return getattr(self._check, name)

    def prepare(self, case: Case, inputs: dict[str, Tensor], runtime: Runtime) -> Any:
        self._inputs = dict(inputs)
        return self._check.prepare(case, inputs, runtime)

    def launch(self, case: Case, prepared: Any, runtime: Runtime) -> dict[str, Tensor]:
        from gpucheck.worker.device.call_recorder import Recorder

        adapter = None
        if self._check.needs_library:
            with suppress(Inapplicable):
                adapter = self._library()
        recorder = Recorder(self._folder, self._inputs, adapter)
        with recorder.watching():
            outputs: dict[str, Tensor] = self._check.launch(case, prepared, runtime)
        recorder.end(outputs)
        return outputs
