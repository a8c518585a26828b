"""Kernels that users bring along, run by the command on two ranks: right ones, wrong ones, and ones that cheat."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from gpucheck.model.check_source import LARGE_PAIR
from tests.end_to_end.conftest import Finished, Lab

DATA = Path(__file__).parents[1] / "data"
WRONG = {
    "matmul": ("range(0, terms, BLOCK_K)", "range(0, terms // BLOCK_K * BLOCK_K, BLOCK_K)"),  # last terms left out
    "softmax": ('float("-inf")', "0.0"),  # columns that only fill the block up count as zeros
    "layernorm": ("centred, 0) / columns", "centred, 0) / (columns - 1)"),  # the variance is that of a sample
    "conv2d": (" & (from_column >= 0)", ""),  # at the left edge the end of the row above is seen
    "attention": ("out * carried[:, None] + tl.dot", "out + tl.dot"),  # earlier keys keep their scale
    "cumsum": ("carried += ", "carried = "),  # only the sum of the block before is carried on
    "gelu": (
        "0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))",
        "x * tl.sigmoid(1.5957691216057308 * (x + 0.044715 * x * x * x))",  # approximated by a tanh
    ),
    "maxpool": ('seen, other=float("-inf")', "seen, other=0.0"),  # the padding counts as zeros
    "rmsnorm": ("tl.sqrt(tl.sum(x * x, 0) / columns + epsilon)", "(tl.sqrt(tl.sum(x * x, 0) / columns) + epsilon)"),
    "cross_entropy": ("- right, 0.0)", "- right, 1.0)"),  # rows that only fill the block up add a loss
}
"""Problem -> what its right candidate says, and what a wrong one says instead."""
OFTEN = ("matmul", "softmax", "gelu", "maxpool")
"""Sums, one value for all of a row, single values, and no rounding; make torture runs the others."""
QUICK = ("--experiments", "0")
NOT_ON_CPU = ("cheat_kernels", "graph_replayed", "stream_half_ordered", "stream_ordered", "stream_unwaited")
CHEATS = sorted(path for path in (DATA / "cheats").glob("*.py") if path.stem not in NOT_ON_CPU)


def pairs(*found: tuple[Path, Path]) -> list[str]:
    """The options that name problems and their candidates."""
    return [word for problem, path in found for word in ("--problem", str(problem), "--candidate", str(path))]


def right_candidate(problem: str) -> tuple[Path, Path]:
    folder = DATA / "problems"
    return folder / f"{problem}.py", folder / f"{problem}_right.py"


def wrong_candidate(problem: str, folder: Path) -> tuple[Path, Path]:
    """The problem, and its right candidate with one thing wrong, written into a folder."""
    model, source = right_candidate(problem)
    text, instead = source.read_text(), WRONG[problem]
    assert text.count(instead[0]) == 1
    twin = folder / f"{problem}_wrong.py"
    twin.write_text(text.replace(*instead))
    return model, twin


def judged(lab: Lab, *names: str) -> Finished:
    """A run of right and wrong candidates of problems on two ranks."""
    folder = lab.new_folder()
    options = pairs(*(pair for name in names for pair in (right_candidate(name), wrong_candidate(name, folder))))
    finished: Finished = lab.forked(*options, *QUICK, scenario=None)
    return finished


@pytest.fixture(scope="module")
def problems(lab: Lab) -> Finished:
    return judged(lab, *OFTEN)


@pytest.fixture(scope="module")
def further_problems(lab: Lab) -> Finished:
    return judged(lab, *(name for name in WRONG if name not in OFTEN))


@pytest.fixture(scope="module", params=["files", pytest.param("shared memory", marks=pytest.mark.torture)])
def cheats(request: pytest.FixtureRequest, lab: Lab) -> Finished:
    """A run of all that cheat, whose tensors go through files, or as large ones through shared memory."""
    scenario = lab.new_folder() / "cheats.toml"
    scenario.write_text("".join(f'[[cases]]\ncheck = "{path.stem}"\n\n' for path in CHEATS))
    options = pairs(*((DATA / "problems" / "gelu.py", path) for path in CHEATS))
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "shared memory":
            patch.setenv(LARGE_PAIR, "1")
        finished: Finished = lab.finish(*options, *QUICK, scenario=scenario)
    return finished


@pytest.mark.parametrize(
    ("run", "name"),
    [
        ("problems", name) if name in OFTEN else pytest.param("further_problems", name, marks=pytest.mark.torture)
        for name in WRONG
    ],
)
def test_right_and_wrong_candidates_get_their_verdict_on_every_rank(
    request: pytest.FixtureRequest, run: str, name: str
) -> None:
    problems: Finished = request.getfixturevalue(run)
    assert problems.code == 1, problems.text
    for trial in (1, 2, 3):
        assert problems.outcomes(f"{name}_right/trial{trial}/") == ["pass", "pass"], problems.text
        assert problems.outcomes(f"{name}_wrong/trial{trial}/") == ["mismatch", "mismatch"]


def test_candidate_that_raises_as_the_plain_code_does_is_not_to_blame(lab: Lab) -> None:
    folder = lab.new_folder()
    plain, fast = folder / "plain.py", folder / "fast.py"
    body = "    def forward(self, x):\n        return x.nothing()\n"
    tail = "def get_inputs():\n    return [torch.ones(4)]\ndef get_init_inputs():\n    return []\n"
    plain.write_text(f"import torch\nclass Model(torch.nn.Module):\n{body}{tail}")
    fast.write_text(f"import torch\nclass ModelNew(torch.nn.Module):\n{body}")
    run = lab.forked(*pairs((plain, fast)), *QUICK, scenario=None, nproc=1)
    assert run.code == 3 and run.outcomes("fast/trial1/") == ["harness"], run.text
    assert "Model of the problem raised AttributeError" in run.text


def test_answers_that_no_input_changes_are_not_taken_for_kept_ones(lab: Lab) -> None:
    folder = lab.new_folder()
    text = "import torch\nclass {}(torch.nn.Module):\n def forward(self, x): return 0 * x + torch.arange({}.0, {}.0)\n"
    drawn = "def get_inputs(): return [torch.randn(5)]\ndef get_init_inputs(): return []\n"
    (folder / "fixed.py").write_text(text.format("Model", 0, 5) + drawn)
    for name, first in (("right", 0), ("wrong", 1)):
        (folder / f"{name}.py").write_text(text.format("ModelNew", first, first + 5))
    options = pairs(*((folder / "fixed.py", folder / f"{name}.py") for name in ("right", "wrong")))
    done = lab.forked(*options, *QUICK, scenario=None, nproc=1)
    for trial in (1, 2, 3):
        assert done.outcomes(f"right/trial{trial}") == ["pass"], done.text
        assert done.outcomes(f"wrong/trial{trial}") == ["mismatch"]
    assert "note  right: ModelNew has no kernel of its own; Model gives the same outputs for other inputs" in done.text


BIRTHS = """
import os as _os, sys as _sys, tempfile as _tempfile, time as _time
_tempfile.TemporaryFile().close()
_born = int(open("/proc/self/stat").read().rpartition(")")[2].split()[19])
_now = _time.clock_gettime(_time.CLOCK_BOOTTIME) * _os.sysconf("SC_CLK_TCK")
_there = open(f"/proc/{_os.getppid()}/task/{_os.getppid()}/children").read().split()
print("@", _os.getpid(), _born, _now, *_there, file=_sys.stderr, flush=True)
"""
"""Code of a candidate that prints its process, when that began and when it is loaded, and what its parent started."""


@pytest.mark.parametrize("ends", ["well", "early"])
def test_processes_of_further_calls_are_there_when_they_are_asked_and_none_stays_that_was_not(
    lab: Lab, ends: str
) -> None:
    folder = lab.new_folder()
    problem, right = right_candidate("gelu")
    fault = "" if ends == "well" else "\n\n_there_is_no_such_name\n"
    (folder / "tells.py").write_text(right.read_text() + BIRTHS + fault)
    done = lab.forked(*pairs((problem, folder / "tells.py")), *QUICK, scenario=None, nproc=1)
    assert done.outcomes("tells/trial3") == ["pass" if ends == "well" else "error"], done.text
    told = [line.split()[1:] for line in done.text.splitlines() if line.startswith("@ ")]
    pids = [int(pid) for pid, *_ in told]
    born, loaded = ([float(each[place]) for each in told] for place in (1, 2))
    if ends == "early":
        assert [int(pid) for pid in told[-1][3:]] == pids[-1:], "those of further calls are gone"
        return
    _, calls, idle, fresh, after = range(5)
    assert len(told) == 5 and len({*pids}) == 5, "each is asked for one thing"
    assert max(born[idle], born[fresh], born[after]) <= loaded[calls], "all began before any of them was asked"
    assert [int(pid) for pid in told[after][3:]] == [pids[after]], "none is left when the next trial runs"


def test_records_say_which_bound_is_used(problems: Finished) -> None:
    for result in problems.report["results"]:
        (basis,) = result["bounds"].values()
        exact = result["case"].startswith("maxpool")
        assert (
            "makes no rounding error" if exact else "16 runs with errors drawn at random, 12 deviations, longest sum"
        ) in basis
    assert "bound of out: derived from Model" in problems.lines("matmul_wrong/trial1")
    used = [result["tightness"] for result in problems.report["results"] if result["outcome"] == "pass"]
    assert max(used) > 0.05


def test_trials_have_inputs_of_their_own_and_ranks_share_them(problems: Finished) -> None:
    first, second = problems.results(0), problems.results(1)
    digests = {case: result["inputs"] for case, result in first.items()}
    assert digests == {case: result["inputs"] for case, result in second.items()}
    assert len(set(digests.values())) == len(digests)


def test_replay_of_a_candidate_brings_its_files_along(problems: Finished) -> None:
    command = shlex.split(problems.finding("gelu_wrong/trial2")["failed_case"]["replay"])
    assert command == ["gpucheck", "replay", str(problems.folder), "gelu_wrong/trial2/normal", "--rank", "0"]
    again = subprocess.run([sys.executable, "-m", *command], capture_output=True, text=True)
    assert again.returncode == 1, again.stdout + again.stderr
    assert "output    out: the bytes of the run" in again.stdout
    assert "worst 16 of " in again.stdout


def test_kernels_of_ones_own_need_neither_library_nor_network(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPUCHECK_CACHE_DIR", str(lab.new_folder()))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    run = lab.forked(*pairs(wrong_candidate("gelu", lab.new_folder())), *QUICK, scenario=None, library=None, nproc=1)
    assert run.code == 1 and "no library checked (no case needs one)" in run.text, run.text
    assert run.report["plan"]["library"]["origin"] == "none"
    replay = shlex.split(run.finding("gelu_wrong/trial1")["failed_case"]["replay"])
    for command, code in ((replay, 1), (["gpucheck", "diff", str(run.folder), str(run.folder)], 0)):
        again = subprocess.run([sys.executable, "-m", *command], capture_output=True, text=True)
        assert again.returncode == code and not again.stderr, again.stdout + again.stderr


IN_SHARED_MEMORY: dict[str, tuple[str, set[str], str]] = {
    "answers_when_read": ("error", set(), "the library or kernel raised")  # what it patches is called earlier there
}


def kinds(run: Finished, case: str) -> set[str]:
    results = [result for result in run.report["results"] if result["case"].startswith(case + "/")]
    rank, other = ({violation["kind"] for violation in result["violations"]} for result in results)
    assert rank == other, "each rank draws further calls of its own, whose numbers differ"
    return rank


@pytest.mark.parametrize(
    ("cheat", "outcome", "seen", "title"),
    [
        ("asks_torch", "violation", {"fallback"}, "fallback: kernel under test not launched"),
        ("idle_kernel", "violation", {"idle"}, "fallback: answer not made by the kernels launched"),
        ("changes_input", "violation", {"inputs"}, "changes its inputs"),
        ("in_place", "violation", {"inputs", "alias"}, "changes its inputs"),
        ("writes_nothing", "mismatch", {"passes differ"}, "undetermined: output not written"),
        ("patches_judge", "violation", {"idle"}, "fallback: answer not made by the kernels launched"),
        ("checks_its_kernel", "violation", {"idle"}, "fallback: answer not made by the kernels launched"),
        ("exits_without_kernels", "violation", {"process"}, "right output with a violation"),
        ("forges_reply", "crash", set(), "crash"),
        ("swaps_inputs", "mismatch", set(), "undetermined: zero instead of the result"),
        ("works_for_known", "violation", {"calls differ"}, "answer not from its inputs"),
        ("answers_when_read", "violation", {"calls differ"}, "answer not from its inputs"),
        ("by_content", "violation", {"cached", "launches"}, "answer not from its inputs"),
        ("idle_when_timed", "violation", {"cached"}, "answer not from its inputs"),
        ("first_answer", "violation", {"cached", "launches"}, "answer not from its inputs"),
        ("all_nan", "mismatch", set(), "undetermined: NaN"),
        ("gaps", "violation", {"layout"}, "output not as asked"),
        ("own_buffer", "violation", {"reused"}, "output overwritten by a later call"),
        ("other_shape", "violation", {"output"}, "output not as asked"),
        ("other_dtype", "violation", {"output"}, "output not as asked"),
        ("second_call", "violation", {"repeats differ"}, "undetermined: repeats differ"),
        ("constant", "mismatch", set(), "undetermined: zero instead of the result"),
        ("other_weights", "mismatch", set(), "undetermined: wrong scale"),
        ("cannot_load", "error", set(), "the library or kernel raised"),
    ],
)
def test_candidate_that_cheats_is_caught(
    request: pytest.FixtureRequest, cheats: Finished, cheat: str, outcome: str, seen: set[str], title: str
) -> None:
    if "shared memory" in request.node.name and cheat in IN_SHARED_MEMORY:
        outcome, seen, title = IN_SHARED_MEMORY[cheat]
    assert cheats.outcomes(f"{cheat}/") == [outcome, outcome], cheats.text
    assert kinds(cheats, cheat) == seen
    assert cheats.finding(f"{cheat}/")["title"] == title


def test_candidate_that_looks_for_references_finds_none(cheats: Finished) -> None:
    """It answers with zeros, or with what other runs on this machine leave open to it: how that is wrong is theirs."""
    assert cheats.outcomes("reads_reference/") == ["mismatch", "mismatch"], cheats.text
    assert kinds(cheats, "reads_reference") == set()
    assert sorted(rank for finding in cheats.findings("reads_reference/") for rank in finding["ranks"]) == [0, 1]


def test_candidate_that_knows_its_inputs_by_their_place_is_caught(cheats: Finished) -> None:
    """Whether a later call finds its inputs where others lay, and so gets their answer, is up to the allocator."""
    assert set(cheats.outcomes("by_place/")) <= {"violation", "mismatch"}
    finding = cheats.finding("by_place/")
    assert finding["title"] == "answer not from its inputs" and finding["ranks"] == [0, 1]
    words = (
        "with other inputs in the same memory the answer is still the one",
        "bit for bit the one that other inputs",
        "a second call with equal inputs launches no kernel",
    )
    assert any(part in "\n".join(finding["failed_case"]["lines"]) for part in words)


def test_candidate_that_is_honest_passes_beside_those_that_cheat(cheats: Finished) -> None:
    assert cheats.outcomes("honest/") == ["pass", "pass"] and kinds(cheats, "honest") == set(), cheats.text


def test_candidate_whose_bits_differ_from_call_to_call_passes_while_all_are_right(cheats: Finished) -> None:
    assert cheats.outcomes("any_order/") == ["pass", "pass"] and kinds(cheats, "any_order") == set(), cheats.text
    assert "any_order: equal inputs give other bits in each call" in cheats.text
    assert not [each for each in cheats.report["findings"] if "ranks disagree" in each["title"]]


def test_every_cheat_is_in_the_table(cheats: Finished) -> None:
    (mark,) = test_candidate_that_cheats_is_caught.pytestmark  # type: ignore[attr-defined]
    assert {row[0] for row in mark.args[1]} | {"any_order", "by_place", "honest", "reads_reference"} == {
        path.stem for path in CHEATS
    }
    assert len(cheats.report["results"]) == 2 * len(CHEATS)


def test_skeleton_passes_and_its_wrong_twin_fails(lab: Lab) -> None:
    folder = lab.new_folder()
    command = [sys.executable, "-m", "gpucheck", "new", "check", "double_it", "--dir", str(folder)]
    made = subprocess.run(command, capture_output=True, text=True, env=environment())
    assert made.returncode == 0, made.stderr
    scenario = folder / "double_it.toml"
    good, bad = (
        lab.forked("--check-file", str(folder / name), *QUICK, scenario=scenario)
        for name in ("double_it.py", "double_it_wrong.py")
    )
    assert good.code == 0, good.text
    assert good.outcomes("fp32/n1000/exact") == good.outcomes("bf16/n1000/normal") == ["pass", "pass"]
    assert {launch["source"] for result in good.results(0).values() for launch in result["launches"]} == {
        f"double_it.py:{line_of(folder / 'double_it.py', '_double_it_kernel[')}"
    }
    assert bad.code == 1, bad.text
    assert "out: values 896-999 of 1000, tile (7,) of 8" in bad.lines("fp32/n1000/exact")
    assert bad.finding("bf16/n1000/normal")["ranks"] == [0, 1]


def line_of(path: Path, text: str) -> int:
    (number,) = [number for number, line in enumerate(path.read_text().splitlines(), start=1) if text in line]
    return number


def test_file_that_changes_after_planning_is_not_loaded(lab: Lab) -> None:
    """The problem adds a line to itself when it is first executed, which planning does not do."""
    problem, (_, path) = lab.new_folder() / "moving.py", right_candidate("gelu")
    code = "\nwith open(__file__, 'a') as file:\n    file.write('# more\\n')\n"
    problem.write_text((DATA / "problems" / "gelu.py").read_text() + code)
    run = lab.forked(*pairs((problem, path)), scenario=None, nproc=1)
    assert run.code == 3, run.text
    assert run.outcomes("gelu_right/trial1") == ["harness"]
    assert run.finding("gelu_right/trial1")["title"] == "check that cannot be used"
    assert f"{problem} changed since the run was planned" in run.lines("gelu_right/trial1")


def test_plan_holds_what_the_ranks_load(problems: Finished) -> None:
    plan: dict[str, Any] = json.loads((problems.folder / "plan.json").read_text())
    assert len(plan["check_sources"]) == 2 * len(OFTEN)
    source = plan["check_sources"][0]
    assert source["kind"] == "problem" and source["checks"] == ["matmul_right"]
    assert source["files"] == [str(path) for path in right_candidate("matmul")]
    assert all(len(value) == 64 for value in source["hashes"])


def lab_templates() -> Path:
    import gpucheck

    return Path(gpucheck.__file__).parent / "templates" / "skeleton"


def environment() -> dict[str, str]:
    import os

    return {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}


def test_installed_package_offers_a_check(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    site = lab.new_folder()
    package = site / "their_kernels"
    package.mkdir()
    (package / "__init__.py").write_text("")
    template = (lab_templates() / "check.py.template").read_text()
    (package / "checks.py").write_text(template.replace("NAME", "theirs").replace("CLASS", "Theirs"))
    info = site / "their_kernels-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: their-kernels\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[gpucheck.checks]\ntheirs = their_kernels.checks:Theirs\n")
    monkeypatch.setenv("PYTHONPATH", str(site))
    scenario = site / "theirs.toml"
    scenario.write_text('[[cases]]\ncheck = "theirs"\ndata = "exact"\n')
    run = lab.forked(scenario=scenario, nproc=1)
    assert run.code == 0, run.text
    assert run.outcomes("theirs/fp32/n1000/exact") == ["pass"]
    assert run.report["plan"]["check_sources"][0]["target"] == "their_kernels.checks:Theirs"
    shutil.rmtree(info)
    unknown = lab.finish("--dry-run", scenario=scenario)
    assert unknown.code == 2 and "unknown check 'theirs'" in unknown.text


def test_compile_tells_of_a_grid_that_no_gpu_launches(tmp_path: Path) -> None:
    pytest.importorskip("triton")
    words = ["compile", "--check-file", str(DATA / "checks" / "long_grid.py"), "--target", "sm_90,gfx942"]
    command = [sys.executable, "-m", "gpucheck", *words, "--json", str(tmp_path / "report.json")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1, done.stdout + done.stderr
    for target in ("sm_90", "gfx942"):
        assert f"65,536 blocks on axis 1, at most 65,535 on {target}" in done.stdout
    for combination in json.loads((tmp_path / "report.json").read_text())["combinations"]:
        failed = {case["case"] for case in combination["cases"] if case["built"] == "failed"}
        assert (
            failed == {"long_grid/axis1-r65536/exact", "long_grid/axis2-r65536/exact"}
            and len(combination["cases"]) == 4
        )


WITHOUT_LANDLOCK = "from gpucheck.host import containment\ncontainment.landlock_version = lambda: 0\n"
FORGER = """
import json, os, signal
from pathlib import Path
import torch
from torch import nn

