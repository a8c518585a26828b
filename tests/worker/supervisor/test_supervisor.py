"""A supervisor with stand-in children: whatever they do, each case gets its record and the next one runs."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import threading
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import suppress
from dataclasses import asdict, replace
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from gpucheck import checks
from gpucheck.checks.base import ANY_KERNEL
from gpucheck.host.forkserver import Child
from gpucheck.launch.scratch import FIRST_RANK
from gpucheck.model.check_source import CheckSource, SourceKind
from gpucheck.model.conditions import Conditions
from gpucheck.model.plan import Plan, Step
from gpucheck.model.record import Ceilings, Cost, Launch, NeededLaunches, Outcome, Record
from gpucheck.records.run_folder import read_run, write_json
from gpucheck.worker.device import child as child_module
from gpucheck.worker.memory_fills import fill_of
from gpucheck.worker.protocol import Reply, Request, Setup, outputs_file
from gpucheck.worker.supervisor import making_ahead, supervisor
from gpucheck.worker.supervisor.case_files import CaseFiles
from gpucheck.worker.supervisor.judging import finished
from gpucheck.worker.supervisor.rank_child import RankChild
from gpucheck.worker.supervisor.supervisor import Supervisor
from gpucheck.worker.supervisor.violations import observed_violations
from tests.conftest import Synthetic

LAUNCH = {
    "kernel": "_matmul_ogs",
    "count": 2,
    "device": None,
    "argument_devices": ["cpu"],
    "stream": None,
    "hash": "",
    "arch": "interpreter",
    "shared": 0,
    "warps": 0,
    "grid": [],
    "source": "matmul_ogs.py:467",
    "context": None,
    "refused": "",
    "tried": 0,
    "large": [],
}
Behaviour = Callable[[Request], Reply]


class StandIn:
    """Children as threads; ``exit_code`` is what ended ones are said to have ended with."""

    def __init__(self, behave: Behaviour, problem: str = "", exit_code: int = -11, pid: int = 0) -> None:
        self.behave, self.problem, self.exit_code, self.pid = behave, problem, exit_code, pid
        self.spawned = 0
        self.killed = 0

    def spawn(self) -> Child:
        self.spawned += 1
        ours, theirs = Pipe()
        threading.Thread(target=self._serve, args=(theirs,), daemon=True).start()
        return Child(self.pid or os.getpid(), ours)

    def kill(self, child: Child) -> int:
        self.killed += 1
        child.connection.close()
        return -9

    def reap(self, child: Child) -> int:
        child.connection.close()
        return self.exit_code

    def _serve(self, connection: Connection, problem: str | None = None) -> None:
        with connection, suppress(EOFError, OSError, Died):
            assert isinstance(connection.recv(), Setup)
            if self.problem == "dies":
                return
            connection.send(self.problem if problem is None else problem)
            while True:
                connection.send([self.behave(connection.recv())])


class Died(Exception):
    """Raised by a behaviour that ends its child."""


def right(request: Request) -> Reply:
    """Answers as a child with a right kernel would."""
    inputs = torch.load(request.inputs, weights_only=True)
    expected = checks.load(request.case.check).reference(request.case, inputs)
    torch.save({name: item.estimate.value.to(item.dtype) for name, item in expected.items()}, request.outputs[0])
    return ran(["d", "d"], needed=(NeededLaunches(("_matmul_ogs",)),), launches=[LAUNCH], device="cpu")


def ran(digests: list[str], **changes: Any) -> Reply:
    """A reply of launches with these digests, in memory filled by turns."""
    return Reply("ran", digests=digests, fills=[fill_of(number) for number in range(len(digests))], **changes)


def on(columns: int, otherwise: Behaviour) -> Behaviour:
    """The right answer but for the case with so many columns."""
    return lambda request: otherwise(request) if request.case["n"] == columns else right(request)


def changed(edit: Callable[[Tensor], object]) -> Behaviour:
    """Answers as :func:`right` does, with an output that an edit in place has changed."""

    def wrong(request: Request) -> Reply:
        reply = right(request)
        outputs = torch.load(request.outputs[0], weights_only=True)
        edit(outputs["y"])
        torch.save(outputs, request.outputs[0])
        return reply

    return wrong


def of_columns(columns: Iterable[int]) -> tuple[Step, ...]:
    """Steps of small products, one for each number of columns."""
    spec = checks.load("matmul").spec
    cases = [spec.case({"m": 4, "n": number, "k": 32}, "exact", 0) for number in columns]
    return tuple(Step(case, Conditions("cpu")) for case in cases)


@pytest.fixture
def plan(synthetic: Synthetic) -> Plan:
    """Three small products, of 8, 9 and 10 columns."""
    made: Plan = synthetic.plan(device="cpu", case_timeout=20.0)
    return replace(made, steps=of_columns((8, 9, 10)))


@pytest.fixture(autouse=True)
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """That of rank 0, alone on its node."""
    for name, value in {"RANK": "0", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("GPUCHECK_SCRATCH", str(tmp_path / "scratch"))


@pytest.fixture
def supervise(plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[dict[str, Any]]]:
    """Works as rank 1 through the plan with a stand-in; gives the result lines."""

    def work(forkserver: Any, kept: Collection[str] = (), **changes: Any) -> list[dict[str, Any]]:
        monkeypatch.setenv("RANK", "1")
        monkeypatch.setenv("LOCAL_RANK", "1")
        Supervisor(tmp_path, replace(plan, **changes), forkserver, 0.0).work()
        text = (tmp_path / "records" / "rank-00001.jsonl").read_text()
        lines = [json.loads(line) for line in text.splitlines()]
        assert [lines[0]["event"], lines[-1]["event"]] == ["start", "end"]
        for number, _ in enumerate(plan.steps):
            of_step = [line["event"] for line in lines if line.get("step") == number and not line["experiment"]]
            assert of_step == ["begin", "result"]
        assert keys_of(leftovers(tmp_path / "scratch")) == set(kept)
        return sorted((line for line in lines if line["event"] == "result"), key=lambda line: line["step"])

    return work


def leftovers(scratch: Path) -> list[str]:
    """Names of the files that hold something."""
    sizes = {}
    for path in scratch.iterdir():
        with suppress(FileNotFoundError):
            sizes[path.name] = path.stat().st_size
    return [name for name, size in sizes.items() if size]


def keys_of(names: Collection[str]) -> set[str]:
    return {name.partition(".")[0] for name in names}


def outcomes(results: list[dict[str, Any]]) -> list[str]:
    return [result["outcome"] for result in results]


def test_right_outputs_pass_in_one_child(supervise: Any) -> None:
    forkserver = StandIn(right)
    results = supervise(forkserver)
    assert outcomes(results) == ["pass"] * 3
    assert (forkserver.spawned, forkserver.killed) == (1, 1)
    for result in results:
        assert result["rank"] == 1
        assert result["inputs"]
        assert result["digests"].keys() == result["tiles"].keys() == {"y"}
        assert result["launches"] == [asdict(Launch(**LAUNCH))]


def test_what_a_call_took_is_part_of_the_record(supervise: Any) -> None:
    def timed(request: Request) -> Reply:
        cost, best = Cost(1.0, 2.0), Ceilings(3.0, 4.0)
        return replace(right(request), timings={"call": 0.5, "plain": 2.0}, cost=cost, ceilings=best)

    result = supervise(StandIn(on(9, timed)))[1]
    assert (result["timings"], result["cost"]) == ({"call": 0.5, "plain": 2.0}, {"flops": 1.0, "bytes": 2.0})
    assert result["ceilings"] == {"flops": 3.0, "bytes": 4.0}


def test_wrong_element_is_a_mismatch(supervise: Any) -> None:
    results = supervise(StandIn(on(9, changed(lambda y: y.view(torch.int16)[2, 3].bitwise_xor_(1)))))
    assert outcomes(results) == ["pass", "mismatch", "pass"]
    (mismatch,) = results[1]["mismatches"]
    assert (mismatch["first"], mismatch["bits"]) == ([2, 3], [0])
    assert mismatch["heat"]["per_mille"] == [
        [1000 * ((row, column) == (2, 3)) for column in range(9)] for row in range(4)
    ]


def test_wrong_rows_behind_an_offset_of_32_bits_are_told(supervise: Any) -> None:
    def wrong(request: Request) -> Reply:
        reply = changed(lambda y: y[2:].add_(1))(request)
        far = {"name": "x", "dtype": "bfloat16", "itemsize": 2, "shape": [4, 32], "stride": [1 << 30, 1]}
        return replace(reply, launches=[{**LAUNCH, "large": [far]}])

    results = supervise(StandIn(on(9, wrong)))
    (mismatch,) = results[1]["mismatches"]
    assert "wrong are rows 2, 3, just those" in mismatch["wraps"]


@pytest.mark.parametrize("room", [1, 2, 3])
@pytest.mark.parametrize("order", [[0, 1, 2], [2, 0, 1]])
def test_the_first_case_of_the_plan_that_fails_its_way_is_kept_for_experiments_and_others_where_there_is_room(
    supervise: Any, monkeypatch: pytest.MonkeyPatch, order: list[int], room: int
) -> None:
    monkeypatch.setattr(making_ahead, "rotated_order", lambda plan, local_rank, local_ranks: order)

    def hold(files: CaseFiles, key: str) -> bool:
        return len(files._held) < room and not files._held.update({key: 1})

    monkeypatch.setattr(CaseFiles, "hold", hold)
    kept = {"0", *(str(number) for number in [each for each in order if each][: room - 1])}
    results = supervise(StandIn(changed(lambda y: y.add_(1))), kept=kept, experiments=30.0)
    assert set(outcomes(results)) == {"mismatch"}, "all fail alike"


@pytest.mark.parametrize(
    ("answers", "outcome", "wrong"),
    [("rrrr", "pass", 0), ("rwrw", "mismatch", 2), ("wwww", "mismatch", 4), ("rrrw", "mismatch", 1)],
)
def test_repeats_are_judged_one_by_one(supervise: Any, plan: Plan, answers: str, outcome: str, wrong: int) -> None:
    def repeat(request: Request) -> Reply:
        assert request.conditions == Conditions("cpu", repeat=4)
        reply = right(request)
        outputs = torch.load(request.outputs[0], weights_only=True)
        reply.saved, reply.digests = list(dict.fromkeys(answers)), list(answers)
        reply.fills = [fill_of(number) for number in range(4)]
        for number, answer in enumerate(reply.saved):
            held = {"y": outputs["y"] + (answer == "w")}
            torch.save(held, outputs_file(request.outputs[0], number))
        return reply

    steps = tuple(
        replace(step, conditions=Conditions("cpu", repeat=4)) if step.case["n"] == 9 else step for step in plan.steps
    )
    results = supervise(StandIn(on(9, repeat)), steps=steps)
    assert outcomes(results)[::2] == ["pass", "pass"]
    kinds = [violation["kind"] for violation in results[1]["violations"]]
    assert results[1]["outcome"] == (outcome if wrong or not kinds else "violation")
    assert (results[1]["wrong"], results[1]["repeats"]) == (wrong, 4)
    assert bool(results[1]["mismatches"]) == bool(wrong)


def test_steps_that_cannot_run_here_are_recorded_without_a_child(supervise: Any, plan: Plan) -> None:
    forkserver = StandIn(right)
    results = supervise(forkserver, steps=tuple(replace(step, inapplicable="needs GPUs") for step in plan.steps))
    assert outcomes(results) == ["inapplicable"] * 3 and forkserver.spawned == 0
    assert {result["message"] for result in results} == {"needs GPUs"}


def test_dead_child_costs_its_case_only(supervise: Any) -> None:
    def die(request: Request) -> Reply:
        raise Died

    forkserver = StandIn(on(9, die))
    results = supervise(forkserver)
    assert outcomes(results) == ["pass", "crash", "pass"]
    assert results[1]["message"] == "the process that owns the device was killed by SIGSEGV"
    assert forkserver.spawned == 2


@pytest.mark.parametrize(
    ("problem", "message"),
    [
        ("RuntimeError: no device", "the device could not be set up: RuntimeError: no device"),
        ("dies", "while it was set up, the process that owns the device ended with exit code 1"),
    ],
)
def test_device_that_cannot_be_set_up(supervise: Any, problem: str, message: str) -> None:
    results = supervise(StandIn(right, problem, exit_code=1))
    assert outcomes(results) == ["crash"] * 3
    assert {result["message"] for result in results} == {message}


def test_a_gpu_that_torch_cannot_use_is_no_failure_of_the_code_under_test(supervise: Any) -> None:
    results = supervise(StandIn(right, "UnusableGpu: torch cannot use GPU 1: RuntimeError: invalid device ordinal"))
    assert outcomes(results) == ["harness"] * 3 and "invalid device ordinal" in results[0]["message"]


@pytest.mark.parametrize("fails", ["spawn", "reap"])
def test_dead_forkserver_is_no_failure_of_the_device(
    supervise: Any, monkeypatch: pytest.MonkeyPatch, fails: str
) -> None:
    def die(request: Request) -> Reply:
        raise Died

    def fail(*_: Any) -> Any:
        raise ChildProcessError("the forkserver of this rank has died")

    forkserver = StandIn(die)
    monkeypatch.setattr(forkserver, fails, fail)
    results = supervise(forkserver)
    assert outcomes(results) == ["harness"] * 3
    assert "the forkserver of this rank has died" in results[0]["message"]


@pytest.mark.parametrize(
    ("device", "free", "shared", "ahead"),
    [
        ("cpu", 0, "", True),
        ("cuda", supervisor.FREE_AHEAD, "", True),
        ("cuda", supervisor.FREE_AHEAD - 1, "", False),
        ("cuda", 0, "", False),  # it takes one process
        ("cuda", supervisor.FREE_AHEAD, "/tmp/mps", False),  # a fault of one process ends the others
    ],
)
def test_processes_start_ahead_where_a_gpu_has_room_for_them_and_keeps_them_apart(
    monkeypatch: pytest.MonkeyPatch, device: str, free: int, shared: str, ahead: bool
) -> None:
    monkeypatch.setenv("CUDA_MPS_PIPE_DIRECTORY", shared)
    own: Any = SimpleNamespace(plan=SimpleNamespace(device=device), _shared_memory=lambda: free)
    assert Supervisor._starts_ahead(own) is ahead


@pytest.fixture
def hang(monkeypatch: pytest.MonkeyPatch) -> Iterator[Behaviour]:
    """What never answers. All else is waited for, however slow it is: the deadline is over when this has begun."""
    begun, stop = threading.Event(), threading.Event()

    def answers(child: RankChild, seconds: float) -> bool:
        while child.process and not child.process.connection.poll(0.02):
            if begun.is_set():
                begun.clear()
                return False
        return True

    def hang(request: Request) -> Reply:
        begun.set()
        stop.wait()
        raise Died

    monkeypatch.setattr(RankChild, "answers", answers)
    yield hang
    stop.set()


def test_hung_child_is_asked_for_its_stacks_and_buried(supervise: Any, hang: Behaviour) -> None:
    from gpucheck.worker import hang_stacks

    stack = 'Current thread 0x1 (most recent call first):\n  File "/a/b.py", line 7 in spin\n'
    with subprocess.Popen(["sleep", "600"]) as process, pytest.MonkeyPatch.context() as patch:
        try:
            patch.setattr(hang_stacks, "collect", lambda pid, path: stack if pid == process.pid else "")
            forkserver = StandIn(on(9, hang), pid=process.pid)
            results = supervise(forkserver)
        finally:
            process.kill()
    assert outcomes(results) == ["pass", "hang", "pass"]
    assert results[1]["message"] == "no result within 20 s, at b.py:7 in spin; the process was killed"
    assert results[1]["traceback"] == stack
    assert (forkserver.spawned, forkserver.killed) == (2, 2)


BROKEN = Reply("error", "AcceleratorError: illegal address", fatal=True, expected_kernels=("k",), source="m.py:5")


@pytest.mark.parametrize(
    ("reply", "outcome", "children"),
    [
        (Reply("error", "ValueError: bad", "the traceback"), "error", 1),
        (replace(BROKEN, sticky=True), "crash", 2),
        (BROKEN, "error", 2),
        (Reply("harness", "inputs cannot be used"), "harness", 1),
        (Reply("inapplicable", "needs more"), "inapplicable", 1),
    ],
    ids=["library", "lost context", "out of memory", "files of gpucheck, never blamed on the device", "inapplicable"],
)
def test_what_a_child_says_instead_of_outputs_is_told_and_one_that_is_broken_is_replaced(
    supervise: Any, reply: Reply, outcome: str, children: int
) -> None:
    forkserver = StandIn(on(9, lambda request: reply))
    results = supervise(forkserver)
    assert outcomes(results) == ["pass", outcome, "pass"] and forkserver.spawned == children
    told = {name: results[1][name] for name in ("message", "traceback", "sticky", "kernels", "source")}
    kept = {name: getattr(reply, name) for name in ("message", "traceback", "sticky", "source")}
    assert told == {**kept, "kernels": [*reply.expected_kernels]}


class Soak:
    """Passes over the plan until the time is up."""

    def __init__(self, tmp_path: Path, plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.plan, self.monkeypatch = tmp_path, plan, monkeypatch

    def run(self, forkserver: Any, passes: int = 4) -> list[dict[str, Any]]:
        ticks = itertools.count()  # the clock is looked at as the rank begins, and after each pass
        self.monkeypatch.setattr(supervisor, "time", SimpleNamespace(monotonic=lambda: next(ticks)))
        Supervisor(self.folder, replace(self.plan, duration=passes - 0.5), forkserver, 0.0).work()
        text = (self.folder / "records" / "rank-00000.jsonl").read_text()
        return [line for line in map(json.loads, text.splitlines()) if line["event"] == "result"]


@pytest.fixture
def soak(tmp_path: Path, plan: Plan, monkeypatch: pytest.MonkeyPatch) -> Soak:
    return Soak(tmp_path, plan, monkeypatch)


def test_a_soak_makes_whole_passes_until_its_time_is_up(soak: Soak) -> None:
    forkserver = StandIn(right)
    results = soak.run(forkserver)
    assert sorted(line["round"] for line in results) == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]
    assert set(outcomes(results)) == {"pass"} and forkserver.spawned == 1
    later = next(line for line in results if line["round"] == 1)
    assert (later["launches"], later["digests"], later["seconds"]) == ([], {}, {})
    decisions = {f"round{number}" for number in (1, 2, 3, 4)}  # of the ranks
    assert keys_of(leftovers(soak.folder / "scratch")) == {FIRST_RANK, *decisions}
    assert len(list((soak.folder / "scratch").glob("*.done*"))) == 3, "of the first pass only"


def test_a_soak_shorter_than_a_pass_makes_one(soak: Soak) -> None:
    assert [line["round"] for line in soak.run(StandIn(right), passes=1)] == [0, 0, 0]


def test_equal_bits_are_judged_once(soak: Soak, monkeypatch: pytest.MonkeyPatch) -> None:
    from gpucheck.worker.supervisor import judging

    judged: list[int] = []
    judge = judging._judge_launches
    monkeypatch.setattr(judging, "_judge_launches", lambda *a: judged.append(1) or judge(*a))
    results = soak.run(StandIn(right))
    assert len(results) == 12 and len(judged) == 3


def test_a_failure_in_some_pass_is_judged_and_told(soak: Soak) -> None:
    calls: list[int] = []

    def flaky(request: Request) -> Reply:
        calls.append(1)
        return replace(changed(lambda y: y.add_(1))(request), digests=["e", "e"]) if len(calls) == 2 else right(request)

    results = soak.run(StandIn(on(9, flaky)))
    of_case = [line["outcome"] for line in results if line["step"] == 1]
    assert of_case[1] == "mismatch" and of_case.count("mismatch") == 1 and len(of_case) == 4
    assert next(line for line in results if line["outcome"] == "mismatch")["mismatches"]


def test_right_outputs_with_other_bits_in_a_later_pass_do_not_repeat(soak: Soak) -> None:
    calls: list[int] = []

    def drifting(request: Request) -> Reply:
        reply = right(request)
        calls.append(1)
        reply.digests = [f"d{min(len(calls), 2)}"] * 2
        return reply

    of_case = [line for line in soak.run(StandIn(on(9, drifting))) if line["step"] == 1]
    assert of_case[0]["outcome"] == "pass" and {line["outcome"] for line in of_case[1:]} == {"violation"}
    (violation,) = of_case[1]["violations"]
    assert violation["kind"] == "repeats differ" and "in pass 2 than in pass 1" in violation["detail"]


def test_a_rank_with_a_process_that_does_not_die_is_skipped(
    plan: Plan, tmp_path: Path, hang: Behaviour, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gpucheck.host.forkserver import Unkillable
    from gpucheck.worker import hang_stacks

    def refuse(child: Child) -> int:
        raise Unkillable(4194304)

    forkserver = StandIn(on(9, hang))
    monkeypatch.setattr(forkserver, "kill", refuse)
    monkeypatch.setattr(hang_stacks, "collect", lambda pid, path: "")
    short = replace(plan, experiments=30.0)
    write_json(tmp_path / "plan.json", short.to_json())
    Supervisor(tmp_path, short, forkserver, 0.0).work()
    run = read_run(tmp_path)
    first, second, third = (run.records[(step, 0)] for step in range(3))
    assert (first.outcome.value, second.outcome.value, third.outcome.value) == ("pass", "hang", "lost")
    assert "process 4194304 did not end within" in second.message and not run.experiments
    assert third.message.startswith("the rank did not run this case: process 4194304 did not end within")


def test_what_cannot_be_written_any_more_is_said_in_a_word(
    supervise: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gpucheck.records.writer import RecordWriter

    def full(self: RecordWriter, record: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(RecordWriter, "result", full)
    with pytest.raises(OSError, match="No space left"):
        supervise(StandIn(right))
    last = json.loads((tmp_path / "records" / "rank-00001.jsonl").read_text().splitlines()[-1])
    assert last["event"] == "skip" and "No space left on device" in last["reason"]


def test_outputs_that_cannot_be_judged_are_never_a_pass(supervise: Any) -> None:
    def nothing(request: Request) -> Reply:
        return ran(["d", "d"], launches=[LAUNCH])

    results = supervise(StandIn(on(9, nothing)))
    assert outcomes(results) == ["pass", "harness", "pass"]
    assert "FileNotFoundError" in results[1]["message"]


def test_inputs_that_cannot_be_made_are_never_a_pass(supervise: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from gpucheck.worker.supervisor import case_files

    make = case_files._make_inputs

    def sometimes(case: Any) -> Any:
        if case["n"] == 9:
            raise ValueError("planted")
        return make(case)

    monkeypatch.setattr(case_files, "_make_inputs", sometimes)
    results = supervise(StandIn(right))
    assert outcomes(results) == ["pass", "harness", "pass"]
    assert results[1]["message"] == "ValueError: planted"


def launched(**changes: Any) -> Launch:
    return Launch(**{**LAUNCH, **changes})


def kinds(reply: Reply, launches: list[Launch]) -> list[str]:
    return [violation.kind for violation in observed_violations(reply, launches)]


def test_no_violation() -> None:
    clean = ran(["a", "a"], needed=(NeededLaunches(("_matmul_ogs", "_p_matmul_ogs")),))
    assert kinds(clean, [launched()]) == []
    assert kinds(clean, [launched(device=1, argument_devices=["cuda:1"])]) == []
    assert kinds(clean, [launched(device=1, argument_devices=[])]) == []
    assert kinds(ran(["a", "a"]), []) == []


@pytest.mark.parametrize(
    ("digests", "kind"),
    [
        (list("abbabaab"), "passes differ"),
        (list("abba"), "repeats differ"),  # it may be luck
        (["a", "b", "c"], "repeats differ"),
        (["a", "b", "b"], "repeats differ"),
        (list("abababab"), "repeats differ"),  # every second call, whatever memory held
        (["a", "b", "a", "a"], "repeats differ"),
        (["a", "a", "a", "b"], "repeats differ"),
        (["a", "b"], "repeats differ"),
    ],
)
def test_differing_passes(digests: list[str], kind: str) -> None:
    assert kinds(ran(digests), []) == [kind]


def test_broken_guards_are_told_once() -> None:
    reply = ran(["a", "a"], guards=["x", "y", "x"])
    assert [violation.detail for violation in observed_violations(reply, [])] == ["x", "y"]


@pytest.mark.parametrize(
    ("launches", "seen"), [([], "launched: none"), ([launched(kernel="other")], "launched: other")]
)
def test_kernel_that_was_not_launched(launches: list[Launch], seen: str) -> None:
    (violation,) = observed_violations(ran(["a"], needed=(NeededLaunches(("_matmul_ogs",)),)), launches)
    assert violation.kind == "fallback"
    assert violation.detail.endswith(seen)


def test_kernel_that_was_launched_less_often_than_the_calls_need() -> None:
    twice = NeededLaunches(("_matmul_ogs", "_p_matmul_ogs"), 2)
    half = [launched(count=1), launched(kernel="_p_matmul_ogs", count=1), launched(kernel="other", count=9)]
    (violation,) = observed_violations(ran(["a", "a"], needed=(twice,), calls=2), half)
    assert violation.kind == "launches"
    assert violation.detail.startswith("_matmul_ogs or _p_matmul_ogs launched 2 times in 2 calls, 4 needed")
    assert kinds(ran(["a", "a"], needed=(twice,), calls=2), [launched(count=4)]) == []
    refused = [launched(count=3), launched(count=1, refused="ValueError: no")]
    assert kinds(ran(["a", "a"], needed=(twice,), calls=2), refused) == ["launches"], "what Triton refused ran not"
    any_one = NeededLaunches((ANY_KERNEL,))
    assert kinds(ran(["a", "a"], needed=(any_one,), calls=2), [launched(kernel="other", count=2)]) == []
    assert kinds(ran(["a", "a"], needed=(any_one,), calls=2), []) == ["fallback"]


def test_configuration_that_is_another_one_than_asked_for() -> None:
    asked = NeededLaunches(("_matmul_ogs", "_p_matmul_ogs"), 1, {"SPLIT_K": 4, "BLOCK_M": 16}, ("_p_matmul_ogs",))
    further = NeededLaunches(("_reduce",))
    other = launched(configuration={"SPLIT_K": 1, "BLOCK_M": 16, "num_warps": 4})
    found = observed_violations(ran(["a"], needed=(asked, further), calls=1), [other])
    assert [(violation.kind, violation.detail) for violation in found] == [
        ("configuration", "asked for _p_matmul_ogs, launched _matmul_ogs"),
        ("configuration", "_matmul_ogs: asked for SPLIT_K 4, launched with 1"),
    ], "what else would be launched follows from the configuration"
    right = launched(kernel="_p_matmul_ogs", configuration={"SPLIT_K": 4, "BLOCK_M": 16})
    hidden = launched(kernel="_p_matmul_ogs")
    for launch in (right, hidden):
        assert kinds(ran(["a"], needed=(asked,), calls=1), [launch]) == [], "what a launch does not show is not held"
    assert kinds(ran(["a"], needed=(asked, further), calls=1), [right]) == ["fallback"]


def test_launch_away_from_its_tensors() -> None:
    elsewhere = launched(device=0, argument_devices=["cuda:0", "cuda:1"])
    (violation,) = observed_violations(ran(["a"]), [elsewhere])
    assert violation.kind == "device"
    assert violation.detail == "_matmul_ogs launched on cuda:0, its tensors on cuda:1 (matmul_ogs.py:467)"


def test_child_answers_what_is_wrong_with_its_setup(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fail(setup: Setup) -> Any:
        raise RuntimeError("no such device")

    monkeypatch.setattr(child_module, "start", fail)
    monkeypatch.setattr(child_module.faulthandler, "enable", lambda *_: None)
    monkeypatch.setattr(child_module.hang_stacks, "register", lambda *_: None)
    ours, theirs = Pipe()
    ours.send(Setup(Conditions(), "cuda", 0, 1, 0, 1, "/lib", "v3.5", str(tmp_path / "s"), str(tmp_path / "j")))
    with pytest.raises(RuntimeError):
        child_module.serve(theirs)
    assert ours.recv() == "RuntimeError: no such device"


@pytest.fixture(autouse=True)
def threads_end() -> Iterator[None]:
    """Judges and makers of a supervisor end with it."""
    yield
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("judge")]


@pytest.mark.parametrize("limit", [1 << 20, 0])
def test_the_child_goes_on_while_the_judge_waits_as_far_as_outputs_have_room(
    plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int
) -> None:
    """The judge waits until the child has had every case, or, without room, the next one."""
    asked, whole = threading.Semaphore(0), replace(plan, steps=of_columns(range(8, 14)))
    waited: list[int] = []  # for how many cases the judge has waited, each time

    def answer(request: Request) -> Reply:
        asked.release()
        return replace(right(request), saved=["d"])

    def judged(*arguments: Any) -> Record:
        waited.append(len(whole.steps) * (not waited) if limit else 1)
        for _ in range(waited[-1]):
            assert asked.acquire(timeout=120), "the child waits for the judge"
        assert not asked.acquire(blocking=False), "the child went on without room"
        return finished(*arguments)

    monkeypatch.setattr("gpucheck.worker.supervisor.supervisor.JUDGES", 1)
    monkeypatch.setattr("gpucheck.worker.supervisor.supervisor.PENDING_BYTES", limit)
    work_through(whole, tmp_path, answer, judged, monkeypatch)


def test_a_case_that_waits_for_its_reference_holds_up_no_other(
    plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    others, whole = threading.Semaphore(0), replace(plan, steps=of_columns(range(8, 14)))

    def judged(files: Any, attempt: Any, *rest: Any) -> Record:
        for _ in whole.steps[1:] if attempt.step.case == whole.steps[0].case else ():
            assert others.acquire(timeout=120), "no other case is judged meanwhile"
        others.release()
        return finished(files, attempt, *rest)

    monkeypatch.setattr("gpucheck.worker.supervisor.supervisor.fair_threads", lambda: 16)
    monkeypatch.setattr("gpucheck.worker.supervisor.supervisor.PENDING_JUDGEMENTS", 2)
    work_through(whole, tmp_path, lambda request: replace(right(request), saved=["d"]), judged, monkeypatch)


def work_through(whole: Plan, tmp_path: Path, answer: Any, judged: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A rank's way through a plan, all of which passes."""
    monkeypatch.setattr("gpucheck.worker.supervisor.judging.finished", judged)
    write_json(tmp_path / "plan.json", whole.to_json())
    Supervisor(tmp_path, whole, StandIn(answer), 0.0).work()
    assert {record.outcome for record in read_run(tmp_path).records.values()} == {Outcome.PASS}


