"""Many planted faults in one run, each told by the number of columns of its case: what the report says of each."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest

from gpucheck.diagnose.causes.undetermined import UNDETERMINED
from gpucheck.model.record import Outcome
from gpucheck.records.run_folder import read_plan
from gpucheck.tools.selftest.assess import assess
from gpucheck.tools.selftest.catalogue import FAULTS, choose
from gpucheck.tools.selftest.catalogue.common import attention, dense, routed
from gpucheck.tools.selftest.fault import Session, Target
from gpucheck.tools.selftest.injection import Planted
from gpucheck.tools.selftest.schedule import FaultRun
from tests.end_to_end.conftest import Finished, Lab

TRIED = ("kernel bug", "race", "decided anew", "state", "dependence", "output overwritten")
"""How titles begin that name a cause which takes experiments: the self-test shows those."""
ON_ALL = [
    fault
    for fault in FAULTS
    if Target.ALL in fault.targets and "cpu" in fault.machines and fault.session is Session.SHARED
    if not fault.expected.title.startswith(TRIED)
]
ON_ONE = [
    Planted(fault, (rank,)) for fault, rank in zip(choose(["exit", "segfault", "killed"]), (1, 0, 1), strict=True)
]
ON_ONE += [Planted(fault, (1,)) for fault in choose(["no-launch", "endless-loop", "bit-7"])]
BESIDE = (dense(100), routed(104), attention(20))


@pytest.fixture(scope="module")
def run(lab: Lab) -> Finished:
    planted = [*(Planted(fault, (0, 1)) for fault in ON_ALL), *ON_ONE]
    finished: Finished = lab.planted(*planted, groups=BESIDE, case_timeout=6, experiments=0)
    assert finished.code == 1, finished.text
    return finished


def mismatch(run: Finished, case: str, rank: int = 0) -> dict[str, Any]:
    (result,) = [result for result in run.report["results"] if case in result["case"] and result["rank"] == rank]
    (found,) = result["mismatches"]
    return dict(found)


@pytest.mark.parametrize("fault", ON_ALL, ids=lambda fault: str(fault.name))
def test_a_fault_on_all_ranks_is_told_as_declared(run: Finished, fault: Any) -> None:
    title = fault.expected.title.replace("{cause}", UNDETERMINED.title)  # nothing is repeated here
    fault = replace(fault, expected=replace(fault.expected, title=title))
    fault_run = FaultRun("all", "all", "cpu", 2, 0, (Planted(fault, (0, 1)),))
    (cell,) = assess(fault_run, run.report, run.text, run.code).cells
    assert not cell.inapplicable and cell.right, cell.problems


def test_the_printed_report_says_what_the_json_says(run: Finished) -> None:
    for finding in run.report["findings"]:
        for line in finding["cases"][0]["lines"]:
            assert line in run.text


@pytest.mark.parametrize("case", ["n43-", "n44-"])
def test_lost_precision_is_seen_within_an_ulp(run: Finished, case: str) -> None:
    found = mismatch(run, case)
    assert found["method"] == "bound"
    assert found["ulps"] <= 1
    assert found["wrong"] < found["total"]


def test_rounding_toward_zero_hits_half_of_the_elements(run: Finished) -> None:
    found = mismatch(run, "n44-")
    assert 0.3 < found["wrong"] / found["total"] < 0.7


def test_launch_without_effect_on_one_rank(run: Finished) -> None:
    assert run.outcomes("n46-") == ["pass", "mismatch"]
    found = mismatch(run, "n46-", rank=1)
    assert found["poison"] == found["total"]
    assert run.finding("n46-")["ranks"] == [1]


def test_flipped_bit_on_one_rank(run: Finished) -> None:
    assert run.outcomes("n61-") == ["pass", "mismatch"]
    assert mismatch(run, "n61-", rank=1)["bits"] == [7]
    assert "rank 0 clean" in run.lines("n61-")


def test_one_gate_names_the_token_of_its_row(run: Finished) -> None:
    assert f"token {token_of(run, row=11)} of 24," in run.lines("n73-")


def token_of(run: Finished, row: int) -> int:
    """The token whose result the expert-sorted ``row`` goes to."""
    from gpucheck.worker.supervisor import case_files

    case = next(step.case for step in read_plan(run.folder).steps if "n73-" in step.case.id)
    inputs = case_files._make_inputs(case)
    return int(inputs["to_flat"][row]) // int(case["top_k"])


@pytest.mark.parametrize(
    ("case", "rank", "words"),
    [
        ("n50-", 1, "ended with exit code 7"),
        ("n51-", 0, "was killed by SIGSEGV"),
        ("n52-", 1, "was killed by SIGKILL"),
    ],
)
def test_death_of_one_child(run: Finished, case: str, rank: int, words: str) -> None:
    outcomes = ["pass", "pass"]
    outcomes[rank] = "crash"
    assert run.outcomes(case) == outcomes
    finding = run.finding(case)
    assert (finding["title"], finding["ranks"]) == ("crash", [rank])
    assert run.lines(case).splitlines()[0] == f"the process that owns the device {words}"
    assert "outside of any Triton launch; under test: _matmul_ogs" in run.lines(case)


def test_endless_loop_names_its_place(run: Finished) -> None:
    assert run.outcomes("n54-") == ["pass", "hang"]
    finding = run.finding("n54-")
    assert (finding["title"], finding["ranks"]) == ("hang", [1])
    assert re.search(r"no result within 6 s, at \w+\.py:\d+ in loop_on_host", run.lines("n54-"))
    assert "matmul_ogs.py" in run.results(1)[finding["failed_case"]["case"]]["traceback"]


def test_cases_after_a_crash_run_on(run: Finished) -> None:
    for case in ("n100-", "n104-", "q20-"):
        assert run.outcomes(case) == ["pass", "pass"]
    spoiled = {result["outcome"] for result in run.report["results"]} & {Outcome.LOST.value, Outcome.HARNESS.value}
    assert not spoiled
    assert all("end" in {line["event"] for line in run.records(rank)} for rank in (0, 1))


def test_a_crash_names_the_command_that_repeats_it(run: Finished) -> None:
    replay = run.finding("n50-")["failed_case"]["replay"]
    assert replay == f"gpucheck replay {run.folder} matmul/dense/bf16/m20-n50-k96-persistent-no/exact --rank 1"
