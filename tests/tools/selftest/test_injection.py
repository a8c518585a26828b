"""Planted copies: each rank gets its own faults, and nothing else changes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from gpucheck.model.record import Outcome
from gpucheck.tools.selftest.catalogue import choose
from gpucheck.tools.selftest.fault import OWN_KERNEL, Edit, Expected, Fault, Hook
from gpucheck.tools.selftest.injection import Injector, Planted

REPOSITORY = Path(__file__).parents[3]
EXPECTED = Expected(Outcome.MISMATCH, ".*")
VALUE = "VALUE = 1\n"


def fault(name: str, text: str, file: str = "matmul_ogs.py", anchor: str = VALUE) -> Fault:
    return Fault(name, name, Edit(file, anchor, text), {"check": "matmul", "n": 3}, EXPECTED)


@pytest.fixture
def library(tmp_path: Path) -> Path:
    """A library whose module tells what was done to it."""
    package = tmp_path / "genuine" / "triton_kernels"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "matmul_ogs.py").write_text(VALUE + "def matmul_ogs(*_, **__):\n    return VALUE\n")
    return package


def run(code: str, path: Path, *, worker: bool = False, **environment: str) -> str:
    """What Python code prints with a folder first on its path; as a worker it is taken for a process of a rank."""
    paths = os.pathsep.join([str(path), str(REPOSITORY)])
    variables = {**os.environ, "PYTHONPATH": paths, "PYTHONDONTWRITEBYTECODE": "1", **environment}
    command = [sys.executable, "-c", code, *["gpucheck.worker"] * worker]
    done = subprocess.run(command, env=variables, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_each_rank_takes_its_own_faults(tmp_path: Path, library: Path) -> None:
    injector = Injector(tmp_path / "planted", library, ranks=3)
    planted = [Planted(fault("two", "VALUE = 2\n"), (1,)), Planted(fault("more", "{anchor}VALUE += 4\n"), (2,))]
    package = injector.library_with(planted)
    code = "from triton_kernels import matmul_ogs; print(matmul_ogs.VALUE)"
    assert [run(code, package.parent, RANK=str(rank)) for rank in range(3)] == ["1", "2", "5"]
    assert (library / "matmul_ogs.py").read_text().startswith(VALUE), "the library itself is left alone"


def test_nothing_to_plant_leaves_the_library_where_it_is(tmp_path: Path, library: Path) -> None:
    injector = Injector(tmp_path / "planted", library, ranks=2)
    assert injector.library_with([]) == library
    assert injector.startup_with([]) is None
    assert not injector.folder.exists()


def test_a_hook_goes_around_calls_with_its_columns(tmp_path: Path, library: Path) -> None:
    torch = pytest.importorskip("torch")
    from gpucheck.tools.selftest.matmul_faults import wrapped

    def genuine(x: object, w: object, bias: object) -> object:
        return torch.ones(8, 8, dtype=torch.bfloat16)

    call = wrapped(genuine, {7: ("flip_bit", "0")})
    right, wrong = (call(None, torch.ones(4, columns), None).view(torch.int16) for columns in (8, 7))
    assert (right != wrong).nonzero().tolist() == [[3, 5]]
    assert int((right ^ wrong)[3, 5]) == 1


def test_the_rank_it_is_planted_on_reaches_a_hook(tmp_path: Path, library: Path) -> None:
    planted = Fault("race", "", Hook("race_to_compile", "{rank}"), {"check": "matmul", "n": 5}, EXPECTED, spread=True)
    package = Injector(tmp_path / "planted", library, ranks=2).library_with([Planted(planted, (1,))])
    for rank in (0, 1):
        assert "{5: ('race_to_compile', '1')}" in (package / "_planted" / str(rank) / "matmul_ogs.py").read_text()


def test_a_kernel_of_our_own_is_found_in_its_private_copy(tmp_path: Path, library: Path) -> None:
    planted = [Planted(item, (1,)) for item in choose(["causal-mask", "sliding-window"])]
    folder = Injector(tmp_path / "planted", library, ranks=2).startup_with(planted)
    assert folder is not None
    code = f"import importlib.util; print(importlib.util.find_spec({OWN_KERNEL!r}).origin)"
    own, genuine = (Path(run(code, folder, RANK=rank, worker=True)) for rank in ("1", "0"))
    assert tmp_path in own.parents and "q_len == 150" in own.read_text() and "q_len == 61" in own.read_text()
    assert genuine == REPOSITORY / "gpucheck" / "checks" / "kernels" / "flash_attention_kernel.py"


def test_other_processes_than_those_of_a_rank_start_as_ever(tmp_path: Path, library: Path) -> None:
    (lost,) = choose(["never-starts"])
    folder = Injector(tmp_path / "planted", library, ranks=2).startup_with([Planted(lost, (0,))])
    assert folder is not None
    code = "import os; pid = os.fork() or os._exit(0); print(os.waitpid(pid, 0)[1])"
    assert run(code, folder, RANK="0") == "0"


def test_startup_code_that_was_there_before_still_runs(tmp_path: Path, library: Path) -> None:
    (lost,) = choose(["never-starts"])
    folder = Injector(tmp_path / "planted", library, ranks=2).startup_with([Planted(lost, (0,))])
    (tmp_path / "sitecustomize.py").write_text("import builtins\nbuiltins.here = True\n")
    assert folder is not None
    paths = os.pathsep.join([str(folder), str(tmp_path)])
    assert run("print(here)", Path(paths)) == "True"


def test_a_candidate_cheats_on_its_ranks_and_an_honest_one_goes_beside_it(tmp_path: Path, library: Path) -> None:
    pytest.importorskip("triton")
    chosen = choose(["kept-answers", "bit-7"])
    injector = Injector(tmp_path / "planted", library, ranks=2)
    assert injector.candidates_with([Planted(chosen[1], (1,))]) == []
    options = injector.candidates_with([Planted(fault, (1,)) for fault in chosen])
    assert [Path(path).stem for path in options[3::4]] == ["kept_answers", "honest"]
    problem, candidate = options[1], options[3]
    assert "Model, get_init_inputs, get_inputs" in Path(problem).read_text()
    each_rank = (
        f"import os, sys\nsys.path.append({str(Path(candidate).parent)!r})\n"
        f"for os.environ['RANK'] in '01':\n    exec(open({candidate!r}).read())\n"
        "    print(ModelNew.__module__.rpartition('.')[2], ModelNew.__name__)"
    )
    assert run(each_rank, tmp_path).splitlines() == ["planted_twins KeptAnswers", "planted_cheats KeptAnswers"]
