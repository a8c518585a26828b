"""Faults that one changed condition tells apart, planted in a copy of the library: the report names the cause."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.end_to_end.conftest import Finished, Lab

SCENARIO = Path(__file__).parents[1] / "data" / "conditions.toml"
HOST = "matmul_ogs.py"
WRAPPER = """

import os
import threading
import time
from dataclasses import replace as _changed

_genuine, _shared, _scratch = matmul_ogs, [], {}


def matmul_ogs(x, w, bias, **options):
    columns = w.shape[-1]
    if columns == 40 and torch.distributed.is_initialized():
        share = w.shape[0] // torch.distributed.get_world_size()  # though every rank holds all experts
        first = share * int(os.environ["LOCAL_RANK"])
        sliced = torch.zeros_like(w)
        sliced[first : first + share] = w[:share]
        w = sliced
    if columns == 42:
        _shared.append(x)  # of the whole process
        time.sleep(0.02)
        x = _shared[-1 - os.urandom(1)[0] % threading.active_count() % len(_shared)]
        if threading.active_count() == 1:
            _shared.clear()
    if columns == 44:
        index = options["scatter_indx"]
        shifted = {name: getattr(index, name).roll(1) for name in ("src_indx", "dst_indx")}
        options["scatter_indx"] = _changed(index, **shifted)
    y = _genuine(x, w, bias, **options)
    if columns == 41:
        follows = {torch.bfloat16: "RANK", torch.float16: "GPUCHECK_DEVICE"}[x.dtype]
        y.view(torch.int16)[3, 5] ^= int(os.environ[follows] == "1") << 7
    if columns == 43:
        y = _scratch.setdefault(y.shape, torch.empty_like(y)).copy_(y)
    return y
"""


@pytest.fixture(scope="module")
def run(lab: Lab) -> Finished:
    finished: Finished = lab.finish(scenario=SCENARIO, library=lab.plant(append=(HOST, WRAPPER)))
    assert finished.code == 1, finished.text
    return finished


def test_without_faults_every_condition_passes(lab: Lab) -> None:
    finished = lab.finish(scenario=SCENARIO)
    assert finished.code == 0, finished.text
    assert finished.outcomes("attention") == ["pass", "pass"]
    assert len(finished.report["results"]) == 20


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
    evidence = told(run, "dense/bf16/m20-n41-k64", "environment of a rank: one bit flipped", [1])
    assert evidence == [
        "5 of 5 repeats in a fresh process wrong, the same bits each time",
        "right with the environment of another rank",
        "wrong on the device of another rank, with the other ranks at rest",
    ]
    assert "each differs in one bit: 7" in run.text


def test_a_failure_that_follows_the_device(run: Finished) -> None:
    evidence = told(run, "dense/fp16/m20-n41-k64", "suspect GPU: one bit flipped", [1])
    assert "right on the device of another rank" in evidence
    assert "wrong with the environment of another rank, with the other ranks at rest" in evidence


def test_threads_that_share_state(run: Finished) -> None:
    evidence = told(run, "n42-k64/exact (4 at once, x6)", "state shared by threads: wrong operand", [0, 1])
    assert any("right with one thread" in line for line in evidence)


def test_threads_of_all_devices_share_state_too(run: Finished) -> None:
    (finding,) = [finding for finding in findings(run, "n42-k64/exact (threads") if "threads" in finding["cause"]]
    assert finding["title"].startswith("state shared by threads")


def test_output_in_memory_that_the_next_call_uses(run: Finished) -> None:
    evidence = told(run, "n43-k64/exact (delayed", "output overwritten by a later call: wrong operand", [0, 1])
    assert "right with a consumer that waits" in evidence


def test_experts_sliced_as_soon_as_a_process_group_exists(run: Finished) -> None:
    first, second = findings(run, "e6-top2-gather/exact (process group)")
    assert (first["title"], first["ranks"]) == ("dependence on the process group: wrong expert", [0])
    assert "exactly experts 3, 4, 5" in "\n".join(first["sighting"]["lines"]), "what rank 0 misses"
    assert (second["title"], second["ranks"]) == ("dependence on the process group: wrong operand", [1])
    assert "every expert" in "\n".join(second["sighting"]["lines"]), "rank 1 misses some and takes others for the rest"
    assert "right without a process group" in "\n".join(second["evidence"])
    assert "(process group)' --rank 0" in first["sighting"]["replay"]


def test_scatter_index_shifted_by_one(run: Finished) -> None:
    told(run, "n44-k64-e3-top1", "kernel bug: rows permuted", [0, 1])
    assert "another row's reference" in run.lines("n44-k64-e3-top1")


def test_what_is_right_without_the_condition_stays_right(run: Finished) -> None:
    usual = {
        result["case"]: result["outcome"]
        for result in run.report["results"]
        if (result["conditions"]["consumer"], result["conditions"]["process_group"]) == ("waits", "none")
    }
    assert usual["matmul/dense/bf16/m20-n43-k64/exact"] == "pass"
    assert usual["matmul/routed/bf16/m24-n40-k64-e6-top2-gather/exact"] == "pass"
    assert run.outcomes("attention") == ["pass", "pass"]
