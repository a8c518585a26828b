"""Recorded calls, run again from what was written: they must give the same."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from importlib import import_module
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from gpucheck.records.replay_files import FOLDER, read_program
from gpucheck.worker.device.call_recorder import Recorder, needed
from gpucheck.worker.protocol import ARGUMENT

pytest.importorskip("triton")

Tensor = Any


class Mode(Enum):
    FAST = 1


@dataclass(frozen=True)
class Layout:
    name: str


@dataclass
class Wrapped:
    """As a library wraps a tensor; its constructor must not run again."""

    data: Tensor
    layout: Layout
    shape: list[int]

    def __post_init__(self) -> None:
        self.shape = [2 * size for size in self.shape]


STRIDED = Layout("strided")


def scaled(x: Wrapped, factor: float, *, mode: Mode, layout: Layout, bias: Tensor | None = None) -> Any:
    assert mode is Mode.FAST and layout is STRIDED and x.shape[0] == 2 * len(x.data)
    helper(x)
    y = x.data * factor + (0 if bias is None else bias)
    return SimpleNamespace(rows=y, parts=(y + 1, [y + 2]))


def helper(x: Wrapped) -> Tensor:
    if x.data.numel() == 0:
        raise ZeroDivisionError
    return x.data.neg()


def configure(options: dict[str, float]) -> None:
    pass


@pytest.fixture
def adapter() -> Iterator[Any]:
    """An adapter whose library is this module."""
    module = ModuleType("recorded_library")
    for value in (Mode, Layout, Wrapped, scaled, helper, configure):
        setattr(module, value.__name__, value)
    names = {"Mode": Mode, "Layout": Layout, "Wrapped": Wrapped}
    before = {name: value.__module__ for name, value in names.items()}
    for value in names.values():
        value.__module__ = module.__name__
    module.STRIDED = STRIDED  # type: ignore[attr-defined]
    sys.modules[module.__name__] = module
    for function in (scaled, helper, configure):
        function.__module__ = module.__name__
    yield SimpleNamespace(library=module)
    del sys.modules[module.__name__]
    for name, value in names.items():
        value.__module__ = before[name]


def replayed(folder: Path, program: dict[str, Any], inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Runs what was written as the stand-alone script does."""

    def made(kind: Any, **fields: Any) -> Any:
        instance = kind.__new__(kind)
        instance.__dict__.update(fields)
        return instance

    paths = folder.glob(ARGUMENT.format("*"))
    arguments = {f"a{path.stem.removeprefix('argument-')}": torch.load(path, weights_only=True) for path in paths}
    scope = {"torch": torch, "inputs": inputs, "arguments": arguments, "made": made}
    scope |= {name: import_module(module) for module, name in program["modules"].items()}
    exec("\n".join(program["lines"]), scope)
    return {name: eval(value, scope) for name, value in program["outputs"].items()}


def record(run: Path, adapter: Any, inputs: dict[str, Tensor], work: Any) -> tuple[dict[str, Any], dict[str, Tensor]]:
    (run / FOLDER).mkdir()
    recorder = Recorder(run / FOLDER, inputs, adapter)
    with recorder.watching():
        outputs = work(adapter.library)
    recorder.end(outputs)
    return read_program(run), outputs


def test_calls_objects_and_torch_operations_in_between(tmp_path: Path, adapter: Any) -> None:
    x, extra = torch.arange(6.0).reshape(3, 2), torch.tensor([[1.0], [float("inf")], [3.0]])

    def work(library: Any) -> dict[str, Tensor]:
        torch.arange(7).float()  # nobody takes it
        library.configure({"split": 1})
        made = library.scaled(
            library.Wrapped(x, STRIDED, [3, 2]), 2.0, mode=library.Mode.FAST, layout=STRIDED, bias=extra
        )
        picked = made.parts[1][0].gather(0, torch.tensor([[2, 0]]))
        return {"y": picked.T[:, 0:1], "z": torch.where(x > 1, made.rows, x)}

    program, outputs = record(tmp_path, adapter, {"x": x}, work)
    text = "\n".join(program["lines"])
    assert not program["problem"] and "arange" not in text and "neg" not in text
    assert 'inputs["x"]' in text and 'arguments["a0"]' in text and "shape=[6, 4]" in text
    assert "recorded_library.configure({'split': 1})" in text and "recorded_library.STRIDED" in text
    again = replayed(tmp_path / FOLDER, program, {"x": x})
    assert {name: value.tolist() for name, value in again.items()} == {k: v.tolist() for k, v in outputs.items()}


def test_what_was_recorded_is_put_back(tmp_path: Path, adapter: Any) -> None:
    library = adapter.library
    record(tmp_path, adapter, {}, lambda watched: {"y": torch.ones(1)})
    assert adapter.library is library and library.scaled is scaled


def test_a_call_that_never_returns_is_on_disk_before_it_runs(tmp_path: Path, adapter: Any) -> None:
    x = torch.ones(0)
    (tmp_path / FOLDER).mkdir()
    recorder = Recorder(tmp_path / FOLDER, {"x": x}, adapter)
    with pytest.raises(ZeroDivisionError), recorder.watching():
        adapter.library.helper(adapter.library.Wrapped(x, STRIDED, [0]))
    program = read_program(tmp_path)
    assert program["outputs"] is None
    (line,) = program["lines"]
    assert line.startswith("r1 = recorded_library.helper(") and 'data=inputs["x"]' in line


def test_what_cannot_be_written_is_a_problem_and_the_case_goes_on(tmp_path: Path, adapter: Any) -> None:
    closure = [lambda: None]
    program, outputs = record(
        tmp_path, adapter, {}, lambda library: {"y": torch.ones(1), **(library.configure({"hook": closure[0]}) or {})}
    )
    assert "function" in program["problem"] and outputs["y"].tolist() == [1.0]


def test_only_what_nobody_takes_goes() -> None:
    lines = ["r1 = torch.ones(1)", "r2 = r1.neg()", "r3 = torch.zeros(1)", "call(r2)", "r12 = r3.abs()"]
    pure = {0: "r1", 1: "r2", 2: "r3", 4: "r12"}
    assert needed(lines, pure, ()) == ["r1 = torch.ones(1)", "r2 = r1.neg()", "call(r2)"]
    assert needed(lines, pure, ("r12[0]",)) == lines
