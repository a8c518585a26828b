"""Inputs and references: made once for all ranks, by whoever is alive, and removed after the last one."""

from __future__ import annotations

import fcntl
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from gpucheck import checks
from gpucheck.checks import sources
from gpucheck.verify.bounds import Estimate
from gpucheck.verify.expected import Expected
from gpucheck.worker import further_inputs
from gpucheck.worker.protocol import OWN, Answer, Draw
from gpucheck.worker.supervisor import case_files as module
from gpucheck.worker.supervisor.attempt import NoOutputs, discard, read_outputs
from gpucheck.worker.supervisor.case_files import CaseFiles
from tests.processes import wait_until

CASE = checks.load("matmul").spec.case({"m": 8, "n": 16, "k": 32}, "normal", seed=3)
fork = multiprocessing.get_context("fork")


@pytest.fixture
def processes() -> Iterator[list[Any]]:
    """Processes started by a test; those still running are killed after it."""
    started: list[Any] = []
    yield started
    for process in started:
        process.kill()
        process.join()


def start(processes: list[Any], work: Callable[[], None]) -> Any:
    process = fork.Process(target=work)
    process.start()
    processes.append(process)
    return process


def noted(file: Path, seconds: float, make: Callable[[], Any]) -> Callable[..., Any]:
    """``make``, slowed down, that leaves a line in ``file`` at each call."""

    def making(*_: Any) -> Any:
        with open(file, "a") as log:
            log.write(f"{os.getpid()}\n")
        time.sleep(seconds)
        return make()

    return making


def test_what_elements_may_be_as_well_travels_with_the_reference(tmp_path: Path) -> None:
    check = checks.load("matmul")
    case = check.spec.case({"m": 14, "n": 16, "k": 64, "weight": "mxfp4"}, "wide", seed=3)
    inputs = check.inputs(case, torch.Generator().manual_seed(case.input_seed))
    also = CaseFiles(tmp_path, 1).reference("0", case)["y"].also
    assert also is not None and torch.equal(also, check.reference(case, inputs)["y"].also) and bool((also > 0).any())


def test_views_keep_their_strides_on_the_way_through_the_file(tmp_path: Path) -> None:
    case = checks.load("matmul").spec.case({"m": 8, "n": 16, "k": 32, "operands": "views"}, "normal", seed=3)
    held = torch.load(CaseFiles(tmp_path, 1).inputs("0", case), mmap=True, weights_only=True)
    assert (held["x"].stride(), held["x"].storage_offset()) == ((64, 1), 16)
    assert held["w"].stride() == (1, 64)


def test_inputs_and_reference_are_those_of_the_check(tmp_path: Path) -> None:
    made = CaseFiles(tmp_path, 1)
    inputs = torch.load(made.inputs(0, CASE), weights_only=True)
    check = checks.load("matmul")
    fresh = check.inputs(CASE, torch.Generator().manual_seed(CASE.input_seed))
    assert inputs.keys() == fresh.keys()
    assert all(torch.equal(inputs[name], fresh[name]) for name in inputs)
    expected = check.reference(CASE, fresh)["y"]
    stored = made.reference(0, CASE)["y"]
    assert stored.dtype == expected.dtype
    assert torch.equal(stored.estimate.value, expected.estimate.value)
    assert torch.equal(stored.estimate.error, expected.estimate.error)


@pytest.fixture
def candidate(tmp_path: Path) -> Iterator[Any]:
    """A case of a candidate, whose inputs and weights the problem draws."""
    data = Path(__file__).parents[2] / "data" / "problems"
    (source,), _ = sources.find([], [str(data / "matmul.py")], [str(data / "matmul_right.py")], checks.CHECKS)
    checks.activate([source])
    yield checks.load("matmul_right").spec.case({"trial": 1}, "normal", 0)
    checks.activate([])


def test_the_reference_of_a_candidate_is_in_no_file(tmp_path: Path, candidate: Any) -> None:
    made = CaseFiles(tmp_path / "store", 2)
    made.make_ahead("0", candidate)
    expected = made.reference("0", candidate)["out"]
    files = [path for path in (tmp_path / "store").iterdir() if path.stat().st_size]
    assert {path.name for path in files} == {"0.inputs", "0.digest"}
    held = torch.load(made.inputs("0", candidate), weights_only=True)
    assert not any(value.dtype == torch.float64 for value in held.values())
    assert not any(torch.equal(value.double(), expected.estimate.value) for value in held.values())
    assert made.reference("0", candidate)["out"] is expected, "made once"
    made.done("0", 0)
    assert made.reference("0", candidate)["out"] is not expected, "and let go of"


