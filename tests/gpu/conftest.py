"""The command on the GPUs here, with the library in GPUCHECK_TEST_LIBRARY (as --library takes it) or the usual one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from gpucheck.launch.gpus import find
from gpucheck.library.copies import LibraryCopy
from gpucheck.library.library_option import parse_source, resolve

DEADLINE = 280.0  # s
LIBRARY = os.environ.get("GPUCHECK_TEST_LIBRARY")
FOUND = find()
GPUS = [] if FOUND.problem else list(FOUND.gpus)  # names in CUDA's order
RANKS = min(len(GPUS), 8)
NEEDS_GPU = [pytest.mark.gpu, pytest.mark.skipif(not GPUS, reason="no NVIDIA GPU here")]
NEEDS_TWO = [pytest.mark.gpu, pytest.mark.skipif(len(GPUS) < 2, reason="needs two NVIDIA GPUs")]


@dataclass(frozen=True)
class Done:
    """A run that has ended."""

    code: int
    text: str
    report: dict[str, Any]
    folder: Path
    seconds: float

    def outcomes(self, rank: int, placement: str = "") -> set[str]:
        """What became of a rank's cases, under one placement or all."""
        results = [item for item in self.report["results"] if item["rank"] == rank]
        return {item["outcome"] for item in results if placement in ("", item["conditions"]["placement"])}

    @property
    def records(self) -> list[dict[str, Any]]:
        """Every record of every rank, experiments left out."""
        files = sorted((self.folder / "records").glob("*.jsonl"))
        items = [json.loads(line) for path in files for line in path.read_text().splitlines()]
        return [item for item in items if item["event"] == "result" and not item["experiment"]]


def gpucheck(*words: str, timeout: float = DEADLINE) -> subprocess.CompletedProcess[str]:
    """The command, whatever it ends with."""
    command = [sys.executable, "-m", "gpucheck", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout)


@pytest.fixture(scope="session")
def library() -> LibraryCopy:
    """The copy under test."""
    return resolve(parse_source(LIBRARY) if LIBRARY else None)


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., Done]:
    """Runs a scenario on all GPUs."""
    number = 0

    def run(*words: str, library: str | None = LIBRARY, ranks: int = RANKS) -> Done:
        nonlocal number
        folder, number = tmp_path / f"run{number}", number + 1
        options = ["--nproc", str(ranks), "--out", str(folder), "--json", str(folder.with_suffix(".json"))]
        begin = time.monotonic()
        done = gpucheck("run", *words, *options, *(["--library", library] if library else []))
        seconds = time.monotonic() - begin
        text = done.stdout + done.stderr
        print(text, f"{seconds:.1f} s", sep="\n")
        return Done(done.returncode, text, json.loads(folder.with_suffix(".json").read_text()), folder, seconds)

    return run
