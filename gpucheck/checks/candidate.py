"""A candidate on the device under test: ``ModelNew`` with the weights of ``Model``, called as often as asked for."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from gpucheck.checks.arguments import call, unpack
from gpucheck.checks.base import Runtime
from gpucheck.checks.torch_model import ON_GPU, build, named, seeded, weights


class Candidate:
    """``ModelNew`` with the weights of ``Model``; it holds its inputs and weights, and nothing of what is right."""

    def __init__(
        self, module: ModuleType, inputs: dict[str, Tensor], seed: int, runtime: Runtime, name: str = "ModelNew"
    ) -> None:
        self.inputs = inputs
        self._runtime = runtime
        self._seed = seed
        made_on = str(runtime.device) if ON_GPU in inputs else "cpu"
        self._model = build(module, inputs, seed, name, made_on).to(runtime.device)
        self._take_weights()
        self._values = unpack("input", inputs)

    def _take_weights(self) -> None:
        """Gives each weight the value that ``Model`` has under its name; others stay as they were drawn.

        Both models are made under one seed, so weights that bear other names are equal where they are drawn alike.
        """
        given, own = weights(self.inputs), self._model.state_dict()
        unknown = [name for name in own if name not in given or not _alike(own[name], given[name])]
        taken = {name: self._runtime.place(own[name]) if name in unknown else given[name] for name in own}
        self._model.load_state_dict(taken, assign=True)  # so that the weights lie between guards too
        if unknown:
            self._runtime.note(f"ModelNew drew weights itself that Model does not have alike: {', '.join(unknown)}")

    def answer(self) -> dict[str, Tensor]:
        """Its outputs for the inputs that are judged."""
        return self._call(self._values)

    def weights(self) -> dict[str, Tensor]:
        """Its parameters; buffers and whatever else it holds are its own to write to, unless ``Model`` has them too."""
        return dict(self._model.named_parameters())

    def call(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """Its outputs for the inputs of another call."""
        return self._call(unpack("input", inputs))

    def _call(self, values: Any) -> dict[str, Tensor]:
        with torch.no_grad(), seeded(self._seed):  # so that what draws at random draws what Model does
            return named(call(self._model, values))


def _alike(value: Tensor, other: Tensor) -> bool:
    return (value.shape, value.dtype) == (other.shape, other.dtype)
