"""The process that makes references of pairs: what it answers, and what it says of large outputs."""

from __future__ import annotations

import mmap
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from gpucheck import checks
from gpucheck.checks import CHECKS, sources
from gpucheck.model.check_source import LARGE_PAIR
from gpucheck.model.conditions import Conditions
from gpucheck.model.errors import UsageError
from gpucheck.verify import extremes
from gpucheck.verify.bounds import Estimate
from gpucheck.verify.digest import integers, raw
from gpucheck.verify.expected import Expected
from gpucheck.verify.judge import judge
from gpucheck.verify.views import pieces
from gpucheck.worker import parcels, taken_outputs
from gpucheck.worker.device import reference_process
from gpucheck.worker.device.reference_process import ReferenceProcess, judged_by_window
from gpucheck.worker.protocol import AFTER, REFERENCE, Answer, Ask, Draw, Question, Setup
from gpucheck.worker.sealed_inputs import seal
from gpucheck.worker.supervisor import reference_desk
from gpucheck.worker.supervisor.attempt import NoOutputs
from gpucheck.worker.supervisor.reference_desk import NoAnswer, ReferenceDesk, unpacked

PROBLEM = """
import torch
from torch import nn
class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(7, 5)
    def forward(self, x): return {body}
def get_inputs(): return [torch.randn(30, 7)]
def get_init_inputs(): return []
"""
CANDIDATE = "from torch import nn\nclass ModelNew(nn.Module):\n    def forward(self, x): return x\n"
SETUP = Setup(Conditions("cpu").lifelong, "cpu", 0, 1, 0, 1, "", "", "", "", calls=REFERENCE)


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Callable[[str], Any]]:
    """The case and the check of a problem that computes ``body``."""

    def make(body: str) -> Any:
        (tmp_path / "hard.py").write_text(PROBLEM.format(body=body))
        (tmp_path / "fast.py").write_text(CANDIDATE)
        (source,), _ = sources.find([], [str(tmp_path / "hard.py")], [str(tmp_path / "fast.py")], CHECKS)
        checks.activate([source])
        check = checks.load("fast")
        return check.spec.case({"trial": 1}, "normal", 0), check

    yield make
    checks.activate([])


def test_its_reference_is_the_one_of_the_check_and_says_where_its_values_come_from(pair: Any) -> None:
    case, check = pair("self.linear(x)")
    process = ReferenceProcess(SETUP)
    answer = process.run(Question(Ask.EXPECTED, case))
    found, own = unpacked(answer.content), check.reference(case, check.inputs(case, torch.Generator()))
    assert torch.equal(found["out"].estimate.value, own["out"].estimate.value) and not answer.failure
    assert "float64 values of the CPU" in found["out"].basis and answer.memory["reference, host"] > 0
    assert not process.run(Question(Ask.PLACE, case, "nowhere")).large, "nothing is shared without a GPU"


def test_a_gpu_without_room_for_the_reference_is_nobodys_fault_and_told_in_a_sentence(pair: Any) -> None:
    case, _ = pair(
        "self.linear(x) if x.dtype is torch.float32 else exec('raise torch.cuda.OutOfMemoryError(\"8 GiB\")')"
    )
    answer = ReferenceProcess(SETUP).run(Question(Ask.EXPECTED, case))
    assert not answer.problem and not answer.traceback
    assert answer.failure.startswith("too little memory of the GPU is free") and answer.failure.endswith(": 8 GiB")


def test_a_further_call_has_the_weights_of_the_case_and_inputs_of_its_own(pair: Any) -> None:
    case, check = pair("self.linear(x)")
    other = check.fresh_inputs(case, 9)
    desk = FakeDesk(ReferenceProcess(SETUP))
    found = reference_desk.reference(desk, case, other, dict, gpu=False)  # type: ignore[arg-type]
    given = check.inputs(case, torch.Generator())
    right = other["input0"] @ given["state.linear.weight"].T + given["state.linear.bias"]
    assert not judge({"out": right}, found, {}).mismatches