RUN = next(path for path in Path(os.environ["TORCHELASTIC_ERROR_FILE"]).parents if (path / "plan.json").exists())


def forge():
    parent = lambda pid: int(open(f"/proc/{{pid}}/stat").read().rpartition(")")[2].split()[1])
    if {kill}:
        supervisor = parent(os.getppid())
        if os.fork():
            signal.pause()
        os.setsid()  # it lives on when the one that it comes from ends with its supervisor
        os.kill(supervisor, signal.SIGKILL)
    records = RUN / "records" / "rank-00000.jsonl"
    plan = json.loads((RUN / "plan.json").read_text())
    forged = [{{"event": "start", "schema": 1, "rank": 0}}]
    for number, step in enumerate(plan["steps"]):
        forged.append({{"event": "result", "step": number, "case": step["id"], "rank": 0, "outcome": "pass"}})
    forged.append({{"event": "end"}})
    records.unlink()
    records.write_text("".join(json.dumps(line) + "\\n" for line in forged))
    plan["steps"] = plan["steps"][:1]
    (RUN / "plan.json").write_text(json.dumps(plan))


class ModelNew(nn.Module):
    def forward(self, x):
        forge()
        return torch.zeros_like(x)
"""


@pytest.mark.torture
@pytest.mark.parametrize("kill", [False, True])
def test_records_that_a_candidate_forges_do_not_count_where_no_wall_keeps_it_from_them(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, kill: bool
) -> None:
    folder = lab.new_folder()
    (folder / "sitecustomize.py").write_text(WITHOUT_LANDLOCK)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(folder), str(Path(__file__).parents[2])]))
    (folder / "forger.py").write_text(FORGER.format(kill=kill))
    pair = pairs((DATA / "problems" / "gelu.py", folder / "forger.py"))
    done = lab.finish(*pair, *QUICK, scenario=None, nproc=1)
    assert done.code == (3 if kill else 1), done.text
    assert "a candidate can have changed any file of this user here" in done.text or kill
    if not kill:
        assert [result["outcome"] for result in done.report["results"]] == ["mismatch"] * 3
        assert "records of rank 0 had been changed by another process" in done.text
    else:
        assert "the run did not end well" in done.text
