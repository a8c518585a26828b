"""The process that makes the references of pairs on the GPU, and judges outputs that are too large to leave it.

It runs the problem's code alone: no candidate was ever loaded here. What it is asked for is a :class:`Question`. Of a
large pair it also draws the inputs of each call into shared memory, and copies what is written there before it looks.
"""

from __future__ import annotations

import io
import math
import mmap
import time
import traceback
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from gpucheck import checks
from gpucheck.checks.base import CandidateCheck
from gpucheck.model.case import Case
from gpucheck.model.errors import UsageError, error_line
from gpucheck.model.record import Mismatch
from gpucheck.verify import bounds, published_rules, regions
from gpucheck.verify.expected import Axes, Expected, indifference, plain_axes
from gpucheck.verify.judge import Judgement, Piece, accepted, compared, judge
from gpucheck.verify.views import is_dense, pieces_of, to_device
from gpucheck.worker import further_inputs, parcels, taken_outputs
from gpucheck.worker.device.memory_used import memory_of
from gpucheck.worker.device.placements import BINDINGS
from gpucheck.worker.protocol import AFTER, OWN, Answer, Ask, Draw, Question, Setup

FREE = 0.25  # of a GPU's memory that outputs which are kept leave to others
PINNED = 1 << 26  # bytes of a piece of what goes between GPU and host
WINDOW = 1 << 22  # elements of an output with errors that are looked at on the host
NO_ROOM = "too little memory of the GPU is free to judge there: end what else holds it, or take --reference cpu"
Tensors = dict[str, Tensor]


