"""A case executor on the CPU with checks that stand in for kernels: what it asks of them, and what it takes down."""

from __future__ import annotations

import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from gpucheck import checks
from gpucheck.checks.base import OUTPUTS, Allowed, Check, leave_outputs
from gpucheck.library import engines
from gpucheck.model.case import Case
from gpucheck.model.conditions import Conditions
from gpucheck.model.record import Launch, NeededLaunches
from gpucheck.report.blocks import KERNEL, STAGES
from gpucheck.triton_hooks.launch_hooks import kernel_cache
from gpucheck.verify import digest
from gpucheck.worker import parcels
from gpucheck.worker.device import executor as executing
from gpucheck.worker.device import stream_stress
from gpucheck.worker.device.case_pass import DevicePasses, Library
from gpucheck.worker.device.executor import CaseExecutor
from gpucheck.worker.device.guarded_memory import GuardedMemory
from gpucheck.worker.device.launch_observer import Observer
from gpucheck.worker.device.placements import BINDINGS
from gpucheck.worker.launch_journal import Journal, read
from gpucheck.worker.memory_fills import FURTHER_FILL, SURE, depends_on_fill, fill_of
from gpucheck.worker.protocol import (
    ALWAYS,
    Reply,
    Request,
    outputs_file,
)
from gpucheck.worker.supervisor.violations import observed_violations

CASE = Case("matmul", {}, "exact", "matmul/x", "matmul", 0)
RIGHT = torch.arange(4.0)


def copied(kernel: Kernel, x: torch.Tensor) -> Any:
    return torch.empty(4).copy_(x)


class Kernel:
    """A check whose kernel copies its input, or does otherwise.

    Args:
        answer: makes y, or all outputs, of this check and the input; its calls are counted in ``launches``, from 1.
    """

    late_inputs = ("x", "absent")
    operands, allowed, needed_launches = Check.operands, Check.allowed, Check.needed_launches
    needs_memory = Check.needs_memory

    def __init__(self, answer: Callable[[Any, torch.Tensor], Any] = copied) -> None:
        self.answer = answer
        self.launches = 0
        self.seeds: list[int] = []

    def inputs(self, case: Any, generator: Any) -> dict[str, Any]:
        self.seeds.append(case.seed)
        return {"x": RIGHT + 10}

    def prepare(self, case: Any, inputs: dict[str, Any], runtime: Any) -> Any:
        return inputs

    def kernels(self, case: Any, runtime: Any) -> tuple[str, ...]:
        return ("copy",)

    def launch(self, case: Any, prepared: Any, runtime: Any) -> dict[str, Any]:
        self.launches += 1
        made = self.answer(self, prepared["x"])
        return made if isinstance(made, dict) else {"y": made}

    def inspect(self, case: Any, prepared: Any, outputs: dict[str, Any], runtime: Any) -> None:
        pass


@pytest.fixture
def observer() -> Observer:
    return Observer()


@pytest.fixture
def executor(observer: Observer) -> CaseExecutor:
    return CaseExecutor(BINDINGS["cpu"](), torch.device("cpu"), Library(Path("/lib"), "v3.5"), observer)