@pytest.fixture
def large(pair: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, FakeDesk, parcels.Box]:
    """The case of a pair that counts as large, the desk, and the memory for its outputs as a candidate has it."""
    monkeypatch.setenv(LARGE_PAIR, "1")
    case, _ = pair("x * 2")
    desk, (shared, own) = FakeDesk(ReferenceProcess(SETUP)), (tmp_path / name for name in ("shared", "own"))
    for folder in (shared, own):
        folder.mkdir()
    placed = desk.ask(Ask.PLACE, case, str(shared / "0.inputs"), folder=str(own))
    assert placed.size == 4 * (30 * 7 + (7 * 5 + 5) + 30 * 7), "inputs, weights and outputs"
    assert {path.parent for path in tmp_path.rglob("outputs*")} == {own}, "a candidate writes in its own folder alone"
    return case, desk, parcels.open_box(placed.box, torch.device("cpu"), written=True)


def test_a_large_pair_is_judged_in_what_was_copied_out_of_the_memory_that_its_process_can_write(
    large: Any, tmp_path: Path
) -> None:
    case, desk, box = large
    told, draw = str(tmp_path / "own" / "outputs"), Draw(5)
    desk.ask(Ask.SEND, case, str(tmp_path / "own" / "sent"), draw=draw)
    x = parcels.load(str(tmp_path / "own" / "sent"), {}, torch.device("cpu"))["input0"]
    parcels.save({"out": x * 2}, told, box)
    right = desk.take(case, told, keep=True)
    box.memory.zero_()
    parcels.save({"out": x * 2 + (x == x.max())}, told, box)
    wrong = desk.take(case, told, keep=True)
    parcels.save({"out": x * 2}, told, box)
    judged = [desk.ask(Ask.JUDGE, case, outputs=(each.digest,), draw=draw).judged for each in (right, wrong)]
    assert [len(found.mismatches) for found in judged] == [0, 1] and judged[1].mismatches[0].wrong == 1
    assert desk.ask(Ask.COMPARE, case, outputs=(right.digest, wrong.digest)).differing == (1, 210)
    assert desk.ask(Ask.JUDGE, case, outputs=(right.digest,)).judged.mismatches, "those of the case are other ones"


def test_inputs_of_a_timed_call_lie_in_shared_memory_under_their_seal(large: Any, tmp_path: Path) -> None:
    case, desk, _ = large
    sent = [str(tmp_path / "own" / name) for name in ("plain", "sealed")]
    for path, key in zip(sent, (None, 12345), strict=True):
        desk.ask(Ask.SEND, case, path, draw=Draw(5), key=key)
        held = parcels.load(path, {}, torch.device("cpu"))
        if key is None:
            plain = {name: value.clone() for name, value in held.items()}
    assert not torch.equal(held["input0"], plain["input0"])
    assert torch.equal(seal(held, 12345)["input0"], plain["input0"])