class ReferenceProcess:
    """Answers questions on pairs, one after the other."""

    def __init__(self, setup: Setup) -> None:
        placement = "cpu" if setup.device == "cpu" else "pinned"
        self._device: torch.device = BINDINGS[placement]().enter(setup.local_rank)
        self._boxes: dict[str, parcels.Box] = {}  # by name
        self._made = 0  # boxes
        self._own: dict[str, str] = {}  # digests of the inputs of the case at hand, each by its name
        self._kept: dict[str, Tensors] = {}  # outputs of that case, by digest
        self._expected: tuple[tuple[str, Draw], dict[str, Expected], str] | None = None  # asked for last
        if self._device.type == "cuda":
            torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
            torch.cuda.init()

    def run(self, question: Question) -> Answer:
        """The answer to a question; whatever goes wrong is one too."""
        begin = time.perf_counter()
        try:
            answers = {
                Ask.SIZE: self._size,
                Ask.PLACE: self._place,
                Ask.OPEN: self._open,
                Ask.EXPECTED: self._reference,
                Ask.SEND: self._send,
                Ask.TAKE: self._take,
                Ask.COMPARE: self._compare,
                Ask.JUDGE: self._judge,
            }
            answer = answers[question.what](question)
        except UsageError as error:
            answer = {"problem": str(error)}
        except torch.cuda.OutOfMemoryError as error:
            answer = {"failure": f"{NO_ROOM}: {error_line(error)}"}
        except Exception as error:
            answer = {"failure": error_line(error), "traceback": traceback.format_exc()}
        memory = memory_of("reference", self._device)
        if self._device.type == "cuda":
            torch.cuda.empty_cache()  # a candidate may need all that is free
        return Answer(seconds=time.perf_counter() - begin, memory=memory, **answer)

    def _size(self, question: Question) -> dict[str, Any]:
        return {"large": _check(question.case).large(question.case, str(self._device)) > 0}

    def _place(self, question: Question) -> dict[str, Any]:
        """Draws the inputs of a case: into a box if they are large, which the reply says, else nowhere."""
        check = _check(question.case)
        large = check.large(question.case, str(self._device))
        if not large:
            return {}
        self._kept.clear()
        self._expected = None
        inputs = check.inputs_on(question.case, str(self._device))
        held = sum(value.nbytes for value in inputs.values())
        given = {name: value for name, value in inputs.items() if name.startswith("input")}
        after = parcels.bytes_in_box(given)
        try:
            box = self._box("inputs", parcels.bytes_in_box(inputs), str(Path(question.path).parent))
            answers = self._box("outputs", max(large - held, 0) + after + (1 << 20), question.folder)
        except OSError as error:
            return {"failure": f"memory cannot be shared: {error}"}
        self._own = {name: parcels.digest({name: value}) for name, value in given.items()}
        placed = parcels.save(inputs, question.path, box)
        return {"large": True, "size": large, "inputs": placed, "box": answers.path}

    def _send(self, question: Question) -> dict[str, Any]:
        """Draws the inputs of a further call into a box of their own: those of the case stay where they are."""
        if not self._has_room():  # a reference can be made again
            self._expected = None
        drawn = self._drawn(question)
        beside = Path(self._boxes["inputs"].path).parent
        box = self._box("calls", parcels.bytes_in_box(drawn.inputs), str(beside))
        parcels.save(drawn.inputs, question.path, box, key=question.key)
        return {"sent": further_inputs.sent(drawn)}

    def _drawn(self, question: Question) -> further_inputs.Drawn:
        return further_inputs.drawn(_check(question.case), question.case, question.draw, str(self._device))

    def _take(self, question: Question) -> dict[str, Any]:
        """Copies outputs out of their box and looks at them; what is kept is known by its digest.

        What inputs hold after the call is looked at where it lies. Own inputs are drawn anew where that differs from
        them: a candidate may have changed what lies in the memory that it was given.
        """
        check, case = _check(question.case), question.case

        def allowed() -> frozenset[str]:
            runtime: Any = SimpleNamespace(device=self._device)
            return check.allowed(case, None, check.inputs_on(case, str(self._device)), runtime).writes

        try:
            boxes = {box.path: box for box in self._boxes.values()}
            written = parcels.take(question.path, boxes, in_place=AFTER)
        except torch.cuda.OutOfMemoryError:
            raise
        except Exception as error:
            return {"unreadable": error_line(error)}
        written = {name: value for name, value in written.items() if not self._as_drawn(name, value)}
        own = Question(question.what, case)
        outputs, taken = taken_outputs.look(written, lambda: self._drawn(own).inputs, allowed, parcels.digest)
        written.clear()  # it may hold more than is kept
        if question.keep and taken.digest not in self._kept:
            self._kept[taken.digest] = self._where_there_is_room(outputs)
        return {"taken": taken}

    def _as_drawn(self, name: str, value: Tensor) -> bool:
        """Whether this is an input of the case that holds after a call what it was drawn with."""
        own = name.removeprefix(AFTER)
        return name.startswith(AFTER) and self._own.get(own) == parcels.digest({own: value})

    def _where_there_is_room(self, outputs: Tensors) -> Tensors:
        """On the GPU, as long as enough of it stays free, else on the host."""
        return outputs if self._has_room() else _moved(outputs, torch.device("cpu"))

    def _has_room(self) -> bool:
        """Whether enough of the GPU is free for a candidate and a reference."""
        if self._device.type != "cuda":
            return True
        torch.cuda.empty_cache()  # what it took to look at outputs is not free before
        free, total = torch.cuda.mem_get_info(self._device)
        return free >= total * FREE

    def _compare(self, question: Question) -> dict[str, Any]:
        outputs, others = (self._of_digest(digest) for digest in question.outputs)
        return {"differing": taken_outputs.differing(outputs, others)}

    def _of_digest(self, digest: str) -> Tensors:
        return _moved(self._kept[digest], self._device)

    def _open(self, question: Question) -> dict[str, Any]:
        """Opens inputs that another process placed."""
        return {"inputs": parcels.digest(parcels.load(question.path, {}, self._device))}

    def _box(self, name: str, size: int, folder: str) -> parcels.Box:
        """A box of that many bytes at least, told of in a folder; another one is made under another name."""
        known = self._boxes.get(name)
        if known is None or len(known.memory) < size or Path(known.path).parent != Path(folder):
            self._free(name)
            self._made += 1
            self._boxes[name] = parcels.make_box(str(Path(folder, f"{name}{self._made}.box")), size, self._device)
        return self._boxes[name]

    def _free(self, name: str) -> None:
        if name in self._boxes:
            self._boxes.pop(name).free()

    def _reference(self, question: Question) -> dict[str, Any]:
        """The reference of a case that is not large, in bytes."""
        case, check = question.case, _check(question.case)
        inputs = check.inputs_on(case, "cpu")
        if question.inputs:
            inputs |= torch.load(io.BytesIO(question.inputs), weights_only=True)
        expected, where = check.reference_on(case, inputs, str(self._device), large=False)
        held = io.BytesIO()
        torch.save({name: packed(item) for name, item in expected.items()}, held)
        return {"content": held.getvalue(), "where": where}

    def _judge(self, question: Question) -> dict[str, Any]:
        """Holds large outputs that were taken against their reference, on this GPU; both stay there."""
        self._free("calls")  # no process waits for inputs now, and the reference takes room
        outputs = self._of_digest(question.outputs[0])
        expected, where = self._reference_of(question)
        return {
            "judged": judged_by_window(outputs, expected),
            "bases": {name: item.basis for name, item in expected.items() if item.basis},
            "indifferent": indifference(expected),
            "digests": dict.fromkeys(outputs, question.outputs[0])  # of a single output they are the same
            if len(outputs) == 1
            else {name: parcels.digest({name: value}) for name, value in outputs.items()},
            "where": where,
            "rule": published_rules.kernelbench(outputs, expected) if _check(question.case).rule else {},
        }

    def _reference_of(self, question: Question) -> tuple[dict[str, Expected], str]:
        """The reference of a case, or of a further call with the same weights."""
        case, known = question.case, (question.case.id, question.draw)
        if self._expected is None or self._expected[0] != known:
            self._expected = None
            check = _check(case)
            inputs = check.inputs_on(case, str(self._device))
            if question.draw != OWN:
                inputs |= self._drawn(question).inputs
            self._expected = (known, *check.reference_on(case, inputs, str(self._device), large=True))
        return self._expected[1:]


