"""Real runs of the command on the CPU interpreter, with the library as it is and with copies that hold a fault."""

from __future__ import annotations

import importlib.util
import itertools
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest

from gpucheck.library.library_option import LibraryCopy, parse_source, resolve
from gpucheck.model.errors import InfrastructureError
from gpucheck.tools.selftest.injection import Injector, Planted, write_scenario
from tests.end_to_end.warm import Warm

REPOSITORY = Path(__file__).parents[2]
PLANTS = REPOSITORY / "tests" / "data" / "plants.toml"
LIBRARY = "wheel:vllm==0.33.0"  # the plants are places in its source
DEADLINE = 3600.0  # s for one run; only a hang reaches it, however busy the machine

Edit = tuple[str, str, str]
"""File of the library, text that occurs exactly once in it, replacement."""


@dataclass(frozen=True)
class Finished:
    """A run that has ended."""

    code: int
    text: str
    folder: Path

    @cached_property
    def report(self) -> dict[str, Any]:
        content: dict[str, Any] = json.loads((self.folder / "report.json").read_text())
        return content

    def records(self, rank: int) -> list[dict[str, Any]]:
        """The lines that a rank wrote."""
        text = (self.folder / "records" / f"rank-{rank:05d}.jsonl").read_text()
        return [json.loads(line) for line in text.splitlines()]

    def results(self, rank: int) -> dict[str, dict[str, Any]]:
        """The result lines of a rank by case."""
        return {line["case"]: line for line in self.records(rank) if line["event"] == "result"}

    def outcomes(self, case: str) -> list[str]:
        """How the one case whose id contains ``case`` ended, rank by rank."""
        found = [result for result in self.report["results"] if case in result["case"]]
        assert len({result["case"] for result in found}) == 1, f"{case} names {[r['case'] for r in found]}"
        return [result["outcome"] for result in sorted(found, key=lambda result: result["rank"])]

    def findings(self, case: str) -> list[dict[str, Any]]:
        """The findings that show the one case whose id contains ``case``, each with that case only."""
        return [
            {**finding, "failed_case": failed_case}
            for finding in self.report["findings"]
            for failed_case in finding["cases"]
            if case in failed_case["case"]
        ]

    def finding(self, case: str) -> dict[str, Any]:
        """The only finding about a case."""
        (finding,) = self.findings(case)
        return finding

    def lines(self, case: str) -> str:
        """What the only finding about a case says of it."""
        return "\n".join(self.finding(case)["failed_case"]["lines"])


@dataclass(frozen=True)
class Running:
    """A run under way."""

    process: subprocess.Popen[str]
    folder: Path

    def finish(self, seconds: float = DEADLINE) -> Finished:
        """Waits for the command to end."""
        try:
            text, _ = self.process.communicate(timeout=seconds)
        finally:
            self.process.kill()
        return Finished(self.process.returncode, text, self.folder)

    def wait_for(self, event: str, rank: int, seconds: float = 300.0) -> dict[str, Any]:
        """Waits until a rank has written a line of this kind and returns it."""
        path = self.folder / "records" / f"rank-{rank:05d}.jsonl"
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and self.process.poll() is None:
            for line in path.read_text().splitlines() if path.exists() else []:
                item: dict[str, Any] = json.loads(line)
                if item["event"] == event:
                    return item
            time.sleep(0.05)
        raise AssertionError(f"rank {rank} wrote no {event} line: {self.finish(1).text}")


