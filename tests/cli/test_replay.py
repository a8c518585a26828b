"""``gpucheck replay`` up to the ranks, and what it makes of what they wrote."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gpucheck.launch.torchrun import Ending
from gpucheck.library.copies import describe
from gpucheck.model.plan import Plan
from gpucheck.model.record import Outcome
from gpucheck.records.writer import RecordWriter
from tests.cli.conftest import Command, FakeRanks
from tests.conftest import Synthetic

CASE = "matmul/0/exact"


@pytest.fixture(autouse=True)
def environment() -> Iterator[None]:
    """What a replay does to the environment of its process ends with the test."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture
def stored(synthetic: Synthetic, library: str, here: Path, ranks: FakeRanks, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a run on the CPU with two ranks whose first case is wrong on rank 1."""
    copy = describe(Path(library.removeprefix("path:")) / "triton_kernels", "path")
    facts = {"root": str(copy.root), "package": str(copy.package), "origin": "path", "content": copy.content}
    plan = synthetic.plan(
        ranks=2,
        device="cpu",
        library={**facts, "name": copy.name, "generation": copy.generation},
        environment={"software": {"torch": {"version": "1"}}, "variables": {}, "host": os.uname().nodename},
    )
    run = synthetic.run(plan, {(0, 1): Outcome.MISMATCH})
    return synthetic.write(here / "run", run)


@pytest.fixture
def again(synthetic: Synthetic, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the ranks of the replay write; changes of the record of each rank."""
    changes: dict[str, Any] = {"plans": [], 0: {}, 1: {}}

    def launch(plan: Plan, folder: Path, _: object, watch: Callable[[], Any], early: object = None) -> Ending:
        changes["plans"].append(plan)
        for rank in range(plan.world_size):
            writer = RecordWriter(folder, rank)
            writer.start(import_seconds=0.5)
            told = {"outcome": Outcome.PASS, **changes[rank]}
            if told["outcome"] is not Outcome.LOST:
                writer.result(synthetic.record(plan, 0, rank, **told))
        return Ending(0, False, 0, 1.0)

    monkeypatch.setattr("gpucheck.launch.torchrun.launch", launch)
    return changes


def test_the_same_failure_is_a_failure(gpucheck: Command, stored: Path, again: dict[str, Any]) -> None:
    again[1] = {"outcome": Outcome.MISMATCH}
    answer = gpucheck("replay", "run", CASE)
    assert (answer.code, answer.err) == (1, "")
    assert answer.out.startswith(f"MISMATCH  {CASE} on rank 1; as in the run: mismatch\n")
    assert "the bytes of the run, digest d" in answer.out and "others    rank 0 pass" in answer.out
    (plan,) = again["plans"]
    assert len(plan.steps) == 1 and plan.replay.rank == 1 and plan.replay.save is False
    assert "kept" not in answer.out


@pytest.mark.parametrize(
    ("rank", "now", "code"),
    [
        ("0", {}, 0),
        ("1", {}, 0),
        ("1", {"outcome": Outcome.CRASH, "inputs": ""}, 1),
        ("1", {"outcome": Outcome.MISMATCH, "inputs": "other"}, 3),
        ("1", {"outcome": Outcome.INAPPLICABLE}, 3),
        ("1", {"outcome": Outcome.HARNESS, "message": "full"}, 3),
        ("1", {"outcome": Outcome.LOST}, 3),
    ],
)
def test_exit_codes(
    gpucheck: Command, stored: Path, again: dict[str, Any], rank: str, now: dict[str, Any], code: int
) -> None:
    again[int(rank)] = now
    answer = gpucheck("replay", "run", CASE, "--rank", rank)
    assert answer.code == code
    kept = re.search(r"^kept      (\S+): the case gave no result", answer.out, re.M)
    assert bool(kept) is (now.get("outcome") in (Outcome.HARNESS, Outcome.LOST)), "others leave nothing behind"
    if kept:
        assert (Path(kept[1]) / "records").is_dir()
        shutil.rmtree(kept[1])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["elsewhere", CASE], "elsewhere is no run folder"),
        (["run", "matmul/7/exact"], "run has no case 'matmul/7/exact'; it has 2"),
        (["run", CASE, "--rank", "2"], "--rank 2: the run in run has rank 0 to 1"),
        (["run", CASE, "--timeout", "0"], "--timeout is 0"),
        (["run", CASE, "--save", "run"], "--save run is not empty"),
        (["run", CASE, "--save", "run/plan.json"], "--save run/plan.json cannot be made: "),
        (["run", CASE, "--library", "path:nowhere"], "there is no such folder"),
    ],
)
def test_bad_arguments(
    gpucheck: Command, stored: Path, again: dict[str, Any], arguments: list[str], words: str
) -> None:
    answer = gpucheck("replay", *arguments)
    assert answer.code == 2 and words in answer.message and not again["plans"]


def test_another_library_is_told(gpucheck: Command, stored: Path, again: dict[str, Any], library: str) -> None:
    package = Path(library.removeprefix("path:")) / "triton_kernels"
    (package / "tensor.py").write_text("changed\n")
    answer = gpucheck("replay", "run", CASE)
    assert answer.code == 3 and f"{package}: its content is" in answer.message
    answer = gpucheck("replay", "run", CASE, "--library", library)
    assert answer.code == 2 and "a replay needs the same content" in answer.message


def test_a_run_folder_may_move(gpucheck: Command, stored: Path, again: dict[str, Any], here: Path) -> None:
    stored.rename(here / "moved")
    answer = gpucheck("replay", "moved", CASE, "--rank", "0")
    assert answer.code == 0 and " in moved\n" in answer.out


def test_gpus_that_are_not_there(gpucheck: Command, stored: Path, again: dict[str, Any]) -> None:
    plan = json.loads((stored / "plan.json").read_text())
    (stored / "plan.json").write_text(json.dumps({**plan, "device": "cuda"}))
    answer = gpucheck("replay", "run", CASE)
    assert answer.code == 3 and "the run had 2 GPU(s) a node, 0 are visible here" in answer.message


def test_what_is_not_as_in_the_run_is_noted(
    gpucheck: Command, stored: Path, again: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gpucheck.host.software.software", lambda _: {"torch": {"version": "2"}})
    again[1] = {"device": "NVIDIA B200"}
    text = gpucheck("replay", "run", CASE).out
    assert "note      torch is not as in the run: was 1 with" in text
    assert "note      the run had a NVIDIA H200 here, this is a NVIDIA B200" in text


def test_ranks_of_another_node_are_those_of_that_node(
    gpucheck: Command, stored: Path, again: dict[str, Any], synthetic: Synthetic, here: Path
) -> None:
    plan = Plan.from_json(json.loads((stored / "plan.json").read_text()))
    run = synthetic.run(replace(plan, nproc=1, nnodes=2), {(0, 1): Outcome.MISMATCH})
    synthetic.write(here / "two", run)
    answer = gpucheck("replay", "two", CASE)
    assert "on rank 1; the run had mismatch" in answer.out and "others" not in answer.out
