"""Synthetic runs, shared by the tests of everything that reads records."""

from __future__ import annotations

import functools
import importlib.util
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import zlib
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from gpucheck.host.processes import children_of
from gpucheck.model.case import Case
from gpucheck.model.conditions import Conditions
from gpucheck.model.plan import Plan, Step
from gpucheck.model.record import Mismatch, Outcome, Record
from gpucheck.records.run_folder import Run, write_json
from gpucheck.records.writer import RecordWriter
from tests.processes import naming, wait_until

os.environ.setdefault("GPUCHECK_TEST_SEED", str(random.randrange(1_000_000)))  # one for all processes of a session
os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # threads of torch that wait take no core from other workers


def pytest_report_header() -> str:
    """What a failure that depends on chance is repeated with."""
    return f"random seed: GPUCHECK_TEST_SEED={os.environ['GPUCHECK_TEST_SEED']}"


def pytest_configure(config: pytest.Config) -> None:
    """Makes sessions alike, whatever tests they consist of and wherever they are started.

    Triton reads whether it interprets when it is first imported, by whichever test that is. Tests interrupt what they
    start; a shell that starts the tests in the background has all of them ignore it.
    """
    if not any("gpu" in Path(argument).parts for argument in config.args):
        os.environ["TRITON_INTERPRET"] = "1"
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser: pytest.Parser) -> None:
    """``--complete`` is for where all packages should be; ``--snapshots`` for words that were changed on purpose."""
    parser.addoption("--complete", action="store_true", help="fail what needs a missing package, instead of skipping")
    parser.addoption("--snapshots", action="store_true", help="run what has a snapshot, and write tests/snapshots anew")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Snapshots are written anew by the tests that have some."""
    if config.getoption("snapshots"):
        items[:] = [item for item in items if "snapshot" in getattr(item, "fixturenames", ())]


SNAPSHOTS = Path(__file__).parent / "snapshots"


class Snapshots:
    """The texts of one file of tests, by test: what people read, held in one place instead of in each test."""

    def __init__(self, path: Path, *, rewrite: bool) -> None:
        self.path, self.rewrite = path, rewrite
        text = path.read_text(encoding="utf-8") if path.exists() and not rewrite else ""
        sections = (section.partition("\n") for section in text.split("\n== ")[1:])
        self.texts = {name: textwrap.dedent(lines).strip("\n") for name, _, lines in sections}

    def check(self, name: str, text: str) -> None:
        """Holds a text against that of a test, or takes it for it."""
        text = "\n".join(line.rstrip() for line in text.splitlines()).strip("\n")
        if self.rewrite:
            self.texts[name] = text
            sections = (f"\n== {name}\n{textwrap.indent(lines, '  ')}\n" for name, lines in sorted(self.texts.items()))
            self.path.write_text("".join(sections), encoding="utf-8")
        assert text == self.texts.get(name), f"{self.path.name} has other words; if these are better: make snapshots"


@pytest.fixture(scope="module")
def snapshots(request: pytest.FixtureRequest) -> Snapshots:
    *folders, file = request.path.relative_to(SNAPSHOTS.parent).with_suffix(".txt").parts
    path = SNAPSHOTS / "-".join([*folders, file.removeprefix("test_")])
    return Snapshots(path, rewrite=request.config.getoption("snapshots"))


@pytest.fixture
def snapshot(request: pytest.FixtureRequest, snapshots: Snapshots) -> Callable[[str], None]:
    """``snapshot(text)``: the text is the one that is kept for this test; at most one a test."""
    return lambda text: snapshots.check(request.node.name, text)


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """A file of tests that imports a package which is not installed is skipped."""
    report = yield
    call = getattr(report, "call", None)
    package = wanting(collector, call.excinfo.value) if report.failed and call and call.excinfo else ""
    if package:
        report.outcome, report.longrepr = "skipped", skip_of(collector, package)
    return report


@pytest.hookimpl(specname="pytest_make_collect_report", tryfirst=True)
def pytest_pass_over_file(collector: pytest.Collector) -> pytest.CollectReport | None:
    """Where its first lines say so it is not even begun, nor is an account of the error made up that nobody reads."""
    if not isinstance(collector, pytest.Module) or collector.config.getoption("complete"):
        return None
    code = re.sub('""".*?"""', "", collector.path.read_text(encoding="utf-8"), flags=re.DOTALL)
    names = re.findall(r"^(?:import|from) +(\w+)", code, re.MULTILINE)
    package = next(filter(absent, names), "")
    return pytest.CollectReport(collector.nodeid, "skipped", skip_of(collector, package), []) if package else None


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """So is a test that meets the import only when it runs."""
    package = wanting(item, call.excinfo.value) if call.excinfo else ""
    if package:
        with pytest.raises(pytest.skip.Exception) as call.excinfo:
            pytest.skip(package)
    report = yield
    if package:
        report.longrepr = skip_of(item, package)
    return report


def skip_of(node: pytest.Item | pytest.Collector, package: str) -> tuple[str, int, str]:
    """What a report says of a test that is skipped for want of a package: file, line, reason."""
    return str(node.path), 0, f"Skipped: needs {package}"


def wanting(node: pytest.Item | pytest.Collector, error: BaseException) -> str:
    """The package for want of which a test is skipped that raised an error, or ""."""
    return "" if node.config.getoption("complete") else missing_package(error)


@functools.cache
def absent(package: str) -> bool:
    """Whether a package is not installed."""
    return package not in sys.modules and importlib.util.find_spec(package) is None


def missing_package(error: BaseException | None) -> str:
    """The package, not a part of one, whose absence an error comes from, or ""."""
    while error is not None:
        if isinstance(error, ModuleNotFoundError) and error.name:
            package = error.name.partition(".")[0]
            return "" if importlib.util.find_spec(package) else package
        error = error.__cause__
    return ""


USUAL_PROGRAM = "import json, dataclasses, typing, email.message, argparse, logging, http.client"
USUAL_SECONDS = 0.04  # of an undisturbed server core

WELL = {"code": 0, "timed_out": False, "signal": 0, "seconds": 12.5, "changes": []}


def make_plan(
    cases: int = 2,
    ranks: int = 1,
    optional: Sequence[int] = (),
    *,
    under: Sequence[Conditions] = (Conditions(),),
    one_row: bool = False,
    **changes: Any,
) -> Plan:
    """A plan of cases ``matmul/0/exact``, ``matmul/1/exact``, ...

    Args:
        optional: numbers of the optional cases.
        under: each case is planned under each of these, the last one changing fastest.
        one_row: all cases are of one row of the matrix.
    """
    steps = tuple(
        Step(
            Case("matmul", {"m": n}, "exact", f"matmul/{n}/exact", f"matmul row{0 if one_row else n}", 0),
            conditions,
            optional=n in optional,
        )
        for n in range(cases)
        for conditions in under
    )
    plan = Plan(
        id="0123456789ab",
        scenario="smoke",
        title="a title",
        seed=0,
        created=1.0,
        device="cuda",
        nproc=ranks,
        nnodes=1,
        timeout=600.0,
        case_timeout=60.0,
        experiments=0.0,
        library={
            "root": "/lib",
            "package": "/lib/triton_kernels",
            "origin": "path",
            "content": "f" * 64,
            "name": "B",
            "generation": "v3.5",
        },
        environment={"software": {"torch": {"version": "2.0"}, "triton": {"version": "3.0"}}},
        command=["gpucheck", "run", "smoke", "--seed", "0"],
        steps=steps,
    )
    return replace(plan, **changes)


def make_mismatch(**changes: Any) -> Mismatch:
    values: dict[str, Any] = {
        "output": "y",
        "method": "exact",
        "wrong": 1,
        "total": 4,
        "region": "row 1 of 2",
        "first": [1, 0],
        "worst": [1, 0],
        "expected": 1.0,
        "got": 2.0,
        "bound": 0.0,
        "ulps": 3,
        "box": [[1, 1], [0, 0]],
        "tiles": [[0, 0]],
        "bits": [],
        "bias": 1.0,
        "nan": 0,
        "inf": 0,
        "first_nonfinite": None,
        "poison": 0,
    }
    return Mismatch(**{**values, **changes})


def make_record(plan: Plan, step: int, rank: int, outcome: Outcome = Outcome.PASS, **changes: Any) -> Record:
    known: dict[str, Any] = {"placement": "pinned", "device": "NVIDIA H200", "digests": {"y": "d"}, "inputs": "i"}
    if outcome is Outcome.MISMATCH:
        known["mismatches"] = [make_mismatch()]
    return Record(step, plan.steps[step].case.id, rank, outcome, **{**known, **changes})


Ends = Mapping[tuple[int, int], Outcome | Record | Mapping[str, Any]]
"""Step and rank -> how that ended: an outcome, a whole record, or what differs from the record of a pass."""


def make_run(plan: Plan, ends: Ends | None = None, **outcome: Any) -> Run:
    """A run in which every case passes except where ``ends`` says otherwise."""
    records = {
        (step, rank): make_record(plan, step, rank)
        for step in range(len(plan.steps))
        for rank in range(plan.world_size)
    }
    for (step, rank), end in (ends or {}).items():
        changes = {"outcome": end} if isinstance(end, Outcome) else end
        records[(step, rank)] = changes if isinstance(changes, Record) else make_record(plan, step, rank, **changes)
    return Run(Path("runs/x"), plan, records, outcome={**WELL, **outcome})


def write_run(folder: Path, run: Run, *, outcome: bool = True) -> Path:
    """Writes a run as its ranks would have; LOST records are left out."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "plan.json", run.plan.to_json())
    for rank in run.ranks:
        writer = RecordWriter(folder, rank)
        host = next((run.records[(step, rank)].host for step in range(len(run.plan.steps))), "")
        writer.start(rank=rank, import_seconds=1.0, host=host)
        for step in range(len(run.plan.steps)):
            record = run.records[(step, rank)]
            if record.outcome is not Outcome.LOST:
                writer.begin(step)
                writer.result(record)
            for attempts in run.experiments.get((step, rank), {}).values():
                for attempt in attempts:
                    writer.result(attempt)
        writer.end()
    if outcome:
        write_json(folder / "outcome.json", run.outcome)
    return folder


