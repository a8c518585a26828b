"""The kernel cache is filled ahead of the ranks, for a GPU that the process itself never touches."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gpucheck import checks
from gpucheck.host import cuda_driver
from gpucheck.model.check_source import CheckSource, SourceKind
from gpucheck.model.conditions import Conditions
from gpucheck.model.plan import Step
from gpucheck.model.record import Outcome, Record
from gpucheck.worker.compile_claims import Claims
from gpucheck.worker.device import precompile
from gpucheck.worker.known_kernels import KnownKernels
from gpucheck.worker.protocol import Ahead, Setup
from gpucheck.worker.supervisor import supervisor
from gpucheck.worker.supervisor.supervisor import Supervisor

pytest.importorskip("triton")

from tests.conftest import Synthetic

SCRIPT = """
import os, sys
from pathlib import Path
from gpucheck import checks
from gpucheck.host import cuda_driver
from gpucheck.worker.compile_claims import Claims
from gpucheck.worker.device import precompile
from gpucheck.worker.known_kernels import KnownKernels
from gpucheck.worker.protocol import Ahead

cuda_driver.gpu = lambda number: cuda_driver.Gpu("H", (9, 0), 132, 227 << 10)
compiled = []
launch = precompile._launch
precompile._launch = lambda case, runtime: compiled.append(case.row) or launch(case, runtime)
cases = [checks.load(check).spec.case(params, "normal", 0) for check, params in (
    ("matmul", {"m": 4, "n": 8, "k": 32}),  # there is no library here
    ("softmax", {"m": 4, "n": 64}),
)]
cases += [checks.load("softmax").spec.case({"m": 4, "n": 64}, "normal", seed) for seed in range(1, 20)]
for claims in sys.argv[2:]:  # each in a process that has everything loaded
    if not os.fork():
        precompile.work(Ahead(tuple(cases), 0, claims, "", "", basis=sys.argv[1]))
        print(*compiled, sep="; ", flush=True)
        KnownKernels(Path(Claims(Path(claims)).kept())).add(cases[1:])  # as a run does at its end
        os._exit(0)
    assert os.wait()[1] == 0