class OneAtATime(StandIn):
    """A GPU in the compute mode EXCLUSIVE_PROCESS: it refuses a second process."""

    def __init__(self, behave: Behaviour) -> None:
        super().__init__(behave)
        self.refused = 0
        self._holder: Child | None = None
        self._served: dict[int, threading.Thread] = {}
        self._turn = threading.Lock()

    def spawn(self) -> Child:
        with self._turn:
            held = self._holder is not None
            self.refused += held
            self.problem = "UnusableGpu: torch cannot use GPU 0: all CUDA-capable devices are busy" if held else ""
            ours, theirs = Pipe()
            thread = threading.Thread(target=self._serve, args=(theirs, self.problem), daemon=True)
            thread.start()
            child = Child(os.getpid(), ours)
            self._holder = self._holder or child
            return child

    def kill(self, child: Child) -> int:
        with self._turn:
            self._holder = None if child is self._holder else self._holder
        return super().kill(child)


@pytest.mark.parametrize("wrong", [False, True])
def test_a_gpu_that_takes_one_process_gets_every_case_and_experiment_done(
    plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong: bool
) -> None:
    whole = replace(plan, steps=of_columns(range(8, 40)), experiments=60.0)
    monkeypatch.setattr(supervisor, "fair_threads", lambda: 16)
    monkeypatch.setattr("gpucheck.worker.supervisor.lanes.available_memory", lambda: 1 << 40)
    write_json(tmp_path / "plan.json", whole.to_json())
    gpu = OneAtATime(on(20, changed(lambda y: y[0].add_(1))) if wrong else right)
    Supervisor(tmp_path, whole, gpu, 0.0).work()  # type: ignore[arg-type]
    run = read_run(tmp_path)
    tried = [record for answers in run.experiments.values() for records in answers.values() for record in records]
    assert gpu.refused and len(run.records) == len(whole.steps)
    outcomes = [record.outcome for record in (*run.records.values(), *tried)]
    assert set(outcomes) == {Outcome.PASS, *[Outcome.MISMATCH] * wrong} and bool(tried) is wrong


