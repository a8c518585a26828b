"""The process that makes the references of pairs on the GPU, and judges outputs that are too large to leave it.

It runs the problem's code alone: no candidate was ever loaded here. What it is asked for is a :class:`Question`.
"""

from __future__ import annotations

import io
import time
import traceback
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gpucheck import checks
from gpucheck.checks.base import CandidateCheck
from gpucheck.model.case import Case
from gpucheck.model.errors import UsageError, error_line
from gpucheck.verify import bounds, published_rules
from gpucheck.verify.expected import Expected
from gpucheck.verify.judge import Judgement, accepted, compare, judge
from gpucheck.verify.views import pieces_of
from gpucheck.worker import parcels
from gpucheck.worker.device.memory_used import memory_of
from gpucheck.worker.device.placements import BINDINGS
from gpucheck.worker.protocol import Answer, Ask, Question, Setup

WINDOW = 1 << 22  # elements of an output with errors that are looked at on the host
Tensors = dict[str, Tensor]


class ReferenceProcess:
    """Answers questions on pairs, one after the other."""

    def __init__(self, setup: Setup) -> None:
        placement = "cpu" if setup.device == "cpu" else "pinned"
        self._device: torch.device = BINDINGS[placement]().enter(setup.local_rank)
        self._boxes: dict[str, parcels.Box] = {}  # by name
        self._made = 0  # boxes
        self._expected: tuple[str, dict[str, Expected], str] | None = None  # of the case asked for last
        if self._device.type == "cuda":
            torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
            torch.cuda.init()

    def run(self, question: Question) -> Answer:
        """The answer to a question; whatever goes wrong is one too."""
        begin = time.perf_counter()
        try:
            answers = {Ask.PLACE: self._place, Ask.OPEN: self._open, Ask.EXPECTED: self._reference}
            answer = answers.get(question.what, self._judge)(question)
        except UsageError as error:
            answer = {"problem": str(error)}
        except Exception as error:
            answer = {"failure": error_line(error), "traceback": traceback.format_exc()}
        memory = memory_of("reference", self._device)
        return Answer(seconds=time.perf_counter() - begin, memory=memory, **answer)

    def _place(self, question: Question) -> dict[str, Any]:
        """Draws the inputs of a case: into a box if they are large, which the reply says, else nowhere."""
        check = _check(question.case)
        large = check.large(question.case)
        if not large or self._device.type != "cuda":
            return {}
        inputs = check.inputs_on(question.case, str(self._device))
        held = sum(value.nbytes for value in inputs.values())
        try:
            box = self._box("inputs", parcels.bytes_in_box(inputs), question.path)
            answers = self._box("outputs", max(large - held, 0) + (1 << 20), question.path)
        except OSError as error:
            return {"failure": f"memory of the GPU cannot be shared: {error}"}
        parcels.save(inputs, question.path, box)
        return {"large": True, "inputs": parcels.digest(inputs), "box": answers.path}

    def _open(self, question: Question) -> dict[str, Any]:
        """Opens inputs that another process placed."""
        return {"inputs": parcels.digest(parcels.load(question.path, {}, self._device))}

    def _box(self, name: str, size: int, path: str) -> parcels.Box:
        """A box of that many bytes at least; one that is too small is made anew, under another name."""
        known = self._boxes.get(name)
        if known is None or len(known.memory) < size:
            if known is not None:
                self._boxes.pop(name).free()
            self._made += 1
            place = Path(path).with_name(f"{Path(path).name}.{name}{self._made}.box")
            self._boxes[name] = parcels.make_box(str(place), size, self._device)
        return self._boxes[name]

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
        """Holds large outputs against their reference, on this GPU; both stay there."""
        expected, where = self._of_case(question.case)
        boxes = {box.path: box for box in self._boxes.values()}
        handed = parcels.load(question.path, boxes, self._device)
        outputs = {name: value.to(self._device) for name, value in handed.items()}
        return {
            "judged": judged_by_window(outputs, expected),
            "bases": {name: item.basis for name, item in expected.items() if item.basis},
            "digests": {name: parcels.digest({name: value}) for name, value in outputs.items()},
            "where": where,
            "rule": published_rules.kernelbench(outputs, expected) if _check(question.case).rule else {},
        }

    def _of_case(self, case: Case) -> tuple[dict[str, Expected], str]:
        if self._expected is None or self._expected[0] != case.id:
            self._expected = None
            check = _check(case)
            inputs = check.inputs_on(case, str(self._device))
            self._expected = (case.id, *check.reference_on(case, inputs, str(self._device), large=True))
            del inputs
            torch.cuda.empty_cache()
        return self._expected[1:]


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
    shown = {name: outputs[name].cpu() for name in others if name in outputs and name not in cut}
    found = judge(
        {**shown, **{name: part[0] for name, part in cut.items()}},
        {**others, **{name: part[1] for name, part in cut.items()}},
        {},
    )
    found.tightness = max([found.tightness, *(share for share in used.values() if share is not None)])
    found.mismatches = [
        part[2](mismatch) if (part := cut.get(mismatch.output)) else mismatch for mismatch in found.mismatches
    ]
    return found


def _comparable(output: Tensor | None, item: Expected) -> bool:
    return output is not None and (output.shape, output.dtype) == (item.estimate.value.shape, item.dtype)


def _window(output: Tensor, item: Expected) -> tuple[Tensor, Expected, Any]:
    """Rows of an output from the first wrong one on, on the host, their reference, and what tells of the whole."""
    wrong, total, first = 0, output.numel(), -1
    rows = output.shape[0] if output.ndim else 1
    below = max(1, total // max(rows, 1))
    for piece in pieces_of(output):
        error = None if item.estimate.error is None else item.estimate.error[piece]
        bad, _ = compare(output[piece], bounds.Estimate(item.estimate.value[piece], error, item.estimate.unit))
        if item.unknown is not None:
            bad &= ~item.unknown[piece]
        count = int(bad.sum())
        if count and first < 0:
            start = piece[0] if piece else 0
            start = start.start if isinstance(start, slice) else start
            inner = int(bad.reshape(-1).to(torch.uint8).argmax())
            first = int(start) + (inner // below if isinstance(piece[0], slice) else 0) if piece else 0
        wrong += count
    if not output.ndim:
        return output.cpu(), _host(item, None), lambda mismatch: mismatch
    rows_shown = min(rows - first, max(1, WINDOW // below))
    part = slice(first, first + rows_shown)

    def of_whole(mismatch: Any) -> Any:
        def moved(place: Any) -> Any:
            return None if place is None else [place[0] + first, *place[1:]]

        words = f"from place {first} of {rows} on axis 0 on, {rows_shown} looked at: {mismatch.region}"
        box = [list(span) for span in mismatch.box]
        box[0] = [box[0][0] + first, box[0][1] + first]
        return replace(
            mismatch,
            wrong=wrong,
            total=total,
            region=mismatch.region if rows_shown == rows else words,
            first=moved(mismatch.first),
            worst=moved(mismatch.worst),
            first_nonfinite=moved(mismatch.first_nonfinite),
            box=box,
        )

    return output[part].cpu(), _host(item, part), of_whole


def _host(item: Expected, part: slice | None) -> Expected:
    def cut(value: Tensor | None) -> Tensor | None:
        return None if value is None else (value if part is None else value[part]).cpu()

    value = cut(item.estimate.value)
    assert value is not None
    estimate = bounds.Estimate(value, cut(item.estimate.error), item.estimate.unit)
    return replace(item, estimate=estimate, unknown=cut(item.unknown))
