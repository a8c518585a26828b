"""Kernels with one fault each, sent through a capture: ``python planted.py TARGET OUTPUT``; prints what came of them.

The library's own way of rewriting a kernel is imitated by ``rewritten``, which gives its function a new header.
"""

from __future__ import annotations

import inspect
import json
import sys
import types
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import triton
import triton.language as tl

from gpucheck.checks.no_launch import stand_in
from gpucheck.tools.compile.capture import Capture, Output
from gpucheck.tools.compile.source_locations import Sources
from gpucheck.triton_hooks.targets import TARGETS

FLOATS, HALVES = torch.zeros(1 << 16), torch.zeros(1 << 16, dtype=torch.bfloat16)


@triton.jit
def broadcast(ptr, s, L: tl.constexpr, D: tl.constexpr):
    offs_L = tl.arange(0, L)
    offs_D = tl.arange(0, D)
    tl.store(ptr + offs_L * s + offs_D[None, :], 1.0)


@triton.jit
def added(x, y):
    # the shapes must fit
    return x + y


@triton.jit
def nested(ptr, s, L: tl.constexpr, D: tl.constexpr):
    offs = added(tl.arange(0, L) * s, tl.arange(0, D)[None, :])
    tl.store(ptr + offs, 1.0)


@triton.jit
def missing(ptr, L: tl.constexpr):
    tl.store(ptr + tl.arange(0, L), tl.no_such_function(1.0))


@triton.jit
def signature(ptr, L: tl.constexpr):
    x = tl.load(ptr + tl.arange(0, L))
    tl.store(ptr, tl.max(x, 0, return_indexes=True))


@triton.jit
def hungry(a, b, c, M: tl.constexpr, N: tl.constexpr, K: tl.constexpr, n):
    rows, columns, terms = tl.arange(0, M)[:, None], tl.arange(0, N)[None, :], tl.arange(0, K)
    total = tl.zeros([M, N], tl.float32)
    top = tl.zeros([M], tl.float32)
    for i in range(n):
        x = tl.load(a + rows * 1024 + terms[None, :] + i * K)
        y = tl.load(b + terms[:, None] * 1024 + columns + i * K)
        total = tl.dot(x, y, total)
        top += tl.max(total, 1)
        total = total * top[:, None]
    tl.store(c + rows * 1024 + columns, total)


@triton.jit
def assembly(ptr, L: tl.constexpr):
    x = tl.load(ptr + tl.arange(0, L))
    y = tl.inline_asm_elementwise("bogus.f32 $0, $1;", "=r,r", [x], tl.float32, True, 1)
    tl.store(ptr + tl.arange(0, L), y)


@triton.jit
def e4m3(ptr, L: tl.constexpr):
    x = tl.load(ptr + tl.arange(0, L)).to(tl.float8e4nv)
    tl.store(ptr + tl.arange(0, L), x.to(tl.float32))


@triton.jit
def sound(ptr, L: tl.constexpr):
    tl.store(ptr + tl.arange(0, L), tl.load(ptr + tl.arange(0, L)) + 1.0)


@triton.autotune([triton.Config({"L": 64}), triton.Config({"L": 64}, num_warps=64)], key=[])
@triton.jit
def tuned(ptr, L: tl.constexpr):
    tl.store(ptr + tl.arange(0, L), 1.0)


def rewritten(kernel: Any, header: str) -> Any:
    """A kernel with another header, made of text, as the library makes its specialisations."""

    def template():
        pass

    text = header + kernel.src[kernel.src.index(":\n") + 1 :]
    scope: dict[str, Any] = {"tl": tl}
    exec(text, scope)
    function: Any = types.FunctionType(template.__code__, scope, kernel.__name__)
    function.__signature__ = inspect.signature(scope[kernel.__name__])
    made = triton.JITFunction(function)
    if hasattr(made, "_unsafe_update_src"):
        made._unsafe_update_src(text)
    else:  # Triton 3.1
        made.src = text
    return made


def launches() -> dict[str, Any]:
    """Name -> what launches it; each is a case of its own."""
    shorter = "def broadcast(ptr, s):\n    L: tl.constexpr = 32\n    D: tl.constexpr = 64"
    return {
        "broadcast": lambda: broadcast[(1,)](FLOATS, 7, L=32, D=64),
        "nested": lambda: nested[(1,)](FLOATS, 7, L=32, D=64),
        "rewritten": lambda: rewritten(broadcast, shorter)[(1,)](FLOATS, 7),
        "missing": lambda: missing[(1,)](FLOATS, L=64),
        "signature": lambda: signature[(1,)](FLOATS, L=64),
        "hungry": lambda: hungry[(1,)](HALVES, HALVES, FLOATS, 128, 128, 512, 4, num_warps=16, num_stages=4),
        "assembly": lambda: assembly[(1,)](FLOATS, L=64),
        "e4m3": lambda: e4m3[(1,)](FLOATS, L=64),
        "option": lambda: sound[(1,)](FLOATS, L=64, no_such_option=1),
        "argument": lambda: sound[(1,)](L=64),
        "sound": lambda: sound[(1,)](FLOATS, L=64),
        "sound again": lambda: [sound[(1,)](FLOATS, L=64) for _ in range(3)],
        "warps": lambda: sound[(1,)](FLOATS, L=64, num_warps=64),
        "tuned": lambda: tuned[(1,)](FLOATS),
        "long second axis": lambda: sound[(1, 65_536)](FLOATS, L=64),
        "full second axis": lambda: sound[(2**31 - 1, 1, 1)](FLOATS, L=64) and sound[(1, 65_535, 3)](FLOATS, L=64),
        "computed grid": lambda: sound[lambda meta: (1, 2, 65_472 + meta["L"])](FLOATS, L=64),
        "wrapped grid": lambda: sound[(65_536, 32_768)](FLOATS, L=64),
        "no grid": lambda: sound[lambda meta: (meta["M"],)](FLOATS, L=64),
        "tuned grid": lambda: tuned[(1, 70_000)](FLOATS),
        "empty grid": lambda: sound[(0,)](FLOATS, L=64),
        "broadcast again": lambda: broadcast[(1,)](FLOATS, 7, L=32, D=64),
    }


def main(target: str, output: str) -> None:
    events: list[dict[str, Any]] = []
    with stand_in(TARGETS[target]):
        capture = Capture(
            TARGETS[target],
            Sources([Path(__file__).parent]),
            Output(Path(output)),
            lambda **event: events.append(event),
            {},
        )
        capture.install()
        for name, launch in launches().items():
            capture.start()
            launch()
            kernels = [asdict(capture.kernels[key]) for key in capture.keys]
            entry = {"launches": capture.launches, "compiled": capture.compiled_now, "kernels": kernels}
            events.append({"event": "case", "name": name, **entry})
            capture.compiled_now = 0
    Path(output).with_suffix(".json").write_text(json.dumps(events))


if __name__ == "__main__":
    main(*sys.argv[1:])
