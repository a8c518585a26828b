"""Builds the kernels of our own checks, as cases launch them, for a GPU that is not here.

Run by ``test_compile`` in a process of its own: ``python compile_kernels.py TARGET,... CHECK,PARAMETER=VALUE,...`` with
as many cases as are wanted. Prints a line for each kernel built; one that does not compile ends it with Triton's error.
"""

from __future__ import annotations

import inspect
import sys
from typing import Any

import torch
import triton
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

from gpucheck.checks import load
from gpucheck.checks.no_launch import stand_in_device
from gpucheck.tools.compile.compile_process import CompileRuntime
from gpucheck.triton_hooks.targets import TARGETS

POINTERS = {torch.bfloat16: "*bf16", torch.float16: "*fp16", torch.float32: "*fp32", torch.int32: "*i32"}


def kind(value: Any) -> str:
    """The type of an argument in a kernel's signature."""
    if isinstance(value, torch.Tensor):
        return POINTERS[value.dtype]
    return "fp32" if isinstance(value, float) else "i32"


def build(targets: list[str], kernel: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
    """Stands in for the launch of a kernel."""
    names = [param.name for param in kernel.params]
    given = {**dict(zip(names, args, strict=False)), **kwargs}
    bound = {name: given.pop(name) for name in names}
    constants = {
        param.name: bound[param.name] for param in kernel.params if param.is_constexpr or bound[param.name] is None
    }
    signature = {name: "constexpr" if name in constants else kind(value) for name, value in bound.items()}
    if "constexprs" in inspect.signature(ASTSource.__init__).parameters:
        source = ASTSource(kernel, signature, constants)
    else:  # up to Triton 3.2 a signature holds no constants
        source = ASTSource(kernel, {name: t for name, t in signature.items() if t != "constexpr"}, constants)
    for target in targets:
        try:
            compiled = triton.compile(source, target=stand_in_device(TARGETS[target]).target, options=given)
        except Exception as error:
            lacking = TARGETS[target].lacks(str(error))
            if not lacking:
                raise
            print(kernel.fn.__name__, target, "lacks", lacking, file=sys.stderr)
            continue
        binary = compiled.asm["hsaco" if TARGETS[target].amd else "cubin"]
        print(kernel.fn.__name__, target, compiled.metadata.shared, len(binary), triton.__version__, flush=True)


def main(targets: list[str], cases: list[str]) -> None:
    JITFunction.run = lambda *args, **kwargs: build(targets, *args, **kwargs)
    runtime = CompileRuntime("", "")
    for words in cases:
        name, *settings = words.split(",")
        check = load(name)
        params = {}
        for setting in settings:
            key, _, text = setting.partition("=")
            default = check.spec.defaults[key]
            params[key] = text == "True" if isinstance(default, bool) else type(default)(text)
        case = check.spec.case(params, "normal", 0)
        inputs = check.inputs(case, torch.Generator().manual_seed(0))
        check.launch(case, check.prepare(case, inputs, runtime), runtime)


if __name__ == "__main__":
    main(sys.argv[1].split(","), sys.argv[2:])
