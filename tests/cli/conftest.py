"""The command line in this process: arguments in, exit code and text out."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partialmethod
from pathlib import Path
from typing import Any

import pytest

from gpucheck.launch.gpus import Found
from gpucheck.launch.torchrun import Ending
from gpucheck.model.plan import Plan
from gpucheck.model.record import Outcome, Record
from gpucheck.records.writer import RecordWriter
from tests.library.conftest import library_files, write_files


@dataclass(frozen=True)
class Answer:
    """What a command ended with."""

    code: int
    out: str
    err: str

    @property
    def message(self) -> str:
        """The error for the user: on stderr, from gpucheck, without a traceback."""
        assert self.err.startswith("gpucheck: ") and self.err.endswith("\n") and "Traceback" not in self.err
        return self.err.removeprefix("gpucheck: ").rstrip("\n")


Command = Callable[..., Answer]


_built: dict[str, Any] = {}  # commands by name: Typer takes as long to make one as many a command runs


def _built_once(self: Any, name: str, make: Callable[[Any, str], Any]) -> Any:
    if self.brief:
        return make(self, name)
    if name not in _built:
        _built[name] = make(self, name)
    return _built[name]


@pytest.fixture
def gpucheck(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Runs ``gpucheck`` with arguments, through its ``main``; nothing loads torch meanwhile."""
    from gpucheck.cli.app import Commands, main

    monkeypatch.setattr(Commands, "__getitem__", partialmethod(_built_once, make=Commands.__getitem__))
    monkeypatch.setattr("gpucheck.launch.early_torchrun.begin", lambda *_, **__: nullcontext())

    def run(*arguments: str) -> Answer:
        monkeypatch.setattr(sys, "argv", ["gpucheck", *arguments])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        captured = capsys.readouterr()
        return Answer(int(ended.value.code or 0), captured.out, captured.err)

    return run


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@dataclass
class FakeRanks:
    """Ranks that write what they are told instead of running kernels."""

    outcomes: dict[tuple[int, int], Outcome]  # (step, rank); PASS where nothing is said
    ending: dict[str, Any]
    plans: list[Plan]
    folders: list[Path] = field(default_factory=list)
    on_cpu: set[int] = field(default_factory=set)  # ranks that run on the CPU in a run on GPUs


@pytest.fixture
def ranks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeRanks:
    """Stands in for torchrun and its ranks; the machine has no GPU and the software is quickly read."""
    fake = FakeRanks({}, {}, [])

    def launch(
        plan: Plan, folder: Path, _: object, watch: Callable[[], bool], *others: object, **named: object
    ) -> Ending:
        fake.plans.append(plan)
        fake.folders.append(folder)
        for rank in range(plan.world_size):
            writer = RecordWriter(folder, rank)
            writer.start(import_seconds=0.5)
            device = "cpu" if plan.device == "cpu" or rank in fake.on_cpu else "NVIDIA H200"
            for number, step in enumerate(plan.steps):
                outcome = fake.outcomes.get((number, rank), Outcome.PASS)
                if outcome is not Outcome.LOST:
                    writer.result(
                        Record(number, step.case.id, rank, outcome, placement=step.conditions.placement, device=device)
                    )
            writer.end()
        watch()
        return Ending(**{"code": 0, "timed_out": False, "signal": 0, "seconds": 1.0, **fake.ending})

    monkeypatch.setattr("gpucheck.launch.torchrun.launch", launch)
    monkeypatch.setattr("gpucheck.launch.gpus.find", Found)
    monkeypatch.setattr("gpucheck.host.software.software", lambda _: {"torch": {"version": "1"}})
    monkeypatch.setattr("gpucheck.host.software.missing_packages", list)
    return fake


@pytest.fixture
def library(tmp_path: Path) -> str:
    """``--library`` of a stand-in copy."""
    return f"path:{write_files(tmp_path / 'lib' / 'triton_kernels', library_files('v3.7')).parent}"