def test_a_candidate_is_judged_by_inputs_that_it_cannot_write(tmp_path: Path, candidate: Any) -> None:
    first, second = CaseFiles(tmp_path / "store", 2), CaseFiles(tmp_path / "other", 2)
    path = first.inputs("0", candidate)
    held = torch.load(path, weights_only=True)
    torch.save({name: torch.zeros_like(value) for name, value in held.items()}, path)
    values = [files.reference("0", candidate)["out"].estimate.value for files in (first, second)]
    assert torch.equal(*values) and bool(values[0].any())
    assert torch.equal(first.given("0", candidate)["input0"], held["input0"])


class OfRank:
    """Stands for the process that makes references, of one rank: it says where it was told to put things."""

    def __init__(self, local_rank: int) -> None:
        self.local_rank, self.told = local_rank, list[str]()

    def place(self, case: Any, path: str, folder: str) -> Answer:
        self.told += [path, folder]
        return Answer(large=True, inputs="d", box=f"{folder}/outputs.box")


def test_ranks_of_a_node_keep_large_pairs_of_one_case_apart(tmp_path: Path, candidate: Any) -> None:
    desks: list[Any] = [OfRank(0), OfRank(1)]
    for desk in desks:
        files = CaseFiles(tmp_path / "store", 2)
        files.desk = desk
        assert str(files.inputs("0", candidate)) == desk.told[0] and files.box("0").startswith(desk.told[1])
    first, second = (desk.told for desk in desks)
    assert len({*first, *second}) == 4 and all(Path(path).parent.is_dir() for path in (*first, *second))


def test_a_large_pair_whose_shared_memory_another_has_taken_is_drawn_anew(tmp_path: Path, candidate: Any) -> None:
    files, desk = CaseFiles(tmp_path / "store", 1), OfRank(0)
    files.desk = desk  # type: ignore[assignment]
    for key, placed in (("0", 1), ("0", 1), ("1", 2), ("0", 3), ("0", 3)):
        files.inputs(key, candidate)
        assert len(desk.told) == 2 * placed and files.box(key)
    assert not files.box("1")


def test_digest_tells_inputs_apart(tmp_path: Path) -> None:
    made = CaseFiles(tmp_path, 1)
    other = checks.load("matmul").spec.case({"m": 8, "n": 16, "k": 32}, "normal", seed=4)
    digests = [made.input_digest(0, CASE), made.input_digest(1, CASE), made.input_digest(2, other)]
    assert digests[0] == digests[1] != digests[2]


@pytest.mark.parametrize("layout", ["dense", "views"])
def test_inputs_made_ahead_have_the_digest_of_their_file(tmp_path: Path, layout: str) -> None:
    case = checks.load("matmul").spec.case({"m": 8, "n": 16, "k": 32, "operands": layout}, "normal", seed=3)
    ahead, asked = CaseFiles(tmp_path / "ahead", 1), CaseFiles(tmp_path / "asked", 1)
    ahead.make_ahead("0", case)
    assert (tmp_path / "ahead" / "0.digest").read_text() == asked.input_digest("0", case)


def test_alternatives_and_exactness_survive_storage() -> None:
    exact = Estimate(torch.tensor([1.0, 2.0], dtype=torch.float64), None, 0.5)
    other = Estimate(torch.tensor([1.0, 4.0], dtype=torch.float64), None, 0.5)
    packed = module._pack({"y": Expected(exact, torch.uint8, alternatives=(other,))})
    item = module._unpack(packed)["y"]
    assert item.estimate.exact
    assert item.estimate.unit == 0.5
    assert [part.value.tolist() for part in item.alternatives] == [[1.0, 4.0]]


