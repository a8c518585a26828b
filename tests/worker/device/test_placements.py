"""How a process is tied to the GPU of its rank."""

from __future__ import annotations

import ast
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from gpucheck import checks
from gpucheck.model.conditions import Conditions
from gpucheck.model.placement_table import PLACEMENTS
from gpucheck.model.plan import Plan, Replay, Step
from gpucheck.tools.replay import bundle
from gpucheck.worker.device.placements import BINDINGS
from tests.conftest import Synthetic


@pytest.fixture
def chosen(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Devices that were made the current one."""
    devices: list[int] = []
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: devices.append(device.index))
    return devices


def test_every_placement_is_known_to_the_code_that_places() -> None:
    assert {*BINDINGS} == {*PLACEMENTS}


def test_pinned(chosen: list[int]) -> None:
    assert BINDINGS["pinned"]().enter(3) == torch.device("cuda", 3)
    assert chosen == [3]


@pytest.fixture
def made(chosen: list[int], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Where tensors were made and copied to."""
    places: list[str] = []

    class Held:
        def to(self, device: torch.device) -> Held:
            places.append(f"copy to {device}")
            return self

    def ones(size: int, device: str) -> Held:
        places.append(device)
        return Held()

    monkeypatch.setattr(torch, "ones", ones)
    return places


@pytest.mark.parametrize(
    ("name", "expected"),
    [("unpinned", []), ("context0", ["cuda:0"]), ("peer", ["cuda:0", "copy to cuda:3"])],
)
def test_placements_that_leave_the_current_device_at_0(
    made: list[str], chosen: list[int], name: str, expected: list[str]
) -> None:
    assert BINDINGS[name]().enter(3) == torch.device("cuda", 3)
    assert (made, chosen) == (expected, [])


@pytest.mark.parametrize(
    ("before", "after"), [(None, "2"), ("", "2"), ("4,5,6,7", "6"), ("GPU-a, GPU-b, GPU-c", "GPU-c")]
)
def test_visible(chosen: list[int], monkeypatch: pytest.MonkeyPatch, before: str | None, after: str) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", before or "")  # also puts back what was there
    if before is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert BINDINGS["visible"]().enter(2) == torch.device("cuda", 0)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == after
    assert chosen == [0]


def test_cpu(chosen: list[int]) -> None:
    threads = torch.get_num_threads()
    try:
        assert BINDINGS["cpu"]().enter(5) == torch.device("cpu")
    finally:
        torch.set_num_threads(threads)
    assert chosen == []


def script_facts(plan: Plan, name: str) -> dict[str, Any]:
    step = Step(checks.load("softmax").spec.case({}, "exact", 0), Conditions(name))
    replayed = replace(plan, steps=(step,), replay=Replay(3, save=True), nproc=8)
    facts: dict[str, Any] = {}
    exec(bundle._facts(replayed, None, {"lines": [], "outputs": None}), facts)
    return facts


@pytest.mark.parametrize("name", sorted({*PLACEMENTS} - {"cpu"}))
def test_a_reproduction_ties_its_process_to_the_gpu_as_the_worker_does(
    made: list[str], chosen: list[int], monkeypatch: pytest.MonkeyPatch, synthetic: Synthetic, name: str
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,3")
    device = BINDINGS[name]().enter(3)
    worker = [*made], [*chosen], str(device), os.environ["CUDA_VISIBLE_DEVICES"]
    made.clear()
    chosen.clear()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,3")
    recorded: Any = {"variables": {"CUDA_VISIBLE_DEVICES": "0,1,2,3"}}
    facts = script_facts(synthetic.plan(environment=recorded), name)
    template = ast.parse((Path(bundle.__file__).parent / "script_template.py").read_text())
    (settle,) = (part for part in template.body if isinstance(part, ast.FunctionDef) and part.name == "settle")
    script = {**facts, "torch": torch, "held": [], "DEVICE": torch.device(facts["DEVICE_NAME"])}
    exec(compile(ast.Module([settle], []), "settle", "exec"), script)
    script["settle"]()
    visible = facts["ENVIRONMENT"]["CUDA_VISIBLE_DEVICES"]
    assert (made, chosen, facts["DEVICE_NAME"], visible) == worker