def test_inputs_that_a_call_leaves_alone_are_not_drawn_again_and_those_it_changes_are_told_whatever_else_it_changes(
    large: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case, desk, box = large
    told, given = str(tmp_path / "own" / "outputs"), str(tmp_path / "shared" / "0.inputs")
    x = parcels.load(given, {}, torch.device("cpu"))["input0"].clone()
    with monkeypatch.context() as patch:
        patch.setattr(reference_process.further_inputs, "drawn", lambda *_: pytest.fail("drawn again"))
        parcels.save({"out": x * 2, AFTER + "input0": x}, told, box, hashed=False)
        assert desk.take(case, told, keep=True).changed == {}
    (inputs,) = (tmp_path / "shared").glob("inputs*.box")
    parcels.open_box(str(inputs), torch.device("cpu"), written=True).memory.zero_()
    x[3] = 0
    parcels.save({"out": x * 2, AFTER + "input0": x}, told, box, hashed=False)
    assert desk.take(case, told, keep=True).changed == {"input0": (7, 210)}


def test_what_is_not_judged_with_is_let_go_of_before_and_with_the_next_case(large: Any, tmp_path: Path) -> None:
    case, desk, box = large
    told, sent = str(tmp_path / "own" / "outputs"), str(tmp_path / "own" / "sent")
    for _ in range(2):
        desk.ask(Ask.SEND, case, sent)
        parcels.save({"out": parcels.load(sent, {}, torch.device("cpu"))["input0"] * 2}, told, box, hashed=False)
        taken = desk.take(case, told, keep=True)
        assert list((tmp_path / "shared").glob("calls*.memory"))
        assert not desk.ask(Ask.JUDGE, case, outputs=(taken.digest,)).judged.mismatches
        assert not list((tmp_path / "shared").glob("calls*.memory"))
    (process,) = desk.processes
    assert process._expected
    desk.ask(Ask.PLACE, case, str(tmp_path / "shared" / "0.inputs"), folder=str(tmp_path / "own"))
    assert not process._expected and not process._kept


@pytest.mark.parametrize("value", [0.0, float("nan")])
def test_an_output_that_is_one_value_everywhere_is_kept_as_that_value(large: Any, tmp_path: Path, value: float) -> None:
    case, desk, box = large
    told, given = str(tmp_path / "own" / "outputs"), str(tmp_path / "shared" / "0.inputs")
    right = parcels.load(given, {}, torch.device("cpu"))["input0"] * 2
    (process,) = desk.processes
    for wrong in (torch.full((30, 7), value), torch.full((7, 30), value).t()):
        parcels.save({"out": wrong}, told, box)
        taken = desk.take(case, told, keep=True)
        assert not taken.varies and taken.size == wrong.nbytes and taken.digest == parcels.digest({"out": wrong})
        assert process._kept[taken.digest]["out"].untyped_storage().nbytes() == 4
        answer = desk.ask(Ask.JUDGE, case, outputs=(taken.digest,))
        usual = judge({"out": wrong}, process._expected[1], {})
        assert repr(answer.judged) == repr(usual) and usual.mismatches[0].wrong == 210
        assert answer.digests == {"out": taken.digest}
        parcels.save({"out": right}, told, box)
        asked = (taken.digest, desk.take(case, told, keep=True).digest)
        assert desk.ask(Ask.COMPARE, case, outputs=asked).differing == (210, 210)


def test_of_several_outputs_each_that_is_one_value_is_kept_as_such() -> None:
    written = {
        "a": torch.ones(3, 4),
        "b": torch.randn(5),
        "c": torch.ones(0, 3),
        "d": torch.tensor(3),
        "e": torch.ones(2),
    }
    written["e"][1] = -1
    outputs, taken = taken_outputs.look(written, dict, set, parcels.digest)
    assert taken.varies and all(torch.equal(outputs[name], value) for name, value in written.items())
    assert [outputs[name].untyped_storage().nbytes() for name in "abcde"] == [4, 20, 0, 8, 8]


def test_a_reference_leaves_its_room_to_further_calls_that_lack_it(
    large: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case, desk, box = large
    told, sent = str(tmp_path / "own" / "outputs"), str(tmp_path / "own" / "sent")
    parcels.save({"out": torch.ones(30, 7)}, told, box)
    taken, (process,) = desk.take(case, told, keep=True), desk.processes
    for room in (True, False):
        wrong = desk.ask(Ask.JUDGE, case, outputs=(taken.digest,)).judged.mismatches
        assert wrong and process._expected
        monkeypatch.setattr(process, "_has_room", lambda room=room: room)
        desk.ask(Ask.SEND, case, sent, draw=Draw(5))
        assert bool(process._expected) is room


def test_what_it_took_to_look_at_outputs_does_not_send_them_to_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    process, free = ReferenceProcess(SETUP), [1]
    process._device = torch.device("cuda")
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: free.append(30))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free[-1], 100))
    monkeypatch.setattr(reference_process, "_moved", lambda tensors, device: {})
    outputs = {"out": torch.ones(3)}
    assert process._where_there_is_room(outputs) is outputs
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: free.append(20))
    assert process._where_there_is_room(outputs) == {}


@pytest.mark.parametrize("forged", ["other memory", "more than there is", "no tensors"])
def test_shared_memory_that_a_candidate_makes_up_is_not_opened(large: Any, tmp_path: Path, forged: str) -> None:
    case, desk, box = large
    told = tmp_path / "own" / "outputs"
    other = parcels.make_box(str(tmp_path / "own" / "forged.box"), 4096, torch.device("cpu"))
    parcels.save({"out": torch.ones(30, 7)}, str(told), other if forged == "other memory" else box)
    held = torch.load(told, weights_only=True)
    if forged == "more than there is":
        held["boxed"]["out"][1:3] = [1 << 22], [0]  # so many could be copied
    torch.save([1] if forged == "no tensors" else held, told)
    with pytest.raises(NoOutputs, match="outputs cannot be read"):
        desk.take(case, str(told), keep=True)


