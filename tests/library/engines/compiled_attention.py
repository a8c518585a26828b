"""Kernels of an engine's attention, compiled for a GPU that is not here: PLANNED, LIBRARY and TARGET are its arguments.

Prints a line of JSON: case -> kernel -> what came of it.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from gpucheck import checks
from gpucheck.checks.no_launch import CompileRuntime, stand_in
from gpucheck.library import engines
from gpucheck.library.copies import describe
from gpucheck.tools.compile.compile_process import run
from gpucheck.tools.compile.source_locations import Sources
from gpucheck.triton_hooks.targets import TARGETS

HEADS = {"q_heads": 64, "kv_heads": 8, "k_len": 300}
SHAPES: tuple[dict[str, Any], ...] = (
    {"queries": "mixed", "window": 128},
    {"queries": "decode"},
    {"queries": "mixed", "head_dim": 128},
)


def main(planned: Any, root: Path, name: str) -> None:
    target = TARGETS[name]
    with stand_in(target), tempfile.TemporaryDirectory() as scratch:
        printed = Path(scratch, "printed")
        printed.touch()
        from gpucheck.tools.compile.capture import Capture, Output

        sources = Sources([Path(planned["root"], planned["name"])])
        capture = Capture(target, sources, Output(printed), lambda **event: None, {})
        capture.install()
        engines.settle(planned, "cpu", scratch)
        runtime = CompileRuntime(str(root), describe(root / "triton_kernels", "test").generation)
        check = checks.load(f"{planned['name']}_attention")
        told = {}
        for params in SHAPES:
            case = check.spec.case({**HEADS, **params}, "normal", 0)
            built = run(case, runtime, capture, sources)
            kernels = [capture.kernels[key] for key in built.kernels]
            told[case.id] = {"case": str(built.built.value), **{each.name: each.built.value for each in kernels}}
    print(json.dumps(told))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
