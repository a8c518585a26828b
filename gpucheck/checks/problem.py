"""A KernelBench-style pair as a check: ``Model`` in one file is the reference, ``ModelNew`` in another is under test.

The file of the problem also has ``get_inputs`` and ``get_init_inputs``. It may state ``tolerance = {"absolute": ...,
"relative": ...}``; without it the bound is derived from what ``Model`` computes. It may also state ``PRECISION =
"tf32"`` or ``"bf16"``, the least that products may be computed in; without it that is fp32. The candidate is executed
only where kernels are launched, never where outputs are judged.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpucheck.checks.base import ANY_KERNEL, Allowed, CandidateCheck, Runtime
from gpucheck.checks.declared_kernels import declared_kernels, short_name
from gpucheck.checks.on_use import torch_model
from gpucheck.checks.source_files import module_of, top_level
from gpucheck.model.case import Case, CheckSpec, Param
from gpucheck.model.check_source import (
    KERNELBENCH,
    KERNELBENCH_TRIALS,
    LARGE,
    PRECISIONS,
    CheckSource,
    large_pair,
)
from gpucheck.model.errors import UsageError
from gpucheck.verify.expected import Axes, Expected

if TYPE_CHECKING:
    from torch import Generator, Tensor

SHOWN = 5  # kernels that are named where none is the candidate's own
TRIALS = (1, 2, 3)  # where no scenario says which


class Problem(CandidateCheck):
    """One candidate for one problem. Each trial draws its inputs and weights from a seed of its own."""

    needs_library = False
    usual = tuple({"trial": number} for number in TRIALS)
    late_inputs = tuple(f"input{number}" for number in range(16))

    def __init__(self, name: str, source: CheckSource) -> None:
        self.source = source
        self.tolerance = stated_tolerance(Path(source.files[0]))
        self.precision = source.pair.precision or PRECISIONS[0]
        self.rule = source.pair.rule
        if self.rule == KERNELBENCH:
            self.usual = tuple({"trial": number + 1} for number in range(KERNELBENCH_TRIALS))  # type: ignore[misc]
        self.own_kernels = declared_kernels(Path(source.files[1]))
        self.spec = CheckSpec(  # type: ignore[misc]  # one a candidate
            name=name,
            summary=f"{Path(source.files[1]).name} against {Path(source.files[0]).name}; bound: {self.bound}",
            params=(Param("trial", TRIALS[0], "which draw of inputs and weights", label="trial"),),
            data_kinds=("normal",),
        )

    @property
    def bound(self) -> str:
        """Where the bound comes from, in words."""
        if self.tolerance is None:
            narrow = "" if self.precision == "fp32" else f", products in {self.precision} allowed"
            return f"derived from Model and the rounding errors of its operations{narrow}"
        parts = ", ".join(f"{key} {value:g}" for key, value in self.tolerance.items())
        return f"stated in {Path(self.source.files[0]).name}, {parts}"

    def validate(self, params: Mapping[str, Any], data: str) -> str | None:
        return None if params["trial"] >= 1 else f"trial must be at least 1, not {params['trial']}"

    def inputs(self, case: Case, generator: Generator) -> dict[str, Tensor]:
        return torch_model.draw(module_of(self.source, 0), case.input_seed)

    def reference(self, case: Case, inputs: dict[str, Tensor]) -> dict[str, Expected]:
        from gpucheck.checks import torch_reference

        module = module_of(self.source, 0)
        found = torch_reference.Reference(module, inputs, case.input_seed, precision=self.precision)
        found.must_repeat()
        return found.expected(self.tolerance, self.bound)

    @property
    def on_gpu_only(self) -> bool:  # type: ignore[override]
        return self.source.pair.reference == "gpu"

    def large(self, case: Case, device: str) -> int:
        if self.source.pair.reference == "cpu":
            return 0
        size = torch_model.sizes(module_of(self.source, 0), device)
        asked = large_pair()
        return size if size > (LARGE if asked is None else asked) else 0

    def inputs_on(self, case: Case, device: str) -> dict[str, Tensor]:
        return torch_model.draw(module_of(self.source, 0), case.input_seed, device)

    def reference_on(
        self, case: Case, inputs: dict[str, Tensor], device: str, *, large: bool
    ) -> tuple[dict[str, Expected], str]:
        from gpucheck.checks import torch_reference

        module, seed, asked = module_of(self.source, 0), case.input_seed, self.source.pair.reference
        values_on = "cpu" if device == "cpu" else "cuda" if large or asked == "gpu" else asked
        found = torch_reference.Reference(
            module, inputs, seed, precision=self.precision, device=device, values_on=values_on
        )
        found.must_repeat()
        return found.expected(self.tolerance, self.bound), found.where

    def must_answer(self, case: Case, inputs: dict[str, Tensor]) -> None:
        from gpucheck.checks import torch_reference

        if inputs and sum(value.numel() for value in inputs.values()) <= torch_reference.FEW:
            torch_reference.Reference(module_of(self.source, 0), inputs, case.input_seed).answer()

    def build(self, case: Case, inputs: dict[str, Tensor]) -> None:
        torch_model.build(module_of(self.source, 1), inputs, case.input_seed, "ModelNew")

    def prepare(self, case: Case, inputs: dict[str, Tensor], runtime: Runtime) -> Any:
        from gpucheck.checks.candidate import Candidate

        return Candidate(module_of(self.source, 1), inputs, case.input_seed, runtime)

    def operands(self, case: Case, prepared: Any) -> Any:
        return prepared.weights()

    def allowed(self, case: Case, prepared: Any, inputs: dict[str, Tensor], runtime: Runtime) -> Allowed:
        """What ``Model`` does itself."""
        return torch_model.side_effects(module_of(self.source, 0), inputs, case.input_seed, runtime.device)

    def launch(self, case: Case, prepared: Any, runtime: Runtime) -> dict[str, Tensor]:
        outputs: dict[str, Tensor] = prepared.answer()
        return outputs

    def fresh_inputs(self, case: Case, seed: int, device: str = "cpu") -> dict[str, Tensor]:
        return torch_model.draw_inputs(module_of(self.source, 0), seed, device)

    def call(self, prepared: Any, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        outputs: dict[str, Tensor] = prepared.call(inputs)
        return outputs

    def baseline(self, case: Case, inputs: dict[str, Tensor], runtime: Runtime) -> Any:
        from gpucheck.checks.candidate import Candidate

        return Candidate(module_of(self.source, 0), inputs, case.input_seed, runtime, "Model")

    def kernels(self, case: Case, runtime: Runtime) -> tuple[str, ...]:
        return (ANY_KERNEL,) if self.own_kernels.triton_alone else ()

    @property
    def traced(self) -> bool:  # type: ignore[override]
        return bool(self.own_kernels.device or self.own_kernels.other)

    def fallback(self, launched: Sequence[str], device_kernels: Sequence[str] | None) -> tuple[str, str]:
        own = self.own_kernels
        if launched or own.ran(device_kernels) or (own.triton_alone and own):
            return "", ""  # what Triton should have launched and did not is seen elsewhere
        if own and device_kernels is not None:
            seen = ", ".join(short_name(name) for name in device_kernels[:SHOWN]) or "none"
            return f"none of {', '.join((*own.device, *own.other))} ran on the GPU; ran: {seen}", ""
        if own or own.built:
            return "", ""  # nobody can see what compiled code does on the host
        words = "ModelNew has no kernel of its own"
        return (words, "") if self.source.pair.own_kernel else ("", words)

    @property
    def declares_triton(self) -> bool:  # type: ignore[override]
        return bool(self.own_kernels.triton)

    def axes(self, case: Case, inputs: dict[str, Tensor]) -> dict[str, Axes]:
        return {}


def stated_precision(path: Path) -> str:
    """The ``PRECISION`` that a problem's file states, read without running it; fp32 without one.

    Raises:
        UsageError: it is not written out as one of those that are known.
    """
    bound = top_level(path)
    if "PRECISION" not in bound:
        return PRECISIONS[0]
    value = getattr(bound["PRECISION"], "value", None)
    if value not in PRECISIONS:
        raise UsageError(f"{path}: PRECISION is {value!r}, expected one of {', '.join(PRECISIONS)}, written out")
    return str(value)


def stated_tolerance(path: Path) -> dict[str, float] | None:
    """The ``tolerance`` that a problem's file states, read without running it; None without one.

    Raises:
        UsageError: it is not written out as ``{"absolute": number, "relative": number}``, or a part of that.
    """
    bound = top_level(path)
    if "tolerance" not in bound:
        return None
    expected = 'expected {"absolute": number, "relative": number}, written out, or one of them'
    try:
        value = ast.literal_eval(bound["tolerance"] or ast.Name("tolerance"))
    except ValueError:
        raise UsageError(f"{path}: tolerance is computed, {expected}") from None
    known = isinstance(value, dict) and value and set(value) <= {"absolute", "relative"}
    if not known or not all(type(part) in (int, float) and 0 <= part < 1e30 for part in value.values()):
        raise UsageError(f"{path}: tolerance is {value!r}, {expected}")
    return {key: float(part) for key, part in value.items()}