def _moved(tensors: Tensors, device: torch.device) -> Tensors:
    """The tensors on a device; gigabytes go through pinned memory, without which a GPU copies a tenth as fast."""
    return {
        name: _through_pinned_memory(value, device)
        if value.device.type != device.type and value.nbytes > 4 * PINNED and is_dense(value)
        else to_device(value, device)
        for name, value in tensors.items()
    }


def _through_pinned_memory(value: Tensor, device: torch.device) -> Tensor:
    """A copy on the host of what a GPU holds, or the other way: while one piece comes, the one before it goes on."""
    copy = torch.empty_like(value, device=device) if device.type == "cuda" else _in_large_pages(value)
    source, target = (each.as_strided((each.numel(),), (1,)).view(torch.uint8) for each in (value, copy))
    buffers = [torch.empty(PINNED, dtype=torch.uint8, pin_memory=True) for _ in range(2)]
    done = [torch.cuda.Event() for _ in buffers]
    pieces = [slice(begin, min(begin + PINNED, len(source))) for begin in range(0, len(source), PINNED)]
    for turn in range(len(pieces) + 1):
        for piece, comes in ((turn, True), (turn - 1, False)):
            if 0 <= piece < len(pieces):
                place, side = pieces[piece], piece % 2
                held = buffers[side][: place.stop - place.start]
                done[side].synchronize()
                (held if comes else target[place]).copy_(source[place] if comes else held, non_blocking=True)
                done[side].record()
    torch.cuda.synchronize()
    return copy