@pytest.mark.parametrize(("told", "all_at_once"), [("140000000000", True), ("0", False), ("", False)])
def test_processes_start_at_once_on_a_gpu_that_is_known_to_take_several(
    plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told: str, all_at_once: bool
) -> None:
    """Else one starts before all others: it is the one that may have the GPU for itself."""
    together, begun = threading.Barrier(4), list[str]()
    monkeypatch.setattr(supervisor, "fair_threads", lambda: 16)
    monkeypatch.setattr("gpucheck.worker.supervisor.lanes.available_memory", lambda: 1 << 40)
    (tmp_path / "scratch").mkdir()
    (tmp_path / "scratch" / "free-memory").write_text(told)

    class Starting(StandIn):
        def _serve(self, connection: Connection) -> None:
            with suppress(EOFError, OSError):
                begun.append(Path(connection.recv().journal).name)
                first = len(begun) == 1 and not all_at_once
                if not first:
                    together.wait(60)
                connection.send("")
                request = connection.recv()
                if first:
                    together.wait(60)
                while True:
                    connection.send([self.behave(request)])
                    request = connection.recv()

    whole = replace(plan, steps=of_columns(range(8, 40)))
    write_json(tmp_path / "plan.json", whole.to_json())
    Supervisor(tmp_path, whole, Starting(right), 0.0).work()  # type: ignore[arg-type]
    assert {record.outcome for record in read_run(tmp_path).records.values()} == {Outcome.PASS}
    assert sorted(begun) == ["journal0", "journal0-1", "journal0-2", "journal0-3"]
    assert all_at_once or begun[0] == "journal0"