def test_two_ranks_at_once_make_it_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, processes: list[Any]) -> None:
    log = tmp_path / "log"
    make = module._make_inputs
    monkeypatch.setattr(module, "_make_inputs", noted(log, 0.3, lambda: make(CASE)))
    folder = tmp_path / "store"
    ranks = [start(processes, lambda: CaseFiles(folder, 2).inputs(0, CASE)) for _ in range(2)]
    for rank in ranks:
        rank.join(300)
        assert rank.exitcode == 0
    assert len(log.read_text().splitlines()) == 1
    assert not list(folder.glob("*.partial"))


def slow_maker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, processes: list[Any]) -> Any:
    """A rank's process that has begun to make inputs, and takes ten minutes for it."""
    log, make = tmp_path / "log", module._make_inputs
    monkeypatch.setattr(module, "_make_inputs", noted(log, 600, lambda: make(CASE)))
    maker = start(processes, lambda: CaseFiles(tmp_path / "store", 2).inputs(0, CASE))
    wait_until(log.exists)
    return maker


def test_next_rank_takes_over_from_a_maker_that_was_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, processes: list[Any]
) -> None:
    folder, make = tmp_path / "store", module._make_inputs
    maker = slow_maker(tmp_path, monkeypatch, processes)
    monkeypatch.setattr(module, "_make_inputs", make)
    waiter = start(processes, lambda: CaseFiles(folder, 2).inputs(0, CASE))
    waiter.join(0.3)
    assert waiter.exitcode is None, "the second rank did not wait for the first"
    os.kill(maker.pid, signal.SIGKILL)
    waiter.join(120)
    assert waiter.exitcode == 0
    assert torch.load(folder / "0.inputs", weights_only=True).keys() == make(CASE).keys()


def test_make_ahead_does_not_wait_for_another_rank(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, processes: list[Any]
) -> None:
    folder = tmp_path / "store"
    slow_maker(tmp_path, monkeypatch, processes)
    begin = time.monotonic()
    CaseFiles(folder, 2).make_ahead(0, CASE)
    assert time.monotonic() - begin < 60
    assert not (folder / "0.inputs").exists()


@pytest.mark.parametrize("at_it", [False, True])
def test_what_is_missing_beside_inputs_that_a_rank_made_itself_is_made_ahead(tmp_path: Path, at_it: bool) -> None:
    """Else whoever judges makes the reference, and other outputs wait."""
    made = CaseFiles(tmp_path, 1)
    made.inputs("0", CASE)
    with open(tmp_path / "0.reference.lock", "w") as lock:
        if at_it:
            fcntl.flock(lock, fcntl.LOCK_EX)
        made.make_ahead("0", CASE)
    assert [(tmp_path / f"0.{kind}").exists() for kind in module.KINDS] == [True, True, not at_it]


def test_failure_to_make_leaves_no_file_and_frees_the_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(case: Any) -> Any:
        raise ValueError("planted")

    made = CaseFiles(tmp_path, 1)
    with monkeypatch.context() as patch:
        patch.setattr(module, "_make_inputs", fail)
        with pytest.raises(ValueError, match="planted"):
            made.inputs(0, CASE)
    assert not (tmp_path / "0.inputs").exists()
    assert made.inputs(0, CASE).exists()


def test_last_rank_removes_the_files(tmp_path: Path) -> None:
    made = CaseFiles(tmp_path, 2)
    made.make_ahead(0, CASE)
    assert {path.name for path in tmp_path.glob("0.*") if path.stat().st_size} == {
        "0.inputs",
        "0.digest",
        "0.reference",
    }
    assert made.size() > 0
    made.done(0, 0)
    assert made.reference(0, CASE)
    made.done(0, 0)
    assert (tmp_path / "0.inputs").exists(), "one rank that says done twice is not two ranks"
    made.done(0, 1)
    assert made.size() == 0


