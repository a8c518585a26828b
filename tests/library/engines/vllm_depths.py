"""One expert block through each entry of vLLM, in a process of its own: PLANNED and LIBRARY are its arguments.

Prints a line of JSON: entry -> what a record says of it, and what is wrong with its outputs.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch

from gpucheck.library import adapters, engines
from gpucheck.library.copies import describe
from gpucheck.triton_hooks import interpreter
from gpucheck.worker.device.child import HOPPER


def main(planned: Any, root: Path) -> None:
    interpreter.install(**HOPPER)
    engines.settle(planned, "cpu")
    library = adapters.load(root, describe(root / "triton_kernels", "test").generation)
    engine = engines.load(library, torch.device("cpu"))

    from gpucheck.checks.engine_block import state_of
    from gpucheck.checks.vllm_moe import VllmMoe
    from gpucheck.library.engines import vllm_engine, vllm_parts
    from gpucheck.library.engines.base import Sizes
    from gpucheck.verify.judge import judge

    check = VllmMoe()
    case = check.spec.case({"m": 5, "hidden": 320, "intermediate": 320, "experts": 4, "top_k": 2}, "normal", 7)
    inputs = check.inputs(case, torch.Generator().manual_seed(case.input_seed))
    expected, axes = check.reference(case, inputs), check.axes(case, inputs)
    placed: list[str] = []

    def place(tensor: torch.Tensor, name: str = "") -> torch.Tensor:
        placed.append(name)
        return tensor

    told = {}
    for needs in (vllm_engine.MODEL_NEEDS, vllm_parts.METHOD_NEEDS, {}):
        placed.clear()
        with torch.no_grad():
            block = engine.expert_block(Sizes(320, 320, 4, 2), state_of(inputs), place)
            outputs = block.forward(inputs["x"])
        found = judge(outputs, expected, axes)
        wrong = [str(mismatch) for mismatch in found.mismatches] + [str(each) for each in found.violations]
        told[block.facts.depth] = {**vars(block.facts), "wrong": wrong, "placed": list(placed)}
        needs["vllm.model_executor"] = ("no_such_name",)  # what this release is then said to lack
    print(json.dumps(told))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]), Path(sys.argv[2]))
