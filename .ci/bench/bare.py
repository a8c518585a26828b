"""A bare torchrun script of the kernels of a plan: import, context, compile, launch, copy, and nothing else.

``python -m torch.distributed.run --standalone --nproc-per-node N .ci/bench/bare.py PLAN REPORT``: what ``gpucheck run``
costs is held against this. Each rank writes its seconds by stage to REPORT.RANK; inputs are made between the stages.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

BEGIN = time.perf_counter()
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
seconds: dict[str, float] = {}


@contextmanager
def stage(name: str) -> Iterator[None]:
    """Adds what is done inside to a stage."""
    begin = time.perf_counter()
    try:
        yield
    finally:
        seconds[name] = seconds.get(name, 0.0) + time.perf_counter() - begin


def main(plan_file: Path, report: str) -> None:
    """Runs each case of the plan once, the way a script would that somebody writes to see whether kernels run."""
    plan = json.loads(plan_file.read_text(encoding="utf-8"))
    rank = int(os.environ["LOCAL_RANK"])
    cuda = plan["device"] == "cuda"
    if not cuda:
        os.environ["TRITON_INTERPRET"] = "1"
    import torch
    import triton

    from gpucheck import checks
    from gpucheck.library import adapters
    from gpucheck.model.plan import Plan
    from gpucheck.triton_hooks import launch_hooks

    if not cuda:
        from gpucheck.triton_hooks import interpreter

        interpreter.install()
    assert triton is not None
    read = Plan.from_json(plan)
    library = adapters.load(Path(read.library["root"]), read.library["generation"]) if read.has_library else None
    seconds["import"] = time.perf_counter() - BEGIN
    device = torch.device("cuda", rank) if cuda else torch.device("cpu")
    with stage("context"):
        if cuda:
            torch.cuda.set_device(device)
            torch.ones(1, device=device)
            torch.cuda.synchronize()

    def timed(build):
        def compile_timed(*args, **kwargs):
            with stage("compile"):
                return build(*args, **kwargs)

        return compile_timed

    if cuda:
        launch_hooks.replace_compilation(timed)
    runtime = Runtime(device, library)
    ran = 0
    for step in read.steps:
        if step.inapplicable or step.together or step.conditions.engine or step.conditions.lifelong.words:
            continue
        check = checks.load(step.case.check)
        with suppress(Exception):  # what fails, fails the gate too, and costs nothing here
            inputs = check.inputs(step.case, torch.Generator().manual_seed(step.case.input_seed))
            compiled = seconds.get("compile", 0.0)
            with stage("launch"):
                placed = {name: tensor.to(device) for name, tensor in inputs.items()}
                outputs = check.launch(step.case, check.prepare(step.case, placed, runtime), runtime)
                runtime.synchronize()
            seconds["launch"] -= seconds.get("compile", 0.0) - compiled
            with stage("copy"):
                for output in outputs.values():
                    output.cpu()
            ran += 1
    Path(f"{report}.{rank}").write_text(json.dumps({"seconds": seconds, "cases": ran}), encoding="utf-8")


class Runtime:
    """What a check asks for where nothing is watched."""

    def __init__(self, device, library) -> None:
        self.device, self.library = device, library

    def place(self, tensor, name: str = ""):
        return tensor

    def synchronize(self) -> None:
        if self.device.type == "cuda":
            import torch

            torch.cuda.synchronize(self.device)

    def report_violation(self, kind: object, detail: str) -> None:
        """Nobody judges."""

    def note(self, text: str) -> None:
        """Nobody reads."""

    def engine_part(self, part: object) -> None:
        """No engine runs."""


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
