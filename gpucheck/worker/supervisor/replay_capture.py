"""What a replay keeps of the case it repeats: a close look for people, tensors and calls for a reproduction."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gpucheck.model.plan import Plan
from gpucheck.model.vocabulary import ExperimentName
from gpucheck.records.replay_files import DETAIL, FOLDER, PROGRAM
from gpucheck.records.run_folder import write_json
from gpucheck.verify import bounds, judge, worst_elements
from gpucheck.verify.expected import Axes, Expected, plain_axes
from gpucheck.worker.protocol import ARGUMENT, Inspection
from gpucheck.worker.supervisor.child_runner import ChildRunner
from gpucheck.worker.supervisor.safetensors import save

INSPECTION = ExperimentName("inspection")  # which has a process of its own, as experiments do, and no record


class ReplayCapture:
    """Keeps the tensors of the one rank and step that a replay is about."""

    def __init__(self, plan: Plan, run: Path, runner: ChildRunner) -> None:
        assert plan.replay is not None
        self.plan, self.runner, self.save = plan, runner, plan.replay.save
        self.folder = run / FOLDER
        self.folder.mkdir(exist_ok=True)
        self._elements: dict[str, list[dict[str, Any]]] = {}
        self._notes: list[str] = []

    def keep(self, outputs: dict[str, Tensor], expected: dict[str, Expected], axes: dict[str, Axes]) -> None:
        """Takes what was judged; see :data:`gpucheck.worker.supervisor.judging.Keep`."""
        for name, reference in expected.items():
            output = outputs.get(name)
            if output is not None and _comparable(output, reference):
                self._elements[name] = worst_elements.worst_elements(
                    output, reference, axes.get(name) or plain_axes(output.ndim)
                )
        if self.save:
            save(self.folder / "output.safetensors", {name: value.contiguous() for name, value in outputs.items()})

    def ask(self) -> None:
        """Looks closer in a fresh process, which may well end as the case did."""
        step, files, key = self.plan.steps[0], self.runner.files, "0-again"
        if step.inapplicable:
            return
        if self.save:
            inputs = torch.load(files.inputs(key, step.case), mmap=True, weights_only=True)
            save(self.folder / "inputs.safetensors", inputs)
            save(self.folder / "reference.safetensors", reference_tensors(files.reference(key, step.case)))
            self._inspect(Inspection(self._device(), str(self.folder)))
            self._collect_arguments()
        elements = tuple((name, tuple(e["index"])) for name, found in self._elements.items() for e in found)
        writers = self._inspect(Inspection(self._device(), elements=elements)) if elements else []
        for (name, index), writer in zip(elements, writers, strict=False):
            next(e for e in self._elements[name] if tuple(e["index"]) == index)["writer"] = writer
        write_json(self.folder / DETAIL, {"outputs": self._elements, "notes": self._notes})

    def _device(self) -> int:
        return self.runner.node.local_rank if self.plan.steps[0].conditions.whole_node else 0

    def _inspect(self, inspection: Inspection) -> list[str]:
        if self.plan.steps[0].together:  # another pass needs all ranks, as often as this one
            return []
        self.runner.child.retire()
        attempt = self.runner.run(0, self.plan.steps[0], INSPECTION, inspection=inspection)
        self.runner.child.retire()
        reply = attempt.reply
        problem = attempt.record.message if reply is None else reply.message
        if problem and inspection.elements:
            self._notes.append(f"the programs that write the worst elements were not found: {problem}")
        return reply.writers if reply else []

    def _collect_arguments(self) -> None:
        """Puts the tensors of the recorded calls into one file."""
        paths = sorted(self.folder.glob(ARGUMENT.format("*")), key=lambda path: path.stat().st_mtime_ns)
        tensors = {f"a{path.stem.removeprefix('argument-')}": torch.load(path, weights_only=True) for path in paths}
        if (self.folder / PROGRAM).exists():
            save(self.folder / "arguments.safetensors", tensors)
        for path in paths:
            path.unlink()


def reference_tensors(expected: dict[str, Expected]) -> dict[str, Tensor]:
    """References as plain tensors: of output ``y`` the right values ``y`` in float64, and what an output must be.

    That is ``y.exact`` where no error is allowed, else all within ``y.bound`` of ``y``; ``y.furthest`` is there where a
    right element may be infinite, and ``y.also`` and ``y.unknown`` as :class:`Expected` has them. A further right
    answer is called ``y/1``.
    """
    tensors: dict[str, Tensor] = {}
    for output, item in expected.items():
        for number, estimate in enumerate((item.estimate, *item.alternatives)):
            name = f"{output}/{number}" if number else output
            tensors[name] = estimate.value.contiguous()
            if item.also is not None:
                tensors[f"{name}.also"] = item.also
            if item.unknown is not None:
                tensors[f"{name}.unknown"] = item.unknown
            if not item.dtype.is_floating_point or estimate.error is None:
                tensors[f"{name}.exact"] = judge.target(item.dtype, estimate.value)
                continue
            tensors[f"{name}.bound"] = worst_elements.allowed(item.dtype, estimate)
            furthest = bounds.round_to(item.dtype, estimate.value + estimate.value.sign() * estimate.error)
            if bool(torch.isinf(furthest).any()):
                tensors[f"{name}.furthest"] = furthest
    return tensors


def _comparable(output: Tensor, reference: Expected) -> bool:
    return output.shape == reference.estimate.value.shape and output.dtype == reference.dtype