@pytest.fixture
def run(executor: CaseExecutor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs a check under conditions; gives the reply and the outputs that were saved, in order."""

    def run(
        check: Any, known: Any = None, timed: Any = None, suspect: int | None = None, box: str = "", **conditions: Any
    ) -> tuple[Reply, list[Any]]:
        monkeypatch.setattr(checks, "load", lambda name: check)
        torch.save({"x": RIGHT}, tmp_path / "inputs")
        outputs = str(tmp_path / "outputs")
        inputs = str(tmp_path / "inputs")
        asked = Request(
            CASE,
            Conditions("cpu", **conditions),
            inputs,
            (outputs,),
            timed,
            box=box,
            known=known or {},
            suspect=suspect,
        )
        reply = executor.run(asked)
        saved = [parcels.on_host(outputs_file(outputs, number))["y"] for number in range(len(reply.saved))]
        return reply, saved

    return run


def test_a_case_runs_twice_in_memory_filled_otherwise(run: Any) -> None:
    check = Kernel()
    reply, (y,) = run(check)
    assert (reply.status, check.launches, reply.fills) == ("ran", 2, [0xFF, 0x00])
    assert len(set(reply.digests)) == 1 and torch.equal(y, RIGHT)
    assert reply.expected_kernels == ("copy",) and reply.guards == []
    assert {"load", "prepare", "launch", "side effects", "copy"} <= reply.seconds.keys() <= {*STAGES, KERNEL}


def test_a_call_that_replaces_clocks_streams_and_waits_is_run_again_and_timed_all_the_same(
    run: Any, observer: Observer, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream, waited = SimpleNamespace(cuda_stream=7), list[Any]()
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: stream)
    monkeypatch.setattr(torch.cuda, "synchronize", waited.append)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    device = torch.device("cuda", 0)
    on_gpu = DevicePasses(BINDINGS["cpu"](), device, Library(Path("/lib"), "v3.5"), observer)

    def patches(kernel: Kernel, x: torch.Tensor) -> Any:
        monkeypatch.setattr(torch.cuda, "current_stream", lambda device: None)
        monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
        monkeypatch.setattr(time, "perf_counter", lambda: 0.0)
        return copied(kernel, x)

    reply, _ = run(Kernel(patches))
    assert (reply.status, len(reply.digests)) == ("ran", 2) and min(reply.seconds.values()) >= 0
    on_gpu.synchronize()
    assert (on_gpu.current_stream(), waited) == (7, [device])


def test_what_takes_much_memory_keeps_none_of_it_behind_its_case(run: Any, executor: CaseExecutor) -> None:
    check: Any = Kernel()
    assert run(check)[0].status == "ran" and len(executor.memory), "the next pass resets it"
    check.needs_memory = lambda case: 48 << 30
    assert run(check)[0].status == "ran" and not len(executor.memory)


def test_a_pair_whose_outputs_are_taken_by_another_process_leaves_that_one_room(
    run: Any, executor: CaseExecutor, tmp_path: Path
) -> None:
    box = parcels.make_box(str(tmp_path / "box"), 4096, torch.device("cpu"))
    reply, (saved,) = run(Kernel(), box=box.path)
    assert reply.status == "ran" and torch.equal(saved, RIGHT) and not len(executor.memory)


def test_a_case_of_the_library_in_a_process_of_an_engine_runs_once_that_is_imported(
    run: Any, executor: CaseExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    check: Any = Kernel()
    check.engine = ""
    monkeypatch.setattr(executor, "library", lambda: "the adapter")
    reply, _ = run(check, engine="vllm")
    assert reply.status == "inapplicable" and "no engine is at hand" in reply.message and not check.launches
    loaded: list[Any] = []
    monkeypatch.setattr(engines, "load", lambda library, device: loaded.append((library, check.launches)))
    reply, _ = run(check, engine="vllm")
    assert (reply.status, loaded, check.launches) == ("ran", [("the adapter", 0)], 2)
    check.engine = "vllm"  # imports it where it needs it
    assert run(check, engine="vllm")[0].status == "ran" and len(loaded) == 1


def test_a_store_outside_is_taken_down(run: Any) -> None:
    def too_far(kernel: Kernel, x: torch.Tensor) -> Any:
        y = torch.empty(4)
        y.as_strided((5,), (1,)).view(torch.int32).fill_(0x01010101)
        return y

    reply, _ = run(Kernel(too_far))
    assert reply.guards == ["4 bytes written after the float32 tensor of shape (4,), nearest 1 off"] * 2


def test_what_one_pass_prepared_is_gone_before_the_next_one_takes_as_much(run: Any) -> None:
    class Prepares(Kernel):
        made: list[Any] = []

        def prepare(self, case: Any, inputs: dict[str, Any], runtime: Any) -> Any:
            assert not [each for each in self.made if each() is not None]
            self.made.append(weakref.ref(inputs["x"]))
            return inputs

    check = Prepares()
    reply, _ = run(check, repeat=3)
    assert (reply.status, len(check.made)) == ("ran", 3), reply.traceback


@pytest.mark.parametrize(
    "view",
    [torch.arange(40.0).view(5, 8)[:, 3:7], torch.full((1, 1), 3.0).expand(5, 4), torch.arange(20.0).view(4, 5).mT],
    ids=["slice", "expanded", "transposed"],
)
def test_a_view_made_by_inputs_reaches_prepare_with_its_strides(
    executor: CaseExecutor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, view: torch.Tensor
) -> None:
    class AssumesDense(Kernel):
        def prepare(self, case: Any, inputs: dict[str, Any], runtime: Any) -> Any:
            self.strides = inputs["x"].stride()
            return inputs

    check = AssumesDense(lambda _, x: torch.empty(20).copy_(x.as_strided((20,), (1,))))
    monkeypatch.setattr(checks, "load", lambda name: check)
    torch.save({"x": view}, tmp_path / "inputs")
    reply = executor.run(Request(CASE, Conditions("cpu"), str(tmp_path / "inputs"), (str(tmp_path / "outputs"),)))
    assert reply.status == "ran" and check.strides == view.stride()
    dense = view.stride() == (1, 5)
    assert (len(set(reply.digests)) == 1) is dense, "what lies in gaps is the fill"
    gap = ", or between the elements of," if view.stride() == (8, 1) else ""
    assert reply.sensitive == ("" if dense else f"outside of{gap} the float32 tensor of shape (5, 4)")


def test_memory_that_is_read_before_it_is_written_is_named(run: Any) -> None:
    def unwritten(kernel: Kernel, x: torch.Tensor) -> Any:
        y = torch.empty(4)
        y[:3] = x[:3]
        return y

    reply, _ = run(Kernel(unwritten))
    assert reply.fills == [fill_of(number) for number in range(SURE)]
    assert reply.sensitive == "within or next to the float32 tensor of shape (4,), before anything was written there"


def test_outputs_that_follow_the_fill_are_kept_for_three_fills(run: Any, tmp_path: Path) -> None:
    reply, _ = run(Kernel(lambda *_: torch.empty(4, dtype=torch.int32)))
    held = {
        fill: torch.load(outputs_file(str(tmp_path / "outputs"), number))["y"][0].item()
        for fill, number in reply.by_fill.items()
    }
    assert held == {0xFF: -1, 0x00: 0, FURTHER_FILL: 0x3F3F3F3F} and len(reply.saved) == 2


def test_a_case_is_looked_at_first_where_one_alike_or_itself_in_another_process_was(run: Any) -> None:
    def unwritten(kernel: Kernel, x: torch.Tensor) -> Any:
        first, *others = (torch.empty(size) for size in (4, 5, 6, 7))
        first[:3] = x[:3]
        return {"y": first, **{f"y{number}": other.zero_() for number, other in enumerate(others)}}

    needed, suspect = [], None
    for told in (None, None, 0, 1, 99):  # 1: where it is; 0 and 99: elsewhere, and nowhere
        check = Kernel(unwritten)
        reply, _ = run(check, suspect=told)
        assert reply.sensitive.startswith("within or next to the float32 tensor of shape (4,)")
        needed.append(check.launches)
        suspect = reply.suspect
    halves, known = SURE + 2 + 2 + 1, SURE + 1 + 2 + 1  # passes, halves or the known place, two, a fill
    assert suspect == 1 and needed == [halves, known, halves + 1, known, halves]


def test_a_rank_whose_memory_does_not_matter_finds_that_in_one_pass(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a case that ranks run together the outputs of all follow what the memory of one held."""

    def of_another_rank(kernel: Kernel, x: torch.Tensor) -> Any:
        others = [torch.zeros(size) for size in range(1, 9)]
        odd = fill_of(kernel.launches - 1) == 0 or kernel.launches > SURE  # as the second of the fills has it
        return {"y": x + odd, **{f"y{number}": other for number, other in enumerate(others)}}

    needed = []
    for ranks in (1, 2):
        monkeypatch.setattr(sys.modules[__name__], "CASE", replace(CASE, rank=0, ranks=ranks))
        reply, _ = run(check := Kernel(of_another_rank))
        assert reply.sensitive == "" and reply.suspect is None and len(set(reply.digests)) == 2
        needed.append(check.launches)
    searched, told = needed
    assert told == SURE + 1 + 1 < searched, "passes, one with all of its memory filled otherwise, a fill"


def test_outputs_with_the_bits_that_came_first_are_compared_where_they_lie(
    run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    copied: list[Any] = []

    def on_host(outputs: dict[str, Any]) -> dict[str, Any]:
        copied.append({name: value.clone() for name, value in outputs.items()})
        return copied[-1]

    monkeypatch.setattr(executing, "on_host", on_host)
    reply, saved = run(Kernel(lambda kernel, x: x + (kernel.launches == 3)), repeat=6)
    assert len(copied) == len(saved) == 2
    first, third = digest.whole(RIGHT), digest.whole(RIGHT + 1)
    assert reply.digests == [first, first, third, first, first, first]
    assert reply.saved == [first, third] and len(reply.fills) == 6
    assert torch.equal(saved[0], RIGHT) and torch.equal(saved[1], RIGHT + 1)


def test_a_first_call_with_bits_that_are_known_is_the_last(run: Any) -> None:
    known = {"y": digest.whole(RIGHT)}
    reply, (y,) = run(Kernel(), known, repeat=4)
    assert len(reply.digests) == 1 and torch.equal(y, RIGHT)
    reply, _ = run(Kernel(lambda kernel, x: x + (kernel.launches < 2)), known, repeat=4)
    assert len(reply.digests) == 4, "a process that begins otherwise shows all of its calls"


class Tuned(Kernel):
    """A kernel for which an autotuner tries two configurations in the first call."""

    def __init__(self, observer: Observer, *, in_place: bool) -> None:
        super().__init__()
        self.observer, self.in_place = observer, in_place

    def launch(self, case: Any, prepared: Any, runtime: Any) -> dict[str, Any]:
        self.launches += 1
        first = self.launches == 1
        if first:
            self.observer.log.tried["copy"] += 2
        y = torch.empty(4)
        y[2:] = prepared["x"][2:] * (3 if first and self.in_place else 1)
        if first or self.in_place:
            y[:2] = prepared["x"][:2]
        return {"y": y}


def test_a_call_that_is_tuned_tells_nothing_of_memory(run: Any, observer: Observer) -> None:
    reply, saved = run(Tuned(observer, in_place=False))
    assert reply.tuned == 1 and torch.equal(saved[0], RIGHT)
    digests, fills = reply.settled
    assert len(digests) == len(fills) == 8 and fills[:2] == [0xFF, 0x00]
    assert depends_on_fill(digests, fills), "what the chosen configuration does not write follows the fill"
    assert [reply.by_fill[fill] for fill in (0xFF, 0x00)] == [1, 2], "files of calls that were not tuned"
    assert reply.sensitive.startswith("within or next to")


def test_a_call_that_is_tuned_is_followed_by_as_many_others(run: Any, observer: Observer) -> None:
    for repeat, calls in ((1, 3), (5, 6)):
        check = Tuned(observer, in_place=True)
        reply, saved = run(check, repeat=repeat)
        assert (len(reply.digests), reply.tuned, len(saved)) == (calls, 1, 2) and len(set(reply.settled[0])) == 1
        launches = [Launch("copy", calls + 2, None, [], None, "", "", 0, 0, [], tried=2)]
        (told,) = observed_violations(reply, launches)
        assert (told.kind, told.detail) == (
            "tuning differs",
            "the first call, for which the autotuner tried 2 configurations of copy on the call's own tensors, gave "
            f"other bits than the {calls - 1} after it",
        )


def test_a_tuned_call_with_the_bits_of_all_others_is_no_violation(run: Any, observer: Observer) -> None:
    check = Kernel()
    observer_log = observer.log
    reply, _ = run(check)
    assert observer_log is not observer.log and reply.tuned == 0 and len(reply.digests) == 2
    reply.tuned = 1
    assert observed_violations(reply, [Launch("copy", 4, None, [], None, "", "", 0, 0, [], tried=2)]) == []


def test_a_delayed_consumer_sees_what_a_second_launch_overwrites(run: Any) -> None:
    check = Kernel()
    reply, (y,) = run(check, consumer="delayed")
    assert torch.equal(y, RIGHT) and check.launches == 4 and set(check.seeds) == {1}, "other data, from another seed"
    scratch = torch.empty(4)  # which the next call overwrites
    _, (y,) = run(Kernel(lambda _, x: scratch.copy_(x)), consumer="delayed")
    assert torch.equal(y, RIGHT + 10)
    _, (y,) = run(Kernel(lambda _, x: scratch.copy_(x)))
    assert torch.equal(y, RIGHT), "nobody sees it otherwise"


def test_a_check_looks_once_at_more_than_numbers_and_its_launches_for_that_do_not_count(
    run: Any, observer: Observer
) -> None:
    class Curious(Kernel):
        looked: list[Any] = []

        def launch(self, case: Any, prepared: Any, runtime: Any) -> dict[str, Any]:
            observer.add(("copy",), lambda: Launch("copy", 1, None, ["cpu"], None, "", "", 0, 0, []))
            return super().launch(case, prepared, runtime)

        def inspect(self, case: Any, prepared: Any, outputs: dict[str, Any], runtime: Any) -> None:
            self.looked.append((prepared["x"].tolist(), outputs["y"].tolist()))
            self.launch(case, prepared, runtime)
            runtime.report_violation("inputs", "x changed")
            runtime.note("look here")

    check = Curious()
    reply, _ = run(check)
    assert check.looked == [([0, 1, 2, 3], [0, 1, 2, 3])] and check.launches == 3
    assert [launch["count"] for launch in reply.launches] == [2]
    assert reply.blamed == [("inputs", "x changed")]
    assert reply.message == "look here" and reply.status == "ran"
    run(check, concurrency=2)
    assert len(check.looked) == 1, "not where several threads launch at once"


def test_calls_are_counted_with_their_rehearsals_and_needs(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream_stress, "hold_back", lambda inputs, device: lambda: None)
    for conditions, calls in (({}, 2), ({"late": True}, 4), ({"consumer": "delayed"}, 4), ({"concurrency": 3}, 6)):
        check = Kernel()
        reply, _ = run(check, **conditions)
        assert reply.calls == check.launches == calls and reply.needed == (NeededLaunches(("copy",)),)


@pytest.mark.parametrize(
    ("conditions", "elsewhere", "wrong", "passes"),
    [
        ({"late": True}, True, 99, 8),  # as often as makes a queue that all of them shared by chance unlikely
        ({"late": True}, True, 5, 5),  # until outputs differ, and then as often as any case
        ({"consumer": "prompt"}, True, 99, 8),
        ({"late": True}, False, 99, 2),
        ({}, True, 99, 2),
    ],
)
def test_a_kernel_on_another_stream_is_called_until_chance_cannot_hide_that_nobody_waits(
    run: Any, observer: Observer, monkeypatch: pytest.MonkeyPatch, conditions: Any, elsewhere: bool, wrong: int,
    passes: int,
) -> None:  # fmt: skip
    monkeypatch.setattr(stream_stress, "hold_back", lambda inputs, device: lambda: None)
    monkeypatch.setattr(stream_stress, "delay_launches", lambda: None)

    def launched(kernel: Kernel, x: torch.Tensor) -> Any:
        stream = 7 if elsewhere else None
        observer.add((stream,), lambda: Launch("copy", 1, None, ["cpu"], stream, "", "", 0, 0, []))
        return x + (kernel.launches >= 2 * wrong)

    reply, _ = run(Kernel(launched), **conditions)
    assert len(reply.digests) >= passes if wrong < 99 else len(reply.digests) == passes
    assert len(set(reply.digests)) == 1 + (wrong < 99)


def test_a_side_stream_is_the_same_in_all_passes_and_each_thread_has_its_own(
    executor: CaseExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: object())
    monkeypatch.setattr(stream_stress, "side_stream", lambda side: side)
    side = Conditions("cpu", stream="side")
    first, second = executor._stream(side), executor._stream(side)
    assert first is second and executor._stream(side, own=True) is not executor._stream(side, own=True)


class Damaging(Kernel):
    """Right numbers, and more than that."""

    def __init__(self, deed: Any, allowed: Allowed | None = None) -> None:
        super().__init__()
        self.deed, self.fine = deed, allowed or Allowed()

    def prepare(self, case: Any, inputs: dict[str, Any], runtime: Any) -> Any:
        return {"w": torch.ones(4), **inputs}

    def launch(self, case: Any, prepared: Any, runtime: Any) -> dict[str, Any]:
        y = super().launch(case, prepared, runtime)["y"]
        return {"y": y if (made := self.deed(prepared, y)) is None else made}

    def allowed(self, case: Any, prepared: Any, inputs: Any, runtime: Any) -> Allowed:
        assert torch.equal(inputs["x"], RIGHT), "as they were before the call"
        return self.fine


kept_output = torch.empty(4)
DEEDS = {
    "writes": (
        lambda given, y: (given["x"].view(torch.int32)[2:].zero_(), None)[1],
        "inputs",
        "changed x: 2 of 4 elem",
    ),
    "weights": (lambda given, y: (given["w"].mul_(2), None)[1], "inputs", "changed w: 4 of 4 elements, first at (0)"),
    "alias": (lambda given, y: given["x"], "alias", "shares the memory of x"),
    "reused": (lambda given, y: kept_output.copy_(y), "reused", "memory that an earlier call returned"),
    "strided": (lambda given, y: torch.empty(4, 2)[:, 0].copy_(y), "layout", "its elements do not lie side by side"),
    "settings": (
        lambda given, y: torch.set_default_dtype(torch.float64),
        "settings",
        "default dtype was torch.float32",
    ),
}


@pytest.mark.parametrize("name", DEEDS)
def test_what_a_call_does_beside_answering_is_taken_down(run: Any, name: str) -> None:
    deed, kind, words = DEEDS[name]
    reply, (y,) = run(Damaging(deed))
    assert torch.equal(y, RIGHT) and torch.get_default_dtype() is torch.float32
    assert {blamed for blamed, _ in reply.blamed} == {kind} and all(words in detail for _, detail in reply.blamed)


def test_what_the_reference_does_too_is_right(run: Any) -> None:
    fine = Allowed(frozenset({"x", "w"}), frozenset({"y"}), frozenset({"y"}))
    for deed, kind, _ in DEEDS.values():
        assert bool(run(Damaging(deed, fine))[0].blamed) == (kind == "settings")


@pytest.mark.parametrize("conditions", [{"late": True}, {"consumer": "delayed"}, {"concurrency": 3}, {"repeat": 4}])
def test_calls_under_stress_are_watched_too(run: Any, monkeypatch: pytest.MonkeyPatch, conditions: Any) -> None:
    monkeypatch.setattr(stream_stress, "hold_back", lambda inputs, device: lambda: None)
    assert run(Damaging(lambda given, y: None), **conditions)[0].blamed == []
    deed, kind, words = DEEDS["weights"]
    blamed = run(Damaging(deed), **conditions)[0].blamed
    assert {seen for seen, _ in blamed} == {kind} and all("w" in detail for _, detail in blamed)


def test_launches_at_once_are_kept_and_observed_one_by_one(run: Any, observer: Observer) -> None:
    gate = threading.Barrier(4, timeout=120)  # breaks unless four threads are in here together

    def racing(kernel: Kernel, x: torch.Tensor) -> Any:
        observer.add(("copy",), lambda: Launch("copy", 1, None, ["cpu"], None, "", "", 0, 0, []))
        gate.wait()
        return x + threading.current_thread().name.endswith("_2")

    check = Kernel(racing)
    reply, saved = run(check, concurrency=4)
    assert reply.fills == [fill_of(number // 2) for number in range(8)], "two of four are looked at, in each pass"
    assert {float(y[0]) for y in saved} == {0.0, 1.0} and set(check.seeds) == {1}
    assert [(launch["kernel"], launch["count"]) for launch in reply.launches] == [("copy", 16)]


def test_threads_that_mix_up_what_they_share_are_seen(run: Any) -> None:
    gate, shared = threading.Barrier(2, timeout=120), SimpleNamespace()

    def mixing(kernel: Kernel, x: torch.Tensor) -> Any:
        if float(x[0]) != 0:
            shared.operand = x
        gate.wait()
        return shared.operand + 0

    _, (y,) = run(Kernel(mixing), concurrency=2)
    assert torch.equal(y, RIGHT + 10), "another thread's data"


def test_a_bench_that_is_behind_has_other_data_first(run: Any, executor: CaseExecutor) -> None:
    executor.behind = True
    check = Kernel()
    reply, (y,) = run(check)
    assert torch.equal(y, RIGHT) and check.launches == 4 and len(reply.digests) == 2 and set(check.seeds) == {1}


def failing(error: Exception) -> Kernel:
    """A check whose kernel raises."""

    def fail(kernel: Kernel, x: torch.Tensor) -> Any:
        raise error

    return Kernel(fail)


def test_what_a_thread_raises_is_the_error_of_the_case(run: Any) -> None:
    reply, _ = run(failing(RuntimeError("in a thread\nadvice")), concurrency=2)
    assert (reply.status, reply.message, reply.fatal) == ("error", "RuntimeError: in a thread", False)
    assert "in launch" in reply.traceback


class Late(Kernel):
    """A kernel that reads its input at its launch, or behind what is on the input's stream."""

    def __init__(self, *, waits: bool) -> None:
        super().__init__()
        self.waits = waits
        self.produce: Any = None

    def launch(self, case: Any, prepared: Any, runtime: Any) -> dict[str, Any]:
        if self.waits and self.produce:
            self.produce()
        return super().launch(case, prepared, runtime)


@pytest.mark.parametrize("waits", [True, False])
def test_a_kernel_that_does_not_wait_reads_nan(
    executor: CaseExecutor, monkeypatch: pytest.MonkeyPatch, waits: bool
) -> None:
    check = Late(waits=waits)

    def hold_back(inputs: Any, device: Any) -> Any:
        (x,) = inputs
        real = x.clone()
        x.fill_(torch.nan)
        check.produce = lambda: x.copy_(real)
        return lambda: None  # on the stream, behind the delay

    monkeypatch.setattr(stream_stress, "hold_back", hold_back)
    reply = Reply("ran")
    _, (outputs,) = executor.one_pass(check, CASE, {"x": RIGHT}, reply, 0xFF, Conditions("cpu", late=True))
    assert check.launches == 2, "one rehearsal, so that nothing is left to compile"
    assert torch.equal(outputs["y"], RIGHT) if waits else bool(outputs["y"].isnan().all())
    assert reply.guards == [] and len(executor.memory) == 3, "x, and y of both launches, stay watched"


@pytest.mark.parametrize("names", [(), ("absent",)])
def test_a_check_of_which_no_input_can_come_late_is_told_instead_of_passing(
    executor: CaseExecutor, names: tuple[str, ...]
) -> None:
    check: Any = Kernel()
    check.late_inputs = names
    with pytest.raises(ValueError, match=rf"late_inputs of the check names {names[0] if names else 'none'}, .*'x'"):
        executor.one_pass(check, CASE, {"x": RIGHT}, Reply("ran"), 0xFF, Conditions("cpu", late=True))


@pytest.mark.parametrize("ordered", [True, False])
def test_a_prompt_consumer_reads_behind_a_launch_that_is_held_back(
    run: Any, monkeypatch: pytest.MonkeyPatch, ordered: bool
) -> None:
    """A launch that went to another stream has written nothing yet when the consumer reads."""
    held = SimpleNamespace(back=False)

    def elsewhere(kernel: Kernel, x: torch.Tensor) -> Any:
        y = torch.empty(4)
        return y if held.back and not ordered else y.copy_(x)

    monkeypatch.setattr(stream_stress, "delay_launches", lambda: setattr(held, "back", True))
    _, (y, *_) = run(Kernel(elsewhere), consumer="prompt")
    assert torch.equal(y, RIGHT) if ordered else bool(y.isnan().all())


class Located(Kernel):
    """Notes which device is current at each call into the code under test."""

    def __init__(self) -> None:
        super().__init__()
        self.current: list[str] = ["another"]
        self.seen: list[tuple[str, str]] = []

    def prepare(self, case: Any, inputs: dict[str, Any], runtime: Any) -> Any:
        self.seen.append(("prepare", self.current[-1]))
        return super().prepare(case, inputs, runtime)

    def launch(self, case: Any, prepared: Any, runtime: Any) -> dict[str, Any]:
        self.seen.append(("launch", self.current[-1]))
        y = super().launch(case, prepared, runtime)["y"]
        return {"y": y, "unwritten": torch.empty(1)}  # so that the memory whose fill shows is looked for, too

    def inspect(self, case: Any, prepared: Any, outputs: dict[str, Any], runtime: Any) -> None:
        self.seen.append(("inspect", self.current[-1]))


@pytest.mark.parametrize("more", [{}, {"concurrency": 2}, {"consumer": "delayed"}, {"warm_up": True}])
def test_under_a_guard_every_call_into_the_code_under_test_has_the_device_of_its_tensors_current(
    run: Any, monkeypatch: pytest.MonkeyPatch, more: dict[str, Any]
) -> None:
    """A guard around the launch alone leaves wrong what ``prepare`` and ``inspect`` call."""

    class Guard:
        def __init__(self, device: Any) -> None:
            self.device = device

        def __enter__(self) -> None:
            check.current.append(str(self.device))

        def __exit__(self, *_: Any) -> None:
            check.current.pop()

    monkeypatch.setattr(torch.cuda, "device", Guard)
    seen = {}
    for guarded in (False, True):
        check = Located()
        run(check, guarded=guarded, **more)
        seen[guarded] = check.seen
    assert {where for _, where in seen[False]} == {"another"}
    assert {where for _, where in seen[True]} == {"cpu"}, seen[True]
    whole = {"prepare", "launch"} | ({"inspect"} if "concurrency" not in more else set())
    assert {what for what, _ in seen[True]} == whole


def test_a_warm_up_runs_on_the_first_device_and_comes_back(run: Any, executor: CaseExecutor) -> None:
    entered: list[Any] = []

    class Recorded(type(executor.binding)):  # type: ignore[misc]
        def enter(self, index: int) -> Any:
            entered.append(index)
            return torch.device("cpu")

        def settle(self, device: Any) -> None:
            entered.append(device)

    executor.binding = Recorded()
    check = Kernel()
    reply, (y,) = run(check, warm_up=True)
    assert entered == [0, torch.device("cpu")] and check.launches == 3
    assert torch.equal(y, RIGHT) and len(reply.digests) == 2


@pytest.fixture(autouse=True)
def threads_end() -> Iterator[None]:
    yield
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("launcher")]


def test_memory_of_the_second_launch_is_filled_before_it(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = GuardedMemory(torch.device("cpu"))
    memory.reset(0xFF)
    forms = [((4,), (1,), torch.float32), ((2, 2), (2, 1), torch.int32), ((4,), (1,), torch.float32)]
    first = [memory.empty(*form) for form in forms]
    memory.reserve()
    monkeypatch.setattr(torch, "full", None)  # no further filling
    again = [memory.empty(*form) for form in (forms[1], forms[0], forms[2])]
    assert len({tensor.data_ptr() for tensor in (*first, *again)}) == 6
    assert all(bool((tensor.view(torch.int32) == -1).all()) for tensor in again)
    monkeypatch.undo()
    assert memory.empty(*forms[0]).shape == (4,), "a form that was not rehearsed is made on the spot"
    memory.reserve()
    memory.reset(0x00)
    assert bool((memory.empty(*forms[0]) == 0).all()), "a reset forgets what is reserved"


class Watch:
    """A stopwatch that calls once and says how long it took."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error
        self.told: list[Any] = []

    def time(
        self, call: Any, on_return: Any, check: Any, case: Any, inputs: Any, placed: Any, allowed: Any, reply: Reply
    ) -> None:
        returned = call()
        self.told = [returned["y"], inputs["x"], placed["x"], allowed]
        if self.error:
            raise self.error
        on_return(returned)
        reply.timings["call"] = 0.5


@pytest.fixture
def timed_run(run: Any, executor: CaseExecutor, monkeypatch: pytest.MonkeyPatch) -> Callable[[Kernel, Watch], Reply]:
    """Runs a check whose calls a stand-in times."""

    def timed(check: Kernel, watch: Watch) -> Reply:
        monkeypatch.setattr(executor, "_stopwatch", watch)
        reply, _ = run(check, timed=ALWAYS)
        return reply  # type: ignore[no-any-return]

    return timed


class Launching(Kernel):
    """A check whose launches are seen, each under a name of its own from the third on."""

    def __init__(self, observer: Observer) -> None:
        super().__init__()
        self.observer = observer

    def launch(self, case: Any, prepared: Any, runtime: Any) -> dict[str, Any]:
        made = super().launch(case, prepared, runtime)
        name = "copy" if self.launches < 3 else "late"
        self.observer.add((name,), lambda: Launch(name, 1, None, ["cpu"], None, "", "", 0, 0, []))
        return made


def test_a_case_is_timed_on_its_last_operands_and_that_is_no_launch(
    timed_run: Any, executor: CaseExecutor, observer: Observer, monkeypatch: pytest.MonkeyPatch
) -> None:
    check, watch, settled = Launching(observer), Watch(), []
    monkeypatch.setattr(executor, "synchronize", lambda: settled.append(check.launches))
    reply = timed_run(check, watch)
    assert reply.timings == {"call": 0.5} and "speed" in reply.seconds and check.launches == 3
    assert [(launch["kernel"], launch["count"]) for launch in reply.launches] == [("copy", 2)]
    assert all(torch.equal(tensor, RIGHT) for tensor in watch.told[:3]) and watch.told[3] is ALWAYS
    assert len(reply.digests) == 2 and executor.last is None, "nothing is kept for the next case to pay for"
    assert settled[-1] == 3, "what is launched for the time has ended before the case has"


def test_timed_calls_must_give_the_bits_that_were_judged(timed_run: Any) -> None:
    assert timed_run(Kernel(), Watch()).blamed == []
    reply = timed_run(Kernel(lambda kernel, x: x + (kernel.launches > 2)), Watch())
    words = "call 3 of 3 with equal inputs gave other bits than those judged: y"
    assert len(set(reply.digests)) == 1 and reply.blamed == [("repeats differ", words)]


def test_what_is_launched_for_the_time_does_not_hide_a_fallback(
    timed_run: Any, observer: Observer, monkeypatch: pytest.MonkeyPatch
) -> None:
    watch = Watch()
    monkeypatch.setattr(watch, "time", lambda *_: observer.add(("copy",), lambda: None))  # type: ignore[arg-type, return-value]
    assert timed_run(Kernel(), watch).launches == []


def test_a_case_whose_passes_differ_is_not_timed(timed_run: Any) -> None:
    watch = Watch()
    reply = timed_run(Kernel(lambda kernel, x: x + kernel.launches), watch)
    assert reply.status == "ran" and not reply.timings and not watch.told


def test_a_call_that_breaks_the_device_while_it_is_timed_is_an_error(timed_run: Any, observer: Observer) -> None:
    reply = timed_run(Launching(observer), Watch(RuntimeError("an illegal memory access")))
    assert reply.status == "error" and "illegal memory access" in reply.message
    assert [launch["count"] for launch in reply.launches] == [2]


class Halfway(Kernel):
    """Raises after its first output, which is on the host or else where nothing can be read any more."""

    def __init__(self, device: str = "cpu") -> None:
        super().__init__()
        self.device = device

    def launch(self, case: Any, prepared: Any, runtime: Any) -> dict[str, Any]:
        error = RuntimeError("halfway")
        leave_outputs(error, lambda: {"y": prepared["x"].clone().to(self.device)})
        raise error


def test_what_was_computed_before_an_error_is_saved(run: Any) -> None:
    reply, (y,) = run(Halfway())
    assert (reply.status, reply.message) == ("error", "RuntimeError: halfway")
    assert torch.equal(y, RIGHT)


def test_nothing_is_saved_where_the_device_gives_nothing_away(run: Any, executor: CaseExecutor) -> None:
    executor.poisoned_context = lambda: True  # type: ignore[method-assign]
    reply, saved = run(Halfway("meta"))
    assert reply.fatal and saved == []


def test_copies_on_the_host_outlive_the_device(run: Any, executor: CaseExecutor) -> None:
    executor.poisoned_context = lambda: True  # type: ignore[method-assign]
    reply, (y,) = run(Halfway())
    assert reply.sticky and torch.equal(y, RIGHT)


def test_outputs_that_cannot_be_had_do_not_hide_the_error() -> None:
    error = RuntimeError("first")

    def fails() -> dict[str, Any]:
        raise ValueError("second")

    leave_outputs(error, fails)
    assert not hasattr(error, OUTPUTS)


def test_files_that_cannot_be_written_are_no_failure_of_the_device(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    save = torch.save

    def full(what: Any, path: Any, *rest: Any) -> None:
        if "outputs" in str(path):
            raise RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed")
        save(what, path, *rest)

    monkeypatch.setattr(torch, "save", full)
    reply, _ = run(Kernel())
    assert reply.status == "harness" and "outputs cannot be used: PytorchStreamWriter failed" in reply.message


def test_inputs_that_are_gone_are_no_failure_of_the_device(executor: CaseExecutor, tmp_path: Path) -> None:
    reply = executor.run(Request(CASE, Conditions("cpu"), str(tmp_path / "inputs"), (str(tmp_path / "outputs"),)))
    assert reply.status == "harness" and "inputs cannot be used" in reply.message


@pytest.mark.parametrize(
    ("error", "fatal"),
    [
        (torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 TiB"), True),
        (MemoryError(), True),
        (RuntimeError("Triton Error [CUDA]: out of memory"), True),
        (ValueError("no"), False),
    ],
)
def test_memory_that_ran_out_retires_the_process(run: Any, error: Exception, fatal: bool) -> None:
    reply, _ = run(failing(error))
    assert (reply.status, reply.fatal, reply.sticky) == ("error", fatal, False)
    assert reply.message.startswith(type(error).__name__) and reply.expected_kernels == ("copy",)


def test_a_lost_context_is_told(run: Any, executor: CaseExecutor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(executor, "poisoned_context", lambda: True)
    reply, _ = run(failing(RuntimeError("CUDA error: an illegal memory access was encountered")))
    assert (reply.status, reply.fatal, reply.sticky) == ("error", True, True)


def test_the_journal_knows_the_kernels_under_test(run: Any, observer: Observer, tmp_path: Path) -> None:
    seen: list[tuple[str, ...]] = []

    def noting(kernel: Kernel, x: torch.Tensor) -> Any:
        seen.append(read(tmp_path / "journal").kernels)
        return copied(kernel, x)

    observer.journal = Journal(tmp_path / "journal")
    run(Kernel(noting))
    assert seen == [("copy",)] * 2


def test_the_kernel_cache_is_tritons(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", "/somewhere")
    assert kernel_cache() == Path("/somewhere")