@dataclass(frozen=True)
class Synthetic:
    """The makers above, for tests to call."""

    plan: Callable[..., Plan] = field(default=make_plan)
    mismatch: Callable[..., Mismatch] = field(default=make_mismatch)
    record: Callable[..., Record] = field(default=make_record)
    run: Callable[..., Run] = field(default=make_run)
    write: Callable[..., Path] = field(default=write_run)


@pytest.fixture(scope="session")
def synthetic() -> Synthetic:
    """Makers of plans, records and runs without a GPU behind them."""
    return Synthetic()


def cpu_seconds(*arguments: str) -> float:
    """What Python takes of a processor for a command; a wall clock would tell of whatever else this machine does."""
    process = subprocess.Popen([sys.executable, *arguments], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0, arguments
    return usage.ru_utime + usage.ru_stime


@pytest.fixture
def slowness() -> Callable[[], float]:
    """How many times as long Python takes here, now, as on the machine that limits of time are for; at least 1."""
    return lambda: max(1.0, min(cpu_seconds("-c", USUAL_PROGRAM) for _ in range(3)) / USUAL_SECONDS)


@pytest.fixture(scope="session", autouse=True)
def unannounced() -> Iterator[None]:
    """Keeps the runs of the tests out of the step summary and the termination log of the machine that tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("GITHUB_STEP_SUMMARY", raising=False)
        patch.setenv("GPUCHECK_TERMINATION_LOG", "")
        yield


@pytest.fixture(scope="session")
def temporary(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where all that the tests start keeps its temporary files: a folder of their own, short enough for sockets."""
    folder = tmp_path_factory.getbasetemp() / "temporary"  # which pytest removes, also for a session that was killed
    folder.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMPDIR", str(folder))
        patch.setattr(tempfile, "tempdir", str(folder))
        yield folder
    shutil.rmtree(folder, ignore_errors=True)


OF_OTHERS = ("torchinductor_", ".org.chromium.", "org.chromium.")
"""What torch and a browser keep there for as long as they like."""


@pytest.fixture(autouse=True)
def tidy(temporary: Path) -> Iterator[None]:
    """No test leaves temporary files: what a command forgets there, it forgets on the machines of its users."""

    def held() -> set[str]:
        return {name for name in os.listdir(temporary) if not name.startswith(OF_OTHERS)}

    before = held()
    yield
    if held() - before:  # a process that is being ended may be about to remove its own; this one's children stay
        wait_until(lambda: not held() - before or not {*naming(temporary)} - children_of(os.getpid()))
        assert not held() - before, f"left in the folder of temporary files: {held() - before}"


@pytest.fixture(autouse=True)
def drawn_alike(request: pytest.FixtureRequest) -> None:
    """What a test draws without a seed of its own is the same each time, whatever ran before it in this process."""
    seed = zlib.crc32(request.node.nodeid.encode())
    random.seed(seed)
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(seed)
    if "numpy.random" in sys.modules:
        sys.modules["numpy"].random.seed(seed)