def _in_large_pages(value: Tensor) -> Tensor:
    """Memory of the host for a dense tensor, in pages of 2 MiB where there are such.

    To be given as many bytes in pages of 4 KiB takes longer than to fill them.
    """
    huge = getattr(mmap, "MADV_HUGEPAGE", None)
    if huge is None:
        return torch.empty_like(value, device="cpu")
    memory = mmap.mmap(-1, value.nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with suppress(OSError):  # a kernel without them
        memory.madvise(huge)
    return torch.frombuffer(memory, dtype=torch.uint8).view(value.dtype).as_strided(value.shape, value.stride())


def _check(case: Case) -> CandidateCheck:
    check = checks.load(case.check)
    assert isinstance(check, CandidateCheck)
    return check


def packed(item: Expected) -> dict[str, Any]:
    """A reference as plain data and tensors of the host."""
    estimate = item.estimate
    error = None if estimate.error is None else estimate.error.cpu()
    unknown = None if item.unknown is None else item.unknown.cpu()
    return {
        "dtype": str(item.dtype),
        "basis": item.basis,
        "indifferent": item.indifferent,
        "estimate": (estimate.value.cpu(), error, estimate.unit),
        "unknown": unknown,
    }


def judged_by_window(outputs: Mapping[str, Tensor], expected: Mapping[str, Expected]) -> Judgement:
    """As :func:`judge`; of an output that is wrong, a window from the first wrong element on is described.

    Counts are of the whole output; places, patterns and values are those of the window.
    """
    near = {name: item for name, item in expected.items() if _comparable(outputs.get(name), item)}
    used = {name: accepted(outputs[name], item) for name, item in near.items()}
    right = {name for name, share in used.items() if share is not None}
    others = {name: item for name, item in expected.items() if name not in right}
    if right and not others:
        return Judgement(tightness=max(share for share in used.values() if share is not None))
    cut = {name: _window(outputs[name], item) for name, item in others.items() if name in near}
    found = judge(
        {**outputs, **{name: part.output for name, part in cut.items()}},  # of the others no element is looked at
        {**others, **{name: part.item for name, part in cut.items()}},
        {name: part.axes for name, part in cut.items()},
    )
    found.tightness = max([found.tightness, *(share for share in used.values() if share is not None)])
    found.mismatches = [cut[mismatch.output].of_whole(mismatch) for mismatch in found.mismatches]
    return found


def _comparable(output: Tensor | None, item: Expected) -> bool:
    return output is not None and (output.shape, output.dtype) == (item.estimate.value.shape, item.dtype)


@dataclass(frozen=True)
class _Window:
    """A part of an output with errors, on the host with its reference, and where it lies in the whole."""

    output: Tensor
    item: Expected
    shape: tuple[int, ...]  # of the whole
    wrong: int  # elements of the whole
    first: tuple[int, ...]  # of the part: places on the axes that it has one place of, and on the next one
    shown: int  # places on that axis

    @property
    def axes(self) -> Axes:
        """The names of the part's axes."""
        usual, gone = plain_axes(len(self.shape)), len(self.shape) - self.output.ndim
        return Axes(usual.names[gone:], usual.tile[gone:])

    def of_whole(self, mismatch: Mismatch) -> Mismatch:
        """What was found in the part, told of the whole: places are counted there, patterns are those of the part."""
        *fixed, start = self.first or (0,)

        def moved(place: list[int]) -> list[int]:
            return [*fixed, place[0] + start, *place[1:]] if place else place

        ends = (moved([span[end] for span in mismatch.box]) for end in (0, 1))
        return replace(
            mismatch,
            wrong=self.wrong,
            total=math.prod(self.shape),
            region=self._words + mismatch.region,
            first=moved(mismatch.first),
            worst=moved(mismatch.worst),
            first_nonfinite=mismatch.first_nonfinite and moved(mismatch.first_nonfinite),
            box=[list(span) for span in zip(*ends, strict=True)],
        )

    @property
    def _words(self) -> str:
        if self.shape == self.output.shape:
            return ""
        *fixed, start = self.first
        words = f"from place {start} of {self.shape[len(fixed)]} on axis {len(fixed)} on, {self.shown} looked at"
        return "".join([words, *(f", at place {place} of axis {axis}" for axis, place in enumerate(fixed)), ": "])


def _window(output: Tensor, item: Expected) -> _Window:
    """The part of an output from its first wrong element on that is looked at on the host.

    It is a slice of one axis; where a single place on that would be too much, of the next axis at this place.
    """
    wrong, first = 0, (0,) * output.ndim
    for piece in pieces_of(output):
        bad, _ = compared(output, item, item.estimate, piece)
        count = int(bad.sum())
        if count and not wrong:
            within = regions.index_of(int(bad.reshape(-1).to(torch.uint8).argmax()), bad.shape)
            *fixed, begin = (part.start if isinstance(part, slice) else part for part in piece or (0,))
            first = (*fixed, begin + within[0], *within[1:]) if within else ()
        wrong += count
    shape, axis = tuple(output.shape), 0
    while axis < len(shape) - 1 and math.prod(shape[axis + 1 :]) > WINDOW:
        axis += 1
    shown = min(shape[axis] - first[axis], max(1, WINDOW // math.prod(shape[axis + 1 :]))) if shape else 1
    part: Piece = (*first[:axis], slice(first[axis], first[axis] + shown)) if shape else ()
    return _Window(output[part].cpu(), _host(item, part), shape, wrong, first[: axis + 1], shown)


def _host(item: Expected, part: Piece) -> Expected:
    def cut(value: Tensor | None) -> Tensor | None:
        return None if value is None else value[part].cpu()

    estimate = item.estimate
    value, error = estimate.value[part].cpu(), cut(estimate.error)
    return replace(
        item, estimate=bounds.Estimate(value, error, estimate.unit), unknown=cut(item.unknown), also=cut(item.also)
    )