def test_what_is_held_stays_as_far_as_there_is_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = CaseFiles(tmp_path, 2)
    for key in "01":
        made.make_ahead(key, CASE)
    monkeypatch.setattr(module, "MOST_HELD", made.size() * 3 // 4)
    assert (made.hold("0"), made.hold("1")) == (True, False)
    assert (made.holds("0"), made.holds("1")) == (True, False)
    made.done("0", 1)
    assert (tmp_path / "0.inputs").exists(), "this rank is not done with it"
    made.release("0")
    assert made.hold("1") and not made.holds("0")


def test_what_is_made_too_late_is_removed(tmp_path: Path) -> None:
    made = CaseFiles(tmp_path, 1)
    made.done(0, 0)
    made.make_ahead(0, CASE)
    assert made.size() == 0


def test_one_process_looks_for_room_while_others_wait_for_it_without_looking(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Eight that each listed the folder twenty times a second took 18 s of the processors of a gate."""
    made, right = CaseFiles(tmp_path, 1), CaseFiles.size
    made.make_ahead("0", CASE)
    looks: list[int] = []
    slept: list[float] = []
    monkeypatch.setattr(module.time, "sleep", slept.append)
    monkeypatch.setattr(CaseFiles, "size", lambda self: (right(self), looks.append(0))[0])
    waiting = [threading.Thread(target=made.wait_for_room, args=(0,)) for _ in range(3)]
    with open(tmp_path / "room.lock", "w") as looking:
        fcntl.flock(looking, fcntl.LOCK_EX)
        for thread in waiting:
            thread.start()
        while len(looks) < len(waiting):
            threading.Event().wait(0.001)
        made.done("0", 0)
    for thread in waiting:
        thread.join()
    assert not slept and len(looks) == 2 * len(waiting), "once before it waits and once after"


def test_references_have_the_bounds_of_the_device_that_is_named(tmp_path: Path) -> None:
    """Under Hopper's bounds, which held everywhere, errors of all elements alike were right on the CPU."""
    from gpucheck.verify import bounds
    from gpucheck.verify.judge import compare

    case = checks.load("matmul").spec.case({"m": 33, "n": 40, "k": 64, "weight": "fp8_e4m3"}, "normal", seed=0)
    wrong = {}
    for device in ("interpreter", "sm_90"):
        files = CaseFiles(tmp_path / device, 1, lambda name=device: bounds.ARITHMETIC[name])
        estimate = files.reference("0", case)["y"].estimate
        right, large = ((estimate.value * factor).float() for factor in (1.0, 1.0005))
        assert not compare(right, estimate)[0].any()
        wrong[device] = float(compare(large, estimate)[0].double().mean())
    assert wrong["interpreter"] > 0.99 and wrong["sm_90"] == 0


def test_outputs_of_a_large_pair_are_judged_once_for_their_case_their_inputs_and_their_bits(tmp_path: Path) -> None:
    files, asked = CaseFiles(tmp_path / "store", 1), list[Any]()
    files.desk = SimpleNamespace(  # type: ignore[assignment]
        ask=lambda what, case, outputs, draw: asked.append((case.id, outputs, draw)) or Answer(where=str(len(asked)))
    )
    other = replace(CASE, id="another")
    for case, outputs, draw in [(CASE, "a", OWN), (CASE, "b", OWN), (CASE, "a", Draw(7)), (other, "a", OWN)] * 2:
        files.judged(case, outputs, draw)
    assert len(asked) == len(set(asked)) == 4
    assert files.judged(CASE, "b").where == "2"


@pytest.mark.parametrize("put", ["pipe", "link", "folder", "text", "nothing"])
def test_what_a_process_puts_where_its_outputs_belong_is_refused_at_once_and_removed(tmp_path: Path, put: str) -> None:
    path, other = tmp_path / "0.outputs0", tmp_path / "others"
    torch.save({"y": torch.ones(2)}, other)
    made: dict[str, Callable[[], Any]] = {
        "pipe": lambda: os.mkfifo(path),
        "link": lambda: path.symlink_to(other),
        "folder": lambda: (path / "in" / "it").mkdir(parents=True),
        "text": lambda: path.write_text("no tensors"),
        "nothing": lambda: None,
    }
    made[put]()
    with pytest.raises(NoOutputs, match="cannot be read"):
        read_outputs(str(path))
    discard(path)
    assert not os.path.lexists(path) and read_outputs(str(other)).keys() == {"y"}


def test_numbers_of_8_bits_are_left_as_their_problem_draws_them() -> None:
    narrow, wide = torch.linspace(1, 8, 64).to(torch.float8_e4m3fn), torch.linspace(1, 8, 64)
    changed = further_inputs.unlike({"x": narrow, "y": wide}, 1).inputs
    assert changed["x"] is narrow and not torch.equal(changed["y"], wide)