"""


def compiled_ahead(tmp_path: Path, *claims: str, basis: str) -> list[list[str]]:
    """The rows of the cases that processes go through one after the other, whose cache is a folder of ``tmp_path``."""
    known = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, basis, *(tmp_path / each for each in claims)],
        env={**known, "PYTHONPATH": str(Path(__file__).parents[3]), "TRITON_CACHE_DIR": str(tmp_path / "cache")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return [line.split("; ") for line in done.stdout.splitlines()]


def test_what_is_claimed_is_compiled_whatever_else_fails(tmp_path: Path) -> None:
    rows = ["matmul dense bf16", *["softmax"] * (1 + precompile.WARM)]
    first, again = compiled_ahead(tmp_path, "claims", "again", basis="this Triton")
    assert first == rows, "it ends where nothing is left to compile"
    assert {path.stem for path in (tmp_path / "cache").glob("*/*.cubin")} == {"_row_softmax"}
    names = [path.name for path in (tmp_path / "claims").iterdir()]
    assert len([name for name in names if name.isdecimal()]) == len([n for n in names if "done" in n]) == len(rows)
    assert Claims(tmp_path / "claims").count() == (1, 1), "one process, one kernel"
    assert again == rows[:1], "what the cache is known to hold is left out"
    assert Claims(tmp_path / "again").finished(1), "who runs it need not leave it for later"


def test_processes_divide_the_cases_among_themselves(synthetic: Synthetic, tmp_path: Path) -> None:
    all_of_them = tuple(step.case for step in cases(synthetic, 3))
    first, second = (precompile.claimed(all_of_them, Claims(tmp_path)) for _ in range(2))
    taken = [next(first), next(second), next(second), *first, *second]
    assert taken == list(enumerate(all_of_them))


def cases(synthetic: Synthetic, number: int, **conditions: Any) -> list[Step]:
    """Both kinds of data of so many products."""
    spec = checks.load("matmul").spec
    return [
        Step(spec.case({"m": 4, "n": 8 + n, "k": 32}, data, 0), Conditions(**conditions))
        for n in range(number)
        for data in ("exact", "normal")
    ]


def test_kernels_do_not_depend_on_the_data(synthetic: Synthetic) -> None:
    whole = synthetic.plan(cases=1)

    def worth(steps: list[Step], **changes: Any) -> list[int]:
        return [case["n"] for case in supervisor._worth_compiling(replace(whole, steps=tuple(steps), **changes))]

    steps = cases(synthetic, 5)
    assert worth(steps) == [11, 12], "the ranks are at the first three"
    assert worth([replace(step, inapplicable="no") for step in steps]) == []
    assert worth(cases(synthetic, 5, cache="cold")) == []
    source = CheckSource(SourceKind.PROBLEM, ("matmul",), ("p.py", "c.py"), ("a", "b"))
    assert worth(steps, check_sources=(source,)) == [], "nothing that is not shut in loads a candidate"


def test_kernels_are_compiled_in_the_order_in_which_several_processes_launch_them(synthetic: Synthetic) -> None:
    """Which begin with the few cases that need a process of another kind."""
    usual, visible = cases(synthetic, 20)[: 2 * 16], cases(synthetic, 20, placement="visible")[2 * 16 :]
    whole = replace(synthetic.plan(cases=1), steps=(*usual, *visible))
    of = [[case["n"] for case in supervisor._worth_compiling(whole, at_once)] for at_once in (1, 4)]
    assert of == [[*range(11, 28)], [27, *range(8, 24)]]


class Forkserver:
    """Forks nothing and takes down what it is asked to send."""

    def __init__(self) -> None:
        self.sent: list[Setup | Ahead] = []
        self.connection, self.pid = self, 0

    def spawn(self) -> Forkserver:
        return self

    def send(self, message: Any) -> None:
        self.sent.append(message)
        raise BrokenPipeError  # as where the forkserver has died: the ranks find that out themselves


@pytest.fixture
def start(synthetic: Synthetic, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[Any]]:
    """What the processes are told that a supervisor starts before it goes through its plan."""

    def start(
        processors: int, run_plan: Callable[[Supervisor], None] = lambda _: None, rank: int = 1, **changes: Any
    ) -> list[Any]:
        for name, value in {"RANK": str(rank), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": "2"}.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("GPUCHECK_SCRATCH", str(tmp_path / "scratch"))
        monkeypatch.setattr(supervisor, "fair_threads", lambda: processors)
        monkeypatch.setattr(Supervisor, "_run_plan", run_plan)
        plan = replace(synthetic.plan(), steps=tuple(cases(synthetic, 5)), experiments=0.0, **changes)
        forkserver: Any = Forkserver()
        Supervisor(tmp_path, plan, forkserver, 0.0).work()
        return list(forkserver.sent)

    return start


def test_idle_processors_are_used_where_the_scenario_says_so(start: Callable[..., list[Any]], tmp_path: Path) -> None:
    own, *told = start(16, device="cuda", compile_ahead=True)
    assert isinstance(own, Setup) and own.local_rank == 1, "its own process need not wait for them at the driver"
    assert [each.processes for each in told] == [supervisor.COMPILERS], "which it forks when it has loaded the library"
    assert (told[0].device, told[0].claims, len(told[0].cases)) == (1, str(tmp_path / "scratch" / "ahead"), 2)
    assert start(4, device="cuda", compile_ahead=True)[1].processes == 2
    assert len(start(1, device="cuda", compile_ahead=True)) == 1
    assert start(16, device="cuda") == start(16, device="cpu", compile_ahead=True) == []


@pytest.mark.parametrize("rank", [0, 1])
def test_the_cache_names_what_a_run_has_launched_with_it(
    start: Callable[..., list[Any]], tmp_path: Path, rank: int
) -> None:
    """Once for a node, and no case whose process went down: its kernels may be missing."""
    known = KnownKernels.of(tmp_path, "this")
    steps = cases(Synthetic(), 5)

    def run_plan(self: Supervisor) -> None:
        Claims(tmp_path / "scratch" / supervisor.AHEAD).keep(str(known.file))
        for number, outcome in ((0, Outcome.PASS), (7, Outcome.MISMATCH), (8, Outcome.CRASH)):
            self._record(Record(number, steps[number].case.id, rank, outcome), str(number))

    start(16, run_plan, rank, device="cuda", compile_ahead=True)
    assert known.among([step.case for step in steps]) == ([] if rank else [6, 7]), (
        "the first ones are not compiled ahead"
    )


def test_without_a_gpu_there_is_nothing_to_compile_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_driver, "gpu", lambda number: None)
    precompile.work(Ahead((), 0, str(tmp_path / "claims"), "", ""))
    assert not list(tmp_path.iterdir())
