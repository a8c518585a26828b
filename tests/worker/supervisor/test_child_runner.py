"""Attempts under special conditions: one process for all ranks, caches of their own, experiments."""

from __future__ import annotations

import os
import threading
import time
from dataclasses import replace
from multiprocessing import Pipe
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from gpucheck.host.forkserver import Child, Unkillable
from gpucheck.launch.gpus import FREE_MEMORY
from gpucheck.model.check_source import CheckSource, SourceKind
from gpucheck.model.conditions import Conditions
from gpucheck.model.plan import Plan, Step
from gpucheck.model.record import Outcome, Underway
from gpucheck.model.vocabulary import ExperimentName
from gpucheck.worker import collective_journal
from gpucheck.worker.collective_journal import CollectiveJournal
from gpucheck.worker.launch_journal import Journal
from gpucheck.worker.protocol import (
    BENCH,
    TEMPORARY,
    Reply,
    Request,
    Setup,
)
from gpucheck.worker.supervisor import blame, deadline, rank_child
from gpucheck.worker.supervisor import child_runner as runner_module
from gpucheck.worker.supervisor.child_runner import CROWDED, ChildRunner
from gpucheck.worker.supervisor.meeting import Waited
from gpucheck.worker.supervisor.node_sync import Node
from tests.conftest import Synthetic
from tests.processes import wait_until

PID = 1 << 22  # more than Linux hands out


class Children:
    """Children that answer each request with a reply a device, and remember what they were told."""

    def __init__(self, code: int = 0, *, silent: bool = False, unkillable: bool = False) -> None:
        self.silent, self.unkillable = silent, unkillable  # they do not answer; they do not die
        self.setups: list[Setup] = []
        self.requests: list[Request] = []
        self.code = code  # they end with it instead of answering
        self.calls = 4  # that they make
        self.suspect: int | None = None  # the tensor whose fill changed the outputs

    def spawn(self) -> Child:
        ours, theirs = Pipe()
        threading.Thread(target=self._serve, args=(theirs,), daemon=True).start()
        return Child(PID, ours)

    def kill(self, child: Child) -> int:
        child.connection.close()
        if self.unkillable:
            raise Unkillable(child.pid)
        return -9

    reap = kill

    def _serve(self, connection: Any) -> None:
        try:
            self.setups.append(connection.recv())
            connection.send("")
            while True:
                self.requests.append(connection.recv())
                if self.code:
                    connection.close()
                    return
                if self.silent:
                    continue
                devices = enumerate(self.requests[-1].outputs)
                given = {"digests": ["a"] * self.calls, "suspect": self.suspect}
                connection.send([Reply("ran", device=f"gpu {n}", **given) for n, _ in devices])
        except (EOFError, OSError):
            return


@pytest.fixture
def plan(synthetic: Synthetic) -> Plan:
    made: Plan = synthetic.plan(cases=1, ranks=2, case_timeout=60.0)
    return made


def make(
    plan: Plan, folder: Path, children: Any, local_rank: int = 0, run: Path | None = None, **engines: Any
) -> ChildRunner:
    folder.mkdir(exist_ok=True)
    files: Any = SimpleNamespace(
        folder=folder,
        inputs=lambda key, case: folder / f"{key}.inputs",
        holds=lambda key: key == "1",
        box=lambda key: "",
        bytes_on_gpu=lambda key: 0,
        desk=None,
    )
    return ChildRunner(plan, Node(folder, local_rank, 2), files, children, local_rank, "host", run or folder, engines)


def step(plan: Plan, **conditions: Any) -> Any:
    return replace(plan.steps[0], conditions=Conditions(**conditions))


def test_ranks_are_compared_by_the_times_of_the_largest_cases_alone(plan: Plan, tmp_path: Path) -> None:
    def of_size(size: int) -> Step:
        return replace(plan.steps[0], case=replace(plan.steps[0].case, params={"m": size}))

    plan, children = replace(plan, steps=tuple(map(of_size, (5, 3, 9, 2, 7, 8)))), Children()
    runner = make(plan, tmp_path / "s", children)
    for number, each in enumerate(plan.steps):
        runner.run(number, each)
    timed = [request.timed.clocked for request in children.requests if request.timed]
    assert timed == [True, False, True, False, True, True]


