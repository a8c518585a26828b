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
from gpucheck.worker.compile_claims import Claims
from gpucheck.worker.device import precompile
from gpucheck.worker.protocol import Ahead, Setup
from gpucheck.worker.supervisor import supervisor
from gpucheck.worker.supervisor.supervisor import Supervisor

pytest.importorskip("triton")

from tests.conftest import Synthetic

SCRIPT = """
import sys
from gpucheck import checks
from gpucheck.host import cuda_driver
from gpucheck.worker.device import precompile
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
precompile.work(Ahead(tuple(cases), 0, sys.argv[1], "", ""))
print(*compiled, sep="; ")
"""


def test_what_is_claimed_is_compiled_whatever_else_fails(tmp_path: Path) -> None:
    cache, repository = tmp_path / "cache", Path(__file__).parents[3]
    known = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, tmp_path / "claims"],
        env={**known, "PYTHONPATH": str(repository), "TRITON_CACHE_DIR": str(cache)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    rows = ["matmul dense bf16", *["softmax"] * (1 + precompile.WARM)]
    assert done.stdout.strip().split("; ") == rows, "it ends where nothing is left to compile"
    assert {path.stem for path in cache.glob("*/*.cubin")} == {"_row_softmax"}
    names = [path.name for path in (tmp_path / "claims").iterdir()]
    assert len([name for name in names if name.isdecimal()]) == len([n for n in names if "done" in n]) == len(rows)
    assert Claims(tmp_path / "claims").count() == (1, 1), "one process, one kernel"


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

    def start(processors: int, **changes: Any) -> list[Any]:
        for name, value in {"RANK": "1", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("GPUCHECK_SCRATCH", str(tmp_path / "scratch"))
        monkeypatch.setattr(supervisor, "fair_threads", lambda: processors)
        monkeypatch.setattr(Supervisor, "_run_plan", lambda self: None)
        plan = replace(synthetic.plan(), steps=tuple(cases(synthetic, 5)), experiments=0.0, **changes)
        forkserver: Any = Forkserver()
        Supervisor(tmp_path, plan, forkserver, 0.0).work()
        return list(forkserver.sent)

    return start


def test_idle_processors_are_used_where_the_scenario_says_so(start: Callable[..., list[Any]], tmp_path: Path) -> None:
    own, *told = start(16, device="cuda", compile_ahead=True)
    assert isinstance(own, Setup) and own.local_rank == 1, "its own process need not wait for them at the driver"
    assert len(told) == supervisor.COMPILERS
    assert (told[0].device, told[0].claims, len(told[0].cases)) == (1, str(tmp_path / "scratch" / "ahead"), 2)
    assert len(start(4, device="cuda", compile_ahead=True)) == 1 + 2
    assert len(start(1, device="cuda", compile_ahead=True)) == 1
    assert start(16, device="cuda") == start(16, device="cpu", compile_ahead=True) == []


def test_without_a_gpu_there_is_nothing_to_compile_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_driver, "gpu", lambda number: None)
    precompile.work(Ahead((), 0, str(tmp_path / "claims"), "", ""))
    assert not list(tmp_path.iterdir())
