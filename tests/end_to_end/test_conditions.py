"""Faults that one changed condition tells apart, planted in a copy of the library: the report names the cause."""

from __future__ import annotations

from typing import Any

import pytest

from gpucheck.tools.selftest.catalogue import choose
from gpucheck.tools.selftest.catalogue.common import attention, dense
from gpucheck.tools.selftest.injection import Planted
from tests.end_to_end.conftest import Finished, Lab

ONE = [Planted(fault, (1,)) for fault in choose(["bit-7", "bit-of-a-gpu"])]
ALL = [Planted(fault, (0, 1)) for fault in choose(["group-slices-experts"])]
COSTLY = [Planted(fault, (0, 1)) for fault in choose(["shared-state", "reused-output", "shifted-scatter"])]
"""Each takes 60 to 90 processes before nothing can be luck."""
THREADS = (dense(75, placement="threads", repeat=12), dense(76))
BESIDE = (attention(16),)
LIMITS = {"case_timeout": 20, "experiments": 400}


@pytest.fixture(scope="module")
def run(lab: Lab) -> Finished:
    finished: Finished = lab.planted(*ONE, *ALL, groups=BESIDE, **LIMITS)
    assert finished.code == 1, finished.text
    return finished


@pytest.fixture(scope="module")
def costly(lab: Lab) -> Finished:
    finished: Finished = lab.planted(*COSTLY, groups=THREADS, **LIMITS)
    assert finished.code == 1, finished.text
    return finished


def test_without_faults_every_condition_passes(lab: Lab) -> None:
    cases = [*(item.fault.case for item in (*ONE, *ALL, *COSTLY)), *THREADS, *BESIDE]
    finished = lab.planted(groups=cases, **LIMITS)
    assert finished.code == 0, finished.text
    assert len(finished.report["results"]) == 2 * len(cases)


def findings(run: Finished, case: str) -> list[dict[str, Any]]:
    """The findings of the cases whose label contains ``case``, by rank."""
    return sorted(run.findings(case), key=lambda finding: list(finding["ranks"]))


def told(run: Finished, case: str, title: str, ranks: list[int]) -> list[str]:
    """Asserts the only finding of a case and gives its evidence."""
    (finding,) = findings(run, case)
    assert (finding["title"], finding["ranks"]) == (title, ranks)
    assert finding["title"] in run.text, "the text report leaves the title out"
    for line in finding["evidence"]:
        assert line in run.text
    return list(finding["evidence"])


def test_a_failure_that_follows_the_environment_of_a_rank(run: Finished) -> None:
    evidence = told(run, "dense/bf16/m20-n61-", "environment of a rank: one bit flipped", [1])
    assert evidence[:2] == [
        "wrong in 6 of 6 fresh processes, the same bits in each call: deterministic",
        "right with the environment of another rank (8 processes)",
    ]
    assert evidence[2].startswith("wrong on the device of another rank")
    assert "each differs in one bit: 7" in run.text


def test_a_failure_that_follows_the_device(run: Finished) -> None:
    evidence = told(run, "dense/fp16/m20-n63-", "suspect GPU: one bit flipped", [1])
    assert "right on the device of another rank (8 processes)" in evidence
    assert any(line.startswith("wrong with the environment of another rank") for line in evidence)


@pytest.mark.torture
def test_threads_that_share_state(costly: Finished) -> None:
    evidence = told(costly, "(4 at once, x6)", "state shared by threads: wrong operand", [0, 1])
    assert any("right with one thread" in line for line in evidence)


@pytest.mark.torture
def test_threads_of_all_devices_share_state_too(costly: Finished) -> None:
    (finding,) = [finding for finding in findings(costly, "/exact (threads") if "threads" in finding["cause"]]
    assert finding["title"].startswith("state shared by threads")


@pytest.mark.torture
def test_output_in_memory_that_the_next_call_uses(costly: Finished) -> None:
    evidence = told(costly, "/exact (delayed", "output overwritten by a later call: wrong operand", [0, 1])
    assert evidence
    assert "lies in memory that an earlier call returned, and overwrites that" in costly.lines("/exact (delayed")


def test_experts_sliced_as_soon_as_a_process_group_exists(run: Finished) -> None:
    first, second = findings(run, "/exact (process group)")
    assert (first["title"], first["ranks"]) == ("dependence on the process group: wrong expert", [0])
    assert "exactly experts 3, 4, 5" in "\n".join(first["failed_case"]["lines"]), "what rank 0 misses"
    assert (second["title"], second["ranks"]) == ("dependence on the process group: wrong operand", [1])
    assert "every expert" in "\n".join(second["failed_case"]["lines"]), (
        "rank 1 misses some and takes others for the rest"
    )
    assert "right without a process group" in "\n".join(second["evidence"])
    assert "(process group)' --rank 0" in first["failed_case"]["replay"]


@pytest.mark.torture
def test_scatter_index_shifted_by_one(costly: Finished) -> None:
    told(costly, "n72-k64-e3-top1", "kernel bug: rows permuted", [0, 1])
    assert "another row's reference" in costly.lines("n72-k64-e3-top1")


def of_waiting(run: Finished) -> list[dict[str, Any]]:
    """The results whose output is waited for, and without a process group."""
    usual = ("waits", "none")
    results = run.report["results"]
    return [r for r in results if (r["conditions"]["consumer"], r["conditions"]["process_group"]) == usual]


def test_what_is_right_without_the_condition_stays_right(run: Finished) -> None:
    found = {result["case"]: result["outcome"] for result in of_waiting(run)}
    assert found["matmul/routed/bf16/m24-n74-k96-e6-top2-gather-persistent-no/exact"] == "pass"
    assert run.outcomes("attention") == ["pass", "pass"]


@pytest.mark.torture
def test_whoever_waits_reads_right_numbers_from_memory_that_is_not_the_calls_own(costly: Finished) -> None:
    reused = [r for r in of_waiting(costly) if r["case"] == "matmul/dense/bf16/m20-n76-k96-persistent-no/exact"]
    assert {result["outcome"] for result in reused} == {"violation"}
    assert not any(result["mismatches"] for result in reused)