def test_cases_share_a_child_until_their_setups_differ(plan: Plan, tmp_path: Path) -> None:
    children = Children()
    runner = make(plan, tmp_path / "s", children)
    for conditions in ({}, {"late": True}, {"placement": "visible"}, {"placement": "visible", "repeat": 3}):
        attempt = runner.run(0, step(plan, **conditions))
        assert attempt.reply and attempt.reply.device == "gpu 0"
    assert [setup.conditions.placement for setup in children.setups] == ["pinned", "visible"]
    assert [request.conditions.repeat for request in children.requests] == [1, 1, 1, 3]


def test_each_candidate_has_a_child_of_its_own(plan: Plan, tmp_path: Path) -> None:
    names = ("fast", "faster", "faster", "softmax", "matmul")
    source = CheckSource(SourceKind.PROBLEM, ("fast", "faster"), ("p.py", "c.py"), ("a", "b"))
    children = Children()
    runner = make(replace(plan, check_sources=(source,)), tmp_path / "s", children)
    for name in names:
        usual = step(plan)
        runner.run(0, replace(usual, case=replace(usual.case, check=name)))
    assert [setup.candidate for setup in children.setups] == ["fast", "faster", ""]


class Desk:
    """Draws the inputs of a pair, which takes until the child of the candidate has begun to start."""

    def __init__(self, children: Children, folder: Path) -> None:
        self.children, self.folder = children, folder

    def inputs(self, key: str, case: Any) -> Path:
        wait_until(lambda: self.children.setups)
        return self.folder / f"{key}.inputs"


def test_the_child_of_a_candidate_starts_while_its_inputs_are_drawn(plan: Plan, tmp_path: Path) -> None:
    source = CheckSource(SourceKind.PROBLEM, ("fast",), ("p.py", "c.py"), ("a", "b"))
    children = Children()
    runner = make(replace(plan, check_sources=(source,)), tmp_path / "s", children)
    desk: Any = Desk(children, tmp_path)
    runner.files.desk, runner.files.inputs = desk, desk.inputs  # type: ignore[method-assign]
    usual = step(plan)
    candidate = replace(usual, case=replace(usual.case, check="fast"))
    assert [runner.run(number, candidate).record.before for number in (0, 1)] == [0, 1]
    assert [setup.candidate for setup in children.setups] == ["fast"], "one child has both cases"


@pytest.mark.parametrize("answer", ["the device is gone", OSError("the forkserver has died")])
def test_a_child_of_a_candidate_that_cannot_start_is_told_of_and_not_tried_again(
    plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: Any
) -> None:
    source = CheckSource(SourceKind.PROBLEM, ("fast",), ("p.py", "c.py"), ("a", "b"))
    runner = make(replace(plan, check_sources=(source,)), tmp_path / "s", Children())
    runner.files.desk = SimpleNamespace()  # type: ignore[assignment]
    tried: list[Setup] = []

    def ready(setup: Setup) -> Any:
        tried.append(setup)
        if isinstance(answer, OSError):
            raise answer
        return answer

    monkeypatch.setattr(runner.child, "ready", ready)
    usual = step(plan)
    attempt = runner.run(0, replace(usual, case=replace(usual.case, check="fast")))
    assert attempt.record.message.endswith(str(answer)) and attempt.reply is None
    assert len(tried) == 1 or isinstance(answer, OSError)
    assert attempt.record.outcome is (Outcome.HARNESS if isinstance(answer, OSError) else Outcome.CRASH)


class Crowded(Children):
    """Children on a GPU whose memory others hold while the first ones start."""

    def __init__(self, full: int, says: str) -> None:
        super().__init__()
        self.full, self.says = full, says

    def _serve(self, connection: Any) -> None:
        if not self.full:
            super()._serve(connection)
            return
        self.full -= 1
        self.setups.append(connection.recv())
        connection.send(self.says)


NO_ROOM = "UnusableGpu: torch cannot use GPU 0 of the visible ones: AcceleratorError: CUDA error: out of memory"