def test_what_lacked_memory_and_what_needs_most_of_it_gets_a_process_that_has_run_nothing(
    plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = replace(plan, steps=of_columns(range(8, 40)))
    ran_by: dict[threading.Thread, list[int]] = {}  # one that stands for a process -> columns of its cases

    def answer(request: Request) -> Reply:
        columns = request.case["n"]
        first = not any(columns in each for each in ran_by.values())
        ran_by.setdefault(threading.current_thread(), []).append(columns)
        return Reply("error", "OutOfMemoryError: CUDA out of memory") if columns == 20 and first else right(request)

    monkeypatch.setattr(type(checks.load("matmul")), "needs_memory", lambda _, case: 1 << 30 if case["n"] == 30 else 0)
    monkeypatch.setattr(supervisor, "fair_threads", lambda: 16)
    monkeypatch.setattr("gpucheck.worker.supervisor.lanes.available_memory", lambda: 1 << 40)
    work_through(whole, tmp_path, answer, finished, monkeypatch)
    behind = [columns for columns in ran_by.values() if columns[0] in (20, 30)]
    assert behind == [[20], [30]] and sum(map(len, ran_by.values())) == len(whole.steps) + 1


BUILT = "from torch.utils.cpp_extension import load_inline\nload_inline('x', '')"
KERNEL = "import triton\n@triton.jit\ndef kernel(): pass"


@pytest.mark.parametrize(
    ("problem", "candidate", "expected"),
    [
        ("", "", set()),
        ("", BUILT, {"extensions"}),
        ("", "import torch\nforward = torch.compile(lambda x: x)", {"compiled"}),
        ("import torch\nimport torch._dynamo", "import re\nre.compile('x')", {"compiled"}),
        ("", KERNEL, {"launches"}),
    ],
)
def test_processes_of_pairs_are_forked_with_what_their_code_asks_for(
    synthetic: Synthetic, tmp_path: Path, problem: str, candidate: str, expected: set[str]
) -> None:
    for name, text in (("p.py", problem), ("c.py", candidate)):
        (tmp_path / name).write_text(text)
    files = (str(tmp_path / "p.py"), str(tmp_path / "c.py"))
    check = synthetic.plan().steps[0].case.check
    plan = replace(synthetic.plan(), check_sources=(CheckSource(SourceKind.PROBLEM, (check,), files, ("a", "b")),))
    found = supervisor.needed(plan)
    assert {name for name in ("extensions", "compiled", "launches") if found[name]} == expected
    assert found["candidates"] and found["library"] is None


def test_processes_of_the_library_are_forked_with_what_launches_need(synthetic: Synthetic) -> None:
    found = supervisor.needed(synthetic.plan())
    assert found["launches"] and not (found["candidates"] or found["extensions"] or found["compiled"])