class FakeDesk(ReferenceDesk):
    """Asks a process that runs here."""

    def __init__(self, *processes: Any) -> None:
        self.processes, self.asked, self.closed = list(processes), [], 0  # type: ignore[var-annotated]
        self._shares, self._again, self._lock = None, (self,), threading.Lock()  # type: ignore[assignment]
        self.memory, self.seconds, self.started, self._ahead = {}, 0.0, threading.Event(), None

    def _ready(self) -> Any:
        self.started.set()

    def _answer(self, question: Question) -> Answer:
        self.asked.append(question.what)
        answer: Answer = self.processes[0].run(question)
        return answer


@pytest.mark.parametrize("failure", [{"failure": "out of memory"}, {"problem": "the bound refuses Model itself"}])
def test_what_the_gpu_cannot_do_is_done_on_the_cpu_unless_the_gpu_was_asked_for(pair: Any, failure: Any) -> None:
    case, _ = pair("x * 2")
    desk = FakeDesk(Constant(Answer(**failure)))
    assert reference_desk.reference(desk, case, None, lambda: {"out": 1}, gpu=False) == {"out": 1}  # type: ignore[dict-item,return-value]
    with pytest.raises((NoAnswer, UsageError)):
        reference_desk.reference(desk, case, None, dict, gpu=True)


class Constant:
    def __init__(self, *answers: Answer) -> None:
        self.answers = list(answers)

    def run(self, question: Question) -> Answer:
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]


@pytest.mark.parametrize(("arrives", "given"), [("a", True), ("b", False)])
def test_candidates_get_shared_memory_only_where_it_arrives_bit_for_bit_in_another_process(
    monkeypatch: pytest.MonkeyPatch, arrives: str, given: bool
) -> None:
    placed = Answer(large=True, inputs="a", box="x.box")
    others: list[FakeDesk] = []

    class Places(Constant):
        """Draws inputs, which takes until the other process has begun to start."""

        def run(self, question: Question) -> Answer:
            if question.what is Ask.PLACE:
                others[-1].started.wait()
            return super().run(question)

    def other(*_: Any) -> FakeDesk:
        others.append(FakeDesk(Constant(Answer(inputs=arrives))))
        others[-1].close = lambda: None  # type: ignore[method-assign]
        return others[-1]

    monkeypatch.setattr(reference_desk, "ReferenceDesk", other)
    desk, case = FakeDesk(Places(placed)), None
    assert [desk.place(case, "p", "f") for _ in range(3)] == [placed if given else None] * 3  # type: ignore[arg-type]
    assert len(others) == 1 and others[0].asked == [Ask.OPEN]
    assert desk.asked == [Ask.SIZE, *[Ask.PLACE] * (3 if given else 1)]


def test_no_other_process_is_started_for_a_pair_that_is_not_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reference_desk, "ReferenceDesk", lambda *_: pytest.fail("a process was started"))
    desk = FakeDesk(Constant(Answer()))
    assert desk.place(None, "p", "f") is None and desk.asked == [Ask.SIZE]  # type: ignore[arg-type]


@pytest.mark.parametrize("large", [True, False])
def test_a_desk_that_is_started_has_both_processes_of_a_large_pair_at_hand_and_ends_what_no_pair_needs(
    monkeypatch: pytest.MonkeyPatch, large: bool
) -> None:
    others: list[FakeDesk] = []
    ended = threading.Event()

    def other(*_: Any) -> FakeDesk:
        others.append(FakeDesk(Constant(Answer(inputs="a"))))
        others[-1].close = ended.set  # type: ignore[method-assign]
        return others[-1]

    monkeypatch.setattr(reference_desk, "ReferenceDesk", other)
    desk = FakeDesk(Constant(Answer(large=large, inputs="a")))
    desk.start()
    assert all(each.started.wait(60) for each in (desk, *others)) and not desk.asked, "nothing was asked yet"
    for _ in range(2):
        assert (desk.place(None, "p", "f") is not None) is large  # type: ignore[arg-type]
    assert ended.wait(60) and [each.asked for each in others] == [[Ask.OPEN] * large]


def test_memory_that_cannot_be_shared_leaves_the_usual_way(pair: Any) -> None:
    desk = FakeDesk(Constant(Answer(failure="the CUDA driver answers 801: memory is not shared")))
    assert desk.place(None, "p", "f") is None and desk.place(None, "p", "f") is None and len(desk.asked) == 1  # type: ignore[arg-type]


