"""Every tensor that an operand holds is found, wherever it hides, and nothing beside it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from gpucheck.worker.device.held_tensors import MOST, tensors_in


@dataclass(frozen=True)
class Weight:
    operand: Any
    fresh_scale: Any


class Storage:
    """An object of a library."""

    def __init__(self, data: Any) -> None:
        self.data = data


class Slotted:
    __slots__ = ("data", "unset")

    def __init__(self, data: Any) -> None:
        self.data = data


def paths(value: Any) -> list[str]:
    return [path for path, _ in tensors_in("", value)]


def test_containers_dataclasses_objects_and_closures_are_looked_into() -> None:
    scale = torch.ones(2)

    def fresh() -> Any:
        return Storage(scale)

    held = {
        "weights": [Weight(Storage(torch.zeros(1)), fresh)],
        "x": torch.ones(1),
        "none": None,
        "slots": Slotted(scale),
    }
    assert paths(held) == ["weights[0].operand.data", "weights[0].fresh_scale.scale", "x"], "each tensor once"
    assert paths({"slots": Slotted(scale)}) == ["slots.data"]


def test_partial_functions_methods_and_defaults_hold_tensors_too() -> None:
    class Model:
        def __init__(self) -> None:
            self.table = torch.ones(1)

        def call(self) -> None:
            pass

    def defaulted(x: Any = torch.ones(3)) -> Any:  # noqa: B008
        return x

    assert paths(partial(min, torch.ones(2), key=torch.ones(1))) == ["args[0]", "keywords.key"]
    assert paths(Model().call) == ["table"] and len(paths(defaulted)) == 1


def test_modules_of_torch_are_named_as_torch_names_them() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2))
    model.scratch = [torch.zeros(2)]
    found = paths(model)
    assert {"0.weight", "0.bias", "1.running_mean", "1.num_batches_tracked", "scratch[0]"} <= set(found)


def test_what_is_no_operand_is_left_alone_and_circles_end() -> None:
    from gpucheck.worker.device.side_effects import CallWatch

    circle: dict[str, Any] = {
        "x": torch.ones(1),
        "torch": torch,
        "class": Storage,
        "watch": CallWatch(torch.device("cpu")),
    }
    circle["itself"] = circle
    assert paths(circle) == ["x"]
    assert paths(torch.ones(1)) == [""]
    sparse = torch.ones(2, 2).to_sparse()
    assert paths([sparse]) == [], "no memory that lies by strides"
    assert len(paths([[number] for number in range(2 * MOST)])) == 0, "ends"