@dataclass(frozen=True)
class Lab:
    """Makes runs, each in a folder of its own."""

    library: LibraryCopy
    new_folder: Callable[[], Path]
    warm: Warm

    def plant(self, *edits: Edit, append: tuple[str, str] | None = None) -> str:
        """Copies the library and edits the copy.

        Args:
            edits: texts that each occur exactly once.
            append: a file and text to put at its end.

        Returns:
            What ``--library`` takes.
        """
        package = self.new_folder() / "triton_kernels"
        shutil.copytree(self.library.package, package, ignore=shutil.ignore_patterns("__pycache__"))
        for name, old, new in edits:
            text = (package / name).read_text()
            assert text.count(old) == 1, f"{name} holds {text.count(old)} times: {old}"
            (package / name).write_text(text.replace(old, new))
        if append:
            with open(package / append[0], "a") as file:
                file.write(append[1])
        return f"path:{package}"

    def start(
        self,
        *options: str,
        library: str | None = LIBRARY,
        scenario: str | Path | None = PLANTS,
        nproc: int = 2,
        cases: tuple[str, ...] = (),
        folder: Path | None = None,
        path: Path | None = None,
    ) -> Running:
        """Starts a run on the CPU that writes its report into the run folder.

        Args:
            library: None to leave the option out.
            scenario: None for the usual cases of checks that the options give.
            cases: parts of case ids; only cases that contain one of them run.
            path: a folder with packages that come before all others.
        """
        folder = folder or self.new_folder() / "run"
        words = arguments(*options, library=library, scenario=scenario, nproc=nproc, cases=cases, folder=folder)
        command, pipe = [sys.executable, "-m", "gpucheck", *words], subprocess.PIPE
        process = subprocess.Popen(command, env=environment(path), stdout=pipe, stderr=subprocess.STDOUT, text=True)
        return Running(process, folder)

    def finish(self, *options: str, **choices: Any) -> Finished:
        """Runs to the end; arguments as for :meth:`start`."""
        return self.start(*options, **choices).finish()

    def forked(
        self,
        *options: str,
        library: str | None = LIBRARY,
        scenario: str | Path | None = PLANTS,
        nproc: int = 2,
        cases: tuple[str, ...] = (),
        path: Path | None = None,
    ) -> Finished:
        """As :meth:`finish`, a second in place of four: for what neither torchrun nor the start of a Python matters to.

        Ranks are forks of a process that has torch loaded; see :mod:`tests.end_to_end.warm`.
        """
        folder = self.new_folder() / "run"
        words = arguments(*options, library=library, scenario=scenario, nproc=nproc, cases=cases, folder=folder)
        log = folder.with_name("output.txt")
        return Finished(self.warm.ended(words, environment(path), log), log.read_text(), folder)

    def planted(self, *planted: Planted, groups: Sequence[Mapping[str, Any]] = (), **limits: float) -> Finished:
        """Runs the cases of some faults on two ranks, with the faults planted, to the end.

        Args:
            groups: ``[[cases]]`` tables of further cases.
            limits: keys of the scenario.
        """
        folder, faults = self.new_folder(), [item.fault for item in planted]
        cases = [*(fault.case for fault in faults), *(case for fault in faults for case in fault.beside), *groups]
        write_scenario(folder / "scenario.toml", cases, **limits)
        injector = Injector(folder, self.library.package, ranks=2)
        library, startup = f"path:{injector.library_with(planted)}", injector.startup_with(planted)
        begin = self.finish if startup else self.forked  # what is planted at the start of a Python needs one
        return begin(scenario=folder / "scenario.toml", library=library, path=startup)


def arguments(
    *options: str, library: str | None, scenario: str | Path | None, nproc: int, cases: tuple[str, ...], folder: Path
) -> list[str]:
    """Those of ``gpucheck`` for a run on the CPU; see :meth:`Lab.start`."""
    words = ["run", *([str(scenario)] * (scenario is not None)), "--device", "cpu", "--nproc", str(nproc)]
    words += ["--library", library] if library else []
    words += ["--out", str(folder), "--json", str(folder / "report.json"), *options]
    return words + [option for case in select(scenario, cases) for option in ("--case", case)]


@pytest.fixture(scope="session")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """Skips where torch, triton or the library that the plants are made for cannot be had."""
    for package in ("torch", "triton"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"needs {package}")
    try:
        library = resolve(parse_source(LIBRARY))
    except InfrastructureError as error:
        pytest.skip(f"{LIBRARY} is neither cached nor to be had: {error}")
    warm = Warm()
    yield Lab(library, lambda: tmp_path_factory.mktemp("lab"), warm)
    warm.close()


@contextmanager
def file_system(folder: Path, options: str) -> Iterator[Path]:
    """A file system of its own in memory; skips where none can be mounted."""
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"a file system cannot be mounted: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


_turns = itertools.count()


def one_of(ranks: int, now: int) -> list[Any]:
    """The ranks that a fault is planted on in turn: ``now`` in each test run, all others in make torture."""
    return [rank if rank == now else pytest.param(rank, marks=pytest.mark.torture) for rank in range(ranks)]


def free_ports(count: int) -> int:
    """The first of ``count`` free ports in a row, below those that the kernel hands out; other tests try others."""
    lowest = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    for turn in _turns:
        first = 10_000 + (os.getpid() + 97 * turn) * 10 % (lowest - 11_000)
        try:
            for port in range(first, first + count):
                with socket.create_server(("127.0.0.1", port)):
                    pass
        except OSError:
            continue
        return first
    raise AssertionError


def environment(first: Path | None = None) -> dict[str, str]:
    inherited = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    paths = [str(first or REPOSITORY), str(REPOSITORY), *filter(None, inherited)]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(dict.fromkeys(paths))}


def select(scenario: str | Path | None, parts: tuple[str, ...]) -> list[str]:
    """The ids of a scenario's cases that contain one of ``parts``."""
    if not parts:
        return []
    from gpucheck.plan.scenario import find, load

    assert scenario is not None
    ids = [step.case.id for step in load(find(str(scenario))).steps]
    for part in parts:
        assert any(part in case for case in ids), f"no case contains {part}"
    return [case for case in ids if any(part in case for part in parts)]