@pytest.mark.parametrize(
    ("says", "full", "lane", "paused", "answered"),
    [
        (NO_ROOM, 3, False, CROWDED[:3], True),
        (NO_ROOM, 99, False, CROWDED, False),
        (NO_ROOM, 1, True, (), False),
        (NO_ROOM.replace("out of memory", "invalid device ordinal"), 1, False, (), False),
    ],
    ids=["for a moment", "for good, which is found out once", "beside others of the rank", "unusable otherwise"],
)
def test_a_gpu_whose_memory_others_hold_is_waited_for(
    plan: Plan,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    says: str,
    full: int,
    lane: bool,
    paused: tuple[float, ...],
    answered: bool,
) -> None:
    slept: list[float] = []
    monkeypatch.setattr(runner_module, "time", SimpleNamespace(sleep=slept.append, perf_counter=time.perf_counter))
    children = Crowded(full, says)
    runner = make(plan, tmp_path, children)
    runner = runner.beside(1) if lane else runner
    attempt = runner.run(0, plan.steps[0])
    if full > len(CROWDED):
        runner.run(0, plan.steps[0])
    assert (tuple(slept), attempt.reply is not None) == (tuple(paused), answered)
    if not answered:
        assert attempt.record.outcome is Outcome.HARNESS and says in attempt.record.message


def test_every_experiment_has_a_fresh_child(plan: Plan, tmp_path: Path) -> None:
    children = Children()
    runner = make(plan, tmp_path / "s", children)
    runner.run(0, step(plan))
    attempt = runner.run(0, step(plan, repeat=5), "repeat")
    assert (attempt.record.experiment, attempt.key) == ("repeat", "0-again")
    assert runner.run(1, step(plan, alone=True), "repeat").key == "1", "its files are still there"
    runner.run(0, step(plan, alone=True), "alone")
    assert len(children.setups) == 3


@pytest.mark.parametrize(("calls", "asked"), [(1, 1), (4, 4)])
def test_a_process_that_needed_one_call_counts_as_one(plan: Plan, tmp_path: Path, calls: int, asked: int) -> None:
    children = Children()
    children.calls = calls
    attempt = make(plan, tmp_path / "s", children).run(0, step(plan, repeat=4), "repeat", known={"y": "bad"})
    assert attempt.record.asked == asked and children.requests[0].known == {"y": "bad"}


def test_a_fresh_process_is_told_which_tensor_an_earlier_one_found(plan: Plan, tmp_path: Path) -> None:
    children = Children()
    runner = make(plan, tmp_path / "s", children)
    children.suspect = 7
    runner.run(0, step(plan))
    children.suspect = None
    runner.beside(1).run(0, step(plan, repeat=5), "repeat")
    runner.run(0, step(plan, repeat=6), "repeat")
    runner.run(1, step(plan))
    assert [request.suspect for request in children.requests] == [None, 7, 7, None], "of this case alone"


def test_caches(plan: Plan, tmp_path: Path) -> None:
    children = Children()
    both = [make(plan, tmp_path / "s", children, rank) for rank in (0, 1)]
    threads = [threading.Thread(target=runner.run, args=(0, step(plan, cache="cold"))) for runner in both]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    cold, again = {setup.cache for setup in children.setups}, len(children.setups)
    assert len(cold) == 1 and again == 2, "one folder for both ranks"
    both[0].run(0, step(plan, cache="fresh"))
    both[1].run(0, step(plan, cache="fresh"))
    both[0].run(0, step(plan, cache="cold", repeat=5), "repeat")
    caches = [setup.cache for setup in children.setups[2:]]
    assert len({*caches, *cold}) == 4, "a folder for each, an experiment shares none"
    assert all(Path(cache).is_dir() for cache in caches)


def test_cases_tried_with_a_fresh_cache_share_it_and_their_process(plan: Plan, tmp_path: Path) -> None:
    children = Children()
    both = [make(plan, tmp_path / "s", children, rank) for rank in (0, 1)]
    for runner in both:
        for number in (0, 1):
            runner.run(number, step(plan, cache="fresh"), ExperimentName.FRESH_CACHE)
    both[0].run(0, step(plan, cache="fresh"))
    caches = [setup.cache for setup in children.setups]
    assert len(set(caches)) == len(caches) == 3, "one of each rank's experiment, and one of the case that asks for it"