def expected(rows: int, columns: int, dtype: torch.dtype = torch.float32) -> dict[str, Expected]:
    value = torch.randn(rows, columns, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    return {"out": Expected(Estimate(value, torch.full_like(value, 1e-6)), dtype, basis="b")}


@pytest.mark.parametrize(("rows", "columns", "window"), [(50, 40, 200), (2000, 1, 64), (3, 500, 64), (50, 40, 1 << 20)])
def test_a_large_output_is_judged_as_a_whole_and_described_from_its_first_error_on(
    monkeypatch: pytest.MonkeyPatch, rows: int, columns: int, window: int
) -> None:
    monkeypatch.setattr(reference_process, "WINDOW", window)
    reference = expected(rows, columns)
    right = reference["out"].estimate.value.float()
    assert judged_by_window({"out": right}, reference).tightness == judge({"out": right}, reference, {}).tightness
    wrong = right.clone()
    wrong.view(-1)[[rows * columns // 3, rows * columns - 1]] += 0.5
    found, usual = (
        judged_by_window({"out": wrong}, reference).mismatches,
        judge({"out": wrong}, reference, {}).mismatches,
    )
    (mismatch,), (plain,) = found, usual
    assert (mismatch.wrong, mismatch.total, mismatch.first) == (plain.wrong, plain.total, plain.first)
    assert mismatch.box[0][0] == plain.box[0][0] and mismatch.expected == float(
        reference["out"].estimate.value[tuple(mismatch.worst)]
    )


@pytest.mark.parametrize(
    ("shape", "window", "places", "box", "region"),
    [
        ((40,), 8, [(5,), (9,), (30,)], [[5, 9]], "from place 5 of 40 on axis 0 on, 8 looked at: "),
        ((6, 50), 64, [(2, 7), (2, 9), (5, 1)], [[2, 2], [7, 9]], "from place 2 of 6 on axis 0 on, 1 looked at: "),
        (
            (3, 500),
            64,
            [(1, 100), (1, 150), (1, 164), (2, 0)],
            [[1, 1], [100, 150]],
            "from place 100 of 500 on axis 1 on, 64 looked at, at place 1 of axis 0: 2 of 64 columns (0, 50)",
        ),
        (
            (4, 5, 6),
            13,
            [(1, 3, 4), (1, 4, 1), (2, 0, 0)],
            [[1, 1], [3, 4], [1, 4]],
            "from place 3 of 5 on axis 1 on, 2 looked at, at place 1 of axis 0: all 2 rows, 2 of 6 columns (1, 4)",
        ),
        (
            (2, 3, 4, 5),
            2,
            [(1, 0, 2, 4), (1, 0, 3, 0)],
            [[1, 1], [0, 0], [2, 2], [4, 4]],
            "from place 4 of 5 on axis 3 on, 1 looked at, at place 1 of axis 0, at place 0 of axis 1, "
            "at place 2 of axis 2: the only column",
        ),
        (
            (16, 12, 10, 10),
            200,
            [(10, 3, 9, 9), (10, 4, 0, 1), (10, 5, 0, 0), (15, 0, 0, 0)],
            [[10, 10], [3, 4], [0, 9], [1, 9]],
            "from place 3 of 12 on axis 1 on, 2 looked at, at place 10 of axis 0: all 2 channels",
        ),
        ((2, 3, 4, 5), 120, [(0, 1, 2, 3), (1, 0, 0, 0)], [[0, 1], [0, 1], [0, 2], [0, 3]], "all 2 batches, "),
        ((), 8, [()], [], ""),
    ],
)
@pytest.mark.parametrize("piece", [7, 1 << 18])
def test_the_part_of_a_large_output_that_is_looked_at_is_cut_on_the_axis_where_it_is_no_larger_than_a_window(
    monkeypatch: pytest.MonkeyPatch, shape: Any, window: int, places: Any, box: Any, region: str, piece: int
) -> None:
    monkeypatch.setattr(reference_process, "WINDOW", window)
    monkeypatch.setattr(reference_process, "pieces_of", lambda tensor: pieces(tensor.shape, piece))
    value = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    reference = {"out": Expected(Estimate(value, torch.full_like(value, 1e-6)), torch.float32)}
    wrong, worst = value.float(), [place for place in places if _inside(place, box)][-1]
    for place in places:
        wrong[place] += 8 if place == worst else 1
    (found,) = judged_by_window({"out": wrong}, reference).mismatches
    (usual,) = judge({"out": wrong}, reference, {}).mismatches
    assert (found.wrong, found.total, found.first) == (usual.wrong, usual.total, usual.first)
    assert (found.box, found.region[: len(region)]) == (box, region)
    assert found.worst == usual.worst == list(worst) and (found.expected, found.got) == (usual.expected, usual.got)
    wrong[places[0]] = torch.nan
    (found,) = judged_by_window({"out": wrong}, reference).mismatches
    assert found.first_nonfinite == list(places[0])


def _inside(place: Any, box: Any) -> bool:
    return all(low <= part <= high for part, (low, high) in zip(place, box, strict=True))


def test_what_may_stand_beside_the_value_of_a_large_output_is_not_where_it_begins_to_be_wrong() -> None:
    reference = expected(4, 5)
    wrong = reference["out"].estimate.value.float()
    wrong[0, 1], wrong[3, 2] = torch.nan, 9
    also = torch.zeros(4, 5, dtype=torch.uint8)
    also[0, 1] = extremes.NAN
    (found,) = judged_by_window({"out": wrong}, {"out": replace(reference["out"], also=also)}).mismatches
    assert (found.wrong, found.first) == (1, [3, 2])


def test_outputs_that_are_missing_or_of_another_form_are_said_as_ever() -> None:
    reference = expected(4, 5)
    right = reference["out"].estimate.value.float()
    for outputs in ({}, {"out": right[1:]}, {"out": right.half()}):
        assert judged_by_window(outputs, reference) == judge(outputs, reference, {})
    assert judged_by_window({}, {}) == judge({}, {}, {})


def test_what_nothing_can_be_said_of_is_not_wrong_in_a_large_output() -> None:
    reference = expected(4, 5)
    wrong = reference["out"].estimate.value.float()
    wrong[2, 2] = 9
    unknown = torch.zeros(4, 5, dtype=torch.bool)
    assert judged_by_window({"out": wrong}, reference).mismatches
    unknown[2, 2] = True
    assert not judged_by_window({"out": wrong}, {"out": replace(reference["out"], unknown=unknown)}).mismatches


def test_parcels_without_a_box_are_files_and_digests_tell_order_and_place(tmp_path: Path) -> None:
    x = torch.randn(200)
    parcels.save({"x": x, "n": torch.arange(3)}, str(tmp_path / "p"))
    assert torch.equal(parcels.load(str(tmp_path / "p"), {}, torch.device("cpu"))["x"], x)
    other, swapped = x.clone(), x.clone()
    other[7] = torch.nextafter(other[7], torch.tensor(9.0))
    swapped[1], swapped[2] = x[2], x[1]
    told = {parcels.digest({"x": value}) for value in (x, other, swapped, x.double(), x.view(2, 100))}
    assert len(told) == 5 and parcels.digest({"x": x.clone()}) in told


def test_what_is_sealed_on_its_way_to_a_box_is_what_is_sealed_before(tmp_path: Path) -> None:
    box = parcels.Box(str(tmp_path / "box"), torch.zeros(4096, dtype=torch.uint8), 0)
    tensors = {"a": torch.randn(5, 6).t(), "b": torch.rand(7) > 0.5, "c": torch.randn(3, 8)[:, ::2].half()}
    tensors |= {"z": torch.randn(3, dtype=torch.complex64), "none": torch.ones(0), "much": torch.arange(1000)}
    parcels.save(tensors, str(tmp_path / "p"), box, key=(1 << 60) + 12345)
    got = parcels.load(str(tmp_path / "p"), {box.path: box}, torch.device("cpu"))
    sealed = seal(tensors, (1 << 60) + 12345)
    assert list(got) == list(sealed) and not torch.equal(got["a"], tensors["a"])
    for name, value in sealed.items():
        assert raw(got[name]) == raw(value) and got[name].dtype == value.dtype and got[name].shape == value.shape


@pytest.mark.parametrize("width", [8, 1 << 16], ids=["rows", "no row"])
def test_a_digest_is_the_same_in_however_many_chunks(monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    monkeypatch.setattr(parcels, "WIDTH", width)
    parcels._weights.cache_clear()
    x = {"x": torch.randn(999), "half": torch.randn(64).half()}
    whole = parcels.digest(x)
    monkeypatch.setattr(parcels, "CHUNK", 16)
    assert parcels.digest(x) == whole
    x["x"][[3, 19]] = x["x"][[19, 3]]
    assert parcels.digest(x) != whole, "what stands at another place of another chunk"
    parcels._weights.cache_clear()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64, torch.uint8, torch.bool])
def test_digests_of_much_tell_every_bit_and_its_place_and_not_where_it_lies(dtype: torch.dtype) -> None:
    row = parcels.WIDTH * 4 // dtype.itemsize
    drawn = torch.randn(3 * row + 5) * 100
    value = drawn > 0 if dtype == torch.bool else drawn.to(dtype)
    shifted = torch.empty(len(value) + 1, dtype=dtype)
    shifted[1:] = value
    told = [parcels.digest({"x": value})]
    assert parcels.digest({"x": shifted[1:]}) == told[0]
    for place in (0, 5, row - 1, row, 3 * row - 1, 3 * row, 3 * row + 4):
        other = value.clone()
        integers(other)[place] ^= 1
        told.append(parcels.digest({"x": other}))
    for one, two in ((0, 1), (0, row), (7, 2 * row + 7)):  # pairs of sign bits; equal words at other places
        other = value.float()
        told += [parcels.digest({"x": other})]
        other[[one, two]] *= -1
        told += [parcels.digest({"x": other})]
    rows = value.clone()
    rows[:row], rows[row : 2 * row] = value[row : 2 * row], value[:row]
    told += [parcels.digest({"x": rows}), parcels.digest({"x": value.view(1, -1)})]
    assert len(set(told)) == len(told) - 2 - (dtype == torch.float32)


def test_a_box_hands_over_strides_and_bits_and_one_that_holds_something_else_is_refused(tmp_path: Path) -> None:
    """Memory of the CPU stands in for that of a GPU: what says where things lie is the same."""
    box = parcels.Box(str(tmp_path / "box"), torch.zeros(4096, dtype=torch.uint8), 0)
    tensors = {"a": torch.randn(5, 6).t(), "b": torch.arange(7), "c": torch.randn(3, 8)[:, ::2]}
    parcels.save(tensors, str(tmp_path / "p"), box)
    got = parcels.load(str(tmp_path / "p"), {box.path: box}, torch.device("cpu"))
    assert list(got) == list(tensors)
    for name, value in tensors.items():
        assert torch.equal(got[name], value) and got[name].stride() == value.stride()
        assert box.memory.data_ptr() <= got[name].data_ptr() < box.memory.data_ptr() + 4096
    box.memory[100] ^= 1
    with pytest.raises(OSError, match="shared memory does not hold what"):
        parcels.load(str(tmp_path / "p"), {box.path: box}, torch.device("cpu"))
    assert parcels.bytes_in_box(tensors) <= 4096


def test_what_a_box_has_no_room_for_is_held_by_the_file(tmp_path: Path) -> None:
    box = parcels.Box(str(tmp_path / "box"), torch.zeros(1024, dtype=torch.uint8), 0)
    tensors = {"small": torch.ones(8), "large": torch.ones(4096)}
    parcels.save(tensors, str(tmp_path / "p"), box)
    got = parcels.load(str(tmp_path / "p"), {box.path: box}, torch.device("cpu"))
    assert all(torch.equal(got[name], value) for name, value in tensors.items())


def test_a_tensor_goes_whole_through_the_buffers_that_take_a_part_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    event = SimpleNamespace(synchronize=lambda: None, record=lambda: None)
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *size, pin_memory=False, **how: empty(*size, **how))
    monkeypatch.setattr(torch.cuda, "Event", lambda: event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(reference_process, "PINNED", 1000)
    advised: list[int] = []

    class Map(mmap.mmap):
        def madvise(self, option: int, *part: int) -> None:
            advised.append(option)
            raise OSError("a kernel without large pages")

    monkeypatch.setattr(reference_process.mmap, "mmap", Map)
    for value in (torch.randn(77, 33).t(), torch.randn(2500)[3:2003], torch.arange(5)):
        copy = reference_process._through_pinned_memory(value, torch.device("cpu"))
        assert torch.equal(copy, value) and copy.stride() == value.stride()
    assert advised == [mmap.MADV_HUGEPAGE] * 3
    monkeypatch.delattr(mmap, "MADV_HUGEPAGE")
    assert torch.equal(reference_process._through_pinned_memory(value, torch.device("cpu")), value)
