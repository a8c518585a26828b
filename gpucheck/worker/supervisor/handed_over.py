"""How inputs of further calls get to the process of a candidate, and their outputs to whoever judges them.

By files, through this process; or, where they are large, in memory that the process which makes references shares: it
draws them there, keeps what it takes out, and nothing of them comes here. What is concluded is the same.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Protocol

import torch
from torch import Tensor

from gpucheck.checks.base import CandidateCheck
from gpucheck.model.case import Case
from gpucheck.verify import digest
from gpucheck.worker import further_inputs, taken_outputs
from gpucheck.worker.protocol import OWN, Ask, Draw, Sent, Taken
from gpucheck.worker.sealed_inputs import seal
from gpucheck.worker.supervisor.attempt import discard, read_outputs
from gpucheck.worker.supervisor.case_files import CaseFiles
from gpucheck.worker.supervisor.reference_desk import ReferenceDesk


class HandOver(Protocol):
    """A way to hand inputs over and to take outputs."""

    def send(self, draw: Draw, key: int | None = None) -> Sent:
        """Puts inputs where the process of a candidate finds them, under a seal if there is a key."""

    def take(self, path: str, *, keep: bool) -> Taken:
        """The outputs that a file of such a process tells of; those that are kept can be compared and judged.

        Raises:
            NoOutputs: there are none, or the file holds something else.
        """

    def differing(self, outputs: Taken, others: Taken) -> tuple[int, int]:
        """How many elements of two outputs differ, of how many."""


class ByFiles:
    """Through the memory of this process and files."""

    def __init__(self, files: CaseFiles, key: str, case: Case, check: CandidateCheck, path: Path) -> None:
        """``path`` is the file for inputs."""
        self._files, self._key, self._case, self._check, self._path = files, key, case, check, path
        given = files.given(key, case)
        self._own = {name: value for name, value in given.items() if name.startswith("input")}

    def send(self, draw: Draw, key: int | None = None) -> Sent:
        drawn = further_inputs.Drawn(self._own)
        if draw != OWN:
            drawn = further_inputs.drawn(self._check, self._case, draw)
        torch.save(drawn.inputs if key is None else seal(drawn.inputs, key), self._path)
        return further_inputs.sent(drawn)

    def take(self, path: str, *, keep: bool) -> Taken:
        try:
            written = read_outputs(path)
        finally:
            discard(Path(path))  # no other process is to find an answer there
        outputs, taken = taken_outputs.look(written, lambda: self._own, self._allowed, _hashed)
        return replace(taken, values=outputs)

    def _allowed(self) -> frozenset[str]:
        given = self._files.given(self._key, self._case)
        host: Any = SimpleNamespace(device=torch.device("cpu"))
        return self._check.allowed(self._case, None, given, host).writes

    def differing(self, outputs: Taken, others: Taken) -> tuple[int, int]:
        return taken_outputs.differing(outputs.values or {}, others.values or {})


def _hashed(outputs: dict[str, Tensor]) -> str:
    return digest.whole(*outputs.values())


class BySharedMemory:
    """In memory that another process shares with that of the candidate."""

    def __init__(self, desk: ReferenceDesk, case: Case, path: Path) -> None:
        """``path`` is the file that tells of inputs."""
        self._desk, self._case, self._path = desk, case, path

    def send(self, draw: Draw, key: int | None = None) -> Sent:
        sent = self._desk.ask(Ask.SEND, self._case, str(self._path), draw=draw, key=key).sent
        assert sent is not None
        return sent

    def take(self, path: str, *, keep: bool) -> Taken:
        try:
            return self._desk.take(self._case, path, keep=keep)
        finally:
            discard(Path(path))

    def differing(self, outputs: Taken, others: Taken) -> tuple[int, int]:
        return self._desk.ask(Ask.COMPARE, self._case, outputs=(outputs.digest, others.digest)).differing