def test_ranks_wait_for_each_other_before_a_cold_cache(
    plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    met: list[Any] = []
    runner = make(plan, tmp_path / "s", Children())
    monkeypatch.setattr(runner.node, "barrier", lambda name, seconds: met.append((name, seconds)))
    runner.run(0, step(plan, cache="cold"))
    runner.run(0, step(plan, cache="cold"), "repeat")
    runner.run(0, step(plan))
    assert met == [("0", runner_module.BARRIER_TIMEOUT)]


@pytest.mark.parametrize(("nnodes", "where"), [(1, "scratch"), (2, "run")])
def test_a_process_group_meets_where_all_its_ranks_can(plan: Plan, tmp_path: Path, nnodes: int, where: str) -> None:
    children = Children()
    runner = make(replace(plan, nnodes=nnodes), tmp_path / "scratch", children, run=tmp_path / "run")
    runner.run(0, step(plan, process_group="initialised"))
    assert children.setups[0].meeting == str(tmp_path / where / "process-group")


def test_every_case_may_have_a_process_of_its_own(plan: Plan, tmp_path: Path) -> None:
    children = Children()
    runner = make(replace(plan, isolate="case"), tmp_path / "s", children)
    for _ in range(3):
        assert runner.run(0, step(plan)).reply
    assert len(children.setups) == runner.child.started == 3 and len(set(children.setups)) == 1
    assert runner.child.process is None, "none waits for the next case"


def test_passes_share_no_files(plan: Plan, tmp_path: Path) -> None:
    runner = make(plan, tmp_path / "s", Children())
    attempts = [runner.run(0, step(plan), round=round) for round in range(3)]
    assert [attempt.key for attempt in attempts] == ["0", "0-round1", "0-round2"]
    assert len({attempt.outputs for attempt in attempts}) == 3
    assert [attempt.record.round for attempt in attempts] == [0, 1, 2]


@pytest.fixture
def stacks_of(monkeypatch: pytest.MonkeyPatch) -> None:
    from gpucheck.worker import hang_stacks

    monkeypatch.setattr(hang_stacks, "collect", lambda pid, path: "")


def test_a_child_that_does_not_die_is_told_and_nothing_else_runs_there(
    plan: Plan, tmp_path: Path, stacks_of: None
) -> None:
    children = Children(silent=True, unkillable=True)
    runner = make(replace(plan, case_timeout=0.1), tmp_path / "s", children)
    attempt = runner.run(0, step(plan))
    assert attempt.record.outcome is Outcome.HANG
    assert f"process {PID} did not end within 30 s of SIGKILL (state gone)" in attempt.record.message
    assert runner.child.stuck in attempt.record.message
    further = runner.run(0, step(plan))
    assert further.record.outcome is Outcome.HARNESS and runner.child.stuck in further.record.message
    assert len(children.setups) == 1, "no second process on a device that the first still holds"


def test_a_child_that_does_not_die_when_it_is_replaced(plan: Plan, tmp_path: Path) -> None:
    children = Children(unkillable=True)
    runner = make(plan, tmp_path / "s", children)
    assert runner.run(0, step(plan)).reply
    attempt = runner.run(0, step(plan, placement="visible"))
    assert attempt.record.outcome is Outcome.HARNESS and "did not end" in attempt.record.message
    crashing = make(plan, tmp_path / "t", Children(code=1, unkillable=True))
    crashing.child.forkserver.reap = crashing.child.forkserver.kill  # type: ignore[method-assign]
    attempt = crashing.run(0, step(plan))
    assert attempt.record.outcome is Outcome.CRASH and "broke off; process" in attempt.record.message
    assert crashing.child.stuck


def test_a_deadline_of_its_own(plan: Plan, tmp_path: Path, stacks_of: None) -> None:
    runner = make(replace(plan, case_timeout=60.0), tmp_path / "s", Children(silent=True))
    attempt = runner.run(0, step(plan), deadline=0.1)
    assert attempt.record.message == "no result within 0.1 s; the process was killed"


def test_a_child_kept_from_its_processor_has_that_much_longer_but_not_for_ever(
    plan: Plan, tmp_path: Path, stacks_of: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deadline, "starved", lambda pid: time.monotonic())  # it has waited all the time
    begin = time.monotonic()
    short = replace(plan, case_timeout=0.1)
    attempt = make(short, tmp_path / "s", Children(silent=True)).run(0, step(plan))
    assert attempt.record.outcome is Outcome.HANG and time.monotonic() - begin >= 4 * 0.1


def test_a_child_that_a_signal_stopped_is_told_from_one_that_computes(
    plan: Plan, tmp_path: Path, stacks_of: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (deadline, rank_child):
        monkeypatch.setattr(module, "state_of", lambda pid: "T")
    monkeypatch.setattr(rank_child, "GLANCE", 0.05)
    monkeypatch.setattr(deadline, "STOPPED", 0.2)
    runner = make(replace(plan, case_timeout=60.0), tmp_path / "s", Children(silent=True))
    begin = time.monotonic()
    message = runner.run(0, step(plan)).record.message
    words = "the process that owns the device was stopped by a signal and did not go on; the process was killed"
    assert message == words and time.monotonic() - begin < 50
    monkeypatch.setattr(Children, "_serve", lambda self, connection: time.sleep(5))
    record = make(plan, tmp_path / "t", Children()).run(0, step(plan)).record
    assert (record.outcome, record.message) == (Outcome.CRASH, "the process on this GPU was stopped by a signal")


@pytest.mark.parametrize(("state", "told"), [("T", blame.STOPPED), ("S", blame.WAITED)])
def test_a_stopped_child_is_told_from_one_that_waits_though_both_are_overdue(
    plan: Plan, tmp_path: Path, stacks_of: None, monkeypatch: pytest.MonkeyPatch, state: str, told: str
) -> None:
    """It takes longer to know that it stays stopped than a case of a few seconds may take."""
    monkeypatch.setattr(rank_child, "state_of", lambda pid: state)
    runner = make(plan, tmp_path / "s", Children(silent=True))
    attempt, inputs = runner.prepared(runner._attempt(0, step(plan), "", 0))
    meeting: Any = SimpleNamespace(wait=lambda *_: Waited.OVERDUE, failed=lambda: None, group="")
    assert inputs is not None and runner.execute(attempt, inputs, ["out"], meeting)[0].state == told


def test_calls_of_an_earlier_joint_case_are_gone_before_a_child_is_asked_for_the_next(
    plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = make(plan, tmp_path / "s", Children())
    attempt, inputs = runner.prepared(runner._attempt(0, step(plan), "", 0))
    journal = runner.setups.path("collectives")
    CollectiveJournal(journal).enter("send", "send bf16 x100", (0, 1), "pair")
    known: list[Any] = []

    def execute(asked: Any, *_: Any) -> Any:
        known.append(collective_journal.read(journal))
        return asked, []

    monkeypatch.setattr(runner, "execute", execute)
    meeting: Any = None
    assert inputs is not None
    runner.together._part(attempt, inputs, meeting)
    assert known == [[]]


@pytest.mark.parametrize("after", [4, 5])
def test_the_out_of_memory_killer_is_named_where_its_counter_rose(plan: Plan, tmp_path: Path, after: int) -> None:
    runner = make(plan, tmp_path / "s", Children(code=9))
    counts = iter([4, 4, after])
    counter: Any = SimpleNamespace(count=lambda: next(counts, after), where="this control group")
    runner.child._oom = counter
    record = runner.run(0, step(plan)).record
    killed = "the process that owns the device was killed by SIGKILL"
    words = ", while the kernel's out-of-memory killer was at work in this control group" * (after > 4)
    assert (record.outcome, record.message) == (Outcome.CRASH, killed + words)


def test_the_last_words_of_a_child(plan: Plan, tmp_path: Path, stacks_of: None) -> None:
    runner = make(replace(plan, case_timeout=0.1), tmp_path / "s", Children(silent=True))
    journal = Journal(runner.setups.path("journal"))
    journal.case(("k",))
    journal.launch("k", "m.py:3")
    record = runner.run(0, step(plan)).record
    assert (record.outcome, record.kernels, record.underway) == (Outcome.HANG, ["k"], Underway("k", "m.py:3", 1))


class TestWholeNode:
    """Placements in which the first rank's process holds all GPUs."""

    def test_each_rank_gets_the_reply_of_its_device(self, plan: Plan, tmp_path: Path) -> None:
        children = Children()
        host, guest = (make(plan, tmp_path / "s", children, rank) for rank in (0, 1))
        threads = step(plan, placement="threads")
        mine = host.run(0, threads)
        theirs = guest.run(0, threads)
        assert len(children.setups) == 1, "the guest starts no process"
        assert [attempt.reply and attempt.reply.device for attempt in (mine, theirs)] == ["gpu 0", "gpu 1"]
        assert [attempt.record.rank for attempt in (mine, theirs)] == [0, 1]
        (request,) = children.requests
        assert request.outputs == (mine.outputs, theirs.outputs)

    def test_a_dead_process_is_told_on_every_rank(self, plan: Plan, tmp_path: Path) -> None:
        children = Children(code=1)
        host, guest = (make(plan, tmp_path / "s", children, rank) for rank in (0, 1))
        attempts = [runner.run(0, step(plan, placement="sequential")) for runner in (host, guest)]
        assert [attempt.record.outcome for attempt in attempts] == [Outcome.CRASH] * 2
        assert "was killed by SIGKILL" in attempts[1].record.message and attempts[1].record.rank == 1

    def test_a_first_rank_that_is_gone(self, plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        guest = make(plan, tmp_path / "s", Children(), 1)
        monkeypatch.setattr(guest.node, "gone", lambda rank: rank == 0)
        attempt = guest.run(0, step(plan, placement="threads"))
        assert attempt.record.outcome is Outcome.HARNESS
        assert "whose process holds all GPUs, has ended" in attempt.record.message
        assert attempt.record.victim_of == 0

    def test_an_experiment_runs_in_a_process_of_the_rank_itself(self, plan: Plan, tmp_path: Path) -> None:
        children = Children()
        guest = make(plan, tmp_path / "s", children, 1)
        attempt = guest.run(0, step(plan, placement="threads", repeat=5), "repeat")
        assert attempt.reply and attempt.reply.device == "gpu 1"
        assert children.requests[0].outputs[1] == attempt.outputs
        assert len(set(children.requests[0].outputs)) == 2


def test_how_long_a_call_may_be_timed_is_part_of_the_request(plan: Plan, tmp_path: Path) -> None:
    children = Children()
    runner = make(replace(plan, bench=True), tmp_path / "s", children)
    runner.run(0, step(plan))
    runner.run(0, step(plan, late=True))
    runner.run(0, step(plan), "repeat")
    assert [request.timed for request in children.requests] == [BENCH, None, None]


class Waiting(Children):
    """Children that are there, of which some answer their setup late, with a fault, or not at all."""

    def __init__(self, *faults: str) -> None:
        super().__init__()
        self.faults = list(faults)  # what each next one answers; "dies" closes its connection
        self.set_up = threading.Event()
        self.set_up.set()
        self.spawned: list[Child] = []
        self.killed: list[Child] = []

    def spawn(self) -> Child:
        self.spawned.append(replace(super().spawn(), pid=os.getpid()))
        return self.spawned[-1]

    def kill(self, child: Child) -> int:
        self.killed.append(child)
        return super().kill(child)

    reap = kill

    def end_leftovers(self, seconds: float) -> int:
        return 0

    def _serve(self, connection: Any) -> None:
        fault = self.faults.pop(0) if self.faults else ""
        self.set_up.wait()
        if fault:
            connection.recv()
            if fault != "dies":
                connection.send(fault)
            connection.close()
            return
        super()._serve(connection)


def setups(runner: ChildRunner, *processes: str) -> list[Setup]:
    attempt = runner.first(0, step(runner.plan))
    return [runner.setups.of(replace(attempt, process=name, role="candidate" * bool(name))) for name in processes]


def test_processes_start_ahead_behind_that_of_the_case_and_what_nobody_asks_for_is_ended(
    plan: Plan, tmp_path: Path
) -> None:
    children = Waiting()
    runner = make(plan, tmp_path / "s", children)
    case, calls, idle, after = setups(runner, "", "calls", "idle calls", "after")
    runner.child.want([calls, idle, after])
    assert children.spawned == [], "the case needs its own process first"
    assert runner.child.ready(case) is children.spawned[0]
    runner.child.settle()
    assert children.setups[0] == case and {*children.setups[1:]} == {calls, idle, after} and children.killed == []
    assert runner.child.ready(calls) is children.spawned[1] and children.killed == children.spawned[:1]
    runner.child.want([after])
    runner.child.start_wanted()
    assert children.killed == [children.spawned[0], children.spawned[2]], "the one that is still wanted stays"
    assert runner.child.ready(after) is children.spawned[3] and len(children.spawned) == 4
    assert runner.child.started == 3, "those that were asked for something"
    runner.child.want([calls])
    runner.child.start_wanted()
    runner.child.want()
    assert children.killed == [children.spawned[number] for number in (0, 2, 1, 4)], "those that were just forked too"


@pytest.mark.parametrize("fault", ["RuntimeError: CUDA-capable device(s) is/are busy", "dies", "stopped"])
def test_a_process_that_could_not_start_beside_another_is_started_again_when_it_is_asked_for(
    plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    children = Waiting("", fault if fault != "stopped" else "")
    runner = make(plan, tmp_path / "s", children)
    case, calls = setups(runner, "", "calls")
    runner.child.want([calls])
    runner.child.ready(case)
    runner.child.settle()
    if fault == "stopped":
        monkeypatch.setattr(rank_child, "state_of", lambda pid: "T")
    assert runner.child.ready(calls) is children.spawned[2] and children.killed == children.spawned[:2]


@pytest.mark.parametrize(("free", "kept"), [(0, 1), (16, 1), (15, 0)])
def test_none_waits_beside_a_pair_that_may_need_all_of_its_gpu(
    plan: Plan, tmp_path: Path, free: int, kept: int
) -> None:
    children = Waiting()
    runner = make(plan, tmp_path / "s", children)
    (tmp_path / "s" / FREE_MEMORY).write_text(str(free << 30))
    runner.files.bytes_on_gpu = lambda key: 1 << 30  # type: ignore[method-assign]
    runner.child.want(setups(runner, "calls"))
    assert runner.run(0, step(plan)).reply
    runner.child.settle()
    assert len(children.spawned) - len(children.killed) == 1 + kept


def test_settled_are_processes_that_wait_when_each_is_set_up(plan: Plan, tmp_path: Path) -> None:
    children, settled = Waiting(), threading.Event()
    runner = make(plan, tmp_path / "s", children)
    case, calls = setups(runner, "", "calls")
    runner.child.ready(case)
    children.set_up.clear()
    runner.child.want([calls])
    runner.child.start_wanted()
    thread = threading.Thread(target=lambda: (runner.child.settle(), settled.set()))
    thread.start()
    assert not settled.wait(0.2)
    children.set_up.set()
    thread.join(60)
    assert settled.is_set() and len(children.setups) == 2


def test_processes_that_are_there_at_a_time_have_journals_and_stacks_and_one_folder_for_temporary_files(
    plan: Plan, tmp_path: Path
) -> None:
    runner = make(plan, tmp_path / "s", Waiting())
    names = ("", "examined", "calls", "idle calls", "plain calls", "fresh calls")
    found = setups(runner, *names)
    assert len({each.journal for each in found} | {each.stacks for each in found}) == 2 * len(names)
    case, calls = (replace(each, own_folder=str(tmp_path)) for each in found[:2])
    runner.child.want([calls])
    runner.child.ready(case)
    (tmp_path / TEMPORARY).mkdir()
    (tmp_path / TEMPORARY / "left").touch()
    runner.child.ready(calls)
    assert list((tmp_path / TEMPORARY).iterdir()) == [], "it is there, and nothing of what another left in it"


class Loading(Children):
    """Children of a forkserver that loads what an engine imports, or died of it."""

    def __init__(self, *, dead: bool = False) -> None:
        super().__init__()
        self.dead, self.killed = dead, 0

    def spawn(self, seconds: float | None = None) -> Child:
        if self.dead:
            raise ChildProcessError("the forkserver exited with code 1")
        return super().spawn()

    def kill(self, child: Child) -> int:
        self.killed += 1
        return super().kill(child)


@pytest.mark.parametrize("dead", [False, True])
def test_children_of_an_engine_are_those_of_the_forkserver_that_has_loaded_what_it_imports(
    plan: Plan, tmp_path: Path, dead: bool
) -> None:
    engine: Any = {"name": "vllm", "version": "1", "root": "/e", "packages": "", "origin": "path", "installed": False}
    usual, loading = Loading(), Loading(dead=dead)
    plan = replace(plan, engines=(engine,))
    runner = make(plan, tmp_path, usual, vllm=loading)
    for conditions in ({}, {"engine": "vllm"}, {"engine": "vllm", "process_group": "initialised"}):
        assert runner.run(0, step(plan, **conditions)).reply
    runner.child.retire()
    engines = [(len(usual.setups), usual.killed), (len(loading.setups), loading.killed)]
    assert engines == ([(3, 3), (0, 0)] if dead else [(1, 1), (2, 2)]), "each ends by the server that forked it"
