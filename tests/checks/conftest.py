"""Kernels of the checks run in Triton's interpreter: the variable must be set before anything imports Triton."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FunctionType, ModuleType
from typing import TYPE_CHECKING, Any

import pytest

from tests.module_files import load_module

os.environ["TRITON_INTERPRET"] = "1"

if TYPE_CHECKING:
    from torch import Tensor

    from gpucheck.checks.base import Check
    from gpucheck.model.case import Case
    from gpucheck.model.record import Mismatch


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Threads of torch cost more than these small products."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def interpreter() -> None:
    """Triton on the CPU; tests that need it are skipped visibly where Triton is not installed."""
    pytest.importorskip("triton")
    from gpucheck.triton_hooks import interpreter

    interpreter.install()


@dataclass(frozen=True)
class Seen:
    """What one launch in watched memory gave."""

    mismatches: dict[str, Mismatch]  # by output
    violations: list[str]
    guards: list[str]  # broken guard bands
    outputs: dict[str, Tensor]

    @property
    def right(self) -> bool:
        return not self.mismatches and not self.violations and not self.guards


@dataclass(frozen=True)
class CheckRunner:
    """Runs a case as the child of a rank does: inputs and outputs between guards, in filled memory."""

    def case(self, check: Check, data: str, params: dict[str, Any], seed: int = 7) -> Case:
        case = check.spec.case(params, data, seed)
        assert check.reason_against(case.params, data) is None
        return case

    def inputs(self, check: Check, case: Case) -> dict[str, Tensor]:
        import torch

        return check.inputs(case, torch.Generator().manual_seed(case.input_seed))

    def run(self, check: Check, case: Case, inputs: dict[str, Tensor] | None = None, fill: int = 0xFF) -> Seen:
        import torch

        from gpucheck.tools.compile.compile_process import CompileRuntime
        from gpucheck.verify.judge import judge
        from gpucheck.worker.device.guarded_memory import GuardedMemory, WatchedAllocation

        inputs = self.inputs(check, case) if inputs is None else inputs
        memory = GuardedMemory(torch.device("cpu"))
        memory.reset(fill)
        runtime = CompileRuntime("", "")
        runtime.place = memory.place  # type: ignore[method-assign]
        prepared = check.prepare(case, {name: memory.place(value) for name, value in inputs.items()}, runtime)
        with WatchedAllocation(memory):
            outputs = check.launch(case, prepared, runtime)
        found = judge(outputs, check.reference(case, inputs), check.axes(case, inputs))
        return Seen(
            {mismatch.output: mismatch for mismatch in found.mismatches},
            [violation.detail for violation in found.violations],
            memory.broken_guards(),
            outputs,
        )


@pytest.fixture
def runner(interpreter: None) -> CheckRunner:
    return CheckRunner()


Twin = Callable[..., None]
"""``twin(module, right, wrong, ...)``: replaces pieces of a kernel module's source for the rest of the test."""


@pytest.fixture
def twin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Twin:
    """The functions that checks call come from an edited copy of their module; each piece must occur exactly once."""

    def replace(module: ModuleType, *pieces: str) -> None:
        source = Path(str(module.__file__)).read_text()
        for right, wrong in zip(pieces[::2], pieces[1::2], strict=True):
            assert source.count(right) == 1, f"{source.count(right)} times: {right}"
            source = source.replace(right, wrong)
        path = tmp_path / f"wrong_{Path(str(module.__file__)).name}"
        path.write_text(source)
        edited = load_module(path)
        for name, value in vars(module).items():
            if isinstance(value, FunctionType) and value.__module__ == module.__name__:
                monkeypatch.setattr(module, name, getattr(edited, name))

    return replace
